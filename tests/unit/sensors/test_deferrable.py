"""The deferrable sensor: the same result as in the other two modes, for each flag and each error."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_dai_provider.api.polling import MAX_OUTAGE
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from airflow_dai_provider.tasks import deferral
from airflow_dai_provider.tasks.failures import UnexpectedStateError
from tests.support.airflow_versions import AirflowRescheduleException
from tests.support.clock import Clock
from tests.support.emulators import methods
from tests.support.event_loop import fire
from tests.support.log import Log
from tests.support.task_instance import rendered

pytestmark = pytest.mark.usefixtures("sensor_time")

NAME = "operations/my-ingest"
POKE_INTERVAL = 10.0
TIMEOUT = 100.0


def make_sensor(**options: Any) -> DaiOperationSensor:
    defaults = {"operation_name": NAME, "poke_interval": POKE_INTERVAL, "timeout": TIMEOUT}
    return DaiOperationSensor(task_id="wait", **{**defaults, **options})


def in_poke_mode(make: Callable[[], DaiOperationSensor], context: Any, _: Clock) -> Any:
    return make().execute(context)


def in_reschedule_mode(make: Callable[[], DaiOperationSensor], context: Any, clock: Clock) -> Any:
    while True:
        sensor = make()
        sensor.mode = "reschedule"
        try:
            return sensor.execute(context)
        except AirflowRescheduleException as later:
            clock.now = later.reschedule_date.timestamp()


def in_the_triggerer(make: Callable[[], DaiOperationSensor], context: Any, _: Clock) -> Any:
    sensor = make()
    sensor.deferrable = True
    try:
        return sensor.execute(context)
    except TaskDeferred as deferred:
        return make().resume_execution(
            deferred.method_name, {**(deferred.kwargs or {}), "event": fire(deferred)}, context
        )


MODES = {"poke": in_poke_mode, "reschedule": in_reschedule_mode, "deferrable": in_the_triggerer}


# One table for the three modes


@dataclass(frozen=True)
class Row:
    """
    What the service says, and what becomes of the task under each set of flags.

    :param ingest: how the ingest runs; None for none.
    :param faults: what goes wrong, in this order.
    :param plain: what becomes of the task without any flag.
    """

    plain: str
    ingest: dict[str, Any] | None = None
    faults: tuple[dict[str, Any], ...] = ()
    soft_fail: str = ""
    never_fail: str = ""
    silent_fail: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    words: str = ""


#: The first poll finds the ingest running, and the faults that follow come after it.
ONE_GOOD_POLL = {"content_type": "application/json"}
FAILING = {"outcome": "DOWNLOAD_ERROR", "code": 403}


def always(**fault: Any) -> dict[str, Any]:
    return {**fault, "times": None}


def at_once_and_later(label: str, **fields: Any) -> dict[str, Row]:
    """Return two rows: one in which the first poll meets it, and one in which a later poll does."""
    ingest = {} if fields.get("ingest") is None else fields["ingest"]
    at_once = Row(**{**fields, "ingest": {**ingest, "seconds": 0} if "faults" not in fields else None})
    later = Row(**{**fields, "ingest": {"seconds": 25, **ingest}, "faults": (ONE_GOOD_POLL, *fields.get("faults", ()))})
    return {f"{label}, at once": at_once, f"{label}, later": later}


PERMANENT: dict[str, Any] = {"plain": "fail", "soft_fail": "fail", "never_fail": "skip", "silent_fail": "fail"}
TIMES_OUT: dict[str, Any] = {
    "plain": "timeout",
    "soft_fail": "skip",
    "never_fail": "timeout",
    "silent_fail": "timeout",
    "words": f"{NAME} may still run",
}
UNEXPECTED: dict[str, Any] = {
    "plain": "unexpected",
    "soft_fail": "skip",
    "never_fail": "skip",
    "silent_fail": "unexpected",
}

TABLE: dict[str, Row] = {
    **at_once_and_later("succeeded", plain="SUCCEEDED"),
    **at_once_and_later("failed", ingest=FAILING, **UNEXPECTED, words="DOWNLOAD_ERROR 403"),
    **at_once_and_later("failed as expected", plain="FAILED", ingest=FAILING, options={"expected_states": "FAILED"}),
    **at_once_and_later("failed, any end", plain="FAILED", ingest=FAILING, options={"expected_states": None}),
    **at_once_and_later(
        "succeeded, not as expected",
        **UNEXPECTED,
        options={"expected_states": ["CANCELLED"]},
        words="accepts only CANCELLED",
    ),
    **at_once_and_later("missing", **PERMANENT, faults=(always(status=404),), words="does not know it"),
    **at_once_and_later("missing but fine", plain="None", faults=(always(status=404),), options={"missing_ok": True}),
    **at_once_and_later(
        "unimplemented", **PERMANENT, faults=(always(rpc_status="UNIMPLEMENTED"),), words="a retry cannot"
    ),
    **at_once_and_later(
        "unimplemented, missing is fine",
        **PERMANENT,
        faults=(always(rpc_status="UNIMPLEMENTED"),),
        options={"missing_ok": True},
    ),
    "unknown route, at once": Row(**PERMANENT, faults=(always(status=404, body=b"<html>"),), words="endpoint right"),
    "front end's page, at once": Row(**PERMANENT, faults=(always(status=403, html=True),), words="allow-listed"),
    **{
        f"front end's page {status}, later": Row(
            **TIMES_OUT, ingest={}, faults=(ONE_GOOD_POLL, always(status=status, body=b"<html>"))
        )
        for status in (401, 403, 404, 501)
    },
    "front end's page for a moment": Row(
        "SUCCEEDED", ingest={"seconds": 25}, faults=(ONE_GOOD_POLL, {"status": 403, "html": True, "times": 3})
    ),
    "missing for a moment, at once": Row("SUCCEEDED", ingest={"seconds": 25}, faults=({"status": 404, "times": 2},)),
    "missing for a moment, later": Row(
        "SUCCEEDED", ingest={"seconds": 25}, faults=(ONE_GOOD_POLL, {"status": 404, "times": 2})
    ),
    "missing for a moment but fine": Row(
        "SUCCEEDED", ingest={"seconds": 25}, faults=({"status": 404, "times": 2},), options={"missing_ok": True}
    ),
    **at_once_and_later("denied", **PERMANENT, faults=(always(status=403),), words="allow-listed"),
    **at_once_and_later("unauthenticated", **PERMANENT, faults=(always(status=401),), words="credentials"),
    **at_once_and_later("precondition", **PERMANENT, faults=(always(rpc_status="FAILED_PRECONDITION"),)),
    **at_once_and_later("away until the timeout", **TIMES_OUT, faults=(always(status=503),)),
    **at_once_and_later(
        "away for good",
        plain="error",
        soft_fail="error",
        never_fail="skip",
        faults=(always(status=503),),
        options={"timeout": 900.0},
        words="503",
    ),
    **at_once_and_later(
        "data lost",
        plain="error",
        soft_fail="error",
        never_fail="skip",
        silent_fail="timeout",
        faults=(always(rpc_status="DATA_LOSS"),),
        words="DATA_LOSS",
    ),  # fmt: skip
    "away for a moment": Row("SUCCEEDED", ingest={"seconds": 25}, faults=(ONE_GOOD_POLL, {"status": 503, "times": 3})),
    "never ends": Row(
        "timeout",
        ingest={},
        soft_fail="skip",
        never_fail="timeout",
        silent_fail="timeout",
        words=f"{NAME} may still run",
    ),
    "no time at all": Row(
        "timeout",
        ingest={},
        soft_fail="skip",
        never_fail="timeout",
        silent_fail="timeout",
        options={"timeout": 0},
    ),
    "bad name": Row(**PERMANENT, options={"operation_name": "None"}, words="has pushed no name"),
    "bad states": Row(**PERMANENT, ingest={}, options={"expected_states": "RUNNING"}, words="Invalid expected_states"),
}

FLAGS = ("plain", "soft_fail", "never_fail", "silent_fail")
CASES = [
    pytest.param(mode, label, flag, id=f"{label}-{flag}-{mode}")
    for label in TABLE
    for flag in FLAGS
    if flag == "plain" or getattr(TABLE[label], flag)
    for mode in MODES
]


def outcome(call: Callable[[], Any]) -> tuple[str, str]:
    """Return what becomes of a task, in a word, and what it says."""
    try:
        result = call()
    except AirflowSkipException as skip:
        return "skip", str(skip)
    except AirflowSensorTimeout as timeout:
        return "timeout", str(timeout)
    except UnexpectedStateError as unexpected:
        return "unexpected", str(unexpected)
    except AirflowFailException as failure:
        return "fail", str(failure)
    except AirflowException as error:
        return "error", str(error)
    if isinstance(result, list):
        (result,) = result
    return ("None", "") if result is None else (result["state"], "")


@pytest.mark.parametrize("form", ["one", "list"])
@pytest.mark.parametrize(("mode", "label", "flag"), CASES)
def test_each_mode_has_the_same_result(
    emulator: DaiEmulator, context: Any, clock: Clock, mode: str, label: str, flag: str, form: str
) -> None:
    row = TABLE[label]
    if row.ingest is not None:
        emulator.start_ingest(NAME, **row.ingest)
    for fault in row.faults:
        emulator.inject(Fault(**fault))
    options = {"operation_name": NAME, **row.options, **({} if flag == "plain" else {flag: True})}
    if form == "list":
        options["operation_name"] = [options["operation_name"]]

    became, words = outcome(lambda: MODES[mode](lambda: rendered(make_sensor, **options), context, clock))

    assert became == (getattr(row, flag) or row.plain)
    if became != "skip" and (became != "timeout" or row.plain == "timeout"):
        assert row.words in words
    assert "operations.cancel" not in {request.method for request in emulator.requests}


def test_a_running_operation_is_rescheduled(emulator: DaiEmulator, context: Any, clock: Clock) -> None:
    emulator.start_ingest(NAME)
    with pytest.raises(AirflowRescheduleException) as later:
        make_sensor(mode="reschedule").execute(context)
    assert later.value.reschedule_date.timestamp() == clock.now + POKE_INTERVAL


def test_an_outage_in_the_triggerer_leaves_the_task_its_retries(
    emulator: DaiEmulator, context: Any, clock: Clock
) -> None:
    for flag, became in {"retries": "error", "soft_fail": "error", "never_fail": "skip"}.items():
        name = emulator.start_ingest()
        emulator.inject(Fault(name=name, **ONE_GOOD_POLL))  # type: ignore[arg-type]
        emulator.inject(Fault(name=name, status=503, times=None))
        options = {flag: True} if flag != "retries" else {}
        began = clock.now
        make = lambda name=name, options=options: make_sensor(operation_name=name, timeout=9000, **options)  # noqa: E731
        assert outcome(lambda make=make: in_the_triggerer(make, context, clock))[0] == became
        assert clock.now - began >= MAX_OUTAGE


# Deferring


def deferred_by(sensor: DaiOperationSensor, context: Any) -> tuple[TaskDeferred, dict[str, Any]]:
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context)
    path, arguments = deferred.value.trigger.serialize()
    assert path == "airflow_dai_provider.triggers.dai.DaiOperationTrigger"
    return deferred.value, arguments


def test_it_polls_once_and_defers(emulator: DaiEmulator, context: Any, clock: Clock, log: Log) -> None:
    emulator.start_ingest(NAME)
    deferred, arguments = deferred_by(make_sensor(deferrable=True), context)
    assert methods(emulator) == ["operations.get"]
    assert deferred.method_name == "execute_complete"
    assert deferred.timeout == timedelta(seconds=TIMEOUT + deferral.BACKSTOP)
    assert arguments == {
        "operation_name": NAME,
        "poll_interval": POKE_INTERVAL,
        "started": clock.now,
        "timeout": TIMEOUT,
        "max_outage": MAX_OUTAGE,
        "cancel_on_kill": False,
        "expected_states": None,
        "gcp_conn_id": "google_cloud_default",
        "impersonation_chain": None,
        "api_endpoint": None,
    }
    assert [line for line in log.ours if f"Waiting for {NAME} in the triggerer" in line]


@pytest.mark.parametrize("options", [{}, {"soft_fail": True}, {"silent_fail": True}, {"never_fail": True}], ids=str)
def test_a_finished_operation_is_not_deferred_for(emulator: DaiEmulator, context: Any, options: Any) -> None:
    emulator.start_ingest(NAME, seconds=0)
    assert make_sensor(deferrable=True, **options).execute(context)["state"] == "SUCCEEDED"
    assert len(emulator.requests) == 1


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"poke_interval": 45}, {"poll_interval": 45.0}),
        ({"poke_interval": timedelta(minutes=2)}, {"poll_interval": 120.0}),
        ({"poke_interval": 0.001}, {"poll_interval": 1.0}),
        ({"exponential_backoff": True, "max_wait": 33}, {"poll_interval": 33.0}),
        ({"exponential_backoff": True, "max_wait": timedelta(minutes=1)}, {"poll_interval": 60.0}),
        ({"exponential_backoff": True}, {"poll_interval": TIMEOUT}),
        ({"max_wait": 33}, {"poll_interval": POKE_INTERVAL}),
        ({"timeout": 5000}, {"timeout": 5000.0}),
        ({"timeout": timedelta(hours=1)}, {"timeout": 3600.0}),
        ({"execution_timeout": timedelta(seconds=30)}, {"timeout": 30.0}),
        ({"execution_timeout": timedelta(seconds=3000)}, {"timeout": TIMEOUT}),
        ({"silent_fail": True}, {"max_outage": None}),
        ({"cancel_on_kill": True}, {"cancel_on_kill": True}),
        ({"gcp_conn_id": "another"}, {"gcp_conn_id": "another"}),
        ({"impersonation_chain": ["a@p", "b@p"]}, {"impersonation_chain": ["a@p", "b@p"]}),
    ],
    ids=str,
)
def test_each_parameter_reaches_the_trigger(
    emulator: DaiEmulator, context: Any, options: dict[str, Any], arguments: dict[str, Any]
) -> None:
    emulator.start_ingest(NAME)
    deferred, given = deferred_by(make_sensor(deferrable=True, **options), context)
    assert given == {**given, **arguments}
    assert deferred.timeout == timedelta(seconds=given["timeout"] + deferral.BACKSTOP)


def test_the_endpoint_reaches_the_trigger(emulator: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}}
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(connection))
    monkeypatch.delenv("DAI_EMULATOR_HOST")
    emulator.start_ingest(NAME)
    _, arguments = deferred_by(make_sensor(deferrable=True, api_endpoint=emulator.endpoint), context)
    assert arguments["api_endpoint"] == emulator.endpoint


@pytest.mark.parametrize("options", [{}, {"silent_fail": True}], ids=str)
@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 404}, {"drop": "before"}], ids=str)
def test_a_first_poll_that_fails_for_now_is_left_to_the_triggerer(
    emulator: DaiEmulator, context: Any, log: Log, options: Any, fault: Any
) -> None:
    emulator.start_ingest(NAME)
    emulator.inject(Fault(**fault))
    deferred_by(make_sensor(deferrable=True, **options), context)
    assert len(emulator.requests) == 1
    assert len(log.lines("The first poll failed: ")) == 1


@pytest.mark.parametrize("how", ["deferred", "finished", "failed"])
def test_the_session_of_the_first_poll_is_closed(emulator: DaiEmulator, context: Any, how: str) -> None:
    if how != "failed":
        emulator.start_ingest(NAME, seconds=0 if how == "finished" else None)
    sensor = make_sensor(deferrable=True)
    closed = []
    close = sensor.hook.close
    sensor.hook.close = lambda: (closed.append(True), close())  # type: ignore[method-assign]
    with suppress(TaskDeferred, AirflowException):
        sensor.execute(context)
    assert closed == [True]


# Resuming


def resume(event: Any, context: Any, **options: Any) -> Any:
    return make_sensor(deferrable=True, **options).resume_execution("execute_complete", {"event": event}, context)


OTHER_EVENTS = {
    "none": None,
    "empty": {},
    "unknown": {"status": "paused"},
    "another provider's": {"status": "success", "message": "done"},
    "list": [],
    "wrong types": {"status": "finished", "operation": "operations/a"},
    "an operation that cannot be read": {"status": "finished", "operation": {"state": "SUCCEEDED"}},
    "an operation that runs": {"status": "finished", "operation": {"name": NAME, "state": "RUNNING"}},
}


@pytest.mark.parametrize("event", OTHER_EVENTS.values(), ids=OTHER_EVENTS)
@pytest.mark.parametrize(("flag", "became"), [("", "error"), ("soft_fail", "error"), ("never_fail", "skip")])
def test_an_unreadable_event_fails_the_task(context: Any, event: Any, flag: str, became: str) -> None:
    options = {flag: True} if flag else {}
    assert outcome(lambda: resume(event, context, **options))[0] == became


def test_a_missing_event_fails_the_task(context: Any) -> None:
    with pytest.raises(AirflowException, match="Expected the event of DaiOperationTrigger, got None"):
        make_sensor().resume_execution("execute_complete", None, context)


def words_of_airflow(airflow_2: bool) -> str:
    if airflow_2:
        return "Trigger/execution timeout"
    from airflow.models.trigger import TriggerFailureReason

    return str(TriggerFailureReason.TRIGGER_TIMEOUT.value)


@pytest.mark.parametrize(
    ("flag", "became"), [("", "timeout"), ("soft_fail", "skip"), ("never_fail", "timeout"), ("silent_fail", "timeout")]
)
def test_a_deferral_that_airflow_times_out_is_a_timeout(context: Any, airflow_2: bool, flag: str, became: str) -> None:
    sensor = make_sensor(**({flag: True} if flag else {}))
    error = {"error": words_of_airflow(airflow_2)}
    kind, words = outcome(lambda: sensor.resume_execution("__fail__", error, context))
    assert kind == became
    assert f"{NAME} may still run" in words


@pytest.mark.parametrize("flag", ["", "soft_fail"])
def test_a_deferral_that_airflow_times_out_at_the_execution_timeout_is_a_timeout_of_the_task(
    context: Any, airflow_2: bool, flag: str
) -> None:
    """Airflow 2 sees to it itself, counting from the start of the task, which is before the trigger's own end."""
    sensor = make_sensor(execution_timeout=timedelta(seconds=30), **({flag: True} if flag else {}))
    with pytest.raises(AirflowTaskTimeout):
        sensor.resume_execution("__fail__", {"error": words_of_airflow(airflow_2)}, context)


@pytest.mark.parametrize(("flag", "became"), [("", "error"), ("soft_fail", "error"), ("never_fail", "skip")])
@pytest.mark.parametrize("next_kwargs", [{"error": "Trigger failure", "traceback": ["a"]}, {"error": "odd"}, {}, None])
def test_a_failed_trigger_leaves_the_task_its_retries(context: Any, next_kwargs: Any, flag: str, became: str) -> None:
    sensor = make_sensor(**({flag: True} if flag else {}))
    assert outcome(lambda: sensor.resume_execution("__fail__", next_kwargs, context))[0] == became


@pytest.mark.parametrize("flag", ["", "soft_fail", "never_fail"])
def test_an_execution_timeout_is_a_timeout_of_the_task(
    emulator: DaiEmulator, context: Any, clock: Clock, flag: str
) -> None:
    emulator.start_ingest(NAME)
    options = {"execution_timeout": timedelta(seconds=30), **({flag: True} if flag else {})}
    began = clock.now
    with pytest.raises(
        AirflowTaskTimeout, match="has not finished within 30 s.* execution_timeout of the task has passed"
    ):
        in_the_triggerer(lambda: make_sensor(**options), context, clock)
    assert clock.now - began == pytest.approx(30)
    assert emulator.cancel_requested(NAME) == 0


def test_each_mode_returns_the_same_keys(emulator: DaiEmulator, context: Any, clock: Clock) -> None:
    results = []
    for run_in in MODES.values():
        name = emulator.start_ingest(seconds=20)
        result = run_in(lambda name=name: make_sensor(operation_name=name), context, clock)
        assert json.loads(json.dumps(result)) == result
        results.append(set(result))
    assert results[0] == results[1] == results[2]
