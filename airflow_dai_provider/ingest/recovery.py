"""Finding the ingest that a request has started whose answer was lost: the one thing that nobody knows the name of."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_dai_provider.api.errors import PERMANENT, ServiceError, may_have_acted
from airflow_dai_provider.api.redaction import redact_urls
from airflow_dai_provider.tasks.failures import describe_error, error_code

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds before each time that the operations are listed; the service may still be at work on the request.
PAUSES = (0.0, 2.0, 5.0, 10.0)
#: How far the service's clock may be behind ours.
CLOCK_SKEW = timedelta(seconds=5)
PAGE_SIZE = 100


class IngestInDoubtError(AirflowFailException):
    """A request to start an ingest has ended so that nobody can say whether one runs, and which."""


def in_doubt(error: Exception) -> bool:
    """
    Whether the service may have started an ingest although creating it has failed with this error.

    :param error: what ``DaiHook.create_creative`` has raised.
    """
    return isinstance(error.__cause__, ServiceError) and may_have_acted(error.__cause__)


def find_started(
    hook: DaiHook, urls: Collection[str], sent: datetime, what: str, sleep: Callable[[float], None], log: Any
) -> Operation:
    """
    Find the ingest that a request has started.

    It is the only one of these media URLs that was created since then. A second ingest is never started instead.

    :param urls: the media URLs that were submitted.
    :param sent: when the request was sent, an aware time.
    :param what: a sentence that says how that request ended.
    :param log: says what was found.
    :raises IngestInDoubtError: when there is none, or more than one, or the operations cannot be listed; the message
        names the URLs.
    """
    subject = ", ".join(sorted(map(redact_urls, urls)))
    log.warning("%s An ingest of %s may have started; looking for it.", what, subject)
    reason = ""
    for pause in PAUSES:
        try:
            sleep(pause)
            found = {
                operation.name: operation
                for operation in hook.list_operations(page_size=PAGE_SIZE)
                if _matches(operation, urls, sent - CLOCK_SKEW)
            }
        except Exception as error:
            reason = f"the operations cannot be listed: {describe_error(error)}"
            if error_code(error) in {None, *PERMANENT}:
                break
            log.warning("%s", describe_error(error))
            continue
        except BaseException as interruption:
            # A time limit, or a kill before Airflow 3: after it, Airflow would try again, and start a second one.
            raise _doubt(what, subject, f"looking for it was interrupted: {interruption}.") from interruption
        if len(found) > 1:
            reason = f"these were created since then: {', '.join(sorted(found))}."
            break
        for operation in found.values():
            log.info("Found %s by its media URL and create time; taking it for the task's own.", operation)
            return operation
        reason = f"no such operation has appeared within {sum(PAUSES):g} s."
    raise _doubt(what, subject, reason)


def _doubt(what: str, subject: str, reason: str) -> IngestInDoubtError:
    return IngestInDoubtError(
        f"{what} An ingest of {subject} may run under an unknown name: {reason} No other was started, and a retry "
        "would not know better. See what runs before you clear the task, or leave it to the sweep."
    )


def _matches(operation: Operation, urls: Collection[str], since: datetime) -> bool:
    ingest = operation.ingest
    return bool(ingest and ingest.creative_url in urls and ingest.create_time and ingest.create_time >= since)
