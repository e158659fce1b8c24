"""Template fields that were given, and render to nothing."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, XComArg, task

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from airflow_dai_provider.tasks.templates import check_rendered, given_fields, is_given
from tests.support.payloads import creative
from tests.support.task_instance import Ti

OPERATORS = [
    (DaiOperationSensor, {"operation_name": "operations/a"}),
    (DaiCreateCreativeOperator, {"creative": creative()}),
]


@pytest.mark.parametrize(
    ("kind", "given", "field"),
    [(kind, given, field) for kind, given in OPERATORS for field in kind.template_fields if field not in given],
)
@pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
def test_it_is_refused_before_anything_is_sent(
    emulator: DaiEmulator, ti: Ti, kind: Any, given: dict[str, Any], field: str, native: bool
) -> None:
    with DAG("rendered_to_nothing", schedule=None, render_template_as_native_obj=native):
        operator = kind(task_id="start_ingest", **given, **{field: "{{ none }}"})
    operator.render_template_fields({})
    with pytest.raises(AirflowFailException, match=f"{field}"):
        operator.execute({"ti": ti})
    assert emulator.requests == []


def test_a_field_without_a_value_is_not_given() -> None:
    assert [is_given(value) for value in (None, "", "{{ none }}", 0, [], "x")] == [False, False, True, True, True, True]
    with DAG("given", schedule=None):

        @task
        def tell() -> None:
            return None

        output = tell()
        assert isinstance(output, XComArg)
        sensor = DaiOperationSensor(task_id="wait", operation_name=output, expected_states=output)
    assert given_fields(sensor) == {"operation_name", "expected_states", "gcp_conn_id"}


@pytest.mark.parametrize("value", [None, "None", "", " ", ["a", None], ("None",)], ids=repr)
def test_nothing_is_refused_with_a_hint(value: object) -> None:
    with pytest.raises(ValueError, match=r"^Invalid spare .*: expected a value\. Most likely the upstream task"):
        check_rendered("spare", value)


@pytest.mark.parametrize("value", ["a", [], ["a"], 0, {"a": None}], ids=repr)
def test_a_value_is_accepted(value: object) -> None:
    check_rendered("spare", value)
