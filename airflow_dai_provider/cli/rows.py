"""Operations and their owners as rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.cli.output import Row
from airflow_dai_provider.ingest.ownership import Owner
from airflow_dai_provider.sweep.verdicts import GONE, Verdict

OWNER = ("dag_id", "run_id", "task_id", "map_index", "task_state")
OPERATION = ("name", "state", "age", "media_url")
LISTED = (*OPERATION, *OWNER)
SHOWN = (*OPERATION, "create_time", "youtube_state", "creative_name", "error", *OWNER, "reason")
WHOSE = ("name", *OWNER, "try_number", "is_stray", "reason")
RESULT = ("name", "result", "reason")
STRAY = ("name", "age", "media_url", *OWNER, "reason", "result")


def age_of(operation: Operation, now: datetime) -> timedelta | None:
    """Return how old an operation is, at least 0, since clocks differ; None where its metadata does not tell."""
    created = operation.ingest.create_time if operation.ingest else None
    # The epoch is a time that was not set.
    return max(now - created, timedelta()) if created and created.timestamp() > 0 else None


def owner_cells(verdicts: Sequence[Verdict] = ()) -> Row:
    """Return the owner; of several possible ones, only their number."""
    if len(verdicts) != 1:
        count = f"{len(verdicts)} possible owners" if verdicts else None
        return dict.fromkeys(OWNER) | {"task_state": count}
    (verdict,) = verdicts
    return owner_row(verdict.record.owner) | {"task_state": verdict.state or "no state"}


def owner_row(owner: Owner) -> Row:
    """Return a task instance."""
    index = str(owner.map_index) if owner.map_index >= 0 else None
    return {"dag_id": owner.dag_id, "run_id": owner.run_id, "task_id": owner.task_id, "map_index": index}


def listed_row(operation: Operation, now: datetime, verdicts: Sequence[Verdict] = ()) -> Row:
    """Return an operation as a list shows it."""
    age = age_of(operation, now)
    return {
        "name": operation.name,
        "state": operation.state.value,
        "age": str(timedelta(seconds=int(age.total_seconds()))) if age is not None else None,
        "media_url": operation.ingest.creative_url if operation.ingest else None,
        **owner_cells(verdicts),
    }


def shown_row(operation: Operation, now: datetime, verdicts: Sequence[Verdict]) -> Row:
    """Return all that is known of an operation."""
    ingest, listed = operation.ingest, listed_row(operation, now, verdicts)
    error = (
        f"{operation.error_code}: {operation.error_message or 'no message'}"
        if operation.error_code is not None
        else None
    )
    if error and ingest and ingest.reason:
        error = f"{ingest.reason} ({error})"
    return {column: listed[column] for column in OPERATION} | {
        "create_time": ingest.create_time.isoformat() if ingest and ingest.create_time else None,
        "youtube_state": ingest.youtube_state if ingest else None,
        "creative_name": operation.creative_name,
        "error": error,
        **owner_cells(verdicts),
        "reason": "; ".join(verdict.reason for verdict in verdicts) or None,
    }


def whose_row(name: str, verdict: Verdict, unpolled: ServiceError | None = None) -> Row:
    """Return one possible owner of an operation.

    :param unpolled: why it is not known whether the operation has finished; a finished one is not a stray.
    """
    is_stray, reason = "yes" if verdict.is_stray else "no", verdict.reason
    if unpolled and verdict.is_stray:
        is_stray = "unknown"
        reason = f"{state_in_words(verdict.state)}; it is not known whether the operation has finished: {unpolled}"
    return {
        "name": name,
        **owner_cells([verdict]),
        "try_number": str(verdict.try_number),
        "is_stray": is_stray,
        "reason": reason,
    }


def state_in_words(state: str | None) -> str:
    """Return the state of a task instance, as the end of a sentence about it."""
    if state == "success":
        return "has succeeded"
    return "is gone with its run" if state == GONE else f"is {state or 'waiting to be scheduled'}"


def failed_row(name: str, error: ServiceError, left: str) -> Row:
    """Return a request that has failed.

    :param left: what is left behind, unless the service has refused the request, or does not know the name.
    """
    if error.rpc_code is Code.NOT_FOUND:
        return result_row(name, "unknown", error)
    return result_row(name, "refused" if error.rpc_code in PERMANENT else left, error)


def result_row(name: str, result: str, reason: object = None) -> Row:
    """Return the outcome of a request, or of a wait, as a row."""
    return {"name": name, "result": result, "reason": None if reason is None else str(reason)}
