"""Decide what the final state of an ingest means for the task that started it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
)

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import some_of
from airflow_dai_provider.api.operation import FAILURE_REASONS, Operation, OperationState
from airflow_dai_provider.api.parameters import template_hint
from airflow_dai_provider.api.redaction import redact_urls, short_repr
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.tasks.failures import (
    UnexpectedStateError,
    check_final_state,
    decisive_code,
    describe_error,
    sentences,
    task_error,
)

#: The end of the message before Airflow 3.3.
RESUBMITS = "Some ingests run or have succeeded. Airflow before 3.3 saves nothing, so a retry would start them again"


class IngestFailedError(AirflowException):
    """An ingest has failed for a reason after which a retry of the task starts it again."""


def check_retry_on(reasons: object) -> frozenset[str]:
    """Return the parameter ``retry_on`` as a set.

    :param reasons: None for no reason, one of them, or several.
    :raises ValueError: when it names something that is not a failure reason.
    """
    if reasons is None:
        return frozenset()
    given = [reasons] if isinstance(reasons, str) else reasons
    if isinstance(given, Collection) and all(isinstance(reason, str) and reason in FAILURE_REASONS for reason in given):
        return frozenset(given)
    raise ValueError(
        f"Invalid retry_on {short_repr(reasons)}: expected None, or some of {', '.join(FAILURE_REASONS)}."
        f"{template_hint(reasons)}"
    )


def may_start_again(operation: Operation, retry_on: Collection[str]) -> bool:
    """Return whether a retry of the task starts a failed ingest again."""
    if operation.state is not OperationState.FAILED:
        return False
    reason = operation.ingest.failure_reason if operation.ingest else None
    return (reason or FAILURE_REASONS[0]) in retry_on


def check_ingest(operation: Operation, retry_on: Collection[str]) -> None:
    """Check that a finished ingest has succeeded.

    :raises IngestFailedError: for a failure after which Airflow may retry the task.
    :raises UnexpectedStateError: for any other end; Airflow does not retry the task then.
    """
    if may_start_again(operation, retry_on):
        raise IngestFailedError(sentences(operation, "A retry of the task starts the ingest again (retry_on)"))
    check_final_state(operation, frozenset({OperationState.SUCCEEDED}))


def check_ingests(
    operations: Collection[Operation],
    not_started: Collection[tuple[str, ServiceError]],
    not_polled: Collection[tuple[str, ServiceError]],
    *,
    started: int | None = None,
    retry_on: Collection[str],
    resubmits: bool,
) -> None:
    """Check that each creative of a list has been ingested; say in one error what was not.

    :param operations: those that have finished.
    :param not_started: the media files and the errors of the creatives that were not started. After UNKNOWN, an ingest
        may run under an unknown name, so the task is not retried.
    :param not_polled: the names and the errors of operations whose final state is unknown.
    :param started: the number of those that were started, by a task that does not wait for them: they run on.
    :param resubmits: whether a retry would start again what runs or has succeeded.
    :raises UnexpectedStateError: when some have not succeeded, and a retry cannot help.
    :raises AirflowFailException: when some could not be started or polled, and a retry cannot help.
    :raises IngestFailedError: when Airflow may retry the task.
    """
    failed = [one for one in operations if one.state is not OperationState.SUCCEEDED]
    if not (failed or not_started or not_polled):
        return
    kept = len(operations) - len(failed)
    parts = [f"{kept:,} of {len(operations) + len(not_started) + len(not_polled):,} ingests have succeeded"]
    if started is not None:
        kept = started - len(failed)
        parts = [f"{started:,} of {started + len(not_started):,} ingests have started"]
    if failed:
        parts.append(f"Did not succeed: {_counted(map(_state_and_reason, failed))}: {some_of(failed)}")
    for what, errors in (("Not started", not_started), ("Not polled", not_polled)):
        if errors:
            named = some_of((f"{name}: {str(error).rstrip('.')}" for name, error in errors))
            parts.append(f"{what}: {_counted(error.rpc_code for _, error in errors)}: {named}")
    message = sentences(*parts)
    codes = [error.rpc_code for _, error in (*not_started, *not_polled)]
    in_doubt = any(error.rpc_code is Code.UNKNOWN for _, error in not_started)
    retry_helps = any(code not in PERMANENT for code in codes) or any(may_start_again(one, retry_on) for one in failed)
    if retry_helps and not in_doubt and Code.UNIMPLEMENTED not in codes:
        if not (resubmits and kept):
            raise IngestFailedError(message)
        raise AirflowFailException(sentences(message, RESUBMITS))
    if in_doubt:
        raise AirflowFailException(message)
    if codes:
        raise task_error(decisive_code(codes), message)
    raise UnexpectedStateError(message, (one.state for one in failed))


@contextmanager
def fail_for_good_where(resubmits: Callable[[], bool]) -> Iterator[None]:
    """Let no failure lead to a retry that would start again what has succeeded.

    :param resubmits: whether a retry would do that; called after a failure.
    """
    try:
        yield
    except (AirflowFailException, AirflowSkipException):
        raise
    except (Exception, AirflowTaskTimeout) as error:
        # Also an error of Airflow, such as that of an XCom backend.
        if not resubmits():
            raise
        what = describe_error(error) if isinstance(error, Exception) else redact_urls(str(error))
        raise AirflowFailException(sentences(what, RESUBMITS)) from error


def _state_and_reason(operation: Operation) -> str:
    reason = operation.ingest.reason if operation.ingest else ""
    return reason if reason and operation.state is OperationState.FAILED else operation.state.value


def _counted(ends: Iterable[str]) -> str:
    return ", ".join(f"{count:,} {end}" for end, count in Counter(ends).most_common())
