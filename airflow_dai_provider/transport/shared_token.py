"""The access token that all waits of an event loop share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC

import requests
from asgiref.sync import sync_to_async
from google.auth.credentials import AnonymousCredentials, Credentials

from airflow_dai_provider.transport.credentials import TokenRequest

#: A token is renewed this many seconds before it expires, or in the last tenth of its life if that is later.
RENEW_BEFORE = 225.0


class Token:
    """The token of one set of credentials: fetched in a thread, once for all callers, and renewed before it expires.

    One fetch serves a thousand waits. A fetch that fails is told to all callers that wait for it, and the next caller
    starts another.

    :param credentials: the credentials; anonymous ones send no header.
    :param timeout: seconds that one request for it may take.
    """

    def __init__(self, credentials: Credentials, timeout: float) -> None:
        self.credentials = credentials
        self._timeout = timeout
        self.renewable = not isinstance(credentials, AnonymousCredentials)
        self._headers: dict[str, str] | None = None if self.renewable else {}
        self._renew_at = float("inf")
        self._fetching: asyncio.Task[None] | None = None
        #: Whether the last fetch failed with an error that a retry can change.
        self.retryable = False

    async def headers(self) -> Mapping[str, str]:
        """Return the headers that authorise a request.

        :raises google.auth.exceptions.GoogleAuthError: when no token can be fetched.
        """
        if self._headers is None or time.time() >= self._renew_at:
            await self.renew(self._headers)
        return self._headers or {}

    async def renew(self, refused: Mapping[str, str] | None) -> None:
        """Fetch a token, unless another caller has replaced the refused one meanwhile.

        :param refused: the headers that are no longer valid, as :meth:`headers` returned them.
        :raises google.auth.exceptions.GoogleAuthError: when no token can be fetched.
        """
        if self._headers is not refused:
            return
        if self._fetching is None:
            self._fetching = asyncio.create_task(sync_to_async(self._fetch, thread_sensitive=False)())
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

    def _fetch(self) -> None:
        fetched = time.time()
        with requests.Session() as session:
            request = TokenRequest(session, self._timeout)
            try:
                self.credentials.refresh(request)
            finally:
                self.retryable = request.retryable
        headers: dict[str, str] = {}
        self.credentials.apply(headers)
        expiry = self.credentials.expiry
        expires = expiry.replace(tzinfo=UTC).timestamp() if expiry else float("inf")
        self._renew_at = max(expires - RENEW_BEFORE, fetched + 0.9 * (expires - fetched))
        self._headers = headers
