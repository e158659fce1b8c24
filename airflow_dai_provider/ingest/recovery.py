"""Recover an ingest whose creation response was lost.

``creatives.create`` has no request id. When its response is lost, the ingest may run under a name that is not known
here, and sending the request again could start a second one. The list of operations is the only place where the service
tells the name, so it is searched for an ingest of the same media that is not older than the request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import MAX_NAMED, some_of
from airflow_dai_provider.api.redaction import redact_urls
from airflow_dai_provider.api.rest import LIST_PAGE_SIZE
from airflow_dai_provider.tasks.failures import describe_error

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds to pause before each search; the service may still be processing the request.
PAUSES = (0.0, 2.0, 5.0, 10.0)
#: How far the service's clock may be behind the worker's; it can also tell whole seconds only.
SERVICE_BEHIND = timedelta(seconds=1)
#: An ingest created up to this long before the request is from another start, unless a clock is wrong. Errors name it.
DOUBT = timedelta(seconds=10)


class IngestMayHaveStartedError(AirflowFailException):
    """An ingest may have started, but its name could not be recovered."""

    #: Whether the service lists no ingest that could be it: most probably the request was lost, and not its response.
    is_unseen = False


@dataclass(frozen=True)
class LostStart:
    """A request to start an ingest that got no response.

    :param urls: the media URLs that were submitted.
    :param sent: when the request was sent, an aware time.
    :param failure: a sentence that says how the request failed.
    """

    urls: frozenset[str]
    sent: datetime
    failure: str

    @property
    def media(self) -> str:
        """The media URLs, without their signatures."""
        return ", ".join(sorted(map(redact_urls, self.urls)))

    def matches(self, operation: Operation, earlier: timedelta) -> bool:
        """Return whether an operation is an ingest of this media that was created since the request, or just before."""
        ingest = operation.ingest
        return bool(
            ingest
            and ingest.signed_creative_url in self.urls
            and ingest.create_time
            and ingest.create_time >= self.sent - earlier
        )


def recover_ingest(
    hook: DaiHook, lost: LostStart, sleep: Callable[[float], None], log: Any, known: Collection[str] = ()
) -> Operation:
    """Return the ingest that a request without a response has started.

    :raises IngestMayHaveStartedError: as :func:`recover_ingests`.
    """
    found, errors = recover_ingests(hook, {"": lost}, sleep, log, known)
    if errors:
        raise errors[""]
    return found[""]


def recover_ingests(
    hook: DaiHook,
    lost: Mapping[str, LostStart],
    sleep: Callable[[float], None],
    log: Any,
    known: Collection[str] = (),
) -> tuple[dict[str, Operation], dict[str, IngestMayHaveStartedError]]:
    """Return the ingests that requests without a response have started. A second ingest is never started instead.

    Such an ingest is the only one of the media URLs of its request that was created since then. Where two requests
    could both have started it, it is assigned to neither.

    :param lost: the requests, by any key. No other request for the same media may be under way.
    :param log: receives what was found.
    :param known: names of operations that other requests have started.
    :return: by the key of a request, the ingest; or the error when there is none, or more than one, or the operations
        cannot be listed. Its message names the URLs.
    :raises IngestMayHaveStartedError: when the search is interrupted.
    """
    for one in list(lost.values())[:MAX_NAMED]:
        log.warning("%s An ingest of %s may have started. Searching the operations for it.", one.failure, one.media)
    if len(lost) > MAX_NAMED:
        log.warning("Searching the operations for %s other ingests too.", f"{len(lost) - MAX_NAMED:,}")
    # A front end's page in response to the list counts as an outage: the create request went to the same endpoint.
    hook.responded = True
    found: dict[str, Operation] = {}
    reasons = dict.fromkeys(lost, "")
    unseen: set[str] = set()
    for pause in PAUSES:
        try:
            sleep(pause)
            taken = {*known, *(one.name for one in found.values())}
            near, is_clear = _matching(hook, {key: lost[key] for key in reasons}, taken)
        except Exception as error:
            reasons = dict.fromkeys(reasons, f"the operations cannot be listed: {describe_error(error)}")
            unseen = set()
            if not isinstance(error, ServiceError) or error.rpc_code is Code.UNIMPLEMENTED:
                break
            log.warning("%s", describe_error(error))
            continue
        except BaseException as interruption:
            # A time limit, or a kill before Airflow 3. Raised as it is, it would let Airflow retry the task, and the
            # next try would start a second ingest.
            why = f"the search was interrupted: {interruption}."
            raise may_have_started([lost[key] for key in reasons], why) from interruption
        since = {key: [one for one in near[key] if lost[key].matches(one, SERVICE_BEHIND)] for key in reasons}
        claims = Counter(operation.name for operations in since.values() for operation in operations)
        unseen = {key for key, operations in near.items() if is_clear and not operations}
        for key, operations in since.items():
            if len(operations) == 1 and claims[operations[0].name] == 1:
                log.info("Found %s by its media URL and create time. Adopting it.", operations[0])
                found[key] = operations[0]
                del reasons[key]
            else:
                reasons[key] = _reason(operations, near[key])
        # Every request that is left matches several operations: another search cannot tell them apart.
        if all(len(since[key]) > 1 for key in reasons):
            break
    errors = {key: may_have_started([lost[key]], reason) for key, reason in reasons.items()}
    for key, doubt in errors.items():
        doubt.is_unseen = key in unseen
    return found, errors


def _matching(
    hook: DaiHook, lost: Mapping[str, LostStart], known: Collection[str]
) -> tuple[dict[str, list[Operation]], bool]:
    """Return by key the listed operations that a request could have started, and whether these are all.

    Also those that were created too early: shortly before it, or at any time if they still run. They are not all if an
    item of the list cannot be read, or runs without a media URL.
    """
    unclear: list[str] = []
    near: dict[str, dict[str, Operation]] = {key: {} for key in lost}
    keys: dict[str | None, list[str]] = {}
    for key, one in lost.items():
        for url in one.urls:
            keys.setdefault(url, []).append(key)
    for operation in hook.list_operations(page_size=LIST_PAGE_SIZE, on_unreadable=unclear.append):
        media_url = operation.ingest.signed_creative_url if operation.ingest else None
        if not media_url and not operation.done and operation.name not in known:
            unclear.append(operation.name)
        for key in keys.get(media_url, ()):
            if operation.name not in known and (not operation.done or lost[key].matches(operation, DOUBT)):
                near[key][operation.name] = operation
    return {key: list(operations.values()) for key, operations in near.items()}, not unclear


def _reason(since: list[Operation], near: list[Operation]) -> str:
    if len(since) > 1:
        return f"several operations match: {', '.join(sorted(operation.name for operation in since))}."
    if since:
        return f"{since[0].name} may belong to another request of this task instead."
    reason = f"no operation matched within {sum(PAUSES):g} s."
    if near:
        names = ", ".join(sorted(operation.name for operation in near))
        reason += f" {names} was created too early, and probably belongs to another start."
    return reason


def may_have_started(lost: Collection[LostStart], reason: str) -> IngestMayHaveStartedError:
    """Return the error for requests that may have started ingests under unknown names.

    :param reason: a sentence that says why the names are unknown.
    """
    first = next(iter(lost))
    media = some_of(sorted({one.media for one in lost}))
    return IngestMayHaveStartedError(
        f"{first.failure} An ingest of {media} may run under an unknown name: {reason} The task is not retried, since "
        "a retry could start another one. Check which operations run before you clear the task, or let the sweep "
        "cancel the ingest."
    )
