"""Decide what a final state, or an error of the service, means for an Airflow task.

Operators, the sensor and the trigger call this, so that a task ends in the same way in all of them. Nothing is counted
here: see :mod:`airflow_dai_provider.metrics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from traceback import format_tb
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import some_of
from airflow_dai_provider.api.operation import FINAL_STATES, Operation, OperationState
from airflow_dai_provider.api.parameters import template_hint
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.api.redaction import redact_urls, short_repr
from airflow_dai_provider.api.retry import PERMANENT

#: Errors whose text is a message of this package or of Airflow.
_IN_WORDS = (ServiceError, ValueError, WaitTimeoutError, AirflowException)
_ADVICE = {
    Code.UNIMPLEMENTED: (
        "This server does not support the method, and a retry cannot help. Check the endpoint; if it is right, "
        "ask the administrator of the service."
    ),
    Code.PERMISSION_DENIED: "The account of the connection has no access: Google must have allow-listed it for DAI.",
    Code.UNAUTHENTICATED: "The service, or the token service, refused the credentials of the connection.",
    Code.NOT_FOUND: (
        "The service does not know it. Check the name and the endpoint. Finished operations expire, and creatives can "
        "be deleted."
    ),
}


class InvalidParameterError(AirflowFailException, ValueError):
    """A parameter of an operator, a sensor or a trigger is invalid; raised where the DAG is parsed."""


class OperationNotFoundError(AirflowFailException):
    """The service does not know the operation, or the creative."""


class UnexpectedStateError(AirflowFailException):
    """An operation has finished in a state that the task does not accept.

    :param states: the unexpected states.
    """

    def __init__(self, message: str, states: Iterable[OperationState] = ()) -> None:
        super().__init__(message)
        self.states = frozenset(states)


def check_expected_states(states: object) -> frozenset[OperationState] | None:
    """Read the parameter ``expected_states``.

    :param states: None for every final state, one of them, or several.
    :return: the states, or None for every final state.
    :raises AirflowFailException: when it names something that is not a final state.
    """
    if states is None:
        return None
    given = [states] if isinstance(states, str) else states
    if (
        isinstance(given, Collection)
        and given
        and all(isinstance(state, str) and state in FINAL_STATES for state in given)
    ):
        return frozenset(OperationState(state) for state in given)
    raise AirflowFailException(
        f"Invalid expected_states {short_repr(states)}: expected None for every final state, or some of "
        f"{', '.join(sorted(FINAL_STATES))}.{template_hint(states)}"
    )


def check_final_state(operation: Operation, expected: frozenset[OperationState] | None) -> Operation:
    """Return a finished operation whose state the task accepts.

    :param operation: one that has finished.
    :param expected: the states to accept, or None for every final state.
    :raises UnexpectedStateError: for any other state; the message has the reason that the service gives.
    """
    if expected is None or operation.state in expected:
        return operation
    if operation.state is OperationState.FAILED:
        raise UnexpectedStateError(f"{operation}.", [operation.state])
    allowed = ", ".join(sorted(expected))
    raise UnexpectedStateError(f"{operation}, but this task accepts only {allowed}.", [operation.state])


def check_many(
    operations: Iterable[Operation],
    expected: frozenset[OperationState] | None,
    errors: Mapping[str, ServiceError],
    *,
    total: int,
    failed: str,
    consequence: str = "",
    ended: WaitTimeoutError | ServiceError | None = None,
) -> None:
    """Check how many operations have finished, and what could not be done for others; say all of it in one error.

    :param operations: those that have finished.
    :param expected: the final states to accept, or None for every final state.
    :param errors: by name, the errors of the other operations.
    :param total: the number of all operations.
    :param failed: what could not be done, such as "operations could not be cancelled".
    :param consequence: a sentence on the operations with an error, or that have not finished, for the message.
    :param ended: the error with which the wait has ended before the other operations had finished.
    :raises UnexpectedStateError: when some have finished in another state, and there are no errors.
    :raises WaitTimeoutError: when the wait has ended with it.
    :raises AirflowFailException: when there are errors, after which no retry can help.
    :raises AirflowException: when there are errors, after some of which a retry can help.
    """
    unexpected = [one for one in operations if expected is not None and one.state not in expected]
    parts: list[str] = [str(ended)] if ended else []
    if unexpected:
        states = _counted(Counter(map(_state_and_reason, unexpected)))
        allowed = ", ".join(sorted(expected or ()))
        text = f"{len(unexpected):,} of {total:,} operations have finished unexpectedly"
        parts.append(f"{text} ({states}; this task accepts only {allowed}): {some_of(unexpected)}")
    if errors:
        counts = Counter[str](error.rpc_code for error in errors.values())
        named = some_of((f"{name}: {str(error).rstrip('.')}" for name, error in errors.items()))
        parts.append(f"{len(errors):,} of {total:,} {failed} ({_counted(counts)}): {named}")
    if isinstance(ended, WaitTimeoutError):
        raise WaitTimeoutError(sentences(*parts, consequence))
    if codes := [error.rpc_code for error in (*errors.values(), ended) if error]:
        raise task_error(decisive_code(codes), sentences(*parts), consequence)
    if unexpected:
        raise UnexpectedStateError(sentences(*parts), (one.state for one in unexpected))


def decisive_code(codes: Collection[Code]) -> Code:
    """Return the rpc code that decides whether a retry can help, of the errors of many operations.

    UNIMPLEMENTED holds for all operations; otherwise a retry helps when one of the errors is transient.
    """
    if Code.UNIMPLEMENTED in codes:
        return Code.UNIMPLEMENTED
    by_permanence = sorted(codes, key=lambda code: (code in PERMANENT, code is Code.NOT_FOUND))
    return by_permanence[0]


def _state_and_reason(operation: Operation) -> str:
    """Return the state of an operation, and the reason of a failed ingest."""
    failed = operation.state is OperationState.FAILED
    return f"{operation.state} {operation.ingest.reason if failed and operation.ingest else ''}".rstrip()


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


@contextmanager
def refused_parameters() -> Iterator[None]:
    """Fail a constructor for an invalid parameter; a mapped task, constructed when it runs, is not retried then.

    :raises InvalidParameterError: with what was given and what was expected.
    """
    try:
        yield
    except (ValueError, OverflowError, AirflowFailException) as error:
        raise InvalidParameterError(str(error)) from error


@contextmanager
def accept_missing(log: Any, meaning: str, *, missing_ok: bool) -> Iterator[None]:
    """Accept that the service does not know the operation, if ``missing_ok`` of the task is set.

    :param log: receives the error and its meaning when it is accepted.
    :param meaning: a sentence on what that means for the task.
    :raises OperationNotFoundError: when it is not accepted.
    """
    try:
        yield
    except OperationNotFoundError as error:
        if not missing_ok:
            raise OperationNotFoundError(f"{error} missing_ok=True accepts that.") from error.__cause__
        log.info("%s %s", error, meaning)


@contextmanager
def task_errors(consequence: str = "") -> Iterator[None]:
    """Turn the errors of the hook into those of a task.

    :param consequence: a sentence for the message that says what this leaves behind.
    :raises AirflowFailException: for a permanent error.
    :raises AirflowException: for an error after which a retry may succeed.
    """
    try:
        yield
    except ServiceError as error:
        # The message names the request and the response. Airflow's log page opens at its end, and leaves out a cause
        # without frames; so the frames of this package are dropped, and the message is the last thing on the page.
        raise task_error(error.rpc_code, str(error), consequence) from error.with_traceback(None)
    except AirflowException:
        raise
    except ValueError as error:
        raise AirflowFailException(str(error)) from error
    except WaitTimeoutError as error:
        raise AirflowException(sentences(error, consequence)) from error


def task_error(rpc_code: Code, message: str, consequence: str = "") -> AirflowException:
    """Return the exception that fails a task after an error with this code.

    :param message: what has happened.
    :param consequence: a sentence that says what may still run.
    """
    advice = _ADVICE.get(rpc_code, "")
    if rpc_code is Code.NOT_FOUND:
        return OperationNotFoundError(sentences(message, advice))
    kind = AirflowFailException if rpc_code in PERMANENT else AirflowException
    return kind(sentences(message, advice, consequence))


def rpc_code_of(error: Exception) -> Code | None:
    """Return the rpc code of an error of a hook; None for any other error."""
    if isinstance(error, ServiceError):
        return error.rpc_code
    return Code.INVALID_ARGUMENT if isinstance(error, ValueError) else None


def describe_error(error: Exception) -> str:
    """Return the text of any error, for a log or a message; without the secrets of URLs, which a library can show."""
    return redact_urls(str(error) if isinstance(error, _IN_WORDS) else repr(error))


def log_failure(log: Any, what: str, error: Exception) -> None:
    """Log what has failed, and why.

    Never with Airflow's traceback, which prints the causes: an error of a library can hold the password of a proxy. An
    error that may be a mistake of this package comes with its frames only.

    :param what: the beginning of a sentence, which the error ends.
    """
    frames = "" if isinstance(error, _IN_WORDS) else "\n" + "".join(format_tb(error.__traceback__))
    log.error("%s: %s%s", what, describe_error(error), frames)


def sentences(*parts: object) -> str:
    """Return a message of several sentences, each with its full stop; empty parts are left out."""
    return " ".join(text if text.endswith((".", "?")) else f"{text}." for text in map(str, parts) if text)
