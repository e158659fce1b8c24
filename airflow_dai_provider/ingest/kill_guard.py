"""Cancel a task's own ingest when the task is killed or fails.

The service names an ingest in its response to ``creatives.create``. That response is the only source of the name, and
the guard is armed with it at once. All other places hold copies, each for a reader that cannot reach another one:

=====================================================  ==============================================================
copy                                                   reader
=====================================================  ==============================================================
the cancel request that the guard has prepared         the signal handler of a kill, which may ask nothing of Airflow
XCom ``operation_name`` (``operation_started`` has     other tasks, callbacks in other processes, and the guard of the
the endpoint, and the time by this name)               process that resumes the task after a deferral
the task state store                                   the next try: Airflow clears the XComs before it starts
the argument of the trigger, and of its event          the triggerer
``operation_name`` of ``execute_complete``             the resumed task, which refuses the event of another operation
=====================================================  ==============================================================

A name is valid only together with the endpoint at which the ingest was started. At another one, a stranger's operation
can have it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowTaskTimeout, TaskDeferred

from airflow_dai_provider.ingest.resume import IngestStore
from airflow_dai_provider.tasks.callback_scope import operations_started_by_task_instance
from airflow_dai_provider.tasks.cancel_requests import request_cancellation
from airflow_dai_provider.tasks.failures import describe_error, sentences
from airflow_dai_provider.tasks.xcom import Endpoints, elsewhere
from airflow_dai_provider.version_compat import KILLS_DEFERRED_PROCESS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds that the cancel request may take in all when a task is killed. Airflow 3 ends the process 5 s after the kill,
#: so it has to be over before that.
KILL_TIMEOUT = 3.6


class IngestGuard:
    """Guard one ingest at a time, until it has finished, is cancelled, or is meant to run on.

    :param on_kill: whether a killed task cancels its ingest.
    :param on_failure: whether a task that fails, and is not retried, cancels its ingest.
    :param log: receives what was requested, and what may still run.
    """

    def __init__(self, *, on_kill: bool, on_failure: bool, log: Any) -> None:
        self._on_kill = on_kill
        self._on_failure = on_failure
        self._log = log
        self._operation_name: str | None = None
        self._about = ""
        self._cancel_now: Callable[[], None] | None = None
        self._hook: DaiHook | None = None
        self._disarmed = False
        self._resumed = False
        self._entered = False
        self._context: Context | None = None
        #: Whether this process runs the task; otherwise it knows nothing of its ingest.
        self.running = False
        #: Whether the task was killed. On Airflow 3 its code runs on until the process is ended.
        self.killed = False

    @property
    def should_cancel(self) -> bool:
        """Whether an error has to cancel the ingest: it may run, and the task may cancel it."""
        return not self._disarmed and self._on_failure and (self._on_kill or not self.killed)

    def begin(self, context: Context, *, resumed: bool = False) -> None:
        """Take over when this process begins to run the task.

        A first try has started nothing yet, and on Airflow without a task state store no try leaves its ingest to the
        next one. As long as that is known, nothing is read and nothing is said.

        :param resumed: whether the task is resumed after a deferral, so that another process has started its ingest.
        """
        self.running = True
        self._context = context
        self._resumed = resumed
        left_by_earlier_try = context["ti"].try_number > 1 and IngestStore(context).available
        self._disarmed = not (resumed or left_by_earlier_try)

    def arm(self, hook: DaiHook, name: str, media: str = "") -> None:
        """Guard an ingest from now on.

        :param media: its media files, for the messages.
        """
        self._about = f" It is the ingest of {media}; the connection is {hook.gcp_conn_id}." if media else ""
        self._operation_name = name
        self._hook = hook
        self._disarmed = False
        if self._on_kill:
            self._cancel_now = hook.prepare_cancellation(name, timeout=KILL_TIMEOUT)
        if self.killed:
            # The kill came while the service was starting this ingest, so it found nothing to cancel.
            self.kill()

    def disarm(self) -> None:
        """Guard the ingest no longer: it has finished, or is meant to run on, and a late kill must not cancel it."""
        self._disarmed = True
        self._cancel_now = None

    def kill_or_time_out(self, make_hook: Callable[[], DaiHook]) -> None:
        """Do what a kill requires, or a time limit that has passed while the task was deferred.

        Airflow 2 calls ``on_kill`` then in place of ``resume_execution``, not from a signal handler: so the error of a
        resumed task is handled here.
        """
        error = sys.exception()
        if not (isinstance(error, AirflowTaskTimeout) and self._context and self._resumed and not self._entered):
            self.kill()
            return
        with suppress(AirflowTaskTimeout), self.cancel_on_error(self._context, make_hook):
            raise error

    def kill(self) -> None:
        """Request the cancellation, from a signal handler.

        The signal can interrupt the task anywhere. If the task is waiting for a response of Airflow, another request to
        Airflow from here would deadlock; if it is inside a request to the service, the locks of its session are held.
        Therefore nothing is looked up here and nothing is shared with the task: the request was prepared when the guard
        was armed, with a session of its own and a token at hand, and is sent once, without retries.
        """
        self.killed = True
        self._send_prepared("its task was killed")

    def _send_prepared(self, reason: str) -> None:
        """Send the prepared cancel request, if there is one."""
        cancel, self._cancel_now = self._cancel_now, None
        if cancel is None:
            return
        try:
            cancel()
        except Exception as error:
            why = sentences(f"{reason}, but {describe_error(error)}")
            self._log.error("%s may still run: %s%s", self._operation_name, why, self._about)
        else:
            self._log.info("Requested the cancellation of %s: %s.", self._operation_name, reason)
            self._disarmed = True

    @contextmanager
    def cancel_on_error(self, context: Context, make_hook: Callable[[], DaiHook]) -> Iterator[None]:
        """Cancel the ingest when the block raises, unless the next try reattaches to it; the error is raised again."""
        self._entered = True
        try:
            yield
        except TaskDeferred:
            if KILLS_DEFERRED_PROCESS:
                # The process can be killed although the task waits in the triggerer, whose trigger guards it now.
                self._cancel_now = None
            raise
        except BaseException as error:
            # Airflow kills a task after a time limit, so what holds for a kill holds for a time limit.
            timed_out = isinstance(error, AirflowTaskTimeout) and self._on_kill and not self._disarmed
            if timed_out or self.should_cancel:
                self._cancel_after(error, context, make_hook)
            raise
        # A late kill has nothing to cancel. But the guard is not disarmed: a task that does not wait can still fail
        # after execute, for example in post_execute, and its failure callback then has to cancel the ingest.
        self._cancel_now = None

    def _cancel_after(self, failure: BaseException, context: Context, make_hook: Callable[[], DaiHook]) -> None:
        """Request the cancellation after an error, or leave the ingest to the next try. Never raise."""
        names: list[str] = []
        # Without a hook for this ingest the prepared request is left: perhaps only Airflow is unavailable.
        connected = False
        try:
            names, endpoints = self._names(context)
            if names and not self.killed and _next_try_reattaches(context, failure, names):
                self._log.info("Leaving %s to the next try.", ", ".join(names))
                # Airflow 3 also kills a task after a time limit, and when its callbacks are slow.
                self._cancel_now = None
                return
            if names:
                # The hook of the task has a token; one that is made now has to ask for it, and for the connection.
                with self._hook.sibling() if self._hook else make_hook() as hook:
                    hook.connect()
                    hook.responded = True  # to the start of the ingest
                    connected = True
                    here = hook.endpoint.url
                    if why := next(filter(None, (elsewhere(name, here, endpoints) for name in names)), None):
                        message = "%s may still run: it was not cancelled: %s%s"
                        self._log.error(message, ", ".join(names), why, self._about)
                    else:
                        for name in names:
                            request_cancellation(hook, name, self._log)
            self.disarm()
        except Exception as error:
            ingest = ", ".join(names) or "An ingest of this task"
            why = sentences(describe_error(error))
            self._log.error("%s may still run: it could not be cancelled: %s%s", ingest, why, self._about)
            if not connected:
                self._send_prepared("its task has failed")

    def started_here(self, context: Context, make_hook: Callable[[], DaiHook]) -> str | None:
        """Return the operation that a resumed task waits for, unless it was started at another endpoint."""
        endpoints: Endpoints = {}
        names = operations_started_by_task_instance(context, self._log, endpoints)
        with make_hook() as hook:
            return next((str(name) for name in names if not elsewhere(name, hook.endpoint.url, endpoints)), None)

    def _names(self, context: Context) -> tuple[list[str], Endpoints]:
        """Return the operation of this try, and where it runs; after a deferral both are read from the XComs."""
        endpoints: Endpoints = {}
        if self._operation_name:
            # The hook that it was armed with is at its endpoint.
            return [self._operation_name], endpoints
        if self._resumed and (started := operations_started_by_task_instance(context, self._log, endpoints)):
            return [str(name) for name in started], endpoints
        # An earlier try has left them to this one, which has failed before it could reattach.
        saved = IngestStore(context).load()
        return [one.operation_name for one in saved], {one.operation_name: {one.endpoint} for one in saved}


def _next_try_reattaches(context: Context, failure: BaseException, names: list[str]) -> bool:
    """Whether Airflow retries the task after this failure, and the next try finds the ingest in the store."""
    retried = isinstance(failure, Exception | AirflowTaskTimeout) and not isinstance(failure, AirflowFailException)
    ti = context["ti"]
    if not retried or ti.try_number > ti.max_tries:
        return False
    try:
        saved = IngestStore(context).load()
    except AirflowException:
        return False
    return set(names) <= {one.operation_name for one in saved}
