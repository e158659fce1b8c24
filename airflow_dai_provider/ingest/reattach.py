"""Save a task's ingest for its next try, in the task state store of Airflow (3.3 and later).

Airflow's own ``ResumableJobMixin`` is not used. It reconnects to whatever job is stored: after "wrong file, fix the
DAG, clear" that is the wrong file's ingest, since the store outlives a clear. It takes a job that has succeeded for
the result of a cleared task, cancels nothing, and does not defer.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowTaskTimeout

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.names import InvalidNameError, check_operation_name
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.api.redaction import redact_urls
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.api.storable import pack, unpack
from airflow_dai_provider.ingest.outcome import may_start_again
from airflow_dai_provider.tasks.cancel_requests import request_cancellation
from airflow_dai_provider.tasks.failures import log_failure, task_error

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook

#: The key in the task state store; its value has the fields of :class:`StartedIngest`, or is a list of such.
KEY = "dai_ingest"
#: The most seconds between two polls of an ingest before this try reattaches to it.
POLL_INTERVAL = 5.0
#: Seconds within which a guard of an earlier try can cancel the ingest that this try has reattached to: it acts within
#: seconds, and the cancellation is seen one or two polls later. A cancellation that comes after that is meant for this
#: try.
LATE_GUARD = 180.0
#: Seconds for which a task that does not wait watches the ingest of an earlier try.
SETTLE_SECONDS = 20.0

#: The end of the message for an ingest of an earlier try about which the service does not tell.
TOLD = (
    "{name}, which an earlier try started, may still run, so no second ingest was started. Check it, and then clear "
    "the task: it starts a new ingest if the service still refuses"
)


@dataclass(frozen=True, slots=True)
class StartedIngest:
    """An ingest that a try of the task has started.

    :param operation_name: ``operations/...``.
    :param endpoint: the base URL of the service that runs it.
    :param digest: of what was submitted, see :func:`airflow_dai_provider.api.creative.creative_digest`.
    :param max_tries: of the task instance at that time, by which a clear is told from a retry.
    :param refused: whether a try has failed since the service refused to tell about this ingest, or to cancel it.
    """

    operation_name: str
    endpoint: str
    digest: str
    max_tries: int | None = None
    refused: bool = False


class IngestStore:
    """The task state store of one task instance. Where Airflow has none, nothing is saved.

    Use it in a worker only: in the dag processor and the triggerer, a request to the store never gets a response.

    :param context: the context of the running task.
    """

    def __init__(self, context: Context) -> None:
        self._store: Any = context.get("task_state_store")
        #: Of the task instance. Airflow raises it at the clear of a task that does not run, and at nothing else. One
        #: that runs is killed, which cancels its ingest.
        self.max_tries: int | None = getattr(context.get("ti"), "max_tries", None)

    @property
    def available(self) -> bool:
        """Whether Airflow has a task state store, so that the next try can load what this one saves."""
        return self._store is not None

    def load(self) -> list[StartedIngest]:
        """Return the ingests that the last try has saved.

        :raises AirflowException: when the store cannot be read; without it, a try could start a second ingest.
        """
        try:
            saved = self._store.get(KEY) if self.available else None
        except Exception as error:
            raise AirflowException(f"Cannot read the task state store: {redact_urls(str(error))}") from error
        if isinstance(saved, str):
            with suppress(ValueError):
                saved = unpack(saved)
        read = map(_read, saved if isinstance(saved, list) else [saved])
        return [ingest for ingest in read if ingest]

    def try_to_save(self, ingests: StartedIngest | list[StartedIngest], log: Any) -> None:
        """Save an ingest, or many, for the next try; when that fails, say so: the task can do without."""
        try:
            if self.available:
                if isinstance(ingests, StartedIngest):
                    self._store.set(KEY, asdict(ingests))
                else:
                    # Packed, since Airflow warns of a value above 64 KB.
                    self._store.set(KEY, pack([asdict(ingest) for ingest in ingests]))
        except Exception as error:
            what = ingests.operation_name if isinstance(ingests, StartedIngest) else f"{len(ingests):,} ingests"
            log_failure(log, f"Could not save {what} for the next try", error)

    def try_to_delete(self, what: str, log: Any) -> None:
        """Delete what is saved; when that fails, say so: the next try finds that it has finished."""
        try:
            if self.available:
                self._store.delete(KEY)
        except Exception as error:
            log_failure(log, f"Could not delete {what} from the task state store", error)


def _read(saved: object) -> StartedIngest | None:
    match saved:
        case {"operation_name": str(name), "endpoint": str(endpoint), "digest": str(digest), **more}:
            tries, refused = more.get("max_tries"), more.get("refused") is True
            with suppress(InvalidNameError):
                return StartedIngest(
                    check_operation_name(name), endpoint, digest, tries if isinstance(tries, int) else None, refused
                )
    return None


def next_try_reattaches(context: Context, failure: BaseException, names: list[str]) -> bool:
    """Return whether Airflow retries the task after this failure and the next try finds the ingests in the store."""
    retried = isinstance(failure, Exception | AirflowTaskTimeout) and not isinstance(failure, AirflowFailException)
    ti = context["ti"]
    if not retried or ti.try_number > ti.max_tries:
        return False
    try:
        saved = IngestStore(context).load()
    except AirflowException:
        return False
    return set(names) <= {one.operation_name for one in saved}


def saved_here(store: IngestStore, endpoint: str, log: Any) -> list[StartedIngest]:
    """Return the ingests that an earlier try has started at this endpoint.

    Others can be neither polled nor cancelled here, where another operation can have the same name.
    """
    saved = store.load()
    for earlier in saved:
        if earlier.endpoint != endpoint:
            message = "%s may still run at %s: an earlier try started it there. Starting a new ingest at %s."
            log.warning(message, earlier.operation_name, earlier.endpoint, endpoint)
    return [earlier for earlier in saved if earlier.endpoint == endpoint]


def reattach_or_cancel(
    earlier: StartedIngest,
    store: IngestStore,
    hook: DaiHook,
    *,
    digest: str,
    retry_on: Collection[str],
    settle: bool,
    log: Any,
) -> Operation | None:
    """Return the ingest of an earlier try if this try can use it: it runs, or has finished between two tries.

    Otherwise a new ingest may be started, since the earlier one certainly does not run, or a user has decided so. An
    ingest of another creative is cancelled if it runs. What has succeeded, or failed for good, is the result of a retry
    only: a clear starts over, which ``max_tries`` tells. One that was cancelled is started again by a retry too.

    The service can refuse to tell about the earlier ingest, or to cancel it. Then nothing is started, and the task
    fails for good and says so. If it is cleared after that, and the service still refuses, a new ingest is started.

    :param digest: of what this try would submit.
    :param retry_on: failure reasons after which a retry starts a new ingest.
    :param settle: whether the task will not wait: its ingest is watched for a while first, since a kill of an earlier
        try can have cancelled it just now.
    :param log: receives what was found.
    :raises ServiceError: when the ingest cannot be polled or cancelled for now.
    :raises AirflowFailException: when the service refuses that.
    """
    name = earlier.operation_name
    cleared = earlier.max_tries not in (None, store.max_tries)
    try:
        operation = _poll(hook, name, settle=settle and earlier.digest == digest)
        if operation is None:
            log.info("The service no longer knows %s, which an earlier try started. Starting a new ingest.", name)
            return None
        if not operation.done and earlier.digest != digest:
            log.warning("%s; an earlier try started it, with another creative. Cancelling it first.", operation)
            request_cancellation(hook, name, log)
            return None
    except ServiceError as error:
        if error.rpc_code not in PERMANENT or error.rpc_code is Code.UNAUTHENTICATED:
            raise
        if error.rpc_code is Code.NOT_FOUND:
            log.info("The service no longer knows %s. Starting a new ingest.", name)
            return None
        if cleared and earlier.refused:
            message = "%s may still run: %s The task was cleared after it had reported this. Starting a new ingest."
            log.warning(message, name, error)
            return None
        store.try_to_save(replace(earlier, max_tries=store.max_tries, refused=True), log)
        raise task_error(error.rpc_code, str(error), TOLD.format(name=name)) from error
    if not operation.done:
        log.info("%s; an earlier try started it. Reattaching to it.", operation)
        if cleared:
            store.try_to_save(replace(earlier, max_tries=store.max_tries, refused=False), log)
        return operation
    is_result = operation.state is not OperationState.CANCELLED and not may_start_again(operation, retry_on)
    if is_result and earlier.digest == digest and not cleared:
        log.info("%s; an earlier try started it. It is the result of this try.", operation)
        return operation
    log.info("%s; an earlier try started it. Starting a new ingest.", operation)
    return None


def _poll(hook: DaiHook, name: str, *, settle: bool) -> Operation | None:
    """Return an operation, or None when the service no longer knows it; tolerate an outage as a wait does.

    :param settle: whether to watch a running one until a cancellation that is under way would have been seen.
    """
    try:
        # The API has responded here before: to the try that has started it.
        operation = hook.poll(hook.make_wait(name, poll_interval=POLL_INTERVAL, responded=True))
        if operation.done or not settle:
            return operation
        try:
            return hook.wait_for_operation(name, timeout=SETTLE_SECONDS, poll_interval=POLL_INTERVAL)
        except WaitTimeoutError:
            return operation
    except ServiceError as error:
        if error.rpc_code is not Code.NOT_FOUND:
            raise
        return None
