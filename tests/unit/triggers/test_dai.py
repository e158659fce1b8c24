"""The trigger: what it looks at and when, what it fires, and what it cancels when its task is killed."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from airflow.triggers.base import BaseTrigger

from airflow_dai_provider.api.polling import MAX_OUTAGE
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook
from airflow_dai_provider.transport import pool
from airflow_dai_provider.triggers import dai
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from airflow_dai_provider.version_compat import TRIGGERS_HAVE_ON_KILL
from tests.support.event_loop import Gate, TokenService, define_connection, run, until
from tests.support.tiny_server import TinyServer

if TYPE_CHECKING:
    from conftest import Clock, Log

MakeTrigger = Callable[..., DaiOperationTrigger]

#: None of them what the constructor would take by itself.
ARGUMENTS: dict[str, Any] = {
    "operation_name": "operations/a/b",
    "poll_interval": 7.5,
    "started": 1_749_999_000.25,
    "timeout": 86400.0,
    "max_outage": None,
    "cancel_on_kill": True,
    "gcp_conn_id": "another",
    "impersonation_chain": ["a@p.iam.gserviceaccount.com", "b@p.iam.gserviceaccount.com"],
    "api_endpoint": "dai.example:8443",
}


@pytest.fixture
def make_trigger(clock: Clock) -> MakeTrigger:
    """Give a function that makes a trigger whose wait begins now."""
    return lambda name, **arguments: DaiOperationTrigger(name, **{"started": clock.now, **arguments})


def fire(trigger: DaiOperationTrigger) -> dict[str, Any]:
    """Run a trigger to its end; return the payload of its only event, as it is after a journey as JSON."""

    async def main() -> list[Any]:
        try:
            return [event.payload async for event in trigger.run()]
        finally:
            await trigger.cleanup()

    (payload,) = run(main())
    result: dict[str, Any] = json.loads(json.dumps(payload, allow_nan=False))
    assert result == payload
    return result


def again(trigger: DaiOperationTrigger) -> DaiOperationTrigger:
    """Return what another triggerer makes of a trigger."""
    path, arguments = json.loads(json.dumps(trigger.serialize()))
    module, _, name = path.rpartition(".")
    made: DaiOperationTrigger = getattr(import_module(module), name)(**arguments)
    return made


# How it is made


def test_every_argument_survives_a_journey() -> None:
    parameters = set(inspect.signature(DaiOperationTrigger.__init__).parameters) - {"self"}
    assert parameters == set(ARGUMENTS)
    assert all(
        parameter.default != ARGUMENTS[name]
        for name, parameter in inspect.signature(DaiOperationTrigger.__init__).parameters.items()
        if name != "self"
    )
    trigger = DaiOperationTrigger(**ARGUMENTS)
    assert trigger.serialize() == ("airflow_dai_provider.triggers.dai.DaiOperationTrigger", ARGUMENTS)
    assert again(trigger).serialize() == trigger.serialize()


def test_the_wait_begins_when_the_trigger_is_made_first() -> None:
    before = time.time()
    trigger = DaiOperationTrigger("operations/a")
    assert before <= trigger.started <= time.time()
    assert again(trigger).started == trigger.started


def test_nothing_is_sent_before_it_runs(make_emulator: Any) -> None:
    emulator = make_emulator()
    DaiOperationTrigger(emulator.start_ingest())
    assert emulator.requests == []


# What it looks at


def test_looks_are_quick_at_first_and_grow_by_half(
    emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock, slept: list[float]
) -> None:
    began = clock.now
    fire(make_trigger(emulator.start_ingest(seconds=60), poll_interval=15))
    assert slept == pytest.approx([1, 1.5, 2.25, 3.375, 5.0625, 7.59375, 11.390625, 15, 15])
    looks = [request.time - began for request in emulator.requests]
    assert looks[:2] == pytest.approx([0, 1])
    assert len(looks) == len(slept) + 1
    assert emulator.connections == 1


def test_a_wait_that_goes_on_elsewhere_keeps_its_pace(
    emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock, slept: list[float]
) -> None:
    """A triggerer that restarts does not begin with quick looks again."""
    trigger = again(make_trigger(emulator.start_ingest(seconds=200)))
    clock.advance(100)
    fire(trigger)
    assert slept == [30] * 4


def test_a_restart_in_the_middle_does_not_move_the_deadline(
    emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = clock.now
    first = make_trigger(emulator.start_ingest(), timeout=100, cancel_on_kill=False)
    quick_sleep = DaiAsyncHook._sleep

    async def sleep_until_the_restart(seconds: float) -> None:
        if clock.now - began > 40:
            await asyncio.Event().wait()
        await quick_sleep(seconds)

    async def main() -> None:
        monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(sleep_until_the_restart))
        running = asyncio.create_task(anext(first.run()))  # type: ignore[arg-type]
        await until(lambda: clock.now - began > 40)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await first.cleanup()

    run(main())
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(quick_sleep))
    clock.advance(20)

    event = fire(again(first))

    assert event["status"] == "timeout"
    assert clock.now - began == pytest.approx(100)


def test_arguments_reach_the_hook(
    make_emulator: Any, make_trigger: MakeTrigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = make_emulator()
    monkeypatch.delenv("DAI_EMULATOR_HOST")
    define_connection(monkeypatch, "another", is_anonymous=True, dai_api_endpoint=emulator.endpoint)
    name = emulator.start_ingest(seconds=0)
    assert fire(make_trigger(name, gcp_conn_id="another"))["status"] == "ended"
    define_connection(monkeypatch, "another", is_anonymous=True)
    assert fire(make_trigger(name, gcp_conn_id="another", api_endpoint=emulator.endpoint))["status"] == "ended"
    assert len(emulator.requests) == 2

    trigger = DaiOperationTrigger(**ARGUMENTS)
    assert trigger._make_hook()._hook_kwargs["impersonation_chain"] == ARGUMENTS["impersonation_chain"]


# What it fires


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELLED"])
def test_an_end(emulator: DaiEmulator, make_trigger: MakeTrigger, state: str, log: Log) -> None:
    outcome = {"outcome": "DOWNLOAD_ERROR", "code": 403} if state == "FAILED" else {}
    name = emulator.start_ingest(seconds=1e9 if state == "CANCELLED" else 3, **outcome)

    async def cancel() -> None:
        await DaiAsyncHook().cancel_operation(name)

    if state == "CANCELLED":
        run(cancel())

    event = fire(make_trigger(name))

    assert set(event) == {"operation_name", "status", "operation"}
    assert event["status"] == "ended"
    assert (event["operation"]["name"], event["operation"]["state"]) == (name, state)
    assert any(f"{name} is {state}" in line or state in line for line in log.ours)
    if state == "FAILED":
        assert event["operation"]["ingest"]["failure_reason"] == "DOWNLOAD_ERROR"


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ({"rpc_status": "UNIMPLEMENTED"}, "UNIMPLEMENTED", "501 UNIMPLEMENTED"),
        ({"status": 403}, "PERMISSION_DENIED", "403 PERMISSION_DENIED"),
        ({"status": 404}, "NOT_FOUND", "404 NOT_FOUND"),
        ({"status": 404, "body": b"<html>"}, "UNIMPLEMENTED", "is the endpoint right"),
        ({"status": 401}, "UNAUTHENTICATED", "401 UNAUTHENTICATED"),
        ({"rpc_status": "FAILED_PRECONDITION"}, "FAILED_PRECONDITION", "400 FAILED_PRECONDITION"),
        ({"rpc_status": "DATA_LOSS"}, "DATA_LOSS", "500 DATA_LOSS"),
        ({"status": 503}, "UNAVAILABLE", "503 UNAVAILABLE"),
        ({"status": 200, "body": b"[]"}, "UNKNOWN", "expected a JSON object"),
        ({"status": 504}, "DEADLINE_EXCEEDED", "504 DEADLINE_EXCEEDED"),
    ],
)
def test_an_error(
    emulator: DaiEmulator, make_trigger: MakeTrigger, fault: Any, code: str, words: str, log: Log
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(**fault, times=None))

    event = fire(make_trigger(name))

    assert set(event) == {"operation_name", "status", "code", "message"}
    assert (event["status"], event["code"]) == ("error", code)
    assert words in event["message"]
    assert any(f"The wait for {name} is over" in line for line in log.ours)
    assert emulator.cancel_requested(name) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ({"name": "creatives/a"}, "INVALID_ARGUMENT", "Invalid operation name 'creatives/a'"),
        ({"name": None}, "INVALID_ARGUMENT", "Invalid operation name None"),
        ({"poll_interval": -1}, "INVALID_ARGUMENT", "Invalid poll_interval -1"),
        ({"timeout": "soon"}, "INVALID_ARGUMENT", "Invalid timeout 'soon'"),
        ({"api_endpoint": "http://a/b"}, "INVALID_ARGUMENT", "Invalid api_endpoint"),
    ],
)
def test_arguments_that_make_no_sense(
    emulator: DaiEmulator,
    make_trigger: MakeTrigger,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    code: str,
    words: str,
) -> None:
    define_connection(monkeypatch, is_anonymous=True)
    event = fire(make_trigger(**{"name": "operations/a", **arguments}))
    assert (event["status"], event["code"]) == ("error", code)
    assert words in event["message"]
    assert emulator.requests == []


@pytest.mark.parametrize(
    ("extra", "code", "words"),
    [
        ({"key_path": "/nowhere/key.json"}, "UNAUTHENTICATED", "/nowhere/key.json"),
        ({"keyfile_dict": "{}", "dai_api_endpoint": "http://dai.example"}, None, ""),
        ({"is_anonymous": True, "dai_api_endpoint": "not an endpoint"}, "INVALID_ARGUMENT", "dai_api_endpoint"),
    ],
)
def test_a_connection_that_makes_no_sense(
    make_trigger: MakeTrigger,
    monkeypatch: pytest.MonkeyPatch,
    extra: dict[str, Any],
    code: str | None,
    words: str,
) -> None:
    monkeypatch.delenv("DAI_EMULATOR_HOST", raising=False)
    define_connection(monkeypatch, **extra)
    event = fire(make_trigger("operations/a"))
    assert event["status"] == "error"
    assert code in (None, event["code"])
    assert words in event["message"]


def test_the_time_is_up(emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock) -> None:
    began, name = clock.now, emulator.start_ingest()

    event = fire(make_trigger(name, timeout=50))

    assert set(event) == {"operation_name", "status", "message"}
    assert event["status"] == "timeout"
    assert f"{name} has not ended within 50 s" in event["message"]
    assert clock.now - began == pytest.approx(50)
    assert emulator.requests[-1].time - began == pytest.approx(50), "One last look is made when the time is up."
    assert emulator.cancel_requested(name) == 0


def test_an_end_that_is_seen_by_the_last_look_counts(emulator: DaiEmulator, make_trigger: MakeTrigger) -> None:
    assert fire(make_trigger(emulator.start_ingest(seconds=49.9), timeout=50))["status"] == "ended"


def test_failures_in_the_middle_do_not_end_it(
    emulator: DaiEmulator, make_trigger: MakeTrigger, slept: list[float]
) -> None:
    name = emulator.start_ingest(seconds=300)
    for fault in ({"status": 503}, {"drop": "after"}, {"status": 200, "body": b""}, {"status": 429}, {"truncate": 3}):
        emulator.inject(Fault(**fault, times=8))  # type: ignore[arg-type]

    assert fire(make_trigger(name))["operation"]["state"] == "SUCCEEDED"
    assert emulator.cancel_requested(name) == 0
    assert min(slept) > 0


@pytest.mark.parametrize(
    ("arguments", "seconds"), [({}, MAX_OUTAGE), ({"max_outage": 45.0}, 45)], ids=["default", "argument"]
)
def test_an_outage_ends_it(
    emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock, arguments: dict[str, float], seconds: float
) -> None:
    name, began = emulator.start_ingest(), clock.now
    emulator.inject(Fault(status=503, times=None))

    event = fire(make_trigger(name, **arguments))

    assert (event["status"], event["code"]) == ("error", "UNAVAILABLE")
    assert seconds <= clock.now - began <= seconds + 65, "A look that fails is repeated for up to a minute."
    assert emulator.cancel_requested(name) == 0


def test_without_a_limit_an_outage_does_not_end_it(
    emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock
) -> None:
    name, began = emulator.start_ingest(seconds=10), clock.now
    emulator.inject(Fault(status=503, times=200))
    assert fire(make_trigger(name, max_outage=None))["status"] == "ended"
    assert clock.now - began > 2 * MAX_OUTAGE


def test_without_a_limit_an_outage_ends_with_the_time(emulator: DaiEmulator, make_trigger: MakeTrigger) -> None:
    emulator.inject(Fault(status=503, times=None))
    event = fire(make_trigger("operations/a", max_outage=None, timeout=900))
    assert event["status"] == "timeout"
    assert "503" in event["message"]


def test_it_fires_once_and_is_over(emulator: DaiEmulator, make_trigger: MakeTrigger) -> None:
    async def main() -> None:
        events = make_trigger(emulator.start_ingest(seconds=0)).run()
        await anext(events)  # type: ignore[arg-type]
        with pytest.raises(StopAsyncIteration):
            await anext(events)  # type: ignore[arg-type]

    run(main())


def test_the_session_is_closed_before_it_fires(emulator: DaiEmulator, make_trigger: MakeTrigger) -> None:
    """Airflow may not come back for more than the first event."""

    async def main() -> None:
        events = make_trigger(emulator.start_ingest(seconds=0)).run()
        await anext(events)  # type: ignore[arg-type]

    run(main())


def test_many_triggers_share_one_session(emulator: DaiEmulator, make_trigger: MakeTrigger) -> None:
    triggers = [make_trigger(emulator.start_ingest(seconds=3)) for _ in range(20)]

    async def main() -> list[Any]:
        return await asyncio.gather(*(anext(trigger.run()) for trigger in triggers))  # type: ignore[arg-type]

    assert {event.payload["status"] for event in run(main())} == {"ended"}
    assert emulator.connections <= 20
    assert {request.name for request in emulator.requests} == {trigger.operation_name for trigger in triggers}


def test_nothing_secret_is_in_what_it_leaves(
    make_trigger: MakeTrigger, emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.delenv("DAI_EMULATOR_HOST")
    tokens = TokenService()
    with TinyServer(tokens.respond) as server:
        key = tokens.key(f"{server.endpoint}/token")
        define_connection(monkeypatch, keyfile_dict=json.dumps(key), dai_api_endpoint=emulator.endpoint)
        emulator.inject(Fault(status=503, times=3))
        emulator.inject(Fault(status=401, times=2))
        trigger = make_trigger(emulator.start_ingest())
        event = fire(trigger)
    assert event["code"] == "UNAUTHENTICATED"
    tokens.assert_nothing_secret_in("\n".join([log.text, str(event), str(trigger.serialize()), repr(trigger)]))


# What it cancels


class Killing:
    """
    The triggerer, from the user's click on: cancels what has not ended yet, again and again.

    Airflow 3.3 awaits on_kill with a time limit. The first of these cancels is passed on to on_kill, and the second
    makes the triggerer leave it behind and clean up, so what on_kill has begun goes on by itself.
    """

    def __init__(self, *, has_on_kill: bool) -> None:
        self.has_on_kill = has_on_kill
        self.every = 0.02
        self.cancels = 0

    async def __call__(self, trigger: DaiOperationTrigger, when: Callable[[], object]) -> None:
        running = asyncio.create_task(self._run_trigger(trigger))
        await until(lambda: when() or running.done())
        while not running.done():
            running.cancel("__airflow_user_action__")
            self.cancels += 1
            await asyncio.wait({running}, timeout=self.every)
        assert running.cancelled()
        await all_kills_done()

    async def _run_trigger(self, trigger: DaiOperationTrigger) -> None:
        try:
            async for event in trigger.run():
                raise AssertionError(f"Nothing should have been fired: {event}")
        except asyncio.CancelledError:
            if self.has_on_kill:
                with suppress(TimeoutError, asyncio.CancelledError):
                    await asyncio.wait_for(trigger.on_kill(), 10)  # type: ignore[misc]
            raise
        finally:
            await trigger.cleanup()


async def all_kills_done() -> None:
    """Wait for what goes on when the triggerer has turned to something else."""
    await until(lambda: not dai._KILLS and not pool._CLOSING)


async def kill_by_itself(trigger: DaiOperationTrigger) -> float:
    """Await nothing but on_kill, cancelled again and again; return how long it took."""
    began = time.monotonic()
    killing = asyncio.create_task(trigger.on_kill())  # type: ignore[arg-type]
    while not killing.done():
        await asyncio.wait({killing}, timeout=0.02)
        killing.cancel()
    await killing
    return time.monotonic() - began


@pytest.fixture(params=[True, False], ids=["with on_kill", "before 3.3"])
def killing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Killing:
    """Give a triggerer of either kind, on every version; the waits really sleep, until they are killed."""
    monkeypatch.setattr(dai, "TRIGGERS_HAVE_ON_KILL", request.param)
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(asyncio.sleep))
    return Killing(has_on_kill=request.param)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Give a function that says what state Airflow tells of the task, or what look-up of it fails."""

    def define(answer: Any) -> None:
        async def task_instance_state(_: object) -> Any:
            await asyncio.sleep(0.03)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(dai, "task_instance_state", task_instance_state)

    define("failed")
    return define


def test_this_version_of_airflow() -> None:
    assert TRIGGERS_HAVE_ON_KILL is hasattr(BaseTrigger, "on_kill")


@pytest.mark.parametrize("of_task", ["failed", "success", "removed", "running", "scheduled", "up_for_retry", None])
def test_a_killed_task_cancels_its_operation_once(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, of_task: str | None, log: Log
) -> None:
    state(of_task)
    name = emulator.start_ingest()

    run(killing(make_trigger(name, cancel_on_kill=True), lambda: "next look in" in log.text))

    assert emulator.cancel_requested(name) == 1
    assert emulator.state(name) == "CANCELLED"
    assert killing.cancels > 1
    assert [line for line in log.ours if name in line and "Requested the cancellation" in line]
    assert not [line for line in log.ours if "may still run" in line]
    assert emulator.connections == 1, "The session stays open between the wait and the cancel."


def test_one_that_was_not_told_to_cancel_does_not(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any
) -> None:
    name = emulator.start_ingest()
    run(killing(make_trigger(name), lambda: emulator.requests))
    assert [request.method for request in emulator.requests] == ["operations.get"]


def test_a_task_that_still_waits_elsewhere_is_left_alone(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, log: Log
) -> None:
    state("deferred")
    name = emulator.start_ingest()
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert emulator.cancel_requested(name) == 0
    assert [line for line in log.ours if f"Leaving {name} alone" in line]
    assert not [line for line in log.ours if "may still run" in line or "Requested" in line]


def test_where_the_state_cannot_be_had_nothing_is_cancelled_and_that_is_said(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, log: Log
) -> None:
    state(RuntimeError("the API server is down"))
    name = emulator.start_ingest()
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert emulator.cancel_requested(name) == 0
    assert [line for line in log.errors if f"{name} may still run" in line]


def test_a_trigger_without_a_task_instance_cancels_nothing_and_says_so(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, log: Log
) -> None:
    name = emulator.start_ingest()
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert emulator.cancel_requested(name) == 0
    assert [line for line in log.errors if f"{name} may still run" in line]


def test_a_slow_service_is_not_too_slow(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, log: Log
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", delay=0.3))
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert emulator.cancel_requested(name) == 1
    assert [line for line in log.ours if "Requested the cancellation" in line]


def test_on_kill_lasts_as_long_as_the_cancel(
    emulator: DaiEmulator, make_trigger: MakeTrigger, state: Any, log: Log
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", delay=0.3))
    assert run(kill_by_itself(make_trigger(name, cancel_on_kill=True))) > 0.3
    assert emulator.cancel_requested(name) == 1
    assert [line for line in log.ours if "Requested the cancellation" in line]


def test_a_service_with_a_hiccup_is_asked_again(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", status=503, times=3))

    def go_on_quickly() -> int:
        if emulator.requests:
            monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(lambda _: asyncio.sleep(0)))
        return len(emulator.requests)

    run(killing(make_trigger(name, cancel_on_kill=True), go_on_quickly))
    assert emulator.cancel_requested(name) == 1


@pytest.mark.parametrize("rpc_status", ["UNIMPLEMENTED", "PERMISSION_DENIED"])
def test_a_service_that_refuses_is_said(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, rpc_status: str, log: Log
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", rpc_status=rpc_status, times=None))
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert [request.method for request in emulator.requests] == ["operations.get", "operations.cancel"]
    assert [line for line in log.errors if f"{name} may still run" in line]
    assert not [line for line in log.ours if "Requested" in line]


def test_a_service_that_is_down_is_said(
    emulator: DaiEmulator,
    make_trigger: MakeTrigger,
    killing: Killing,
    state: Any,
    monkeypatch: pytest.MonkeyPatch,
    log: Log,
) -> None:
    name = emulator.start_ingest()

    def gone() -> bool:
        if "next look in" not in log.text:
            return False
        emulator.stop()
        monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(lambda _: asyncio.sleep(0)))
        return True

    run(killing(make_trigger(name, cancel_on_kill=True), gone))
    assert emulator.cancel_requested(name) == 0
    assert [line for line in log.errors if f"{name} may still run" in line]


def test_a_service_that_hangs_holds_on_kill_no_longer_than_allowed_and_that_is_said(
    emulator: DaiEmulator, make_trigger: MakeTrigger, state: Any, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr(dai, "KILL_SECONDS", 0.15)
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", delay=0.8))

    async def main() -> tuple[float, list[str]]:
        seconds = await kill_by_itself(make_trigger(name, cancel_on_kill=True))
        said = list(log.ours)
        await all_kills_done()
        return seconds, said

    seconds, said = run(main())
    assert 0.1 < seconds < 0.7
    assert [line for line in said if f"{name} may still run" in line]


def test_what_the_triggerer_closes_meanwhile_does_not_break_the_cancel_off(
    emulator: DaiEmulator, make_trigger: MakeTrigger, state: Any, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """The clean-up comes while the cancel is under way, which holds the session for itself."""
    monkeypatch.setattr(dai, "TRIGGERS_HAVE_ON_KILL", True)
    monkeypatch.setattr(dai, "KILL_SECONDS", 0.05)
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(asyncio.sleep))
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", delay=0.2))
    trigger = make_trigger(name, cancel_on_kill=True)

    async def main() -> None:
        running = asyncio.create_task(anext(trigger.run()))  # type: ignore[arg-type]
        await until(lambda: "next look in" in log.text)
        running.cancel()
        await asyncio.wait({running})
        await kill_by_itself(trigger)
        await trigger.cleanup()
        assert not [line for line in log.ours if "Requested" in line]
        await all_kills_done()

    run(main())
    assert emulator.cancel_requested(name) == 1
    assert [line for line in log.ours if "Requested the cancellation" in line]
    assert emulator.connections == 1


def test_one_that_is_killed_while_its_connection_is_looked_up(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    make_hook = DaiOperationTrigger._make_hook

    def slow(trigger: DaiOperationTrigger) -> DaiAsyncHook:
        gate.wait()
        return make_hook(trigger)

    monkeypatch.setattr(DaiOperationTrigger, "_make_hook", slow)
    name = emulator.start_ingest()

    async def main() -> None:
        kill = asyncio.create_task(killing(make_trigger(name, cancel_on_kill=True), lambda: gate.entered))
        await until(lambda: killing.cancels > 2 or kill.done())
        gate.open()
        await kill

    run(main())
    assert emulator.cancel_requested(name) == 1
    assert [request.method for request in emulator.requests] == ["operations.cancel"]


@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_one_that_is_killed_while_its_token_is_fetched(
    emulator: DaiEmulator,
    make_trigger: MakeTrigger,
    killing: Killing,
    state: Any,
    monkeypatch: pytest.MonkeyPatch,
    cancel_on_kill: bool,
) -> None:
    monkeypatch.delenv("DAI_EMULATOR_HOST")
    tokens = TokenService(gate=Gate())
    name = emulator.start_ingest()

    async def main() -> None:
        before = asyncio.all_tasks()
        kill = asyncio.create_task(killing(make_trigger(name, cancel_on_kill=cancel_on_kill), lambda: tokens.asked))
        await until(lambda: killing.cancels > 2 or kill.done())
        assert tokens.gate
        tokens.gate.open()
        await kill
        await until(lambda: asyncio.all_tasks() <= before)

    with TinyServer(tokens.respond) as server:
        key = tokens.key(f"{server.endpoint}/token")
        define_connection(monkeypatch, keyfile_dict=json.dumps(key), dai_api_endpoint=emulator.endpoint)
        run(main())
    assert emulator.cancel_requested(name) == int(cancel_on_kill)
    assert tokens.asked == 1, "The cancel uses the token that was being fetched."


def test_one_that_is_killed_in_the_middle_of_a_look(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.get", delay=0.5))
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert emulator.cancel_requested(name) == 1


def test_one_that_is_killed_when_its_operation_has_ended(
    emulator: DaiEmulator, make_trigger: MakeTrigger, state: Any, log: Log
) -> None:
    name = emulator.start_ingest(seconds=0.0)
    emulator.inject(Fault(method="operations.cancel", rpc_status="FAILED_PRECONDITION"))
    state("failed")
    run(make_trigger(name, cancel_on_kill=True).on_kill())  # type: ignore[arg-type]
    assert log.errors == []
    assert any("had already finished, there is nothing to cancel" in line for line in log.ours)


def test_a_killed_one_harms_no_other(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any
) -> None:
    killed, other = emulator.start_ingest(), emulator.start_ingest(seconds=0.0)

    async def main() -> Any:
        held = make_trigger(emulator.start_ingest(), cancel_on_kill=False)
        waiting = asyncio.create_task(anext(held.run()))  # type: ignore[arg-type]
        await killing(make_trigger(killed, cancel_on_kill=True), lambda: len(emulator.requests) == 2)
        event = await anext(make_trigger(other).run())  # type: ignore[arg-type]
        waiting.cancel()
        await asyncio.wait({waiting})
        return event.payload

    assert run(main())["status"] == "ended"
    assert emulator.cancel_requested(killed) == 1
    assert [r.method for r in emulator.requests].count("operations.cancel") == 1
    assert emulator.connections <= 2


def test_a_triggerer_that_stops_cancels_nothing(
    emulator: DaiEmulator, make_trigger: MakeTrigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cancels the coroutine and cleans up, without on_kill (3.3); before, only the task's state tells it apart."""
    monkeypatch.setattr(dai, "TRIGGERS_HAVE_ON_KILL", True)
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(asyncio.sleep))
    name = emulator.start_ingest()
    trigger = make_trigger(name, cancel_on_kill=True)

    async def main() -> None:
        running = asyncio.create_task(anext(trigger.run()))  # type: ignore[arg-type]
        await until(lambda: emulator.requests)
        running.cancel()
        await asyncio.wait({running})
        await trigger.cleanup()

    run(main())
    assert emulator.cancel_requested(name) == 0


def test_a_kill_after_the_end_has_nothing_to_break_off(
    emulator: DaiEmulator, make_trigger: MakeTrigger, state: Any, log: Log
) -> None:
    """The user's click and the end of the ingest can cross: cancelling a finished operation is harmless."""
    trigger = make_trigger(emulator.start_ingest(seconds=0), cancel_on_kill=True)

    async def main() -> None:
        await anext(trigger.run())  # type: ignore[arg-type]
        await trigger.on_kill()  # type: ignore[misc]
        await trigger.cleanup()

    run(main())
    assert emulator.state(trigger.operation_name) == "SUCCEEDED"
