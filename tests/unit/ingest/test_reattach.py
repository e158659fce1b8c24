"""A try saves its ingest for the next one, which reattaches to it or cancels it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowException,
    AirflowFailException,
    AirflowTaskTimeout,
    TaskDeferred,
    timezone,
)

from airflow_dai_provider.api.polling import MAX_OUTAGE
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.ingest.reattach import KEY
from airflow_dai_provider.operators.dai.create_one import CreateOne
from airflow_dai_provider.tasks.failures import UnexpectedStateError
from airflow_dai_provider.version_compat import HAS_TASK_STATE_STORE
from tests.support.clock import Clock
from tests.support.dag_runs import RunDag
from tests.support.emulators import MakeEmulator, count, methods
from tests.support.ingests import CANCEL, CREATE, GET, both, cancel, execute, fail, make, resume, the
from tests.support.log import Log
from tests.support.payloads import creative
from tests.support.task_instance import Store, Ti, rendered

pytestmark = pytest.mark.usefixtures("_time")


class TestRetry:
    """On 3.3 the next try reattaches to the ingest of the one before."""

    def fail_first_try(self, context: Any, ti: Ti, **options: Any) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowException, match="has not finished within 10 s"):
            execute(context, timeout=10, **options)
        ti.try_number = 2
        ti.pushed.clear()  # as Airflow does

    @both
    def test_the_next_try_reattaches_to_the_same_creative_s_ingest(
        self, slow: DaiEmulator, context: Any, ti: Ti, store: Store, log: Log, deferrable: bool
    ) -> None:
        self.fail_first_try(context, ti, deferrable=deferrable)
        assert slow.cancel_requested(the(slow)) == 0
        assert f"Leaving {the(slow)} to the next try." in log.ours
        name = execute(context, deferrable=deferrable)
        assert slow.states() == {name: "SUCCEEDED"}
        assert slow.cancel_requested(name) == 0
        assert ti.pushed["ingest", -1, "operation_name"] == name
        assert ti.pushed["ingest", -1, "operation_started"]["try_number"] == 2
        assert store.kept == {}

    def test_the_next_try_reattaches_without_waiting(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        """The first try can have failed in what comes after ``execute``."""
        ti.max_tries = 1
        name = execute(context, wait_for_completion=False)
        ti.try_number = 2
        assert execute(context, wait_for_completion=False) == name
        assert slow.states() == {name: "RUNNING"}
        assert slow.cancel_requested(name) == 0

    def test_another_creative_s_ingest_of_a_succeeded_task_is_cancelled(self, slow: DaiEmulator, context: Any) -> None:
        """The task has succeeded, with the wrong file; the DAG is fixed, and the task cleared."""
        wrong = execute(context, wait_for_completion=False)
        right = execute(context, wait_for_completion=False, url="https://media.example.com/right.mp4")
        assert right != wrong
        assert [slow.cancel_requested(name) for name in (wrong, right)] == [1, 0]

    def test_a_cleared_task_whose_ingest_succeeded_starts_a_new_one(self, slow: DaiEmulator, context: Any) -> None:
        first = execute(context)
        second = execute(context)
        assert slow.states() == {first: "SUCCEEDED", second: "SUCCEEDED"}

    def test_the_last_try_cancels_its_ingest(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        self.fail_first_try(context, ti)
        with pytest.raises(AirflowException, match="has not finished within 10 s"):
            execute(context, timeout=10)
        assert slow.cancel_requested(the(slow)) == 1

    def test_a_permanent_error_cancels_although_retries_are_left(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        ti.max_tries = 3
        slow.inject(Fault(GET, rpc_status="PERMISSION_DENIED", times=None))
        with pytest.raises(AirflowFailException):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_before_3_3_each_failing_try_cancels(self, slow: DaiEmulator, context_before_3_3: Any, ti: Ti) -> None:
        self.fail_first_try(context_before_3_3, ti)
        first = the(slow)
        assert slow.cancel_requested(first) == 1
        second = execute(context_before_3_3)
        assert slow.states()[second] == "SUCCEEDED"
        assert slow.cancel_requested(second) == 0

    @pytest.mark.parametrize(
        "other",
        [
            {"url": "https://media.example.com/right.mp4"},
            {"creative": creative(adTitle="new")},
            {"creative": creative(networkCode="1"), "dynamic_creative_info": {"dynamicGroupId": "g"}},
        ],
        ids=["another file", "another title", "dynamic"],
    )
    def test_another_creative_s_ingest_is_cancelled_before_the_start(
        self, slow: DaiEmulator, context: Any, ti: Ti, other: Any
    ) -> None:
        self.fail_first_try(context, ti)
        wrong = the(slow)
        right = execute(context, **other)
        assert right != wrong
        assert slow.states() == {wrong: "CANCELLED", right: "SUCCEEDED"}
        called = methods(slow)
        assert called.index(CANCEL) < [n for n, method in enumerate(called) if method == CREATE][1]

    def test_nothing_is_started_if_another_creative_s_ingest_cannot_be_cancelled(
        self, slow: DaiEmulator, context: Any, ti: Ti
    ) -> None:
        self.fail_first_try(context, ti)
        slow.inject(Fault(CANCEL, rpc_status="UNIMPLEMENTED", times=None))
        with pytest.raises(AirflowFailException, match="UNIMPLEMENTED"):
            execute(context, url="https://media.example.com/right.mp4")
        assert count(slow, CREATE) == 1

    def test_another_creative_s_ingest_that_is_gone_when_it_is_cancelled_is_no_obstacle(
        self, slow: DaiEmulator, context: Any, ti: Ti
    ) -> None:
        self.fail_first_try(context, ti)
        wrong = the(slow)
        slow.inject(Fault(CANCEL, wrong, rpc_status="NOT_FOUND", times=None))
        slow.inject(Fault(GET, wrong, delay=0.01))
        slow.inject(Fault(GET, wrong, rpc_status="NOT_FOUND", times=None))
        right = execute(context, url="https://media.example.com/right.mp4")
        assert slow.states()[right] == "SUCCEEDED"

    @pytest.mark.parametrize("wait", [True, False])
    def test_an_ingest_that_has_succeeded_between_two_tries_is_the_result(
        self, slow: DaiEmulator, context: Any, ti: Ti, clock: Clock, wait: bool
    ) -> None:
        self.fail_first_try(context, ti)
        clock.advance(100)
        assert execute(context, wait_for_completion=wait) == the(slow)
        assert slow.states() == {the(slow): "SUCCEEDED"}
        assert ti.pushed["ingest", -1, "operation"]["state"] == "SUCCEEDED"

    @pytest.mark.parametrize("why", ["cancelled", "another creative", "cleared"])
    def test_another_finished_ingest_is_replaced(
        self, slow: DaiEmulator, context: Any, ti: Ti, clock: Clock, why: str
    ) -> None:
        self.fail_first_try(context, ti)
        first = the(slow)
        if why == "cancelled":
            cancel(slow)
        if why == "cleared":
            ti.max_tries = 3
        clock.advance(100)
        second = execute(context, **({"creative": creative(adTitle="new")} if why == "another creative" else {}))
        assert slow.states() == {first: "CANCELLED" if why == "cancelled" else "SUCCEEDED", second: "SUCCEEDED"}

    def test_a_retry_after_a_clear_takes_what_has_succeeded_since(
        self, slow: DaiEmulator, context: Any, ti: Ti, clock: Clock
    ) -> None:
        """The clear has reattached to the running ingest; the try after it is a retry of the cleared task."""
        self.fail_first_try(context, ti)
        ti.max_tries = 3
        with pytest.raises(AirflowException, match="has not finished within 10 s"):
            execute(context, timeout=10)
        ti.try_number = 3
        clock.advance(100)
        assert execute(context) == the(slow)

    @pytest.mark.parametrize("polls", [1, 2, 3])
    def test_an_ingest_that_is_unknown_for_a_moment_is_reattached_to(
        self, slow: DaiEmulator, context: Any, ti: Ti, polls: int
    ) -> None:
        self.fail_first_try(context, ti)
        slow.inject(Fault(GET, rpc_status="NOT_FOUND", times=polls))
        assert execute(context) == the(slow)
        assert (count(slow, CREATE), slow.cancel_requested(the(slow))) == (1, 0)

    @pytest.mark.parametrize(
        "fault", [{"status": 503}, {"status": 403, "html": True}, {"status": 404, "html": True}], ids=str
    )
    def test_an_outage_is_borne_as_long_as_by_a_wait(
        self, slow: DaiEmulator, context: Any, ti: Ti, clock: Clock, fault: Any
    ) -> None:
        """The page of a front end says nothing of the ingest."""
        self.fail_first_try(context, ti)
        slow.inject(Fault(GET, times=8, **fault))
        began = clock.now
        assert execute(context) == the(slow)
        assert 20 < clock.now - began < MAX_OUTAGE

    @pytest.mark.parametrize("rpc_status", ["PERMISSION_DENIED", "INVALID_ARGUMENT", "UNIMPLEMENTED"])
    def test_a_refused_poll_starts_nothing_until_the_task_is_cleared_again(
        self, slow: DaiEmulator, context: Any, ti: Ti, log: Log, rpc_status: str
    ) -> None:
        self.fail_first_try(context, ti)
        first = the(slow)
        slow.inject(Fault(GET, rpc_status=rpc_status, times=3))
        told = f"{rpc_status}.*{first}, which an earlier try started, may still run.*clear the task"
        for _ in range(2):
            with pytest.raises(AirflowFailException, match=told):
                execute(context, wait_for_completion=False)
        assert count(slow, CREATE) == 1
        ti.max_tries = 3  # as a clear sets it
        second = execute(context, wait_for_completion=False)
        assert list(slow.states()) == [first, second]
        assert f"{first} may still run: " in log.text

    def test_a_refusal_that_nobody_was_told_of_starts_nothing_after_a_clear(
        self, slow: DaiEmulator, context: Any, ti: Ti
    ) -> None:
        self.fail_first_try(context, ti)
        ti.max_tries = 3
        slow.inject(Fault(GET, rpc_status="PERMISSION_DENIED"))
        with pytest.raises(AirflowFailException, match="may still run"):
            execute(context)
        assert count(slow, CREATE) == 1

    def test_refused_credentials_are_no_word_on_the_ingest(
        self, slow: DaiEmulator, context: Any, ti: Ti, store: Store
    ) -> None:
        self.fail_first_try(context, ti)
        slow.inject(Fault(GET, rpc_status="UNAUTHENTICATED", times=2))
        with pytest.raises(AirflowFailException, match="UNAUTHENTICATED"):
            execute(context)
        assert store.kept[KEY]["refused"] is False

    def test_a_task_that_does_not_wait_leaves_an_ingest_that_is_being_cancelled(
        self, slow: DaiEmulator, context: Any, ti: Ti
    ) -> None:
        """A running task was cleared: its kill has requested the cancellation seconds ago."""
        first = execute(context, wait_for_completion=False)
        ti.try_number = 2
        cancel(slow)
        second = execute(context, wait_for_completion=False)
        assert slow.states() == {first: "CANCELLED", second: "RUNNING"}

    def test_an_ingest_that_the_service_no_longer_knows_is_replaced(
        self, slow: DaiEmulator, context: Any, store: Store
    ) -> None:
        store.kept[KEY] = {"operation_name": "operations/unknown", "endpoint": slow.endpoint, "digest": "x"}
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}

    @pytest.mark.parametrize(
        "kept", ["x", {}, {"operation_name": "../x", "endpoint": "x", "digest": "x"}, {"operation_name": "x"}]
    )
    def test_a_malformed_record_is_ignored(self, slow: DaiEmulator, context: Any, store: Store, kept: Any) -> None:
        store.kept[KEY] = kept
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}

    @both
    def test_an_ingest_cancelled_by_the_earlier_try_is_replaced(
        self, slow: DaiEmulator, context: Any, ti: Ti, store: Store, between_polls: Any, deferrable: bool
    ) -> None:
        """The kill of an earlier try can come after this one has reattached to its ingest."""
        self.fail_first_try(context, ti)
        first = the(slow)
        if deferrable:
            with pytest.raises(TaskDeferred) as deferred:
                make(deferrable=True).execute(context)
            cancel(slow)
            name = resume(deferred.value, context)
        else:
            between_polls(lambda: cancel(slow))
            name = execute(context)
        assert slow.states() == {first: "CANCELLED", name: "SUCCEEDED"}
        assert ti.pushed["ingest", -1, "operation_name"] == name
        assert store.kept == {}

    @both
    def test_an_ingest_cancelled_long_after_the_reattachment_fails_the_task(
        self, slow: DaiEmulator, context: Any, ti: Ti, between_polls: Any, clock: Clock, deferrable: bool
    ) -> None:
        """By a user, or at a deadline; no guard of the earlier try comes that late."""
        self.fail_first_try(context, ti)
        first = the(slow)
        if deferrable:
            with pytest.raises(TaskDeferred) as deferred:
                make(deferrable=True).execute(context)
            cancel(slow)
            clock.advance(200)
            with pytest.raises(UnexpectedStateError, match="is CANCELLED"):
                resume(deferred.value, context)
        else:
            between_polls(lambda: (cancel(slow), clock.advance(200)))
            with pytest.raises(UnexpectedStateError, match="is CANCELLED"):
                execute(context)
        assert slow.states() == {first: "CANCELLED"}

    def test_an_ingest_at_another_endpoint_is_logged_and_left_running(
        self, context: Any, make_emulator: MakeEmulator, log: Log
    ) -> None:
        """There, another operation can have its name."""
        old = make_emulator()
        name = execute(context, wait_for_completion=False)
        new = make_emulator()
        new.start_ingest(name)
        execute(context, wait_for_completion=False)
        assert f"{name} may still run at {old.endpoint}: an earlier try started it there." in log.text
        assert (old.cancel_requested(name), new.cancel_requested(name)) == (0, 0)
        assert count(new, CREATE) == 1

    def test_a_second_cancelled_ingest_is_not_replaced(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        self.fail_first_try(context, ti)
        with pytest.raises(TaskDeferred) as deferred:
            make(deferrable=True).execute(context)
        cancel(slow)
        with pytest.raises(TaskDeferred) as again:
            resume(deferred.value, context, to_the_end=False)
        cancel(slow)
        with pytest.raises(UnexpectedStateError, match="is CANCELLED"):
            resume(again.value, context)
        assert count(slow, CREATE) == 2

    def test_a_killed_task_does_not_replace_its_cancelled_ingest(
        self, slow: DaiEmulator, context: Any, ti: Ti, between_polls: Any
    ) -> None:
        self.fail_first_try(context, ti)
        operator = make()
        between_polls(operator.on_kill)
        with pytest.raises(AirflowException, match="was not sent: the task was killed"):
            operator.execute(context)
        assert slow.states() == {the(slow): "CANCELLED"}

    def test_an_ingest_that_cannot_be_polled_is_cancelled_by_the_last_try(
        self, slow: DaiEmulator, context: Any, ti: Ti
    ) -> None:
        self.fail_first_try(context, ti)
        slow.inject(Fault(GET, status=503, times=None))
        with pytest.raises(AirflowException, match="503 UNAVAILABLE"):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1
        assert count(slow, CREATE) == 1

    def test_a_store_that_cannot_be_read_starts_nothing(self, slow: DaiEmulator, context: Any, store: Store) -> None:
        store.broken = True
        with pytest.raises(AirflowException, match="Cannot read the task state store: the API server") as caught:
            execute(context)
        assert not isinstance(caught.value, AirflowFailException)
        assert slow.states() == {}

    def test_a_store_that_cannot_be_written_does_not_fail_the_task(
        self, slow: DaiEmulator, context: Any, store: Store, log: Log
    ) -> None:
        get = store.get

        def breaks_after(key: str) -> Any:
            found = get(key)
            store.broken = True
            return found

        store.get = breaks_after  # type: ignore[method-assign]
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}
        assert f"Could not save {name} for the next try" in log.text


class TestLeftToTheNextTry:
    """An ingest is left only to a next try that will know of it."""

    @pytest.mark.parametrize("what", ["xcom and store", "store"])
    def test_an_ingest_that_the_next_try_cannot_find_is_cancelled(
        self, slow: DaiEmulator, context: Any, ti: Ti, store: Store, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        ti.max_tries = 1
        with monkeypatch.context() as patches:
            if "xcom" in what:
                patches.setattr(type(ti), "xcom_push", fail)
            if "store" in what:
                patches.setattr(store, "set", fail)
            with pytest.raises((AirflowException, RuntimeError)):
                execute(context, timeout=10)
        first = the(slow)
        assert slow.cancel_requested(first) == 1
        ti.try_number = 2
        ti.pushed.clear()
        second = execute(context)
        assert slow.states()[second] == "SUCCEEDED"

    @pytest.mark.parametrize("key", ["operation_name", "operation_started"])
    @pytest.mark.parametrize("fault", [OSError("disk"), ValueError("not JSON"), TimeoutError("slow")], ids=repr)
    def test_a_fault_of_the_xcom_backend_is_retried_with_the_same_ingest(
        self, slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch, key: str, fault: Exception
    ) -> None:
        """It is no error of the service: it stays what it is, Airflow retries, and the store has the name."""
        ti.max_tries = 1
        push = ti.xcom_push

        def fails(at: str, value: Any) -> None:
            if at == key:
                raise fault
            push(at, value)

        with monkeypatch.context() as patches:
            patches.setattr(ti, "xcom_push", fails, raising=False)
            with pytest.raises(type(fault)) as caught:
                execute(context)
        assert caught.value is fault
        ti.try_number = 2
        ti.pushed.clear()
        assert execute(context) == the(slow)
        assert slow.cancel_requested(the(slow)) == 0

    def test_a_killed_task_cancels_although_retries_are_left(
        self, slow: DaiEmulator, context: Any, ti: Ti, between_polls: Any
    ) -> None:
        ti.max_tries = 1
        slow.inject(Fault(CANCEL, status=503))
        operator = make(timeout=20)
        between_polls(operator.on_kill)
        with pytest.raises(AirflowException, match="has not finished"):
            operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_a_next_try_that_fails_before_it_reattaches_cancels(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowException, match="has not finished"):
            execute(context, timeout=10)
        assert slow.cancel_requested(the(slow)) == 0
        ti.try_number = 2
        ti.pushed.clear()  # as Airflow does
        with pytest.raises(AirflowFailException, match="Invalid creative"):
            rendered(make, creative={"adSystem": "x"}).execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    @pytest.mark.skipif(not HAS_TASK_STATE_STORE, reason="before Airflow 3.3 the failing try cancels")
    def test_an_ingest_left_after_a_time_limit_survives_the_kill_that_follows(
        self, slow: DaiEmulator, run_dag: RunDag, between_polls: Any
    ) -> None:
        """Airflow 3 calls on_kill after a time limit, when the ingest is left to the next try already."""

        def time_is_up() -> None:
            raise AirflowTaskTimeout("Timeout, PID: 1")

        between_polls(time_is_up)
        with DAG("timed", schedule=None, start_date=timezone.datetime(2026, 1, 1)) as dag:
            make(execution_timeout=timedelta(hours=1), retries=1, retry_delay=0)
        assert run_dag(dag).tasks == {"ingest": "success"}
        assert (slow.states()[the(slow)], slow.cancel_requested(the(slow))) == ("SUCCEEDED", 0)


def test_a_retry_reattaches_on_a_real_airflow_3_3(slow: DaiEmulator, run_dag: RunDag) -> None:
    """On 3.3 the second try reattaches to the ingest of the first; before, it starts its own."""
    with DAG("retried", schedule=None, start_date=timezone.datetime(2026, 1, 1)) as dag:
        make(timeout=50, retries=1, retry_delay=0)
    slow.inject(Fault(GET, status=503, times=None))
    slow.inject(Fault(CREATE, status=429))
    assert run_dag(dag).tasks == {"ingest": "failed"}
    assert len(slow.states()) == (1 if HAS_TASK_STATE_STORE else 2)
    assert [slow.cancel_requested(name) for name in slow.states()] == [1] * len(slow.states())


@pytest.mark.skipif(not HAS_TASK_STATE_STORE, reason="before Airflow 3.3 the failing try cancels")
@both
def test_what_has_succeeded_between_two_tries_is_the_result_on_a_real_airflow(
    slow: DaiEmulator, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch, clock: Clock, deferrable: bool
) -> None:
    push = CreateOne._adopt
    failures = [OSError("disk")]

    def adopt(*args: Any) -> None:
        push(*args)
        if failures:
            clock.advance(100)
            raise failures.pop()

    monkeypatch.setattr(CreateOne, "_adopt", adopt)
    with DAG("succeeded_between", schedule=None, start_date=timezone.datetime(2026, 1, 1)) as dag:
        make(retries=1, retry_delay=0, deferrable=deferrable)
    run = run_dag(dag)
    assert run.tasks == {"ingest": "success"}
    assert slow.states() == {the(slow): "SUCCEEDED"}
    assert run.xcom("ingest") == the(slow)
