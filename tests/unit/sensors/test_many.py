"""The sensor with a list of operations: what differs from one. The table of results is in test_deferrable.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowSensorTimeout, BaseSensorOperator, TaskDeferred

from airflow_dai_provider.api.batched_polls import MIN_POLLS
from airflow_dai_provider.api.storable import pack
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from airflow_dai_provider.tasks.failures import OperationNotFoundError, UnexpectedStateError
from tests.support.airflow_versions import AirflowRescheduleException
from tests.support.clock import Clock
from tests.support.emulators import count
from tests.support.event_loop import fire
from tests.support.log import Log
from tests.support.task_instance import Store

pytestmark = pytest.mark.usefixtures("sensor_time")

GET, CANCEL, LIST = "operations.get", "operations.cancel", "operations.list"
A, B, C = NAMES = [f"operations/{letter}" for letter in "abc"]


@pytest.fixture
def context(context: dict[str, Any]) -> dict[str, Any]:
    return {**context, "task_state_store": Store()}


def make(names: Any = NAMES, **options: Any) -> DaiOperationSensor:
    options = {"poke_interval": 10.0, "timeout": 100.0, **options}
    return DaiOperationSensor(task_id="wait", operation_name=names, **options)


def poke_by_poke(context: Any, clock: Clock, between: Callable[[], None] = lambda: None, **options: Any) -> Any:
    """Execute a sensor in reschedule mode, each poke as another process does."""
    while True:
        try:
            return make(mode="reschedule", **options).execute(context)
        except AirflowRescheduleException as later:
            clock.now = later.reschedule_date.timestamp()
            between()


def defer(context: Any, **options: Any) -> Any:
    with pytest.raises(TaskDeferred) as raised:
        make(deferrable=True, **options).execute(context)
    deferred = raised.value
    event = json.loads(json.dumps(fire(deferred)))
    resumed = make(deferrable=True, **options)
    return resumed.resume_execution(deferred.method_name, {**(deferred.kwargs or {}), "event": event}, context)


MODES = {
    "poke": lambda context, _, **options: make(**options).execute(context),
    "reschedule": poke_by_poke,
    "deferrable": lambda context, _, **options: defer(context, **options),
}
modes = pytest.mark.parametrize("mode", MODES)


@modes
def test_a_list_gives_a_list_in_its_order(emulator: DaiEmulator, context: Any, clock: Clock, mode: str) -> None:
    for number, name in enumerate(NAMES):
        emulator.start_ingest(name, seconds=30 - 10 * number)
    result = MODES[mode](context, clock, names=[C, A, B, A])
    assert [one["name"] for one in result] == [C, A, B, A]
    assert {one["state"] for one in result} == {"SUCCEEDED"}
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_an_empty_list_is_fine_and_the_log_says_so(
    emulator: DaiEmulator, context: Any, clock: Clock, log: Log, mode: str
) -> None:
    assert MODES[mode](context, clock, names=[]) == []
    assert len(log.lines("The list of operations is empty: there is nothing to wait for.")) == 1
    assert make([], deferrable=True).execute(context) == []
    assert len(log.lines("The list of operations is empty: there is nothing to wait for.")) == 2
    assert emulator.requests == []


@modes
def test_what_has_finished_is_not_polled_again(emulator: DaiEmulator, context: Any, clock: Clock, mode: str) -> None:
    emulator.start_ingest(A, seconds=0)
    emulator.start_ingest(B, seconds=45)
    MODES[mode](context, clock, names=[A, B])
    polled = [request.name for request in emulator.requests if request.method == GET]
    # The trigger polls each once more, since the task and the triggerer share no memory.
    assert polled.count(A) == (2 if mode == "deferrable" else 1)
    assert polled.count(B) > 3


@modes
def test_many_operations_are_polled_by_pages_of_the_list(
    emulator: DaiEmulator, context: Any, clock: Clock, mode: str
) -> None:
    names = [emulator.start_ingest(seconds=45) for _ in range(2 * MIN_POLLS)]
    assert [one["name"] for one in MODES[mode](context, clock, names=names)] == names
    assert count(emulator, LIST) >= 4
    assert count(emulator, GET) < 3 * len(names)


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_what_is_believed_to_be_unknown_is_not_polled_again(
    emulator: DaiEmulator, context: Any, clock: Clock, mode: str
) -> None:
    emulator.start_ingest(A, seconds=60)
    began = clock.now
    result = MODES[mode](context, clock, names=[A, B], missing_ok=True)
    assert [one and one["name"] for one in result] == [A, None]
    assert max(request.time for request in emulator.requests if request.name == B) <= began + 11
    assert clock.now >= began + 60


def test_another_try_polls_again_what_could_not_be_polled(emulator: DaiEmulator, context: Any, clock: Clock) -> None:
    for name in (A, B):
        emulator.start_ingest(name, seconds=400)
    emulator.inject(Fault(method=GET, name=B, status=503, lasts=350))
    with pytest.raises(AirflowException, match=rf"1 of 2 operations could not be polled \(1 UNAVAILABLE\): {B}"):
        poke_by_poke(context, clock, names=[A, B], timeout=1000.0)
    assert clock.now >= 1_750_000_000 + 400
    sent = len(emulator.requests)
    context["ti"].try_number = 2
    assert [one["state"] for one in poke_by_poke(context, clock, names=[A, B])] == ["SUCCEEDED"] * 2
    assert [request.name for request in emulator.requests[sent:]] == [B]


def test_without_a_store_each_poke_polls_the_whole_list(emulator: DaiEmulator, context: Any, clock: Clock) -> None:
    del context["task_state_store"]
    emulator.start_ingest(A, seconds=0)
    emulator.start_ingest(B, seconds=45)
    assert [one["state"] for one in poke_by_poke(context, clock, names=[A, B])] == ["SUCCEEDED"] * 2
    polled = [request.name for request in emulator.requests if request.method == GET]
    assert polled.count(A) == polled.count(B) > 3


def test_a_store_with_something_else_is_not_believed(emulator: DaiEmulator, context: Any, clock: Clock) -> None:
    for value in ([1], {"finished": [1]}, {"finished": [], "try_number": 1, "failed": {A: ["NONE", ""]}}, {}):
        context["task_state_store"].kept["dai_sensor"] = {"max_tries": 0, "value": pack(value)}
        name = emulator.start_ingest(seconds=0)
        assert [one["name"] for one in poke_by_poke(context, clock, names=[name])] == [name]
    for kept in ("nonsense", {"max_tries": 0, "value": "nonsense"}, [1]):
        context["task_state_store"].kept["dai_sensor"] = kept
        name = emulator.start_ingest(seconds=0)
        assert [one["name"] for one in poke_by_poke(context, clock, names=[name])] == [name]


@modes
def test_an_unexpected_end_is_told_when_it_is_seen_and_judged_when_all_have_finished(
    emulator: DaiEmulator, context: Any, clock: Clock, log: Log, mode: str
) -> None:
    emulator.start_ingest(A, seconds=5, outcome="INVALID_MEDIA")
    emulator.start_ingest(B, seconds=60)
    emulator.start_ingest(C, seconds=60)
    expected = (
        r"1 of 3 operations have finished unexpectedly \(1 FAILED INVALID_MEDIA; .* only CANCELLED, SUCCEEDED\): Ing"
    )
    with pytest.raises(UnexpectedStateError, match=expected):
        MODES[mode](context, clock)
    assert clock.now - 1_750_000_000 >= 60
    told = [line for line in log.ours if line.startswith("Ingest of") and "failed: INVALID_MEDIA" in line]
    assert len(told) == 1
    assert any("1 of 3 finished: 1 failed" in line for line in log.ours)


@modes
def test_missing_operations_are_none_in_their_place_or_fail_the_task(
    emulator: DaiEmulator, context: Any, clock: Clock, mode: str
) -> None:
    emulator.start_ingest(A, seconds=0)
    result = MODES[mode](context, clock, names=[B, A], missing_ok=True)
    assert [one and one["name"] for one in result] == [None, A]
    with pytest.raises(OperationNotFoundError, match=f"1 of 2 operations could not be polled .*{B}.*missing_ok=True"):
        MODES[mode]({**context, "task_state_store": Store()}, clock, names=[B, A])


@modes
def test_one_that_cannot_be_polled_does_not_end_the_wait_for_the_others(
    emulator: DaiEmulator, context: Any, clock: Clock, mode: str
) -> None:
    for name in NAMES:
        emulator.start_ingest(name, seconds=40)
    emulator.inject(Fault(method=GET, name=B, rpc_status="PERMISSION_DENIED", times=None))
    with pytest.raises(AirflowException, match=r"1 of 3 operations could not be polled \(1 PERMISSION_DENIED\)"):
        MODES[mode](context, clock)
    assert clock.now - 1_750_000_000 >= 40


@modes
def test_a_timeout_names_what_has_not_finished(emulator: DaiEmulator, context: Any, clock: Clock, mode: str) -> None:
    emulator.start_ingest(A, seconds=0)
    emulator.start_ingest(B)
    with pytest.raises(AirflowSensorTimeout) as raised:
        MODES[mode](context, clock, names=[A, B])
    assert B in str(raised.value)
    assert count(emulator, CANCEL) == 0


def test_a_kill_cancels_what_has_not_finished(emulator: DaiEmulator, context: Any, monkeypatch: Any) -> None:
    emulator.start_ingest(A, seconds=0)
    for name in (B, C):
        emulator.start_ingest(name)
    sensor = make(cancel_on_kill=True)
    base = sys.modules[BaseSensorOperator.__module__]

    def kill(_: float) -> None:
        sensor.on_kill()
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "time", SimpleNamespace(sleep=kill, monotonic=lambda: 0.0))
    with pytest.raises(KeyboardInterrupt):
        sensor.execute(context)
    assert sorted(request.name or "" for request in emulator.requests if request.method == CANCEL) == [B, C]
