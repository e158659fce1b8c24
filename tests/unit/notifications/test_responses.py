"""The requests and the report of a notifier for each response of the service; the same from ``async_notify``."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, BaseOperator

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks import dai
from airflow_dai_provider.notifications import dai as notifications
from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator, count
from tests.support.event_loop import run
from tests.support.log import Log
from tests.support.task_instance import Ti
from tests.support.tiny_server import Exchange, Serve

GET, CANCEL = "operations.get", "operations.cancel"
A, B, C = (f"operations/{letter}" for letter in "abc")


@dataclass
class Situation:
    """A situation of a notifier; the service has the ingests a, b and c.

    :param given: arguments of the notifier.
    :param states: the expected states of the ingests.
    :param requests: the expected requests, in any order: ``c`` for cancel, ``g`` for get, and the letter of the ingest.
    :param prepare: prepares the service.
    :param options: options of the service.
    :param finished: whether the ingests have finished by themselves.
    :param logged: a pattern that the log is expected to contain.
    :param reported: a pattern of the expected error, or None where nothing is raised.
    :param pauses: the expected number of pauses.
    """

    given: dict[str, Any]
    states: str
    requests: str
    prepare: Callable[[DaiEmulator], Any] = lambda _: None
    options: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    logged: str = ""
    reported: str | None = None
    pauses: int = 0


def refuse(rpc_status: str | None = None, *, of: str | None = None, **fault: Any) -> Callable[[DaiEmulator], Any]:
    """Let the cancellation of an operation, or of all, fail."""
    fault.setdefault("times", None)
    return lambda emulator: emulator.inject(Fault(method=CANCEL, name=of, rpc_status=rpc_status, **fault))


def one_of_each(emulator: DaiEmulator) -> None:
    refuse(of=A, status=503, times=2)(emulator)
    refuse("PERMISSION_DENIED", of=B)(emulator)


def unknown_at_first(emulator: DaiEmulator) -> None:
    for method in (CANCEL, GET):
        emulator.inject(Fault(method=method, rpc_status="NOT_FOUND"))


ALL = {"operation_name": [A, B, C]}
RUN, DONE = "RUNNING RUNNING RUNNING", "SUCCEEDED SUCCEEDED SUCCEEDED"
SITUATIONS = {
    "cancelled": Situation(
        ALL, "CANCELLED CANCELLED CANCELLED", "ca cb cc", logged=f"Requested the cancellation of {A}"
    ),
    "finished, cancel accepted": Situation(
        {"operation_name": A}, DONE, "ca", options={"finished_cancel": "ok"}, finished=True
    ),
    **{
        f"finished, {status.upper()}": Situation(
            {"operation_name": A},
            DONE,
            "ca ga",
            options={"finished_cancel": status},
            finished=True,
            logged=f"{A} is SUCCEEDED.*: it had already finished, there is nothing to cancel",
        )
        for status in ("failed_precondition", "not_found")
    },
    "unknown to the service": Situation(
        {"operation_name": "operations/x", "timeout": 60},
        RUN,
        "cx gx " * 3,
        logged="operations/x .*Nothing is left to cancel, unless operations/x was started just now",
        pauses=10,
    ),
    "unknown at first": Situation(
        {"operation_name": A}, "CANCELLED RUNNING RUNNING", "ca ga ca", unknown_at_first, pauses=1
    ),
    **{
        f"{status} although it runs": Situation(
            {"operation_name": A, "timeout": 2},
            RUN,
            "ca ga ca ga",
            refuse(status),
            pauses=2,
            reported=f"{A} may still run: .* {status}.* But {A} is RUNNING",
        )
        for status in ("NOT_FOUND", "FAILED_PRECONDITION")
    },
    "503, then it recovers": Situation(
        ALL, "CANCELLED CANCELLED CANCELLED", "ca ga cb cc ca ga ca", refuse(of=A, status=503, times=2), pauses=2
    ),
    "503 forever": Situation(
        {**ALL, "timeout": 2},
        RUN,
        "ca cb cc ca cb cc ga gb gc ga gb gc",
        refuse(status=503),
        reported=f"{A} may still run: .* 503 UNAVAILABLE.* {B} may still run: .* {C} may still run: ",
        pauses=2,
    ),
    "503 forever for one": Situation(
        {**ALL, "timeout": 2},
        "CANCELLED RUNNING CANCELLED",
        "ca cb gb cc cb gb",
        refuse(of=B, status=503),
        reported=f"^Not every ingest could be cancelled. {B} may still run: [^/]*{B} returned 503 UNAVAILABLE",
        pauses=2,
    ),
    **{
        f"{status} for one": Situation(
            ALL,
            "RUNNING CANCELLED CANCELLED",
            "ca cb cc",
            refuse(status, of=A),
            reported=f"{A} may still run: .*{status}(?!.* may still run)",
        )
        for status in ("UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED")
    },
    "no cancel on this server": Situation(
        ALL,
        RUN,
        "ca cb cc",
        lambda emulator: emulator.unimplement(CANCEL),
        reported=f"{A} may still run: .* 501 UNIMPLEMENTED.* {B} may still run: .* {C} may still run: ",
    ),
    "an HTML error, then it recovers": Situation(
        {"operation_name": A},
        "CANCELLED RUNNING RUNNING",
        "ca ga ca",
        refuse(status=502, body="<html>", content_type="text/html", times=1),
        pauses=1,
    ),
    "finished, but get fails": Situation(
        {"operation_name": A, "timeout": 2},
        DONE,
        "ca ga ca ga",
        lambda emulator: emulator.inject(Fault(method=GET, status=503, times=None)),
        options={"finished_cancel": "failed_precondition"},
        finished=True,
        reported=f"{A} may still run: {GET} of {A} returned 503",
        pauses=2,
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
        RUN,
        "",
        reported=rf"{A} may still run: '\{{\{{ missing.name \}}\}}' cannot be rendered: .* {B} may still run: ",
    ),
    "one of each": Situation(
        {"operation_name": ["nonsense", A, B, C, A]},
        "CANCELLED RUNNING CANCELLED",
        "ca ga cb cc ca ga ca",
        one_of_each,
        reported=f"Invalid operation name 'nonsense'.* {B} may still run: .* 403 PERMISSION_DENIED",
        pauses=2,
    ),
    "nothing to cancel": Situation({"operation_name": ["", None]}, RUN, "", logged="No operation to cancel"),
}


@dataclass
class Outcome:
    """The outcome in a situation; two are equal when a user cannot tell them apart."""

    states: str
    requests: list[str]
    slept: list[float]
    raised: str | None
    log: list[str]
    errors: list[str]


def notify(notifier: DaiCancelOperationNotifier, context: Any) -> None:
    notifier.render_template_fields(context)
    notifier.notify(context)


def async_notify(notifier: DaiCancelOperationNotifier, context: Any) -> None:
    notifier.render_template_fields(context)
    run(notifier.async_notify(context))


@pytest.fixture
def outcome_of(
    make_emulator: MakeEmulator, clock: Clock, log: Log, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """A function that brings a notifier into a situation and calls it."""
    monkeypatch.setattr(notifications, "REQUEST_TIMEOUT", 30.0)  # real, on a busy machine

    def without_address(text: str) -> str:
        return re.sub(r"127\.0\.0\.1:\d+", "<address>", text)

    def outcome_of(situation: Situation, call: Callable[[DaiCancelOperationNotifier, Any], None]) -> Outcome:
        clock.slept.clear()
        log.everything.clear()
        emulator = make_emulator(**situation.options)
        for name in (A, B, C):
            emulator.start_ingest(name, seconds=0 if situation.finished else 1e9)
        situation.prepare(emulator)
        emulator.forget_requests()
        raised = None
        try:
            call(DaiCancelOperationNotifier(**situation.given), {"dag": DAG("responses", schedule=None)})
        except AirflowException as error:
            raised = without_address(str(error))
        return Outcome(
            states=" ".join(emulator.state(name) for name in (A, B, C)),
            requests=sorted(f"{r.method.split('.')[1][0]}{r.name[-1]}" for r in emulator.requests),
            slept=list(clock.slept),
            raised=raised,
            log=sorted(map(without_address, log.ours)),
            errors=sorted(map(without_address, log.errors)),
        )

    return outcome_of


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=list(SITUATIONS))
def test_each_operation_is_cancelled_or_reported(situation: Situation, outcome_of: Callable[..., Outcome]) -> None:
    outcome = outcome_of(situation, notify)
    assert (outcome.states, outcome.requests) == (situation.states, sorted(situation.requests.split()))
    assert outcome.slept == [1] * situation.pauses
    assert re.search(situation.logged, "\n".join(outcome.log))
    if situation.reported is None:
        assert (outcome.raised, outcome.errors) == (None, [])
    else:
        assert re.search(situation.reported, outcome.raised or "")
        assert outcome.errors
        assert "cancelled" not in " ".join(outcome.errors).replace("could be cancelled", "")


@pytest.mark.parametrize("name", ["cancelled", "503 forever", "one of each", "nothing to cancel"])
def test_async_notify_does_the_same(name: str, outcome_of: Callable[..., Outcome]) -> None:
    assert outcome_of(SITUATIONS[name], async_notify) == outcome_of(SITUATIONS[name], notify)


@pytest.mark.parametrize("fault", ["it returns 503", "it is stopped"])
@pytest.mark.parametrize("timeout", [3, 10])
def test_the_timeout_bounds_the_attempts_at_an_unavailable_service(
    emulator: DaiEmulator, log: Log, clock: Clock, fault: str, timeout: float
) -> None:
    for name in (A, B, C):
        emulator.start_ingest(name)
    if fault == "it is stopped":
        emulator.stop()
    else:
        emulator.inject(Fault(status=503, times=None))
    began = clock.now
    with pytest.raises(AirflowException) as raised:
        DaiCancelOperationNotifier([A, B, C], timeout=timeout).notify({})
    assert timeout - 1 <= clock.now - began <= timeout
    assert [line.split(" ")[0] for line in log.errors] == [A, B, C]
    for name in (A, B, C):
        assert f"{name} may still run: " in str(raised.value)
    assert fault == "it is stopped" or count(emulator, CANCEL) == 3 * timeout
    assert "cancelled" not in " ".join(log.ours).lower().replace("could not be cancelled", "")


def test_the_timeout_bounds_the_attempts_at_a_slow_service(
    emulator: DaiEmulator, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [emulator.start_ingest() for _ in range(20)]
    # A second passes at every reading, which stands for the time that a request takes. Several threads read.
    monkeypatch.setattr(DaiCancelOperationNotifier, "_clock", itertools.count().__next__)
    with pytest.raises(AirflowException, match="the time was up before it could be cancelled"):
        DaiCancelOperationNotifier(names, timeout=10).notify({})
    assert 0 < len(emulator.requests) <= 10
    running = {name for name, state in emulator.states().items() if state == "RUNNING"}
    assert {line.split(" ")[0] for line in log.errors} == running


@pytest.mark.parametrize("timeout", [3, 60])
@pytest.mark.usefixtures("emulator")
def test_one_request_takes_at_most_five_seconds_and_is_not_retried(
    monkeypatch: pytest.MonkeyPatch, timeout: float
) -> None:
    made: list[Any] = []

    class RecordedHook(dai.DaiHook):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(dai, "DaiHook", RecordedHook)
    DaiCancelOperationNotifier(A, timeout=timeout).notify({})
    assert (made[0].timeout, made[0].retry_timeout) == (min(timeout, 5), 0)
    assert made[0]._transport is None  # closed


@pytest.mark.parametrize("timeout", [0, -1, "10", None, True, 1e14], ids=repr)
def test_an_invalid_timeout_is_refused_where_the_dag_is_parsed(timeout: Any) -> None:
    with pytest.raises(AirflowException, match="^Invalid timeout"):
        DaiCancelOperationNotifier(A, timeout=timeout)


@pytest.mark.parametrize("extra", [None, {"keyfile_dict": "{SECRET"}, {"key_path": "/SECRET/none.json"}], ids=str)
@pytest.mark.usefixtures("metadata_database", "fake_time")
def test_without_a_usable_connection_each_operation_is_reported(
    monkeypatch: pytest.MonkeyPatch, log: Log, extra: dict[str, str] | None
) -> None:
    if extra:
        connection = {"conn_type": "google_cloud_platform", "extra": extra, "password": "SECRET"}
        monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(connection))
    reported = f"Invalid operation name 'nonsense'.* {A} may still run: .* {B} may still run: "
    with pytest.raises(AirflowException, match=reported) as raised:
        DaiCancelOperationNotifier([A, "nonsense", B]).notify({})
    assert "{SECRET" not in str(raised.value) + log.text
    assert [line.split(" ")[0] for line in log.errors[-2:]] == [A, B]


def test_a_second_cancellation_is_no_error(make_emulator: MakeEmulator, log: Log) -> None:
    """A deadline can pass when a failure callback has already cancelled."""
    emulator = make_emulator(finished_cancel="failed_precondition")
    emulator.start_ingest(A)
    for _ in range(2):
        DaiCancelOperationNotifier(A).notify({})
    assert log.ours[0] == f"Requested the cancellation of {A}."
    assert log.ours[1].startswith(f"{A} is CANCELLED")
    assert log.ours[1].endswith("it had already finished, there is nothing to cancel.")
    assert log.errors == []


@pytest.mark.usefixtures("fake_time")
def test_sixty_map_indexes_of_a_run_are_cancelled_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, tiny_server: Serve, ti: Ti, log: Log
) -> None:
    together = threading.Barrier(60, timeout=30)

    def answer(exchange: Exchange) -> None:
        together.wait()  # no request gets its response before all have come
        exchange.answer(200, {})

    for index in range(60):
        ti.of_other_task("mapped", "operation_name", f"operations/ad-{index}", index)
    with DAG("many", schedule=None) as dag:
        BaseOperator(task_id="mapped")
    server = tiny_server(answer)
    monkeypatch.setenv("DAI_EMULATOR_HOST", server.host)
    monkeypatch.setattr(notifications, "REQUEST_TIMEOUT", 30.0)  # real, on a busy machine
    DaiCancelOperationNotifier(timeout=60).notify({"dag": dag, "ti": ti, "reason": "timed_out"})
    assert len(server.requests) == 60
    assert log.errors == []


def test_what_the_time_did_not_suffice_for_is_named(
    emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    names = [emulator.start_ingest() for _ in range(200)]
    # A second passes at every reading, which stands for the time that a request takes. Several threads read.
    monkeypatch.setattr(DaiCancelOperationNotifier, "_clock", itertools.count().__next__)
    with pytest.raises(AirflowException, match="the time was up before it could be cancelled") as raised:
        DaiCancelOperationNotifier(names, timeout=50).notify({})
    running = {name for name, state in emulator.states().items() if state == "RUNNING"}
    assert 0 < len(running) < 200
    assert {line.split(" ")[0] for line in log.errors} == running
    assert all(name in str(raised.value) for name in running)


@pytest.mark.parametrize(
    "given", ['["operations/a", "operations/b"]', "['operations/a', 'operations/b']", ("operations/a", "operations/b")]
)
def test_a_text_that_a_template_has_made_of_a_list_is_a_list(emulator: DaiEmulator, given: Any) -> None:
    for name in (A, B, C):
        emulator.start_ingest(name)
    DaiCancelOperationNotifier(given).notify({})
    assert [emulator.state(name) for name in (A, B, C)] == ["CANCELLED", "CANCELLED", "RUNNING"]


@pytest.mark.parametrize("given", ["[operations/a", [[A]]])
def test_what_is_no_list_of_names_is_a_problem(emulator: DaiEmulator, given: Any) -> None:
    with pytest.raises(AirflowException, match="Invalid operation_name"):
        DaiCancelOperationNotifier(given).notify({})
    assert emulator.requests == []
