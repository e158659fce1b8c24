"""The access token that the siblings of a hook share, and all waits of an event loop."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import requests
from google.auth.credentials import AnonymousCredentials, Credentials

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.transport.credentials import TOKEN_ERRORS, TokenRequest
from airflow_dai_provider.transport.unsent import NoTokenError, no_token, public_cause

#: A token is renewed this many seconds before it expires, or in the last tenth of its life if that is later.
RENEW_BEFORE = 225.0
#: Seconds until a token that is still valid is renewed again, after its renewal has failed.
RENEW_AGAIN = 30.0
#: Seconds for which many calls share the refusal of their credentials.
REFUSAL_LASTS = 5.0


@dataclass(eq=False)
class Authorisation:
    """The headers that authorise requests.

    :param credentials: whose token they hold.
    :param expiry: when it expires, as the credentials said when they got it.
    :param expires: the same, in seconds since the epoch.
    :param renew_at: when another one is fetched, in seconds since the epoch.
    """

    headers: Mapping[str, str]
    credentials: Credentials
    expiry: datetime | None
    expires: float
    renew_at: float

    def is_refused(self, refused: Authorisation | None, read_again: bool) -> bool:
        """Return whether this was refused or, with ``read_again``, has a token of the refused credentials."""
        return refused is not None and (self is refused or (read_again and self.credentials is refused.credentials))


class Token:
    """The token of one set of credentials: fetched once for all threads that share it, and renewed before it expires.

    Threads that wait for a fetch get its token, or its error, and the next one starts another. As long as the token at
    hand is valid, a renewal that fails is tried again later. During many calls, a refusal of the credentials applies to
    all of them: for some seconds, neither the token service nor the connection is asked again.

    :param credentials: the credentials; anonymous ones send no header.
    :param timeout: seconds that one request for it may take.
    :param reload: reads the credentials again, once they are refused; returns None when they are the same.
    """

    def __init__(
        self, credentials: Credentials, timeout: float, reload: Callable[[], Credentials | None] = lambda: None
    ) -> None:
        self.credentials = credentials
        self._timeout = timeout
        self._reload = reload
        self._lock = threading.Lock()
        self._failure: ServiceError | None = None
        self._refused_at = float("-inf")
        #: Seconds for which a refusal of the credentials lasts: 0, or :data:`REFUSAL_LASTS` when many calls are made.
        self.refusal_lasts = 0.0
        self._not_replaced: Authorisation | None = None
        #: The authorisation at hand, also for a signal handler, which must not wait for the lock.
        self.held: Authorisation | None = None
        if isinstance(credentials, AnonymousCredentials):
            self._hold()

    def fetch_first(self) -> None:
        """Fetch a token if there has been none yet; an error is left for the next request to meet."""
        if self.held is None:
            with suppress(ServiceError):
                self.get()

    def get(self, refused: Authorisation | None = None, *, read_again: bool = False) -> Authorisation:
        """Return what authorises a request; fetch a token if there is none, or it soon expires or was refused.

        :param refused: what the service has refused.
        :param read_again: whether that was fresh, so that the credentials are read again.
        :return: ``refused`` itself when there is nothing else.
        :raises NoTokenError: when no token can be fetched.
        :raises ServiceError: when the credentials cannot be read again.
        """
        if found := self.at_hand(refused, read_again=read_again):
            return found
        failure = self._failure
        with self._lock:
            with suppress(*TOKEN_ERRORS):
                if self._renewed_elsewhere():
                    self._hold()
            if found := self.at_hand(refused, read_again=read_again):
                return found
            # The time is that since the epoch, which can step back.
            refused_just_now = 0 <= time.time() - self._refused_at < self.refusal_lasts
            if self._failure and (self._failure is not failure or refused_just_now):
                raise self._failure.with_traceback(None)
            held = self.held
            try:
                return self._fetch(refused if read_again else None)
            except ServiceError as error:
                if held is None or held.is_refused(refused, read_again) or time.time() >= held.expires:
                    self._failure = error
                    if error.rpc_code is Code.UNAUTHENTICATED:
                        self._refused_at = time.time()
                    raise
                held.renew_at = time.time() + RENEW_AGAIN
                return held

    def at_hand(self, refused: Authorisation | None = None, *, read_again: bool = False) -> Authorisation | None:
        """Return what :meth:`get` returns, or None if that would fetch a token, or wait for a thread that does."""
        held = self.held
        if held is None or isinstance(held.credentials, AnonymousCredentials):
            return held
        if read_again and refused is self._not_replaced:
            return refused
        due = time.time() >= held.renew_at or held.expiry != held.credentials.expiry
        return None if due or held.is_refused(refused, read_again) else held

    def _renewed_elsewhere(self) -> bool:
        """Return whether the credentials have another token than the one at hand, from a request of a user's."""
        held, credentials = self.held, self.credentials
        return credentials.token is not None and not (
            held and held.credentials is credentials and held.expiry == credentials.expiry
        )

    def _fetch(self, refused: Authorisation | None) -> Authorisation:
        """Fetch a token; when its credentials are refused, or were before, read them again."""
        if refused is None or refused.credentials is not self.credentials:
            try:
                return self._refresh()
            except NoTokenError as error:
                if error.rpc_code is not Code.UNAUTHENTICATED or not self._replaced():
                    raise
        elif not self._replaced():
            self._not_replaced = refused
            return refused
        return self._refresh()

    def _replaced(self) -> bool:
        """Read the credentials again; return whether they differ."""
        credentials = self._reload()
        self.credentials = credentials or self.credentials
        return credentials is not None

    def _refresh(self) -> Authorisation:
        # An error that the caller is handling already is the context of ours, not its cause.
        handled = sys.exception()
        with requests.Session() as session:
            request = TokenRequest(session, self._timeout)
            try:
                if not isinstance(self.credentials, AnonymousCredentials):
                    self.credentials.refresh(request)
                return self._hold()
            except TOKEN_ERRORS as error:
                failure, cause = no_token(error, request, handled), public_cause(error)
        # Raised here, so that no error with a secret is the context of this one.
        raise failure from cause

    def _hold(self) -> Authorisation:
        """Hold the token that the credentials have from now on."""
        credentials, now = self.credentials, time.time()
        headers: dict[str, str] = {}
        credentials.apply(headers)
        expires = credentials.expiry.replace(tzinfo=UTC).timestamp() if credentials.expiry else float("inf")
        renew_at = max(expires - RENEW_BEFORE, now + 0.9 * (expires - now))
        self._failure = None
        self.held = Authorisation(headers, credentials, credentials.expiry, expires, renew_at)
        return self.held


class HeldToken:
    """The token that a :class:`Token` holds at the moment of a request; it is neither fetched nor waited for.

    :param token: returns that :class:`Token`; None as long as there is none.
    """

    def __init__(self, token: Callable[[], Token | None]) -> None:
        self._token = token

    @property
    def credentials(self) -> Credentials | None:
        """The credentials of the other."""
        token = self._token()
        return token.credentials if token else None

    def get(self, refused: Authorisation | None = None, *, read_again: bool = False) -> Authorisation:  # noqa: ARG002
        """Return what authorises a request.

        :raises NoTokenError: when nothing does, or it was refused.
        """
        token = self._token()
        held = token.held if token else None
        if held is None:
            raise _no_time("there is no token at hand, and no time to fetch one")
        if refused and not isinstance(held.credentials, AnonymousCredentials):
            raise _no_time("the token at hand was refused, and there is no time to fetch another")
        return held


def _no_time(reason: str) -> NoTokenError:
    return NoTokenError(reason, Code.UNAUTHENTICATED, None, False)
