"""The waits that are compared: ours, the least that can be done with aiohttp, and what is common in the field."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from random import random
from typing import Any, TypeAlias

import aiohttp
from airflow.utils.log.logging_mixin import LoggingMixin
from server import TOKEN
from yarl import URL

#: As many as the session under measurement has, so that the floor has neither more nor less.
CONNECTIONS = 50
#: The mean of what jitter leaves of an interval, in the trigger and in what it is compared with.
MEAN_SHARE = 0.9

#: Starts one wait: takes the operation's name and the longest interval, and looks for ever.
Wait: TypeAlias = Callable[[str, float], Coroutine[Any, Any, None]]

#: What triggers commonly say after each look.
_LINE = "%s is RUNNING (ingest PROCESSING); 100 s elapsed, next look in %.1f s"
_AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}


def _context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])


def _url(name: str) -> URL:
    return URL(f"{os.environ['BENCHMARK_ENDPOINT']}/v1/{name}", encoded=True)


async def _pause(interval: float) -> None:
    await asyncio.sleep(interval * (1 - 2 * (1 - MEAN_SHARE) * random()))  # noqa: S311 - chance, not a secret


@asynccontextmanager
async def ours() -> AsyncIterator[Wait]:
    """The trigger of the package, past its quick first looks."""
    from airflow_dai_provider.triggers.dai import DaiOperationTrigger

    async def wait(name: str, interval: float) -> None:
        trigger = DaiOperationTrigger(name, poll_interval=interval, started=time.time() - 2 * interval)
        async for event in trigger.run():
            raise RuntimeError(f"expected an ingest without an end, got {event}")

    yield wait


@asynccontextmanager
async def floor() -> AsyncIterator[Wait]:
    """One bare session for all, a ready header, and nothing done with the answer but to decode it."""
    async with _bare_session() as session:
        yield lambda name, interval: _look_for_ever(session, name, interval)


@asynccontextmanager
async def floor_with_line() -> AsyncIterator[Wait]:
    """The floor, which also says once per look what it has seen, to the logger that triggers have."""
    async with _bare_session() as session:
        yield lambda name, interval: _look_for_ever(session, name, interval, LoggingMixin().log)


def _bare_session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=_context())
    return aiohttp.ClientSession(connector=connector, headers=_AUTHORISED)


async def _look_for_ever(session: aiohttp.ClientSession, name: str, interval: float, log: Any = None) -> None:
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
async def session_per_look() -> AsyncIterator[Wait]:
    """A session, and so a TLS handshake, per look; the token and the authorities are read once."""
    context = _context()

    async def wait(name: str, interval: float) -> None:
        url = _url(name)
        while True:
            async with aiohttp.ClientSession() as session, session.get(url, headers=_AUTHORISED, ssl=context) as answer:
                operation = json.loads(await answer.read())
            if operation.get("done"):
                return
            await _pause(interval)

    yield wait


@asynccontextmanager
async def session_and_token_per_look() -> AsyncIterator[Wait]:
    """A hook per look: a session and a token each time, the token fetched in a thread."""
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
            async with aiohttp.ClientSession() as session, session.get(url, headers=headers, ssl=context) as answer:
                operation = json.loads(await answer.read())
            if operation.get("done"):
                return
            await _pause(interval)

    yield wait


KINDS = {kind.__name__: kind for kind in (ours, floor, floor_with_line, session_per_look, session_and_token_per_look)}
