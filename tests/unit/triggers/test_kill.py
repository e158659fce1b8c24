"""The trigger cancels its operation when its task is killed, if it is told to."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from airflow.providers.common.compat.sdk import BaseHook
from airflow.triggers.base import BaseTrigger

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.transport import session_pool
from airflow_dai_provider.triggers import dai
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from airflow_dai_provider.version_compat import TRIGGERS_HAVE_ON_KILL, USER_ACTION
from tests.support.connections import define_connection
from tests.support.emulators import count, methods
from tests.support.event_loop import Gate, run, until
from tests.support.log import Log
from tests.support.token_server import token_server

MakeTrigger = Callable[..., DaiOperationTrigger]


class Killing:
    """
    The triggerer after the user's click: it cancels the trigger again and again until that has finished.

    Airflow 3.3 knows by the message of the cancellation that a user has killed the task; when the triggerer stops there
    is none. It awaits on_kill with a time limit. The first of these cancels is passed on to on_kill, and the second
    makes the triggerer leave it behind and clean up, so the task that on_kill has started runs on by itself.
    """

    def __init__(self, *, has_on_kill: bool) -> None:
        self.has_on_kill = has_on_kill
        self.every = 0.02
        self.cancels = 0

    async def __call__(self, trigger: DaiOperationTrigger, when: Callable[[], object]) -> None:
        running = asyncio.create_task(self._run_trigger(trigger))
        await until(lambda: when() or running.done())
        while not running.done():
            running.cancel(USER_ACTION)
            self.cancels += 1
            await asyncio.wait({running}, timeout=self.every)
        assert running.cancelled()
        await all_kills_done()

    async def _run_trigger(self, trigger: DaiOperationTrigger) -> None:
        try:
            async for event in trigger.run():
                raise AssertionError(f"Nothing should have been fired: {event}")
        except asyncio.CancelledError as error:
            if self.has_on_kill and error.args == (USER_ACTION,):
                with suppress(TimeoutError, asyncio.CancelledError):
                    await asyncio.wait_for(trigger.on_kill(), 10)  # type: ignore[misc]
            raise
        finally:
            await trigger.cleanup()


def connections(emulator: DaiEmulator, method: str) -> set[Any]:
    """Return the connections on which requests of a method have come."""
    return {request.connection for request in emulator.requests if request.method == method}


async def all_kills_done() -> None:
    """Wait for the cancellations that outlive their triggers."""
    await until(lambda: not dai._KILLS and not session_pool._CLOSING)


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
    """Give a function that sets the state of the task, or the error with which its look-up fails."""

    def define(answer: Any) -> None:
        async def task_instance_state(*_: object) -> Any:
            await asyncio.sleep(0.03)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(dai, "task_instance_state", task_instance_state)

    define("failed")
    return define


def test_triggers_have_on_kill_is_right_for_this_version() -> None:
    assert TRIGGERS_HAVE_ON_KILL is hasattr(BaseTrigger, "on_kill")


@pytest.mark.skipif(not TRIGGERS_HAVE_ON_KILL, reason="Airflow before 3.3 calls no on_kill")
def test_the_message_of_a_kill_is_that_of_airflow() -> None:
    from airflow.jobs import triggerer_job_runner

    assert triggerer_job_runner._USER_ACTION_CANCEL_MSG == USER_ACTION


@pytest.mark.skipif(not TRIGGERS_HAVE_ON_KILL, reason="Airflow before 3.3 calls no on_kill")
@pytest.mark.parametrize("timed_out", [False, True])
def test_a_kill_that_the_triggerer_loses_cancels_unless_the_deferral_has_timed_out(
    emulator: DaiEmulator,
    make_trigger: MakeTrigger,
    state: Any,
    monkeypatch: pytest.MonkeyPatch,
    log: Log,
    timed_out: bool,
) -> None:
    """The triggerer of Airflow itself: cancelled again before it calls on_kill, it does not call it."""
    from airflow.jobs.triggerer_job_runner import TriggerRunner

    on_kill = AsyncMock()
    monkeypatch.setattr(DaiOperationTrigger, "on_kill", on_kill)
    state("scheduled" if timed_out else "failed")
    name = emulator.start_ingest()
    trigger = make_trigger(name, cancel_on_kill=True)
    limit = datetime.now(UTC) + timedelta(seconds=-1 if timed_out else 60)
    trigger.timeout_after = limit
    gate = Gate()
    submit = Mock(side_effect=(busy := ThreadPoolExecutor(1)).submit)
    monkeypatch.setattr(busy, "submit", submit)

    async def main() -> None:
        runner = TriggerRunner()
        runner.triggers[1] = {"task": None, "name": "t", "events": 0}  # type: ignore[typeddict-item]
        running = asyncio.create_task(runner.run_trigger(1, trigger, limit))
        await until(lambda: "next poll in" in log.text)
        # The triggerer logs in a thread before it calls on_kill; this one has no thread to spare.
        asyncio.get_running_loop().set_default_executor(busy)
        busy.submit(gate.wait)
        running.cancel(USER_ACTION)
        await until(lambda: submit.call_count > 1)
        running.cancel(USER_ACTION)
        await asyncio.sleep(0)
        gate.open()
        await asyncio.wait({running})
        await all_kills_done()

    run(main())
    on_kill.assert_not_called()
    assert emulator.cancel_requested(name) == (0 if timed_out else 1)


@pytest.mark.parametrize("of_task", ["failed", "success", "removed", "running", "scheduled", "up_for_retry", None])
def test_a_killed_task_cancels_its_operation_once(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, of_task: str | None, log: Log
) -> None:
    state(of_task)
    name = emulator.start_ingest()

    run(killing(make_trigger(name, cancel_on_kill=True), lambda: "next poll in" in log.text))

    assert emulator.cancel_requested(name) == 1
    assert emulator.state(name) == "CANCELLED"
    assert killing.cancels > 1
    assert [line for line in log.ours if name in line and "Requested the cancellation" in line]
    assert not [line for line in log.ours if "may still run" in line]
    assert not connections(emulator, "operations.cancel") & connections(emulator, "operations.get")


def test_without_cancel_on_kill_nothing_is_cancelled(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any
) -> None:
    name = emulator.start_ingest()
    run(killing(make_trigger(name), lambda: emulator.requests))
    assert methods(emulator) == ["operations.get"]


def test_the_operation_of_a_task_that_is_still_deferred_runs_on(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, log: Log
) -> None:
    state("deferred")
    name = emulator.start_ingest()
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert emulator.cancel_requested(name) == 0
    assert [line for line in log.ours if f"Leaving {name} alone" in line]
    assert not [line for line in log.ours if "may still run" in line or "Requested" in line]


def test_an_unknown_state_of_the_task_cancels_nothing_and_is_logged(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, log: Log
) -> None:
    state(RuntimeError("the API server is down"))
    name = emulator.start_ingest()
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert emulator.cancel_requested(name) == 0
    assert [line for line in log.errors if f"{name} may still run" in line]


def test_a_trigger_without_a_task_instance_cancels_nothing_and_logs_it(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, log: Log
) -> None:
    name = emulator.start_ingest()
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert emulator.cancel_requested(name) == 0
    assert [line for line in log.errors if f"{name} may still run" in line]


def test_a_slow_response_does_not_lose_the_cancel(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, log: Log
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", delay=0.3))
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert emulator.cancel_requested(name) == 1
    assert [line for line in log.ours if "Requested the cancellation" in line]


def test_on_kill_returns_when_the_cancel_request_is_done(
    emulator: DaiEmulator, make_trigger: MakeTrigger, state: Any, log: Log
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", delay=0.3))
    assert run(kill_by_itself(make_trigger(name, cancel_on_kill=True))) > 0.3
    assert emulator.cancel_requested(name) == 1
    assert [line for line in log.ours if "Requested the cancellation" in line]


def test_the_cancel_is_retried_after_a_transient_error(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", status=503, times=3))

    def no_longer_sleep() -> int:
        if emulator.requests:
            monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(lambda _: asyncio.sleep(0)))
        return len(emulator.requests)

    run(killing(make_trigger(name, cancel_on_kill=True), no_longer_sleep))
    assert emulator.cancel_requested(name) == 1


@pytest.mark.parametrize("rpc_status", ["UNIMPLEMENTED", "PERMISSION_DENIED"])
def test_a_refused_cancel_is_logged_and_not_retried(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, rpc_status: str, log: Log
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", rpc_status=rpc_status, times=None))
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert methods(emulator) == ["operations.get", "operations.cancel"]
    assert [line for line in log.errors if f"{name} may still run" in line]
    assert not [line for line in log.ours if "Requested" in line]


def test_an_unavailable_service_is_logged(
    emulator: DaiEmulator,
    make_trigger: MakeTrigger,
    killing: Killing,
    state: Any,
    monkeypatch: pytest.MonkeyPatch,
    log: Log,
) -> None:
    name = emulator.start_ingest()

    def gone() -> bool:
        if "next poll in" not in log.text:
            return False
        emulator.stop()
        monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(lambda _: asyncio.sleep(0)))
        return True

    run(killing(make_trigger(name, cancel_on_kill=True), gone))
    assert emulator.cancel_requested(name) == 0
    assert [line for line in log.errors if f"{name} may still run" in line]


def test_on_kill_is_bounded_in_time_and_logs_it(
    emulator: DaiEmulator, make_trigger: MakeTrigger, state: Any, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr(dai, "KILL_SECONDS", 0.15)
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.cancel", delay=math.inf))

    async def main() -> None:
        assert await kill_by_itself(make_trigger(name, cancel_on_kill=True)) > 0.1
        assert [line for line in log.errors if f"{name} may still run: no response" in line]
        emulator.stop()  # which ends the request
        await all_kills_done()

    run(main())


def test_the_cancel_survives_the_cleanup_of_the_trigger(
    emulator: DaiEmulator, make_trigger: MakeTrigger, state: Any, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """The clean-up closes the shared session while the cancel is under way, which has a session of its own."""
    gate = Gate()
    cancel = DaiHook.cancel_operation

    def held(*arguments: Any, **options: Any) -> None:
        gate.wait()
        cancel(*arguments, **options)

    monkeypatch.setattr(DaiHook, "cancel_operation", held)
    monkeypatch.setattr(dai, "TRIGGERS_HAVE_ON_KILL", True)
    monkeypatch.setattr(dai, "KILL_SECONDS", 0.05)
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(asyncio.sleep))
    name = emulator.start_ingest()
    trigger = make_trigger(name, cancel_on_kill=True)

    async def main() -> None:
        running = asyncio.create_task(anext(trigger.run()))  # type: ignore[arg-type]
        await until(lambda: "next poll in" in log.text)
        running.cancel()
        await asyncio.wait({running})
        await kill_by_itself(trigger)
        await until(lambda: gate.entered)
        await trigger.cleanup()
        assert not [line for line in log.ours if "Requested" in line]
        gate.open()
        await all_kills_done()

    run(main())
    assert emulator.cancel_requested(name) == 1
    assert [line for line in log.ours if "Requested the cancellation" in line]


def test_a_kill_during_the_import_of_the_hooks_cancels(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    @cache
    def slow() -> type[DaiAsyncHook]:
        gate.wait()
        return DaiAsyncHook

    monkeypatch.setattr(dai, "_hook_class", slow)
    name = emulator.start_ingest()

    async def main() -> None:
        kill = asyncio.create_task(killing(make_trigger(name, cancel_on_kill=True), lambda: gate.entered))
        await until(lambda: killing.cancels > 2 or kill.done())
        gate.open()
        await kill

    run(main())
    assert emulator.cancel_requested(name) == 1
    assert methods(emulator) == ["operations.cancel"]


@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_a_kill_during_the_token_fetch_uses_that_token(
    emulator: DaiEmulator,
    make_trigger: MakeTrigger,
    killing: Killing,
    state: Any,
    monkeypatch: pytest.MonkeyPatch,
    cancel_on_kill: bool,
) -> None:
    monkeypatch.delenv("DAI_EMULATOR_HOST")
    name = emulator.start_ingest()

    async def main() -> None:
        before = asyncio.all_tasks()
        kill = asyncio.create_task(killing(make_trigger(name, cancel_on_kill=cancel_on_kill), lambda: tokens.asked))
        await until(lambda: killing.cancels > 2 or kill.done())
        assert tokens.gate
        tokens.gate.open()
        await kill
        await until(lambda: asyncio.all_tasks() <= before)

    with token_server(Gate()) as tokens:
        define_connection(monkeypatch, keyfile_dict=json.dumps(tokens.key), dai_api_endpoint=emulator.endpoint)
        run(main())
    assert emulator.cancel_requested(name) == int(cancel_on_kill)
    assert tokens.asked == 1, "The cancel uses the token that was being fetched."


def test_a_kill_looks_up_no_connection_and_fetches_no_token(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both can take longer than what is left of the triggerer's time."""
    monkeypatch.delenv("DAI_EMULATOR_HOST")
    looked_up = []
    get_connection = BaseHook.get_connection

    def watched(_: object, conn_id: str) -> Any:
        looked_up.append(conn_id)
        return get_connection(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", watched)
    name = emulator.start_ingest()
    with token_server() as tokens:
        define_connection(monkeypatch, keyfile_dict=json.dumps(tokens.key), dai_api_endpoint=emulator.endpoint)
        run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert methods(emulator) == ["operations.get", "operations.cancel"]
    assert {request.headers.get("authorization") for request in emulator.requests} == {f"Bearer {tokens.issued[0]}"}
    assert tokens.asked == 1
    assert looked_up == ["google_cloud_default"]


def test_a_kill_during_a_poll_cancels(
    emulator: DaiEmulator, make_trigger: MakeTrigger, killing: Killing, state: Any
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(method="operations.get", delay=0.5))
    run(killing(make_trigger(name, cancel_on_kill=True), lambda: emulator.requests))
    assert emulator.cancel_requested(name) == 1


def test_a_kill_finds_that_the_operation_has_finished(
    emulator: DaiEmulator, make_trigger: MakeTrigger, state: Any, log: Log
) -> None:
    name = emulator.start_ingest(seconds=0.0)
    emulator.inject(Fault(method="operations.cancel", rpc_status="FAILED_PRECONDITION"))
    state("failed")
    run(make_trigger(name, cancel_on_kill=True).on_kill())  # type: ignore[arg-type]
    assert log.errors == []
    assert any("had already finished, there is nothing to cancel" in line for line in log.ours)


def test_a_kill_does_not_disturb_other_waits(
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

    assert run(main())["status"] == "finished"
    assert emulator.cancel_requested(killed) == 1
    assert count(emulator, "operations.cancel") == 1
    assert len(connections(emulator, "operations.get")) <= 2


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


def test_a_kill_after_the_event_changes_nothing(
    emulator: DaiEmulator, make_trigger: MakeTrigger, state: Any, log: Log
) -> None:
    """The ingest can finish while the user clicks: cancelling a finished operation is harmless."""
    trigger = make_trigger(emulator.start_ingest(seconds=0), cancel_on_kill=True)

    async def main() -> None:
        await anext(trigger.run())  # type: ignore[arg-type]
        await trigger.on_kill()  # type: ignore[misc]
        await trigger.cleanup()

    run(main())
    assert emulator.state(trigger.operation_name) == "SUCCEEDED"
    assert emulator.cancel_requested(trigger.operation_name) <= 1
    assert log.errors == []
