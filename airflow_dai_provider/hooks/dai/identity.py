"""What the requests of both hooks have in common: who asks, where a token may go, and what no answer means."""

from __future__ import annotations

import platform
from typing import Any

from airflow import __version__ as airflow_version
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import GoogleAuthError, RefreshError, TransportError

from airflow_dai_provider import __version__, rest
from airflow_dai_provider.endpoint import EMULATOR_VARIABLE, Endpoint
from airflow_dai_provider.errors import Code, ServiceError
from airflow_dai_provider.redact import redact_urls

#: What can come out of ``Credentials.refresh``, which reads the token service's answer unchecked.
TOKEN_ERRORS = (GoogleAuthError, OSError, TypeError, ValueError, LookupError, AttributeError)


def client_headers(library: str) -> dict[str, str]:
    """
    Return the headers that say who asks, as Google's client libraries send them.

    :param library: the HTTP library and its version, such as ``requests/2.32.0``.
    """
    return {
        "x-goog-api-client": (
            f"gl-python/{platform.python_version()} rest/{library.partition('/')[2]} gapic/{__version__}"
        ),
        "User-Agent": f"airflow-dai-provider/{__version__} apache-airflow/{airflow_version} {library}",
    }


def refuse_plain_http(endpoint: Endpoint, credentials: Credentials) -> None:
    """Raise ValueError when a token would leave this machine over plain HTTP."""
    if not isinstance(credentials, AnonymousCredentials) and not endpoint.may_see_token:
        raise ValueError(
            f"Refusing to send credentials to {endpoint.url} over plain HTTP: use https, a loopback address, "
            f"or {EMULATOR_VARIABLE} for an emulator that needs no credentials."
        )


def no_answer(
    request: rest.Request[Any], endpoint: Endpoint, reason: object, *, untrusted: bool, timed_out: bool, sent: bool
) -> ServiceError:
    """
    Return the error for a request that got no answer.

    :param reason: what the library says of it.
    :param untrusted: whether the server's certificate does not verify, which no repeat heals.
    :param timed_out: whether the time was up.
    :param sent: whether the request may have reached the service.
    """
    words = f"{request} got no answer from {endpoint.url}: {redact_urls(str(reason) or type(reason).__name__)}"
    if untrusted:
        words += "; the server's certificate is not trusted (REQUESTS_CA_BUNDLE names other authorities)"
        return ServiceError(words, Code.FAILED_PRECONDITION)
    return ServiceError(words, Code.DEADLINE_EXCEEDED if timed_out else Code.UNAVAILABLE, sent=sent)


def no_authorities(request: rest.Request[Any], error: OSError) -> ServiceError:
    """Return the error for a request that was not sent, since the certificate authorities cannot be read."""
    return ServiceError(f"{request} was not sent: {error}", Code.FAILED_PRECONDITION)


def token_error(request: rest.Request[Any], error: Exception) -> ServiceError:
    """Return the error for a request that was not sent, since one of ``TOKEN_ERRORS`` came instead of a token."""
    if isinstance(error, OSError):
        return no_authorities(request, error)
    if not isinstance(error, GoogleAuthError):
        words = f"{request} was not sent: the token service did not answer as it should"
        return ServiceError(words, Code.UNAVAILABLE, sent=False)
    words = f"{request} was not sent, for want of a token: {redact_urls(str(error.args[0] if error.args else error))}"
    if isinstance(error, TransportError) or error.retryable:
        return ServiceError(words, Code.UNAVAILABLE, sent=False)
    return ServiceError(words, Code.UNAUTHENTICATED)


class _HeldToken(Credentials):
    """Other credentials' token as it is at the moment; fetches none."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._credentials = credentials

    @property
    def valid(self) -> bool:
        return True

    def refresh(self, request: Any) -> None:  # noqa: ARG002 - the library's signature
        raise RefreshError("the token at hand was refused, and there is no time to fetch another")

    def before_request(self, request: Any, method: str, url: str, headers: dict[str, str]) -> None:  # noqa: ARG002
        self._credentials.apply(headers)


def held_token(credentials: Credentials) -> Credentials:
    """Return credentials that authorise with the token that others hold at the moment of a request."""
    return credentials if isinstance(credentials, AnonymousCredentials) else _HeldToken(credentials)
