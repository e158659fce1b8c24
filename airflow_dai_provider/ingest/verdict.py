"""Decide what the end of an ingest means for the task that has started it."""

from __future__ import annotations

from collections.abc import Collection

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.operation import FAILURE_REASONS, Operation, OperationState
from airflow_dai_provider.api.parameters import template_hint
from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.tasks.failures import check_final_state, sentences


class IngestFailedError(AirflowException):
    """An ingest has failed for a reason after which a retry of the task starts it again."""


def check_retry_on(reasons: object) -> frozenset[str]:
    """Return the parameter ``retry_on`` as a set.

    :param reasons: None for no reason, one of them, or several.
    :raises ValueError: when it names something that is no failure reason.
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
        raise IngestFailedError(sentences(operation, "By retry_on, a retry of the task starts the ingest again"))
    check_final_state(operation, frozenset({OperationState.SUCCEEDED}))
