"""One wait until each of many operations has finished. Pure, like :mod:`airflow_dai_provider.api.polling`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.polling import FIRST_INTERVAL, Wait, WaitTimeoutError
from airflow_dai_provider.api.retry import PERMANENT, TRANSIENT, is_pause

#: The most operations that a message names.
MAX_NAMED = 10
#: The most operations for which the log has a line each; for more, it has a summary.
MAX_LISTED = 20
#: How many operations whose last poll succeeded come first in a round, to show at once that there is no outage.
_PROBES = 10
#: Seconds for the round that is under way when the time is up, counted from its first response.
LAST_ROUND = 60.0
#: The fewest polls after which a round without a response can be broken off.
UNDER_WAY = 50
#: After this many pages of a front end without a response of the API, the endpoint counts as wrong.
MANY_PAGES = 64


class ManyWait:
    """The wait for many operations, in rounds: each polls all that have not finished.

    Rounds come as the polls of :class:`Wait` do; between two of them, those whose polls have failed are polled again.
    The service counts as unavailable when it has responded for no operation in a round. An error of one operation alone
    is believed when a wait for that one would believe it, and ends the wait for that one only; but UNIMPLEMENTED holds
    for all. A poll that was not sent, because the service has asked for a pause, says nothing of its operation. The
    page of a front end is judged at the end of its round: by then it is known whether the API responds.

    A round is broken off when the time is up, or while no operation gets a response, and the service has been
    unavailable for too long. So a long list is not waited for any longer than a short one.

    The log has a line for each round, for each unexpected final state as soon as it is seen, and, if there are few
    operations, for each one that finishes.

    :param names: the operations; one that comes twice is polled once.
    :param wait: the wait for all of them; messages use its name for the operations.
    :param expected: the final states that the caller accepts; None for every one.
    :param on_finish: called for each operation that has finished.
    """

    def __init__(
        self,
        names: Iterable[str],
        wait: Wait,
        expected: Collection[OperationState] | None = None,
        on_finish: Callable[[Operation], None] = lambda _: None,
    ) -> None:
        self.wait = wait
        self._on_finish = on_finish
        self.expected = expected
        #: Those that have not finished, in their order.
        self.left = dict.fromkeys(names)
        self.total = len(self.left)
        #: By name, those that have finished, and the errors of those that cannot be polled.
        self.finished: dict[str, Operation] = {}
        self.failed: dict[str, ServiceError] = {}
        #: By name, the seconds of the wait after which a poll has found that an operation had finished.
        self.seen_after: dict[str, float] = {}
        #: By name, what the last poll found of those that have not finished.
        self.running: dict[str, Operation] = {}
        #: By name, the last error of those whose last poll failed, and the waits of those.
        self.errors: dict[str, ServiceError] = {}
        #: Seconds that the wait has lasted, as of the last round or failed poll.
        self.waited = 0.0
        #: Whether the service has responded in the last round.
        self.responded = False
        #: The number of the round that is under way, or comes next; those of polls that had failed do not count.
        self.number = wait.number
        self._waits: dict[str, Wait] = {}
        #: Those whose polls had failed when the service responded last.
        self._suspects: set[str] = set()
        #: How many errors of each rpc code are believed.
        self._told: Counter[Code] = Counter()
        self._last_round = self._next_round = float("-inf")
        #: Whether only rounds that change the progress are logged, since a triggerer logs for many waits.
        self.news_only = False
        self._last_line = ""
        self._begin_round()

    def _begin_round(self) -> None:
        self._responded = False
        self._error: ServiceError | None = None
        self._soonest = float("inf")
        #: By name, the errors that are believed if the service has responded for others.
        self._doubted: dict[str, ServiceError] = {}
        #: By name, the pages of a front end, while nothing shows that the API responds at all.
        self._pages: dict[str, ServiceError] = {}
        self._first_result: float | None = None
        self._polled: set[str] = set()

    def due(self, now: float) -> list[str]:
        """Return the operations to poll now.

        Operations whose polls have failed come first, beginning with those that have failed longest: otherwise the
        pauses of a busy service could always hit the same ones. A full round begins with a few others.
        """
        failing = list(self.errors)
        # Not if the clock was set back since the last round.
        if failing and self._last_round <= now < self._next_round - 0.001:
            return failing
        others = [name for name in self.left if name not in self.errors]
        return [*others[:_PROBES], *failing, *others[_PROBES:]]

    def is_missing(self, name: str) -> bool:
        """Return whether a get did not find this operation, so that only a get may find it again."""
        wait = self._waits.get(name)
        return wait is not None and wait.is_missing

    def is_round_over(self, now: float, *, complete: bool) -> bool:
        """Return whether to break off the round after a poll, since the time is up.

        :param complete: as for :meth:`after_round`.
        """
        if self._first_result is None:
            self._first_result = now
        if self._responded:
            return self.wait.is_over(now, outage=False) and now >= self._first_result + LAST_ROUND
        outage = self._shows_outage(complete)
        if outage:
            self.wait.begin_outage(now)
        # Not after a first error, which comes faster than the responses to the requests that are under way.
        return len(self._polled) >= UNDER_WAY and self.wait.is_over(now, outage=outage)

    def _shows_outage(self, complete: bool) -> bool:
        """Return whether a round without a response shows that the service is unavailable."""
        return complete and not self.left.keys() <= self._suspects

    def after_poll(self, operation: Operation, now: float) -> int | None:
        """Note the result of a poll; return the level at which to log it, or None if it is not logged."""
        self._note_response()
        self._polled.add(operation.name)
        self._waits.pop(operation.name, None)
        self.errors.pop(operation.name, None)
        self._suspects.discard(operation.name)
        self.running[operation.name] = operation
        if not operation.done:
            return None
        self.finish(operation)
        self.seen_after[operation.name] = now - self.wait.started
        if self.expected is not None and operation.state not in self.expected:
            return logging.WARNING
        return logging.INFO if self.total <= MAX_LISTED else None

    def finish(self, operation: Operation) -> None:
        """Note an operation that has finished, and is polled no more."""
        self.left.pop(operation.name, None)
        self.running.pop(operation.name, None)
        self.finished[operation.name] = operation
        self._on_finish(operation)

    def fail(self, name: str, error: ServiceError) -> None:
        """Note an operation that cannot be polled, and is polled no more."""
        self.left.pop(name, None)
        self._waits.pop(name, None)
        self.errors.pop(name, None)
        self.failed[name] = error

    def after_error(self, name: str, error: ServiceError, now: float) -> bool:
        """Note a failed poll; return whether to log it.

        :raises ServiceError: UNIMPLEMENTED, when it is believed.
        """
        self.errors[name] = error
        self._polled.add(name)
        self.waited = now - self.wait.started
        if is_pause(error):
            self._soonest = min(self._soonest, error.retry_after or FIRST_INTERVAL)
            self._error = self._error or error
            return False
        if error.from_front_end and not self.wait.responded and len(self._pages) < MANY_PAGES:
            self._pages[name] = error
            self._error = self._error or error
            return False
        self._error = error
        return self._judge(name, error, now)

    def _judge(self, name: str, error: ServiceError, now: float) -> bool:
        """Judge the error of one operation; return whether the log is to be told that it is believed.

        :raises ServiceError: UNIMPLEMENTED, when it is believed.
        """
        wait = self._waits.get(name) or Wait(
            name,
            started=self.wait.started,
            poll_interval=self.wait.poll_interval,
            max_outage=None if self.wait.max_outage == float("inf") else self.wait.max_outage,
            jitter=self.wait.jitter,
        )
        wait.responded = self.wait.responded
        self._waits[name] = wait
        try:
            seconds, _ = wait.after_error(error, now)
        except ServiceError as verdict:
            if verdict.rpc_code is Code.UNIMPLEMENTED:
                raise
            if verdict.rpc_code in TRANSIENT:
                self._doubted[name] = verdict
                return False
            if self._is_response(error):
                self._note_response()
            self.fail(name, verdict)
            self._told[verdict.rpc_code] += 1
            return self._told[verdict.rpc_code] <= MAX_LISTED
        if self._is_response(error):
            self._note_response()
        self._soonest = min(self._soonest, seconds)
        return False

    def _note_response(self) -> None:
        self._responded = self.wait.responded = True

    @staticmethod
    def _is_response(error: ServiceError) -> bool:
        return error.rpc_code in PERMANENT and error.sent and not error.from_front_end

    def after_round(self, now: float, *, complete: bool = True) -> tuple[float, str | None, bool]:
        """Decide after a round when the next one begins.

        :param complete: whether all operations were polled; a round of only the failing ones says nothing about
            the service.
        :return: the seconds until then, the line for the log, if there is one, and whether the service has responded.
        :raises ServiceError: when the service has been unavailable for too long.
        :raises WaitTimeoutError: when the time is up; the message names some that have not finished.
        """
        self.number += complete
        complete = self._shows_outage(complete)
        for name, page in self._pages.items():
            self._judge(name, page, now)
        refused = {name: self.failed[name] for name in self._pages if name in self.failed}
        responded, error, soonest = self._responded or not complete, self._error, self._soonest
        believed = refused | (self._doubted if responded else {})
        unpolled = len(self.left.keys() - self._polled) if complete else 0
        self._begin_round()
        for name, verdict in believed.items():
            self.fail(name, verdict)
        failed = f"Could not poll {some_of(believed.values())}" if believed else None
        self.responded = responded
        self.waited = now - self.wait.started
        if not self.left:
            return 0.0, failed, responded
        try:
            if error and not responded:
                return *self.wait.after_error(error, now), False
            recovered = self.wait.after_response(now)
            seconds, line = self.wait.after_poll(self.progress, now)
        except WaitTimeoutError as timeout:
            last = f"; the last poll failed: {error}" if error and not responded else ""
            number = f"{len(self.left):,} of {self.total:,} operations"
            message = f"{number} have not finished within {self.wait.timeout:g} s: {some_of(self.left)}{last}"
            if unpolled:
                message += f"; when the time was up, {unpolled:,} of them had not been polled again"
            raise WaitTimeoutError(message) from timeout
        if complete:
            self._suspects = set(self.errors)
            self._last_round, self._next_round = now, now + seconds
        if not complete or (self.news_only and self.progress == self._last_line):
            line = ""
        else:
            self._last_line = self.progress
        until_round = max(self._next_round - now, FIRST_INTERVAL)
        if min(soonest, until_round) < seconds - 0.001:
            seconds, self.wait.slot = min(soonest, until_round), None
        return seconds, ". ".join(filter(None, (recovered, failed, line))), True

    @property
    def progress(self) -> str:
        """How many have finished, and how."""
        states = Counter(operation.state.value.lower() for operation in self.finished.values())
        parts = [f"{count:,} {state}" for state, count in sorted(states.items())]
        if self.failed:
            parts.append(f"{len(self.failed):,} could not be polled")
        text = f"{self.total - len(self.left):,} of {self.total:,} finished"
        text += f": {', '.join(parts)}" if parts else ""
        return text + (f" ({len(self.errors):,} could not be polled yet)" if self.errors else "")


def some_of(texts: Iterable[object]) -> str:
    """Join texts for a message; of many, only the first."""
    every = [str(text) for text in texts]
    more = [f"and {len(every) - MAX_NAMED:,} more"] if len(every) > MAX_NAMED else []
    return "; ".join([*every[:MAX_NAMED], *more])
