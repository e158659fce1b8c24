"""One authorised ``requests`` session, and the meaning of its library's errors."""

from __future__ import annotations

import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

import requests
import urllib3.exceptions
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.endpoint import Endpoint
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.transport.credentials import (
    TOKEN_ERRORS,
    TokenRequest,
    client_headers,
    keep_headers,
    no_authorities,
    no_response,
    not_sent,
    read_body,
    refuse_plain_http,
    token_error,
)
from airflow_dai_provider.transport.google_errors import typed

T = TypeVar("T")

#: The parts of OpenSSL whose errors are about a bundle of authorities; errors of a connection come from ``SSL``.
_UNREADABLE = ("X509", "PEM", "ASN1")
#: The errors that requests and http.client raise before they send anything; later errors are of their own classes.
_NEVER_MADE = (ValueError, requests.exceptions.InvalidJSONError)
_NEVER_CONNECTED = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.ProxyError,
)


class RequestsTransport:
    """Send requests to one endpoint with one set of credentials.

    :param endpoint: where the service is.
    :param credentials: the credentials; anonymous ones send no header.
    :param timeout: seconds that one request may take.
    :raises ValueError: when a token would leave this machine over plain HTTP.
    """

    def __init__(self, endpoint: Endpoint, credentials: Credentials, timeout: float) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._anonymous = isinstance(credentials, AnonymousCredentials)
        refuse_plain_http(endpoint, credentials)
        self._auth_session = requests.Session()
        self._auth_request = TokenRequest(self._auth_session, timeout)
        # call() retries a 401 once, with a fresh token. The session itself would send three requests and refresh twice.
        self.session = AuthorizedSession(credentials, refresh_status_codes=(), auth_request=self._auth_request)
        # Given with each request: the credentials extend one of these headers, and would replace the session's.
        self._headers = client_headers(f"requests/{requests.__version__}")
        # requests prepares the next request even for a redirect that it does not follow: it would read the whole body,
        # and fail on an invalid address.
        self.session.get_redirect_target = _no_redirect  # type: ignore[method-assign,assignment]
        self.session.auth = keep_headers
        # A proxy from the environment is used, but requests to this machine do not leave it.
        self._proxies = {"http": None, "https": None, "all": None} if endpoint.is_loopback else None

    def close(self) -> None:
        """Close the connections."""
        self.session.close()
        self._auth_session.close()

    def fetch_first_token(self, request: rest.Request[Any]) -> None:
        """Fetch a token if there has been none yet; an error is left for the next call to meet."""
        if not self._anonymous and self.session.credentials.token is None:
            with suppress(ServiceError):
                self._renew(request)

    def call(self, request: rest.Request[T]) -> T:
        """Send a request once; after a 401 once more, with a fresh token.

        :raises ServiceError: of the class that belongs to its rpc code, for everything but the response asked for.
        """
        try:
            return self._call(request)
        except ServiceError as error:
            raise typed(error) from error.__cause__

    def _call(self, request: rest.Request[T]) -> T:
        if not (self._anonymous or self.session.credentials.valid):
            self._renew(request)
        try:
            return self._send(request)
        except ServiceError as error:
            if error.rpc_code is not Code.UNAUTHENTICATED or self._anonymous:
                raise
        self._renew(request)
        return self._send(request)

    def _renew(self, request: rest.Request[Any]) -> None:
        """Fetch a token."""
        try:
            self.session.credentials.refresh(self._auth_request)
        except TOKEN_ERRORS as error:
            raise token_error(request, error, retryable=self._auth_request.retryable) from error

    def _send(self, request: rest.Request[T]) -> T:
        # An error that the caller is handling already is the context of ours, not its cause.
        handled = sys.exception()
        try:
            response = self._exchange(request)
        except GoogleAuthError as error:
            raise token_error(request, error, retryable=self._auth_request.retryable) from error
        except _NEVER_MADE as error:
            # The cause is left out, since it can hold the token.
            raise not_sent(request, error) from None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._transport_error(request, error, handled) from error
        except OSError as error:
            raise no_authorities(request, error) from error
        return rest.read_response(request, response, datetime.now(UTC))

    def _exchange(self, request: rest.Request[Any]) -> rest.Response:
        with self.session.request(
            request.http_method,
            self.endpoint.url + request.path,
            json=request.body,
            headers=self._headers,
            timeout=self.timeout,
            allow_redirects=False,
            stream=True,
            proxies=self._proxies,
        ) as response:
            # Counted from here: fetching the token and waiting for the first byte had time of their own.
            deadline = time.monotonic() + self.timeout
            body = read_body(response.raw, lambda: time.monotonic() > deadline)
            return rest.Response(response.status_code, response.headers, body)

    def _transport_error(
        self, request: rest.Request[Any], error: Exception, handled: BaseException | None
    ) -> ServiceError:
        """Translate an error of the library: whether a retry can help, and whether the service may have acted."""
        chain = list(_chain(error, handled))
        for link in chain:
            if isinstance(link, ssl.SSLError) and link.library in _UNREADABLE:
                return no_authorities(request, link)
        return no_response(
            request,
            self.endpoint,
            chain[-1],
            untrusted=any(isinstance(link, ssl.SSLCertVerificationError) for link in chain),
            timed_out=isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError),
            sent=not any(isinstance(link, _NEVER_CONNECTED) for link in chain),
        )


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes down to the root, without the error that was being handled before."""
    link: BaseException | None = error
    while link is not None and link is not handled:
        yield link
        link = link.__cause__ or link.__context__


def _no_redirect(_: requests.Response) -> None:
    """Return no target."""
