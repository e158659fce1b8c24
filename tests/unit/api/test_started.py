"""The response to a start: the name is all that is needed, since what runs has to be guarded."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.operation import Operation, OperationState

NAME = "operations/x"


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def started(resource: Any) -> Operation:
    response = rest.Response(200, {}, json.dumps(resource).encode())
    return rest.read_response(rest.create_creative({"adSystem": "x"}), response, datetime.now(UTC))


@pytest.mark.parametrize(
    "odd",
    [
        {"metadata": []},
        {"metadata": nested(600)},
        {"done": "false"},
        {"done": True, "error": {"code": 3}, "response": {}},
        {"done": True, "error": "x"},
        {"response": 5, "done": True},
    ],
    ids=lambda odd: ",".join(odd),
)
def test_an_operation_with_a_name_has_started_whatever_else_is_wrong_with_it(odd: Any) -> None:
    assert started({"name": NAME, **odd}) == Operation(NAME, OperationState.RUNNING)


@pytest.mark.parametrize("name", [None, "", 5, "operations/a b", "creatives/x", "operations/" + "x" * 3000], ids=str)
def test_a_name_that_cannot_be_requested_is_an_error(name: Any) -> None:
    with pytest.raises(ServiceError):
        started({"name": name, "metadata": []})
