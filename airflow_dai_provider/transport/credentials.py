"""What the requests of both hooks have in common: who asks, where a token may go, and what no answer means."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import requests
import urllib3
from airflow import __version__ as airflow_version
from google.auth import transport
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import GoogleAuthError, RefreshError, TransportError
from google.auth.transport.requests import Request as AuthRequest

from airflow_dai_provider import __version__
from airflow_dai_provider.api import rest
from airflow_dai_provider.api.endpoint import EMULATOR_VARIABLE, Endpoint
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.redaction import redact_urls

#: What can come out of ``Credentials.refresh``, which reads the token service's answer unchecked.
TOKEN_ERRORS = (GoogleAuthError, OSError, TypeError, ValueError, LookupError, AttributeError)

#: The most characters of a token service's words that are shown: they can be the page of a front end.
_MAX_WORDS = 500
#: What a token looks like: Google's access tokens, every JWT, and whatever stands in the header.
_TOKEN = re.compile(r"\b(ya29\.|eyJ|Bearer )\S*")
_CHUNK = 64 * 1024


class TokenRequest(AuthRequest):
    """
    Asks the token services for google-auth, and remembers what the last one answered.

    google-auth itself calls only some of their errors retryable: none of those of impersonation and federation.

    :param session: the session to use.
    :param timeout: seconds that one request may take.
    """

    def __init__(self, session: requests.Session, timeout: float) -> None:
        super().__init__(session)
        # Without this, requests replaces the token with a password from ~/.netrc, or adds one.
        session.auth = keep_headers
        session.hooks["response"].append(self._read)
        self._timeout = timeout
        self._status = 0

    @property
    def may_heal(self) -> bool:
        """Whether the last answer was one that a repeat can change."""
        return self._status in (408, 429) or self._status >= 500

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> transport.Response:
        """
        Send a request; follow no redirect, and read a bounded answer for a bounded time.

        :raises google.auth.exceptions.RefreshError: when a credential would leave this machine over plain HTTP.
        """
        self._status = 0
        secret = body is not None or "authorization" in {name.lower() for name in headers or ()}
        if secret and not Endpoint(url).may_see_token:
            raise RefreshError(f"Refusing to send credentials to {redact_urls(url)} over plain HTTP: use https")
        seconds = timeout or self._timeout
        options = {"allow_redirects": False, "stream": True} | kwargs
        response: transport.Response = super().__call__(url, method, body, headers, seconds, **options)  # type: ignore[no-untyped-call]
        self._status = response.status
        if 300 <= response.status < 400:
            raise RefreshError("the token service answered with a redirect, which is not followed with credentials")
        return response

    def _read(self, answer: requests.Response, **_: Any) -> None:
        """Read an answer before anybody else does, who would read a large or slow one to its end."""
        deadline = time.monotonic() + self._timeout
        with answer:
            try:
                body = read_body(answer.raw, lambda: time.monotonic() > deadline)
            except urllib3.exceptions.HTTPError as error:
                raise requests.exceptions.ConnectionError(f"the answer cannot be read: {error}") from error
        if len(body) > rest.MAX_ANSWER_BYTES:
            raise requests.exceptions.ConnectionError(f"the answer is larger than {rest.MAX_ANSWER_BYTES} bytes")
        answer._content, answer._content_consumed = body, True  # type: ignore[attr-defined]


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


def not_sent(request: rest.Request[Any], error: Exception) -> ServiceError:
    """Return the error for a request that the library cannot make, such as one with a token that fits in no header."""
    return ServiceError(f"{request} was not sent: {_without_tokens(error)}", Code.FAILED_PRECONDITION)


def read_body(raw: urllib3.BaseHTTPResponse, late: Callable[[], bool]) -> bytes:
    """Read as it arrives, so that neither a large nor a slow answer holds the task."""
    body = bytearray()
    while chunk := raw.read1(_CHUNK, decode_content=True):
        body += chunk
        if len(body) > rest.MAX_ANSWER_BYTES:
            break
        if late():
            raise urllib3.exceptions.TimeoutError("the answer did not end in time")
    return bytes(body[: rest.MAX_ANSWER_BYTES + 1])


def keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Authorise a request by the headers that it has."""
    return request


def no_authorities(request: rest.Request[Any], error: OSError) -> ServiceError:
    """Return the error for a request that was not sent, since the certificate authorities cannot be read."""
    return ServiceError(f"{request} was not sent: {error}", Code.FAILED_PRECONDITION)


def token_error(request: rest.Request[Any], error: Exception, *, may_heal: bool) -> ServiceError:
    """
    Return the error for a request that was not sent, since one of ``TOKEN_ERRORS`` came instead of a token.

    :param error: keeps its words only; the answer that google-auth keeps in it can hold a token, and shows in a
        traceback. Many waits can share it.
    :param may_heal: whether the last answer of a token service was one that a repeat can change.
    """
    if isinstance(error, OSError):
        return no_authorities(request, error)
    if not isinstance(error, GoogleAuthError):
        words = f"{request} was not sent: the token service did not answer as it should"
        return ServiceError(words, Code.UNAVAILABLE, sent=False)
    error.args = (_reason(error),)
    words = f"{request} was not sent, for want of a token: {redact_urls(error.args[0])}"
    if isinstance(error, TransportError) or error.retryable or may_heal:
        return ServiceError(words, Code.UNAVAILABLE, sent=False)
    return ServiceError(words, Code.UNAUTHENTICATED)


def _reason(error: GoogleAuthError) -> str:
    """Return the library's words, and those of the API that it has asked, which it keeps back."""
    words, *answer = error.args or (error,)
    with suppress(ValueError, TypeError, LookupError):
        words = f"{words}: {json.loads(answer[0])['error']['message']}"
    return _without_tokens(words)


def _without_tokens(words: object) -> str:
    return _TOKEN.sub(r"\1...", str(words))[:_MAX_WORDS]


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
        if self._credentials.token is None:
            raise RefreshError("there is no token at hand, and no time to fetch one")
        self._credentials.apply(headers)


def held_token(credentials: Credentials) -> Credentials:
    """Return credentials that authorise with the token that others hold at the moment of a request."""
    return credentials if isinstance(credentials, AnonymousCredentials) else _HeldToken(credentials)
