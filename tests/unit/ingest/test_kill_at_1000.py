"""A task with 1,000 ingests is killed by a real signal, against a service in another process that takes 20 ms."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.ingest import cancel_on_kill
from tests.support.ingests import make
from tests.support.log import Log
from tests.support.payloads import creative
from tests.support.processes import running
from tests.support.task_instance import Ti
from tests.support.threads import untraced

NUMBER = 1_000
CREATIVES = [creative(f"https://media.example.com/{number}.mp4?sig=c2ln") for number in range(NUMBER)]


class ProcessEndedError(BaseException):
    """What the signal handler of Airflow 2 raises after ``on_kill``."""


@pytest.fixture(autouse=True)
def _time() -> None:
    """Let the task live in real time, since another process does."""


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Give a function that reads from a service which ingests it has, and whether each was asked to stop."""
    command = [sys.executable, "-m", "airflow_dai_provider.emulator", "--port", "0", "--ingest-seconds", "100000"]
    for method in ("creatives.create", "operations.cancel"):
        command += ["--fault", f"{method},delay=0.02,rate=1"]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        host = re.search(r"DAI_EMULATOR_HOST=(\S+)", process.stdout.readline())
        assert host
        monkeypatch.setenv("DAI_EMULATOR_HOST", host[1])

        def ingests() -> list[dict[str, Any]]:
            response = requests.get(f"http://{host[1]}/emulator/v1/ingests", timeout=60)
            every: list[dict[str, Any]] = response.json()["ingests"]
            return every

        yield ingests


@pytest.mark.parametrize("started", [NUMBER, NUMBER // 4], ids=["while it waits", "while it starts them"])
def test_a_kill_cancels_all(
    record: Callable[[], list[dict[str, Any]]], ti: Ti, log: Log, monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    # Other programs can slow the test down, which is about what is sent; a benchmark tells the time.
    monkeypatch.setattr(cancel_on_kill, "KILL_TIMEOUT", 120.0)
    operator = make(creative=CREATIVES, timeout=600)
    took: list[float] = []

    def handler(*_: object) -> None:
        began = time.monotonic()
        operator.on_kill()
        took.append(time.monotonic() - began)
        raise ProcessEndedError

    push = ti.xcom_push
    timers: list[threading.Timer] = []

    def kill_soon(key: str, value: Any) -> None:
        push(key, value)
        if key == "operation_name" and len(value) >= started and not timers:
            timers.append(threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)))
            timers[0].start()

    monkeypatch.setattr(ti, "xcom_push", kill_soon, raising=False)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        # Python swallows the exception where it hits a callback of its own, such as that of a weak reference. Then the
        # task goes on, as on Airflow 3, and fails because its ingests were cancelled.
        with untraced(), pytest.raises((ProcessEndedError, AirflowException)):
            operator.execute({"ti": ti})  # type: ignore[typeddict-item]
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()  # a signal that comes after this test would hit another one
        signal.signal(signal.SIGTERM, before)

    ingests = record()
    print(f"{len(ingests):,} ingests, killed within {took[0]:.1f} s")
    assert len(ingests) == NUMBER if started == NUMBER else started <= len(ingests) <= NUMBER
    assert {ingest["cancel_requested"] for ingest in ingests} == {1}
    assert "may still run" not in log.text
