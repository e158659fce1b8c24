"""Cancel a task's own ingests when the task is killed or fails.

The service names an ingest in its response to ``creatives.create``. That response is the only source of the name, and
the guard is armed with it at once, of many ingests by the thread that has read the response. All other places hold
copies, each for a reader that cannot reach another one:

=====================================================  ==============================================================
copy                                                   reader
=====================================================  ==============================================================
the names in the guard, for its prepared requests      the signal handler of a kill, which may ask nothing of Airflow
XCom ``operation_name`` (``operation_started`` has     other tasks, callbacks in other processes, and the guard of the
the endpoint, and the time by this name)               process that resumes the task after a deferral
the task state store                                   the next try: Airflow clears the XComs before it starts
the argument of the trigger, and of its event          the triggerer
``operation_name`` of ``execute_complete``             the resumed task, which refuses the event of another operation
=====================================================  ==============================================================

A name is valid only together with the endpoint at which the ingest was started. At another one, another
operation can have it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, TaskDeferred

from airflow_dai_provider.api.many_wait import some_of
from airflow_dai_provider.api.names import check_operation_name
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.retry import ServiceState
from airflow_dai_provider.ingest.cancel_on_kill import KILL_TIMEOUT, PreparedCancels
from airflow_dai_provider.ingest.outcome import IngestFailedError
from airflow_dai_provider.ingest.reattach import IngestStore, next_try_reattaches
from airflow_dai_provider.tasks.callback_scope import operations_started_by_task_instance
from airflow_dai_provider.tasks.cancel_requests import request_cancellation, request_cancellations
from airflow_dai_provider.tasks.failures import UnexpectedStateError, describe_error, sentences
from airflow_dai_provider.tasks.stray_log import log_strays
from airflow_dai_provider.tasks.xcom import Endpoints, elsewhere
from airflow_dai_provider.version_compat import KILLS_DEFERRED_PROCESS

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.transport.threads import Workers

#: Seconds for the cancel requests of a list after a failure; each of a single ingest is retried as any request is.
FAILURE_TIMEOUT = 60.0
_KILLED = "its task was killed"


class IngestGuard:
    """Guard the ingests of a task until they have finished, are cancelled, or are meant to run on.

    :param on_kill: whether a killed task cancels its ingests.
    :param on_failure: whether a task that fails, and is not retried, cancels its ingests.
    :param log: receives what was requested, and what may still run.
    """

    def __init__(self, *, on_kill: bool, on_failure: bool, log: Any) -> None:
        self._on_kill = on_kill
        self._on_failure = on_failure
        self._log = log
        # By name, what the messages say of each guarded ingest; and those of them that a kill has to cancel. Threads
        # and the signal handler share both: each takes a name out with pop(), so that one of them sends its request.
        self._ingests: dict[str, str] = {}
        self._to_kill: dict[str, None] = {}
        # Those whose cancellation the service has accepted: a second request would say nothing new.
        self._accepted: set[str] = set()
        # The outcomes of requests that threads have sent; threads log nothing.
        self._sent_by_threads: list[tuple[str, Exception | None]] = []
        self._prepared_cancels: PreparedCancels | None = None
        self._hook: DaiHook | None = None
        self._workers: Workers[DaiHook] | None = None
        self._disarmed = False
        self._resumed = False
        self._entered = False
        self._context: Context | None = None
        #: The guarded ingests that have finished meanwhile.
        self.finished: Collection[str] = ()
        #: Whether this process runs the task; otherwise it knows nothing of its ingests.
        self.running = False
        #: Whether the task was killed. On Airflow 3 its code runs on until the process is ended.
        self.killed = False

    @property
    def should_cancel(self) -> bool:
        """Whether an error has to cancel the ingests: they may run, and the task may cancel them."""
        return self._armed and self._on_failure and (self._on_kill or not self.killed)

    @property
    def _armed(self) -> bool:
        """Whether an ingest may run: one that this process guards or, if it guards none, one of an earlier process."""
        return not self._disarmed and (not self._ingests or bool(self._left(self._ingests)))

    def _left(self, names: Iterable[object]) -> list[str]:
        """Return those that have not finished, and whose cancellation is not accepted."""
        return [name for name in map(str, list(names)) if name not in self.finished and name not in self._accepted]

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

    def prepare(self, hook: DaiHook, number: int, workers: Workers[DaiHook] | None = None) -> None:
        """Prepare for a kill before the first ingest is started: a signal handler must not start threads.

        :param hook: the hook that starts the ingests.
        :param number: how many ingests there can be.
        :param workers: the threads that start and poll them, which rest during a kill.
        """
        self._workers = workers or self._workers
        if self._on_kill and (self._prepared_cancels is None or self._hook is not hook):
            self.close()
            self._prepared_cancels = PreparedCancels(hook, number)
        self._hook = hook

    def arm(self, hook: DaiHook, name: str, media: str = "") -> None:
        """Guard an ingest from now on.

        :param media: its media files, for the messages.
        """
        self.prepare(hook, 1)
        self._add(hook, check_operation_name(name), media)
        if self.killed:
            # The kill came while the service was starting this ingest, so it found nothing to cancel.
            self.kill()

    def arm_in_thread(self, hook: DaiHook, name: str, media: str) -> None:
        """Guard one of many ingests from now on; called by the thread that has started it, after :meth:`prepare`.

        :param hook: of this thread, which has a token.
        """
        self._add(hook, name, media)
        # A kill sets the flag before it reads the names, and this adds the name before it reads the flag: one of the
        # two sees the other. Nothing is logged here: the signal handler can have interrupted a writer of the log.
        if self.killed and self._take(name):
            try:
                hook.prepare_cancellation()(name, KILL_TIMEOUT)
            except Exception as error:
                self._sent_by_threads.append((name, error))
            else:
                self._accepted.add(name)
                self._sent_by_threads.append((name, None))

    def _add(self, hook: DaiHook, name: str, media: str) -> None:
        about = f" It is the ingest of {media}; the connection is {hook.gcp_conn_id}." if media else ""
        self._ingests[name] = about
        if self._on_kill:
            self._to_kill[name] = None
        self._disarmed = False

    def _take(self, name: str) -> bool:
        """Return whether the caller has to send the request of a kill for this ingest."""
        return self._to_kill.pop(name, self) is not self and bool(self._left([name]))

    def disarm(self) -> None:
        """Guard nothing any longer: all have finished, or are meant to run on, and a late kill must not cancel them."""
        self._disarmed = True
        self._to_kill.clear()
        self._ingests.clear()

    def kill_or_time_out(self, make_hook: Callable[[], DaiHook]) -> None:
        """Handle a kill, or a time limit that passed while the task was deferred.

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
        """Request the cancellations, from a signal handler."""
        self.killed = True
        names = [name for name in list(self._to_kill) if self._take(name)]
        if self._prepared_cancels is None or not names:
            return
        if self._workers:
            self._workers.hold(KILL_TIMEOUT)
        errors = self._prepared_cancels.cancel(names)
        if self._workers:
            self._workers.hold(0.0)
        self._accepted.update(name for name in names if name not in errors)
        self._prepared_cancels.log(lambda: self._tell(names, errors, _KILLED))

    def tell_of_threads(self) -> None:
        """Log what the threads have requested during a kill."""
        sent, self._sent_by_threads = self._sent_by_threads, []
        if sent:
            errors = {name: error for name, error in sent if error}
            self._tell([name for name, _ in sent], errors, _KILLED)

    def _tell(self, names: Sequence[str], errors: Mapping[str, Exception], reason: str) -> None:
        """Log what was requested, and name what may still run."""
        requested = [name for name in names if name not in errors]
        if requested:
            self._log.info("Requested the cancellation of %s: %s.", some_of(requested), reason)
        log_strays(self._log, errors, reason, self._ingests)

    def close(self) -> None:
        """Stop preparing for a kill, and end the threads."""
        self._to_kill.clear()
        if self._prepared_cancels:
            self._prepared_cancels.close()
            self._prepared_cancels = None

    @contextmanager
    def cancel_on_error(self, context: Context, make_hook: Callable[[], DaiHook]) -> Iterator[None]:
        """Cancel the ingests when the block raises, unless the next try reattaches to them; raise the error again."""
        self._entered = True
        try:
            yield
        except TaskDeferred:
            if KILLS_DEFERRED_PROCESS:
                # The process can be killed although the task waits in the triggerer, whose trigger guards it now.
                self.close()
            raise
        except BaseException as error:
            # Airflow kills a task after a time limit, so what holds for a kill holds for a time limit.
            timed_out = isinstance(error, AirflowTaskTimeout) and self._on_kill and self._armed
            if timed_out or self.should_cancel:
                self._cancel_after(error, context, make_hook)
            if not (self._armed and self._to_kill):
                self.close()
            if self.killed and isinstance(error, UnexpectedStateError) and OperationState.CANCELLED in error.states:
                # Airflow 3 lets a killed task run on, here until it saw its own cancellation. Whether it is tried again
                # is for Airflow to decide, as when the process ends at once: a worker can be shut down at any time.
                raise IngestFailedError(
                    sentences(error, f"The cancellation was requested because {_KILLED}")
                ) from error
            raise
        # A late kill has nothing to cancel. But the guard is not disarmed: a task that does not wait can still fail
        # after execute, for example in post_execute, and its failure callback then has to cancel the ingest.
        self.close()

    def _cancel_after(self, failure: BaseException, context: Context, make_hook: Callable[[], DaiHook]) -> None:
        """Request the cancellations after an error, or leave the ingests to the next try. Never raise."""
        names: list[str] = []
        refused = False
        try:
            names, endpoints = self._names(context)
            if names and not self.killed and next_try_reattaches(context, failure, names):
                self._log.info("Leaving %s to the next try.", some_of(names))
                # Airflow 3 also kills a task after a time limit, and when its callbacks are slow.
                self._to_kill.clear()
                return
            if names:
                # The hook of the task has a token; one that is made now has to ask for it, and for the connection.
                with self._hook.sibling() if self._hook else make_hook() as hook:
                    hook.connect()
                    # Of its own: a pause that the service has asked for can be longer than the time that is left, and
                    # must not keep the requests from being tried.
                    hook.service = ServiceState()
                    hook.responded = True  # to the start of the ingest
                    refused = self._request(hook, names, endpoints)
            # What was refused stays guarded: a late kill and the failure callback attempt it again.
            if not refused:
                self.disarm()
        except Exception as error:
            why = sentences(describe_error(error))
            about = self._ingests.get(names[0], "") if len(names) == 1 else ""
            what = ", ".join(names) or "An ingest of this task"
            self._log.error("%s may still run: it could not be cancelled: %s%s", what, why, about)

    def _request(self, hook: DaiHook, names: list[str], endpoints: Endpoints) -> bool:
        """Request the cancellation of all that runs at the endpoint of the hook; return whether some may still run."""
        here: list[str] = []
        errors: Mapping[str, Exception] = {}
        for name in names:
            if why := elsewhere(name, hook.endpoint.url, endpoints):
                about = self._ingests.get(name, "")
                self._log.error("%s may still run: it was not cancelled: %s%s", name, why, about)
            else:
                here.append(name)
        if len(here) == 1:
            request_cancellation(hook, here[0], self._log)
        elif here:
            with hook.workers(len(here)) as workers:
                _, errors = request_cancellations(
                    workers,
                    here,
                    timeout=FAILURE_TIMEOUT,
                    on_settled=lambda name, _: self._accepted.add(name),
                    clock=time.monotonic,
                    sleep=time.sleep,
                    log=self._log,
                )
            self._tell([], errors, "its task has failed")
        return bool(errors)

    def started_here(self, context: Context, make_hook: Callable[[], DaiHook]) -> list[str]:
        """Return the operations that a resumed task waits for, without those that were started at another endpoint."""
        endpoints: Endpoints = {}
        names = operations_started_by_task_instance(context, self._log, endpoints)
        with make_hook() as hook:
            return [str(name) for name in names if not elsewhere(name, hook.endpoint.url, endpoints)]

    def _names(self, context: Context) -> tuple[list[str], Endpoints]:
        """Return the operations of this try, and where they run; after a deferral both are read from the XComs."""
        endpoints: Endpoints = {}
        if self._ingests:
            # The hook that the guard was armed with is at their endpoint.
            return self._left(self._ingests), endpoints
        if self._resumed and (started := operations_started_by_task_instance(context, self._log, endpoints)):
            return self._left(started), endpoints
        # An earlier try has left them to this one, which has failed before it could reattach.
        saved = IngestStore(context).load()
        return [one.operation_name for one in saved], {one.operation_name: {one.endpoint} for one in saved}
