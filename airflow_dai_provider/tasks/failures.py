"""
What the state of an operation, or an error of the service, means for an Airflow task: the one place that decides.

Operators, sensors and triggers call this, so that the same thing ends a task in the same way everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider.api.errors import PERMANENT, Code
from airflow_dai_provider.api.operation import END_STATES, Operation, OperationState
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.metrics import count_ended

_ADVICE = {
    Code.UNIMPLEMENTED: (
        "This server does not support the method, and a retry cannot help. Check the endpoint; if it is right, the "
        "operation can only be left to end by itself, or be stopped by whoever runs the service."
    ),
    Code.PERMISSION_DENIED: "The account of the connection has no access: Google must have allow-listed it for DAI.",
    Code.UNAUTHENTICATED: "The service, or the token service, refused the credentials of the connection.",
    Code.NOT_FOUND: (
        "The service does not know it: is the name right, and of this endpoint? Finished operations expire."
    ),
}


class OperationNotFoundError(AirflowFailException):
    """The service does not know the operation."""


class UnexpectedEndError(AirflowFailException):
    """The operation has ended in a state that the task was not told to accept."""


def check_expected_states(states: object) -> frozenset[OperationState] | None:
    """
    Read the parameter ``expected_states``.

    :param states: None for every end, a state, or several.
    :raises AirflowFailException: when one of them is not the end of an operation.
    """
    if states is None:
        return None
    given = [states] if isinstance(states, str) else states
    if (
        isinstance(given, Collection)
        and given
        and all(isinstance(state, str) and state in END_STATES for state in given)
    ):
        return frozenset(OperationState(state) for state in given)
    raise AirflowFailException(
        f"Invalid expected_states {short_repr(states)}: expected None for every end, or some of "
        f"{', '.join(sorted(END_STATES))}."
    )


def accept_end(operation: Operation, expected: frozenset[OperationState] | None) -> Operation:
    """
    Return an operation that has ended as the task expects.

    :param operation: one that has ended.
    :param expected: the states to accept, or None for every end.
    :raises UnexpectedEndError: when it ended otherwise; the message has the ingest's reason.
    """
    if not operation.done:
        raise AirflowException(f"{operation}, which is no end.")
    count_ended(operation.state)
    if expected is None or operation.state in expected:
        return operation
    raise UnexpectedEndError(f"{operation}, but this task accepts only {', '.join(sorted(expected))}.")


def accept_missing(error: OperationNotFoundError, log: Any, meaning: str, *, missing_ok: bool) -> None:
    """
    Take an operation that the service does not know for one that does not run, if the task is told to.

    :param log: says so.
    :param meaning: a sentence on what that means for the task.
    :param missing_ok: the task's parameter of that name.
    :raises OperationNotFoundError: when it is not told to.
    """
    if not missing_ok:
        raise OperationNotFoundError(f"{error} missing_ok=True accepts that.") from error.__cause__
    log.info("%s %s", error, meaning)


@contextmanager
def task_errors(consequence: str = "") -> Iterator[None]:
    """
    Turn the errors of the hook into those of a task.

    :param consequence: a sentence for the message that says what this leaves behind.
    :raises AirflowFailException: for what a retry cannot heal.
    :raises AirflowException: for what it may.
    """
    try:
        yield
    except AirflowException:
        raise
    except ValueError as error:
        raise AirflowFailException(str(error)) from error
    except WaitTimeoutError as error:
        raise AirflowException(_sentences(error, consequence)) from error
    except Exception as error:
        code = error_code(error)
        if code is None:
            raise
        # The message says what was asked and answered. Behind the frames of our own code nobody would find it:
        # Airflow's log page, which opens at its end, leaves out a cause that has none.
        raise task_error(code, error_message(error), consequence) from error.with_traceback(None)


def task_error(code: Code, message: str, consequence: str = "") -> AirflowException:
    """
    Return what ends a task after an error with this code.

    :param message: what has happened.
    :param consequence: a sentence that says what this leaves behind.
    """
    advice = _ADVICE.get(code, "")
    if code is Code.NOT_FOUND:
        return OperationNotFoundError(_sentences(message, advice))
    kind = AirflowFailException if code in PERMANENT else AirflowException
    return kind(_sentences(message, advice, consequence))


def error_code(error: Exception) -> Code | None:
    """Return the rpc code of what a hook has raised, or the one that it amounts to; None for what no hook raises."""
    # Imported here, since DAG files are parsed often and this is heavy; whoever raised the error has loaded it.
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError, TransportError

    if isinstance(error, GoogleAPICallError):
        status = error.grpc_status_code
        return Code(status.name) if status is not None else Code.UNKNOWN
    if isinstance(error, TransportError | ConnectionError | TimeoutError) or getattr(error, "retryable", False):
        return Code.UNAVAILABLE
    if isinstance(error, GoogleAuthError | OSError):
        return Code.UNAUTHENTICATED
    return Code.INVALID_ARGUMENT if isinstance(error, ValueError) else None


def error_message(error: Exception) -> str:
    """Return the words of what a hook has raised."""
    from google.api_core.exceptions import GoogleAPICallError

    if isinstance(error, GoogleAPICallError):
        return str(error.message)
    if isinstance(error, ValueError):
        return str(error)
    return f"The connection gives no usable credentials: {error}"


def describe_error(error: Exception) -> str:
    """Return the words of any error, for a log or a message."""
    return error_message(error) if error_code(error) else repr(error)


def _sentences(*parts: object) -> str:
    return " ".join(text if text.endswith((".", "?")) else f"{text}." for text in map(str, parts) if text)
