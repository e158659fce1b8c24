"""What the process of a task knows of the ingest that it has started, and when it cancels it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowTaskTimeout, TaskDeferred

from airflow_dai_provider.ingest.resume import TaskMemory
from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.tasks.callbacks import names_pushed_by_task_instance
from airflow_dai_provider.tasks.cancellation import request_cancellation
from airflow_dai_provider.tasks.failures import describe_error
from airflow_dai_provider.version_compat import KILLS_AFTER_DEFERRAL

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds that connecting, the beginning of the answer, and its end may each take on a kill: Airflow 3 ends the process
#: 5 s after it.
KILL_TIMEOUT = 1.2


class IngestGuard:
    """
    Guards one ingest at a time, from its start until it has ended, is cancelled, or is meant to run on.

    :param on_kill: whether a killed task cancels its ingest.
    :param on_failure: whether a task that fails for good does.
    :param log: says what was requested, and what may still run.
    """

    def __init__(self, *, on_kill: bool, on_failure: bool, log: Any) -> None:
        self._on_kill = on_kill
        self._on_failure = on_failure
        self._log = log
        self._operation_name: str | None = None
        self._cancel_now: Callable[[], None] | None = None
        self._settled = False
        #: Whether the task has been killed; its code still runs for a while.
        self.killed = False

    @property
    def has_nothing_to_do(self) -> bool:
        """Whether a failure leaves nothing to cancel, or nothing that may be cancelled."""
        return self._settled or not self._on_failure or (self.killed and not self._on_kill)

    def take(self, hook: DaiHook, name: str) -> None:
        """Guard an ingest from now on."""
        self._operation_name = name
        self._settled = False
        if self._on_kill:
            self._cancel_now = hook.prepare_cancellation(name, timeout=KILL_TIMEOUT)
        if self.killed:
            # It was killed while the service was being asked to start this.
            self.kill()

    def settle(self) -> None:
        """Guard it no longer: it has ended, or is meant to run on. A late kill must not cancel it."""
        self._settled = True
        self._cancel_now = None

    def kill(self) -> None:
        """
        Request the cancellation from a signal handler.

        The task can be anywhere, so nothing of Airflow is asked here, and nothing that the task uses is touched.
        """
        self.killed = True
        self._send_prepared("its task was killed")

    def _send_prepared(self, reason: str) -> None:
        """Send the cancel request that has been prepared, if there is one."""
        cancel, self._cancel_now = self._cancel_now, None
        if cancel is None:
            return
        try:
            cancel()
        except Exception as error:
            self._log.error("%s may still run: %s, but %s", self._operation_name, reason, describe_error(error))
        else:
            self._log.info("Requested the cancellation of %s: %s.", self._operation_name, reason)
            self._settled = True

    @contextmanager
    def watch(self, context: Context, make_hook: Callable[[], DaiHook]) -> Iterator[None]:
        """Cancel the ingest when this fails for good; the failure stays the one that the user sees."""
        try:
            yield
        except TaskDeferred:
            if KILLS_AFTER_DEFERRAL:
                # The trigger is on guard now.
                self._cancel_now = None
            raise
        except BaseException as failure:
            timed_out = isinstance(failure, AirflowTaskTimeout) and self._on_kill and not self._settled
            if timed_out or not self.has_nothing_to_do:
                self._cancel_after(failure, context, make_hook)
            raise
        # Not settled: without a wait the ingest runs on, and the task can still fail, in what comes after execute.
        self._cancel_now = None

    def _cancel_after(self, failure: BaseException, context: Context, make_hook: Callable[[], DaiHook]) -> None:
        names: list[str] = []
        asked = False
        try:
            names = self._names(context)
            if names and not self.killed and _next_try_goes_on(context, failure, names):
                self._log.info("Leaving %s to the next try.", ", ".join(names))
                # Airflow 3 kills the task after a time limit, too, and while slow callbacks run.
                self._cancel_now = None
            elif names:
                with make_hook() as hook:
                    asked = True
                    for name in names:
                        request_cancellation(hook, name, self._log)
                self.settle()
        except Exception as error:
            ingest = ", ".join(names) or "An ingest of this task"
            self._log.error("%s may still run: it could not be cancelled: %s", ingest, describe_error(error))
            if not asked:
                # Airflow may be away, and not the service: what was prepared for a kill needs no connection.
                self._send_prepared("its task has failed")

    def _names(self, context: Context) -> list[str]:
        """Return the ingest of this try; a task that was deferred finds it in its XCom."""
        if self._operation_name:
            return [self._operation_name]
        names = [str(name) for name in names_pushed_by_task_instance(context, self._log)]
        if not names and (earlier := TaskMemory(context).recall()):
            # Left by an earlier try to this one, which has failed before it could go on with it.
            names = [earlier.operation_name]
        return names


def _next_try_goes_on(context: Context, failure: BaseException, names: list[str]) -> bool:
    """Whether there is another try, which finds this one's ingest."""
    retried = isinstance(failure, Exception | AirflowTaskTimeout) and not isinstance(failure, AirflowFailException)
    ti = context["ti"]
    if not retried or ti.try_number > ti.max_tries:
        return False
    try:
        kept = TaskMemory(context).recall()
    except AirflowException:
        return False
    return kept is not None and names == [kept.operation_name]


class CancelWhatIsLeft(DaiCancelOperationNotifier):
    """The callback that the operator adds to its own, for the worker that is lost."""

    def notify(self, context: Context) -> None:
        """Cancel, unless the operator has seen to its ingest in this same process."""
        # Not the task of the context itself, which on Airflow 3.0 is another copy than the one that was executed.
        guard = getattr(getattr(context.get("ti"), "task", None), "_guard", None)
        if guard is None or not guard.has_nothing_to_do:
            super().notify(context)
