"""One authorised ``requests`` session, and what its library's errors mean."""

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
    no_answer,
    no_authorities,
    not_sent,
    read_body,
    refuse_plain_http,
    token_error,
)

T = TypeVar("T")

#: The parts of OpenSSL that complain about a bundle of authorities; of a connection, it is always ``SSL``.
_UNREADABLE = ("X509", "PEM", "ASN1")
#: What requests, and http.client below it, say before they send anything; later errors are of their own kinds.
_NEVER_MADE = (ValueError, requests.exceptions.InvalidJSONError)
_NEVER_CONNECTED = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.ProxyError,
)


class RequestsTransport:
    """
    Carry requests to one endpoint with one set of credentials.

    :param endpoint: where the service is.
    :param credentials: what authorises; anonymous credentials send no header.
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
        # A 401 is answered in call(), once; the session's own way makes three requests and two refreshes of it.
        self.session = AuthorizedSession(credentials, refresh_status_codes=(), auth_request=self._auth_request)
        # Given with each request, since the credentials add a word to one of these and would replace the session's.
        self._headers = client_headers(f"requests/{requests.__version__}")
        # requests prepares the next request even of a redirect that it does not follow: it reads the whole body for
        # that, and fails on an odd address.
        self.session.get_redirect_target = _no_redirect  # type: ignore[method-assign,assignment]
        # Without this, requests replaces the token with a password from ~/.netrc.
        self.session.auth = keep_headers
        # A proxy from the environment is honoured, but what is meant for this machine does not leave it.
        self._proxies = {"http": None, "https": None, "all": None} if endpoint.is_loopback else None

    def close(self) -> None:
        """Close the connections."""
        self.session.close()
        self._auth_session.close()

    def fetch_first_token(self, request: rest.Request[Any]) -> None:
        """Fetch a token if there has been none yet; the next call finds out what prevents it."""
        if not self._anonymous and self.session.credentials.token is None:
            with suppress(ServiceError):
                self._renew(request)

    def call(self, request: rest.Request[T]) -> T:
        """
        Send a request once; after a 401 once more, with a fresh token.

        :raises ServiceError: for everything that is not the answer asked for.
        """
        if not (self._anonymous or self.session.credentials.valid):
            self._renew(request)
        try:
            return self._send(request)
        except ServiceError as error:
            if error.code is not Code.UNAUTHENTICATED or self._anonymous:
                raise
        self._renew(request)
        return self._send(request)

    def _renew(self, request: rest.Request[Any]) -> None:
        """Fetch a token."""
        try:
            self.session.credentials.refresh(self._auth_request)
        except TOKEN_ERRORS as error:
            raise token_error(request, error, may_heal=self._auth_request.may_heal) from error

    def _send(self, request: rest.Request[T]) -> T:
        # What the caller is handling already is a context of our errors, and no cause of them.
        handled = sys.exception()
        try:
            answer = self._exchange(request)
        except GoogleAuthError as error:
            raise token_error(request, error, may_heal=self._auth_request.may_heal) from error
        except _NEVER_MADE as error:
            # Without the cause, which can hold the token.
            raise not_sent(request, error) from None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._transport_error(request, error, handled) from error
        except OSError as error:
            raise no_authorities(request, error) from error
        return rest.read_answer(request, answer, datetime.now(UTC))

    def _exchange(self, request: rest.Request[Any]) -> rest.Answer:
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
            # Counted from here: the token and the first byte have had their own time, and what has come is kept.
            deadline = time.monotonic() + self.timeout
            body = read_body(response.raw, lambda: time.monotonic() > deadline)
            return rest.Answer(response.status_code, response.headers, body)

    def _transport_error(
        self, request: rest.Request[Any], error: Exception, handled: BaseException | None
    ) -> ServiceError:
        """Say what an error of the library means: whether it can heal, and whether the service may have acted."""
        chain = list(_chain(error, handled))
        for link in chain:
            if isinstance(link, ssl.SSLError) and link.library in _UNREADABLE:
                return no_authorities(request, link)
        return no_answer(
            request,
            self.endpoint,
            chain[-1],
            untrusted=any(isinstance(link, ssl.SSLCertVerificationError) for link in chain),
            timed_out=isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError),
            sent=not any(isinstance(link, _NEVER_CONNECTED) for link in chain),
        )


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it, down to the root; not what was being handled before."""
    link: BaseException | None = error
    while link is not None and link is not handled:
        yield link
        link = link.__cause__ or link.__context__


def _no_redirect(_: requests.Response) -> None:
    """Say that there is nowhere to go."""
