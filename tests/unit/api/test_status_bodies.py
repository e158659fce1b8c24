"""Errors of other forms than ``{"error": {...}}``: a bare ``google.rpc.Status``, and a list of one error."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import Code, ServiceError
from tests.support.payloads import NAME

GET, LIST = rest.get_operation(NAME), rest.list_operations()
CANCEL, CREATE = rest.cancel_operation(NAME), rest.create_creative({"adSystem": "x"})
REQUESTS: tuple[rest.Request[Any], ...] = (GET, LIST, CANCEL, CREATE)


def error_of(request: rest.Request[Any], status: int, body: object) -> ServiceError:
    response = rest.Response(status, body=json.dumps(body).encode())
    with pytest.raises(ServiceError) as caught:
        rest.read_response(request, response, datetime.now(UTC))
    return caught.value


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.method)
@pytest.mark.parametrize(
    ("status", "number", "code"),
    [
        (404, 5, "NOT_FOUND"),
        (400, 3, "INVALID_ARGUMENT"),
        (400, 9, "FAILED_PRECONDITION"),
        (400, 11, "OUT_OF_RANGE"),
        (409, 6, "ALREADY_EXISTS"),
        (409, 10, "ABORTED"),
        (403, 7, "PERMISSION_DENIED"),
        (500, 13, "INTERNAL"),
        (500, 2, "UNKNOWN"),
        (500, 15, "DATA_LOSS"),
        (501, 12, "UNIMPLEMENTED"),
        (503, 14, "UNAVAILABLE"),
        (504, 4, "DEADLINE_EXCEEDED"),
        (200, 5, "NOT_FOUND"),
        (200, 9, "FAILED_PRECONDITION"),
    ],
)
def test_a_bare_status_is_the_error_of_the_api(
    request_: rest.Request[Any], status: int, number: int, code: str
) -> None:
    error = error_of(request_, status, {"code": number, "message": "said", "details": []})
    assert error.rpc_code == code
    assert not error.from_front_end
    assert str(error).endswith(f"returned {status} {code}: said")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"code": 404, "message": "no route"}),
        (404, {"code": 7, "message": "another"}),
        (404, {"code": "5", "message": "a text"}),
        (404, {"code": True, "message": "a flag"}),
        (404, {"code": 5}),
        (404, {"message": "no route matched"}),
        (404, {"code": 0, "message": "OK"}),
        (404, [{"code": 5, "message": "one"}, {"code": 5, "message": "another"}]),
        (404, [5]),
    ],
)
def test_a_body_of_another_server_is_that_of_a_front_end(status: int, body: object) -> None:
    error = error_of(GET, status, body)
    assert error.from_front_end
    assert error.rpc_code is Code.UNIMPLEMENTED


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.method)
@pytest.mark.parametrize("status", [404, 200])
@pytest.mark.parametrize(
    "error",
    [{"error": {"code": 404, "status": "NOT_FOUND", "message": "said"}}, {"code": 5, "message": "said"}],
    ids=["wrapped", "bare"],
)
def test_a_list_of_one_error_is_that_error(request_: rest.Request[Any], status: int, error: dict[str, Any]) -> None:
    caught = error_of(request_, status, [error])
    assert caught.rpc_code is Code.NOT_FOUND
    assert not caught.from_front_end


def test_a_limit_in_a_bare_status_is_a_limit() -> None:
    body = {"code": 7, "message": "m", "details": [{"reason": "RATE_LIMIT_EXCEEDED"}]}
    assert error_of(GET, 403, body).rpc_code is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("error", [{"code": 0, "message": "m"}, {"message": "m"}, {"code": "5"}, {"code": None}, {}])
def test_an_error_without_a_code_is_judged_by_the_http_status(error: dict[str, Any]) -> None:
    assert error_of(GET, 404, {"error": error}).rpc_code is Code.NOT_FOUND
    assert error_of(GET, 503, {"error": error}).rpc_code is Code.UNAVAILABLE


@pytest.mark.parametrize("error", [{"code": 0, "message": "m"}, {"message": "m"}, "denied", [1]])
def test_an_error_without_a_code_under_a_success_is_no_success(error: object) -> None:
    assert error_of(CANCEL, 200, {"error": error}).rpc_code is Code.UNKNOWN
    assert error_of(LIST, 200, {"error": error}).rpc_code is Code.UNKNOWN
