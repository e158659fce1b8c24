"""The context of a Deadline's callback, and a triggerer that responds to its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.airflow_versions import CallbackTrigger, serialize_xcom

#: Airflow 2 and 3.0 have no Deadline alerts.
deadlines = pytest.mark.skipif(CallbackTrigger is None, reason="This Airflow has no Deadline alerts")


def deadline_context(conf: Mapping[str, Any] | None = None) -> Any:
    """Return a context as a running Airflow 3.3 passes it, with some of the keys of its run."""
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
    """A stand-in for the process that responds to the requests of a triggerer, for one run.

    It accepts the requests that Airflow's own process accepts, and responds to those for single XComs and for states. A
    request from the thread of the event loop is an error, since it would block every trigger.
    """

    def __init__(self) -> None:
        from airflow.jobs.triggerer_job_runner import ToTriggerSupervisor
        from pydantic import TypeAdapter

        self._request: TypeAdapter[Any] = TypeAdapter(ToTriggerSupervisor)
        self.pushed: dict[tuple[str, int, str], Any] = {}
        self.instances: set[tuple[str, int]] = set()
        self.requests: list[str] = []
        #: The error of each task that cannot be read, by task id.
        self.errors: dict[str, Exception] = {}

    def has(self, task_id: str, map_index: int = -1, **pushed: Any) -> None:
        """Add a task instance to the run, with the XComs that it has pushed."""
        self.instances.add((task_id, map_index))
        for key, value in pushed.items():
            self.pushed[task_id, map_index, key] = serialize_xcom(value)

    def send(self, message: Any) -> Any:
        from airflow.sdk.execution_time.comms import GetTaskStates, GetXCom, TaskStatesResult, XComResult

        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        request = self._request.validate_python(message.model_dump())
        self.requests.append(request.type)
        assert request.dag_id == "a_dag"
        if isinstance(request, GetXCom):
            assert request.run_id == "a_run"
            if request.task_id in self.errors:
                raise self.errors[request.task_id]
            value = self.pushed.get((request.task_id, request.map_index, request.key))
            return XComResult(key=request.key, value=value)
        assert isinstance(request, GetTaskStates)
        assert request.run_ids == ["a_run"]
        # An empty list of task ids stands for every task: Airflow does not send it.
        states = {
            task_id if map_index < 0 else f"{task_id}_{map_index}": "running"
            for task_id, map_index in self.instances
            if not request.task_ids or task_id in request.task_ids
        }
        return TaskStatesResult(task_states={"a_run": states} if states else {})


def install_triggerer(monkeypatch: pytest.MonkeyPatch) -> Triggerer:
    """Let a triggerer respond to the requests to Airflow."""
    from airflow.sdk.execution_time import task_runner

    triggerer = Triggerer()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", triggerer, raising=False)
    return triggerer
