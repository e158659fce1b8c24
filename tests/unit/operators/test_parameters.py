"""Flags and durations of every class are refused where the DAG is parsed; templates that went wrong, when they run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.operators.dai import (
    DaiCancelOperationOperator,
    DaiCancelStrayOperationsOperator,
    DaiCreateCreativeOperator,
    DaiDeleteCreativeOperator,
)
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from airflow_dai_provider.tasks.failures import InvalidParameterError
from tests.support.payloads import NAME, creative
from tests.support.task_instance import Ti, rendered

TASKS: dict[type[Any], dict[str, Any]] = {
    DaiCancelOperationOperator: {"operation_name": NAME},
    DaiCreateCreativeOperator: {"creative": creative()},
    DaiDeleteCreativeOperator: {"creative_name": "creatives/my-ad"},
    DaiCancelStrayOperationsOperator: {"older_than": 60},
    DaiOperationSensor: {"operation_name": NAME},
}
FLAGS = {
    DaiCancelOperationOperator: ("wait_for_completion", "missing_ok", "deferrable"),
    DaiCreateCreativeOperator: ("wait_for_completion", "cancel_on_kill", "cancel_on_failure", "deferrable"),
    DaiDeleteCreativeOperator: ("missing_ok",),
    DaiCancelStrayOperationsOperator: ("include_undated", "wait_for_completion", "dry_run"),
    DaiOperationSensor: (
        *("missing_ok", "cancel_on_kill", "deferrable"),
        *("soft_fail", "silent_fail", "never_fail", "exponential_backoff"),
    ),
}
DURATIONS = {
    DaiCancelOperationOperator: ("poll_interval", "timeout"),
    DaiCreateCreativeOperator: ("poll_interval", "timeout"),
    DaiCancelStrayOperationsOperator: ("poll_interval", "timeout"),
    DaiOperationSensor: ("poke_interval", "timeout", "max_wait"),
}


def pairs(table: dict[type[Any], tuple[str, ...]]) -> list[Any]:
    return [
        pytest.param(kind, parameter, id=f"{kind.__name__}-{parameter}")
        for kind, parameters in table.items()
        for parameter in parameters
    ]


@pytest.mark.parametrize("value", ["False", "true", None, 0, 1, "{{ params.x }}"], ids=repr)
@pytest.mark.parametrize(("kind", "parameter"), pairs(FLAGS))
def test_a_flag_is_true_or_false(kind: type[Any], parameter: str, value: object) -> None:
    for given in ({parameter: value}, {"default_args": {parameter: value}}):
        with pytest.raises(InvalidParameterError, match=f"^Invalid {parameter} .*: expected True or False\\.$"):
            kind(task_id="task", **TASKS[kind], **given)


@pytest.mark.parametrize("value", [1e14, -1, 0, float("nan"), float("inf"), timedelta.max, True, "5"], ids=repr)
@pytest.mark.parametrize(("kind", "parameter"), pairs(DURATIONS))
def test_a_duration_is_one_that_clocks_can_hold(kind: type[Any], parameter: str, value: object) -> None:
    if (kind, parameter, value) == (DaiOperationSensor, "timeout", 0):
        assert kind(task_id="task", timeout=0, **TASKS[kind]).timeout == 0  # one poke
        return
    with pytest.raises(InvalidParameterError, match=f"^Invalid {parameter} .*number of seconds"):
        kind(task_id="task", **{**TASKS[kind], parameter: value})


@pytest.mark.parametrize("value", ["None", "", 3], ids=repr)
@pytest.mark.parametrize("parameter", ["api_endpoint", "gcp_conn_id", "impersonation_chain"])
@pytest.mark.parametrize("kind", TASKS)
def test_a_text_that_has_rendered_to_nothing_is_refused_with_a_hint(
    emulator: DaiEmulator, kind: type[Any], parameter: str, value: object
) -> None:
    task = rendered(kind, task_id="task", **{**TASKS[kind], parameter: value})
    hint = "render_template_as_native_obj" if value == 3 else "the upstream task has pushed no value"
    with pytest.raises(AirflowFailException, match=f"Invalid {parameter} .*{hint}"):
        task.execute({"ti": Ti()})
    assert emulator.requests == []


@pytest.mark.parametrize("parameter", ["url_prefix", "url_pattern", "older_than"])
def test_a_filter_that_has_rendered_to_nothing_is_refused_with_a_hint(emulator: DaiEmulator, parameter: str) -> None:
    task = rendered(DaiCancelStrayOperationsOperator, task_id="task", **{"older_than": 60, parameter: "None"})
    with pytest.raises(AirflowFailException, match=f"Invalid {parameter} .*the upstream task has pushed no value"):
        task.execute({"ti": Ti()})
    assert emulator.requests == []
