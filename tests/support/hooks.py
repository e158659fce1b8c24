"""Hooks that talk to an emulator over real HTTP without sleeping, out of reach of the real environment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.retry import THROTTLED, THROTTLED_OR_UNAVAILABLE, TRANSIENT
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.event_loop import run
from tests.support.payloads import NAME, creative
from tests.support.tiny_server import Exchange, Serve

MakeHook = Callable[..., DaiHook]
#: Takes the endpoint, the names, and the limits of the wait.
WaitForMany = Callable[..., ManyWait]

#: Settings of whoever runs the tests that would reach into them.
_OUTSIDE = ("GOOGLE_", "CLOUDSDK_", "GCE_", "AIRFLOW_CONN_", "DAI_", "REQUESTS_CA_", "CURL_CA_", "NETRC", "SSL_")


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
    with DaiEmulator(ingest_seconds=1e9, clock=clock) as running:
        yield running


@pytest.fixture
def make_hook(fake_time: Clock) -> Iterator[MakeHook]:
    """Give a function that makes a hook which waits on the test's clock, and is closed in the end."""
    with ExitStack() as stack:
        yield lambda **arguments: stack.enter_context(DaiHook(**arguments))


@pytest.fixture
def hook(emulator: DaiEmulator, connect: Connect, make_hook: MakeHook) -> DaiHook:
    """Give a hook that talks to the emulator anonymously and repeats at most five times."""
    connect(is_anonymous=True)
    return make_hook(api_endpoint=emulator.endpoint)


@pytest.fixture
def once(emulator: DaiEmulator, connect: Connect, make_hook: MakeHook) -> DaiHook:
    """Give a hook that talks to the emulator anonymously and repeats nothing."""
    connect(is_anonymous=True, num_retries=0)
    return make_hook(api_endpoint=emulator.endpoint)


@pytest.fixture
def hook_to(connect: Connect, make_hook: MakeHook, tiny_server: Serve) -> MakeHook:
    """Give a function that makes an anonymous hook to a server which responds as the given function does."""

    def make(respond: Callable[[Exchange], None], *, num_retries: int = 0, **arguments: Any) -> DaiHook:
        connect(is_anonymous=True, num_retries=num_retries)
        return make_hook(api_endpoint=tiny_server(respond).endpoint, **arguments)

    return make


#: What each method of the hook calls, and after which codes it may call again (the table of the API's facts).
CALLS: dict[str, tuple[Callable[[DaiHook], object], frozenset[Code]]] = {
    "operations.get": (lambda hook: hook.get_operation(NAME), TRANSIENT),
    "operations.cancel": (lambda hook: hook.cancel_operation(NAME), TRANSIENT),
    "operations.list": (lambda hook: list(hook.list_operations()), TRANSIENT),
    "operations.delete": (lambda hook: hook.delete_operation(NAME), THROTTLED_OR_UNAVAILABLE),
    "creatives.create": (lambda hook: hook.create_creative(creative()), THROTTLED),
    "creatives.get": (lambda hook: hook.get_creative("creatives/gv-1"), TRANSIENT),
    "creatives.delete": (lambda hook: hook.delete_creative("creatives/gv-1"), THROTTLED_OR_UNAVAILABLE),
}


def cases(table: dict[str, Any]) -> dict[str, Any]:
    """Give a table's values to parametrize, with its keys as ids."""
    return {"argvalues": list(table.values()), "ids": list(table)}


def operation(**fields: object) -> bytes:
    """Return the JSON of the operation."""
    return json.dumps({"name": NAME, **fields}).encode()


RUNNING, SUCCEEDED, FAILED, CANCELLED = OperationState


def wait_in_threads(endpoint: str, names: list[str], **limits: Any) -> ManyWait:
    """Wait for operations with the synchronous hook."""
    with DaiHook(api_endpoint=endpoint) as hook:
        many = ManyWait(names, hook.make_wait("the operations", **limits))
        with hook.workers(len(names)) as workers:
            hook.wait_for_many(workers, many)
    return many


def wait_on_a_loop(endpoint: str, names: list[str], **limits: Any) -> ManyWait:
    """Wait for operations with the asynchronous hook."""

    async def main() -> ManyWait:
        async with DaiAsyncHook(api_endpoint=endpoint) as hook:
            many = ManyWait(names, hook.make_wait("the operations", **limits))
            await hook.wait_for_many(many)
        return many

    return run(main())


@pytest.fixture(params=[wait_in_threads, wait_on_a_loop])
def wait(request: pytest.FixtureRequest, connect: Connect, fake_time: Clock) -> WaitForMany:
    """Give a function that waits for operations with one of the two hooks."""
    connect(is_anonymous=True)
    return request.param  # type: ignore[no-any-return]
