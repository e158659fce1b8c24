"""What a trigger learns of its task, on the real metadata database of whichever Airflow this is."""

from __future__ import annotations

import asyncio
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task
from airflow.triggers.base import BaseTrigger

from airflow_dai_provider.version_compat import TRIES_HAVE_MEMORY, TRIGGERS_HAVE_ON_KILL, task_instance_state


def test_what_came_with_3_3(airflow_2: bool) -> None:
    has_store = importlib.util.find_spec("airflow.models.task_state_store") is not None
    assert TRIES_HAVE_MEMORY is not airflow_2
    assert has_store is TRIES_HAVE_MEMORY
    assert TRIGGERS_HAVE_ON_KILL is hasattr(BaseTrigger, "on_kill")
    assert TRIGGERS_HAVE_ON_KILL is not airflow_2


def test_without_a_task_instance_there_is_no_state_to_tell() -> None:
    with pytest.raises(LookupError, match="no task instance"):
        asyncio.run(task_instance_state(None))


def test_the_state_of_each_task_instance(run_dag: Any, airflow_2: bool) -> None:
    with DAG("states") as dag:

        @task
        def done() -> int:
            return 1

        @task
        def mapped(number: int) -> int:
            return number

        @task(retries=0)
        def ask(dag_run: Any = None) -> dict[str, Any]:
            def state(task_id: str, map_index: int, try_number: int = 1) -> str | None:
                # As the triggerer describes a task instance to its trigger.
                ti = SimpleNamespace(
                    dag_id="states", task_id=task_id, run_id=dag_run.run_id, map_index=map_index, try_number=try_number
                )
                return asyncio.run(task_instance_state(ti))

            return {
                "done": state("done", -1),
                "mapped": state("mapped", 1),
                "never begun": state("later", -1),
                "no such task": state("gone", -1),
                "no such index": state("mapped", 7),
                "a later try": state("done", -1, try_number=0),
            }

        @task
        def later() -> None:
            """Begin when the question has been asked."""

        [done(), mapped.expand(number=[1, 2])] >> ask() >> later()

    ran = run_dag(dag)
    assert ran.state == "success"
    assert ran.xcom("ask") == {
        # Airflow 3.3 goes on with the ingest in the next try, so it is the task that counts there.
        "a later try": None if airflow_2 else "success",
        "done": "success",
        "mapped": "success",
        "never begun": None,
        "no such task": None,
        "no such index": None,
    }
