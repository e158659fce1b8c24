"""An emulator, hooks that talk to it over real HTTP without sleeping, and a tiny server that can misbehave."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiHook
from tests.support.event_loop import define_connection
from tests.support.tiny_server import TinyServer, refusing_port

if TYPE_CHECKING:
    from conftest import Clock

#: Settings of whoever runs the tests that would reach into them.
_OUTSIDE = ("GOOGLE_", "CLOUDSDK_", "GCE_", "AIRFLOW_CONN_", "DAI_", "REQUESTS_CA_", "CURL_CA_", "NETRC", "SSL_")


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Give a port at which every connection is refused."""
    with refusing_port() as port:
        yield port


@pytest.fixture(autouse=True)
def _isolation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed_port: int) -> None:
    """Keep the real environment out, and everything that is meant for another machine in."""
    for variable in [*os.environ]:
        if variable.startswith(_OUTSIDE) or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.fixture
def emulator(clock: Clock) -> Iterator[DaiEmulator]:
    with DaiEmulator(ingest_seconds=100, clock=clock) as running:
        yield running


@pytest.fixture
def tiny_server() -> Iterator[Callable[..., TinyServer]]:
    """Give a function that starts a server which answers every request as the given function does."""
    with ExitStack() as stack:
        yield lambda respond, context=None: stack.enter_context(TinyServer(respond, context))


@pytest.fixture(scope="module")
def one_tiny_server() -> Iterator[TinyServer]:
    """
    Give a server for all tests of a module; each sets what it answers.

    A token service on it keeps its key: Airflow remembers every key it has seen, to mask it, and slows down with each.
    """
    with TinyServer(lambda exchange: exchange.answer(500)) as server:
        yield server


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that defines a connection, ``google_cloud_default`` unless it is named, by its extra."""
    return partial(define_connection, monkeypatch)


@pytest.fixture
def slept(clock: Clock) -> list[float]:
    """Give the seconds that the hooks have slept so far."""
    return clock.slept


@pytest.fixture
def make_hook(monkeypatch: pytest.MonkeyPatch, fake_time: Clock) -> Iterator[Callable[..., DaiHook]]:
    """Give a function that makes a hook which waits on the test's clock, and is closed in the end."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(DaiHook(**arguments))


@pytest.fixture
def hook(emulator: DaiEmulator, connect: Callable[..., None], make_hook: Callable[..., DaiHook]) -> DaiHook:
    """Give a hook that talks to the emulator anonymously and repeats at most five times."""
    connect(is_anonymous=True)
    return make_hook(api_endpoint=emulator.endpoint)


@pytest.fixture
def once(emulator: DaiEmulator, connect: Callable[..., None], make_hook: Callable[..., DaiHook]) -> DaiHook:
    """Give a hook that talks to the emulator anonymously and repeats nothing."""
    connect(is_anonymous=True, num_retries=0)
    return make_hook(api_endpoint=emulator.endpoint)
