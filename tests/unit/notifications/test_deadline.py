"""The notifier as the callback of a Deadline alert of Airflow 3, as Airflow's own code runs it."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks import dai
from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from tests.support.airflow_versions import (
    HAS_SYNC_CALLBACKS,
    CallbackTrigger,
    accepts_context,
    deadline_names,
    run_sync_callback,
)
from tests.support.clock import Clock
from tests.support.deadlines import Triggerer, deadline_context, deadlines
from tests.support.event_loop import Gate, run, until
from tests.support.log import Log
from tests.support.task_instance import Ti

PATH = "airflow_dai_provider.notifications.dai.DaiCancelOperationNotifier"
PASSED = "A deadline has passed: that of the run a_run of a_dag."
A, B, C, D = (f"operations/{letter}" for letter in "abcd")

pytestmark = deadlines


def fire(context: Any = None, **kwargs: Any) -> tuple[str, str | None]:
    """Run the callback as a triggerer does; return its state, and what Airflow keeps as its output."""
    context = deadline_context() if context is None else context
    trigger = CallbackTrigger(PATH, json.loads(json.dumps({**kwargs, "context": context})))

    async def main() -> list[Any]:
        return [event.payload async for event in trigger.run()]

    started, ended = run(main())
    assert started["state"] == "running"
    return ended["state"].value, ended["body"]


def running(emulator: DaiEmulator) -> list[str]:
    return [name for name, state in emulator.states().items() if state == "RUNNING"]


@pytest.fixture
def ingests(emulator: DaiEmulator) -> DaiEmulator:
    for name in (A, B, C, D):
        emulator.start_ingest(name)
    return emulator


class TestGivenNames:
    @pytest.mark.parametrize("given", [A, [A], "{{ dag_run.conf.operation }}", "operations/{{ dag_run.conf.letter }}"])
    def test_the_given_operations_are_cancelled(self, ingests: DaiEmulator, log: Log, given: Any) -> None:
        context = deadline_context({"operation": A, "letter": "a"})
        assert fire(context, operation_name=given) == ("success", None)
        assert running(ingests) == [B, C, D]
        assert log.ours == [PASSED, f"Requested the cancellation of {A}."]

    def test_a_template_can_use_the_run_id(self, emulator: DaiEmulator) -> None:
        emulator.start_ingest("operations/a_dag/a_run")
        given = "operations/{{ dag_run.dag_id }}/{{ dag_run.dag_run_id }}"
        assert fire(operation_name=given) == ("success", None)
        assert running(emulator) == []

    @pytest.mark.parametrize(
        ("template", "reason"),
        [
            ("{{ dag_run.run_id }}", "'dict object' has no attribute 'run_id'"),
            ("operations/{{ dag_run.run_id }}", "'dict object' has no attribute 'run_id'"),
            ("operations/b{{ run_id }}", "'run_id' is undefined"),
            ("{{ params.operation }}", "'params' is undefined"),
            ("{{ ti.xcom_pull(task_ids='start') }}", "'ti' is undefined"),
            ("{{ dag_run.conf.nothing }}", "'dict object' has no attribute 'nothing'"),
        ],
    )
    def test_an_undefined_name_in_a_template_is_an_error(
        self, ingests: DaiEmulator, log: Log, template: str, reason: str
    ) -> None:
        state, output = fire(operation_name=[template, A])
        assert running(ingests) == [B, C, D], "The other operation is cancelled."
        assert state == "failed"
        problem = (
            f"cannot be rendered: {reason}. The templates of a Deadline alert's callback have only dag_run, a dict"
        )
        assert len(log.errors) == 1
        assert problem in log.errors[0]
        assert "dag_run.dag_run_id" in log.errors[0]
        assert "cannot be rendered" in (output or "")

    @pytest.mark.parametrize("given", ["", [], "{{ dag_run.conf.get('operation') }}", "{{ dag_run.logical_date }}"])
    def test_nothing_to_cancel_is_no_error(self, ingests: DaiEmulator, log: Log, given: Any) -> None:
        assert fire(operation_name=given) == ("success", None)
        assert log.ours == [PASSED, "No operation to cancel: operation_name is empty."]
        assert ingests.requests == []

    @pytest.mark.parametrize("field", ["operation_name", "ingest_task_ids"])
    @pytest.mark.parametrize("template", ["{{ none }}", ["{{ none }}"], "{{ dag_run.logical_date }}"], ids=str)
    def test_a_template_that_renders_to_nothing_is_not_taken_as_left_out(
        self, ingests: DaiEmulator, log: Log, field: str, template: Any
    ) -> None:
        assert fire(**{field: template}) == ("success", None)
        assert ingests.requests == []
        assert log.errors == []

    @pytest.mark.parametrize("field", ["gcp_conn_id", "impersonation_chain", "api_endpoint"])
    def test_a_connection_that_renders_to_nothing_is_reported(self, ingests: DaiEmulator, log: Log, field: str) -> None:
        state, _ = fire(operation_name=A, **{field: "{{ dag_run.logical_date }}"})
        assert state == "failed"
        assert f"{A} may still run: Invalid {field} 'None'" in log.errors[-1] or "['None']" in log.errors[-1]
        assert ingests.requests == []

    def test_a_given_name_needs_no_context(self, ingests: DaiEmulator) -> None:
        """Some versions of Airflow 3 pass none."""

        async def main() -> None:
            await DaiCancelOperationNotifier(operation_name=A)

        run(main())
        assert running(ingests) == [B, C, D]

    def test_a_connection_that_cannot_be_rendered_is_reported(self, ingests: DaiEmulator, log: Log) -> None:
        state, _ = fire(operation_name=[A, B], api_endpoint="{{ params.endpoint }}")
        assert state == "failed"
        assert [line.split(" ")[0] for line in log.errors[-2:]] == [A, B]
        assert all("'{{ params.endpoint }}' cannot be rendered" in line for line in log.errors[-2:])
        assert ingests.requests == []


class TestStartedOperations:
    @pytest.mark.parametrize("tasks", ["start", ["start"], ["start", "silent"], "{{ dag_run.conf.task }}"])
    def test_operations_of_the_given_tasks_are_cancelled(
        self, ingests: DaiEmulator, triggerer: Triggerer, log: Log, tasks: Any
    ) -> None:
        triggerer.has("start", operation_name=A)
        triggerer.has("silent")
        triggerer.has("other", operation_name=B)
        assert fire(deadline_context({"task": "start"}), ingest_task_ids=tasks) == ("success", None)
        assert running(ingests) == [B, C, D]
        assert log.ours == [PASSED, f"Requested the cancellation of {A}."]

    def test_operations_of_the_given_tasks_are_cancelled_beside_given_names(
        self, ingests: DaiEmulator, triggerer: Triggerer
    ) -> None:
        triggerer.has("start", operation_name=[A, B])
        assert fire(operation_name=C, ingest_task_ids="start") == ("success", None)
        assert running(ingests) == [D]

    def test_every_map_index_is_reached(self, ingests: DaiEmulator, triggerer: Triggerer) -> None:
        for index, name in enumerate((A, B, None, C)):
            triggerer.has("start", index, **({"operation_name": name} if name else {}))
        assert fire(ingest_task_ids="start") == ("success", None)
        assert running(ingests) == [D]

    def test_operations_of_the_whole_run_are_cancelled(self, ingests: DaiEmulator, triggerer: Triggerer) -> None:
        triggerer.has("start", operation_name=A)
        triggerer.has("returns", return_value=B)
        triggerer.has("mapped", 0, operation_name=C)
        triggerer.has("says", return_value="done")
        triggerer.has("later")
        assert fire() == ("success", None)
        assert running(ingests) == [D]

    @pytest.mark.parametrize(
        ("arguments", "source"),
        [
            ({}, "the run whose deadline has passed has started none"),
            ({"ingest_task_ids": ["start", "other"]}, "start, other has started none"),
            ({"ingest_task_ids": []}, "no task has started none"),
        ],
    )
    def test_nothing_to_cancel_is_no_error(
        self, ingests: DaiEmulator, triggerer: Triggerer, log: Log, arguments: dict[str, Any], source: str
    ) -> None:
        triggerer.has("start")
        triggerer.has("other")
        assert fire(**arguments) == ("success", None)
        assert log.ours == [PASSED, f"No operation to cancel: {source}."]
        assert ingests.requests == []

    def test_the_others_are_cancelled_beside_a_task_id_that_cannot_be_rendered(
        self, ingests: DaiEmulator, triggerer: Triggerer, log: Log
    ) -> None:
        triggerer.has("start", operation_name=A)
        state, _ = fire(ingest_task_ids=["{{ params.task }}", "start"])
        assert state == "failed"
        assert running(ingests) == [B, C, D]
        assert "'{{ params.task }}' cannot be rendered: 'params' is undefined" in log.errors[0]

    @pytest.mark.parametrize("arguments", [{}, {"ingest_task_ids": ["start", "broken"]}], ids=["run", "named"])
    def test_the_others_are_cancelled_beside_a_task_that_cannot_be_read(
        self, ingests: DaiEmulator, triggerer: Triggerer, log: Log, arguments: dict[str, Any]
    ) -> None:
        triggerer.has("broken", operation_name=B)
        triggerer.has("start", operation_name=A)
        triggerer.errors["broken"] = RuntimeError("the XCom backend is away")
        state, _ = fire(**arguments)
        assert state == "failed"
        assert running(ingests) == [B, C, D]
        assert log.errors[0] == (
            "Cannot read the operations started by broken: Airflow could not read the XCom 'operation_name': "
            "RuntimeError('the XCom backend is away')"
        )

    def test_given_names_are_cancelled_when_airflow_is_unavailable(
        self, ingests: DaiEmulator, triggerer: Triggerer, monkeypatch: pytest.MonkeyPatch, log: Log
    ) -> None:
        def away(_: Any) -> None:
            raise RuntimeError("the API server is away")

        monkeypatch.setattr(triggerer, "send", away)
        assert fire(operation_name=A, ingest_task_ids="start")[0] == "failed"
        assert running(ingests) == [B, C, D]
        words = "Airflow failed: RuntimeError('the API server is away')"
        assert log.errors[0] == f"Cannot read the operations started by start: {words}"

    def test_a_context_without_a_run_is_an_error(self, ingests: DaiEmulator) -> None:
        state, output = fire({"deadline": {}}, ingest_task_ids="start")
        assert state == "failed"
        assert "Give the notifier operation_name." in (output or "")
        assert ingests.requests == []


class TestTriggerer:
    def test_the_output_names_what_may_still_run(self, ingests: DaiEmulator, clock: Clock, log: Log) -> None:
        ingests.unimplement("operations.cancel")
        state, output = fire(operation_name=[A, B])
        assert state == "failed"
        for name in (A, B):
            assert f"{name} may still run: " in (output or "")
            assert any(line.startswith(f"{name} may still run: ") for line in log.errors)
        assert clock.slept == []

    @pytest.mark.usefixtures("fake_time")
    def test_no_secret_is_logged(self, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
        extra = {"keyfile_dict": json.dumps({"type": "service_account", "private_key": "SECRET", "client_email": "a"})}
        connection = {"conn_type": "google_cloud_platform", "password": "SECRET", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(connection))
        state, output = fire(operation_name=A)
        assert state == "failed"
        assert f"{A} may still run" in (output or "")
        assert "SECRET" not in (output or "") + log.text

    @pytest.mark.parametrize("slow", ["the connection", "the XComs"])
    def test_the_event_loop_is_never_blocked(
        self, ingests: DaiEmulator, triggerer: Triggerer, monkeypatch: pytest.MonkeyPatch, slow: str
    ) -> None:
        triggerer.has("start", operation_name=A)
        gate = Gate()
        owner, name = (dai, "DaiHook") if slow == "the connection" else (triggerer, "send")
        work = getattr(owner, name)

        def slowly(*args: Any, **kwargs: Any) -> Any:
            gate.wait()
            return work(*args, **kwargs)

        monkeypatch.setattr(owner, name, slowly)

        async def main() -> None:
            notifier = DaiCancelOperationNotifier(ingest_task_ids="start", context=deadline_context())
            await asyncio.gather(notifier, gate.open_after_beats())

        run(main())
        assert running(ingests) == [B, C, D]

    def test_many_callbacks_run_at_the_same_time(self, ingests: DaiEmulator) -> None:
        names = [ingests.start_ingest() for _ in range(20)]

        async def main() -> None:
            await asyncio.gather(
                *(DaiCancelOperationNotifier(operation_name=name, context=deadline_context()) for name in names)
            )

        run(main())
        assert running(ingests) == [A, B, C, D]
        assert sorted(request.name for request in ingests.requests) == sorted(names)

    def test_a_cancelled_callback_returns_at_once_and_its_thread_goes_on(
        self, ingests: DaiEmulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A triggerer that stops cancels its callbacks; the next triggerer begins them again."""
        gate = Gate()
        hook = dai.DaiHook

        def slow_hook(*args: Any, **kwargs: Any) -> Any:
            gate.wait()
            return hook(*args, **kwargs)

        monkeypatch.setattr(dai, "DaiHook", slow_hook)

        async def notify() -> None:
            await DaiCancelOperationNotifier(operation_name=A, context=deadline_context())

        async def main() -> None:
            callback = asyncio.create_task(notify())
            await until(lambda: gate.entered)
            callback.cancel()
            with pytest.raises(asyncio.CancelledError):
                await callback
            gate.open()

        run(main())
        assert not gate.blocked, "The callback has waited for its thread."
        # The thread cannot be stopped. It is bounded by the timeout of the notifier.
        for thread in threading.enumerate():
            if thread.name.startswith(("dai-notifier", "dai-worker")):
                thread.join(15)
                assert not thread.is_alive()
        assert running(ingests) == [B, C, D]

    def test_airflow_is_asked_from_a_thread_of_asgiref(
        self, ingests: DaiEmulator, triggerer: Triggerer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the triggerer, Airflow 3.1 sends a request on the event loop, which only such a thread can reach."""
        triggerer.has("start", operation_name=A)
        loops = []
        send = triggerer.send

        async def note_loop() -> None:
            loops.append(asyncio.get_running_loop())

        def send_and_note_loop(message: Any) -> Any:
            async_to_sync(note_loop)()
            return send(message)

        monkeypatch.setattr(triggerer, "send", send_and_note_loop)

        async def main() -> Any:
            await DaiCancelOperationNotifier(ingest_task_ids="start", context=deadline_context())
            return asyncio.get_running_loop()

        loop = run(main())
        assert set(loops) == {loop}
        assert running(ingests) == [B, C, D]


class TestSyncCallback:
    @pytest.mark.skipif(not HAS_SYNC_CALLBACKS, reason="Deadline alerts of this Airflow take no SyncCallback")
    @pytest.mark.parametrize("kwargs", [{}, {"operation_name": A}, {"ingest_task_ids": "start"}], ids=str)
    def test_it_is_refused_before_any_request(
        self, ingests: DaiEmulator, triggerer: Triggerer, log: Log, kwargs: dict[str, Any]
    ) -> None:
        context = deadline_context()
        done, error = run_sync_callback(PATH, {**kwargs, "context": context})
        assert not done
        assert "given to the SyncCallback of a Deadline alert, and has cancelled nothing" in (error or "")
        assert "Use AsyncCallback(DaiCancelOperationNotifier, kwargs={...})" in (error or "")
        assert ingests.requests == []
        assert triggerer.requests == []
        assert log.ours == []
        assert context == deadline_context(), "Nothing was rendered into it."

    def test_a_context_with_a_task_instance_is_not_refused(self, ingests: DaiEmulator, ti: Ti) -> None:
        """It is the context of a task, even if a later Airflow adds a deadline to it."""
        ti.xcom_push("operation_name", A)
        DaiCancelOperationNotifier()({"ti": ti, "dag": None, "deadline": {}})
        assert running(ingests) == [B, C, D]


class TestDefinition:
    def test_airflow_accepts_the_class(self) -> None:
        callback = deadline_names()["AsyncCallback"](DaiCancelOperationNotifier, kwargs={"ingest_task_ids": "start"})
        assert callback.path == PATH
        assert accepts_context is None or accepts_context(DaiCancelOperationNotifier)
        assert inspect.signature(DaiCancelOperationNotifier).parameters["context"].default is None

    def test_the_example_passes_valid_arguments(self) -> None:
        path = Path(__file__).parents[3] / "dags_examples" / "cancel_on_deadline.py"
        spec = util.spec_from_file_location("cancel_on_deadline", path)
        assert spec
        assert spec.loader
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        (alert,) = module.dag.deadline
        assert alert.callback.path == PATH
        notifier = DaiCancelOperationNotifier(**alert.callback.kwargs)
        assert notifier.ingest_task_ids in module.dag.task_ids
