"""Sessions of both hooks that use a key, calls of the asynchronous hook, and a server that revokes tokens."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from tests.support.connections import Connect
from tests.support.event_loop import run
from tests.support.hooks import MakeHook
from tests.support.payloads import NAME
from tests.support.tiny_server import Exchange, TinyServer
from tests.support.token_server import TokenServer


@pytest.fixture
def connect_key(tokens: TokenServer, emulator: DaiEmulator, connect: Connect) -> Connect:
    """Let the connection be a key, to the emulator; the function given can change it."""

    def define(**extra: object) -> None:
        connect(**{"keyfile_dict": tokens.key, "dai_api_endpoint": emulator.endpoint, **extra})

    define()
    return define


@pytest.fixture
def keyed_hook(connect_key: Connect, make_hook: MakeHook) -> DaiHook:
    """Give a hook that talks to the emulator with the key."""
    return make_hook()


def look(name: str = NAME, times: int = 1, **arguments: Any) -> None:
    async def main() -> None:
        async with DaiAsyncHook(**arguments) as hook:
            for _ in range(times):
                await hook.get_operation(name)

    run(main())


async def error_of(failing: Any) -> tuple[Exception, str]:
    """Return the error of a coroutine, and all that a traceback of it shows."""
    try:
        await failing
    except Exception as error:
        return error, "".join(traceback.format_exception(error))
    raise AssertionError("It did not fail.")


class RevokingServer:
    """A server that takes every token but those that it has revoked."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.revoked: set[str | None] = set()
        self.lock = threading.Lock()
        self.seen: list[str | None] = []

    def respond(self, exchange: Exchange) -> None:
        bearer = exchange.headers["Authorization"]
        with self.lock:
            self.seen.append(bearer)
        if bearer in self.revoked or "everything" in self.revoked:
            exchange.answer(401, {"error": {"code": 401, "status": "UNAUTHENTICATED", "message": "revoked"}})
        else:
            exchange.answer(200, {"name": NAME})


@pytest.fixture
def revoking_server(connect_key: Connect) -> Iterator[RevokingServer]:
    """Give a server that can revoke tokens, to which the connection leads."""
    revoking = RevokingServer()
    with TinyServer(revoking.respond) as server:
        revoking.endpoint = server.endpoint
        connect_key(dai_api_endpoint=server.endpoint)
        yield revoking
