"""A task's own ingest is cancelled when the task is killed or fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowException,
    AirflowFailException,
    AirflowTaskTimeout,
    TaskDeferred,
)

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.ingest.outcome import IngestFailedError
from airflow_dai_provider.ingest.reattach import KEY
from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator
from airflow_dai_provider.tasks.failures import UnexpectedStateError
from tests.support.dag_runs import RunDag
from tests.support.emulators import MakeEmulator, count, methods
from tests.support.ingests import CANCEL, CREATE, URL, both, execute, fail, kill_in_each_call, make, resume, the
from tests.support.log import Log
from tests.support.payloads import creative
from tests.support.task_instance import Store, Ti, rendered

pytestmark = pytest.mark.usefixtures("_time")


class TestKill:
    def test_a_kill_while_it_waits_cancels_the_ingest(
        self, slow: DaiEmulator, context: Any, log: Log, between_polls: Any
    ) -> None:
        operator = make()
        between_polls(operator.on_kill)
        with pytest.raises(IngestFailedError, match="is CANCELLED"):
            operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 1
        assert f"Requested the cancellation of {the(slow)}: its task was killed." in log.ours

    def test_a_task_that_sees_its_own_cancellation_keeps_its_retry(
        self, slow: DaiEmulator, context: Any, between_polls: Any
    ) -> None:
        operator = make()
        between_polls(operator.on_kill)
        with pytest.raises(IngestFailedError, match="CANCELLED.*was requested because its task was killed"):
            operator.execute(context)
        cancelled = the(slow)
        started = make().execute(context)
        assert started != cancelled
        assert slow.states() == {cancelled: "CANCELLED", started: "SUCCEEDED"}

    @pytest.mark.usefixtures("slow")
    def test_a_killed_task_whose_ingest_has_failed_by_itself_fails_for_good(
        self, context: Any, between_polls: Any
    ) -> None:
        operator = make(f"{URL}&seconds=0.5&outcome=INTERNAL_ERROR")
        between_polls(operator.on_kill)
        with pytest.raises(UnexpectedStateError, match="failed: INTERNAL_ERROR") as caught:
            operator.execute(context)
        assert "its task was killed" not in str(caught.value)

    def test_two_kills_request_one_cancellation(self, slow: DaiEmulator, context: Any, between_polls: Any) -> None:
        operator = make()
        between_polls(lambda: (operator.on_kill(), operator.on_kill()))
        with pytest.raises(IngestFailedError):
            operator.execute(context)
        operator.on_kill()
        assert slow.cancel_requested(the(slow)) == 1

    def test_a_kill_makes_no_call_to_airflow(self, slow: DaiEmulator, context: Any, ti: Ti, store: Store) -> None:
        """A handler that interrupts a call of Airflow's must make none: the kill comes in the middle of each."""
        operator = make(wait_for_completion=False)
        kill_in_each_call(operator, ti, store)
        operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_a_kill_uses_a_connection_of_its_own(self, slow: DaiEmulator, context: Any, between_polls: Any) -> None:
        operator = make()
        between_polls(operator.on_kill)
        with pytest.raises(IngestFailedError):
            operator.execute(context)
        (kill,) = {r.connection for r in slow.requests if r.method == CANCEL}
        assert kill not in {r.connection for r in slow.requests if r.method != CANCEL}

    def test_a_kill_during_the_start_cancels_what_was_started(
        self, slow: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The name comes after the kill, and the process has seconds left: they are enough."""
        from airflow_dai_provider.hooks.dai import DaiHook

        operator = make()
        create = DaiHook.create_creative

        def killed_meanwhile(hook: DaiHook, *args: Any) -> Any:
            started = create(hook, *args)
            operator.on_kill()
            return started

        monkeypatch.setattr(DaiHook, "create_creative", killed_meanwhile)
        with pytest.raises(IngestFailedError, match="is CANCELLED"):
            operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_a_kill_between_two_attempts_to_start_sends_no_other(
        self, slow: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from airflow_dai_provider.hooks.dai import DaiHook

        slow.inject(Fault(CREATE, status=429, retry_after=2, times=None))
        operator = make()
        monkeypatch.setattr(DaiHook, "_sleep", lambda *_: operator.on_kill())
        with pytest.raises(AirflowException, match="429 .*it was not retried: the task was killed"):
            operator.execute(context)
        assert methods(slow) == [CREATE]

    def test_a_kill_during_the_reattachment_starts_nothing(self, slow: DaiEmulator, context: Any, store: Store) -> None:
        store.kept[KEY] = {"operation_name": "operations/unknown", "endpoint": slow.endpoint, "digest": "x"}
        operator = make()
        get = store.get
        store.get = lambda key: (operator._guard.kill(), get(key))[1]  # type: ignore[method-assign]
        with pytest.raises(AirflowException, match="was not sent: the task was killed"):
            operator.execute(context)
        assert slow.states() == {}

    def test_a_failing_cancel_request_of_a_kill_is_sent_once_and_logged(
        self, slow: DaiEmulator, context: Any, log: Log, between_polls: Any
    ) -> None:
        slow.inject(Fault(CANCEL, drop="before"))
        operator = make()
        between_polls(operator.on_kill)
        execute_and_succeed = operator.execute(context)
        assert slow.states() == {execute_and_succeed: "SUCCEEDED"}
        (error,) = log.errors
        assert f"{execute_and_succeed} may still run: its task was killed, but {CANCEL} of" in error
        assert count(slow, CANCEL) == 1

    def test_a_kill_leaves_the_ingest_running_without_cancel_on_kill(
        self, slow: DaiEmulator, context: Any, between_polls: Any
    ) -> None:
        operator = make(cancel_on_kill=False)

        def kill_as_airflow_2_does() -> None:
            operator.on_kill()
            raise KeyboardInterrupt

        between_polls(kill_as_airflow_2_does)
        with pytest.raises(KeyboardInterrupt):
            operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 0

    @pytest.mark.parametrize("cancel_on_kill", [True, False])
    @pytest.mark.usefixtures("slow")
    def test_cancel_on_kill_reaches_the_trigger(self, context: Any, cancel_on_kill: bool) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            make(deferrable=True, cancel_on_kill=cancel_on_kill).execute(context)
        assert deferred.value.trigger.serialize()[1]["cancel_on_kill"] is cancel_on_kill

    def test_a_kill_after_success_cancels_nothing(self, slow: DaiEmulator, context: Any) -> None:
        operator = make()
        name = operator.execute(context)
        operator.on_kill()
        assert slow.cancel_requested(name) == 0

    def test_a_kill_before_execute_starts_nothing(self, slow: DaiEmulator, context: Any) -> None:
        """Airflow can kill a task that is only starting; the process runs on for seconds, and must start nothing."""
        operator = make()
        operator.on_kill()
        with pytest.raises(AirflowException, match="was not sent: the task was killed"):
            operator.execute(context)
        assert slow.states() == {}


class TestGuard:
    """What the guard does where neither a kill nor a plain failure is all that happens."""

    def test_the_ingest_is_cancelled_although_airflow_is_unavailable(
        self, slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch, log: Log
    ) -> None:
        """The name cannot be pushed then, nor the connection looked up; the hook of the task needs neither."""
        operator = make()
        hooks = iter([operator._make_hook()])

        def away(*_: object) -> None:
            raise RuntimeError("the API server is away")

        monkeypatch.setattr(ti, "xcom_push", away, raising=False)
        monkeypatch.setattr(operator, "_make_hook", lambda: next(hooks, None) or away())
        with pytest.raises(RuntimeError, match="the API server is away"):
            operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 1
        assert f"Requested the cancellation of {the(slow)}." in log.ours

    def test_a_kill_after_a_deferral_cancels_only_on_airflow_3(
        self, slow: DaiEmulator, context: Any, airflow_2: bool
    ) -> None:
        """Airflow 2 kills a process that ends slowly; on 3 it can be that the deferral was refused."""
        operator = make(deferrable=True)
        with pytest.raises(TaskDeferred):
            operator.execute(context)
        operator.on_kill()
        assert slow.cancel_requested(the(slow)) == (0 if airflow_2 else 1)

    @both
    def test_a_time_limit_cancels_as_a_kill_does(
        self, slow: DaiEmulator, context: Any, between_polls: Any, deferrable: bool
    ) -> None:
        limits = {"deferrable": deferrable, "cancel_on_failure": False, "execution_timeout": timedelta(seconds=20)}
        if deferrable:
            with pytest.raises(TaskDeferred) as deferred:
                make(**limits).execute(context)
            with pytest.raises(AirflowTaskTimeout):
                resume(deferred.value, context, **limits)
        else:
            between_polls(lambda: (_ for _ in ()).throw(AirflowTaskTimeout("time is up")))
            with pytest.raises(AirflowTaskTimeout):
                execute(context, **limits)
        assert slow.cancel_requested(the(slow)) == 1

    @pytest.mark.usefixtures("slow")
    def test_what_signs_the_url_of_a_mapped_task_is_masked(self, run_dag: RunDag) -> None:
        from airflow.models.renderedtifields import RenderedTaskInstanceFields
        from airflow.utils.session import create_session

        with DAG("mapped_and_signed", schedule=None) as dag:
            signed = "https://media.example.com/ad.mp4?seconds=1&sig=bWFwcGVkLXNpZ25hdHVyZQ"
            DaiCreateCreativeOperator.partial(task_id="ingest").expand(creative=[creative(signed)])
        assert run_dag(dag).tasks == {"ingest[0]": "success"}
        with create_session() as session:
            kept = session.query(RenderedTaskInstanceFields).filter_by(dag_id="mapped_and_signed").all()
            shown = [str(fields.rendered_fields) for fields in kept]
        assert len(shown) == 1
        assert "media.example.com" in shown[0]
        assert "bWFwcGVk" not in shown[0]


class TestAnotherEndpoint:
    """What is remembered is valid only together with its endpoint: elsewhere its name is a stranger's."""

    @pytest.fixture
    def moved(self, make_emulator: MakeEmulator) -> Callable[..., tuple[DaiEmulator, DaiEmulator]]:
        """Give a function that starts an ingest at one endpoint, and then moves the connection to another one."""

        def move(start: Callable[[], Any]) -> tuple[DaiEmulator, DaiEmulator]:
            old = make_emulator(ingest_seconds=1e9)
            start()
            new = make_emulator(ingest_seconds=1e9)
            new.start_ingest(the(old))
            return old, new

        return move

    def test_a_try_that_fails_before_it_reattaches_cancels_no_stranger_s_operation(
        self, moved: Any, context: Any, ti: Ti, log: Log
    ) -> None:
        ti.max_tries = 1

        def start() -> None:
            with pytest.raises(AirflowException, match="has not finished"):
                execute(context, timeout=10)

        old, new = moved(start)
        ti.try_number = 2
        ti.pushed.clear()
        with pytest.raises(AirflowFailException, match="Invalid creative"):
            rendered(make, creative={"adSystem": "x"}).execute(context)
        assert new.requests == []
        (error,) = log.errors
        assert f"{the(old)} may still run: it was not cancelled: it was started at {old.endpoint}" in error
        assert f"the endpoint is {new.endpoint} now" in error

    @pytest.mark.parametrize("failure", ["event", "Trigger failure", "Trigger timeout"])
    def test_a_resumed_task_cancels_no_stranger_s_operation(
        self, moved: Any, context: Any, log: Log, failure: str
    ) -> None:
        deferred: list[TaskDeferred] = []

        def start() -> None:
            with pytest.raises(TaskDeferred) as caught:
                make(deferrable=True).execute(context)
            deferred.append(caught.value)

        old, new = moved(start)
        method, kwargs = "__fail__", {"error": failure}
        if failure == "event":
            method = deferred[0].method_name
            kwargs = {**(deferred[0].kwargs or {}), "event": {"status": "error", "code": None, "message": "x"}}
        with pytest.raises(AirflowException):
            make(deferrable=True).resume_execution(method, kwargs, context)
        assert new.requests == []
        assert f"it was started at {old.endpoint}" in log.errors[0]

    def test_a_task_whose_endpoint_changes_while_it_runs_cancels_its_own_ingest(
        self, context: Any, make_emulator: MakeEmulator, between_polls: Any
    ) -> None:
        """The prepared request goes to the endpoint at which the ingest was started."""
        emulators = [make_emulator()]

        def move() -> None:
            emulators.append(make_emulator())
            emulators[1].start_ingest(the(emulators[0]))
            raise RuntimeError

        between_polls(move)
        with pytest.raises(RuntimeError):
            execute(context)
        old, new = emulators
        assert [emulator.cancel_requested(the(old)) for emulator in emulators] == [1, 0]
        assert new.requests == []


class TestNothingSent:
    """A task that knows that it has sent nothing reads nothing of Airflow and says nothing, in its callbacks too."""

    @pytest.fixture
    def reads(self, ti: Ti, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """Note what is read of Airflow, and let it fail."""
        found: list[object] = []

        def read(*arguments: Any, **options: Any) -> None:
            found.append((arguments, options))
            fail()

        monkeypatch.setattr(type(ti), "xcom_pull", read)
        return found

    @pytest.mark.parametrize(
        "options",
        [
            {"creative": {"adSystem": "x"}},
            {"creative": "{{ no_such_function() }}"},
            {"api_endpoint": "http://x/path"},
            {"gcp_conn_id": "no_such_connection", "api_endpoint": "http://127.0.0.1:1"},
            {},
        ],
        ids=["creative", "template", "endpoint", "connection", "refused by the service"],
    )
    def test_nothing_is_read_and_nothing_is_said(
        self, slow: DaiEmulator, context: Any, log: Log, reads: list[object], options: Any
    ) -> None:
        slow.inject(Fault("creatives.create", rpc_status="PERMISSION_DENIED"))
        with DAG("silent", schedule=None) as dag:
            task = rendered(make, **options)
        with suppress(Exception):
            task.render_template_fields(context)
            task.execute(context)
            pytest.fail("It fails.")
        context["ti"].task = task
        for callback in task.on_failure_callback:
            callback({**context, "task": task, "dag": dag})
        assert reads == []
        # On Airflow 2 it logs the error of a template itself.
        assert [error for error in log.errors if "Exception rendering" not in error] == []
        assert "may still run" not in log.text
        assert slow.states() == {}


class TestTimeLimitOfAirflow2:
    """Airflow 2 calls ``on_kill`` in place of ``resume_execution`` when the time limit has passed meanwhile."""

    @pytest.mark.parametrize(("on_kill", "on_failure", "cancels"), [(1, 1, 1), (1, 0, 1), (0, 1, 1), (0, 0, 0)])
    def test_either_flag_cancels_as_on_3_3(
        self, slow: DaiEmulator, context_before_3_3: Any, ti: Ti, on_kill: int, on_failure: int, cancels: int
    ) -> None:
        flags = {"cancel_on_kill": bool(on_kill), "cancel_on_failure": bool(on_failure), "deferrable": True}
        with pytest.raises(TaskDeferred):
            make(**flags).execute(context_before_3_3)
        ti.next_method = "execute_complete"  # type: ignore[attr-defined]
        task = make(**flags)
        task.render_template_fields(context_before_3_3)
        try:
            raise AirflowTaskTimeout  # noqa: TRY301
        except AirflowTaskTimeout:
            task.on_kill()
        ti.task = task  # type: ignore[attr-defined]
        for callback in task.on_failure_callback or ():
            callback({**context_before_3_3, "dag": DAG("limited", schedule=None)})
        assert slow.cancel_requested(the(slow)) == cancels
