"""The ingest of a creative that one task starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.creative import creative_digest, media_urls
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.redaction import redact_urls
from airflow_dai_provider.ingest.outcome import check_ingest
from airflow_dai_provider.ingest.own_record import START_AGAIN, STARTS
from airflow_dai_provider.ingest.reattach import LATE_GUARD, IngestStore, StartedIngest, reattach_or_cancel, saved_here
from airflow_dai_provider.ingest.recovery import IngestMayHaveStartedError
from airflow_dai_provider.ingest.start import start_ingest
from airflow_dai_provider.metrics import count_finished
from airflow_dai_provider.operators.dai.create_many import reattach_to_many
from airflow_dai_provider.tasks.cancel_requests import KILLED
from airflow_dai_provider.tasks.deferral import defer_wait
from airflow_dai_provider.tasks.events import read_event
from airflow_dai_provider.tasks.failures import task_errors
from airflow_dai_provider.tasks.xcom import XCOM_OPERATION, clear_number_of, push_operations

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.operators.dai.create import DaiCreateCreativeOperator


class CreateOne:
    """Start the ingest of the operator's creative, wait if told to, and report how it has finished.

    :param task: the operator.
    """

    def __init__(self, task: DaiCreateCreativeOperator, context: Context) -> None:
        self._task = task
        self._context = context
        self._store = IngestStore(context)
        self._own_record = task._own_record(context)
        #: The number of starts of this try that were lost and not recovered.
        self._starts = 0

    def execute(self) -> str:
        """Start the ingest, or reattach to that of an earlier try; wait if told to; return the operation's name."""
        task = self._task
        with task._make_hook() as hook:
            found, operation = self._reattach(hook)
            if operation and operation.done:
                return self._finish(operation)
            if found:
                self._own_record.open(hook.endpoint.url, (), [found])
            name, adopted = (found, task._clock()) if found else (self._start(hook), None)
            if task.wait_for_completion:
                return self._finish(self._wait(hook, name, adopted), adopted)
            if not task.cancel_with_run:
                self._own_record.run_on()
            return name

    def complete(self, event: Any, operation_name: str | None, adopted: float | None) -> str:
        """Finish the task when the wait in the triggerer is over; return the operation's name."""
        return self._finish(read_event(event, operation_name), adopted)

    def _reattach(self, hook: DaiHook) -> tuple[str | None, Operation | None]:
        """Return the name and the operation of an earlier try if this try can continue it; None for each otherwise."""
        with task_errors():
            endpoint = hook.endpoint.url
        operation = None
        saved = saved_here(self._store, endpoint, self._task.log)
        with task_errors():
            saved = self._own_record.leave_strays(saved, hook)
        if len(saved) > 1:
            return self._reattach_to_one_of(saved, hook)
        for earlier in saved:
            # Guarded before it is polled: if the poll fails, no other try or guard knows of it.
            self._adopt(hook, earlier.operation_name)
            with task_errors():
                operation = reattach_or_cancel(
                    earlier,
                    self._store,
                    hook,
                    digest=self._digest(),
                    retry_on=self._task.retry_on,
                    settle=not self._task.wait_for_completion,
                    log=self._task.log,
                )
        if operation is None:
            self._task._guard.disarm()
        return (operation.name if operation else None), operation

    def _reattach_to_one_of(self, saved: list[StartedIngest], hook: DaiHook) -> tuple[str | None, Operation | None]:
        """Do the same after a try with a list of creatives; cancel the ingests of its other creatives."""
        task, guard, digest = self._task, self._task._guard, self._digest()
        with task_errors():
            workers = hook.workers(len(saved))
        with workers:
            with task_errors():
                guard.prepare(hook, len(saved), workers)
                for earlier in saved:
                    guard.arm(hook, earlier.operation_name, self._media() if earlier.digest == digest else "")
            self._push([earlier.operation_name for earlier in saved], hook)
            usable, results = reattach_to_many(task, saved, self._store, hook, workers, digests=[digest])
        guard.disarm()
        if name := usable.get(digest):
            self._adopt(hook, name)
            return name, results.get(name)
        return None, None

    def _start(self, hook: DaiHook) -> str:
        """Start the ingest, and save its name for guards and the next try."""
        urls = media_urls(self._task.creative)
        self._own_record.open(hook.endpoint.url, urls)
        self._task.log.info("Starting the ingest of %s.", self._media())
        operation, lost = self._request_start(hook, urls)
        self._adopt_new(hook, operation.name)
        self._own_record.end([operation.name], lost)
        self._task.log.info("Started the ingest of %s: %s.", self._media(), operation)
        return operation.name

    def _request_start(self, hook: DaiHook, urls: frozenset[str]) -> tuple[Operation, frozenset[str]]:
        """Return the started ingest, and the media URLs if requests for it were lost."""
        place, lost = (hook.endpoint.url, hook.account), frozenset[str]()
        while True:
            try:
                with task_errors():
                    operation = start_ingest(
                        hook,
                        self._task.creative,
                        self._task.dynamic_creative_info,
                        stopped=lambda: KILLED if self._task._guard.killed else None,
                        store=self._store,
                        adopt=lambda name: self._adopt_new(hook, name),
                        clock=self._task._clock,
                        sleep=self._task._sleep,
                        log=self._task.log,
                    )
            except IngestMayHaveStartedError as unknown:
                self._starts += 1
                lost = urls
                if self._starts >= STARTS or not unknown.is_unseen or not self._own_record.may_start_again(place):
                    self._own_record.end([], lost)
                    raise
                self._task.log.warning("%s", START_AGAIN)
            except Exception:
                # This request has started nothing, but earlier ones whose response was lost may have.
                self._own_record.end([], lost)
                raise
            else:
                return operation, lost

    def _adopt_new(self, hook: DaiHook, name: str) -> None:
        """Make an ingest that this try has started its own, and save its name for the next try."""
        try:
            self._adopt(hook, name)
        finally:
            # Also when the XCom could not be pushed: the next try then reattaches.
            started = StartedIngest(name, hook.endpoint.url, self._digest(), self._store.max_tries)
            self._store.try_to_save(started, self._task.log)

    def _adopt(self, hook: DaiHook, name: str) -> None:
        """Make an ingest this try's own: arm the guard with its name, and push the name to XCom."""
        # The guard first, since a kill can come while the XComs are pushed.
        with task_errors():
            self._task._guard.arm(hook, name, self._media())
        self._push([name], hook)

    def _media(self) -> str:
        return ", ".join(sorted(map(redact_urls, media_urls(self._task.creative))))

    def _push(self, names: list[str], hook: DaiHook) -> None:
        pushed_at = dict.fromkeys(names, self._task._clock())
        number = clear_number_of(self._context)
        flags = self._task._flags
        push_operations(self._context["ti"], pushed_at, hook.endpoint.url, number, flags, many=len(names) > 1)

    def _wait(self, hook: DaiHook, name: str, adopted: float | None = None) -> Operation:
        """Wait until the ingest has finished, in this process or in the triggerer."""
        if not self._task.deferrable:
            with task_errors():
                return hook.wait_for_operation(name, timeout=self._task.timeout, poll_interval=self._task.poll_interval)
        # Imported here, since DAG files are parsed often and few of their tasks defer.
        from airflow_dai_provider.triggers.dai import DaiOperationTrigger

        return defer_wait(
            self._task,
            hook,
            DaiOperationTrigger,
            name,
            poll_interval=self._task.poll_interval,
            resume_with={"adopted": adopted, "operation_name": name},
            cancel_on_kill=self._task.cancel_on_kill,
        )

    def _finish(self, operation: Operation, adopted: float | None = None) -> str:
        """Report how the ingest has finished, and check that it has succeeded.

        :param adopted: when this try has reattached to the ingest of an earlier one, in seconds since the epoch.
        """
        self._task._guard.disarm()
        self._task.log.info("%s.", operation)
        count_finished(operation.state)
        cancelled = operation.state is OperationState.CANCELLED
        if cancelled and adopted is not None and self._task._clock() < adopted + LATE_GUARD:
            # A guard of the earlier try can act after this one has reattached to the same ingest.
            self._task.log.warning("An earlier try started and cancelled it. Starting a new ingest.")
            with self._task._make_hook() as hook:
                name = self._start(hook)
                return self._finish(self._wait(hook, name))
        self._own_record.close()
        self._context["ti"].xcom_push(XCOM_OPERATION, operation.to_dict())
        check_ingest(operation, self._task.retry_on)
        self._store.try_to_delete(operation.name, self._task.log)
        return operation.name

    def _digest(self) -> str:
        return creative_digest(self._task.creative, self._task.dynamic_creative_info)
