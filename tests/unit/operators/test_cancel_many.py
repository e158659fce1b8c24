"""DaiCancelOperationOperator with a list: it attempts all, waits for all, and tells what became of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.tasks import deferral
from airflow_dai_provider.tasks.failures import OperationNotFoundError, UnexpectedStateError
from airflow_dai_provider.transport.threads import CONCURRENCY
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator, count, methods
from tests.support.event_loop import fire
from tests.support.ingests import both
from tests.support.log import Log
from tests.support.task_instance import Store

GET, CANCEL = "operations.get", "operations.cancel"
A, B, C = "operations/a", "operations/b", "operations/c"
#: A cancel is refused for what has finished, and takes 3 s otherwise.
STRICT = {"finished_cancel": "failed_precondition", "cancel_seconds": 3}


def make(names: Any, **options: Any) -> DaiCancelOperationOperator:
    return DaiCancelOperationOperator(task_id="cancel", operation_name=names, **options)


def execute(context: Any, names: Any = (A, B, C), **options: Any) -> Any:
    """Execute a task from its start to its end, in another process after a deferral."""
    try:
        return make(names, **options).execute(context)
    except TaskDeferred as deferred:
        return resume(deferred, context, names, fire(deferred), **options)


def resume(deferred: TaskDeferred, context: Any, names: Any, event: Any, **options: Any) -> Any:
    kwargs = json.loads(json.dumps(deferred.kwargs or {})) | {"event": event}
    return make(names, **options).resume_execution(deferred.method_name, kwargs, context)


def cancelled(emulator: DaiEmulator) -> list[str]:
    """Return the operations whose cancellation was requested, sorted."""
    return sorted(request.name or "" for request in emulator.requests if request.method == CANCEL)


def pushed(context: Any) -> Any:
    """Return the XCom ``operation``, as it is after its way through the database."""
    value = context["ti"].pushed.get(("ingest", -1, "operation"))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    return value


def ends(context: Any) -> dict[str, tuple[str, bool]]:
    """Return how each operation has finished, and whether before the cancel."""
    return {one["name"]: (one["state"], one["already_finished"]) for one in pushed(context) if one}


@pytest.fixture
def three(make_emulator: MakeEmulator) -> DaiEmulator:
    """Give an emulator with three ingests that run."""
    emulator = make_emulator(cancel_seconds=3)
    for name in (A, B, C):
        emulator.start_ingest(name)
    return emulator


each_way = pytest.mark.parametrize(
    "options",
    [{}, {"wait_for_completion": True}, {"wait_for_completion": True, "deferrable": True}],
    ids=["asks", "waits", "deferrable"],
)


# What is given


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([A, B, C], [A, B, C]),
        ((C, A), [C, A]),
        ([B], [B]),
        ([B, A, B, B], [B, A, B, B]),
        (f'["{A}", "{B}"]', [A, B]),
        (f"['{A}', '{B}']", [A, B]),
    ],
)
@each_way
def test_a_list_gives_lists_in_its_order_and_asks_once_for_each(
    three: DaiEmulator, context: Any, given: Any, names: list[str], options: Any
) -> None:
    assert execute(context, given, **options) == names
    assert cancelled(three) == sorted(set(names))
    if options:
        assert [one["name"] for one in pushed(context)] == names
        assert ends(context) == dict.fromkeys(names, ("CANCELLED", False))
    else:
        assert pushed(context) is None


@pytest.mark.parametrize("empty", [[], (), "[]"])
@each_way
def test_an_empty_list_is_fine_and_says_so(
    emulator: DaiEmulator, context: Any, log: Log, empty: Any, options: Any
) -> None:
    assert execute(context, empty, **options) == []
    assert emulator.requests == []
    assert log.lines("list of operations is empty")
    if options:
        assert pushed(context) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([A, None], r"operation_name\[1\].*None"),
        ([A, "", "creatives/b", B], r"2 of 4 values .*operation_name\[1\].*operation_name\[2\]"),
        ([A, [B]], "list within the list at index 1"),
        ([A] * 10_001, "at most 10,000 values, got 10,001"),
        ("[operations/a]", "expected one value, or a list as JSON"),
    ],
)
@each_way
def test_what_is_no_list_of_names_fails_for_good_before_anything_is_sent(
    three: DaiEmulator, context: Any, given: Any, words: str, options: Any
) -> None:
    with pytest.raises(AirflowFailException, match=words):
        execute(context, given, **options)
    assert three.requests == []


def test_names_that_no_trigger_can_keep_are_refused_before_anything_is_sent(three: DaiEmulator, context: Any) -> None:
    import random

    chance = random.Random(1)  # noqa: S311
    names = [f"operations/{chance.getrandbits(256):064x}" for _ in range(2_000)]
    with pytest.raises(AirflowFailException, match=r"2,000 operations take .* 44,000.*deferrable=False.*split"):
        execute(context, names, wait_for_completion=True, deferrable=True)
    assert three.requests == []


# How they finish


@both
def test_what_had_finished_is_told_apart_from_what_completed_in_spite_of_the_cancel(
    make_emulator: MakeEmulator, context: Any, deferrable: bool
) -> None:
    emulator = make_emulator(**STRICT)
    emulator.start_ingest(A)
    emulator.start_ingest(B, seconds=0)
    emulator.start_ingest(C, seconds=20, cancel="ignored")
    emulator.start_ingest("operations/d", seconds=0, outcome="INVALID_MEDIA")
    execute(context, [A, B, C, "operations/d"], wait_for_completion=True, deferrable=deferrable)
    assert ends(context) == {
        A: ("CANCELLED", False),
        B: ("SUCCEEDED", True),
        C: ("SUCCEEDED", False),
        "operations/d": ("FAILED", True),
    }


@both
def test_what_had_been_cancelled_before_had_already_finished(
    make_emulator: MakeEmulator, context: Any, deferrable: bool
) -> None:
    emulator = make_emulator(finished_cancel="failed_precondition")
    emulator.start_ingest(A)
    emulator.start_ingest(B)
    execute(context, [A])
    execute(context, [A, B], wait_for_completion=True, deferrable=deferrable)
    assert ends(context) == {A: ("CANCELLED", True), B: ("CANCELLED", False)}


@both
def test_an_unexpected_end_fails_the_task_for_good_when_all_have_finished(
    make_emulator: MakeEmulator, context: Any, log: Log, deferrable: bool
) -> None:
    emulator = make_emulator(**STRICT)
    emulator.start_ingest(A, cancel_seconds=60)
    emulator.start_ingest(B, seconds=2, cancel="ignored")
    emulator.start_ingest(C, seconds=2, cancel="ignored", outcome="INVALID_MEDIA")
    options = {"wait_for_completion": True, "deferrable": deferrable, "expected_states": "CANCELLED"}
    with pytest.raises(
        UnexpectedStateError, match="2 of 3 operations have finished unexpectedly.* accepts only CANCELLED"
    ) as caught:
        execute(context, **options)
    message = str(caught.value)
    assert "1 SUCCEEDED" in message
    assert "1 FAILED INVALID_MEDIA" in message
    assert f"{B} is SUCCEEDED" in message
    assert f"({C}) failed: INVALID_MEDIA" in message
    assert A not in message
    assert {name: state for name, (state, _) in ends(context).items()} == {
        A: "CANCELLED",
        B: "SUCCEEDED",
        C: "FAILED",
    }
    told = next(index for index, line in enumerate(log.ours) if f"{B} is SUCCEEDED" in line)
    assert told < next(index for index, line in enumerate(log.ours) if "3 of 3 finished" in line)


@both
def test_a_timeout_names_what_has_not_finished(
    three: DaiEmulator, context: Any, clock: Clock, deferrable: bool
) -> None:
    three.start_ingest("operations/d", cancel="ignored")
    began = clock.now
    with pytest.raises(
        AirflowException, match="1 of 4 operations have not finished within 90 s: operations/d"
    ) as caught:
        execute(context, [A, "operations/d", B, C], wait_for_completion=True, deferrable=deferrable, timeout=90)
    assert not isinstance(caught.value, AirflowFailException)
    assert A not in str(caught.value)
    assert "may still run" in str(caught.value)
    assert clock.now - began == pytest.approx(90)


# Errors


@both
def test_one_without_access_among_fifty_fails_the_task_for_good_after_the_wait(
    make_emulator: MakeEmulator, context: Any, deferrable: bool
) -> None:
    emulator = make_emulator(cancel_seconds=3)
    names = [emulator.start_ingest() for _ in range(50)]
    emulator.inject(Fault(method=CANCEL, name=names[17], rpc_status="PERMISSION_DENIED", times=None))
    with pytest.raises(AirflowFailException, match="1 of 50 operations could not be cancelled or polled") as caught:
        execute(context, names, wait_for_completion=True, deferrable=deferrable)
    assert names[17] in str(caught.value)
    assert "1 PERMISSION_DENIED" in str(caught.value)
    assert sorted(set(cancelled(emulator))) == sorted(names)
    assert [one and one["state"] for one in pushed(context)] == ["CANCELLED"] * 17 + [None] + ["CANCELLED"] * 32


def test_of_many_errors_the_first_ten_and_the_counts_are_told(make_emulator: MakeEmulator, context: Any) -> None:
    emulator = make_emulator()
    names = [emulator.start_ingest() for _ in range(40)]
    for index, name in enumerate(names[:30]):
        code = "PERMISSION_DENIED" if index % 3 else "INVALID_ARGUMENT"
        emulator.inject(Fault(method=CANCEL, name=name, rpc_status=code, times=None))
    with pytest.raises(AirflowFailException, match="30 of 40 operations could not be cancelled") as caught:
        execute(context, names)
    message = str(caught.value)
    assert "20 PERMISSION_DENIED" in message
    assert "10 INVALID_ARGUMENT" in message
    assert [name for name in names if f"{name}:" in message] == names[:10]
    assert "and 20 more" in message
    assert sorted(set(cancelled(emulator))) == sorted(names)


@each_way
def test_unimplemented_fails_at_once_and_for_good(make_emulator: MakeEmulator, context: Any, options: Any) -> None:
    emulator = make_emulator()
    names = [emulator.start_ingest() for _ in range(200)]
    emulator.inject(Fault(method=CANCEL, rpc_status="UNIMPLEMENTED", times=None))
    context["ti"].max_tries = 3
    with pytest.raises(AirflowFailException, match="does not support the method"):
        execute(context, names, **options)
    assert count(emulator, CANCEL) < 200
    assert count(emulator, GET) == 0


@pytest.mark.parametrize("missing_ok", [False, True])
@each_way
def test_what_the_service_does_not_know_is_accepted_with_missing_ok_only(
    three: DaiEmulator, context: Any, log: Log, options: Any, missing_ok: bool
) -> None:
    names = [A, "operations/gone", B, "operations/lost", C]
    if missing_ok:
        assert execute(context, names, missing_ok=True, **options) == names
        assert log.lines("does not know 2 of 5 operations")
    else:
        with pytest.raises(OperationNotFoundError, match="missing_ok=True accepts that") as caught:
            execute(context, names, **options)
        assert "2 NOT_FOUND" in str(caught.value)
    assert set(cancelled(three)) == set(names)
    if options:
        assert [one and one["state"] for one in pushed(context)] == ["CANCELLED", None, "CANCELLED", None, "CANCELLED"]


@both
def test_what_vanishes_during_the_wait_is_accepted_with_missing_ok(
    three: DaiEmulator, context: Any, deferrable: bool
) -> None:
    three.inject(Fault(method=GET, name=B, rpc_status="NOT_FOUND", times=None))
    execute(context, missing_ok=True, wait_for_completion=True, deferrable=deferrable)
    assert [one and one["state"] for one in pushed(context)] == ["CANCELLED", None, "CANCELLED"]


@both
@pytest.mark.parametrize("missing_ok", [False, True])
def test_errors_and_unexpected_ends_are_told_together(
    make_emulator: MakeEmulator, context: Any, deferrable: bool, missing_ok: bool
) -> None:
    emulator = make_emulator(**STRICT)
    emulator.start_ingest(A, seconds=10, cancel="ignored")
    emulator.start_ingest(B)
    emulator.inject(Fault(method=CANCEL, name=B, rpc_status="PERMISSION_DENIED", times=None))
    options = {"wait_for_completion": True, "deferrable": deferrable, "expected_states": ["CANCELLED"]}
    with pytest.raises(AirflowFailException) as caught:
        execute(context, [A, B, "operations/gone"], missing_ok=missing_ok, **options)
    message = str(caught.value)
    assert f"{A} is SUCCEEDED" in message
    assert f"{B}: " in message
    assert ("operations/gone" in message) is not missing_ok
    assert "may still run" in message


@both
def test_an_operation_that_cannot_be_polled_for_good_does_not_end_the_wait_for_the_others(
    three: DaiEmulator, context: Any, deferrable: bool
) -> None:
    three.inject(Fault(method=GET, name=B, rpc_status="PERMISSION_DENIED", times=None))
    with pytest.raises(AirflowFailException, match="1 of 3 operations could not be cancelled or polled"):
        execute(context, wait_for_completion=True, deferrable=deferrable)
    assert ends(context) == {A: ("CANCELLED", False), C: ("CANCELLED", False)}


@both
def test_one_that_is_unavailable_for_ever_is_believed_after_five_minutes(
    three: DaiEmulator, context: Any, clock: Clock, deferrable: bool
) -> None:
    three.inject(Fault(method=GET, name=B, status=503, times=None))
    began = clock.now
    with pytest.raises(AirflowException, match=rf"1 of 3 operations .*1 UNAVAILABLE.*{B}") as caught:
        execute(context, wait_for_completion=True, deferrable=deferrable)
    assert not isinstance(caught.value, AirflowFailException)
    assert 300 <= clock.now - began < 400
    assert ends(context) == {A: ("CANCELLED", False), C: ("CANCELLED", False)}


@both
def test_an_answer_for_another_operation_is_no_answer(three: DaiEmulator, context: Any, deferrable: bool) -> None:
    three.inject(Fault(method=GET, name=B, merge={"name": A}, times=None))
    with pytest.raises(AirflowException, match=rf"expected the operation {B}, got .*{A}"):
        execute(context, wait_for_completion=True, deferrable=deferrable)
    assert ends(context) == {A: ("CANCELLED", False), C: ("CANCELLED", False)}


@both
@pytest.mark.parametrize("rpc_status", ["FAILED_PRECONDITION", "NOT_FOUND"])
def test_a_wait_goes_on_until_get_shows_what_a_refusal_has_said(
    make_emulator: MakeEmulator, context: Any, rpc_status: str, deferrable: bool
) -> None:
    emulator = make_emulator()
    emulator.start_ingest(A)
    emulator.start_ingest(B, seconds=60)
    emulator.inject(Fault(method=CANCEL, name=B, rpc_status=rpc_status, times=None))
    execute(context, [A, B], wait_for_completion=True, deferrable=deferrable)
    assert {one["name"]: (one["state"], one["already_finished"]) for one in pushed(context)} == {
        A: ("CANCELLED", False),
        B: ("SUCCEEDED", None),
    }


def test_contradicting_answers_are_worth_a_retry(three: DaiEmulator, context: Any) -> None:
    three.inject(Fault(method=CANCEL, name=B, rpc_status="FAILED_PRECONDITION", times=None))
    with pytest.raises(AirflowException, match=rf"1 ABORTED.*{B} is RUNNING") as caught:
        execute(context)
    assert not isinstance(caught.value, AirflowFailException)


# The service is busy


def test_a_pause_that_the_service_asks_for_holds_every_request(
    make_emulator: MakeEmulator, context: Any, clock: Clock
) -> None:
    emulator = make_emulator()
    names = [emulator.start_ingest() for _ in range(300)]
    emulator.inject(Fault(method=CANCEL, headers={"X-Fine": "yes"}, times=100))
    emulator.inject(Fault(method=CANCEL, status=429, retry_after=20, times=1))
    assert execute(context, names) == names
    assert set(emulator.states().values()) == {"CANCELLED"}
    times = [request.time for request in emulator.requests if request.method == CANCEL]
    under_way = [time for time in times[101:] if time < times[100] + 20]
    assert len(under_way) < 2 * CONCURRENCY, "Only what was under way, or sent before the response was read."


# A retry


def retry(context: Any) -> None:
    context["ti"].try_number += 1


def test_a_retry_asks_only_for_what_may_still_heal(three: DaiEmulator, context: Any, store: Store) -> None:
    context["ti"].max_tries = 2
    three.inject(Fault(method=CANCEL, name=A, rpc_status="PERMISSION_DENIED", times=None))
    three.inject(Fault(method=CANCEL, name=B, status=503, times=6))
    with pytest.raises(AirflowException) as caught:
        execute(context, wait_for_completion=True)
    assert not isinstance(caught.value, AirflowFailException)
    assert pushed(context) is None, "It does not wait before a retry."
    three.forget_requests()
    retry(context)
    with pytest.raises(AirflowFailException, match=f"1 of 3 operations .*1 PERMISSION_DENIED.*{A}"):
        execute(context, wait_for_completion=True)
    assert cancelled(three) == [B]
    assert [one and one["state"] for one in pushed(context)] == [None, "CANCELLED", "CANCELLED"]


def test_after_a_clear_everything_is_asked_for_again(three: DaiEmulator, context: Any) -> None:
    context["ti"].max_tries = 1
    three.inject(Fault(method=CANCEL, name=B, status=503, times=6))
    with pytest.raises(AirflowException):
        execute(context)
    three.forget_requests()
    context["ti"].max_tries, context["ti"].try_number = 3, 2
    assert execute(context) == [A, B, C]
    assert cancelled(three) == [A, B, C]


def test_the_last_try_waits_for_the_others_in_spite_of_a_transient_error(three: DaiEmulator, context: Any) -> None:
    three.inject(Fault(method=CANCEL, name=B, status=503, times=None))
    with pytest.raises(AirflowException, match="1 UNAVAILABLE"):
        execute(context, wait_for_completion=True)
    assert ends(context) == {A: ("CANCELLED", False), C: ("CANCELLED", False)}


def test_without_a_store_a_retry_asks_for_all_again(three: DaiEmulator, context_before_3_3: Any) -> None:
    context_before_3_3["ti"].max_tries = 1
    three.inject(Fault(method=CANCEL, name=B, status=503, times=6))
    with pytest.raises(AirflowException):
        execute(context_before_3_3)
    three.forget_requests()
    retry(context_before_3_3)
    assert execute(context_before_3_3) == [A, B, C]
    assert set(cancelled(three)) == {A, B, C}


@both
def test_a_retry_tells_apart_what_had_finished_before_the_first_try(
    make_emulator: MakeEmulator, context: Any, clock: Clock, deferrable: bool
) -> None:
    emulator = make_emulator(**STRICT)
    emulator.start_ingest(A, seconds=0)
    emulator.start_ingest(B, seconds=30, cancel="ignored")
    emulator.start_ingest(C)
    emulator.inject(Fault(method=CANCEL, name=C, status=503, times=6))
    context["ti"].max_tries = 1
    with pytest.raises(AirflowException):
        execute(context, wait_for_completion=True, deferrable=deferrable)
    clock.advance(60)
    retry(context)
    execute(context, wait_for_completion=True, deferrable=deferrable)
    assert ends(context) == {A: ("SUCCEEDED", True), B: ("SUCCEEDED", False), C: ("CANCELLED", False)}


@both
def test_a_retry_after_a_wait_that_failed_knows_what_completed_in_spite_of_the_cancel(
    make_emulator: MakeEmulator, context: Any, clock: Clock, deferrable: bool
) -> None:
    emulator = make_emulator(**STRICT)
    emulator.start_ingest(A, seconds=0)
    emulator.start_ingest(B, seconds=30, cancel="ignored")
    emulator.start_ingest(C, cancel_seconds=100)
    context["ti"].max_tries = 1
    options = {"wait_for_completion": True, "deferrable": deferrable, "timeout": 60}
    with pytest.raises(AirflowException, match="1 of 3 operations have not finished"):
        execute(context, **options)
    clock.advance(300)
    retry(context)
    execute(context, **options)
    assert ends(context) == {A: ("SUCCEEDED", True), B: ("SUCCEEDED", False), C: ("CANCELLED", False)}


@each_way
def test_nothing_is_kept_of_a_task_that_has_succeeded(
    three: DaiEmulator, context: Any, store: Store, options: Any
) -> None:
    execute(context, **options)
    assert store.kept == {}


# Killed


@pytest.mark.parametrize("options", [{}, {"wait_for_completion": True}], ids=["asks", "waits"])
def test_a_task_killed_in_the_middle_sends_no_other_request_and_names_what_may_run(
    three: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch, options: Any
) -> None:
    operator = make([A, B, C], **options)
    cancel = DaiHook.cancel_operation

    def killed_by_b(hook: DaiHook, name: str) -> None:
        if name == B:
            operator.on_kill()
        cancel(hook, name)

    monkeypatch.setattr(DaiHook, "cancel_operation", killed_by_b)
    with pytest.raises(AirflowException, match="the task was killed") as caught:
        operator.execute(context)
    assert not isinstance(caught.value, AirflowFailException)
    assert B in str(caught.value)
    assert "may still run" in str(caught.value)
    assert B not in cancelled(three)
    assert GET not in methods(three)


def test_a_task_killed_during_the_wait_polls_no_more(
    three: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = make([A, B, C], wait_for_completion=True)
    monkeypatch.setattr(DaiHook, "_sleep", lambda *_: operator.on_kill())
    with pytest.raises(AirflowException, match="the task was killed") as caught:
        operator.execute(context)
    assert not isinstance(caught.value, AirflowFailException)
    assert "3 operations may still run" in str(caught.value)
    assert count(three, GET) == 6, "The poll after the request, and the first of the wait."


# A deferral that Airflow has ended


@pytest.fixture
def ended(context: Any) -> Callable[..., Any]:
    """Give a function that defers a task, and resumes it as Airflow does when it has ended the deferral."""

    def run(clock: Clock, names: Any, **options: Any) -> Any:
        options = {"wait_for_completion": True, "deferrable": True, **options}
        with pytest.raises(TaskDeferred):
            make(names, **options).execute(context)
        clock.advance(200)
        kwargs = {"error": sorted(deferral.TRIGGER_TIMEOUTS)[0]}
        return make(names, **options).resume_execution(deferral.FAILED_DEFERRAL, kwargs, context)

    return run


def test_a_list_that_has_finished_meanwhile_is_no_timeout(
    three: DaiEmulator, context: Any, clock: Clock, ended: Any
) -> None:
    assert ended(clock, [A, B, A, C]) == [A, B, A, C]
    assert [one["state"] for one in pushed(context)] == ["CANCELLED"] * 4


def test_a_list_of_which_one_runs_is_a_timeout(three: DaiEmulator, clock: Clock, ended: Any) -> None:
    three.start_ingest("operations/d", cancel="ignored")
    with pytest.raises(AirflowException, match=r"No triggerer ran .*3 of 4 finished.*may still run"):
        ended(clock, [A, B, "operations/d", C])


@pytest.mark.parametrize("missing_ok", [False, True])
def test_what_is_unknown_by_then_is_as_in_a_wait(
    three: DaiEmulator, context: Any, clock: Clock, ended: Any, missing_ok: bool
) -> None:
    three.inject(Fault(method=GET, name=B, content_type="application/json", times=1))
    three.inject(Fault(method=GET, name=B, rpc_status="NOT_FOUND", times=None))
    if missing_ok:
        assert ended(clock, [A, B, C], missing_ok=True) == [A, B, C]
    else:
        with pytest.raises(OperationNotFoundError, match=B):
            ended(clock, [A, B, C])
    assert [one and one["state"] for one in pushed(context)] == ["CANCELLED", None, "CANCELLED"]


def test_errors_of_the_requests_are_reported_after_a_deferral_that_airflow_has_ended(
    three: DaiEmulator, context: Any, clock: Clock, ended: Any
) -> None:
    three.inject(Fault(method=CANCEL, name=B, rpc_status="PERMISSION_DENIED", times=None))
    with pytest.raises(AirflowFailException, match=f"1 of 3 operations .*{B}"):
        ended(clock, [A, B, C])
    assert [one and one["state"] for one in pushed(context)] == ["CANCELLED", None, "CANCELLED"]


# The event


def test_an_event_without_one_of_the_list_is_refused(three: DaiEmulator, context: Any) -> None:
    from airflow_dai_provider.api.storable import pack

    with pytest.raises(TaskDeferred) as deferred:
        make([A, B, C], wait_for_completion=True, deferrable=True).execute(context)
    event = fire(deferred.value)
    for operations in (pack({"finished": [], "errors": {}}), pack([]), "no such text", None):
        with pytest.raises(AirflowException, match="event"):
            resume(deferred.value, context, [A, B, C], event | {"operations": operations})
    with pytest.raises(AirflowException, match="passed the event of"):
        resume(deferred.value, context, [A, B], event)
    assert pushed(context) is None


def test_an_event_in_which_one_still_runs_is_refused(three: DaiEmulator, context: Any) -> None:
    from airflow_dai_provider.api.storable import pack, unpack

    with pytest.raises(TaskDeferred) as deferred:
        make([A], wait_for_completion=True, deferrable=True).execute(context)
    event = fire(deferred.value)
    result = unpack(event["operations"])
    result["finished"][0] |= {"state": "RUNNING", "done": False, "error_code": None, "error_message": None}
    with pytest.raises(AirflowException, match="cannot be read"):
        resume(deferred.value, context, [A], event | {"operations": pack(result)})


def test_the_xcom_of_ten_thousand_operations_is_plain_json_in_their_order(
    make_emulator: MakeEmulator, context: Any, log: Log
) -> None:
    emulator = make_emulator(finished_cancel="failed_precondition")
    names = [emulator.start_ingest(seconds=0) for _ in range(1_000)]
    given = names * 10
    assert execute(context, given, wait_for_completion=True) == given
    assert [one["name"] for one in pushed(context)] == given
    assert len(json.dumps(pushed(context))) < 20_000_000
    assert len(cancelled(emulator)) == 1_000
    assert len(log.ours) < 20
