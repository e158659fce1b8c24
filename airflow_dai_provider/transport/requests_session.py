"""One authorised ``requests`` session, and the meaning of its library's errors."""

from __future__ import annotations

import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from typing import Any, TypeVar

import requests
import urllib3.exceptions
from google.auth.credentials import AnonymousCredentials, Credentials, TokenState
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.endpoint import Endpoint
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.transport.credentials import (
    MISREAD_ERRORS,
    RENEW_AGAIN,
    TOKEN_ERRORS,
    TokenRequest,
    client_headers,
    keep_headers,
    read_body,
    refuse_header,
    refuse_plain_http,
)
from airflow_dai_provider.transport.deadline import deadline, keep_deadlines
from airflow_dai_provider.transport.google_errors import typed
from airflow_dai_provider.transport.unsent import (
    chain,
    no_authorities,
    no_response,
    not_sent,
    public_cause,
    token_error,
)

T = TypeVar("T")

#: The parts of OpenSSL whose errors are about a bundle of authorities; errors of a connection come from ``SSL``.
_UNREADABLE = ("X509", "PEM", "ASN1")
#: The errors that requests and http.client raise before they send anything.
_NEVER_MADE = (
    requests.exceptions.InvalidJSONError,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    urllib3.exceptions.LocationValueError,
    UnicodeEncodeError,
)
#: The errors of an exchange, in three libraries.
_EXCHANGE_ERRORS = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    *MISREAD_ERRORS,
)
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
    :param reload: reads the credentials anew, once they are refused; returns None when they are the same.
    :raises ValueError: when a token would leave this machine over plain HTTP.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Credentials,
        timeout: float,
        reload: Callable[[], Credentials | None] = lambda: None,
    ) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._reload = reload
        self._renew_at = 0.0
        refuse_plain_http(endpoint, credentials)
        self._auth_session = requests.Session()
        self._auth_request = TokenRequest(self._auth_session, timeout)
        # call() retries a 401 once, with a fresh token. The session itself would send three requests and refresh twice.
        self.session = AuthorizedSession(credentials, refresh_status_codes=(), auth_request=self._auth_request)
        keep_deadlines(self.session)
        for session in (self.session, self._auth_session):
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        # Given with each request: the credentials extend one of these headers, and would replace the session's.
        self._headers = client_headers(f"requests/{requests.__version__}")
        # requests prepares the next request even for a redirect that it does not follow: it would read the whole body,
        # and fail on an invalid address.
        self.session.get_redirect_target = _no_redirect  # type: ignore[method-assign,assignment]
        self.session.auth = keep_headers
        # A proxy from the environment is used, but requests to this machine do not leave it.
        self._proxies: Any = {"http": None, "https": None, "all": None} if endpoint.is_loopback else None

    @property
    def credentials(self) -> Credentials:
        """The credentials in use: those of the connection as it was read last."""
        credentials: Credentials = self.session.credentials
        return credentials

    @property
    def _anonymous(self) -> bool:
        return isinstance(self.credentials, AnonymousCredentials)

    def close(self) -> None:
        """Close the connections."""
        self.session.close()
        self._auth_session.close()

    def fetch_first_token(self, request: rest.Request[Any]) -> None:
        """Fetch a token if there has been none yet; an error is left for the next call to meet."""
        if not self._anonymous and self.credentials.token is None:
            with suppress(ServiceError):
                self._renew(request)

    def call(self, request: rest.Request[T]) -> T:
        """Send a request once; after a 401 again, with a fresh token, and then with credentials that are read anew.

        :raises ServiceError: of the class that belongs to its rpc code, for everything but the response asked for.
        """
        try:
            return self._call(request)
        except ServiceError as error:
            raise typed(error) from error.__cause__

    def _call(self, request: rest.Request[T]) -> T:
        self._renew_when_due(request)
        try:
            return self._send(request)
        except ServiceError as error:
            if error.rpc_code is not Code.UNAUTHENTICATED or self._anonymous:
                raise
        self._renew(request)
        try:
            return self._send(request)
        except ServiceError as error:
            if error.rpc_code is not Code.UNAUTHENTICATED or not self._replaced():
                raise
        self._refresh(request)
        return self._send(request)

    def _renew_when_due(self, request: rest.Request[Any]) -> None:
        """Fetch a token, if there is none or it soon expires; a failure counts only once it has expired."""
        if self._anonymous or self.credentials.valid:
            return
        expired = self.credentials.token_state is TokenState.INVALID
        if not expired and time.monotonic() < self._renew_at:
            return
        try:
            self._renew(request)
        except ServiceError:
            if expired or self.credentials.token_state is TokenState.INVALID:
                raise
            self._renew_at = time.monotonic() + RENEW_AGAIN

    def _renew(self, request: rest.Request[Any]) -> None:
        """Fetch a token; when it is refused, read the credentials anew."""
        try:
            self._refresh(request)
        except ServiceError as error:
            if error.rpc_code is not Code.UNAUTHENTICATED or not self._replaced():
                raise
        else:
            return
        self._refresh(request)

    def _replaced(self) -> bool:
        """Read the credentials anew; return whether they differ."""
        credentials = self._reload()
        if credentials is not None:
            refuse_plain_http(self.endpoint, credentials)
            self.session.credentials = credentials
        return credentials is not None

    def _refresh(self, request: rest.Request[Any]) -> None:
        """Fetch a token."""
        handled = sys.exception()
        try:
            if not self._anonymous:
                self.credentials.refresh(self._auth_request)
        except TOKEN_ERRORS as error:
            failure, cause = token_error(request, error, self._auth_request, handled), public_cause(error)
        else:
            return
        # Raised here, so that no error with a secret is the context of this one.
        raise failure from cause

    def _send(self, request: rest.Request[T]) -> T:
        # An error that the caller is handling already is the context of ours, not its cause.
        handled = sys.exception()
        try:
            response = self._exchange(request)
        except GoogleAuthError as error:
            failure = token_error(request, error, self._auth_request, handled)
            cause = public_cause(error)
        except _EXCHANGE_ERRORS as error:
            failure = self._transport_error(request, error, handled)
            # A request that was never made is quoted in its error, and can hold the token.
            cause = None if _never_made(error) else public_cause(error)
        except OSError as error:
            failure, cause = no_authorities(request, error), error
        else:
            return rest.read_response(request, response, datetime.now(UTC))
        # Raised here, so that no error with a secret is the context of this one.
        raise failure from cause

    def _exchange(self, request: rest.Request[Any]) -> rest.Response:
        url = self.endpoint.url + request.path
        headers = dict(self._headers)
        with deadline(self.timeout):
            if self.credentials.valid:
                self.credentials.before_request(self._auth_request, request.http_method, url, headers)
            else:
                # It soon expires, and its renewal has failed.
                self.credentials.apply(headers)
            for name, value in headers.items():
                try:
                    refuse_header(name, value)
                except ValueError as error:
                    # Not every version of the library looks before it sends, and its own error quotes the token.
                    raise requests.exceptions.InvalidHeader(str(error)) from None
            # Not AuthorizedSession.request, which would renew the token again.
            with requests.Session.request(
                self.session,
                request.http_method,
                url,
                json=request.body,
                headers=headers,
                timeout=self.timeout,
                allow_redirects=False,
                stream=True,
                proxies=self._proxies,
            ) as response:
                body = read_body(response.raw)
                return rest.Response(response.status_code, response.headers, body, self.endpoint.url)

    def _transport_error(
        self, request: rest.Request[Any], error: Exception, handled: BaseException | None
    ) -> ServiceError:
        """Translate an error of the library: whether a retry can help, and whether the service may have acted."""
        if _never_made(error):
            return not_sent(request, error)
        links = list(chain(error, handled))
        for link in links:
            if isinstance(link, ssl.SSLError) and link.library in _UNREADABLE:
                return no_authorities(request, link)
        return no_response(
            request,
            self.endpoint,
            links[-1],
            untrusted=any(isinstance(link, ssl.SSLCertVerificationError) for link in links),
            timed_out=isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError | TimeoutError),
            sent=not any(isinstance(link, _NEVER_CONNECTED) for link in links),
        )


def _never_made(error: Exception) -> bool:
    """Return whether an error is about the request itself, before anything was sent."""
    if isinstance(error, requests.exceptions.InvalidHeader):
        # The same class stands for a header of a response, which belongs to a request.
        return error.request is None
    return isinstance(error, _NEVER_MADE)


def _no_redirect(_: requests.Response) -> None:
    """Return no target."""
