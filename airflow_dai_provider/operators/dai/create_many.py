"""The ingests of a list of creatives that one task starts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.many_wait import MAX_LISTED, ManyWait
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.polling import Wait, WaitTimeoutError
from airflow_dai_provider.ingest.campaign import Campaign, is_in_doubt, pushed_rows
from airflow_dai_provider.ingest.outcome import check_ingests
from airflow_dai_provider.ingest.own_record import START_AGAIN, STARTS
from airflow_dai_provider.ingest.reattach import IngestStore, StartedIngest, saved_here
from airflow_dai_provider.ingest.reattach_many import reattach_or_cancel_many
from airflow_dai_provider.metrics import count_finished
from airflow_dai_provider.tasks.cancel_requests import KILLED
from airflow_dai_provider.tasks.deferral import check_deferrable, defer_wait
from airflow_dai_provider.tasks.events import check_ended, describe_names, read_many_result
from airflow_dai_provider.tasks.failures import log_failure, task_errors
from airflow_dai_provider.tasks.xcom import XCOM_OPERATION, clear_number_of, push_operations

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.operators.dai.create import DaiCreateCreativeOperator
    from airflow_dai_provider.transport.threads import Workers

#: By name: the finished operations, the errors of those that cannot be polled, and when each finish was seen.
_WaitResult = tuple[dict[str, Operation], dict[str, "ServiceError"], dict[str, float]]
_SUCCEEDED = frozenset({OperationState.SUCCEEDED})


class CreateMany:
    """Start an ingest for each of many creatives, side by side, wait if told to, and report all of it.

    :param task: the operator.
    :param creatives: checked ones, in the order of the input.
    :param resumed: whether the task has waited in the triggerer.
    """

    def __init__(
        self,
        task: DaiCreateCreativeOperator,
        context: Context,
        creatives: Sequence[Mapping[str, Any]],
        *,
        resumed: bool = False,
    ) -> None:
        self._task = task
        self._context = context
        self._guard = task._guard
        self._campaign = Campaign(creatives, task.dynamic_creative_info)
        self._store = IngestStore(context)
        self._resumed = resumed
        self._pushed_at: dict[str, float] = {}
        #: By name, the ingests that have finished; by digest, those of an earlier try.
        self._finished: dict[str, Operation] = {}
        self._adopted: set[str] = set()
        self._own_record = task._own_record(context)

    def execute(self) -> list[str]:
        """Start the ingests, or reattach to those of an earlier try; wait if told to; return the names."""
        task, campaign = self._task, self._campaign
        if not campaign.digests:
            task.log.info("The list of creatives is empty.")
        with task._make_hook() as hook, self._workers(hook) as workers:
            self._reattach(hook, workers)
            if not campaign.digests:
                self._push([], hook)
            if missing := campaign.not_started:
                self._start(hook, workers, missing)
            elif self._adopted:
                self._own_record.open(hook.endpoint.url, (), campaign.started)
            if task.wait_for_completion:
                return self._finish(*self._wait(hook, workers))
            failed = any(operation.state is not OperationState.SUCCEEDED for operation in self._finished.values())
            refused = bool(campaign.errors or failed)
            if refused and campaign.started:
                # For a sweep that knows the owner by the XComs only.
                self._push(campaign.started, hook, refused=True)
        if not task.cancel_with_run:
            self._own_record.run_on(refused=refused)
        if refused:
            self._push_rows(self._finished)
            # A start that was refused does not cancel the others, which are meant to run on.
            self._guard.disarm()
            self._check({}, started=len(campaign.started))
        return self._names()

    def complete(self, event: Any, adopted: Sequence[int]) -> list[str]:
        """Finish the task when the wait in the triggerer is over; return the names."""
        campaign = self._campaign
        self._load()
        self._adopted = {campaign.digests[index] for index in adopted}
        left = [name for name in campaign.started if name not in self._finished]
        result = read_many_result(event, left)
        self._finished = self._guard.finished = self._finished | result.finished
        if result.ended:
            self._push_known(self._finished, result.errors, result.running)
            check_ended(result, left)
        return self._finish(self._finished, result.errors, result.seen_after)

    def _load(self) -> None:
        """Read what the process before the deferral has started, and what had finished by then."""
        if (finished := self._campaign.load(pushed_rows(self._context))) is None:
            raise AirflowException(
                f"The XCom '{XCOM_OPERATION}' is not that of the {len(self._campaign.digests):,} creatives of this "
                "task: was it replaced, or have the templates rendered to others since the task was deferred?"
            )
        self._finished = finished | self._finished

    @contextmanager
    def _workers(self, hook: DaiHook) -> Iterator[Workers[DaiHook]]:
        """Yield the worker threads; they and those of the guard are started before the first request."""
        number = max(len(self._campaign), len(self._store.load()))
        # Around single calls, and not around the block: an error of Airflow in it, such as a ValueError of the XCom
        # backend, is none of the hook's.
        with task_errors():
            stopped, hook.stopped = hook.stopped, self._stopped
            try:
                workers = hook.workers(number)
            finally:
                hook.stopped = stopped
        with workers:
            with task_errors():
                self._guard.prepare(hook, number, workers)
            yield workers

    def _stopped(self) -> str | None:
        """Return the reason to start nothing more; polls go on when the task is killed."""
        if not self._starting:
            return None
        return KILLED if self._guard.killed else self._campaign.stopped()

    def _reattach(self, hook: DaiHook, workers: Workers[DaiHook]) -> None:
        """Reattach to the ingests of an earlier try that this try can continue."""
        task, campaign, guard = self._task, self._campaign, self._guard
        with task_errors():
            endpoint = hook.endpoint.url
        saved = saved_here(self._store, endpoint, task.log)
        with task_errors():
            saved = self._own_record.leave_strays(saved, hook)
        if not saved:
            guard.disarm()
            return
        # Guarded before they are polled: if the poll fails, no other try or guard knows of them.
        media = {digest: ", ".join(campaign.media(digest)) for digest in campaign.creatives}
        for one in saved:
            guard.arm(hook, one.operation_name, media.get(one.digest, ""))
        self._push([one.operation_name for one in saved], hook)
        digests = campaign.creatives.keys()
        usable, self._finished = reattach_to_many(task, saved, self._store, hook, workers, digests=digests)
        guard.disarm()
        guard.finished = self._finished
        for digest, name in usable.items():
            campaign.names[digest] = name
            if name not in self._finished:
                guard.arm(hook, name, media[digest])
        self._adopted = set(usable)
        self._progress(hook)

    def _start(self, hook: DaiHook, workers: Workers[DaiHook], digests: Sequence[str]) -> None:
        """Start the ingests of these creatives, and save the names for guards and the next try."""
        task, campaign = self._task, self._campaign
        known = {one.operation_name for one in self._store.load() if one.endpoint == hook.endpoint.url}
        self._own_record.open(hook.endpoint.url, campaign.urls(digests), campaign.names.values())
        doubts: set[str] = set()
        wanted, self._starting = digests, True
        task.log.info("Starting the ingests of %s of %s creatives.", f"{len(digests):,}", f"{len(campaign):,}")
        try:
            for left in reversed(range(STARTS)):
                campaign.start(
                    digests,
                    hook,
                    workers,
                    self._guard,
                    progress=lambda: self._progress(hook),
                    known=known,
                    clock=task._clock,
                    sleep=task._sleep,
                    log=task.log,
                )
                doubts |= {one for one in digests if (error := campaign.errors.get(one)) and is_in_doubt(error)}
                digests = campaign.not_listed
                if not (left and digests and self._own_record.may_start_again((hook.endpoint.url, hook.account))):
                    break
                task.log.warning("The service lists no ingest of %s creatives. %s", f"{len(digests):,}", START_AGAIN)
        finally:
            self._starting = False
        self._own_record.end(campaign.started, campaign.urls(doubts))
        for digest in wanted if len(wanted) <= MAX_LISTED else ():
            if name := campaign.names.get(digest):
                task.log.info("Started the ingest of %s: %s.", ", ".join(campaign.media(digest)), name)
        refused = f"; {len(campaign.errors):,} were not started" if campaign.errors else ""
        task.log.info("%s of %s ingests have started%s.", f"{len(campaign.started):,}", f"{len(campaign):,}", refused)

    _starting = False

    def _progress(self, hook: DaiHook) -> None:
        """Push the names, and save them for the next try."""
        campaign = self._campaign
        names, started = dict(campaign.names), campaign.started
        if started == list(self._pushed_at):
            return
        try:
            self._push(started, hook)
        finally:
            # Also when the XCom could not be pushed: the next try then reattaches.
            endpoint, max_tries = hook.endpoint.url, self._store.max_tries
            saved = [StartedIngest(name, endpoint, digest, max_tries) for digest, name in names.items()]
            self._store.try_to_save(saved, self._task.log)
        self._own_record.note(started)

    def _push(self, names: Sequence[str], hook: DaiHook, *, refused: bool = False) -> None:
        now = self._task._clock()
        self._pushed_at = {name: self._pushed_at.get(name, now) for name in names}
        number = clear_number_of(self._context)
        flags = self._task._flags
        ti, endpoint = self._context["ti"], hook.endpoint.url
        push_operations(ti, self._pushed_at, endpoint, number, flags, many=True, refused=refused)

    def _wait(self, hook: DaiHook, workers: Workers[DaiHook]) -> _WaitResult:
        """Wait until the ingests have finished, in this process or in the triggerer."""
        task, names = self._task, self._campaign.started
        wait = hook.make_wait(describe_names(names), timeout=task.timeout, poll_interval=task.poll_interval)
        many = self._make_many(wait)
        # A resumed task reads from here what has started, and what has not; the trigger waits for the rest only.
        self._push_rows(many.finished)
        left = list(many.left)
        if left and task.deferrable and self._can_defer(left):
            # Imported here, since DAG files are parsed often and few of their tasks defer.
            from airflow_dai_provider.triggers.dai import DaiOperationTrigger

            adopted = [index for index, digest in enumerate(self._campaign.digests) if digest in self._adopted]
            defer_wait(
                task,
                hook,
                DaiOperationTrigger,
                left,
                poll_interval=task.poll_interval,
                expected_states=_SUCCEEDED,
                resume_with={"adopted_indexes": adopted},
                cancel_on_kill=task.cancel_on_kill,
            )
        try:
            with task_errors():
                hook.wait_for_many(workers, many)
        except AirflowException:
            self._push_known(many.finished, many.failed, many.running)
            raise
        return many.finished, many.failed, many.seen_after

    def _make_many(self, wait: Wait) -> ManyWait:
        """Return the wait for what has started; what has finished is polled no more."""
        many = ManyWait(self._campaign.started, wait, _SUCCEEDED)
        for name, operation in self._finished.items():
            if name in many.left:
                many.finish(operation)
        self._finished = self._guard.finished = many.finished
        return many

    def _can_defer(self, names: list[str]) -> bool:
        try:
            check_deferrable(names)
        except ValueError as error:
            self._task.log.warning("Waiting in the worker: %s", error)
            return False
        return True

    def _finish(
        self, finished: dict[str, Operation], errors: dict[str, ServiceError], seen_after: Mapping[str, float]
    ) -> list[str]:
        """Report how the ingests have finished, and check that they have succeeded.

        :param finished: by name, those that have finished.
        :param errors: by name, the errors of those that cannot be polled.
        :param seen_after: by name, the seconds of the wait after which an end was seen.
        """
        task, campaign = self._task, self._campaign
        self._finished = self._guard.finished = finished
        if again := campaign.cancelled_by_an_earlier_try(self._adopted, finished, seen_after):
            message = "An earlier try started and cancelled %s of the ingests. Starting new ones."
            task.log.warning(message, f"{len(again):,}")
            for digest in again:
                del campaign.names[digest]
            self._adopted = set()
            with task._make_hook() as hook, self._workers(hook) as workers:
                # Only these: of the others, some may run under unknown names, and the rest were refused.
                self._start(hook, workers, again)
                return self._finish(*self._wait(hook, workers))
        if not errors:
            self._guard.disarm()
            self._own_record.close()
        for operation in finished.values():
            count_finished(operation.state)
        self._push_rows(finished, errors)
        self._check(errors)
        self._store.try_to_delete("the ingests", task.log)
        return self._names()

    def _check(self, errors: Mapping[str, ServiceError], started: int | None = None) -> None:
        campaign = self._campaign
        not_started = [(", ".join(campaign.media(digest)), error) for digest, error in campaign.errors.items()]
        check_ingests(
            [self._finished[name] for name in campaign.started if name in self._finished],
            not_started,
            list(errors.items()),
            started=started,
            retry_on=self._task.retry_on,
            resubmits=not self._store.available,
        )

    def _push_rows(
        self,
        finished: Mapping[str, Operation],
        errors: Mapping[str, ServiceError] | None = None,
        running: Mapping[str, Operation] | None = None,
    ) -> None:
        self._context["ti"].xcom_push(XCOM_OPERATION, self._campaign.rows({**(running or {}), **finished}, errors))

    def _push_known(
        self,
        finished: Mapping[str, Operation],
        errors: Mapping[str, ServiceError],
        running: Mapping[str, Operation],
    ) -> None:
        """Push what is known when a wait has failed; only log an error of the push, so that the wait's is raised."""
        try:
            self._push_rows(finished, errors, running)
        except Exception as error:
            log_failure(self._task.log, f"Could not push the XCom '{XCOM_OPERATION}'", error)

    def _names(self) -> list[str]:
        return [self._campaign.names[digest] for digest in self._campaign.digests]

    @property
    def retry_resubmits(self) -> bool:
        """Whether a retry would start again what has succeeded: before Airflow 3.3 nothing is saved for it."""
        if self._store.available or self._guard.killed:
            return False
        if self._resumed and not self._any_succeeded:
            # The wait in the triggerer has failed, and says nothing of single ingests.
            with suppress(AirflowException), self._task._make_hook() as hook:
                self._load()
                names = describe_names(self._campaign.started)
                many = self._make_many(hook.make_wait(names, timeout=1.0, responded=True))
                if many.left:
                    with suppress(WaitTimeoutError, ServiceError), self._workers(hook) as workers:
                        hook.poll_many(workers, many)
        return self._any_succeeded

    @property
    def _any_succeeded(self) -> bool:
        return any(operation.state is OperationState.SUCCEEDED for operation in self._finished.values())


def reattach_to_many(
    task: DaiCreateCreativeOperator,
    saved: Collection[StartedIngest],
    store: IngestStore,
    hook: DaiHook,
    workers: Workers[DaiHook],
    *,
    digests: Collection[str],
) -> tuple[dict[str, str], dict[str, Operation]]:
    """Decide for each ingest of an earlier try, as :func:`reattach_or_cancel_many` does, by the task's parameters."""
    with task_errors():
        return reattach_or_cancel_many(
            saved,
            store,
            hook,
            workers,
            task._guard,
            digests=digests,
            retry_on=task.retry_on,
            settle=not task.wait_for_completion,
            clock=task._clock,
            sleep=task._sleep,
            log=task.log,
        )
