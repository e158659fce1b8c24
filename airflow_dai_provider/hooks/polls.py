"""How the synchronous hook polls: one operation by get, many also by pages of operations.list."""

from __future__ import annotations

import logging
from contextlib import closing
from functools import cached_property, partial
from typing import Self

from airflow_dai_provider import metrics
from airflow_dai_provider.api import rest
from airflow_dai_provider.api.batched_polls import GET_EVERY, MIN_POLLS, BatchedPolls, is_checked_by_get
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.parameters import Duration
from airflow_dai_provider.api.polling import MAX_OUTAGE, Wait
from airflow_dai_provider.api.retry import not_begun
from airflow_dai_provider.hooks.calls import DaiCallingHook
from airflow_dai_provider.transport.google_errors import typed
from airflow_dai_provider.transport.threads import Workers, error_of_one


class DaiPollingHook(DaiCallingHook):
    """Poll operations.

    The parameters are those of :class:`airflow_dai_provider.hooks.dai.DaiHook`.
    """

    @cached_property
    def _decisions(self) -> BatchedPolls:
        return BatchedPolls()

    def make_wait(
        self,
        name: str,
        *,
        timeout: Duration | None = None,
        poll_interval: Duration = 30.0,
        max_outage: Duration | None = MAX_OUTAGE,
        elapsed: float = 0.0,
        responded: bool = False,
    ) -> Wait:
        """Return a wait that :meth:`poll` takes.

        :param timeout: seconds to wait at most, or None for no limit.
        :param poll_interval: the most seconds between two polls.
        :param max_outage: seconds that the service may be unavailable, or None for no limit.
        :param elapsed: seconds that it has lasted already.
        :param responded: whether the API has already responded during this wait; responses to this hook count anyway.
        """
        wait = Wait(
            name,
            started=self._clock() - elapsed,
            poll_interval=poll_interval,
            timeout=timeout,
            max_outage=max_outage,
            responded=responded or self.responded,
            jitter=self._random,
        )
        # Each of the processes that share a wait starts over, so each checks other operations by get.
        wait.number = int(self._random() * GET_EVERY) if elapsed else 0
        return wait

    def poll(self, wait: Wait) -> Operation:
        """Poll until the service returns the operation; tolerate failed polls as long as the wait does.

        A poll is not retried like other calls: the next one is the retry.

        :return: the operation, in any state.
        :raises WaitTimeoutError: when polls fail until the time of the wait is up.
        :raises google.api_core.exceptions.GoogleAPICallError: when it cannot be polled.
        """
        request = rest.get_operation(wait.name)

        def attempt() -> Operation:
            metrics.count_polls()
            return self._send(request)

        operation = self._attempt_until_over(request, attempt, wait)
        if line := wait.after_response(self._clock()):
            self.log.info("%s.", line)
        return operation

    def wait_for_many(self, workers: Workers[Self], many: ManyWait) -> None:
        """Poll in rounds until each of many operations has finished, or cannot be polled.

        :param many: the wait, which holds what was found.
        :raises WaitTimeoutError: when they have not finished in time; nothing is cancelled.
        :raises google.api_core.exceptions.GoogleAPICallError: when the service has been unavailable for too long.
        """
        while many.left:
            names = many.due(self._clock())
            seconds, line, responded = self._poll_round(workers, many, names, by_list=True)
            if line:
                self.log.log(logging.INFO if responded else logging.WARNING, "%s", line)
            if many.left:
                self._sleep(seconds)
        self.log.info("%s.", many.progress)

    def poll_many(self, workers: Workers[Self], many: ManyWait, *, patient: bool = True, by_list: bool = False) -> None:
        """Poll each of many operations until the service has returned it, as :meth:`poll` does for one.

        :param patient: whether to poll again those whose poll has failed.
        :param by_list: whether pages of operations.list may serve the polls. They can be wrong until a later poll, so a
            poll whose result is used at once is a get.
        :raises WaitTimeoutError: when the time is up.
        :raises google.api_core.exceptions.GoogleAPICallError: when the service has been unavailable for too long.
        """
        names, told = list(many.left), ""
        while names:
            seconds, line, responded = self._poll_round(workers, many, names, by_list=by_list)
            # Operations that the service has returned wait for the next poll, however long the others take.
            names = list(many.errors if responded else many.left) if patient else []
            if names:
                if line and many.progress != told:
                    self.log.warning("%s", line)
                    told = many.progress
                self._sleep(seconds)

    def _poll_round(
        self, workers: Workers[Self], many: ManyWait, names: list[str], *, by_list: bool
    ) -> tuple[float, str | None, bool]:
        """Poll each of these operations once; return what :meth:`ManyWait.after_round` decides."""
        complete = len(names) == len(many.left)
        try:
            running = self._poll_by_list(many, names) if by_list else {}
        except ServiceError as error:
            # Of the list and of get alike.
            for name in names:
                self._note_error(many, name, error)
        else:
            metrics.count_polls(len(running))
            for operation in running.values():
                many.after_poll(operation, self._clock())
            self._get_each(workers, many, [name for name in names if name not in running], complete)
        if not many.left:
            return 0.0, None, True
        try:
            return many.after_round(self._clock(), complete=complete)
        except ServiceError as verdict:
            raise typed(verdict) from None

    def _get_each(self, workers: Workers[Self], many: ManyWait, names: list[str], complete: bool) -> None:
        """Poll each of these operations by get."""
        # Not retried: the next round is the retry.
        with closing(workers.batches(names, type(self)._get_once)) as batches:
            for outcomes in batches:
                for name, operation, error in outcomes:
                    if error:
                        self._note_error(many, name, error)
                    elif operation and (level := many.after_poll(operation, self._clock())):
                        self.log.log(level, "%s.", operation)
                if many.is_round_over(self._clock(), complete=complete):
                    break

    def _get_once(self, name: str) -> Operation:
        request = rest.get_operation(name)
        metrics.count_polls()
        return self._call(request, retry=False)

    def _note_error(self, many: ManyWait, name: str, error: ServiceError) -> None:
        if not_begun(error):
            raise typed(error)
        if many.after_error(name, error, self._clock()):
            self.log.warning("%s", many.failed[name])

    def _poll_by_list(self, many: ManyWait, names: list[str]) -> dict[str, Operation]:
        """Return those operations of which operations.list shows that they run; the others are to be asked by get.

        :raises ServiceError: when the list was not returned, and no get would be either.
        """
        began = self._clock()
        asked = {
            name: many.running.get(name)
            for name in names
            if not (many.is_missing(name) or is_checked_by_get(name, many.number))
        }
        if len(asked) < MIN_POLLS or many.wait.is_over(began, outage=False) or self.service.pause.delay(began):
            return {}
        reading = self._decisions.begin(asked, began)
        if reading is None:
            return {}
        running: dict[str, Operation] = {}
        try:
            while reading.is_useful and (left := began + self.timeout - self._clock()) > 0:
                request = reading.request
                page = self._retried(request, partial(self._send, request, left), retry=False)
                reading.take(page)
                running |= page.running
        except Exception as failure:
            error = error_of_one(failure)
            if not_begun(error):
                raise
            if reading.pages and error.rpc_code is Code.DEADLINE_EXCEEDED:
                # The pages together have taken too long.
                is_outcome, line = False, self._decisions.end_late(reading, self._clock())
            else:
                is_outcome, line = self._decisions.fail(error, self._clock())
            self._tell(line)
            if is_outcome and not running and not many.wait.is_over(self._clock(), outage=False):
                raise
        else:
            late = reading.is_useful
            self._tell((self._decisions.end_late if late else self._decisions.end)(reading, self._clock()))
        # The last poll is a get: neither the list nor an error of it must be the last word.
        return {} if many.wait.is_over(self._clock(), outage=False) else running

    def _tell(self, line: str | None) -> None:
        if line:
            self.log.info("%s.", line.rstrip("."))
