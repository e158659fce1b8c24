"""The trigger for a list: its arguments, its polls, its event, and its kill."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.polling import MAX_OUTAGE, WaitTimeoutError
from airflow_dai_provider.api.retry import MAX_HELD
from airflow_dai_provider.api.storable import pack
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook
from airflow_dai_provider.tasks.events import read_many_event
from airflow_dai_provider.transport.aiohttp_session import MAX_CONNECTIONS
from airflow_dai_provider.triggers import dai
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator, count
from tests.support.event_loop import fire_trigger, run, stored, until
from tests.support.log import Log

MakeTrigger = Callable[..., DaiOperationTrigger]
GET, CANCEL = "operations.get", "operations.cancel"
A, B, C = "operations/a", "operations/b", "operations/c"


# Its arguments


@pytest.mark.parametrize("names", [[A, B], [A], [], (A, B), {A}])
def test_a_list_is_stored_as_one_text_and_comes_back(names: Any) -> None:
    trigger = DaiOperationTrigger(names, started=1.0)
    _, arguments = trigger.serialize()
    assert isinstance(arguments["operation_name"], str)
    assert stored(trigger).serialize() == stored(stored(trigger)).serialize() == trigger.serialize()
    assert stored(trigger)._left() == list(names)


def test_the_arguments_of_ten_thousand_fit_into_the_64_kilobytes_of_mysql() -> None:
    names = [f"operations/ingest-{number}" for number in range(10_000)]
    _, arguments = DaiOperationTrigger(names).serialize()
    assert len(json.dumps(arguments)) * 4 / 3 < 64_000, "Airflow encrypts it, which makes it a third longer."


@pytest.mark.parametrize("text", [f"['{A}', '{B}']", f'["{A}", "{B}"]'])
def test_the_text_of_a_list_counts_as_the_list(emulator: DaiEmulator, make_trigger: MakeTrigger, text: str) -> None:
    for name in (A, B):
        emulator.start_ingest(name, seconds=0)
    event = fire_trigger(stored(make_trigger(text)))
    assert read(event, [A, B]) == ({A: "SUCCEEDED", B: "SUCCEEDED"}, {})


def test_one_name_is_stored_as_it_is() -> None:
    assert DaiOperationTrigger(A).serialize()[1]["operation_name"] == A


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("packed:no such text", "expected a compressed JSON value"),
        ("packed:", "expected a compressed JSON value"),
        ([A, "creatives/b"], r"operation_name\[1\]"),
        ([A, None], r"operation_name\[1\]"),
        ([A, [B]], "list within the list at index 1"),
        ("['a'", r"operation name \"\['a'\""),
        (f"packed:{pack({'a': 1})}", "operation name"),
        (f"packed:{pack([A, 7])}", r"operation_name\[1\]"),
    ],
)
def test_what_is_no_list_of_names_is_an_event_of_this_wait_only(
    emulator: DaiEmulator, make_trigger: MakeTrigger, names: Any, words: str
) -> None:
    event = fire_trigger(make_trigger(names))
    assert (event["status"], event["code"]) == ("error", "INVALID_ARGUMENT")
    assert re.search(words, event["message"])
    assert emulator.requests == []


# Its event


def read(event: dict[str, Any], names: list[str]) -> tuple[dict[str, str], dict[str, Code]]:
    finished, errors = read_many_event(event, names)
    return (
        {name: operation.state.value for name, operation in finished.items()},
        {name: error.rpc_code for name, error in errors.items()},
    )


def test_it_fires_once_when_all_have_finished(make_emulator: MakeEmulator, make_trigger: MakeTrigger, log: Log) -> None:
    emulator = make_emulator()
    emulator.start_ingest(A, seconds=3)
    emulator.start_ingest(B, seconds=30, outcome="INVALID_MEDIA")
    emulator.start_ingest(C, seconds=0)
    event = fire_trigger(stored(make_trigger([A, B, C], expected_states=["SUCCEEDED"])))
    assert read(event, [A, B, C]) == ({A: "SUCCEEDED", B: "FAILED", C: "SUCCEEDED"}, {})
    assert count(emulator, GET) < 20, "What has finished is polled no more."
    assert emulator.connections <= 3
    assert log.lines("3 of 3 finished: 1 failed, 2 succeeded")
    assert log.lines("failed: INVALID_MEDIA")


def test_an_empty_list_has_finished(emulator: DaiEmulator, make_trigger: MakeTrigger) -> None:
    assert read(fire_trigger(make_trigger([])), []) == ({}, {})
    assert emulator.requests == []


def test_errors_of_some_are_reported_after_the_wait(emulator: DaiEmulator, make_trigger: MakeTrigger) -> None:
    emulator.start_ingest(A, seconds=60)
    emulator.start_ingest(B, seconds=60)
    emulator.inject(Fault(method=GET, name=B, rpc_status="PERMISSION_DENIED", times=None))
    event = fire_trigger(make_trigger([A, B, C]))
    assert read(event, [A, B, C]) == ({A: "SUCCEEDED"}, {B: Code.PERMISSION_DENIED, C: Code.NOT_FOUND})


def test_unimplemented_ends_the_wait_at_once(emulator: DaiEmulator, make_trigger: MakeTrigger) -> None:
    names = [emulator.start_ingest() for _ in range(200)]
    emulator.inject(Fault(method=GET, rpc_status="UNIMPLEMENTED", times=None))
    event = fire_trigger(make_trigger(names))
    assert (event["status"], event["code"]) == ("error", "UNIMPLEMENTED")
    assert count(emulator, GET) < 100


def test_an_outage_ends_the_wait_with_one_error(
    emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock, log: Log
) -> None:
    names = [emulator.start_ingest() for _ in range(30)]
    emulator.inject(Fault(status=503, times=None))
    began = clock.now
    event = fire_trigger(make_trigger(names))
    assert (event["status"], event["code"]) == ("error", "UNAVAILABLE")
    assert MAX_OUTAGE <= clock.now - began < MAX_OUTAGE + 40
    assert len(log.lines("503")) < 5


def test_a_timeout_names_what_has_not_finished(emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock) -> None:
    emulator.start_ingest(A, seconds=0)
    emulator.start_ingest(B)
    event = fire_trigger(make_trigger([A, B], timeout=90))
    assert event["status"] == "timeout"
    with pytest.raises(WaitTimeoutError, match=f"1 of 2 operations have not finished within 90 s: {B}"):
        read_many_event(event, [A, B])
    with pytest.raises(WaitTimeoutError, match=rf"{B}\. {B} may still run\.$"):
        read_many_event(event, [A, B], "2 operations may still run")


@pytest.mark.parametrize("names", [[A], [A, B, C], [B, A], A])
def test_the_event_of_another_list_is_refused(emulator: DaiEmulator, make_trigger: MakeTrigger, names: Any) -> None:
    for name in (A, B, C):
        emulator.start_ingest(name, seconds=0)
    with pytest.raises(AirflowException, match="passed the event of"):
        read_many_event(fire_trigger(make_trigger(names)), [A, B])


def test_a_pause_holds_every_request(emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock) -> None:
    names = [emulator.start_ingest(seconds=0) for _ in range(400)]
    emulator.inject(Fault(method=GET, headers={"X-Fine": "yes"}, times=100))
    emulator.inject(Fault(method=GET, status=429, retry_after=20))
    event = fire_trigger(make_trigger(names))
    assert set(read(event, names)[0].values()) == {"SUCCEEDED"}
    times = [request.time for request in emulator.requests]
    refused = times[100]
    under_way = [time for time in times[101:] if time < refused + 20]
    assert len(under_way) < 2 * MAX_CONNECTIONS, "Only what was under way, or sent before the response was read."


@pytest.mark.parametrize("seconds", [200, 3600])
def test_one_response_that_asks_for_a_long_pause_ends_no_wait(
    emulator: DaiEmulator, make_trigger: MakeTrigger, seconds: int, clock: Clock
) -> None:
    names = [emulator.start_ingest(seconds=0) for _ in range(100)]
    emulator.inject(Fault(method=GET, status=429, retry_after=seconds))
    began = clock.now
    event = fire_trigger(make_trigger(names))
    assert set(read(event, names)[0].values()) == {"SUCCEEDED"}
    assert MAX_HELD <= clock.now - began < MAX_OUTAGE


# Its kill


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give a function that kills a trigger's task when a condition holds, as Airflow does; the waits really sleep."""

    async def state(*_: object) -> str:
        return "failed"

    monkeypatch.setattr(dai, "task_instance_state", state)
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(asyncio.sleep))

    def kill(trigger: DaiOperationTrigger, when: Callable[[], object]) -> None:
        async def main() -> None:
            running = asyncio.create_task(anext(trigger.run()))  # type: ignore[arg-type]
            await until(lambda: when() or running.done())
            monkeypatch.setattr(dai, "TRIGGERS_HAVE_ON_KILL", True)
            running.cancel()
            await asyncio.wait({running})
            await trigger.on_kill()
            await until(lambda: not dai._KILLS)

        run(main())

    return kill


def test_a_killed_task_cancels_what_has_not_finished(
    emulator: DaiEmulator, make_trigger: MakeTrigger, kill: Any, log: Log
) -> None:
    emulator.start_ingest(A, seconds=0)
    emulator.start_ingest(B)
    emulator.start_ingest(C)
    kill(stored(make_trigger([A, B, C], cancel_on_kill=True)), lambda: log.lines("1 of 3 finished"))
    assert [emulator.cancel_requested(name) for name in (A, B, C)] == [0, 1, 1]
    assert not log.lines("may still run")


def test_a_killed_task_cancels_what_cannot_be_polled(
    emulator: DaiEmulator, make_trigger: MakeTrigger, kill: Any, log: Log
) -> None:
    """It can run, as can one that the service is said not to know: an attempt costs less than a stray ingest."""
    names = [emulator.start_ingest(name) for name in (A, B, C)]
    emulator.inject(Fault(method=GET, name=A, rpc_status="PERMISSION_DENIED", times=None))
    kill(stored(make_trigger(names, cancel_on_kill=True)), lambda: log.lines("1 could not be polled"))
    assert [emulator.cancel_requested(name) for name in names] == [1, 1, 1]
    assert not log.lines("may still run")


def test_a_kill_before_the_first_poll_cancels_all(emulator: DaiEmulator, make_trigger: MakeTrigger, kill: Any) -> None:
    names = [emulator.start_ingest() for _ in range(100)]
    kill(stored(make_trigger(names, cancel_on_kill=True)), lambda: True)
    assert [emulator.cancel_requested(name) for name in names] == [1] * 100


def test_what_a_kill_could_not_cancel_is_named(
    emulator: DaiEmulator, make_trigger: MakeTrigger, kill: Any, log: Log
) -> None:
    emulator.start_ingest(A)
    emulator.start_ingest(B)
    emulator.inject(Fault(method=CANCEL, name=B, rpc_status="PERMISSION_DENIED", times=None))
    kill(stored(make_trigger([A, B], cancel_on_kill=True)), lambda: log.lines("0 of 2 finished"))
    assert emulator.cancel_requested(A) == 1
    assert [line for line in log.errors if f"{B} may still run" in line]


def test_a_kill_without_a_response_in_time_names_all_that_it_did_not_reach(
    emulator: DaiEmulator, make_trigger: MakeTrigger, kill: Any, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0.0
    monkeypatch.setattr(dai, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead, sleep=time.sleep))
    names = [emulator.start_ingest() for _ in range(100)]
    reached, hanging = names[:40], names[40:]
    for name in hanging:
        emulator.inject(Fault(method=CANCEL, name=name, delay=math.inf))
    trigger = stored(make_trigger(names, cancel_on_kill=True))

    async def main() -> None:
        nonlocal ahead
        killing = asyncio.create_task(trigger.on_kill())
        await until(lambda: trigger._left() == hanging)
        ahead = dai.KILL_SECONDS
        # As Airflow does about once a second: on_kill looks at the time again.
        killing.cancel()
        await killing
        emulator.stop()  # which ends the requests
        await until(lambda: not dai._KILLS)

    run(main())
    (line,) = [line for line in log.errors if "may still run: no response to the cancellation in time." in line]
    assert all(name in line for name in hanging)
    assert not any(name in line for name in reached)


@pytest.mark.parametrize("number", [1, 30])
def test_a_kill_without_a_look_up_of_the_task_names_all(
    emulator: DaiEmulator, make_trigger: MakeTrigger, kill: Any, log: Log, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    async def away(*_: object) -> None:
        raise RuntimeError("the API server is down")

    monkeypatch.setattr(dai, "task_instance_state", away)
    names = [emulator.start_ingest() for _ in range(number)]
    kill(stored(make_trigger(names, cancel_on_kill=True)), lambda: log.lines(f"0 of {number} finished"))
    (line,) = [line for line in log.errors if "may still run: its task was killed, but it was not cancelled" in line]
    assert all(name in line for name in names)


def test_without_cancel_on_kill_nothing_is_cancelled(
    emulator: DaiEmulator, make_trigger: MakeTrigger, kill: Any, log: Log
) -> None:
    names = [emulator.start_ingest() for _ in range(3)]
    kill(stored(make_trigger(names)), lambda: log.lines("0 of 3 finished"))
    assert count(emulator, CANCEL) == 0


def test_the_kill_of_a_damaged_trigger_is_told(
    emulator: DaiEmulator, make_trigger: MakeTrigger, kill: Any, log: Log
) -> None:
    kill(make_trigger("packed:no such text", cancel_on_kill=True), lambda: True)
    assert [line for line in log.errors if "may still run" in line and "compressed JSON value" in line]
    assert emulator.requests == []
