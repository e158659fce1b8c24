"""
What a try leaves for the next one: the ingest that it has started, in the task state store of Airflow (3.3 and later).

Airflow's own ``ResumableJobMixin`` is not used. It reconnects to whatever job is stored: after "wrong file, fix the
DAG, clear" that is the wrong file's ingest, since the store outlives a clear. It takes a job that has succeeded for
the result of a cleared task, cancels nothing, and does not defer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.names import InvalidNameError, check_operation_name
from airflow_dai_provider.tasks.cancellation import request_cancellation

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook

#: The key in the task state store; its value is ``{"operation_name": str, "endpoint": str, "digest": str}``.
KEY = "dai_ingest"


@dataclass(frozen=True, slots=True)
class StartedIngest:
    """
    An ingest that a try of the task has started.

    :param operation_name: ``operations/...``.
    :param endpoint: the base URL of the service that runs it.
    :param digest: of what was submitted, see :func:`airflow_dai_provider.api.creative.creative_digest`.
    """

    operation_name: str
    endpoint: str
    digest: str


class TaskMemory:
    """
    The task state store of one task instance, where Airflow has one; else a memory that keeps nothing.

    Only for a worker: in the dag processor and the triggerer the store hangs whoever asks it.

    :param context: the context of the running task.
    """

    def __init__(self, context: Context) -> None:
        self._store: Any = context.get("task_state_store")

    @property
    def lasts(self) -> bool:
        """Whether the next try can read what this one writes."""
        return self._store is not None

    def recall(self) -> StartedIngest | None:
        """
        Return what the last try has left, or None.

        :raises AirflowException: when the store cannot be read; not to know could start a second ingest.
        """
        try:
            found = self._store.get(KEY) if self.lasts else None
        except Exception as error:
            raise AirflowException(f"Whether an earlier try's ingest runs cannot be read: {error}") from error
        match found:
            case {"operation_name": str(name), "endpoint": str(endpoint), "digest": str(digest)}:
                try:
                    return StartedIngest(check_operation_name(name), endpoint, digest)
                except InvalidNameError:
                    return None
        return None

    def remember(self, ingest: StartedIngest) -> None:
        """Leave an ingest for the next try."""
        if self.lasts:
            self._store.set(KEY, asdict(ingest))

    def forget(self) -> None:
        """Leave nothing."""
        if self.lasts:
            self._store.delete(KEY)


def can_go_on_with(earlier: StartedIngest, hook: DaiHook, digest: str, log: Any) -> bool:
    """
    Whether this try can go on with the ingest of an earlier one: that of the same creative, which still runs.

    One of another creative that still runs is cancelled.

    :param digest: of what this try would submit.
    :param log: says what was found.
    :raises google.api_core.exceptions.GoogleAPICallError: when the service does not say, or does not cancel.
    """
    from google.api_core.exceptions import NotFound

    name = earlier.operation_name
    try:
        operation = hook.get_operation(name)
    except NotFound:
        log.info("The service does not know %s any more, which an earlier try has started.", name)
        return False
    if operation.done:
        log.info("%s; an earlier try has started it. Starting anew.", operation)
        return False
    if earlier.digest != digest:
        log.warning("%s; an earlier try has started it, with another creative. Cancelling it first.", operation)
        request_cancellation(hook, name, log)
        return False
    log.info("%s; an earlier try has started it. Going on with it.", operation)
    return True
