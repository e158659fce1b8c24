"""A try saves its ingest for the next one, which reattaches to it or cancels it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowException,
    AirflowFailException,
    AirflowTaskTimeout,
    TaskDeferred,
    timezone,
)

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.ingest.resume import KEY
from airflow_dai_provider.tasks.failures import UnexpectedStateError
from airflow_dai_provider.version_compat import HAS_TASK_STATE_STORE

if TYPE_CHECKING:
    from conftest import Clock, Log

from tests.support.ingests import (
    CANCEL,
    CREATE,
    GET,
    Store,
    both,
    cancel,
    count,
    creative,
    execute,
    fail,
    interrupt_create,
    make,
    resume,
    the,
)

pytestmark = pytest.mark.usefixtures("_time")


class TestRetry:
    """On 3.3 the next try goes on with the ingest of the one before."""

    def fail_first_try(self, context: Any, ti: Any, **options: Any) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowException, match="has not finished within 10 s"):
            execute(context, timeout=10, **options)
        ti.try_number = 2
        ti.pushed.clear()  # as Airflow does

    @both
    def test_it_goes_on_with_an_equal_one(
        self, slow: DaiEmulator, context: Any, ti: Any, store: Store, log: Log, deferrable: bool
    ) -> None:
        self.fail_first_try(context, ti, deferrable=deferrable)
        assert slow.cancel_requested(the(slow)) == 0
        assert f"Leaving {the(slow)} to the next try." in log.ours
        name = execute(context, deferrable=deferrable)
        assert slow.states() == {name: "SUCCEEDED"}
        assert slow.cancel_requested(name) == 0
        assert (ti.pushed["ingest", -1, "operation_name"], ti.pushed["ingest", -1, "operation_try_number"]) == (name, 2)
        assert store.kept == {}

    def test_it_goes_on_with_one_that_it_does_not_wait_for(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        """The first try can have failed in what comes after ``execute``."""
        ti.max_tries = 1
        name = execute(context, wait_for_completion=False)
        ti.try_number = 2
        assert execute(context, wait_for_completion=False) == name
        assert slow.states() == {name: "RUNNING"}
        assert slow.cancel_requested(name) == 0

    def test_another_creatives_that_nobody_has_waited_for_is_cancelled(self, slow: DaiEmulator, context: Any) -> None:
        """The task has succeeded, with the wrong file; the DAG is fixed, and the task cleared."""
        wrong = execute(context, wait_for_completion=False)
        right = execute(context, wait_for_completion=False, url="https://media.example.com/right.mp4")
        assert right != wrong
        assert [slow.cancel_requested(name) for name in (wrong, right)] == [1, 0]

    def test_a_cleared_one_that_has_succeeded_starts_anew(self, slow: DaiEmulator, context: Any) -> None:
        first = execute(context)
        second = execute(context)
        assert slow.states() == {first: "SUCCEEDED", second: "SUCCEEDED"}

    def test_the_last_try_cancels(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        self.fail_first_try(context, ti)
        with pytest.raises(AirflowException, match="has not finished within 10 s"):
            execute(context, timeout=10)
        assert slow.cancel_requested(the(slow)) == 1

    def test_what_a_retry_cannot_heal_is_cancelled_at_once(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        ti.max_tries = 3
        slow.inject(Fault(GET, rpc_status="PERMISSION_DENIED", times=None))
        with pytest.raises(AirflowFailException):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_before_3_3_each_failing_try_cancels(self, slow: DaiEmulator, context_before_3_3: Any, ti: Any) -> None:
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
    def test_another_creatives_is_cancelled_first(self, slow: DaiEmulator, context: Any, ti: Any, other: Any) -> None:
        self.fail_first_try(context, ti)
        wrong = the(slow)
        right = execute(context, **other)
        assert right != wrong
        assert slow.states() == {wrong: "CANCELLED", right: "SUCCEEDED"}
        methods = [r.method for r in slow.requests]
        assert methods.index(CANCEL) < [n for n, method in enumerate(methods) if method == CREATE][1]

    def test_another_creatives_that_cannot_be_cancelled(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        self.fail_first_try(context, ti)
        slow.inject(Fault(CANCEL, rpc_status="UNIMPLEMENTED", times=None))
        with pytest.raises(AirflowFailException, match="UNIMPLEMENTED"):
            execute(context, url="https://media.example.com/right.mp4")
        assert count(slow, CREATE) == 1

    @pytest.mark.parametrize("end", ["SUCCEEDED", "CANCELLED"])
    def test_one_that_has_ended_is_not_gone_on_with(
        self, slow: DaiEmulator, context: Any, ti: Any, clock: Clock, end: str
    ) -> None:
        self.fail_first_try(context, ti)
        first = the(slow)
        if end == "CANCELLED":
            cancel(slow)
        clock.advance(100)
        second = execute(context)
        assert slow.states() == {first: end, second: "SUCCEEDED"}

    def test_one_that_the_service_has_forgotten(self, slow: DaiEmulator, context: Any, store: Store) -> None:
        store.kept[KEY] = {"operation_name": "operations/unknown", "endpoint": slow.endpoint, "digest": "x"}
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}

    @pytest.mark.parametrize(
        "kept", ["x", {}, {"operation_name": "../x", "endpoint": "x", "digest": "x"}, {"operation_name": "x"}]
    )
    def test_a_record_that_cannot_be_read(self, slow: DaiEmulator, context: Any, store: Store, kept: Any) -> None:
        store.kept[KEY] = kept
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}

    @both
    def test_one_that_ends_cancelled_is_replaced_once(
        self, slow: DaiEmulator, context: Any, ti: Any, store: Store, between_looks: Any, deferrable: bool
    ) -> None:
        """The kill of an earlier try can come after this one has gone on with its ingest."""
        self.fail_first_try(context, ti)
        first = the(slow)
        if deferrable:
            with pytest.raises(TaskDeferred) as deferred:
                make(deferrable=True).execute(context)
            cancel(slow)
            name = resume(deferred.value, context)
        else:
            between_looks(lambda: cancel(slow))
            name = execute(context)
        assert slow.states() == {first: "CANCELLED", name: "SUCCEEDED"}
        assert ti.pushed["ingest", -1, "operation_name"] == name
        assert store.kept == {}

    @both
    def test_but_not_one_that_is_cancelled_long_after(
        self, slow: DaiEmulator, context: Any, ti: Any, between_looks: Any, clock: Clock, deferrable: bool
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
            between_looks(lambda: (cancel(slow), clock.advance(200)))
            with pytest.raises(UnexpectedStateError, match="is CANCELLED"):
                execute(context)
        assert slow.states() == {first: "CANCELLED"}

    def test_one_at_another_endpoint_is_named_and_left(self, context: Any, make_emulator: Any, log: Log) -> None:
        """There, another operation can have its name."""
        old = make_emulator()
        name = execute(context, wait_for_completion=False)
        new = make_emulator()
        new.start_ingest(name)
        execute(context, wait_for_completion=False)
        assert f"{name} may still run at {old.endpoint}: an earlier try started it there." in log.text
        assert (old.cancel_requested(name), new.cancel_requested(name)) == (0, 0)
        assert count(new, CREATE) == 1

    def test_but_only_once(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
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

    def test_not_by_a_task_that_is_being_killed(
        self, slow: DaiEmulator, context: Any, ti: Any, between_looks: Any
    ) -> None:
        self.fail_first_try(context, ti)
        operator = make()
        between_looks(operator.on_kill)
        with pytest.raises(AirflowException, match="being killed"):
            operator.execute(context)
        assert slow.states() == {the(slow): "CANCELLED"}

    def test_one_that_cannot_be_looked_at_is_cancelled_by_the_last_try(
        self, slow: DaiEmulator, context: Any, ti: Any
    ) -> None:
        self.fail_first_try(context, ti)
        slow.inject(Fault(GET, status=503, times=None))
        with pytest.raises(AirflowException, match="503 UNAVAILABLE"):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1
        assert count(slow, CREATE) == 1

    def test_a_store_that_cannot_be_read_starts_nothing(self, slow: DaiEmulator, context: Any, store: Store) -> None:
        store.broken = True
        with pytest.raises(
            AirflowException, match="Cannot read the task state store: the API server is away"
        ) as caught:
            execute(context)
        assert not isinstance(caught.value, AirflowFailException)
        assert slow.states() == {}

    def test_a_store_that_cannot_be_written(self, slow: DaiEmulator, context: Any, store: Store, log: Log) -> None:
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

    @pytest.mark.parametrize("what", ["xcom", "store", "time limit"])
    def test_not_to_one_that_does_not(
        self, slow: DaiEmulator, context: Any, ti: Any, store: Store, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        ti.max_tries = 1
        with monkeypatch.context() as patches:
            if what == "xcom":
                patches.setattr(type(ti), "xcom_push", fail)
            elif what == "store":
                patches.setattr(store, "set", fail)
            else:
                interrupt_create(patches)
            with pytest.raises((AirflowException, RuntimeError, AirflowTaskTimeout)):
                execute(context, timeout=10)
        first = the(slow)
        assert slow.cancel_requested(first) == 1
        ti.try_number = 2
        ti.pushed.clear()
        second = execute(context)
        assert slow.states()[second] == "SUCCEEDED"

    def test_not_when_the_task_was_killed(self, slow: DaiEmulator, context: Any, ti: Any, between_looks: Any) -> None:
        ti.max_tries = 1
        slow.inject(Fault(CANCEL, status=503))
        operator = make(timeout=20)
        between_looks(operator.on_kill)
        with pytest.raises(AirflowException, match="has not finished"):
            operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_a_next_try_that_cannot_go_on_with_it_cancels_it(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowException, match="has not finished"):
            execute(context, timeout=10)
        assert slow.cancel_requested(the(slow)) == 0
        ti.try_number = 2
        ti.pushed.clear()  # as Airflow does
        with pytest.raises(AirflowFailException, match="Invalid creative"):
            execute(context, creative={"adSystem": "x"})
        assert slow.cancel_requested(the(slow)) == 1

    @pytest.mark.skipif(not HAS_TASK_STATE_STORE, reason="before Airflow 3.3 the failing try cancels")
    def test_after_a_time_limit(self, slow: DaiEmulator, run_dag: Any, between_looks: Any) -> None:
        """Airflow 3 calls on_kill after a time limit, when the ingest is left to the next try already."""

        def time_is_up() -> None:
            raise AirflowTaskTimeout("Timeout, PID: 1")

        between_looks(time_is_up)
        with DAG("timed", schedule=None, start_date=timezone.datetime(2026, 1, 1)) as dag:
            make(execution_timeout=timedelta(hours=1), retries=1, retry_delay=0)
        assert run_dag(dag).tasks == {"ingest": "success"}
        assert (slow.states()[the(slow)], slow.cancel_requested(the(slow))) == ("SUCCEEDED", 0)


def test_a_retry_on_a_real_airflow(slow: DaiEmulator, run_dag: Any) -> None:
    """What Airflow itself keeps between two tries: on 3.3 the second goes on with the ingest of the first."""
    with DAG("retried", schedule=None, start_date=timezone.datetime(2026, 1, 1)) as dag:
        make(timeout=50, retries=1, retry_delay=0)
    slow.inject(Fault(GET, status=503, times=None))
    slow.inject(Fault(CREATE, status=429))
    assert run_dag(dag).tasks == {"ingest": "failed"}
    assert len(slow.states()) == (1 if HAS_TASK_STATE_STORE else 2)
    assert [slow.cancel_requested(name) for name in slow.states()] == [1] * len(slow.states())
