"""Credentials: how a token is fetched, where it may be sent, and the errors of requests that were not sent."""

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
from airflow_dai_provider.transport.google_errors import typed

#: The errors that ``Credentials.refresh`` raises: google-auth reads the token service's response unchecked.
TOKEN_ERRORS = (GoogleAuthError, OSError, TypeError, ValueError, LookupError, AttributeError)

#: The most characters of a token service's message that are shown: it can be the page of a front end.
_MAX_MESSAGE = 500
#: A token: Google's access tokens, every JWT, and the value of the header.
_TOKEN = re.compile(r"\b(ya29\.|eyJ|Bearer )\S*")
_CHUNK = 64 * 1024


class TokenRequest(AuthRequest):
    """The request to a token service, which google-auth makes; it knows whether the last error was retryable.

    google-auth itself marks only some errors as retryable: none of those of impersonation and federation.

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
    def retryable(self) -> bool:
        """Whether the last response was an error that a retry can change."""
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
        """Send a request; follow no redirect, and read a bounded response for a bounded time.

        :raises google.auth.exceptions.RefreshError: when a credential would leave this machine over plain HTTP.
        """
        self._status = 0
        secret = body is not None or "authorization" in {name.lower() for name in headers or ()}
        if secret and not Endpoint(url).accepts_token:
            raise RefreshError(f"Refusing to send credentials to {redact_urls(url)} over plain HTTP: use https")
        seconds = timeout or self._timeout
        options = {"allow_redirects": False, "stream": True} | kwargs
        response: transport.Response = super().__call__(url, method, body, headers, seconds, **options)  # type: ignore[no-untyped-call]
        self._status = response.status
        if 300 <= response.status < 400:
            raise RefreshError("the token service returned a redirect, which is not followed with credentials")
        return response

    def _read(self, response: requests.Response, **_: Any) -> None:
        """Read the response here: requests would read a large or slow one to its end."""
        deadline = time.monotonic() + self._timeout
        with response:
            try:
                body = read_body(response.raw, lambda: time.monotonic() > deadline)
            except urllib3.exceptions.HTTPError as error:
                raise requests.exceptions.ConnectionError(f"cannot read the response: {error}") from error
        if len(body) > rest.MAX_RESPONSE_BYTES:
            raise requests.exceptions.ConnectionError(f"the response is larger than {rest.MAX_RESPONSE_BYTES} bytes")
        response._content, response._content_consumed = body, True  # type: ignore[attr-defined]


def client_headers(library: str) -> dict[str, str]:
    """Return the headers that identify the client, as Google's client libraries send them.

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
    if not isinstance(credentials, AnonymousCredentials) and not endpoint.accepts_token:
        raise ValueError(
            f"Refusing to send credentials to {endpoint.url} over plain HTTP: use https, a loopback address, "
            f"or {EMULATOR_VARIABLE} for an emulator that needs no credentials."
        )


def no_response(
    request: rest.Request[Any], endpoint: Endpoint, reason: object, *, untrusted: bool, timed_out: bool, sent: bool
) -> ServiceError:
    """Return the error for a request that got no response.

    :param reason: the library's error.
    :param untrusted: whether the server's certificate does not verify, which no retry changes.
    :param timed_out: whether the time was up.
    :param sent: whether the request may have reached the service.
    """
    message = f"{request} got no response from {endpoint.url}: {redact_urls(str(reason) or type(reason).__name__)}"
    if untrusted:
        message += "; the server's certificate is not trusted (REQUESTS_CA_BUNDLE names other authorities)"
        return ServiceError(message, Code.FAILED_PRECONDITION)
    return ServiceError(message, Code.DEADLINE_EXCEEDED if timed_out else Code.UNAVAILABLE, sent=sent)


def not_sent(request: rest.Request[Any], error: Exception) -> ServiceError:
    """Return the error for a request that the library refuses to send, such as one with a token that fits no header."""
    return ServiceError(f"{request} was not sent: {_without_tokens(error)}", Code.FAILED_PRECONDITION)


def read_body(raw: urllib3.BaseHTTPResponse, late: Callable[[], bool]) -> bytes:
    """Read a response as it arrives, so that neither a large nor a slow one holds the task."""
    body = bytearray()
    while chunk := raw.read1(_CHUNK, decode_content=True):
        body += chunk
        if len(body) > rest.MAX_RESPONSE_BYTES:
            break
        if late():
            raise urllib3.exceptions.TimeoutError("the response did not end in time")
    return bytes(body[: rest.MAX_RESPONSE_BYTES + 1])


def keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave the headers of a request as they are: requests would replace the token with a password from ~/.netrc."""
    return request


def no_authorities(request: rest.Request[Any], error: OSError) -> ServiceError:
    """Return the error for a request that was not sent because the certificate authorities cannot be read."""
    return ServiceError(f"{request} was not sent: {error}", Code.FAILED_PRECONDITION)


def token_error(request: rest.Request[Any], error: Exception, *, retryable: bool) -> ServiceError:
    """Return the error for a request that was not sent because no token could be fetched.

    :param error: one of ``TOKEN_ERRORS``. Only its message is kept in it: google-auth also keeps the response, which
        can hold a token and shows in a traceback. Many waits can share one error.
    :param retryable: whether the last response of a token service was an error that a retry can change.
    """
    if isinstance(error, OSError):
        return no_authorities(request, error)
    if not isinstance(error, GoogleAuthError):
        message = f"{request} was not sent: the response of the token service cannot be read"
        return ServiceError(message, Code.UNAVAILABLE, sent=False)
    error.args = (_reason(error),)
    message = f"{request} was not sent: no access token: {redact_urls(error.args[0])}"
    if isinstance(error, TransportError) or error.retryable or retryable:
        return ServiceError(message, Code.UNAVAILABLE, sent=False)
    return ServiceError(message, Code.UNAUTHENTICATED)


def credentials_error(error: Exception) -> ServiceError:
    """Return the error for a connection that gives no credentials."""
    unavailable = isinstance(error, TransportError | ConnectionError | TimeoutError) or getattr(
        error, "retryable", False
    )
    code = Code.UNAVAILABLE if unavailable else Code.UNAUTHENTICATED
    return typed(ServiceError(f"The connection gives no usable credentials: {error}", code, sent=False))


def _reason(error: GoogleAuthError) -> str:
    """Return the library's message, and that of the API behind it, which the library keeps back."""
    message, *response = error.args or (error,)
    with suppress(ValueError, TypeError, LookupError):
        message = f"{message}: {json.loads(response[0])['error']['message']}"
    return _without_tokens(message)


def _without_tokens(message: object) -> str:
    return _TOKEN.sub(r"\1...", str(message))[:_MAX_MESSAGE]


class _HeldToken(Credentials):
    """The token that other credentials hold at the moment of a request; it is never refreshed."""

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
