"""A retry of a task with a list of creatives keeps what succeeded, reattaches to what runs, and starts the rest."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred

from airflow_dai_provider.api.creative import creative_digest
from airflow_dai_provider.api.storable import unpack
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.ingest.outcome import IngestFailedError
from airflow_dai_provider.ingest.reattach import KEY
from airflow_dai_provider.tasks.failures import UnexpectedStateError
from tests.support.airflow_versions import DEFERRAL_TIMED_OUT
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator, cancel_from_outside, count
from tests.support.ingests import CANCEL, CREATE, GET, LIST, both, execute, make, resume, url
from tests.support.log import Log
from tests.support.payloads import creative
from tests.support.task_instance import Store, Ti

pytestmark = pytest.mark.usefixtures("_time")


def creatives(number: int, **plan: Any) -> list[dict[str, Any]]:
    return [creative(url(index, **plan)) for index in range(number)]


THREE = creatives(3)


def fail_first_try(context: Any, ti: Ti, **options: Any) -> None:
    ti.max_tries = 1
    with pytest.raises(AirflowException, match="within 10 s"):
        execute(context, timeout=10, **{"creative": THREE, **options})
    ti.try_number = 2
    ti.pushed.clear()  # as Airflow does


@both
def test_the_next_try_reattaches_to_all_that_run(
    slow: DaiEmulator, context: Any, ti: Ti, store: Store, log: Log, deferrable: bool
) -> None:
    fail_first_try(context, ti, deferrable=deferrable)
    assert {saved["operation_name"] for saved in unpack(store.kept[KEY])} == set(slow.states())
    names = execute(context, creative=THREE, deferrable=deferrable)
    assert sorted(names) == sorted(slow.states())
    assert count(slow, CREATE) == 3
    assert count(slow, CANCEL) == 0
    assert ti.pushed["ingest", -1, "operation_name"] == names
    assert ti.pushed["ingest", -1, "operation_started"]["try_number"] == 2
    assert store.kept == {}
    assert "Reattached to ingests of an earlier try, which started 3: 3 running. Starting 0." in log.ours


@both
@pytest.mark.parametrize(("retry_on", "part"), [(None, 1), ("INTERNAL_ERROR", 10)])
def test_a_retry_sends_exactly_the_right_requests(
    slow: DaiEmulator, context: Any, ti: Ti, store: Store, retry_on: Any, part: int, deferrable: bool
) -> None:
    """500 have succeeded, 200 run, 10 have failed, and 290 were never started; or a part of each."""
    succeeded, running, failed, unstarted = (number // part for number in (500, 200, 10, 290))
    plans = [{"seconds": 1}] * succeeded + [{"seconds": 40}] * running
    plans += [{"seconds": 1, "outcome": "INTERNAL_ERROR"}] * failed + [{"seconds": 1}] * unstarted
    every = [creative(url(number, **plan)) for number, plan in enumerate(plans)]
    fail_first_try(context, ti, creative=every[:-unstarted])
    assert Counter(slow.states().values()) == {"SUCCEEDED": succeeded, "RUNNING": running, "FAILED": failed}
    assert len(unpack(store.kept[KEY])) == succeeded + running + failed
    before = len(slow.requests)
    with pytest.raises(
        UnexpectedStateError if retry_on is None else IngestFailedError, match=f"{failed} INTERNAL_ERROR: "
    ):
        execute(context, creative=every, retry_on=retry_on, deferrable=deferrable)
    called = Counter(request.method for request in slow.requests[before:])
    assert called[CREATE] == (unstarted if retry_on is None else unstarted + failed)
    assert called[CANCEL] == 0
    assert Counter(slow.states().values())["SUCCEEDED"] == succeeded + running + unstarted
    names = [row["name"] for row in ti.pushed["ingest", -1, "operation"]]
    assert len(set(names)) == len(every)


def test_a_refused_start_is_started_by_the_retry(slow: DaiEmulator, context: Any, ti: Ti, clock: Clock) -> None:
    ti.max_tries = 1
    slow.inject(Fault(CREATE, status=429, times=None, lasts=1000))
    with pytest.raises(IngestFailedError, match="Not started: 3 RESOURCE_EXHAUSTED"):
        execute(context, creative=THREE, wait_for_completion=False)
    clock.advance(2000)
    ti.try_number = 2
    assert sorted(execute(context, creative=THREE)) == sorted(slow.states())


def test_after_a_clear_what_has_finished_is_started_anew(slow: DaiEmulator, context: Any, ti: Ti, clock: Clock) -> None:
    mixed = [creative(url(0, seconds=5)), creative(url(1, seconds=500))]
    fail_first_try(context, ti, creative=mixed)
    ti.max_tries = 3
    first, second = execute(context, creative=mixed, timeout=900)
    assert Counter(slow.states().values()) == {"SUCCEEDED": 3}
    assert count(slow, CREATE) == 3
    assert list(slow.states()).index(second) < list(slow.states()).index(first)


def test_a_task_that_does_not_wait_leaves_the_ingests_that_are_being_cancelled(
    slow: DaiEmulator, context: Any, ti: Ti, clock: Clock
) -> None:
    """A running task was cleared: its kill has requested the cancellation of one of them seconds ago."""
    first = execute(context, creative=THREE, wait_for_completion=False)
    ti.try_number = 2
    cancel_from_outside(slow, first[1])
    began = clock.now
    second = execute(context, creative=THREE, wait_for_completion=False)
    assert [second[0], second[2]] == [first[0], first[2]]
    assert slow.state(first[1]) == "CANCELLED"
    assert [slow.state(name) for name in second] == ["RUNNING"] * 3
    assert clock.now - began < 30


def test_what_is_no_longer_in_the_list_is_cancelled_first(slow: DaiEmulator, context: Any, ti: Ti, log: Log) -> None:
    fail_first_try(context, ti)
    other = creative(url(7))
    names = execute(context, creative=[THREE[0], other])
    assert Counter(slow.states().values()) == {"SUCCEEDED": 2, "CANCELLED": 2}
    assert all(slow.states()[name] == "SUCCEEDED" for name in names)
    assert "with other creatives" in log.text
    assert count(slow, CREATE) == 4


@pytest.mark.parametrize("to_list", [True, False])
def test_a_list_takes_over_from_a_single_creative_and_back(
    slow: DaiEmulator, context: Any, ti: Ti, to_list: bool
) -> None:
    fail_first_try(context, ti, creative=THREE[0] if to_list else THREE)
    result = execute(context, creative=THREE if to_list else THREE[1])
    states = Counter(slow.states().values())
    assert states == ({"SUCCEEDED": 3} if to_list else {"SUCCEEDED": 1, "CANCELLED": 2})
    assert count(slow, CREATE) == 3
    assert slow.states()[result[1] if to_list else result] == "SUCCEEDED"


@pytest.mark.parametrize("left", ["one", "list of one", "empty list"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_shortened_list_is_handled_side_by_side(
    slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch, left: str, killed: bool
) -> None:
    """What runs of it is polled and cancelled by as many threads as the longer list has, also by a kill."""
    before = creatives(40)
    fail_first_try(context, ti, creative=before)
    operator = make(creative={"one": before[0], "list of one": before[:1], "empty list": []}[left])
    push, pushed = ti.xcom_push, list[Any]()

    def watched(key: str, value: Any) -> None:
        push(key, value)
        if key == "operation_name":
            pushed.append(value)
            if killed:
                operator.on_kill()
                raise KeyboardInterrupt  # as Airflow 2 does

    monkeypatch.setattr(ti, "xcom_push", watched, raising=False)
    sent = len(slow.requests)
    slow.unimplement(LIST)
    for method in (GET, CANCEL):
        slow.inject(Fault(method, delay=0.1, times=40))
    with suppress(KeyboardInterrupt):
        operator.execute(context)
    for method in {CANCEL} if killed else {CANCEL, GET}:
        used = {request.connection for request in slow.requests[sent:] if request.method == method}
        assert len(used) > 10
    assert len(slow.states()) == 40
    assert {slow.cancel_requested(name) for name, state in slow.states().items() if state != "SUCCEEDED"} == {1}
    assert sorted(pushed[0]) == sorted(slow.states())
    if left == "one" and not killed:
        assert pushed[1:] == [name for name, state in slow.states().items() if state == "SUCCEEDED"]


@pytest.mark.parametrize("left", ["one", "list of one"])
def test_a_value_error_of_airflow_leaves_the_ingests_of_a_longer_list_to_the_next_try(
    slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    before = creatives(3)
    fail_first_try(context, ti, creative=before)
    ti.max_tries = ti.try_number

    def broken(*_: object) -> None:
        raise ValueError("The XCom backend cannot encode this.")

    monkeypatch.setattr(ti, "xcom_push", broken, raising=False)
    with pytest.raises(ValueError, match="XCom backend"):
        make(creative={"one": before[0], "list of one": before[:1]}[left]).execute(context)
    assert [slow.cancel_requested(name) for name in slow.states()] == [0, 0, 0]


def test_what_was_cancelled_between_the_tries_is_started_anew(
    slow: DaiEmulator, context: Any, ti: Ti, clock: Clock
) -> None:
    fail_first_try(context, ti)
    victim = next(iter(slow.states()))
    cancel_from_outside(slow, victim)
    clock.advance(5)
    names = execute(context, creative=THREE)
    assert victim not in names
    assert count(slow, CREATE) == 4


@both
def test_what_a_late_guard_cancels_after_the_reattachment_is_started_anew(
    slow: DaiEmulator, context: Any, ti: Ti, log: Log, between_polls: Any, deferrable: bool
) -> None:
    fail_first_try(context, ti)
    victim = next(iter(slow.states()))
    if deferrable:
        with pytest.raises(TaskDeferred) as deferred:
            make(creative=THREE, deferrable=True).execute(context)
        cancel_from_outside(slow, victim)
        names = resume(deferred.value, context, creative=THREE)
    else:
        between_polls(lambda: cancel_from_outside(slow, victim))
        names = execute(context, creative=THREE)
    assert victim not in names
    assert count(slow, CREATE) == 4
    assert "An earlier try started and cancelled 1 of the ingests. Starting new ones." in log.ours


@pytest.mark.parametrize("end", ["event", "no triggerer", "all"])
def test_a_deferral_waits_only_for_what_has_not_finished(
    slow: DaiEmulator, context: Any, ti: Ti, clock: Clock, end: str
) -> None:
    mixed = [creative(url(0, seconds=5)), creative(url(1, seconds=500)), creative(url(2, seconds=5))]
    fail_first_try(context, ti, creative=mixed)
    if end == "all":
        clock.advance(1000)
        names = execute(context, creative=mixed, deferrable=True)
    else:
        before = len(slow.requests)
        with pytest.raises(TaskDeferred) as deferred:
            make(creative=mixed, deferrable=True).execute(context)
        polled = [request.name for request in slow.requests[before:] if request.method == GET]
        running = [name for name, state in slow.states().items() if state == "RUNNING"]
        assert deferred.value.trigger.operation_name == running
        assert [row["state"] for row in ti.pushed["ingest", -1, "operation"]] == ["SUCCEEDED", "RUNNING", "SUCCEEDED"]
        if end == "event":
            names = resume(deferred.value, context, creative=mixed)
        else:
            clock.advance(4000)
            failed = {"error": DEFERRAL_TIMED_OUT}
            names = make(creative=mixed, deferrable=True).resume_execution("__fail__", failed, context)
        polled = [request.name for request in slow.requests[before:] if request.method == GET][len(polled) :]
        assert set(polled) == set(running)
    assert sorted(names) == sorted(slow.states())
    assert [row["state"] for row in ti.pushed["ingest", -1, "operation"]] == ["SUCCEEDED"] * 3
    assert count(slow, CREATE) == 3


@both
@pytest.mark.parametrize("late", [True, False])
def test_the_time_of_a_late_guard_ends_for_each_ingest_when_its_end_is_seen(
    slow: DaiEmulator, context: Any, ti: Ti, clock: Clock, monkeypatch: pytest.MonkeyPatch, deferrable: bool, late: bool
) -> None:
    long = [creative(url(0, seconds=600)), creative(url(1, seconds=600))]
    fail_first_try(context, ti, creative=long)
    hook = DaiAsyncHook if deferrable else DaiHook
    sleep, victim, at = hook._sleep, next(iter(slow.states())), clock() + (20 if late else 250)
    pending = [victim]

    def sleeping(seconds: float) -> Any:
        if pending and clock() >= at:
            cancel_from_outside(slow, pending.pop())
        return sleep(seconds)

    monkeypatch.setattr(hook, "_sleep", staticmethod(sleeping))
    if late:
        assert victim not in execute(context, creative=long, deferrable=deferrable)
    else:
        with pytest.raises(UnexpectedStateError, match="1 of 2 ingests have succeeded. Did not succeed: 1 CANCEL"):
            execute(context, creative=long, deferrable=deferrable)
    assert count(slow, CREATE) == 2 + late


@both
@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ([Fault(CREATE, drop="after"), Fault(LIST, rpc_status="PERMISSION_DENIED", times=None)], "UNKNOWN"),
        ([Fault(CREATE, rpc_status="INVALID_ARGUMENT")], "INVALID_ARGUMENT"),
    ],
    ids=["in doubt", "refused"],
)
def test_a_late_guard_starts_no_other_creative_again(
    slow: DaiEmulator,
    context: Any,
    ti: Ti,
    between_polls: Any,
    faults: list[Fault],
    code: str,
    deferrable: bool,
) -> None:
    fail_first_try(context, ti, creative=THREE[:1])
    for fault in faults:
        slow.inject(fault)
    victim = next(iter(slow.states()))
    second_try = partial(execute, context, creative=THREE[:2])
    if deferrable:
        with pytest.raises(TaskDeferred) as deferred:
            make(creative=THREE[:2], deferrable=True).execute(context)
        cancel_from_outside(slow, victim)
        second_try = partial(resume, deferred.value, context, creative=THREE[:2])
    else:
        between_polls(lambda: cancel_from_outside(slow, victim))
    with pytest.raises(AirflowFailException, match=f"1 of 2 ingests have succeeded. Not started: 1 {code}"):
        second_try()
    media = [json.loads(one.body)["creative"]["mediaFiles"][0]["uri"] for one in slow.requests if one.method == CREATE]
    assert media == [url(0), url(1), url(0)]


def test_what_the_service_no_longer_knows_is_started_anew(slow: DaiEmulator, context: Any, ti: Ti) -> None:
    fail_first_try(context, ti)
    slow.inject(Fault(GET, rpc_status="NOT_FOUND", times=None, name=next(iter(slow.states())), lasts=12))
    assert len(execute(context, creative=THREE)) == 3
    assert count(slow, CREATE) == 4


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 404, "html": True}], ids=str)
def test_an_outage_is_borne(slow: DaiEmulator, context: Any, ti: Ti, fault: Any) -> None:
    fail_first_try(context, ti)
    slow.inject(Fault(GET, times=20, **fault))
    assert sorted(execute(context, creative=THREE)) == sorted(slow.states())
    assert count(slow, CREATE) == 3


@pytest.mark.parametrize("rpc_status", ["PERMISSION_DENIED", "UNIMPLEMENTED"])
def test_a_refused_poll_starts_nothing_until_the_task_is_cleared_again(
    slow: DaiEmulator, context: Any, ti: Ti, store: Store, log: Log, rpc_status: str
) -> None:
    fail_first_try(context, ti)
    first = next(iter(slow.states()))
    # UNIMPLEMENTED holds for each of them.
    slow.inject(Fault(GET, rpc_status=rpc_status, times=None, name=None if rpc_status == "UNIMPLEMENTED" else first))
    four = [*THREE, creative(url(7))]
    for _ in range(2):
        with pytest.raises(AirflowFailException, match=f"{rpc_status}.*{first}.*which an earlier try.*clear the task"):
            execute(context, creative=four, wait_for_completion=False)
    assert count(slow, CREATE) == 3
    ti.max_tries = 3  # as a clear sets it
    execute(context, creative=four, wait_for_completion=False)
    again = "may still run. The task was cleared after it had reported this. Starting new ingests."
    assert any(first in line and line.endswith(again) for line in log.ours)


def test_a_refused_poll_cancels_nothing_that_has_finished(
    slow: DaiEmulator, context: Any, ti: Ti, clock: Clock
) -> None:
    fail_first_try(context, ti)
    clock.advance(100)
    first, *others = slow.states()
    slow.inject(Fault(GET, rpc_status="PERMISSION_DENIED", times=None, name=first))
    with pytest.raises(AirflowFailException, match=f"{first}.*which an earlier try"):
        execute(context, creative=THREE)
    sent = [request.name for request in slow.requests if request.method == CANCEL]
    assert sent == [first]
    assert set(others) == {name for name, state in slow.states().items() if state == "SUCCEEDED"} - {first}


def test_a_store_of_another_endpoint_is_told_of_and_left_alone(
    slow: DaiEmulator, make_emulator: MakeEmulator, context: Any, ti: Ti, log: Log
) -> None:
    fail_first_try(context, ti)
    new = make_emulator(ingest_seconds=5)
    assert len(execute(context, creative=THREE)) == 3
    assert count(new, CREATE) == 3
    assert count(slow, CANCEL) == 0
    assert all(f"{name} may still run at {slow.endpoint}" in log.text for name in slow.states())


def test_the_store_holds_one_entry_for_each(slow: DaiEmulator, context: Any, store: Store) -> None:
    execute(context, creative=[*THREE, THREE[0]], wait_for_completion=False)
    assert {saved["digest"] for saved in unpack(store.kept[KEY])} == {creative_digest(one, None) for one in THREE}
    assert len(unpack(store.kept[KEY])) == 3
    assert {saved["operation_name"] for saved in unpack(store.kept[KEY])} == set(slow.states())
