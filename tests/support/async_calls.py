"""Calls of DaiAsyncHook that several test modules make."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiAsyncHook
from tests.support.event_loop import (
    TokenService,
    run,
)
from tests.support.tiny_server import Exchange, TinyServer

if TYPE_CHECKING:
    from conftest import Clock, Log


NAME = "operations/ingest"


@pytest.fixture
def emulator(clock: Clock) -> Iterator[DaiEmulator]:
    with DaiEmulator(ingest_seconds=1e9, clock=clock) as running:
        yield running


@pytest.fixture
def tokens(one_tiny_server: TinyServer, log: Log, caplog: pytest.LogCaptureFixture) -> Iterator[TokenService]:
    """Give a token service; after the test, nothing secret of it is in the log, debug lines included."""
    service = TokenService()
    one_tiny_server.respond = service.respond
    caplog.set_level("DEBUG")
    yield service
    with_tracebacks = map(logging.Formatter().format, caplog.get_records("call"))
    service.assert_nothing_secret_in("\n".join([log.text, *with_tracebacks]))


@pytest.fixture
def robot(
    tokens: TokenService, one_tiny_server: TinyServer, emulator: DaiEmulator, connect: Callable[..., None]
) -> Callable[..., None]:
    """Let the connection be a key, to the emulator; more can be said about it."""

    def define(**extra: object) -> None:
        key = tokens.key(f"{one_tiny_server.endpoint}/token")
        connect(**{"keyfile_dict": key, "dai_api_endpoint": emulator.endpoint, **extra})

    define()
    return define


def look(name: str = NAME, times: int = 1, **arguments: Any) -> None:
    async def main() -> None:
        async with DaiAsyncHook(**arguments) as hook:
            for _ in range(times):
                await hook.get_operation(name)

    run(main())


def bearers(emulator: DaiEmulator) -> list[str | None]:
    return [request.headers.get("authorization") for request in emulator.requests]


async def shown(failing: Any) -> tuple[Exception, str]:
    """Return the error of a coroutine, and all that a traceback of it shows."""
    try:
        await failing
    except Exception as error:
        return error, "".join(traceback.format_exception(error))
    raise AssertionError("It did not fail.")


class Guarded:
    """A service that takes every token but those that it has revoked."""

    def __init__(self) -> None:
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
def guarded() -> Guarded:
    return Guarded()


@pytest.fixture
def guarded_server(guarded: Guarded, robot: Callable[..., None]) -> Iterator[TinyServer]:
    with TinyServer(guarded.respond) as server:
        robot(dai_api_endpoint=server.endpoint)
        yield server
