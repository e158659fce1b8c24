"""Notifier that cancels ingests when a task or a run has failed, or a deadline has passed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.names import InvalidNameError, check_operation_name, is_missing_name
from airflow_dai_provider.api.parameters import Duration, check_seconds
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.notifications.rendering import RenderingNotifier
from airflow_dai_provider.tasks.callback_scope import CallbackKind, callback_kind, operations_started, run_of_deadline
from airflow_dai_provider.tasks.cancel_requests import TIME_IS_UP, problems_of, request_cancellations
from airflow_dai_provider.tasks.failures import describe_error, log_failure, refused_parameters
from airflow_dai_provider.tasks.one_or_many import one_or_many
from airflow_dai_provider.tasks.rounds import PAUSE
from airflow_dai_provider.tasks.xcom import Endpoints, elsewhere

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds that one request may take.
REQUEST_TIMEOUT = 5.0

_REFUSAL = (
    "DaiCancelOperationNotifier was given to the SyncCallback of a Deadline alert, and has cancelled nothing: the "
    "process that runs it does not respond to XCom requests. Use AsyncCallback(DaiCancelOperationNotifier, "
    "kwargs={...}), which the triggerer runs."
)


class DaiCancelOperationNotifier(RenderingNotifier):
    """Cancel ingests, as a failure or retry callback of a task or a DAG, or when a deadline has passed.

    A Deadline alert of Airflow 3 takes it as ``AsyncCallback(DaiCancelOperationNotifier, kwargs={...})``.

    Without a name and without task ids, a task's callback cancels the operations that its task instance has started,
    and the callback of a DAG or a deadline those of all tasks of the run. A task's callback reaches its own map index
    only. The names are read from the XCom ``operation_name``, else from a returned string that is a valid name.

    All cancellations are requested, side by side, before anything is reported. The log names each operation that may
    still run, and each that was left alone. Nothing to cancel is not an error. The notifier does not wait for the final
    state: the service may need a while, and a callback has little time.

    :param operation_name: ``operations/...``, or several (templated). A template that renders to nothing cancels
        nothing.
    :param ingest_task_ids: the task(s) that start the ingests to cancel (templated). A template that renders to nothing
        names no task.
    :param context: set by Airflow; leave it out.
    :param timeout: seconds for all attempts, after the connection has been looked up. A task's callbacks share 20 s.
    :param gcp_conn_id: the Google Cloud connection (templated).
    :param impersonation_chain: service account(s) to impersonate (templated).
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own (templated).
    """

    template_fields: Sequence[str] = (
        "operation_name",
        "ingest_task_ids",
        "gcp_conn_id",
        "impersonation_chain",
        "api_endpoint",
    )
    may_render_to_nothing = ("operation_name", "ingest_task_ids")

    #: Replaced in tests.
    _sleep: Callable[[float], None] = staticmethod(time.sleep)
    _clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self,
        operation_name: str | Sequence[str] | None = None,
        ingest_task_ids: str | Sequence[str] | None = None,
        context: Context | None = None,
        *,
        timeout: Duration = 10.0,
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.context = context or {}
        self.operation_name = operation_name
        self.ingest_task_ids = ingest_task_ids
        with refused_parameters():
            self.timeout = check_seconds("timeout", timeout)
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint

    def __call__(self, *args: Any) -> None:
        """Render a copy, and cancel: rendering is in place, and one notifier serves every run of a batch.

        :param args: the context, as Airflow passes it.
        :raises AirflowException: from the ``SyncCallback`` of a Deadline alert, before anything is done.
        """
        if len(args) == 1 and callback_kind(args[0]) is CallbackKind.DEADLINE:
            raise AirflowException(_REFUSAL)
        super(DaiCancelOperationNotifier, copy(self)).__call__(*args)

    def notify(self, context: Context) -> None:
        """Cancel the named operations, or those that tasks have started.

        :raises AirflowException: after every attempt, when an operation could not be cancelled; the message names it.
        """
        if callback_kind(context) is CallbackKind.DEADLINE:
            # The triggerer's log does not say by itself whose callback this is.
            self.log.info("A deadline has passed: that of %s.", run_of_deadline(context))
        endpoints: Endpoints = {}
        names, problems = self._collect(context, endpoints)
        problems += self._cancel(names, endpoints)
        if not names and not problems:
            self.log.info("No operation to cancel: %s.", self._source(context))
        for problem in problems:
            self.log.error("%s", problem)
        if problems:
            raise AirflowException("Not every ingest could be cancelled. " + " ".join(problems))

    async def async_notify(self, context: Context) -> None:
        """Do the same in a thread, as the triggerer does at a deadline.

        On Airflow 3.1 only a thread of ``sync_to_async`` can send requests to Airflow. A thread cannot be stopped: when
        the triggerer cancels this coroutine, the thread goes on until the timeout. So the thread has an executor of its
        own, since all triggers share the few threads of the default one.

        :raises AirflowException: as :meth:`notify`.
        """
        # Imported here, since DAG files are parsed often and few of their callbacks are a Deadline's.
        from concurrent.futures import ThreadPoolExecutor

        from asgiref.sync import sync_to_async

        thread = ThreadPoolExecutor(1, thread_name_prefix="dai-notifier")
        try:
            await sync_to_async(self.notify, thread_sensitive=False, executor=thread)(context)
        finally:
            thread.shutdown(wait=False)

    def _collect(self, context: Context, endpoints: Endpoints) -> tuple[list[str], list[str]]:
        """Return the valid names, each once and in order, and the problems with the others."""
        started: list[object] = []
        problems = [*self.render_problems.get("operation_name", ()), *self.render_problems.get("ingest_task_ids", ())]
        given: list[object] = []
        try:
            given = _given("operation_name", self.operation_name)
        except ValueError as error:
            problems.append(str(error))
        if self.ingest_task_ids is not None or self.operation_name is None:
            try:
                task_ids = None if self.ingest_task_ids is None else self._task_ids()
                started, unreadable = operations_started(context, task_ids, self.log, endpoints)
                problems += unreadable
            except Exception as error:
                problems.append(describe_error(error))
        names: list[str] = []
        for name in given + started:
            try:
                names.append(check_operation_name(name))
            except InvalidNameError as error:
                problems.append(str(error))
        return list(dict.fromkeys(names)), problems

    def _task_ids(self) -> list[str]:
        return [str(task_id) for task_id in _given("ingest_task_ids", self.ingest_task_ids)]

    def _source(self, context: Context) -> str:
        """Return the reason why there is no operation to cancel, for the log."""
        if self.ingest_task_ids is not None:
            return f"{', '.join(self._task_ids()) or 'no task'} has started none"
        if self.operation_name is not None:
            return "operation_name is empty"
        return f"{callback_kind(context).value} has started none"

    def _cancel(self, names: list[str], endpoints: Endpoints) -> list[str]:
        """Request every cancellation; return a problem for each operation that may still run. Never raise.

        An operation that was started only at another endpoint is left alone: here, another one can have its name.
        """
        if not names:
            return []
        from airflow_dai_provider.hooks.dai import DaiHook

        for field in ("gcp_conn_id", "impersonation_chain", "api_endpoint"):
            if problems := self.render_problems.get(field):
                return [f"{name} may still run: {problems[0]}" for name in names]
        try:
            with DaiHook(
                self.gcp_conn_id,
                # A field that has rendered to an empty text is not given: a guard does without it rather than fail.
                self.impersonation_chain or None,
                self.api_endpoint or None,
                timeout=min(REQUEST_TIMEOUT, self.timeout),
                retry_timeout=0,
            ) as hook:
                timeout = self._connect(hook)
                # To the start of an ingest, if that was here.
                hook.responded = any(hook.endpoint.url in endpoints.get(name, ()) for name in names)
                others = {name: why for name in names if (why := elsewhere(name, hook.endpoint.url, endpoints))}
                problems = [f"{name} may still run: {why}" for name, why in others.items()]
                if not (here := [name for name in names if name not in others]):
                    return problems
                until = self._clock() + timeout
                hook.stopped = lambda: TIME_IS_UP if self._clock() >= until else None
                with hook.workers(len(here)) as workers:
                    left = until - self._clock()
                    _, errors = request_cancellations(
                        workers, here, timeout=left, clock=self._clock, sleep=self._sleep, log=self.log
                    )
                return problems + problems_of(errors, self.log)
        except Exception as error:
            log_failure(self.log, f"The cancellation of {', '.join(names)} has failed", error)
            return [f"{name} may still run: {describe_error(error)}" for name in names]

    def _connect(self, hook: DaiHook) -> float:
        """Look up the connection, again while it cannot be looked up for now; return the seconds that are left.

        The first attempt does not count, since it can take long where nothing has failed.
        """
        until: float | None = None
        while True:
            try:
                hook.connect()
            except ServiceError as error:
                until = until or self._clock() + self.timeout
                if error.rpc_code in PERMANENT or self._clock() >= until:
                    raise
                self.log.warning("%s", error)
                self._sleep(PAUSE)
            else:
                return self.timeout if until is None else max(until - self._clock(), PAUSE)


def _given(field: str, values: object) -> list[object]:
    """Return one value or several as a list, without values that have rendered to nothing.

    :raises ValueError: as :func:`one_or_many`.
    """
    return [value for value in one_or_many(field, values, in_order=False)[0] if not is_missing_name(value)]
