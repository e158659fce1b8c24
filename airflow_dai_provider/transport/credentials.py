"""Credentials: how a token is fetched, where it may be sent, and the errors of requests that were not sent."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from subprocess import SubprocessError
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from airflow import __version__ as airflow_version
from google.auth import transport
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import GoogleAuthError, RefreshError
from google.auth.transport.requests import Request as AuthRequest

from airflow_dai_provider import __version__
from airflow_dai_provider.api import rest
from airflow_dai_provider.api.endpoint import EMULATOR_VARIABLE, Endpoint
from airflow_dai_provider.api.redaction import redact_urls
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.transport.deadline import deadline, keep_deadlines

#: The errors that ``Credentials.refresh`` raises: google-auth reads the token service's response unchecked.
TOKEN_ERRORS = (
    *(GoogleAuthError, OSError, TypeError, ValueError, LookupError, AttributeError),
    # A lifetime that no date holds, JSON that is nested too deep, a credential helper that hangs.
    *(OverflowError, RecursionError, SubprocessError),
)
#: What an HTTP library lets through from a response that it misreads.
MISREAD_ERRORS = (ValueError, LookupError, TypeError, AttributeError, AssertionError)

_CHUNK = 64 * 1024
#: Where google-auth asks the metadata server, without TLS: the host is on the same machine, or answers for it.
_METADATA_HOSTS = ("metadata.google.internal", "169.254.169.254", "fd20:ce::254")
_METADATA_VARIABLES = ("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP")
_METADATA_PATH = "/computeMetadata/v1/"
#: A refusal of Google's that passes, in a response with 403.
_RATE_LIMIT = re.compile(rb"(limit|quota)_?exceeded", re.IGNORECASE)
#: The errors of OAuth that pass, under the status of a refusal.
_PASSING = ("server_error", "temporarily_unavailable", "internal_failure")


class TokenRequest(AuthRequest):
    """The request to a token service, which google-auth makes; it knows what the last response was.

    google-auth itself marks only some errors as retryable: none of those of impersonation and federation.

    :param session: the session to use.
    :param timeout: seconds that one request may take.
    """

    def __init__(self, session: requests.Session, timeout: float) -> None:
        super().__init__(session)
        # Without this, requests replaces the token with a password from ~/.netrc, or adds one.
        session.auth = keep_headers
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        session.hooks["response"].append(self._read)
        keep_deadlines(session)
        self._timeout = timeout
        #: The host that was asked last.
        self.host = ""
        #: The status of its response; 0 as long as there is none.
        self.status = 0
        #: Whether the service itself has refused the credentials, not a front end or a proxy in its place.
        self.refused = False
        #: Whether a front end or a proxy has responded in place of the service, with an error.
        self.from_front_end = False

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
        self.host, self.status = urlsplit(url).netloc.rpartition("@")[2], 0
        self.refused = self.from_front_end = False
        authorised = "authorization" in {name.lower() for name in headers or ()}
        if (authorised or (body is not None and not _is_metadata_server(url))) and not Endpoint(url).accepts_token:
            raise RefreshError(f"Refusing to send credentials to {redact_urls(url)} over plain HTTP: use https")
        seconds = timeout or self._timeout
        options = {"allow_redirects": False, "stream": True} | kwargs
        with deadline(min(seconds, self._timeout)):
            response: transport.Response = super().__call__(url, method, body, headers, seconds, **options)  # type: ignore[no-untyped-call]
        if 300 <= response.status < 400:
            raise RefreshError("the token service returned a redirect, which is not followed with credentials")
        return response

    def _read(self, response: requests.Response, **_: Any) -> None:
        """Read the response here: requests would read a large one to its end."""
        with response:
            try:
                body = read_body(response.raw)
            except urllib3.exceptions.HTTPError as error:
                raise requests.exceptions.ConnectionError(f"cannot read the response: {error}") from error
        if len(body) > rest.MAX_RESPONSE_BYTES:
            raise requests.exceptions.ConnectionError(f"the response is larger than {rest.MAX_RESPONSE_BYTES} bytes")
        response._content, response._content_consumed = body, True  # type: ignore[attr-defined]
        self.status = response.status_code
        refusal, is_metadata = error_in(body), response.headers.get("metadata-flavor") == "Google"
        self.from_front_end = self.status >= 400 and refusal is None and not is_metadata
        if self.status in (407, 408, 429) or self.status >= 500 or 300 <= self.status < 400:
            return
        if self.status == 403 and _RATE_LIMIT.search(body):
            return
        if is_metadata and self.status in (400, 401, 403):
            self.refused = True
        else:
            self.refused = refusal is not None and _is_permanent(refusal, self.status)


def _is_permanent(error: str | dict[str, Any], status: int) -> bool:
    """Return whether the same request gets the same error of a token service again."""
    if isinstance(error, str):
        return error not in _PASSING
    return rest.code_of_error(error, status) in PERMANENT


def error_in(body: bytes | str) -> str | dict[str, Any] | None:
    """Return the error in a response of a token service: a name of OAuth's or an object of Google's; None without."""
    try:
        response = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = response.get("error") if isinstance(response, dict) else None
    return error if isinstance(error, str | dict) else None


def _is_metadata_server(url: str) -> bool:
    """Return whether google-auth itself sends a request without TLS there: a certificate, to get a bound token."""
    configured = {f"http://{value}" for name in _METADATA_VARIABLES if (value := os.environ.get(name))}
    hosts = {*_METADATA_HOSTS, *(urlsplit(other).hostname for other in configured)}
    parts = urlsplit(url)
    return parts.hostname in hosts and parts.path.startswith(_METADATA_PATH)


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


def refuse_plain_http(endpoint: Endpoint, credentials: Credentials | None) -> None:
    """Raise ValueError when a token would leave this machine over plain HTTP.

    :param credentials: None as long as they are not known, which then counts as a token.
    """
    if not isinstance(credentials, AnonymousCredentials) and not endpoint.accepts_token:
        raise ValueError(
            f"Refusing to send credentials to {endpoint.url} over plain HTTP: use https, a loopback address, "
            f"or {EMULATOR_VARIABLE} for an emulator that needs no credentials."
        )


def refuse_header(name: str, value: str) -> None:
    """Raise ValueError for a header that cannot be sent; the message does not show its value."""
    if not value.isprintable() or not value.isascii():
        raise ValueError(f"the header {name} is not printable ASCII")


def read_body(raw: urllib3.BaseHTTPResponse) -> bytes:
    """Read a response as it arrives, so that a large one does not hold the task; ``deadline`` bounds the time."""
    body = bytearray()
    while chunk := raw.read1(_CHUNK, decode_content=True):
        body += chunk
        if len(body) > rest.MAX_RESPONSE_BYTES:
            break
    return bytes(body[: rest.MAX_RESPONSE_BYTES + 1])


def keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave the headers of a request as they are: requests would replace the token with a password from ~/.netrc."""
    return request
