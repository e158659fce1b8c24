"""Notifier that cancels stray ingests when a task or a run has failed, or a deadline has passed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.names import InvalidNameError, check_operation_name, is_missing_name
from airflow_dai_provider.api.polling import check_seconds
from airflow_dai_provider.notifications.rendering import RenderingNotifier, checked, listed
from airflow_dai_provider.notifications.rounds import Rounds
from airflow_dai_provider.tasks.callbacks import (
    is_dag_callback,
    is_deadline,
    names_pushed_by_deadline,
    names_pushed_by_run,
    names_pushed_by_task_instance,
    names_pushed_by_tasks,
    run_of_deadline,
)
from airflow_dai_provider.tasks.cancellation import AtOnce, Service, run_at_once

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook

#: Seconds that one request may take.
REQUEST_TIMEOUT = 5.0

_REFUSAL = (
    "DaiCancelOperationNotifier was given to the SyncCallback of a Deadline alert, and has cancelled nothing: the "
    "process that runs it answers no XCom request. Use AsyncCallback(DaiCancelOperationNotifier, kwargs={...}), which "
    "the triggerer runs."
)

T = TypeVar("T")


class DaiCancelOperationNotifier(RenderingNotifier):
    """
    Ask the service to cancel ingests: as a failure or retry callback of a task or a DAG, or when a deadline has passed.

    A Deadline alert of Airflow 3 takes it as ``AsyncCallback(DaiCancelOperationNotifier, kwargs={...})``.

    Without a name and without task ids, a task's callback cancels what that task instance has pushed, and that of a DAG
    or a deadline what any task of the run has pushed. A task's callback reaches its own map index only. What is read of
    a task is its XCom ``operation_name``, else a returned string that is the name of an operation.

    Every operation is attempted before anything is reported; what could not be cancelled is named in the log, as is
    what was left alone. Nothing to cancel is no error. This never waits for the end of an ingest: the service may
    need a while, and a callback has little time.

    :param operation_name: ``operations/...``, or several (templated). Nothing, or what renders to nothing, is fine.
    :param ingest_task_ids: the task(s) that start ingests, whose pushed names are cancelled (templated).
    :param context: what Airflow passes where it cannot call with it; leave it out.
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

    #: Replaced in tests.
    _sleep: Callable[[float], None] = staticmethod(time.sleep)
    _async_sleep: Callable[[float], Awaitable[None]] = staticmethod(asyncio.sleep)
    _clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self,
        operation_name: str | Sequence[str] | None = None,
        ingest_task_ids: str | Sequence[str] | None = None,
        context: Context | None = None,
        *,
        timeout: float = 10.0,
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.context = context or {}
        self.operation_name = operation_name
        self.ingest_task_ids = ingest_task_ids
        self.timeout = timeout
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint

    def __call__(self, *args: Any) -> None:
        """
        Cancel; a copy is rendered, since rendering is in place and one notifier serves every run of a batch.

        :param args: the context, as Airflow passes it.
        :raises AirflowException: from the ``SyncCallback`` of a Deadline alert, before anything is done.
        """
        if len(args) == 1 and is_deadline(args[0]):
            raise AirflowException(_REFUSAL)
        super(DaiCancelOperationNotifier, copy(self)).__call__(*args)

    def notify(self, context: Context) -> None:
        """
        Cancel what is named, or what was pushed.

        :raises AirflowException: after every attempt, when an operation could not be cancelled; the message names it.
        """
        names, problems = self._collect(context)
        problems += run_at_once(self._rounds(self._connect_at_once, self._sleep_at_once).cancel(names))
        self._report(context, names, problems)

    async def async_notify(self, context: Context) -> None:
        """
        Do the same on an event loop, as the triggerer does at a deadline.

        :raises AirflowException: as :meth:`notify`.
        """
        if is_deadline(context):
            # The triggerer's log does not say by itself whose callback this is.
            self.log.info("A deadline has passed: that of %s.", run_of_deadline(context))
        names, problems = await _in_thread(self._collect, context)
        problems += await self._rounds(self._connect, self._async_sleep).cancel(names)
        self._report(context, names, problems)

    def _report(self, context: Context, names: list[str], problems: list[str]) -> None:
        if not names and not problems:
            self.log.info("No operation to cancel: %s.", self._source(context))
        for problem in problems:
            self.log.error("%s", problem)
        if problems:
            raise AirflowException("Not every ingest could be cancelled. " + " ".join(problems))

    def _collect(self, context: Context) -> tuple[list[str], list[str]]:
        """Return the valid names, each once and in order, and what is wrong with the others."""
        names: list[str] = []
        problems: list[str] = []
        try:
            candidates = self._pushed(context)
        except Exception as error:
            candidates = []
            problems.append(str(error))
        for name in _given(self.operation_name) + candidates:
            try:
                names.append(check_operation_name(checked(name)))
            except (AirflowException, InvalidNameError) as error:
                problems.append(str(error))
        return list(dict.fromkeys(names)), problems

    def _pushed(self, context: Context) -> list[object]:
        if self.ingest_task_ids is None and self.operation_name is not None:
            return []
        if self.ingest_task_ids is not None:
            task_ids = _given(self.ingest_task_ids)
            unrendered = [task_id for task_id in task_ids if isinstance(task_id, AirflowException)]
            named = [str(task_id) for task_id in task_ids if task_id not in unrendered]
            if is_deadline(context):
                return unrendered + names_pushed_by_deadline(context, named)
            return unrendered + names_pushed_by_tasks(context, named, self.log)
        if is_deadline(context):
            return names_pushed_by_deadline(context, None)
        if is_dag_callback(context):
            return names_pushed_by_run(context, self.log)
        return names_pushed_by_task_instance(context, self.log)

    def _source(self, context: Context) -> str:
        """Say where no operation was found."""
        if self.ingest_task_ids is not None:
            return f"{', '.join(map(str, _given(self.ingest_task_ids))) or 'no task'} has pushed none"
        if self.operation_name is not None:
            return "operation_name is empty"
        of_run = is_dag_callback(context) or is_deadline(context)
        return f"{'the run' if of_run else 'the task instance'} has pushed none"

    def _rounds(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Service]],
        sleep: Callable[[float], Awaitable[None]],
    ) -> Rounds:
        return Rounds(connect, timeout=self.timeout, clock=self._clock, sleep=sleep, log=self.log)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Service]:
        async with await _in_thread(self._make_async_hook) as hook:
            yield hook

    @asynccontextmanager
    async def _connect_at_once(self) -> AsyncIterator[Service]:
        with self._make_hook() as hook:
            yield AtOnce(hook)

    async def _sleep_at_once(self, seconds: float) -> None:
        self._sleep(seconds)

    def _make_async_hook(self) -> DaiAsyncHook:
        """Make the hook, in a thread, since what it imports is heavy."""
        from airflow_dai_provider.hooks.dai import DaiAsyncHook

        return DaiAsyncHook(**self._hook_arguments())

    def _make_hook(self) -> DaiHook:
        """Make a hook whose connection and session stand before the time starts to count."""
        from airflow_dai_provider.hooks.dai import DaiHook

        hook = DaiHook(**self._hook_arguments())
        hook.get_conn()
        return hook

    def _hook_arguments(self) -> dict[str, Any]:
        return {
            "gcp_conn_id": checked(self.gcp_conn_id),
            "impersonation_chain": checked(self.impersonation_chain),
            "api_endpoint": checked(self.api_endpoint),
            "timeout": min(REQUEST_TIMEOUT, check_seconds("timeout", self.timeout)),
            "retry_timeout": 0,
        }


def _given(values: object) -> list[object]:
    """Return one value or several as a list, without what renders to nothing."""
    return [value for value in listed(values) if not is_missing_name(value)]


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    # Imported here, since DAG files are parsed often and few of their callbacks are a Deadline's.
    from asgiref.sync import sync_to_async

    return await sync_to_async(function, thread_sensitive=False)(*args)
