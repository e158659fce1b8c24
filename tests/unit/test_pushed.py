"""Which operations are read from the XComs of a run."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, BaseOperator, task

from airflow_dai_provider.pushed import (
    is_dag_callback,
    names_pushed_by_run,
    names_pushed_by_task_instance,
    names_pushed_by_tasks,
)

LOGGER = logging.getLogger("airflow_dai_provider.test_pushed")
LOGGER.setLevel(logging.INFO)
A, B, C = (f"operations/{letter}" for letter in "abc")


def contexts(ti: Any) -> tuple[Any, Any]:
    """Return the context of a task's callback and that of a DAG's."""
    return {"ti": ti}, {"ti": ti, "reason": "task_failure"}


def test_airflow_gives_a_reason_to_the_callbacks_of_a_dag_only(ti: Any) -> None:
    assert [is_dag_callback(context) for context in contexts(ti)] == [False, True]


@pytest.mark.parametrize(
    ("pushed", "names"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param({"operation_name": A}, [A], id="name"),
        pytest.param({"operation_name": [A, B]}, [A, B], id="list"),
        pytest.param({"operation_name": (A, B)}, [A, B], id="tuple"),
        pytest.param({"operation_name": A, "return_value": B}, [A], id="name-before-result"),
        pytest.param({"return_value": A}, [A], id="result"),
        pytest.param({"return_value": "done"}, [], id="another-result"),
        pytest.param({"return_value": [A]}, [], id="result-that-is-no-string"),
        pytest.param({"return_value": {"name": A}}, [], id="result-of-the-sensor"),
        pytest.param({"operation_name": "nonsense"}, ["nonsense"], id="a-wrong-name-is-not-hidden"),
        pytest.param({"operation": {"name": A}}, [], id="another-key"),
    ],
)
@pytest.mark.parametrize("map_index", [-1, 2])
def test_what_a_task_instance_has_pushed(
    make_ti: Any, pushed: dict[str, Any], names: list[str], map_index: int
) -> None:
    ti = make_ti(map_index=map_index)
    for key, value in pushed.items():
        ti.xcom_push(key, value)
    of_task, of_dag = contexts(ti)
    assert names_pushed_by_task_instance(of_task, LOGGER) == names
    assert names_pushed_by_tasks(of_task, [ti.task_id], LOGGER) == names
    assert names_pushed_by_tasks(of_dag, [ti.task_id], LOGGER) == names


@pytest.mark.parametrize(
    ("pushed_by", "try_number", "names"),
    [(1, 1, [A]), (2, 2, [A]), (2, 1, []), (1, 2, []), (None, 3, [A])],
    ids=["its-own", "its-own-second", "the-next-try-s", "an-earlier-try-s", "unknown"],
)
def test_the_ingest_of_another_try_is_left_alone(
    make_ti: Any, log: Any, pushed_by: int | None, try_number: int, names: list[str]
) -> None:
    ti = make_ti(try_number=try_number)
    ti.xcom_push("operation_name", A)
    if pushed_by:
        ti.xcom_push("operation_try_number", pushed_by)
    of_task, of_dag = contexts(ti)
    assert names_pushed_by_task_instance(of_task, LOGGER) == names
    assert names_pushed_by_tasks(of_task, [ti.task_id], LOGGER) == names
    left_alone = f"Leaving {A} alone: try {pushed_by} has started it, and this callback belongs to try {try_number}."
    assert log.ours == ([] if names else [left_alone] * 2)
    # The callback of a DAG comes when no try is left that could want it.
    assert names_pushed_by_tasks(of_dag, [ti.task_id], LOGGER) == [A]


class TestMapIndexes:
    @pytest.fixture
    def run(self, make_ti: Any) -> Any:
        """A function that gives the task instance of a map index, in a run where three of them have pushed."""

        def of(map_index: int, task_id: str = "publish") -> Any:
            ti = make_ti(task_id=task_id, map_index=map_index)
            for index, name in enumerate((A, B, C)):
                ti.of_other_task("start_ingest", "operation_name", name, index)
            ti.of_other_task("single", "return_value", "operations/single")
            return ti

        return of

    def test_a_mapped_task_reaches_its_own_index_only(self, run: Any) -> None:
        of_task, _ = contexts(run(1))
        assert names_pushed_by_tasks(of_task, ["start_ingest"], LOGGER) == [B]
        of_task, _ = contexts(run(1, "start_ingest"))
        assert names_pushed_by_task_instance(of_task, LOGGER) == [B]
        assert names_pushed_by_tasks(of_task, ["start_ingest"], LOGGER) == [B]

    def test_a_mapped_task_reaches_a_task_that_is_not_mapped(self, run: Any) -> None:
        of_task, _ = contexts(run(1))
        assert names_pushed_by_tasks(of_task, ["single", "start_ingest"], LOGGER) == ["operations/single", B]

    def test_a_mapped_task_whose_index_has_pushed_nothing(self, run: Any) -> None:
        of_task, _ = contexts(run(7))
        assert names_pushed_by_tasks(of_task, ["start_ingest"], LOGGER) == []

    def test_a_task_that_is_not_mapped_reaches_all(self, run: Any) -> None:
        of_task, _ = contexts(run(-1))
        assert names_pushed_by_tasks(of_task, ["start_ingest"], LOGGER) == [A, B, C]

    @pytest.mark.parametrize("map_index", [-1, 1])
    def test_a_dag_reaches_all(self, run: Any, map_index: int) -> None:
        _, of_dag = contexts(run(map_index))
        assert names_pushed_by_tasks(of_dag, ["start_ingest", "single", "never"], LOGGER) == [
            A,
            B,
            C,
            "operations/single",
        ]

    def test_a_run_is_every_task_of_its_dag(self, run: Any) -> None:
        with DAG("pushed_by_run", schedule=None) as dag:
            for task_id in ("start_ingest", "single", "never"):
                BaseOperator(task_id=task_id)
        _, of_dag = contexts(run(-1))
        names = names_pushed_by_run({**of_dag, "dag": dag}, LOGGER)
        assert sorted(map(str, names)) == [A, B, C, "operations/single"]


def test_without_a_task_instance_the_user_learns_what_to_do() -> None:
    # Airflow passes none where the run has no task instance that it can represent.
    with pytest.raises(AirflowException, match="no task instance .* Give the notifier operation_name"):
        names_pushed_by_tasks({"reason": "timed_out"}, ["start_ingest"], LOGGER)


def test_real_task_instances_answer_as_the_stand_in_does(run_dag: Any) -> None:
    with DAG("pushed_for_real", schedule=None) as dag:

        @task
        def start_ingest(name: str, ti: Any = None) -> None:
            ti.xcom_push("operation_name", name)

        @task
        def single() -> str:
            return "operations/single"

        @task
        def silent() -> None:
            pass

        @task
        def collect(**context: Any) -> dict[str, list[object]]:
            task_ids = ["start_ingest", "single", "silent", "never"]
            of_dag: Any = {**context, "reason": "task_failure"}
            of_index: Any = {**context, "ti": OfIndex(context["ti"], 1)}
            return {
                "task": names_pushed_by_tasks(context, task_ids, LOGGER),
                "dag": names_pushed_by_tasks(of_dag, task_ids, LOGGER),
                "index": names_pushed_by_tasks(of_index, task_ids, LOGGER),
                "run": sorted(map(str, names_pushed_by_run(of_dag, LOGGER))),
                "own": names_pushed_by_task_instance(context, LOGGER),
            }

        [start_ingest.expand(name=[A, B, C]), single(), silent()] >> collect()

    class OfIndex:
        """The same task instance, said to be mapped."""

        def __init__(self, ti: Any, map_index: int) -> None:
            self.ti, self.map_index = ti, map_index

        def __getattr__(self, name: str) -> Any:
            return getattr(self.ti, name)

    run = run_dag(dag)
    assert run.state == "success"
    everything = [A, B, C, "operations/single"]
    assert run.xcom("collect") == {
        "task": everything,
        "dag": everything,
        "index": [B, "operations/single"],
        "run": everything,
        "own": [],
    }
