"""Handing a wait over: the deadline, Airflow's own one behind it, and the default of ``deferrable``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout, TaskDeferred

from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from airflow_dai_provider.tasks.deferral import BACKSTOP, TRIGGER_TIMEOUTS, defer_wait, raise_task_timeout
from airflow_dai_provider.triggers.dai import DaiOperationTrigger


def make_task(**arguments: Any) -> DaiCancelOperationOperator:
    return DaiCancelOperationOperator(task_id="wait", operation_name="operations/a", api_endpoint="a.test", **arguments)


@pytest.mark.parametrize(
    ("execution_timeout", "timeout", "limit"),
    [
        (None, 100.0, 100.0),
        (timedelta(seconds=40), 100.0, 40.0),
        (timedelta(hours=2), 100.0, 100.0),
        (timedelta(seconds=100), 100.0, 100.0),
        (timedelta(0), 100.0, 100.0),
        (None, 0.0, 0.0),
    ],
    ids=str,
)
def test_the_sooner_deadline_counts(execution_timeout: timedelta | None, timeout: float, limit: float) -> None:
    before = time.time()
    with pytest.raises(TaskDeferred) as deferred:
        defer_wait(make_task(execution_timeout=execution_timeout, timeout=timeout), "operations/a", poll_interval=7.0)

    trigger = deferred.value.trigger
    assert isinstance(trigger, DaiOperationTrigger)
    assert (trigger.operation_name, trigger.poll_interval, trigger.timeout) == ("operations/a", 7.0, limit)
    assert (trigger.gcp_conn_id, trigger.api_endpoint) == ("google_cloud_default", "a.test")
    assert before <= trigger.started <= time.time()
    assert deferred.value.method_name == "execute_complete"
    assert deferred.value.timeout == timedelta(seconds=limit + BACKSTOP)


def test_airflow_itself_ends_it_later_than_the_trigger() -> None:
    assert BACKSTOP > 30, "The trigger's event should win, although a triggerer can be slow."


@pytest.mark.parametrize("execution_timeout", [None, timedelta(seconds=101), timedelta(seconds=100)], ids=str)
def test_it_was_not_the_execution_timeout(execution_timeout: timedelta | None) -> None:
    raise_task_timeout(make_task(execution_timeout=execution_timeout, timeout=100.0), "It took too long.")


def test_it_was_the_execution_timeout() -> None:
    with pytest.raises(AirflowTaskTimeout, match="It took too long. The execution_timeout of the task has passed."):
        raise_task_timeout(make_task(execution_timeout=timedelta(seconds=99), timeout=100.0), "It took too long.")


def test_what_this_version_of_airflow_says_is_known(airflow_2: bool) -> None:
    assert words_of_airflow(airflow_2=airflow_2) in TRIGGER_TIMEOUTS


def words_of_airflow(*, airflow_2: bool) -> str:
    if airflow_2:
        import inspect

        from airflow.jobs import scheduler_job_runner

        words = "Trigger/execution timeout"
        assert words in inspect.getsource(scheduler_job_runner)
        return words
    from airflow.models.trigger import TriggerFailureReason

    return str(TriggerFailureReason.TRIGGER_TIMEOUT.value)


def test_the_default_comes_from_the_configuration() -> None:
    """In a process of its own: the default is read when the classes are made."""
    script = """
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor
for make in (DaiCancelOperationOperator, DaiOperationSensor):
    print(make(task_id="a", operation_name="operations/a").deferrable)
    print(make(task_id="b", operation_name="operations/a", deferrable=True).deferrable)
    print(make(task_id="c", operation_name="operations/a", deferrable=False).deferrable)
"""
    environment = {**os.environ, "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.split() if line in ("True", "False")]
    assert lines == ["True", "True", "False"] * 2


def test_without_a_configuration_tasks_wait_in_the_worker() -> None:
    assert not DaiCancelOperationOperator(task_id="a", operation_name="operations/a").deferrable
    assert not DaiOperationSensor(task_id="b", operation_name="operations/a").deferrable
