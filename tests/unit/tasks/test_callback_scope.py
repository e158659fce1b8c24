"""The kind of a callback, and the operations that it reaches."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, BaseOperator, task

from airflow_dai_provider.tasks import callback_scope
from airflow_dai_provider.tasks.callback_scope import (
    CLOCK_SKEW,
    CallbackKind,
    callback_kind,
    operations_started,
    operations_started_by_task_instance,
)
from airflow_dai_provider.tasks.xcom import NoXComsError, push_operations
from tests.support.dag_runs import RunDag
from tests.support.deadlines import Triggerer, deadline_context, deadlines, install_triggerer
from tests.support.log import Log
from tests.support.task_instance import Ti

LOGGER = logging.getLogger("airflow_dai_provider.test_callbacks")
LOGGER.setLevel(logging.INFO)
A, B, C = (f"operations/{letter}" for letter in "abc")


def contexts(ti: Ti) -> tuple[Any, Any]:
    """Return the context of a task's callback, and the context of a DAG's callback."""
    return {"ti": ti}, {"ti": ti, "reason": "task_failure"}


def test_only_the_context_of_a_dags_callback_has_a_reason(ti: Ti) -> None:
    assert [callback_kind(context) for context in contexts(ti)] == [CallbackKind.TASK, CallbackKind.DAG]


@pytest.mark.parametrize(
    ("pushed_by", "try_number", "names"),
    [(1, 1, [A]), (2, 2, [A]), (2, 1, []), (1, 2, []), (None, 3, [A])],
    ids=["its-own", "its-own-second", "next-try", "earlier-try", "unknown"],
)
def test_the_operation_of_another_try_is_left_alone(
    make_ti: type[Ti], log: Log, pushed_by: int | None, try_number: int, names: list[str]
) -> None:
    ti = make_ti(try_number=try_number)
    ti.xcom_push("operation_name", A)
    if pushed_by:
        ti.xcom_push("operation_started", {"try_number": pushed_by})
    of_task, of_dag = contexts(ti)
    assert operations_started_by_task_instance(of_task, LOGGER) == names
    assert operations_started(of_task, [ti.task_id], LOGGER) == (names, [])
    left_alone = f"Leaving {A} alone: try {pushed_by} has started it, and this callback belongs to try {try_number}."
    assert log.ours == ([] if names else [left_alone] * 2)
    # When the callback of a DAG is called, no try is left that could use the ingest.
    assert operations_started(of_dag, [ti.task_id], LOGGER) == ([A], [])


class TestMapIndexes:
    @pytest.fixture
    def run(self, make_ti: type[Ti]) -> Any:
        """A function that returns the task instance of a map index; three indexes have started operations."""

        def of(map_index: int, task_id: str = "publish") -> Any:
            ti = make_ti(task_id=task_id, map_index=map_index)
            for index, name in enumerate((A, B, C)):
                ti.of_other_task("start_ingest", "operation_name", name, index)
            ti.of_other_task("single", "return_value", "operations/single")
            return ti

        return of

    def test_a_mapped_task_reaches_its_own_index_only(self, run: Any) -> None:
        of_task, _ = contexts(run(1))
        assert operations_started(of_task, ["start_ingest"], LOGGER) == ([B], [])
        of_task, _ = contexts(run(1, "start_ingest"))
        assert operations_started_by_task_instance(of_task, LOGGER) == [B]
        assert operations_started(of_task, ["start_ingest"], LOGGER) == ([B], [])

    def test_a_mapped_task_reaches_a_task_that_is_not_mapped(self, run: Any) -> None:
        of_task, _ = contexts(run(1))
        assert operations_started(of_task, ["single", "start_ingest"], LOGGER) == (["operations/single", B], [])

    def test_a_mapped_task_whose_index_has_started_nothing_reaches_nothing(self, run: Any) -> None:
        of_task, _ = contexts(run(7))
        assert operations_started(of_task, ["start_ingest"], LOGGER) == ([], [])

    def test_a_task_that_is_not_mapped_reaches_every_index(self, run: Any) -> None:
        of_task, _ = contexts(run(-1))
        assert operations_started(of_task, ["start_ingest"], LOGGER) == ([A, B, C], [])

    @pytest.mark.parametrize("map_index", [-1, 1])
    def test_a_dag_reaches_every_index(self, run: Any, map_index: int) -> None:
        _, of_dag = contexts(run(map_index))
        assert operations_started(of_dag, ["start_ingest", "single", "never"], LOGGER) == (
            [A, B, C, "operations/single"],
            [],
        )

    def test_a_dag_reaches_all_its_tasks_by_default(self, run: Any) -> None:
        with DAG("operations_of_run", schedule=None) as dag:
            for task_id in ("start_ingest", "single", "never"):
                BaseOperator(task_id=task_id)
        _, of_dag = contexts(run(-1))
        names, problems = operations_started({**of_dag, "dag": dag}, None, LOGGER)
        assert problems == []
        assert sorted(map(str, names)) == [A, B, C, "operations/single"]


def test_a_context_without_a_task_instance_is_an_error() -> None:
    # Airflow passes none where the run has no task instance that it can represent.
    with pytest.raises(AirflowException, match="no task instance .* Give the notifier operation_name"):
        operations_started({"reason": "timed_out"}, ["start_ingest"], LOGGER)


def test_real_task_instances_return_the_same(run_dag: RunDag) -> None:
    with DAG("operations_of_tasks", schedule=None) as dag:

        @task
        def start_ingest(name: str, ti: Ti = None) -> None:
            ti.xcom_push("operation_name", name)

        @task
        def single() -> str:
            return "operations/single"

        @task
        def silent() -> None:
            pass

        @task
        def collect(**context: Any) -> dict[str, list[object]]:
            task_ids = ["start_ingest", "single", "silent"]
            of_dag: Any = {**context, "reason": "task_failure"}
            of_index: Any = {**context, "ti": OfIndex(context["ti"], 1)}
            return {
                "task": operations_started(context, task_ids, LOGGER)[0],
                "dag": operations_started(of_dag, task_ids, LOGGER)[0],
                "index": operations_started(of_index, task_ids, LOGGER)[0],
                "run": sorted(map(str, operations_started(of_dag, None, LOGGER)[0])),
                "own": operations_started_by_task_instance(context, LOGGER),
            }

        [start_ingest.expand(name=[A, B, C]), single(), silent()] >> collect()

    class OfIndex:
        """The same task instance with another map index."""

        def __init__(self, ti: Ti, map_index: int) -> None:
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


@dataclass
class NotRestorable:
    """A value that a task may return, but that Airflow does not restore elsewhere: its class is not allowed."""

    value: int = 1


class TestUnreadable:
    @pytest.mark.parametrize("kind", [RuntimeError, AirflowException, OSError])
    @pytest.mark.parametrize("of_dag", [False, True], ids=["task", "dag"])
    def test_a_task_that_cannot_be_read_is_a_problem_beside_the_names(
        self, make_ti: type[Ti], monkeypatch: pytest.MonkeyPatch, of_dag: bool, kind: type[Exception]
    ) -> None:
        ti = make_ti(task_id="publish")
        ti.of_other_task("start_ingest", "operation_name", A)
        pull = type(ti).xcom_pull

        def broken(self: Any, task_ids: Any, **arguments: Any) -> Any:
            if "broken" in task_ids:
                raise kind("the XCom backend is away")
            return pull(self, task_ids, **arguments)

        monkeypatch.setattr(type(ti), "xcom_pull", broken)
        names, (problem,) = operations_started(contexts(ti)[of_dag], ["broken", "start_ingest"], LOGGER)
        assert names == [A]
        words = "Cannot read the operations started by broken: Airflow could not read the XCom 'operation_name': "
        assert problem.startswith(words)
        assert "the XCom backend is away" in problem

    def test_the_tasks_own_xcom_that_cannot_be_read_is_named(self, ti: Ti, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(type(ti), "xcom_pull", broken)
        words = "Airflow could not read the XCom 'operation_name': OSError(5, 'Input/output error')"
        problem = f"Cannot read the operations started by {ti.task_id}: {words}"
        assert operations_started(contexts(ti)[0], None, LOGGER) == ([], [problem])

    def test_an_operation_whose_time_cannot_be_read_is_named(self, ti: Ti, monkeypatch: pytest.MonkeyPatch) -> None:
        unreadable = "operation_started"
        push_operations(ti, {A: 2e9}, clear_number=1, many=False)
        pull = type(ti).xcom_pull

        def broken(self: Any, task_ids: Any, key: str, **arguments: Any) -> Any:
            if key == unreadable:
                raise OSError("away")
            return pull(self, task_ids, key, **arguments)

        monkeypatch.setattr(type(ti), "xcom_pull", broken)
        monkeypatch.setattr(callback_scope, "CALLBACK_HAS_RUN_AS_IT_ENDED", True)
        run = SimpleNamespace(end_date=datetime(2026, 11, 22, tzinfo=UTC), clear_number=1)
        context: Any = {"ti": ti, "reason": "timed_out", "dag_run": run}
        names, (problem,) = operations_started(context, [ti.task_id], LOGGER)
        assert names == []
        assert f"could not read the XCom '{unreadable}': OSError('away'), so {A} may still run" in problem

    def test_a_task_that_has_started_nothing_costs_two_reads(self, ti: Ti, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[str] = []
        monkeypatch.setattr(type(ti), "xcom_pull", lambda *_, key, **__: read.append(key))
        assert operations_started(contexts(ti)[0], None, LOGGER) == ([], [])
        assert read == ["operation_name", "return_value"]

    @pytest.mark.parametrize("of_dag", [False, True], ids=["task", "dag"])
    def test_one_error_stands_for_all_tasks_where_no_xcom_can_be_read(
        self, ti: Ti, monkeypatch: pytest.MonkeyPatch, of_dag: bool
    ) -> None:
        def without_supervisor(*_: Any, **__: Any) -> None:
            raise ImportError("cannot import", name="airflow.sdk.execution_time.task_runner")

        monkeypatch.setattr(type(ti), "xcom_pull", without_supervisor)
        with pytest.raises(NoXComsError, match="XComs cannot be read here"):
            operations_started(contexts(ti)[of_dag], ["one", "another"], LOGGER)

    def test_a_result_that_airflow_does_not_restore_is_ignored(self, run_dag: RunDag) -> None:
        with DAG("operations_not_restorable", schedule=None) as dag:

            @task
            def start_ingest() -> str:
                return A

            @task
            def odd() -> NotRestorable:
                return NotRestorable()

            @task
            def odd_name(ti: Ti = None) -> None:
                ti.xcom_push("operation_name", NotRestorable())

            @task
            def collect(**context: Any) -> list[Any]:
                of_dag: Any = {**context, "reason": "task_failure"}
                return list(operations_started(of_dag, ["odd", "odd_name", "start_ingest"], LOGGER))

            [start_ingest(), odd(), odd_name()] >> collect()

        ran = run_dag(dag)
        assert ran.state == "success"
        names, (problem,) = ran.xcom("collect")
        assert problem.startswith("Cannot read the operations started by odd_name: ")
        assert names == [A]


class TestDeadline:
    @pytest.fixture
    def triggerer(self, monkeypatch: pytest.MonkeyPatch) -> Triggerer:
        return install_triggerer(monkeypatch)

    def test_only_a_context_without_a_task_instance_is_a_deadlines(self, ti: Ti) -> None:
        assert callback_kind(deadline_context()) is CallbackKind.DEADLINE
        assert CallbackKind.DEADLINE not in [callback_kind(context) for context in contexts(ti)]
        empty: Any = {}
        assert callback_kind(empty) is CallbackKind.TASK
        with_ti: Any = {**deadline_context(), "ti": ti}
        assert callback_kind(with_ti) is CallbackKind.TASK

    @deadlines
    @pytest.mark.parametrize(
        ("instances", "task_ids", "names"),
        [
            pytest.param({("a", -1): A}, ["a"], [A], id="one"),
            pytest.param({("a", -1): [A, B]}, ["a"], [A, B], id="list"),
            pytest.param({("a", i): name for i, name in enumerate((A, B, C))}, ["a"], [A, B, C], id="mapped"),
            pytest.param({("a", 2): A, ("a", 10): B}, ["a"], [A, B], id="mapped-in-order"),
            pytest.param({("a", -1): A, ("b", -1): B}, ["b", "a"], [B, A], id="in-the-order-given"),
            pytest.param({("a", -1): A, ("never", -1): None}, ["never"], [], id="none-pushed"),
            pytest.param({("a", -1): A}, [], [], id="none-named"),
            pytest.param({("a", -1): A, ("a_1", -1): B}, ["a"], [A], id="one-beside-a-numbered-one"),
            pytest.param({("a_1", -1): A, ("a_2", -1): B}, ["a_1"], [A], id="numbered"),
            pytest.param({("a", 1): A, ("a_1", -1): B}, ["a"], [A], id="mapped-beside-its-namesake"),
            pytest.param({("a", 1): A, ("a_1", -1): B}, ["a_1"], [B], id="namesake-beside-the-mapped"),
            pytest.param({("a", -1): A, ("b", 0): B, ("b", 1): C}, None, [A, B, C], id="run"),
            pytest.param({("a_1", -1): A, ("a_2", -1): B, ("a", -1): C}, None, [C, A, B], id="run-numbered"),
            pytest.param({("a", 0): A, ("a_0", -1): B, ("a_0_0", -1): C}, None, [A, B, C], id="run-namesakes"),
            pytest.param({("a", 0): A, ("a_1", 0): B, ("a_1", 1): C}, None, [A, B, C], id="run-mapped-namesakes"),
            pytest.param({("_1", -1): A, ("g.a_b", -1): B}, None, [A, B], id="run-odd-ids"),
            pytest.param({}, None, [], id="run-without-tasks"),
        ],
    )
    def test_the_operations_of_a_run_are_read_one_by_one(
        self,
        triggerer: Triggerer,
        instances: dict[tuple[str, int], Any],
        task_ids: Iterable[str] | None,
        names: list[str],
    ) -> None:
        for (task_id, map_index), name in instances.items():
            triggerer.has(task_id, map_index, operation_name=name)
        assert operations_started(deadline_context(), task_ids, LOGGER) == (names, [])

    @deadlines
    @pytest.mark.parametrize(
        ("pushed", "names"),
        [
            ({"return_value": A}, [A]),
            ({"return_value": "done"}, []),
            ({"return_value": {"name": A}}, []),
            ({"return_value": NotRestorable()}, []),
            ({"operation_name": B, "return_value": NotRestorable()}, [B]),
            ({"operation_name": "nonsense"}, ["nonsense"]),
        ],
        ids=str,
    )
    def test_the_same_xcoms_are_read(self, triggerer: Triggerer, pushed: dict[str, Any], names: list[str]) -> None:
        triggerer.has("start", **pushed)
        assert operations_started(deadline_context(), ["start"], LOGGER) == (names, [])
        assert operations_started(deadline_context(), None, LOGGER) == (names, [])

    @deadlines
    def test_a_run_costs_one_request_per_task_instance(self, triggerer: Triggerer) -> None:
        for index in range(50):
            triggerer.has("start", index, operation_name=f"operations/{index}")
        assert len(operations_started(deadline_context(), None, LOGGER)[0]) == 50
        assert (triggerer.requests.count("GetTaskStates"), triggerer.requests.count("GetXCom")) == (3, 50)

    @deadlines
    def test_a_real_airflow_returns_the_same(self, run_dag: RunDag) -> None:
        with DAG("operations_of_deadline", schedule=None) as dag:

            @task
            def start(name: str, ti: Ti = None) -> None:
                ti.xcom_push("operation_name", name)

            @task
            def start_1() -> str:
                return "operations/single"

            @task
            def odd() -> NotRestorable:
                return NotRestorable()

            @task
            def collect(dag_run: Any = None) -> dict[str, list[object]]:
                of_run = {"dag_id": dag_run.dag_id, "dag_run_id": dag_run.run_id}
                context: Any = {"dag_run": of_run, "deadline": {}}
                return {
                    "named": operations_started(context, ["start_1", "start", "odd"], LOGGER)[0],
                    "no such task": operations_started(context, ["never"], LOGGER)[1],
                    "run": operations_started(context, None, LOGGER)[0],
                }

            [start.expand(name=[A, B, C]), start_1(), odd()] >> collect()

        ran = run_dag(dag)
        assert ran.state == "success"
        assert ran.xcom("collect") == {
            "named": ["operations/single", A, B, C],
            "no such task": [
                f"Cannot read the operations started by never: the run {ran.run_id} of operations_of_deadline "
                "has no such task."
            ],
            "run": [A, B, C, "operations/single"],
        }


class TestClearedRun:
    """The callback of a DAG can be late: the run was cleared, and its tasks have started new ingests."""

    ENDED = datetime(2026, 11, 22, 12, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("dag_run", "name_is_taken"),
        [
            (SimpleNamespace(end_date=ENDED), {"before": True, "skew": True, "after": False}),
            # Airflow 2 reads the run again: a cleared one has no end, and was queued when it was cleared.
            (SimpleNamespace(end_date=None, queued_at=ENDED), {"before": True, "skew": True, "after": False}),
            (SimpleNamespace(end_date=None, queued_at=None), {"before": True, "skew": True, "after": True}),
            (None, {"before": True, "skew": True, "after": True}),
        ],
        ids=["ended", "cleared", "unknown", "no run"],
    )
    def test_an_operation_started_after_the_end_is_left_alone(
        self, ti: Ti, dag_run: Any, name_is_taken: dict[str, bool]
    ) -> None:
        end = self.ENDED.timestamp()
        times = {"before": end - 60, "skew": end + CLOCK_SKEW - 0.1, "after": end + CLOCK_SKEW + 0.1}
        for index, (label, time) in enumerate(times.items()):
            started = replace(ti, task_id="mapped", map_index=index)
            push_operations(started, {f"operations/{label}": time}, many=False)
        context: Any = {"ti": ti, "reason": "task_failure", "dag_run": dag_run}
        taken = [f"operations/{label}" for label, is_taken in name_is_taken.items() if is_taken]
        assert operations_started(context, ["mapped"], LOGGER) == (taken, [])

    @pytest.mark.parametrize(
        ("pushed", "run", "its_own"),
        [(0, 0, True), (1, 1, True), (0, 1, True), (1, 0, False), (2, 1, False), (None, 0, False), (0, None, False)],
    )
    @pytest.mark.parametrize("of_its_time", [True, False], ids=["airflow 3", "airflow 2"])
    def test_what_was_started_after_the_end_is_the_runs_own_if_it_was_not_cleared(
        self,
        ti: Ti,
        monkeypatch: pytest.MonkeyPatch,
        log: Log,
        pushed: int | None,
        run: int | None,
        its_own: bool,
        of_its_time: bool,
    ) -> None:
        """A task can be starting its ingest when ``dagrun_timeout`` ends the run."""
        monkeypatch.setattr(callback_scope, "CALLBACK_HAS_RUN_AS_IT_ENDED", of_its_time)
        push_operations(ti, {A: self.ENDED.timestamp() + 60}, clear_number=pushed, many=False)
        dag_run = SimpleNamespace(end_date=self.ENDED, clear_number=run)
        context: Any = {"ti": ti, "reason": "timed_out", "dag_run": dag_run}
        taken = its_own and of_its_time
        assert operations_started(context, [ti.task_id], LOGGER) == ([A] if taken else [], [])
        assert len(log.lines(f"Leaving {A} alone: {ti.task_id} has started it after the end of the run")) == (not taken)

    @pytest.mark.parametrize("map_index", [-1, 1])
    @pytest.mark.parametrize(
        ("pushed", "run", "reached"),
        [(0, 0, True), (1, 1, True), (0, 1, True), (1, 0, False), (3, 1, False), (None, 0, True), (1, None, True)],
    )
    def test_the_callback_of_a_task_leaves_alone_what_another_task_has_started_after_a_clear(
        self, make_ti: type[Ti], log: Log, pushed: int | None, run: int | None, reached: bool, map_index: int
    ) -> None:
        ti = make_ti(task_id="publish", map_index=map_index)
        push_operations(replace(ti, task_id="start"), {A: 12.5}, clear_number=pushed, many=False)
        context: Any = {"ti": ti, "dag_run": SimpleNamespace(clear_number=run)}
        assert operations_started(context, ["start"], LOGGER) == ([A] if reached else [], [])
        assert log.ours == ([] if reached else [f"Leaving {A} alone: start has started it after the run was cleared."])

    @pytest.mark.parametrize("pushed_at", [None, "x", [1], {}])
    def test_an_operation_without_a_time_is_reached(self, ti: Ti, pushed_at: Any) -> None:
        ti.of_other_task("plain", "operation_name", ["operations/a", {"name": "operations/b"}])
        if pushed_at is not None:
            ti.of_other_task("plain", "operation_started", {"pushed_at": pushed_at})
        context: Any = {"ti": ti, "reason": "task_failure", "dag_run": SimpleNamespace(end_date=self.ENDED)}
        assert operations_started(context, ["plain"], LOGGER) == (["operations/a", {"name": "operations/b"}], [])

    def test_the_callback_of_a_task_ignores_the_end_of_the_run(self, ti: Ti) -> None:
        push_operations(ti, {"operations/a": self.ENDED.timestamp() + 60}, many=False)
        context: Any = {"ti": ti, "dag_run": SimpleNamespace(end_date=self.ENDED)}
        assert operations_started(context, [ti.task_id], LOGGER) == (["operations/a"], [])
