"""The access token that all waits of an event loop share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC

import requests
from asgiref.sync import sync_to_async
from google.auth.credentials import AnonymousCredentials, Credentials

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.transport.credentials import RENEW_AGAIN, TOKEN_ERRORS, TokenRequest
from airflow_dai_provider.transport.unsent import is_refusal

#: A token is renewed this many seconds before it expires, or in the last tenth of its life if that is later.
RENEW_BEFORE = 225.0


class Token:
    """The token of one set of credentials: fetched in a thread, once for all callers, and renewed before it expires.

    One fetch serves a thousand waits. All callers that wait for a fetch get its error, and the next caller starts
    another. As long as the token at hand is valid, a renewal that fails is tried again later.

    :param credentials: the credentials; anonymous ones send no header.
    :param timeout: seconds that one request for it may take.
    :param reload: reads the credentials anew, once they are refused; returns None when they are the same.
    """

    def __init__(
        self, credentials: Credentials, timeout: float, reload: Callable[[], Credentials | None] = lambda: None
    ) -> None:
        self.credentials = credentials
        self._timeout = timeout
        self._reload = reload
        self.renewable = not isinstance(credentials, AnonymousCredentials)
        self._headers: dict[str, str] | None = None if self.renewable else {}
        self._renew_at = self._expires = float("inf")
        self._fetching: asyncio.Task[None] | None = None
        #: What the last fetch asked a token service with.
        self.last_request = TokenRequest(requests.Session(), timeout)

    async def headers(self) -> Mapping[str, str]:
        """Return the headers that authorise a request.

        :raises google.auth.exceptions.GoogleAuthError: when no token can be fetched.
        """
        if self._headers is None or time.time() >= self._renew_at:
            held = self._headers
            try:
                await self.renew(held)
            except (*TOKEN_ERRORS, ServiceError):
                if held is None or time.time() >= self._expires:
                    raise
                self._renew_at = time.time() + RENEW_AGAIN
        return self._headers or {}

    async def renew(self, refused: Mapping[str, str] | None, *, anew: bool = False) -> None:
        """Fetch a token, unless another caller has replaced the refused one meanwhile.

        :param refused: the headers that are no longer valid, as :meth:`headers` returned them.
        :param anew: whether the credentials are read anew first; when they are the same, no token is fetched.
        :raises google.auth.exceptions.GoogleAuthError: when no token can be fetched.
        """
        if self._headers is not refused:
            return
        if self._fetching is None:
            self._fetching = asyncio.create_task(sync_to_async(self._fetch, thread_sensitive=False)(anew))
            self._fetching.add_done_callback(self._fetched)
        await asyncio.shield(self._fetching)

    async def close(self) -> None:
        """Wait for a fetch under way: its thread cannot be stopped."""
        if self._fetching:
            await asyncio.wait({self._fetching})

    def _fetched(self, fetching: asyncio.Task[None]) -> None:
        self._fetching = None
        if not fetching.cancelled():
            fetching.exception()  # read here too, since all callers may have been cancelled

    def _fetch(self, anew: bool) -> None:
        if anew:
            if not self._replaced():
                return
        else:
            try:
                self._refresh()
            except TOKEN_ERRORS as error:
                if not is_refusal(error, self.last_request) or not self._replaced():
                    raise
            else:
                return
        self._refresh()

    def _replaced(self) -> bool:
        """Read the credentials anew; return whether they differ."""
        credentials = self._reload()
        if credentials is not None:
            self.credentials = credentials
        return credentials is not None

    def _refresh(self) -> None:
        fetched = time.time()
        credentials = self.credentials
        with requests.Session() as session:
            self.last_request = TokenRequest(session, self._timeout)
            credentials.refresh(self.last_request)
        headers: dict[str, str] = {}
        credentials.apply(headers)
        expires = credentials.expiry.replace(tzinfo=UTC).timestamp() if credentials.expiry else float("inf")
        self._renew_at = max(expires - RENEW_BEFORE, fetched + 0.9 * (expires - fetched))
        self._expires = expires
        self._headers = headers
