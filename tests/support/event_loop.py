"""What the tests of the asynchronous half share: a clean event loop, time that passes when told to, tokens."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from airflow_dai_provider.emulator import SelfSigned

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import TaskDeferred
    from conftest import Clock

    from tests.support.tiny_server import Exchange

T = TypeVar("T")

#: Seconds after which a test that hangs is ended.
HANGS_AFTER = 60.0
#: Seconds that a blocked thread waits for a gate before it gives up.
GATE_SECONDS = 5.0


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on an event loop of its own, and fail on whatever it leaves behind: the house stays clean."""
    left: list[str] = []
    with only_new_objects(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: left.append(f"{context}"))
            try:
                result = runner.run(asyncio.wait_for(main, HANGS_AFTER))
            finally:
                left += [f"a task goes on: {task}" for task in asyncio.all_tasks(loop) if not _drops_a_generator(task)]
        left += _open_sessions()
        gc.collect()
    left += [
        str(warning.message)
        for warning in caught
        if issubclass(warning.category, ResourceWarning) or "never awaited" in str(warning.message)
    ]
    caught.clear()  # a warning holds what it warns of, and a failing test holds this
    if left:
        pytest.fail("Left behind: " + "; ".join(left))
    return result


def fire(deferred: TaskDeferred) -> Any:
    """Run the trigger of a deferred task, as it is after its way through the metadata database; return its event."""
    from airflow_dai_provider.triggers.dai import DaiOperationTrigger

    _, arguments = deferred.trigger.serialize()
    trigger = DaiOperationTrigger(**json.loads(json.dumps(arguments)))

    async def main() -> list[Any]:
        return [event.payload async for event in trigger.run()]

    (payload,) = run(main())
    return json.loads(json.dumps(payload))


@contextmanager
def only_new_objects() -> Iterator[None]:
    """Keep what is there already from the garbage collector, which makes it quick to ask."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _drops_a_generator(task: asyncio.Task[Any]) -> bool:
    """Whether this is Python's own task, from 3.12 on, for a generator that nobody goes on with: Airflow's way, too."""
    return type(task.get_coro()).__name__ == "async_generator_athrow"


def _open_sessions() -> list[str]:
    return [f"an open session: {o}" for o in gc.get_objects() if type(o) is aiohttp.ClientSession and not o.closed]


def let_time_pass(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[float]:
    """Let the asynchronous hook wait on the clock, without chance; return what it has slept."""
    from airflow_dai_provider.hooks.dai import DaiAsyncHook

    async def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(sleep))
    monkeypatch.setattr(DaiAsyncHook, "_clock", staticmethod(clock))
    monkeypatch.setattr(DaiAsyncHook, "_random", staticmethod(lambda: 0.0))
    return clock.slept


def trust_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read one authority instead of the world's 150, which takes longer than the rest of most tests."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(_one_authority()))


@cache
def _one_authority() -> Path:
    folder = Path(os.environ["AIRFLOW_HOME"]) / "authority"
    folder.mkdir()
    return write_authority(folder, SelfSigned())


def write_authority(folder: Path, certificate: SelfSigned) -> Path:
    """Write the file that a client is to trust."""
    authority = folder / "ca.pem"
    authority.write_text(certificate.pem)
    return authority


def define_connection(monkeypatch: pytest.MonkeyPatch, conn_id: str = "google_cloud_default", **extra: object) -> None:
    """Define a Google Cloud connection by its extra."""
    connection = {"conn_type": "google_cloud_platform", "extra": extra}
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread brings about."""
    while not condition():
        await asyncio.sleep(0.002)


class Gate:
    """
    Where a thread stands still until the event loop has gone on; a loop that is blocked never opens it.

    :param entered: how many threads have come so far.
    """

    def __init__(self) -> None:
        self.entered = 0
        self.blocked = False
        self._open = threading.Event()

    def wait(self) -> None:
        self.entered += 1
        self.blocked |= not self._open.wait(GATE_SECONDS)

    def open(self) -> None:
        self._open.set()

    async def open_after_beats(self, beats: int = 20) -> None:
        """Let the event loop turn while a thread waits here, and open."""
        await until(lambda: self.entered)
        for _ in range(beats):
            await asyncio.sleep(0.001)
        self.open()
        assert not self.blocked, "The event loop stood still."


@dataclass
class TokenService:
    """
    A service-account key, and the token endpoint that it names.

    :param expires_in: seconds that a token is good for.
    :param refusal: what is answered instead of a token.
    :param gate: where a request for a token stands still.
    """

    expires_in: float = 3600
    refusal: tuple[int, object] | None = None
    gate: Gate | None = None
    tokens: list[str] = field(default_factory=list)
    asked: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, exchange: Exchange) -> None:
        with self._lock:
            self.asked += 1
            number = self.asked
        if self.gate:
            self.gate.wait()
        if self.refusal:
            exchange.answer(*self.refusal)
            return
        token = f"t0ken-{number}-of-the-robot"
        self.tokens.append(token)
        exchange.answer(200, {"access_token": token, "expires_in": self.expires_in, "token_type": "Bearer"})

    def key(self, token_uri: str) -> dict[str, str]:
        return {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "k1",
            "private_key": private_key_pem().decode(),
            "client_email": "robot@project.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": token_uri,
        }

    def assert_nothing_secret_in(self, text: str) -> None:
        lines = private_key_pem().decode().splitlines()[1:-1]
        assert [secret[:12] for secret in [*lines, *self.tokens, "Bearer "] if secret in text] == []


@cache
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def private_key_pem() -> bytes:
    return private_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
