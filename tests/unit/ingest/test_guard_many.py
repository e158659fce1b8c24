"""A task that starts a list of ingests leaves none stray: each row of the guards that one ingest has, for three."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowTaskTimeout, TaskDeferred

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.ingest import cancel_on_kill
from airflow_dai_provider.ingest.guard import IngestGuard
from airflow_dai_provider.ingest.outcome import IngestFailedError
from airflow_dai_provider.ingest.recovery import PAUSES, IngestMayHaveStartedError
from tests.support.airflow_versions import DEFERRAL_TIMED_OUT
from tests.support.clock import Clock
from tests.support.emulators import count
from tests.support.ingests import (
    CANCEL,
    CREATE,
    GET,
    LIST,
    SECRET,
    both,
    execute,
    fail,
    kill_in_each_call,
    make,
    resume,
    url,
)
from tests.support.log import Log
from tests.support.payloads import creative
from tests.support.task_instance import Store, Ti
from tests.support.tiny_server import Serve

pytestmark = pytest.mark.usefixtures("_time")


THREE = [creative(url(number)) for number in range(3)]


def cancelled(emulator: DaiEmulator) -> list[int]:
    """Return how often the cancellation of each ingest was requested."""
    return [emulator.cancel_requested(name) for name in emulator.states()]


class TestKill:
    def test_a_kill_while_it_waits_cancels_all(
        self, slow: DaiEmulator, context: Any, log: Log, between_polls: Any
    ) -> None:
        operator = make(creative=THREE)
        between_polls(operator.on_kill)
        with pytest.raises(IngestFailedError, match="0 of 3 ingests have succeeded. Did not succeed: 3 CANCELLED"):
            operator.execute(context)
        operator.on_kill()
        assert cancelled(slow) == [1, 1, 1]
        (line,) = [line for line in log.ours if line.endswith(": its task was killed.")]
        assert line.startswith("Requested the cancellation of operations/")
        assert all(name in line for name in slow.states())
        assert log.errors == []

    def test_what_has_finished_is_not_cancelled(
        self, slow: DaiEmulator, context: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        creatives = [creative(url(0, seconds=2)), *THREE[1:]]
        operator = make(creative=creatives)

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            if list(slow.states().values()).count("SUCCEEDED") and len(operator._guard.finished) == 1:
                operator.on_kill()

        monkeypatch.setattr(DaiHook, "_sleep", staticmethod(sleep))
        with pytest.raises(IngestFailedError, match="1 of 3 ingests have succeeded"):
            operator.execute(context)
        states = slow.states()
        assert {states[name]: slow.cancel_requested(name) for name in states} == {"SUCCEEDED": 0, "CANCELLED": 1}

    def test_a_name_that_is_answered_during_the_kill_is_cancelled_by_its_thread(
        self, slow: DaiEmulator, context: Any, ti: Ti, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operator = make(creative=THREE)
        create, push = DaiHook.create_creative, ti.xcom_push
        first, over = threading.Event(), threading.Event()

        def late(hook: DaiHook, *args: Any) -> Any:
            if not first.is_set():
                first.set()
                return create(hook, *args)
            started = create(hook, *args)
            assert over.wait(10)
            return started

        def killed(key: str, value: Any) -> None:
            push(key, value)
            if key == "operation_name" and not over.is_set():
                operator.on_kill()
                over.set()

        monkeypatch.setattr(DaiHook, "create_creative", late)
        monkeypatch.setattr(ti, "xcom_push", killed, raising=False)
        with pytest.raises(IngestFailedError, match="3 CANCELLED"):
            operator.execute(context)
        assert cancelled(slow) == [1, 1, 1]
        assert all(name in log.text for name in slow.states())

    def test_a_kill_among_the_starts_cancels_each_once_although_an_exception_follows(
        self, slow: DaiEmulator, context_before_3_3: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Airflow 2 raises one after ``on_kill``, while names still arrive."""
        operator = make(creative=THREE)
        create = DaiHook.create_creative
        first, over = threading.Lock(), threading.Event()

        def late(hook: DaiHook, *args: Any) -> Any:
            is_first = first.acquire(blocking=False)
            started = create(hook, *args)
            assert is_first or over.wait(10)
            return started

        push = ti.xcom_push

        def killed(key: str, value: Any) -> None:
            if not over.is_set():
                operator.on_kill()
                over.set()
                raise KeyboardInterrupt
            push(key, value)

        monkeypatch.setattr(DaiHook, "create_creative", late)
        monkeypatch.setattr(ti, "xcom_push", killed, raising=False)
        with pytest.raises(KeyboardInterrupt):
            operator.execute(context_before_3_3)
        sent = [request.name for request in slow.requests if request.method == CANCEL]
        assert sorted(sent) == sorted(slow.states())
        assert operator.cancels_own_ingest

    def test_a_kill_stops_the_starts(self, slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: Any) -> None:
        operator = make(creative=[creative(url(number)) for number in range(200)])
        push, enough, pushed = ti.xcom_push, threading.Event(), threading.Event()
        create = DaiHook.create_creative

        def some(hook: DaiHook, *args: Any) -> Any:
            if len(slow.states()) > 60:
                enough.set()
                assert pushed.wait(10)
            return create(hook, *args)

        def killed(key: str, value: Any) -> None:
            push(key, value)
            assert enough.wait(10)
            operator.on_kill()
            pushed.set()

        monkeypatch.setattr(cancel_on_kill, "KILL_TIMEOUT", 30.0)  # real, on a busy machine
        monkeypatch.setattr(DaiHook, "create_creative", some)
        monkeypatch.setattr(ti, "xcom_push", killed, raising=False)
        with pytest.raises(AirflowException, match="Not started: .* CANCELLED"):
            operator.execute(context)
        assert 60 <= len(slow.states()) < 200
        assert set(cancelled(slow)) == {1}

    def test_a_kill_makes_no_call_to_airflow(self, slow: DaiEmulator, context: Any, ti: Ti, store: Store) -> None:
        operator = make(creative=THREE, wait_for_completion=False)
        kill_in_each_call(operator, ti, store)
        operator.execute(context)
        assert cancelled(slow) == [1, 1, 1]

    def test_a_kill_before_execute_starts_nothing(self, slow: DaiEmulator, context: Any) -> None:
        operator = make(creative=THREE)
        operator.on_kill()
        with pytest.raises(AirflowException, match="Not started: 3 CANCELLED: .*: the task was killed before this"):
            operator.execute(context)
        assert slow.states() == {}

    def test_what_was_not_reached_is_named(self, slow: DaiEmulator, context: Any, log: Log, between_polls: Any) -> None:
        slow.inject(Fault(CANCEL, status=503, times=None))
        operator = make(creative=[creative(url(number)) for number in range(12)], cancel_on_failure=False)
        between_polls(operator.on_kill)
        assert len(operator.execute(context)) == 12
        for name in slow.states():
            assert any(
                f"{name} may still run: its task was killed" in e or f"{name}," in e or f", {name}" in e
                for e in log.errors
            )
        assert "It is the ingest of https://media.example.com/" in log.text
        assert count(slow, CANCEL) == 12, "Each is sent once."

    def test_all_of_a_thousand_are_named_when_the_service_hangs(
        self, tiny_server: Serve, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cancel_on_kill, "KILL_TIMEOUT", 1.0)
        over = threading.Event()
        server = tiny_server(lambda _: over.wait(60))
        monkeypatch.setenv("DAI_EMULATOR_HOST", server.host)
        names = [f"operations/ingest-{number:04}" for number in range(1_000)]
        guard = IngestGuard(on_kill=True, on_failure=True, log=make().log)
        with DaiHook() as hook:
            guard.prepare(hook, len(names))
            for name in names:
                guard.arm(hook, name)
            guard.kill()
        over.set()
        assert 0 < len(server.requests) <= cancel_on_kill.CONCURRENCY
        text = "\n".join(line for line in log.errors if "may still run: its task was killed" in line)
        assert [name for name in names if name not in text] == []
        assert guard.should_cancel
        guard.close()

    def test_a_kill_leaves_them_running_without_cancel_on_kill(
        self, slow: DaiEmulator, context: Any, between_polls: Any
    ) -> None:
        operator = make(creative=THREE, cancel_on_kill=False)

        def kill_as_airflow_2_does() -> None:
            operator.on_kill()
            raise KeyboardInterrupt

        between_polls(kill_as_airflow_2_does)
        with pytest.raises(KeyboardInterrupt):
            operator.execute(context)
        assert cancelled(slow) == [0, 0, 0]

    def test_a_kill_after_success_cancels_nothing(self, slow: DaiEmulator, context: Any) -> None:
        operator = make(creative=THREE)
        operator.execute(context)
        operator.on_kill()
        assert cancelled(slow) == [0, 0, 0]

    @pytest.mark.parametrize("cancel_on_kill", [True, False])
    @pytest.mark.usefixtures("slow")
    def test_cancel_on_kill_reaches_the_trigger(self, context: Any, cancel_on_kill: bool) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            make(creative=THREE, deferrable=True, cancel_on_kill=cancel_on_kill).execute(context)
        assert deferred.value.trigger.serialize()[1]["cancel_on_kill"] is cancel_on_kill

    def test_a_kill_after_a_deferral_cancels_only_on_airflow_3(
        self, slow: DaiEmulator, context: Any, airflow_2: bool
    ) -> None:
        operator = make(creative=THREE, deferrable=True)
        with pytest.raises(TaskDeferred):
            operator.execute(context)
        operator.on_kill()
        assert cancelled(slow) == 3 * [0 if airflow_2 else 1]


class TestFailure:
    @both
    def test_a_timeout_cancels_all(self, slow: DaiEmulator, context: Any, deferrable: bool) -> None:
        with pytest.raises(AirflowException, match="3 of 3 operations have not finished within 10 s"):
            execute(context, creative=THREE, timeout=10, deferrable=deferrable)
        assert cancelled(slow) == [1, 1, 1]

    @both
    def test_a_time_limit_cancels_as_a_kill_does(
        self, slow: DaiEmulator, context: Any, between_polls: Any, deferrable: bool
    ) -> None:
        limits: dict[str, Any] = {
            "creative": THREE,
            "deferrable": deferrable,
            "cancel_on_failure": False,
            "execution_timeout": timedelta(seconds=20),
        }
        if deferrable:
            with pytest.raises(TaskDeferred) as deferred:
                make(**limits).execute(context)
            with pytest.raises(AirflowTaskTimeout):
                resume(deferred.value, context, **limits)
        else:
            between_polls(lambda: (_ for _ in ()).throw(AirflowTaskTimeout("time is up")))
            with pytest.raises(AirflowTaskTimeout):
                execute(context, **limits)
        assert cancelled(slow) == [1, 1, 1]

    @both
    @pytest.mark.parametrize("faults", [1, None], ids=["one", "all"])
    def test_what_cannot_be_polled_is_cancelled(
        self, slow: DaiEmulator, context: Any, ti: Ti, faults: int | None, deferrable: bool
    ) -> None:
        ti.max_tries = 3
        slow.inject(Fault(GET, rpc_status="PERMISSION_DENIED", times=faults))
        with pytest.raises(AirflowFailException, match=f"Not polled: {faults or 3} PERMISSION_DENIED"):
            execute(context, creative=THREE, deferrable=deferrable)
        assert sorted(cancelled(slow)) == ([1, 1, 1] if faults is None else [0, 0, 1])

    @pytest.mark.parametrize("creatives", [THREE, THREE[0]], ids=["list", "one"])
    def test_what_could_not_be_cancelled_stays_guarded(
        self, slow: DaiEmulator, context: Any, between_polls: Any, creatives: Any
    ) -> None:
        def refuse() -> None:
            slow.inject(Fault(CANCEL, rpc_status="PERMISSION_DENIED", times=None, name=next(iter(slow.states()))))

        operator = make(creative=creatives, timeout=10)
        between_polls(refuse)
        with pytest.raises(AirflowException, match="within 10 s"):
            operator.execute(context)
        assert not operator.cancels_own_ingest, "The failure callback attempts it again."
        before = cancelled(slow)
        operator.on_kill()
        sent = [request.name for request in slow.requests if request.method == CANCEL]
        others = list(slow.states())[1:]
        assert {name: sent.count(name) for name in slow.states()} == {next(iter(slow.states())): 2} | dict.fromkeys(
            others, 1
        )
        assert cancelled(slow) == before

    def test_they_are_cancelled_although_airflow_is_unavailable(
        self, slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No name can be pushed then, nor the connection looked up; the hook of the task needs neither."""
        operator = make(creative=THREE)
        hooks = iter([operator._make_hook()])

        def away(*_: object) -> None:
            raise RuntimeError("the API server is away")

        monkeypatch.setattr(ti, "xcom_push", away, raising=False)
        monkeypatch.setattr(operator, "_make_hook", lambda: next(hooks, None) or away())
        with pytest.raises(RuntimeError, match="the API server is away"):
            operator.execute(context)
        assert cancelled(slow) == [1, 1, 1]

    @pytest.mark.parametrize("failure", ["event", "Trigger failure"])
    def test_a_resumed_task_that_fails_cancels_all(self, slow: DaiEmulator, context: Any, failure: str) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            make(creative=THREE, deferrable=True).execute(context)
        method, kwargs = "__fail__", {"error": failure}
        if failure == "event":
            method = deferred.value.method_name
            kwargs = {**(deferred.value.kwargs or {}), "event": {"status": "error", "code": None, "message": "x"}}
        with pytest.raises(AirflowException):
            make(creative=THREE, deferrable=True).resume_execution(method, kwargs, context)
        assert cancelled(slow) == [1, 1, 1]

    @pytest.mark.parametrize("ends", [3, 2])
    def test_a_deferral_without_a_triggerer_is_decided_by_one_last_poll(
        self, slow: DaiEmulator, context: Any, clock: Clock, ends: int
    ) -> None:
        creatives = [creative(url(0, seconds=600 if ends == 2 else 60)), *THREE[1:]]
        with pytest.raises(TaskDeferred):
            make(creative=creatives, deferrable=True).execute(context)
        clock.advance(100)
        error = {"error": DEFERRAL_TIMED_OUT}
        task = make(creative=creatives, deferrable=True)
        if ends == 3:
            assert task.resume_execution("__fail__", error, context) == list(
                context["ti"].pushed["ingest", -1, "operation_name"]
            )
            assert cancelled(slow) == [0, 0, 0]
        else:
            with pytest.raises(AirflowException, match="The last poll found: 2 of 3 finished"):
                task.resume_execution("__fail__", error, context)
            running = [name for name, state in slow.states().items() if state == "RUNNING"]
            assert [slow.cancel_requested(name) for name in running] == [1]


class TestLostResponse:
    def test_the_ingests_are_recovered_with_one_search(self, slow: DaiEmulator, context: Any, log: Log) -> None:
        slow.inject(Fault(CREATE, drop="after", times=2))
        names = execute(context, creative=THREE)
        assert sorted(names) == sorted(slow.states())
        assert set(slow.states().values()) == {"SUCCEEDED"}
        assert (count(slow, CREATE), count(slow, LIST)) == (3, 1)
        assert SECRET not in log.text

    def test_what_this_task_has_started_of_the_same_media_is_not_taken_for_it(
        self, slow: DaiEmulator, context: Any
    ) -> None:
        same = [creative(url(0), adTitle=str(number)) for number in range(3)]
        slow.inject(Fault(CREATE, drop="after"))
        names = execute(context, creative=same)
        assert len(set(names)) == 3
        assert sorted(names) == sorted(slow.states())

    def test_one_that_was_never_started_takes_no_sibling(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        ti.max_tries = 2
        same = [creative(url(0), adTitle=str(number)) for number in range(3)]
        slow.inject(Fault(CREATE, drop="before"))
        with pytest.raises(
            AirflowFailException, match="2 of 3 ingests have succeeded. Not started: 1 UNKNOWN.*no operat"
        ):
            execute(context, creative=same)
        assert list(slow.states().values()) == ["SUCCEEDED"] * 2
        (row,) = [row for row in ti.pushed["ingest", -1, "operation"] if row["name"] is None]
        assert "may run under an unknown name" in row["error_message"]

    def test_two_lost_starts_of_the_same_media_are_not_told_apart(self, slow: DaiEmulator, context: Any) -> None:
        same = [creative(url(0), adTitle=str(number)) for number in range(3)]
        slow.inject(Fault(CREATE, drop="after", times=2))
        with pytest.raises(AirflowFailException, match="Not started: 2 UNKNOWN.*several operations match: operations/"):
            execute(context, creative=same)
        assert count(slow, CREATE) == 3
        assert count(slow, LIST) == 1

    @pytest.mark.parametrize("status", [500, 503])
    def test_an_outage_costs_one_search_for_all(
        self, slow: DaiEmulator, context: Any, clock: Clock, status: int
    ) -> None:
        slow.inject(Fault(CREATE, status=status, times=None))
        with pytest.raises(AirflowFailException, match="0 of 3 ingests have succeeded. Not started: 3 UNKNOWN"):
            execute(context, creative=THREE)
        assert count(slow, CREATE) == 3
        assert count(slow, LIST) == len(PAUSES)
        assert clock.slept == list(PAUSES)


class TestInterruptedStart:
    @pytest.fixture
    def interrupted(self, slow: DaiEmulator, ti: Ti, monkeypatch: pytest.MonkeyPatch) -> list[Fault]:
        """A time limit comes while one request has been answered and two are under way, perhaps with faults."""
        create, push = DaiHook.create_creative, ti.xcom_push
        answered, over = threading.Event(), threading.Event()
        first, began = threading.Lock(), threading.Barrier(3)
        faults: list[Fault] = []

        def late(hook: DaiHook, *args: Any) -> Any:
            is_first = first.acquire(blocking=False)
            began.wait(10)
            if is_first:
                started = create(hook, *args)
                for fault in faults:
                    slow.inject(fault)
                answered.set()
                return started
            assert answered.wait(10)
            try:
                return create(hook, *args)
            finally:
                assert over.wait(10)

        def interrupt(key: str, value: Any) -> None:
            if over.is_set():
                push(key, value)
                return
            over.set()
            raise AirflowTaskTimeout("Timeout, PID: 1")

        monkeypatch.setattr(DaiHook, "create_creative", late)
        monkeypatch.setattr(ti, "xcom_push", interrupt, raising=False)
        return faults

    @pytest.mark.usefixtures("interrupted")
    def test_a_time_limit_during_the_starts_cancels_what_was_under_way(self, slow: DaiEmulator, context: Any) -> None:
        with pytest.raises(AirflowTaskTimeout):
            execute(context, creative=THREE)
        assert cancelled(slow) == [1, 1, 1]

    @pytest.mark.usefixtures("interrupted")
    def test_with_a_retry_the_next_try_has_all_of_them(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowTaskTimeout):
            execute(context, creative=THREE)
        assert cancelled(slow) == [0, 0, 0]
        ti.try_number = 2
        assert sorted(execute(context, creative=THREE)) == sorted(slow.states())
        assert count(slow, CREATE) == 3

    @pytest.mark.parametrize("listed", [True, False])
    def test_a_lost_response_under_way_is_recovered_or_fails_for_good(
        self, slow: DaiEmulator, context: Any, ti: Ti, interrupted: list[Fault], listed: bool
    ) -> None:
        ti.max_tries = 1
        interrupted.append(Fault(CREATE, drop="after"))
        if not listed:
            interrupted.append(Fault(LIST, rpc_status="UNIMPLEMENTED"))
        with pytest.raises(AirflowTaskTimeout if listed else IngestMayHaveStartedError, match="Timeout, PID: 1"):
            execute(context, creative=THREE)
        assert sorted(cancelled(slow)) == ([0, 0, 0] if listed else [0, 1, 1])
        if listed:
            ti.try_number = 2
            assert sorted(execute(context, creative=THREE)) == sorted(slow.states())

    def test_a_fault_of_the_xcom_backend_is_retried_with_the_same_ingests(
        self, slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ti.max_tries = 1
        with monkeypatch.context() as patches:
            patches.setattr(ti, "xcom_push", fail, raising=False)
            with pytest.raises(RuntimeError):
                execute(context, creative=THREE)
        ti.try_number = 2
        assert sorted(execute(context, creative=THREE)) == sorted(slow.states())
        assert (count(slow, CREATE), cancelled(slow)) == (3, [0, 0, 0])


@pytest.mark.parametrize("creatives", [THREE, THREE[0]], ids=["a list", "one"])
def test_a_pause_of_the_service_keeps_no_cancellation_from_being_tried(
    slow: DaiEmulator, context: Any, creatives: Any
) -> None:
    slow.inject(Fault(GET, status=429, retry_after=3_000, times=None))
    with pytest.raises(AirflowException, match="not finished within 100 s|have not finished"):
        make(creative=creatives, timeout=100).execute(context)
    assert set(cancelled(slow)) == {1}
