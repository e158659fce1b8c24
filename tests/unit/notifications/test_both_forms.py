"""The synchronous and the asynchronous form meet the same situations, and do the same, to the word."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException
from jinja2 import Environment

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from tests.support.event_loop import run

if TYPE_CHECKING:
    from conftest import Clock, Log

GET, CANCEL = "operations.get", "operations.cancel"
A, B, C = (f"operations/{letter}" for letter in "abc")


@dataclass
class Situation:
    """A situation of a notifier; the service has the ingests a, b and c.

    :param given: arguments of the notifier.
    :param prepare: prepares the service.
    :param options: options of the service.
    :param ended: whether the ingests have finished by themselves.
    :param states: the expected states of the ingests.
    :param asked: the expected requests, in any order: ``c`` for cancel, ``g`` for get, and the letter of the ingest.
    :param reported: a pattern of the expected error, or None where nothing is raised.
    :param slept: the expected number of pauses.
    """

    given: dict[str, Any]
    states: str
    asked: str
    prepare: Callable[[DaiEmulator], Any] = lambda _: None
    options: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    reported: str | None = None
    slept: int = 0


def answers(rpc_status: str | None = None, *, of: str | None = None, **fault: Any) -> Callable[[DaiEmulator], Any]:
    """Let cancelling an operation, or all, fail."""
    fault.setdefault("times", None)
    return lambda emulator: emulator.inject(Fault(method=CANCEL, name=of, rpc_status=rpc_status, **fault))


def mixture(emulator: DaiEmulator) -> None:
    answers(of=A, status=503, times=2)(emulator)
    answers("PERMISSION_DENIED", of=B)(emulator)


ALL = {"operation_name": [A, B, C]}
SITUATIONS = {
    "cancelled": Situation(ALL, "CANCELLED CANCELLED CANCELLED", "ca cb cc"),
    "finished, and the service does not mind": Situation(
        {"operation_name": A}, "SUCCEEDED SUCCEEDED SUCCEEDED", "ca", options={"finished_cancel": "ok"}, ended=True
    ),
    "finished, FAILED_PRECONDITION": Situation(
        {"operation_name": A},
        "SUCCEEDED SUCCEEDED SUCCEEDED",
        "ca ga",
        options={"finished_cancel": "failed_precondition"},
        ended=True,
    ),
    "finished, NOT_FOUND": Situation(
        {"operation_name": A},
        "SUCCEEDED SUCCEEDED SUCCEEDED",
        "ca ga",
        options={"finished_cancel": "not_found"},
        ended=True,
    ),
    "not there": Situation({"operation_name": "operations/x"}, "RUNNING RUNNING RUNNING", "cx gx"),
    "NOT_FOUND although it runs": Situation(
        {"operation_name": A},
        "RUNNING RUNNING RUNNING",
        "ca ga",
        answers("NOT_FOUND"),
        reported=f"{A} may still run: .* 404 NOT_FOUND.* But {A} is RUNNING",
    ),
    "503, then it heals": Situation(
        ALL, "CANCELLED CANCELLED CANCELLED", "ca cb cc ca ca", answers(of=A, status=503, times=2), slept=2
    ),
    "503 forever": Situation(
        {**ALL, "timeout": 2},
        "RUNNING RUNNING RUNNING",
        "ca cb cc ca cb cc",
        answers(status=503),
        reported=f"{A} may still run: .* 503 UNAVAILABLE.* {B} may still run: .* {C} may still run: ",
        slept=2,
    ),
    "503 forever for one": Situation(
        {**ALL, "timeout": 2},
        "CANCELLED RUNNING CANCELLED",
        "ca cb cc cb",
        answers(of=B, status=503),
        reported=f"^Not every ingest could be cancelled. {B} may still run: [^/]*{B} returned 503 UNAVAILABLE",
        slept=2,
    ),
    "UNIMPLEMENTED": Situation(
        ALL,
        "RUNNING RUNNING RUNNING",
        "ca cb cc",
        lambda emulator: emulator.unimplement(CANCEL),
        reported=f"{A} may still run: .* 501 UNIMPLEMENTED.* {B} may still run: .* {C} may still run: ",
    ),
    "UNAUTHENTICATED": Situation(
        {"operation_name": A},
        "RUNNING RUNNING RUNNING",
        "ca",
        answers("UNAUTHENTICATED"),
        reported=f"{A} may still run: .* 401 UNAUTHENTICATED",
    ),
    "an HTML error, then it heals": Situation(
        {"operation_name": A},
        "CANCELLED RUNNING RUNNING",
        "ca ca",
        answers(status=502, body="<html>", content_type="text/html", times=1),
        slept=1,
    ),
    "finished, and then away": Situation(
        {"operation_name": A, "timeout": 2},
        "SUCCEEDED SUCCEEDED SUCCEEDED",
        "ca ga ca ga",
        lambda emulator: emulator.inject(Fault(method=GET, status=503, times=None)),
        options={"finished_cancel": "failed_precondition"},
        ended=True,
        reported=f"{A} may still run: {GET} of {A} returned 503",
        slept=2,
    ),
    "an invalid name": Situation(
        {"operation_name": ["operations/../x", {"name": B}, A]},
        "CANCELLED RUNNING RUNNING",
        "ca",
        reported="Invalid operation name 'operations/../x'.* pass its 'name'",
    ),
    "a template that cannot be rendered": Situation(
        {"operation_name": ["operations/{{ missing.name }}", "{{ 1 +", A]},
        "CANCELLED RUNNING RUNNING",
        "ca",
        reported=r"'operations/\{\{ missing.name \}\}' cannot be rendered: 'missing' is undefined.* '\{\{ 1 \+' cannot",
    ),
    "a connection that cannot be rendered": Situation(
        {"operation_name": [A, B], "impersonation_chain": ["{{ missing.name }}"]},
        "RUNNING RUNNING RUNNING",
        "",
        reported=rf"{A} may still run: '\{{\{{ missing.name \}}\}}' cannot be rendered: .* {B} may still run: ",
    ),
    "one of each": Situation(
        {"operation_name": ["nonsense", A, B, C, A]},
        "CANCELLED RUNNING CANCELLED",
        "ca cb cc ca ca",
        mixture,
        reported=f"Invalid operation name 'nonsense'.* {B} may still run: .* 403 PERMISSION_DENIED",
        slept=2,
    ),
    "a bad timeout": Situation(
        {"operation_name": A, "timeout": -1},
        "RUNNING RUNNING RUNNING",
        "",
        reported=f"{A} may still run: Invalid timeout",
    ),
    "nothing": Situation({"operation_name": ["", None]}, "RUNNING RUNNING RUNNING", ""),
}


@dataclass
class Outcome:
    """The outcome of one form; two are equal when a user cannot tell the forms apart."""

    states: str
    asked: str
    slept: list[float]
    raised: str | None
    log: list[str]
    errors: list[str]


def call(notifier: DaiCancelOperationNotifier, context: Any) -> None:
    notifier.render_template_fields(context)
    notifier.notify(context)


def call_async(notifier: DaiCancelOperationNotifier, context: Any) -> None:
    notifier.render_template_fields(context)
    run(notifier.async_notify(context))


def meet(situation: Situation, form: Callable[..., None], make_emulator: Any, clock: Clock, log: Log) -> Outcome:
    clock.slept.clear()
    log.everything.clear()
    emulator = make_emulator(**situation.options)
    for name in (A, B, C):
        emulator.start_ingest(name, seconds=0 if situation.ended else 1e9)
    situation.prepare(emulator)
    emulator.forget_requests()
    raised = None
    try:
        form(DaiCancelOperationNotifier(**situation.given), {"dag": DAG("both_forms", schedule=None)})
    except AirflowException as error:
        raised = str(error)

    def without_address(text: str) -> str:
        return re.sub(r"127\.0\.0\.1:\d+", "<address>", text)

    return Outcome(
        states=" ".join(emulator.state(name) for name in (A, B, C)),
        asked=" ".join(sorted(f"{r.method.split('.')[1][0]}{r.name[-1]}" for r in emulator.requests)),
        slept=list(clock.slept),
        raised=None if raised is None else without_address(raised),
        log=sorted(map(without_address, log.ours)),
        errors=sorted(map(without_address, log.errors)),
    )


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=list(SITUATIONS))
def test_both_do_the_same(situation: Situation, make_emulator: Any, clock: Clock, log: Log) -> None:
    first = meet(situation, call, make_emulator, clock, log)
    second = meet(situation, call_async, make_emulator, clock, log)
    assert second == first
    assert (first.states, first.asked) == (situation.states, " ".join(sorted(situation.asked.split())))
    assert first.slept == [1] * situation.slept
    if situation.reported is None:
        assert (first.raised, first.errors) == (None, [])
        assert first.log
    else:
        assert re.search(situation.reported, first.raised or "")
        assert first.errors
        assert "cancelled" not in " ".join(first.errors).replace("could be cancelled", "")


@pytest.mark.parametrize("form", [call, call_async])
def test_a_service_that_is_gone(form: Callable[..., None], emulator: DaiEmulator, clock: Clock, log: Log) -> None:
    emulator.stop()
    with pytest.raises(AirflowException, match=f"{A} may still run: .* {B} may still run: "):
        form(DaiCancelOperationNotifier([A, B], timeout=3), {"dag": None})
    assert [line.split(" ")[0] for line in log.errors] == [A, B]
    assert clock.slept == [1, 1, 1]


@pytest.mark.parametrize("form", [call, call_async])
def test_a_slow_service_cannot_hold_it(
    form: Callable[..., None], emulator: DaiEmulator, clock: Clock, log: Log
) -> None:
    names = [emulator.start_ingest() for _ in range(20)]
    clock.step = 1  # at every reading, which stands for the time that a request takes
    with pytest.raises(AirflowException, match="the time was up before it could be cancelled"):
        form(DaiCancelOperationNotifier(names, timeout=10), {"dag": None})
    assert 0 < len(emulator.requests) <= 10
    running = {name for name, state in emulator.states().items() if state == "RUNNING"}
    assert {line.split(" ")[0] for line in log.errors} == running


@pytest.mark.parametrize("form", [call, call_async])
@pytest.mark.parametrize("extra", [None, {"keyfile_dict": "{SECRET"}, {"key_path": "/SECRET/none.json"}], ids=str)
@pytest.mark.usefixtures("metadata_database", "fake_time")
def test_no_usable_connection(
    form: Callable[..., None], monkeypatch: pytest.MonkeyPatch, log: Log, extra: dict[str, str] | None
) -> None:
    if extra:
        connection = {"conn_type": "google_cloud_platform", "extra": extra, "password": "SECRET"}
        monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(connection))
    with pytest.raises(AirflowException, match=f"{A} may still run: .* {B} may still run: ") as raised:
        form(DaiCancelOperationNotifier([A, B]), {"dag": None})
    assert "{SECRET" not in str(raised.value) + log.text
    assert [line.split(" ")[0] for line in log.errors[1:]] == [A, B]


@pytest.mark.parametrize("form", [call, call_async])
def test_twice_is_once(form: Callable[..., None], make_emulator: Any, log: Log) -> None:
    """A deadline can pass when a failure callback has already cancelled."""
    emulator = make_emulator(finished_cancel="failed_precondition")
    emulator.start_ingest(A)
    for _ in range(2):
        form(DaiCancelOperationNotifier(A), {"dag": None})
    assert log.ours[0] == f"Requested the cancellation of {A}."
    assert log.ours[1].startswith(f"{A} is CANCELLED")
    assert log.ours[1].endswith("it had already finished, there is nothing to cancel.")
    assert log.errors == []


def test_an_environment_that_is_given_renders(emulator: DaiEmulator) -> None:
    emulator.start_ingest(A)
    notifier = DaiCancelOperationNotifier("operations/<< letter >>")
    context: Any = {"dag": None, "letter": "a"}
    notifier.render_template_fields(context, Environment(variable_start_string="<<", variable_end_string=">>"))  # noqa: S701
    notifier.notify(context)
    assert emulator.state(A) == "CANCELLED"
