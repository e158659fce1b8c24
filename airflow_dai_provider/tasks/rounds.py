"""One request for each of many names, side by side and in rounds, until each has an outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import MANY_PAGES
from airflow_dai_provider.api.polling import NOT_FOUND_GRACE
from airflow_dai_provider.api.retry import PERMANENT, THROTTLED, not_begun
from airflow_dai_provider.tasks.failures import sentences

if TYPE_CHECKING:
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.transport.threads import Workers

T = TypeVar("T")

#: Seconds between two rounds of attempts, and the most between two checks whether the task was killed.
PAUSE = 1.0


def request_in_rounds(
    workers: Workers[DaiHook],
    names: Collection[str],
    request: Callable[[DaiHook, str], T],
    *,
    timeout: float | None = None,
    retry_timeout: float = 0.0,
    rechecks: Sequence[float] = (NOT_FOUND_GRACE,),
    is_fatal: Callable[[ServiceError], bool] = lambda _: False,
    on_done: Callable[[str, T | None], None] | None = None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    log: Any,
) -> tuple[dict[str, T | None], dict[str, ServiceError]]:
    """Make a request for each name; every one is attempted before this returns, and each has an outcome.

    A permanent error settles a name. The page of a front end in place of the API's response does so only where the API
    responds to no other request either: else the front end was unavailable for a moment. NOT_FOUND is believed only
    when it lasts for ten seconds (with a limit, near its end if that is sooner): the name can have been made just now.
    So is ABORTED, by which a request says that the service contradicts itself. After a transient error a name is
    attempted again until the time is up. Without a limit, only a request that the service was too busy for is
    attempted again, as long as each round settles another name; other errors are left to the retries of each request.

    :param request: raises ServiceError; called in a thread of the workers. Once they are stopped, nothing is begun.
    :param timeout: seconds for all rounds, or None.
    :param retry_timeout: seconds after which one request is not retried again within a round.
    :param rechecks: seconds after which a name that the service did not know is attempted again; the last one decides.
    :param is_fatal: whether an error holds for every name, so that no other request is begun.
    :param on_done: called for each name whose request has succeeded, with its result.
    :param clock: returns monotonic time in seconds.
    :param sleep: waits for seconds.
    :param log: says the first error of each rpc code.
    :return: the results, and the last error of each of the others. That of a request which was not begun is CANCELLED.
    """
    every = list(dict.fromkeys(names))
    until = float("inf") if timeout is None else clock() + timeout
    done: dict[str, T | None] = {}
    errors: dict[str, ServiceError] = {}
    #: When the service did not know a name for the first time, and how often it has not known it since.
    missing_since: dict[str, float] = {}
    missing: Counter[str] = Counter()
    asked_after_page: set[str] = set()
    # With a limit, ABORTED is attempted again in any case.
    doubtful = {Code.NOT_FOUND} if timeout is not None else {Code.NOT_FOUND, Code.ABORTED}
    told: set[Code] = set()

    def end() -> tuple[dict[str, T | None], dict[str, ServiceError]]:
        rest = ServiceError("this was not attempted, since another error holds for it too", Code.CANCELLED, sent=False)
        return in_order(every, done), {name: errors.get(name, rest) for name in every if name not in done}

    due = every
    while due:
        settled = responded = False
        pages: dict[str, ServiceError] = {}
        for name, result, error in workers.call(due, request, retry_timeout=retry_timeout):
            if error is None:
                settled = responded = True
                errors.pop(name, None)
                done[name] = result
                if on_done:
                    on_done(name, result)
                continue
            if not_begun(error):
                errors.setdefault(name, error)
                continue
            errors[name] = error
            if error.rpc_code in PERMANENT and error.from_front_end:
                pages[name] = error
                if responded or len(pages) < MANY_PAGES:
                    continue
            responded = responded or (error.rpc_code in PERMANENT and error.sent and name not in pages)
            if is_fatal(error):
                return end()
            if error.rpc_code in doubtful and name not in pages:
                missing_since.setdefault(name, clock())
                missing[name] += 1
        for error in in_order(due, errors).values():
            if error.rpc_code not in told and not not_begun(error):
                told.add(error.rpc_code)
                log.warning("%s", error)
        if not responded and any(map(is_fatal, pages.values())):
            return end()
        now = clock()
        if workers.stopped() or now >= until:
            break
        retryable = frozenset(Code) - PERMANENT if timeout is not None else THROTTLED if settled else frozenset[Code]()
        again = {name for name, error in errors.items() if error.rpc_code in retryable}
        if responded:
            # Once: from now on the page of a front end is an outage, as far as the API responds with results.
            again |= pages.keys() - asked_after_page
            asked_after_page |= pages.keys()
        unknown = {name for name, error in errors.items() if error.rpc_code in doubtful and name not in pages}
        looked_at = {
            name: min(since + rechecks[missing[name] - 1], max(until - PAUSE, (since + until) / 2))
            for name, since in missing_since.items()
            if name in unknown and missing[name] <= len(rechecks)
        }
        if not again and not looked_at:
            break
        if not _sleep_until(now + PAUSE if again else max(looked_at.values()), workers, clock, sleep):
            break
        now = clock()
        due = [name for name in every if name in again or looked_at.get(name, now + 1) <= now]
    if stopped := workers.stopped() or ("the time was up" if clock() >= until else None):
        for name, error in errors.items():
            if error.rpc_code is Code.NOT_FOUND and missing[name] <= len(rechecks):
                errors[name] = _not_asked_again(error, stopped)
    return in_order(every, done), in_order(every, errors)


def in_order(names: Collection[str], results: Mapping[str, T]) -> dict[str, T]:
    """Return the results in the order of the names."""
    return {name: results[name] for name in names if name in results}


def _sleep_until(
    end: float, workers: Workers[DaiHook], clock: Callable[[], float], sleep: Callable[[float], None]
) -> bool:
    """Sleep in steps; return False when the workers are stopped meanwhile."""
    # Counted, since a clock can be set back.
    left = end - clock()
    while left > 0:
        sleep(min(left, PAUSE))
        left -= PAUSE
        if workers.stopped():
            return False
    return True


def _not_asked_again(error: ServiceError, reason: str) -> ServiceError:
    """Return the error for a name that the service may not have known yet."""
    # Imported here, since DAG files are parsed often and few tasks meet an error.
    from airflow_dai_provider.transport.google_errors import typed

    return typed(ServiceError(sentences(error, f"The request was not retried: {reason}"), Code.CANCELLED))
