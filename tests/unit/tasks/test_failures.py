"""Final states and errors become the right error of a task, or none."""

from __future__ import annotations

import re
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowSkipException

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.names import InvalidNameError
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.tasks.failures import (
    UnexpectedStateError,
    check_expected_states,
    check_final_state,
    check_many,
    decisive_code,
    task_errors,
)
from airflow_dai_provider.transport import google_errors as api
from tests.support.payloads import SIGNED_URL, metadata
from tests.support.rpc_codes import RPC_CODES

FINAL_STATES = ("CANCELLED", "FAILED", "SUCCEEDED")


def operation(state: str) -> Operation:
    error = {"FAILED": (13, "internal"), "CANCELLED": (1, "cancelled")}.get(state, (None, None))
    return Operation("operations/x", OperationState(state), *error)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(None, None, id="every-final-state"),
        pytest.param("CANCELLED", {"CANCELLED"}, id="one-word"),
        pytest.param(OperationState.FAILED, {"FAILED"}, id="one-state"),
        pytest.param(["CANCELLED", "SUCCEEDED"], {"CANCELLED", "SUCCEEDED"}, id="list"),
        pytest.param(("FAILED", OperationState.FAILED), {"FAILED"}, id="tuple"),
        pytest.param({"SUCCEEDED"}, {"SUCCEEDED"}, id="set"),
    ],
)
def test_valid_expected_states_are_read(given: Any, expected: set[str] | None) -> None:
    states = check_expected_states(given)
    assert states == expected
    assert states is None or all(isinstance(state, OperationState) for state in states)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(given, id=repr(given))
        for given in (
            "",
            [],
            "RUNNING",
            ["CANCELLED", "RUNNING"],
            "cancelled",
            "CANCELLED,SUCCEEDED",
            "None",
            [None],
            [["CANCELLED"]],
            [{"state": "CANCELLED"}],
            5,
            True,
        )
    ],
)
def test_invalid_expected_states_are_refused(given: Any) -> None:
    with pytest.raises(AirflowFailException, match="Invalid expected_states .* CANCELLED, FAILED, SUCCEEDED"):
        check_expected_states(given)


def finish(state: str, accepted: str) -> str:
    """Return a pattern of the message for a final state that is not accepted."""
    return "^operations/x failed: error " if state == "FAILED" else f"^operations/x is {state}.* {accepted}"


@pytest.mark.parametrize("expected", [None, *FINAL_STATES])
@pytest.mark.parametrize("state", FINAL_STATES)
def test_a_final_state_is_accepted_only_when_expected(state: str, expected: str | None) -> None:
    finished = operation(state)
    if expected in (None, state):
        assert check_final_state(finished, check_expected_states(expected)) is finished
        return
    with pytest.raises(UnexpectedStateError, match=finish(state, f"accepts only {expected}")) as raised:
        check_final_state(finished, check_expected_states(expected))
    assert isinstance(raised.value, AirflowFailException)


def test_the_reason_of_a_failed_ingest_is_in_the_message() -> None:
    status = {"state": "FAILURE", "failureReason": {"reason": "DOWNLOAD_ERROR", "code": 403}}
    given = metadata(creativeUrl=SIGNED_URL, youtubeStatus=status)
    failed = Operation("operations/x", OperationState.FAILED, 9, "no download", None, given)
    words = "Ingest of media.example/ad.mp4 (operations/x) failed: DOWNLOAD_ERROR 403 (error 9: no download)."
    with pytest.raises(UnexpectedStateError, match=f"^{re.escape(words)}$"):
        check_final_state(failed, check_expected_states("CANCELLED"))


PERMANENT = {
    "UNIMPLEMENTED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "UNAUTHENTICATED", "NOT_FOUND", "FAILED_PRECONDITION",
    "OUT_OF_RANGE", "ALREADY_EXISTS",
}  # fmt: skip


@pytest.mark.parametrize("code", RPC_CODES)
def test_an_error_of_the_service_becomes_an_error_of_the_task(code: str) -> None:
    error = api.typed(ServiceError("operations.get of operations/x returned no", Code(code)))
    assert isinstance(error, RPC_CODES[code].error)
    with pytest.raises(AirflowException, match="operations.get of operations/x returned no") as raised, task_errors():
        raise error
    assert isinstance(raised.value, AirflowFailException) == (code in PERMANENT)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (api.MethodNotImplemented, "This server does not support the method, and a retry cannot help"),
        (api.PermissionDenied, "allow-listed"),
        (api.Unauthenticated, "refused the credentials"),
        (api.NotFound, "Finished operations expire"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_permanent_error_says_what_to_do(kind: type[ServiceError], advice: str) -> None:
    with pytest.raises(AirflowFailException, match=advice), task_errors():
        raise kind("no")


@pytest.mark.parametrize(
    ("error", "left_behind"),
    [
        pytest.param(api.ServiceUnavailable("away"), True, id="away"),
        pytest.param(api.MethodNotImplemented("no"), True, id="unimplemented"),
        pytest.param(api.NotFound("no"), False, id="what-does-not-exist-does-not-run"),
        pytest.param(WaitTimeoutError("too slow"), True, id="timeout"),
    ],
)
def test_the_message_says_what_may_be_left_behind(error: Exception, left_behind: bool) -> None:
    with pytest.raises(AirflowException) as raised, task_errors("operations/x may still run"):
        raise error
    assert ("operations/x may still run." in str(raised.value)) == left_behind


@pytest.mark.parametrize(
    ("error", "fails_for_good"),
    [
        pytest.param(InvalidNameError("bad name"), True, id="invalid-name"),
        pytest.param(ValueError("bad endpoint"), True, id="bad-setting"),
        pytest.param(WaitTimeoutError("too slow"), False, id="timeout"),
    ],
)
def test_an_invalid_value_is_permanent_and_a_timeout_is_not(error: Exception, fails_for_good: bool) -> None:
    with pytest.raises(AirflowException) as raised, task_errors():
        raise error
    assert isinstance(raised.value, AirflowFailException) == fails_for_good
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("kind", [AirflowException, AirflowSkipException, UnexpectedStateError, KeyError, OSError])
def test_other_exceptions_pass_unchanged(kind: type[Exception]) -> None:
    error = kind("as it is")
    with pytest.raises(kind) as raised, task_errors("something may still run"):
        raise error
    assert raised.value is error


def test_nothing_happens_without_an_error() -> None:
    with task_errors():
        pass


# Many


@pytest.mark.parametrize(
    ("codes", "decisive"),
    [
        (["PERMISSION_DENIED"], "PERMISSION_DENIED"),
        (["NOT_FOUND", "PERMISSION_DENIED"], "PERMISSION_DENIED"),
        (["NOT_FOUND", "PERMISSION_DENIED", "UNAVAILABLE"], "UNAVAILABLE"),
        (["UNAVAILABLE", "UNIMPLEMENTED"], "UNIMPLEMENTED"),
        (["NOT_FOUND", "CANCELLED"], "CANCELLED"),
        (["NOT_FOUND", "NOT_FOUND"], "NOT_FOUND"),
    ],
)
def test_the_error_that_a_retry_can_heal_decides(codes: list[str], decisive: str) -> None:
    for given in (codes, codes[::-1]):
        assert decisive_code([Code(code) for code in given]) == decisive


def many(errors: dict[str, ServiceError], *states: str, expected: Any = None) -> None:
    operations = [operation(state) for state in states]
    check_many(operations, check_expected_states(expected), errors, total=50, failed="operations could not be polled")


def test_many_that_have_finished_as_expected_pass() -> None:
    many({}, "SUCCEEDED", "CANCELLED", expected=["SUCCEEDED", "CANCELLED"])
    many({}, "SUCCEEDED", "FAILED", "CANCELLED")
    many({})


def test_unexpected_ends_of_many_are_permanent_and_counted() -> None:
    with pytest.raises(UnexpectedStateError, match="2 of 50 operations") as caught:
        many({}, "FAILED", "SUCCEEDED", "FAILED", expected="SUCCEEDED")
    assert "2 FAILED" in str(caught.value)


@pytest.mark.parametrize(("code", "permanent"), [("UNAVAILABLE", False), ("PERMISSION_DENIED", True)])
def test_errors_of_many_are_counted_named_and_told_with_the_unexpected_ends(code: str, permanent: bool) -> None:
    errors = {f"operations/{number}": ServiceError(f"no {number}.", Code(code)) for number in range(12)}
    with pytest.raises(AirflowException) as caught:
        many(errors, "FAILED", expected="SUCCEEDED")
    message = str(caught.value)
    assert isinstance(caught.value, AirflowFailException) is permanent
    assert f"12 of 50 operations could not be polled (12 {code}): operations/0: no 0; operations/1: no 1" in message
    assert "operations/9: no 9; and 2 more" in message
    assert "1 of 50 operations" in message
