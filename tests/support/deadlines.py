"""What a Deadline's callback meets in the triggerer of Airflow 3: its context, and answers to single questions only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.airflow_versions import CallbackTrigger, serialize_xcom

#: Airflow 2 and 3.0 have no Deadline alerts.
deadlines = pytest.mark.skipif(CallbackTrigger is None, reason="This Airflow has no Deadline alerts")


def deadline_context(conf: Mapping[str, Any] | None = None) -> Any:
    """Make the context as a running Airflow 3.3 gives it, with the keys of the run that matter here."""
    return {
        "dag_run": {
            "dag_run_id": "a_run",
            "dag_id": "a_dag",
            "logical_date": None,
            "run_type": "manual",
            "state": "running",
            "conf": dict(conf or {}),
        },
        "deadline": {"id": "01a203dc-8828-7da1-93e7-1e7975844ada", "deadline_time": None},
    }


class Triggerer:
    """
    Stands in for the process that answers a triggerer's questions about one run.

    It takes what Airflow's own takes, and answers single XComs and states. A question from the event loop's thread is
    an error here, since it would block every trigger.
    """

    def __init__(self) -> None:
        from airflow.jobs.triggerer_job_runner import ToTriggerSupervisor
        from pydantic import TypeAdapter

        self._question: TypeAdapter[Any] = TypeAdapter(ToTriggerSupervisor)
        self.pushed: dict[tuple[str, int, str], Any] = {}
        self.instances: set[tuple[str, int]] = set()
        self.asked: list[str] = []
        #: What fails, by task id.
        self.errors: dict[str, Exception] = {}

    def has(self, task_id: str, map_index: int = -1, **pushed: Any) -> None:
        """Say that the run has a task instance, and what that has pushed."""
        self.instances.add((task_id, map_index))
        for key, value in pushed.items():
            self.pushed[task_id, map_index, key] = serialize_xcom(value)

    def send(self, message: Any) -> Any:
        from airflow.sdk.execution_time.comms import GetTaskStates, GetXCom, TaskStatesResult, XComResult

        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        question = self._question.validate_python(message.model_dump())
        self.asked.append(question.type)
        assert question.dag_id == "a_dag"
        if isinstance(question, GetXCom):
            assert question.run_id == "a_run"
            if question.task_id in self.errors:
                raise self.errors[question.task_id]
            value = self.pushed.get((question.task_id, question.map_index, question.key))
            return XComResult(key=question.key, value=value)
        assert isinstance(question, GetTaskStates)
        assert question.run_ids == ["a_run"]
        # Without any task id Airflow sends none, and is told of every task.
        states = {
            task_id if map_index < 0 else f"{task_id}_{map_index}": "running"
            for task_id, map_index in self.instances
            if not question.task_ids or task_id in question.task_ids
        }
        return TaskStatesResult(task_states={"a_run": states} if states else {})


def answer_as_triggerer(monkeypatch: pytest.MonkeyPatch) -> Triggerer:
    """Let a triggerer answer what is asked of Airflow."""
    from airflow.sdk.execution_time import task_runner

    triggerer = Triggerer()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", triggerer, raising=False)
    return triggerer
