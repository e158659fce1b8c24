"""One class per rpc code, which is ours and Google's."""

from __future__ import annotations

import copy
import pickle
from http import HTTPStatus

import pytest
from google.api_core import exceptions

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.transport.google_errors import typed
from tests.support.rpc_codes import RPC_CODES


def make(code: str) -> ServiceError:
    return typed(ServiceError("operations.get failed", Code(code), 3.0, False))


@pytest.mark.parametrize("code", Code)
def test_an_error_is_ours_and_googles(code: Code) -> None:
    error = make(code)
    assert isinstance(error, RPC_CODES[code].error)
    assert error.grpc_status_code is None or error.grpc_status_code.name == code
    assert (error.rpc_code, error.retry_after, error.sent) == (code, 3.0, False)
    assert str(error) == error.message == "operations.get failed"


@pytest.mark.parametrize("code", Code)
def test_a_class_knows_its_code_without_being_told(code: Code) -> None:
    error = type(make(code))("by a user's own test")
    assert (error.rpc_code, error.retry_after, error.sent) == (code, None, True)


@pytest.mark.parametrize("code", Code)
@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
def test_an_error_survives_pickling(code: Code, duplicate: object) -> None:
    error = make(code)
    other = duplicate(error)  # type: ignore[operator]
    assert (type(other), vars(other), str(other)) == (type(error), vars(error), str(error))


@pytest.mark.parametrize("code", Code)
def test_google_makes_its_own_classes_as_before(code: Code) -> None:
    """google-api-core registers each class that sets ``code``, for all users of the process."""
    made = exceptions.from_http_status(RPC_CODES[code].error.code or HTTPStatus.IM_A_TEAPOT, "no")
    assert not isinstance(made, ServiceError)


def test_a_typed_error_stays_as_it_is() -> None:
    error = make("ABORTED")
    assert type(typed(error)) is type(error)
