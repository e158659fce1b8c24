"""The waits that are compared: ours, the least possible with aiohttp, and common ways."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from random import random
from typing import Any, TypeAlias

import aiohttp
from airflow.utils.log.logging_mixin import LoggingMixin
from server import TOKEN
from yarl import URL

#: The same number as in the measured session.
CONNECTIONS = 50
#: The mean share of an interval that jitter leaves, in the trigger and in the waits that it is compared with.
MEAN_SHARE = 0.9

#: One wait: takes the operation's name and the longest interval, and polls forever.
Wait: TypeAlias = Callable[[str, float], Coroutine[Any, Any, None]]

#: A line that triggers commonly log after each poll.
_LINE = "%s is RUNNING (ingest PROCESSING); 100 s elapsed, next poll in %.1f s"
_AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}


def _context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])


def _url(name: str) -> URL:
    return URL(f"{os.environ['BENCHMARK_ENDPOINT']}/v1/{name}", encoded=True)


async def _pause(interval: float) -> None:
    await asyncio.sleep(interval * (1 - 2 * (1 - MEAN_SHARE) * random()))  # noqa: S311 - chance, not a secret


@asynccontextmanager
async def together() -> AsyncIterator[Wait]:
    """The trigger of the package, past its quick first polls."""
    from airflow_dai_provider.triggers.dai import DaiOperationTrigger

    async def wait(name: str, interval: float) -> None:
        trigger = DaiOperationTrigger(name, poll_interval=interval, started=time.time() - 2 * interval)
        async for event in trigger.run():
            if event.payload["status"] != "finished":
                raise RuntimeError(f"expected an ingest that runs or finishes, got {event}")

    yield wait


@asynccontextmanager
async def ours() -> AsyncIterator[Wait]:
    """The same by get only, as few waits poll: one request for each poll."""
    from airflow_dai_provider.transport import shared_polls

    shared_polls.MIN_POLLS = sys.maxsize
    async with together() as wait:
        yield wait


@asynccontextmanager
async def floor() -> AsyncIterator[Wait]:
    """One plain session for all and a fixed header; the response is only decoded."""
    async with _bare_session() as session:
        yield lambda name, interval: _poll_forever(session, name, interval)


@asynccontextmanager
async def floor_with_line() -> AsyncIterator[Wait]:
    """The floor, with one line per poll to the logger of triggers."""
    async with _bare_session() as session:
        yield lambda name, interval: _poll_forever(session, name, interval, LoggingMixin().log)


def _bare_session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=_context())
    return aiohttp.ClientSession(connector=connector, headers=_AUTHORISED)


async def _poll_forever(session: aiohttp.ClientSession, name: str, interval: float, log: Any = None) -> None:
    url = _url(name)
    while True:
        async with session.get(url) as response:
            operation = json.loads(await response.read())
        if operation.get("done"):
            return
        if log:
            log.info(_LINE, name, interval)
        await _pause(interval)


@asynccontextmanager
async def session_per_poll() -> AsyncIterator[Wait]:
    """A session, and so a TLS handshake, per poll; the token and the certificates are read once."""
    context = _context()

    async def wait(name: str, interval: float) -> None:
        url = _url(name)
        while True:
            async with aiohttp.ClientSession() as session, session.get(url, headers=_AUTHORISED, ssl=context) as reply:
                operation = json.loads(await reply.read())
            if operation.get("done"):
                return
            await _pause(interval)

    yield wait


@asynccontextmanager
async def session_and_token_per_poll() -> AsyncIterator[Wait]:
    """A hook per poll: a session and a token each time, the token fetched in a thread."""
    from google.auth.transport.requests import Request
    from google.oauth2.service_account import Credentials

    connection = json.loads(os.environ["AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT"])
    account = json.loads(connection["extra"]["keyfile_dict"])
    context = _context()

    def token() -> dict[str, str]:
        credentials = Credentials.from_service_account_info(account, scopes=["https://www.googleapis.com/auth/dai"])
        credentials.refresh(Request())
        return {"Authorization": f"Bearer {credentials.token}"}

    async def wait(name: str, interval: float) -> None:
        url = _url(name)
        while True:
            headers = await asyncio.to_thread(token)
            async with aiohttp.ClientSession() as session, session.get(url, headers=headers, ssl=context) as reply:
                operation = json.loads(await reply.read())
            if operation.get("done"):
                return
            await _pause(interval)

    yield wait


KINDS = {
    kind.__name__: kind
    for kind in (together, ours, floor, floor_with_line, session_per_poll, session_and_token_per_poll)
}
