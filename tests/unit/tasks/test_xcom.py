"""The operations that a task pushes to XCom, and how they are read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.tasks.xcom import (
    NoXComsError,
    as_list,
    clear_number_of,
    pull,
    pull_operations,
    push_operations,
)
from tests.support.airflow_versions import VERSION
from tests.support.dag_runs import RunDag
from tests.support.task_instance import Ti

A, B = "operations/a", "operations/b"


def test_the_name_is_pushed_with_its_try_time_endpoint_and_flags(make_ti: type[Ti]) -> None:
    ti = make_ti(try_number=2)
    push_operations(ti, {A: 12.5}, "https://x", flags={"waits": True}, many=False)
    assert {key: value for (_, _, key), value in ti.pushed.items()} == {
        "operation_name": A,
        "operation_started": {
            "endpoint": "https://x",
            "try_number": 2,
            "clear_number": None,
            "pushed_at": {A: 12.5},
            "flags": {"waits": True},
            "refused": False,
        },
    }
    keys = [key for _, _, key in ti.pushed]
    assert keys == ["operation_started", "operation_name"], "A name alone would be one at any endpoint."


def test_many_names_are_pushed_as_a_list_beside_one_record(ti: Ti) -> None:
    push_operations(ti, {A: 12.5, B: 13.5}, "https://x", 1, many=True)
    assert ti.pushed[ti.task_id, -1, "operation_name"] == [A, B]
    assert ti.pushed[ti.task_id, -1, "operation_started"]["pushed_at"] == {A: 12.5, B: 13.5}
    push_operations(ti, {A: 12.5}, "https://x", many=True)
    assert ti.pushed[ti.task_id, -1, "operation_name"] == [A]


def test_the_clear_number_of_the_run_is_pushed_where_airflow_tells_it(ti: Ti) -> None:
    context: Any = {"dag_run": SimpleNamespace(clear_number=3)}
    push_operations(ti, {A: 12.5}, clear_number=clear_number_of(context), many=False)
    assert ti.pushed[ti.task_id, -1, "operation_started"]["clear_number"] == 3
    for dag_run in (None, SimpleNamespace(), SimpleNamespace(clear_number=None), {"clear_number": 3}):
        assert clear_number_of({"dag_run": dag_run}) is None  # type: ignore[typeddict-item]


def test_a_real_run_tells_its_clear_number(run_dag: RunDag) -> None:
    with DAG("clear_number", schedule=None) as dag:

        @task
        def tell(**context: Any) -> int | None:
            return clear_number_of(context)  # type: ignore[arg-type]

        tell()
    assert run_dag(dag).xcom("tell") == 0


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
        pytest.param({"operation_name": "nonsense"}, ["nonsense"], id="invalid-name-is-returned"),
        pytest.param({"operation_name": {"name": A}}, [{"name": A}], id="operation-is-returned"),
        pytest.param({"operation": {"name": A}}, [], id="another-key"),
    ],
)
@pytest.mark.parametrize("map_index", [-1, 2])
def test_operations_are_read_from_the_name_else_from_the_result(
    make_ti: type[Ti], pushed: dict[str, Any], names: list[Any], map_index: int
) -> None:
    ti = make_ti(map_index=map_index)
    for key, value in pushed.items():
        ti.xcom_push(key, value)
    assert pull_operations(ti, ti.task_id, map_index) == names
    assert pull_operations(ti, ti.task_id, None) == names


@pytest.mark.parametrize(
    ("value", "values"),
    [
        (A, [A]),
        (None, [None]),
        (b"x", [b"x"]),
        ({"name": A}, [{"name": A}]),
        ([A, B], [A, B]),
        ((A,), [A]),
        ({A}, [A]),
        ([], []),
    ],
    ids=repr,
)
def test_one_or_several_values_become_a_list(value: Any, values: list[Any]) -> None:
    assert as_list(value) == values


class FailingTaskInstance:
    """A task instance that cannot import what it needs to pull."""

    def __init__(self, module: str) -> None:
        self.error = ImportError("cannot import", name=module)

    def xcom_pull(self, **_: Any) -> None:
        raise self.error


def test_a_callback_in_dag_test_is_told_what_to_do() -> None:
    ti = FailingTaskInstance("airflow.sdk.execution_time.task_runner")
    with pytest.raises(NoXComsError, match=r"dag\.test\(\) of Airflow 3 .* give the notifier operation_name"):
        pull_operations(ti, "start", -1)


def test_a_value_whose_class_cannot_be_imported_is_an_error() -> None:
    ti = FailingTaskInstance("a_plugin")
    with pytest.raises(ImportError, match="cannot import"):
        pull(ti, "start", "operation_name", None)


@pytest.mark.skipif(VERSION < (3,), reason="Airflow 2 reads the metadata database")
def test_a_process_without_responses_to_xcom_requests_sends_none(ti: Ti, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ConnectionResult
    from pydantic import TypeAdapter

    comms = SimpleNamespace(body_decoder=TypeAdapter(ConnectionResult))
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    monkeypatch.delattr(type(ti), "xcom_pull")
    with pytest.raises(NoXComsError, match=r"the dag processor of Airflow 3\.0"):
        pull(ti, "start", "operation_name", -1)
