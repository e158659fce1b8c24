"""The trigger: what it polls and when, and what it fires."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from airflow_dai_provider.api.polling import MAX_OUTAGE
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook
from airflow_dai_provider.transport.aiohttp_session import AiohttpTransport
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.support.clock import Clock
from tests.support.connections import define_connection
from tests.support.emulators import MakeEmulator
from tests.support.event_loop import fire_trigger, run, stored, until
from tests.support.log import Log
from tests.support.token_server import token_server

MakeTrigger = Callable[..., DaiOperationTrigger]

#: None of them what the constructor would take by itself.
ARGUMENTS: dict[str, Any] = {
    "operation_name": "operations/a/b",
    "poll_interval": 7.5,
    "started": 1_749_999_000.25,
    "timeout": 86400.0,
    "max_outage": None,
    "cancel_on_kill": True,
    "expected_states": ["CANCELLED"],
    "gcp_conn_id": "another",
    "impersonation_chain": ["a@p.iam.gserviceaccount.com", "b@p.iam.gserviceaccount.com"],
    "api_endpoint": "dai.example:8443",
}


# How it is made


def test_every_argument_is_serialized() -> None:
    parameters = set(inspect.signature(DaiOperationTrigger.__init__).parameters) - {"self"}
    assert parameters == set(ARGUMENTS)
    assert all(
        parameter.default != ARGUMENTS[name]
        for name, parameter in inspect.signature(DaiOperationTrigger.__init__).parameters.items()
        if name != "self"
    )
    trigger = DaiOperationTrigger(**ARGUMENTS)
    assert trigger.serialize() == ("airflow_dai_provider.triggers.dai.DaiOperationTrigger", ARGUMENTS)
    assert stored(trigger).serialize() == trigger.serialize()


def test_the_wait_starts_when_the_trigger_is_first_made() -> None:
    before = time.time()
    trigger = DaiOperationTrigger("operations/a")
    assert before <= trigger.started <= time.time()
    assert stored(trigger).started == trigger.started


def test_nothing_is_sent_before_it_runs(make_emulator: MakeEmulator) -> None:
    emulator = make_emulator()
    DaiOperationTrigger(emulator.start_ingest())
    assert emulator.requests == []


# When it polls


@pytest.mark.parametrize("several", [False, True], ids=["one", "list"])
@pytest.mark.parametrize("age", [0.0, 3.0, 3600.0])
@pytest.mark.parametrize("status", [403, 404, 501])
def test_a_page_in_response_to_the_first_poll_is_an_outage(
    emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock, age: float, status: int, several: bool
) -> None:
    """The worker has polled before, or another triggerer."""
    name = emulator.start_ingest(seconds=0)
    trigger = make_trigger([name] if several else name, started=clock.now)
    clock.advance(age)
    emulator.inject(Fault("operations.get", status=status, html=True))
    event = fire_trigger(stored(trigger))
    assert (event["status"], len(emulator.requests)) == ("finished", 2)


def test_the_interval_of_polls_grows_by_half(
    emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock, slept: list[float]
) -> None:
    began = clock.now
    fire_trigger(make_trigger(emulator.start_ingest(seconds=60), poll_interval=15))
    assert slept == pytest.approx([1, 1.5, 2.25, 3.375, 5.0625, 7.59375, 11.390625, 15, 15])
    polls = [request.time - began for request in emulator.requests]
    assert polls[:2] == pytest.approx([0, 1])
    assert len(polls) == len(slept) + 1
    assert emulator.connections == 1


def test_a_wait_in_another_triggerer_keeps_its_interval(
    emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock, slept: list[float]
) -> None:
    """A triggerer that restarts does not begin with quick polls again."""
    trigger = stored(make_trigger(emulator.start_ingest(seconds=200)))
    clock.advance(100)
    fire_trigger(trigger)
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

    event = fire_trigger(stored(first))

    assert event["status"] == "timeout"
    assert clock.now - began == pytest.approx(100)


def test_arguments_reach_the_hook(
    make_emulator: MakeEmulator, make_trigger: MakeTrigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = make_emulator()
    monkeypatch.delenv("DAI_EMULATOR_HOST")
    define_connection(monkeypatch, "another", is_anonymous=True, dai_api_endpoint=emulator.endpoint)
    name = emulator.start_ingest(seconds=0)
    assert fire_trigger(make_trigger(name, gcp_conn_id="another"))["status"] == "finished"
    define_connection(monkeypatch, "another", is_anonymous=True)
    assert (
        fire_trigger(make_trigger(name, gcp_conn_id="another", api_endpoint=emulator.endpoint))["status"] == "finished"
    )
    assert len(emulator.requests) == 2

    trigger = DaiOperationTrigger(**ARGUMENTS)
    assert trigger._make_hook()._hook_kwargs["impersonation_chain"] == ARGUMENTS["impersonation_chain"]


# What it fires


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELLED"])
def test_a_finished_operation_is_fired(emulator: DaiEmulator, make_trigger: MakeTrigger, state: str, log: Log) -> None:
    outcome = {"outcome": "DOWNLOAD_ERROR", "code": 403} if state == "FAILED" else {}
    name = emulator.start_ingest(seconds=1e9 if state == "CANCELLED" else 3, **outcome)

    async def cancel() -> None:
        await DaiAsyncHook().cancel_operation(name)

    if state == "CANCELLED":
        run(cancel())

    event = fire_trigger(make_trigger(name))

    assert set(event) == {"operation_name", "status", "operation"}
    assert event["status"] == "finished"
    assert (event["operation"]["name"], event["operation"]["state"]) == (name, state)
    assert any(f"{name} is {state}" in line or f"({name}) failed: " in line for line in log.ours)
    if state == "FAILED":
        assert event["operation"]["ingest"]["failure_reason"] == "DOWNLOAD_ERROR"


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ({"rpc_status": "UNIMPLEMENTED"}, "UNIMPLEMENTED", "501 UNIMPLEMENTED"),
        ({"status": 403}, "PERMISSION_DENIED", "403 PERMISSION_DENIED"),
        ({"status": 404}, "NOT_FOUND", "404 NOT_FOUND"),
        ({"status": 404, "body": b"<html>"}, "UNAVAILABLE", "is the endpoint right"),
        ({"status": 401}, "UNAUTHENTICATED", "401 UNAUTHENTICATED"),
        ({"rpc_status": "FAILED_PRECONDITION"}, "FAILED_PRECONDITION", "400 FAILED_PRECONDITION"),
        ({"rpc_status": "DATA_LOSS"}, "DATA_LOSS", "500 DATA_LOSS"),
        ({"status": 503}, "UNAVAILABLE", "503 UNAVAILABLE"),
        ({"status": 200, "body": b"[]"}, "UNKNOWN", "expected a JSON object"),
        ({"status": 504}, "DEADLINE_EXCEEDED", "504 DEADLINE_EXCEEDED"),
    ],
)
def test_an_error_is_fired_with_its_code(
    emulator: DaiEmulator, make_trigger: MakeTrigger, fault: Any, code: str, words: str, log: Log
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(**fault, times=None))

    event = fire_trigger(make_trigger(name))

    assert set(event) == {"operation_name", "status", "code", "message"}
    assert (event["status"], event["code"]) == ("error", code)
    assert words in event["message"]
    assert any(f"The wait for {name} has failed" in line for line in log.ours)
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
def test_invalid_arguments_are_fired_as_an_error(
    emulator: DaiEmulator,
    make_trigger: MakeTrigger,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    code: str,
    words: str,
) -> None:
    define_connection(monkeypatch, is_anonymous=True)
    event = fire_trigger(make_trigger(**{"name": "operations/a", **arguments}))
    assert (event["status"], event["code"]) == ("error", code)
    assert words in event["message"]
    assert emulator.requests == []


@pytest.mark.parametrize(
    ("extra", "code", "words"),
    [
        ({"key_path": "/nowhere/key.json"}, "UNAVAILABLE", "/nowhere/key.json"),
        ({"keyfile_dict": "{}", "dai_api_endpoint": "http://dai.example"}, None, ""),
        ({"is_anonymous": True, "dai_api_endpoint": "not an endpoint"}, "INVALID_ARGUMENT", "dai_api_endpoint"),
    ],
)
def test_an_unusable_connection_is_fired_as_an_error(
    make_trigger: MakeTrigger, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], code: str | None, words: str
) -> None:
    monkeypatch.delenv("DAI_EMULATOR_HOST", raising=False)
    define_connection(monkeypatch, **extra)
    event = fire_trigger(make_trigger("operations/a"))
    assert event["status"] == "error"
    assert code in (None, event["code"])
    assert words in event["message"]


def test_a_timeout_is_fired_after_a_last_poll(emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock) -> None:
    began, name = clock.now, emulator.start_ingest()

    event = fire_trigger(make_trigger(name, timeout=50))

    assert set(event) == {"operation_name", "status", "message"}
    assert event["status"] == "timeout"
    assert f"{name} has not finished within 50 s" in event["message"]
    assert clock.now - began == pytest.approx(50)
    assert emulator.requests[-1].time - began == pytest.approx(50), "One last poll is made when the time is up."
    assert emulator.cancel_requested(name) == 0


def test_an_operation_that_the_last_poll_finds_finished_is_no_timeout(
    emulator: DaiEmulator, make_trigger: MakeTrigger
) -> None:
    assert fire_trigger(make_trigger(emulator.start_ingest(seconds=49.9), timeout=50))["status"] == "finished"


def test_transient_errors_do_not_end_the_wait(
    emulator: DaiEmulator, make_trigger: MakeTrigger, slept: list[float]
) -> None:
    name = emulator.start_ingest(seconds=300)
    for fault in ({"status": 503}, {"drop": "after"}, {"status": 200, "body": b""}, {"status": 429}, {"truncate": 3}):
        emulator.inject(Fault(**fault, times=3))  # type: ignore[arg-type]

    assert fire_trigger(make_trigger(name))["operation"]["state"] == "SUCCEEDED"
    assert emulator.cancel_requested(name) == 0
    assert min(slept) > 0


@pytest.mark.parametrize(
    ("arguments", "seconds"), [({}, MAX_OUTAGE), ({"max_outage": 45.0}, 45)], ids=["default", "argument"]
)
def test_an_outage_ends_the_wait(
    emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock, arguments: dict[str, float], seconds: float
) -> None:
    name, began = emulator.start_ingest(), clock.now
    emulator.inject(Fault(status=503, times=None))

    event = fire_trigger(make_trigger(name, **arguments))

    assert (event["status"], event["code"]) == ("error", "UNAVAILABLE")
    assert seconds <= clock.now - began <= seconds + 65, "A failing poll is retried for up to a minute."
    assert emulator.cancel_requested(name) == 0


def test_without_max_outage_an_outage_does_not_end_the_wait(
    emulator: DaiEmulator, make_trigger: MakeTrigger, clock: Clock
) -> None:
    name, began = emulator.start_ingest(seconds=10), clock.now
    emulator.inject(Fault(status=503, times=200))
    assert fire_trigger(make_trigger(name, max_outage=None))["status"] == "finished"
    assert clock.now - began > 2 * MAX_OUTAGE


def test_without_max_outage_the_timeout_ends_the_wait(emulator: DaiEmulator, make_trigger: MakeTrigger) -> None:
    emulator.inject(Fault(status=503, times=None))
    event = fire_trigger(make_trigger("operations/a", max_outage=None, timeout=900))
    assert event["status"] == "timeout"
    assert "503" in event["message"]


def test_it_fires_once(emulator: DaiEmulator, make_trigger: MakeTrigger) -> None:
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


def test_many_triggers_share_one_session(
    emulator: DaiEmulator, make_trigger: MakeTrigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    triggers = [make_trigger(emulator.start_ingest(seconds=3)) for _ in range(15)]
    opened: list[AiohttpTransport] = []
    open_session = AiohttpTransport.open

    async def counted(transport: AiohttpTransport) -> AiohttpTransport:
        opened.append(transport)
        return await open_session(transport)

    monkeypatch.setattr(AiohttpTransport, "open", counted)

    async def main() -> list[Any]:
        return await asyncio.gather(*(anext(trigger.run()) for trigger in triggers))  # type: ignore[arg-type]

    assert {event.payload["status"] for event in run(main())} == {"finished"}
    assert len(opened) == 1
    assert {request.name for request in emulator.requests} == {trigger.operation_name for trigger in triggers}


def test_no_secret_is_logged_fired_or_serialized(
    make_trigger: MakeTrigger, emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.delenv("DAI_EMULATOR_HOST")
    with token_server() as tokens:
        define_connection(monkeypatch, keyfile_dict=json.dumps(tokens.key), dai_api_endpoint=emulator.endpoint)
        emulator.inject(Fault(status=503, times=3))
        emulator.inject(Fault(status=401, times=2))
        trigger = make_trigger(emulator.start_ingest())
        event = fire_trigger(trigger)
    assert event["code"] == "UNAUTHENTICATED"
    tokens.assert_nothing_secret_in("\n".join([log.text, str(event), str(trigger.serialize()), repr(trigger)]))
