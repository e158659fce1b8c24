"""DaiCreateCreativeOperator: what it starts, what it waits for, and how it fails."""

from __future__ import annotations

import json
from contextlib import suppress
from copy import deepcopy
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
from airflow_dai_provider.operators.dai import XCOM_OPERATION, DaiCreateCreativeOperator
from airflow_dai_provider.tasks.failures import UnexpectedStateError
from airflow_dai_provider.version_compat import HAS_TASK_STATE_STORE
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.dag_runs import RunDag
from tests.support.emulators import count
from tests.support.ingests import (
    CANCEL,
    CREATE,
    GET,
    LIST,
    SECRET,
    URL,
    both,
    cancel,
    execute,
    fail,
    make,
    resume,
    the,
    url,
)
from tests.support.log import Log
from tests.support.payloads import creative
from tests.support.task_instance import Store, Ti

pytestmark = pytest.mark.usefixtures("_time")


class TestStart:
    @both
    def test_it_starts_waits_and_returns_the_name(
        self, slow: DaiEmulator, context: Any, ti: Ti, store: Store, log: Log, clock: Clock, deferrable: bool
    ) -> None:
        began = clock.now
        name = execute(context, deferrable=deferrable)
        assert slow.states() == {name: "SUCCEEDED"}
        assert count(slow, CREATE) == 1
        assert slow.cancel_requested(name) == 0
        assert ti.pushed["ingest", -1, "operation_name"] == name
        assert ti.pushed["ingest", -1, "operation_started"] == {
            "endpoint": slow.endpoint,
            "try_number": 1,
            "clear_number": None,
            "pushed_at": {name: began},
            "flags": {
                "waits": True,
                "cancel_on_kill": True,
                "cancel_on_failure": True,
                "cancel_with_run": False,
            },
            "refused": False,
        }
        pushed = ti.pushed["ingest", -1, XCOM_OPERATION]
        assert (pushed["name"], pushed["state"]) == (name, "SUCCEEDED")
        assert pushed["ingest"]["gv_registry_id"]
        assert store.kept == {}
        assert SECRET not in json.dumps(list(ti.pushed.values())) + log.text

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("number", [1, 2])
    def test_the_log_says_what_is_started_and_under_which_name(self, context: Any, log: Log, number: int) -> None:
        given = [creative(url(index)) for index in range(number)]
        started = make(creative=given if number > 1 else given[0], wait_for_completion=False).execute(context)
        assert log.lines("Starting the ingest")
        for index, name in enumerate(started if number > 1 else [started]):
            (line,) = log.lines(f"Started the ingest of https://media.example.com/{index}.mp4")
            assert name in line
        assert SECRET not in log.text

    def test_the_creative_is_sent_unchanged(self, slow: DaiEmulator, context: Any) -> None:
        given = creative(advertiser="A", networkCode="1234", somethingNew={"x": [1]})
        info = {"dynamicGroupId": "g", "activeDuration": "3.5s"}
        execute(context, creative=given, dynamic_creative_info=info)
        (request,) = [r for r in slow.requests if r.method == CREATE]
        assert json.loads(request.body) == {"creative": given, "dynamicCreativeInfo": info}

    @both
    def test_without_waiting_the_ingest_runs_on(
        self, slow: DaiEmulator, context: Any, ti: Ti, store: Store, deferrable: bool
    ) -> None:
        operator = make(wait_for_completion=False, deferrable=deferrable)
        name = operator.execute(context)
        assert slow.states() == {name: "RUNNING"}
        assert count(slow, GET) == 0
        assert XCOM_OPERATION not in [key for _, _, key in ti.pushed]
        assert (store.kept[KEY]["operation_name"], store.kept[KEY]["endpoint"]) == (name, slow.endpoint)
        # Airflow kills a task whose success callback takes too long: that is no reason to cancel.
        operator.on_kill()
        assert slow.cancel_requested(name) == 0

    def test_the_name_is_pushed_before_anything_else_can_fail(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        slow.inject(Fault(GET, rpc_status="UNIMPLEMENTED", times=None))
        with pytest.raises(AirflowFailException, match="UNIMPLEMENTED"):
            execute(context)
        assert ti.pushed["ingest", -1, "operation_name"] == the(slow)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"creative": "{{ x }}"}, "expected a JSON object"),
            ({"creative": {"adSystem": "x"}}, "at least one entry"),
            ({"creative": creative(), "dynamic_creative_info": {}}, "networkCode"),
            ({"poll_interval": 0}, "Invalid poll_interval 0"),
            ({"timeout": -1}, "Invalid timeout -1"),
        ],
    )
    def test_bad_input_is_refused_before_anything_is_sent(
        self, slow: DaiEmulator, context: Any, options: Any, words: str
    ) -> None:
        with pytest.raises(AirflowFailException, match=words):
            execute(context, **options)
        assert slow.requests == []

    def test_each_map_index_has_an_ingest_of_its_own(self, slow: DaiEmulator, run_dag: RunDag) -> None:
        urls = [f"https://media.example.com/{number}.mp4?seconds={10 * number + 10}" for number in range(3)]
        with DAG("ingests", schedule=None) as dag:
            DaiCreateCreativeOperator.partial(task_id="ingest", timeout=25).expand(creative=list(map(creative, urls)))
        ran = run_dag(dag)
        assert ran.tasks == {"ingest[0]": "success", "ingest[1]": "success", "ingest[2]": "failed"}
        names = [ran.xcom("ingest", "operation_name", map_index) for map_index in range(3)]
        assert [slow.cancel_requested(name) for name in names] == [0, 0, 1]

    def test_fields_are_rendered_once(self, slow: DaiEmulator, run_dag: RunDag) -> None:
        """A creative comes from an XCom or a param as data: what looks like a template in it stays as it is."""
        with DAG("rendered", schedule=None, params={"title": "{{ 1 + 1 }}", "file": "a"}) as dag:
            DaiCreateCreativeOperator(
                task_id="ingest",
                creative=creative("https://media.example.com/{{ params.file }}.mp4", adTitle="{{ params.title }}"),
            )
        assert run_dag(dag).tasks == {"ingest": "success"}
        (sent,) = [json.loads(r.body)["creative"] for r in slow.requests if r.method == CREATE]
        assert sent["adTitle"] == "{{ 1 + 1 }}"
        assert sent["mediaFiles"][0]["uri"] == "https://media.example.com/a.mp4"


class TestFailure:
    """The ingest is cancelled when the task fails for good, and the failure stays what it is."""

    @both
    def test_a_timeout_cancels_the_ingest(self, slow: DaiEmulator, context: Any, deferrable: bool) -> None:
        with pytest.raises(AirflowException, match="has not finished within 20 s") as caught:
            execute(context, deferrable=deferrable, timeout=20)
        assert not isinstance(caught.value, AirflowFailException)
        assert slow.cancel_requested(the(slow)) == 1

    @both
    @pytest.mark.parametrize("outcome", ["DOWNLOAD_ERROR", "INVALID_MEDIA"])
    def test_a_failed_ingest_fails_the_task_and_is_not_cancelled(
        self, slow: DaiEmulator, context: Any, ti: Ti, deferrable: bool, outcome: str
    ) -> None:
        with pytest.raises(UnexpectedStateError, match=outcome):
            execute(context, deferrable=deferrable, url=f"{URL}&outcome={outcome}&seconds=5")
        assert slow.cancel_requested(the(slow)) == 0
        assert ti.pushed["ingest", -1, XCOM_OPERATION]["state"] == "FAILED"

    def test_an_ingest_cancelled_by_someone_else_fails_the_task(
        self, slow: DaiEmulator, context: Any, between_polls: Any
    ) -> None:
        between_polls(lambda: cancel(slow))
        with pytest.raises(UnexpectedStateError, match="is CANCELLED.*accepts only SUCCEEDED"):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_an_ingest_cancelled_by_someone_else_while_deferred_fails_the_task(
        self, slow: DaiEmulator, context: Any
    ) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            make(deferrable=True).execute(context)
        cancel(slow)
        with pytest.raises(UnexpectedStateError, match="is CANCELLED.*accepts only SUCCEEDED"):
            resume(deferred.value, context)
        assert slow.cancel_requested(the(slow)) == 1

    @both
    def test_an_outage_fails_the_task_and_the_log_names_what_may_run(
        self, slow: DaiEmulator, context: Any, log: Log, deferrable: bool
    ) -> None:
        """Nothing can be cancelled then: the log says what runs, the error is the one of the wait."""
        slow.inject(Fault(GET, status=503, times=None))
        slow.inject(Fault(CANCEL, status=503, times=None))
        with pytest.raises(AirflowException, match=f"{GET} of .* returned 503 UNAVAILABLE") as caught:
            execute(context, deferrable=deferrable, timeout=10 * MAX_OUTAGE)
        assert not isinstance(caught.value, AirflowFailException)
        (error,) = log.errors
        assert f"{the(slow)} may still run: it could not be cancelled: {CANCEL} of" in error

    def test_a_trigger_that_fails_cancels_the_ingest(self, slow: DaiEmulator, context: Any) -> None:
        with pytest.raises(TaskDeferred):
            make(deferrable=True).execute(context)
        with pytest.raises(AirflowException, match="Trigger failure"):
            make(deferrable=True).resume_execution("__fail__", {"error": "Trigger failure"}, context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_a_deferral_that_airflow_times_out_cancels_the_ingest(self, slow: DaiEmulator, context: Any) -> None:
        with pytest.raises(TaskDeferred):
            make(deferrable=True).execute(context)
        with pytest.raises(AirflowException):
            make(deferrable=True).resume_execution("__fail__", {"error": "Trigger timeout"}, context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_a_time_limit_of_the_task_cancels_the_ingest_once(
        self, slow: DaiEmulator, context: Any, between_polls: Any
    ) -> None:
        operator = make()

        def time_is_up() -> None:
            raise AirflowTaskTimeout("Timeout, PID: 1")

        between_polls(time_is_up)
        with pytest.raises(AirflowTaskTimeout):
            operator.execute(context)
        operator.on_kill()  # as Airflow 3 does then
        assert slow.cancel_requested(the(slow)) == 1

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError("a bug")])
    def test_any_other_exception_cancels_the_ingest(
        self, slow: DaiEmulator, context: Any, between_polls: Any, error: Any
    ) -> None:
        def fail() -> None:
            raise error

        between_polls(fail)
        with pytest.raises(BaseException, match="a bug" if isinstance(error, Exception) else None):
            make().execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    @both
    def test_a_failure_leaves_the_ingest_running_without_cancel_on_failure(
        self, slow: DaiEmulator, context: Any, deferrable: bool
    ) -> None:
        with pytest.raises(AirflowException, match="has not finished within"):
            execute(context, deferrable=deferrable, timeout=20, cancel_on_failure=False)
        assert slow.cancel_requested(the(slow)) == 0

    def test_a_refused_start_cancels_nothing(self, slow: DaiEmulator, context: Any, log: Log) -> None:
        slow.inject(Fault(CREATE, rpc_status="PERMISSION_DENIED"))
        with pytest.raises(AirflowFailException, match="PERMISSION_DENIED.*allow-listed"):
            execute(context)
        assert slow.states() == {}
        assert count(slow, CANCEL) == count(slow, LIST) == 0
        assert log.errors == []

    def test_a_failing_cancel_does_not_hide_the_failure_of_the_task(
        self, slow: DaiEmulator, context: Any, log: Log
    ) -> None:
        slow.inject(Fault(CANCEL, rpc_status="UNIMPLEMENTED"))
        with pytest.raises(AirflowException, match="has not finished within 20 s"):
            execute(context, timeout=20)
        (error,) = log.errors
        assert "may still run" in error
        assert "UNIMPLEMENTED" in error


class TestCallback:
    """The failure callback that the operator adds to its own, for the worker that is lost."""

    def test_it_cancels_what_a_lost_worker_has_pushed(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        name = slow.start_ingest()
        ti.pushed = {("ingest", -1, "operation_name"): name, ("ingest", -1, "operation_started"): {"try_number": 1}}
        task = make()  # in the dag processor: read from the DAG file, never executed
        (callback,) = task.on_failure_callback
        callback({**context, "task": task, "dag": DAG("a_dag", schedule=None)})
        assert slow.cancel_requested(name) == 1

    def test_it_leaves_the_ingest_of_the_next_try_running(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        name = slow.start_ingest()
        ti.pushed = {("ingest", -1, "operation_name"): name, ("ingest", -1, "operation_started"): {"try_number": 2}}
        task = make()
        (callback,) = task.on_failure_callback
        callback({**context, "task": task, "dag": DAG("a_dag", schedule=None)})
        assert slow.cancel_requested(name) == 0

    def test_it_does_nothing_when_the_operator_has_cancelled(self, slow: DaiEmulator, run_dag: RunDag) -> None:
        with DAG("failing", schedule=None) as dag:
            make(timeout=10)
        assert run_dag(dag).tasks == {"ingest": "failed"}
        assert slow.cancel_requested(the(slow)) == 1

    def test_it_cancels_when_the_operator_could_not(self, slow: DaiEmulator, run_dag: RunDag) -> None:
        slow.inject(Fault(CANCEL, rpc_status="PERMISSION_DENIED"))
        with DAG("failing_twice", schedule=None) as dag:
            make(timeout=10)
        assert run_dag(dag).tasks == {"ingest": "failed"}
        assert slow.cancel_requested(the(slow)) == 1

    @pytest.mark.parametrize(("ending", "handled"), [("parsed", False), ("succeeded", True), ("not cancelled", False)])
    def test_the_operator_handles_its_own_ingest_unless_its_cancel_failed(
        self, slow: DaiEmulator, context: Any, ending: str, handled: bool
    ) -> None:
        task = make(timeout=10 if ending == "not cancelled" else 3600)
        slow.inject(Fault(CANCEL, rpc_status="PERMISSION_DENIED"))
        if ending != "parsed":
            with suppress(AirflowException):
                task.execute(context)
        assert task.cancels_own_ingest is handled

    @pytest.mark.parametrize("as_list", [True, False])
    @pytest.mark.usefixtures("slow")
    def test_callbacks_of_the_user_and_of_default_args_are_kept(self, run_dag: RunDag, as_list: bool) -> None:
        called: list[str] = []
        default = [lambda _: called.append("default")]
        default_args = {"on_failure_callback": default if as_list else default[0]}
        with DAG("callbacks", schedule=None, default_args=default_args) as dag:
            make(timeout=10)
            own = DaiCreateCreativeOperator(
                task_id="own",
                creative=creative(),
                timeout=10,
                on_failure_callback=lambda _: called.append("own"),
            )
        assert len(default) == 1
        assert len(own.on_failure_callback) == 2
        run_dag(dag)
        assert sorted(called) == ["default", "own"]

    def test_there_is_no_callback_without_cancel_on_failure(self) -> None:
        task = make(cancel_on_failure=False)
        assert not task.on_failure_callback
        assert not task.on_retry_callback

    def test_a_retry_callback_is_added_only_where_the_next_try_cannot_reattach(self) -> None:
        default = [print]
        with DAG("retried", schedule=None, default_args={"on_retry_callback": default}):
            task = make()
        assert [type(callback).__name__ for callback in task.on_retry_callback] == [
            *([] if HAS_TASK_STATE_STORE else ["LostWorkerCallback"]),
            "builtin_function_or_method",
        ]
        assert default == [print]

    def test_it_uses_what_a_subclass_sets_after_the_constructor(
        self, slow: DaiEmulator, context: Any, ti: Ti, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The connection, the account and the endpoint are read when it is called, also after Airflow has copied it."""
        monkeypatch.delenv("DAI_EMULATOR_HOST")
        connect(is_anonymous=True)

        class Ours(DaiCreateCreativeOperator):
            def __init__(self, **kwargs: Any) -> None:
                super().__init__(**kwargs)
                self.gcp_conn_id = "google_cloud_default"
                self.impersonation_chain = None
                self.api_endpoint = slow.endpoint

        name = slow.start_ingest()
        ti.pushed = {("ingest", -1, "operation_name"): name, ("ingest", -1, "operation_started"): {"try_number": 1}}
        with DAG("ours", schedule=None) as dag:
            task = Ours(
                task_id="ingest", creative=creative(), gcp_conn_id="no", impersonation_chain=["no"], api_endpoint="no"
            )
        for copied in (task, deepcopy(dag).get_task("ingest")):
            (callback,) = copied.on_failure_callback
            callback({**context, "task": copied, "dag": dag})
        assert slow.cancel_requested(name) == 2


def test_the_event_of_another_ingest_fails_the_try(slow: DaiEmulator, context: Any, ti: Ti) -> None:
    """Airflow can mix up two triggers on SQLite."""
    ti.max_tries = 1
    with pytest.raises(TaskDeferred) as deferred:
        make(deferrable=True).execute(context)
    ended = {"name": "operations/other", "state": "SUCCEEDED"}
    event = {"operation_name": "operations/other", "status": "finished", "operation": ended}
    kwargs = {**(deferred.value.kwargs or {}), "event": event}
    with pytest.raises(AirflowException, match=f"event of operations/other .* waits for {the(slow)}"):
        make(deferrable=True).resume_execution(deferred.value.method_name, kwargs, context)
    assert slow.cancel_requested(the(slow)) == 0, "The next try reattaches to it."


def test_a_failure_after_execute_cancels_the_ingest(slow: DaiEmulator, run_dag: RunDag) -> None:
    with DAG("post", schedule=None, start_date=timezone.datetime(2026, 1, 1)) as dag:
        make(wait_for_completion=False, post_execute=fail)
    assert run_dag(dag).tasks == {"ingest": "failed"}
    assert slow.cancel_requested(the(slow)) == 1


def test_every_string_field_is_templated() -> None:
    assert set(DaiCreateCreativeOperator.template_fields) == {
        "creative",
        "dynamic_creative_info",
        "gcp_conn_id",
        "impersonation_chain",
        "api_endpoint",
    }
