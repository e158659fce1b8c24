"""Save a task's ingest for its next try, in the task state store of Airflow (3.3 and later).

Airflow's own ``ResumableJobMixin`` is not used. It reconnects to whatever job is stored: after "wrong file, fix the
DAG, clear" that is the wrong file's ingest, since the store outlives a clear. It takes a job that has succeeded for
the result of a cleared task, cancels nothing, and does not defer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.names import InvalidNameError, check_operation_name
from airflow_dai_provider.tasks.cancel_requests import request_cancellation

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook

#: The key in the task state store; its value is ``{"operation_name": str, "endpoint": str, "digest": str}``.
KEY = "dai_ingest"


@dataclass(frozen=True, slots=True)
class StartedIngest:
    """An ingest that a try of the task has started.

    :param operation_name: ``operations/...``.
    :param endpoint: the base URL of the service that runs it.
    :param digest: of what was submitted, see :func:`airflow_dai_provider.api.creative.creative_digest`.
    """

    operation_name: str
    endpoint: str
    digest: str


class IngestStore:
    """The task state store of one task instance. Where Airflow has none, nothing is saved.

    Use it in a worker only: in the dag processor and the triggerer, a request to the store never gets a response.

    :param context: the context of the running task.
    """

    def __init__(self, context: Context) -> None:
        self._store: Any = context.get("task_state_store")

    @property
    def available(self) -> bool:
        """Whether Airflow has a task state store, so that the next try can load what this one saves."""
        return self._store is not None

    def load(self) -> StartedIngest | None:
        """Return the ingest that the last try has saved, or None.

        :raises AirflowException: when the store cannot be read; without it, a try could start a second ingest.
        """
        try:
            saved = self._store.get(KEY) if self.available else None
        except Exception as error:
            raise AirflowException(f"Cannot read the task state store: {error}") from error
        match saved:
            case {"operation_name": str(name), "endpoint": str(endpoint), "digest": str(digest)}:
                try:
                    return StartedIngest(check_operation_name(name), endpoint, digest)
                except InvalidNameError:
                    return None
        return None

    def save(self, ingest: StartedIngest) -> None:
        """Save an ingest for the next try."""
        if self.available:
            self._store.set(KEY, asdict(ingest))

    def delete(self) -> None:
        """Delete the saved ingest."""
        if self.available:
            self._store.delete(KEY)


def reattach_or_cancel(earlier: StartedIngest, hook: DaiHook, digest: str, log: Any) -> bool:
    """Return whether this try can reattach to the ingest of an earlier one: it runs, and the creative is the same.

    An ingest of another creative is cancelled if it runs.

    :param digest: of what this try would submit.
    :param log: receives what was found.
    :raises google.api_core.exceptions.GoogleAPICallError: when the ingest cannot be polled or cancelled.
    """
    name = earlier.operation_name
    try:
        operation = hook.get_operation(name)
    except ServiceError as error:
        if error.rpc_code is not Code.NOT_FOUND:
            raise
        log.info("The service no longer knows %s, which an earlier try started. Starting a new ingest.", name)
        return False
    if operation.done:
        log.info("%s; an earlier try started it. Starting a new ingest.", operation)
        return False
    if earlier.digest != digest:
        log.warning("%s; an earlier try started it, with another creative. Cancelling it first.", operation)
        request_cancellation(hook, name, log)
        return False
    log.info("%s; an earlier try started it. Reattaching to it.", operation)
    return True
