"""Start an ingest, and recover its name if the response is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.creative import media_urls
from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.retry import may_have_acted
from airflow_dai_provider.ingest.reattach import IngestStore
from airflow_dai_provider.ingest.recovery import IngestMayHaveStartedError, LostStart, recover_ingest
from airflow_dai_provider.tasks.failures import log_failure

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook


def start_ingest(
    hook: DaiHook,
    creative: Mapping[str, Any],
    dynamic_creative_info: Mapping[str, Any] | None,
    *,
    stopped: Callable[[], str | None],
    store: IngestStore,
    adopt: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    log: Any,
) -> Operation:
    """Send the request that starts the ingest; when its response is lost, recover the ingest.

    :param stopped: returns the reason not to send the request, or None.
    :param store: has the ingest of an earlier try, which is not taken for this one.
    :param adopt: takes the name of an ingest whose start was interrupted, so that the guard of the task cancels it.
    :param clock: returns the current time in seconds since the epoch.
    :raises ServiceError: when the service has certainly started nothing.
    :raises IngestMayHaveStartedError: when an ingest may run under an unknown name.
    """
    sent = datetime.fromtimestamp(clock(), UTC)

    def recover(failure: str) -> Operation:
        lost = LostStart(media_urls(creative), sent, failure)
        return recover_ingest(hook, lost, sleep, log, _known(store, hook.endpoint.url, log))

    try:
        # A killed task starts nothing more, but it still searches for what it may have started, and cancels it.
        hook.stopped, before = stopped, hook.stopped
        try:
            return hook.create_creative(creative, dynamic_creative_info)
        finally:
            hook.stopped = before
    except ServiceError as error:
        if not may_have_acted(error):
            raise
        return recover(str(error))
    except Exception:
        # An error before anything was sent, such as that of an invalid endpoint.
        raise
    except BaseException as interruption:
        # A time limit, or a kill before Airflow 3. The ingest may have started by then. It is recovered and adopted so
        # that the guard cancels it, and then the interruption is raised again.
        try:
            adopt(recover(f"Starting the ingest was interrupted: {interruption}.").name)
        except IngestMayHaveStartedError as unknown:
            # It takes the place of the interruption, whose text it contains: after an interruption Airflow would retry
            # the task, and the next try would start a second ingest.
            unknown.is_unseen = False
            raise unknown from interruption
        except Exception as error:
            log_failure(log, "Could not push the operation name to XCom", error)
        raise


def _known(store: IngestStore, endpoint: str, log: Any) -> set[str]:
    """Return the operations of an earlier try at this endpoint, which are saved until this one has started its own."""
    try:
        earlier = store.load()
    except AirflowException as error:
        log.warning("%s", error)
        return set()
    return {one.operation_name for one in earlier if one.endpoint == endpoint}
