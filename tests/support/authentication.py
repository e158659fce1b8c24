"""What the tests of authentication share: one time, both hooks driven alike, and an eye on all that is shown."""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import parse_qs

import pytest
from google.auth import credentials

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.transport import shared_token
from tests.support.airflow_versions import secrets_maskers
from tests.support.clock import Clock
from tests.support.event_loop import run
from tests.support.log import Log
from tests.support.token_server import private_key_pem

T = TypeVar("T")

#: A method of the hook and its arguments, or something that happens between two calls.
Step = tuple[Any, ...] | Callable[[], object]
Form = Callable[..., list[Any]]

#: How every token of the emulator and every signed JWT begins.
BEGINNINGS = ("ya29.", "eyJ")
TOKEN_METHODS = ("token", "generateAccessToken", "exchangeToken")


def live_on(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Let hooks and google-auth live on the clock, nothing ask Google in the background, and nothing be masked."""
    mask_nothing(monkeypatch)
    monkeypatch.setattr(shared_token, "time", SimpleNamespace(time=clock))
    monkeypatch.setattr(
        "google.auth._helpers.utcnow", lambda: datetime.fromtimestamp(clock(), UTC).replace(tzinfo=None)
    )
    monkeypatch.setattr("google.auth._exponential_backoff.time", SimpleNamespace(sleep=lambda _: None))
    # Versions before that do not ask.
    if owner := getattr(credentials, "CredentialsWithRegionalAccessBoundary", None):
        monkeypatch.setattr(owner, "_maybe_start_regional_access_boundary_refresh", lambda *_: None)


def happen_after(seconds: float, happens: Callable[[], object], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen once, at the end of the sleep in which the time comes."""
    due, pending = clock.now + seconds, [happens]

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if pending and clock.now >= due:
            pending.pop()()

    async def sleep_in_loop(seconds: float) -> None:
        sleep(seconds)

    monkeypatch.setattr(DaiHook, "_sleep", staticmethod(sleep))
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(sleep_in_loop))


def mask_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Airflow from masking what it knows to be secret: nothing of it must be there in the first place."""
    for masker in secrets_maskers():
        monkeypatch.setattr(masker, "replacer", None)
        monkeypatch.setattr(masker, "add_mask", lambda *_, **__: None)


def in_worker(*steps: Step, **arguments: Any) -> list[Any]:
    """Take steps with one DaiHook; return what each has brought."""
    with DaiHook(**arguments) as hook:
        return [step() if callable(step) else getattr(hook, step[0])(*step[1:]) for step in steps]


def in_triggerer(*steps: Step, **arguments: Any) -> list[Any]:
    """Take steps with one DaiAsyncHook; return what each has brought."""

    async def main() -> list[Any]:
        async with DaiAsyncHook(**arguments) as hook:
            return [step() if callable(step) else await getattr(hook, step[0])(*step[1:]) for step in steps]

    return run(main())


FORMS: dict[str, Form] = {"sync": in_worker, "async": in_triggerer}


class SharedTime:
    """
    Time that passes for many waits on one loop: to the next who wakes, and only when all of them sleep.

    :param waits: how many there are.
    :param at: what happens between two looks, by the seconds since the beginning; each once, while all sleep.
    """

    def __init__(self, clock: Clock, waits: int, at: dict[float, Callable[[], object]] | None = None) -> None:
        self._clock = clock
        self._awake = waits
        self._sleeping: list[tuple[float, int, asyncio.Future[None]]] = []
        self._events = sorted((clock.now + seconds, happens) for seconds, happens in (at or {}).items())
        self.slept = 0

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self.slept += 1
        heapq.heappush(self._sleeping, (self._clock.now + seconds, self.slept, woken))
        self._one_less_awake()
        await woken

    async def outlast(self, wait: Awaitable[T]) -> T:
        """Return what a wait returns, and count it no longer."""
        try:
            return await wait
        finally:
            self._one_less_awake()

    def _one_less_awake(self) -> None:
        self._awake -= 1
        if self._awake or not self._sleeping:
            return
        until = self._sleeping[0][0]
        while self._events and self._events[0][0] <= until:
            self._clock.now, happens = self._events.pop(0)
            happens()
        self._clock.now = until
        while self._sleeping and self._sleeping[0][0] <= until:
            _, _, woken = heapq.heappop(self._sleeping)
            self._awake += 1
            woken.set_result(None)


@dataclass
class Shown:
    """Whatever a person could get to see: results, errors with tracebacks, XComs, triggers; and the log."""

    log: Log
    caplog: pytest.LogCaptureFixture
    emulators: list[DaiEmulator] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def add(self, value: object) -> None:
        try:
            self.texts.append(json.dumps(value, default=repr))
        except (TypeError, ValueError):
            self.texts.append(repr(value))
        self.texts.append(repr(value))

    def add_error(self, error: BaseException) -> None:
        self.texts += [*traceback.format_exception(error), repr(error)]

    @contextmanager
    def fails(self, error: type[BaseException], words: str | None = None) -> Iterator[pytest.ExceptionInfo[Any]]:
        """Expect an error of this class, and keep its traceback with all its causes."""
        with pytest.raises(error, match=words) as caught:
            yield caught
        self.add_error(caught.value)

    def all(self) -> str:
        """
        Return it all; of the log also the levels below INFO, the tracebacks and what our own lines carry along.

        What google-auth's debug lines carry along is left out: its requests, tokens included. Airflow shows none of it.
        """
        records = self.caplog.get_records("call")
        lines = map(logging.Formatter().format, records)
        carried = (repr(vars(record)) for record in records if not record.name.startswith("google."))
        return "\n".join([*self.texts, self.log.text, *lines, *carried])

    def secrets(self) -> set[str]:
        """Return the key, and each token and JWT that has been sent to an emulator."""
        secrets = set(private_key_pem().decode().splitlines()[1:-1])
        for emulator in self.emulators:
            for request in emulator.requests:
                secrets |= {request.headers.get("authorization", "").partition(" ")[2]}
                form = parse_qs(request.body.decode()) if request.method in ("token", "exchangeToken") else {}
                secrets |= {*form.get("assertion", ()), *form.get("subject_token", ())}
        return secrets - {""}

    def assert_nothing_secret(self) -> None:
        text = self.all()
        secrets = self.secrets()
        sent = secrets - set(private_key_pem().decode().splitlines())
        # So that also a token counts that was issued and never sent.
        assert [secret[:12] for secret in sent if not secret.startswith(BEGINNINGS)] == []
        assert [secret[:12] for secret in (*secrets, *BEGINNINGS, "Bearer ", "PRIVATE KEY") if secret in text] == []


def guarded_emulator(**options: Any) -> DaiEmulator:
    """Return an emulator that wants tokens, whose ingests never end by themselves."""
    key = private_key_pem().decode()
    given = {"authentication": True, "private_key": key, "ingest_seconds": 1e9, **options}
    return DaiEmulator(**given)


def accounts(emulator: DaiEmulator) -> set[str | None]:
    """Return whose tokens have reached DAI itself."""
    return {request.account for request in emulator.requests if request.method not in TOKEN_METHODS}


def refused(emulator: DaiEmulator) -> list[tuple[str | None, int | None]]:
    """Return the requests that were not granted."""
    return [(request.method, request.status) for request in emulator.requests if request.status != 200]
