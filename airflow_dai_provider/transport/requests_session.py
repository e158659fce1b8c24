"""One authorised ``requests`` session, and the meaning of its library's errors."""

from __future__ import annotations

import ssl
import sys
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from typing import Any, TypeVar

import requests
import urllib3.exceptions
from google.auth.credentials import Credentials
from google.auth.transport.requests import AuthorizedSession

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.endpoint import Endpoint
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.transport.credentials import (
    MISREAD_ERRORS,
    TokenRequest,
    client_headers,
    keep_headers,
    read_body,
    refuse_header,
    refuse_plain_http,
)
from airflow_dai_provider.transport.deadline import deadline, keep_deadlines
from airflow_dai_provider.transport.google_errors import typed
from airflow_dai_provider.transport.shared_token import Authorisation, HeldToken, Token
from airflow_dai_provider.transport.unsent import (
    NoTokenError,
    chain,
    no_authorities,
    no_response,
    not_sent,
    public_cause,
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


class _Session(AuthorizedSession):
    """A session that authorises a user's own requests too, with the token that the siblings of a hook share."""

    def __init__(self, token: Token | HeldToken, auth_request: TokenRequest) -> None:
        self._token = token
        # On a 401, the session itself would refresh the token twice, without the siblings' knowledge.
        super().__init__(token.credentials, refresh_status_codes=(), auth_request=auth_request)  # type: ignore[no-untyped-call]
        self.auth = keep_headers
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        keep_deadlines(self)

    @property
    def credentials(self) -> Credentials | None:
        """The credentials in use: those of the connection as it was read last."""
        return self._token.credentials

    @credentials.setter
    def credentials(self, credentials: Credentials | None) -> None:
        """Ignore what the base class sets: it is the same."""

    def request(self, *arguments: Any, **options: Any) -> requests.Response:
        """Send a request of a user's; where no token can be fetched, google-auth raises its own error."""
        with suppress(ServiceError):
            self._token.get()
        response: requests.Response = super().request(*arguments, **options)  # type: ignore[no-untyped-call]
        return response

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002
        """Return no target.

        requests prepares the next request even for a redirect that it does not follow: it would read the whole body,
        and fail on an invalid address.
        """


class RequestsTransport:
    """Send requests to one endpoint with one token.

    :param endpoint: where the service is.
    :param token: the source of the authorisation of a request.
    :param timeout: seconds that one request may take.
    :raises ValueError: when a token would leave this machine over plain HTTP.
    """

    def __init__(self, endpoint: Endpoint, token: Token | HeldToken, timeout: float) -> None:
        refuse_plain_http(endpoint, token.credentials)
        self.endpoint = endpoint
        self.token = token
        self.timeout = timeout
        self._auth_session = requests.Session()
        self.session = _Session(token, TokenRequest(self._auth_session, timeout))
        self._headers = client_headers(f"requests/{requests.__version__}")
        # A proxy from the environment is used, but requests to this machine do not leave it.
        self._proxies: Any = {"http": None, "https": None, "all": None} if endpoint.is_loopback else None

    def close(self) -> None:
        """Close the connections."""
        self.session.close()  # type: ignore[no-untyped-call]
        self._auth_session.close()

    def call(self, request: rest.Request[T], timeout: float = float("inf")) -> T:
        """Send a request once; after a 401 again, with a fresh token, and then with credentials that are read again.

        :param timeout: seconds that it may take, if these are fewer than those of every request.
        :raises ServiceError: of the class that belongs to its rpc code, for everything but the response asked for.
        """
        try:
            return self._call(request, min(timeout, self.timeout))
        except NoTokenError as error:
            raise error.of(request) from error.__cause__
        except ServiceError as error:
            raise typed(error) from error.__cause__

    def _call(self, request: rest.Request[T], timeout: float) -> T:
        authorisation = self.token.get()
        for read_again in (False, True):
            try:
                return self._send(request, authorisation, timeout)
            except ServiceError as error:
                if error.rpc_code is not Code.UNAUTHENTICATED:
                    raise
                refusal = error
            refused, authorisation = authorisation, self.token.get(authorisation, read_again=read_again)
            if authorisation is refused:
                raise refusal
        return self._send(request, authorisation, timeout)

    def _send(self, request: rest.Request[T], authorisation: Authorisation, timeout: float) -> T:
        # An error that the caller is handling already is the context of ours, not its cause.
        handled = sys.exception()
        try:
            response = self._exchange(request, authorisation, timeout)
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

    def _exchange(self, request: rest.Request[Any], authorisation: Authorisation, timeout: float) -> rest.Response:
        headers = {**self._headers, **authorisation.headers}
        with deadline(timeout):
            for name, value in headers.items():
                try:
                    refuse_header(name, value)
                except ValueError as error:
                    # Not every version of the library looks before it sends, and its own error quotes the token.
                    raise requests.exceptions.InvalidHeader(str(error)) from None
            # Not the session's own method, which would ask google-auth for the token.
            with requests.Session.request(
                self.session,
                request.http_method,
                self.endpoint.url + request.path,
                json=request.body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                stream=True,
                proxies=self._proxies,
            ) as response:
                body = read_body(response.raw)
                return rest.Response(response.status_code, response.headers, body, str(self.endpoint))

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
