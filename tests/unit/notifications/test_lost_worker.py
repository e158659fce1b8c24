"""LostWorkerCallback: whether it cancels depends on the executed task."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.notifications.lost_worker import LostWorkerCallback
from tests.support.task_instance import Ti

A = "operations/a"


def task(*, cancels_own_ingest: bool) -> Any:
    return SimpleNamespace(cancels_own_ingest=cancels_own_ingest)


@pytest.fixture
def context(emulator: DaiEmulator, ti: Ti) -> Any:
    """The context of a task that has started an ingest."""
    ti.xcom_push("operation_name", emulator.start_ingest(A))
    with DAG("lost_worker", schedule=None) as dag:
        BaseOperator(task_id=ti.task_id)
    return {"dag": dag, "ti": ti}


@pytest.mark.parametrize(
    ("executed", "state"),
    [
        pytest.param(task(cancels_own_ingest=False), "CANCELLED", id="the task was not executed here"),
        pytest.param(task(cancels_own_ingest=True), "RUNNING", id="the task handles its ingest"),
        pytest.param(SimpleNamespace(), "CANCELLED", id="a task of another operator"),
        pytest.param(None, "CANCELLED", id="no task"),
    ],
)
def test_it_cancels_unless_the_executed_task_does(
    emulator: DaiEmulator, context: Any, executed: Any, state: str
) -> None:
    context["ti"].task = executed
    LostWorkerCallback()(context)
    assert emulator.state(A) == state
    assert len(emulator.requests) == (state == "CANCELLED")


def test_it_cancels_where_the_task_instance_has_no_task(emulator: DaiEmulator, context: Any) -> None:
    LostWorkerCallback()(context)
    assert emulator.state(A) == "CANCELLED"


@pytest.mark.parametrize(("executed", "state"), [(True, "RUNNING"), (False, "CANCELLED")])
def test_the_copy_of_the_task_in_the_context_is_not_asked(
    emulator: DaiEmulator, context: Any, executed: bool, state: str
) -> None:
    """Airflow 3.0 passes another copy of the task than the executed one."""
    context["ti"].task = task(cancels_own_ingest=executed)
    LostWorkerCallback()({**context, "task": task(cancels_own_ingest=not executed)})
    assert emulator.state(A) == state


def test_a_copy_does_the_same(emulator: DaiEmulator, context: Any) -> None:
    """Airflow copies callbacks with their DAG."""
    context["ti"].task = task(cancels_own_ingest=False)
    deepcopy(LostWorkerCallback())(context)
    assert emulator.state(A) == "CANCELLED"


def test_a_subclass_can_take_cancel_on_failure_back(emulator: DaiEmulator, context: Any) -> None:
    LostWorkerCallback(SimpleNamespace(cancel_on_failure=False))(context)
    assert emulator.state(A) == "RUNNING"
