"""Recover an ingest whose creation response was lost.

``creatives.create`` has no request id. When its response is lost, the ingest may run under a name that is not known
here, and sending the request again could start a second one. The list of operations is the only place where the service
tells the name, so it is searched for an ingest of the same media that is not older than the request.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.redaction import redact_urls
from airflow_dai_provider.api.rest import LIST_PAGE_SIZE
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.tasks.failures import describe_error

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds to pause before each search; the service may still be processing the request.
PAUSES = (0.0, 2.0, 5.0, 10.0)
#: How far the service's clock may be behind the worker's; it can also tell whole seconds only.
CLOCK_SKEW = timedelta(seconds=1)
#: An ingest that was created shortly before the request is that of another start, unless a clock is wrong: it is named.
DOUBT = timedelta(seconds=10)


class IngestMayHaveStartedError(AirflowFailException):
    """An ingest may have started, but its name could not be recovered."""


def recover_ingest(
    hook: DaiHook,
    urls: Collection[str],
    sent: datetime,
    failure: str,
    sleep: Callable[[float], None],
    log: Any,
    known: Collection[str] = (),
) -> Operation:
    """Return the ingest that a request without a response has started.

    It is the only one of these media URLs that was created since then. A second ingest is never started instead.

    :param urls: the media URLs that were submitted.
    :param sent: when the request was sent, an aware time.
    :param failure: a sentence that says how the request failed.
    :param log: receives what was found.
    :param known: names of operations that earlier requests have started.
    :raises IngestMayHaveStartedError: when there is none, or more than one, or the operations cannot be listed; the
        message names the URLs.
    """
    media = ", ".join(sorted(map(redact_urls, urls)))
    log.warning("%s An ingest of %s may have started. Searching the operations for it.", failure, media)
    # A front end's page in answer to the list says nothing: the same endpoint has taken the request to create.
    hook.responded = True
    reason = ""
    for pause in PAUSES:
        try:
            sleep(pause)
            near = {
                operation.name: operation
                for operation in hook.list_operations(page_size=LIST_PAGE_SIZE)
                if operation.name not in known and _created_since(operation, urls, sent - DOUBT)
            }
        except Exception as error:
            reason = f"the operations cannot be listed: {describe_error(error)}"
            if not isinstance(error, ServiceError) or error.rpc_code in PERMANENT:
                break
            log.warning("%s", describe_error(error))
            continue
        except BaseException as interruption:
            # A time limit, or a kill before Airflow 3. Raised as it is, it would let Airflow retry the task, and the
            # next try would start a second ingest.
            raise _unknown(failure, media, f"the search was interrupted: {interruption}.") from interruption
        found = [operation for operation in near.values() if _created_since(operation, urls, sent - CLOCK_SKEW)]
        if len(found) > 1:
            reason = f"several operations match: {', '.join(sorted(operation.name for operation in found))}."
            break
        for operation in found:
            log.info("Found %s by its media URL and create time. Adopting it.", operation)
            return operation
        reason = f"no operation matched within {sum(PAUSES):g} s."
        if near:
            reason += f" {', '.join(sorted(near))} was created too early, and is probably that of another start."
    raise _unknown(failure, media, reason)


def _unknown(failure: str, media: str, reason: str) -> IngestMayHaveStartedError:
    return IngestMayHaveStartedError(
        f"{failure} An ingest of {media} may run under an unknown name: {reason} No second ingest was started, and the "
        "task is not retried, since a retry could start one. Check which operations run before you clear the task, or "
        "let the sweep cancel the ingest."
    )


def _created_since(operation: Operation, urls: Collection[str], since: datetime) -> bool:
    ingest = operation.ingest
    return bool(ingest and ingest.signed_creative_url in urls and ingest.create_time and ingest.create_time >= since)
