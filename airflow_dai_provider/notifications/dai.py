"""Notifier that cancels stray ingests when a task or a run has failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.notifier import BaseNotifier
from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.cancellation import request_cancellation
from airflow_dai_provider.errors import PERMANENT
from airflow_dai_provider.names import InvalidNameError, check_operation_name, is_missing_name
from airflow_dai_provider.outcome import error_code
from airflow_dai_provider.polling import check_seconds
from airflow_dai_provider.pushed import (
    is_dag_callback,
    names_pushed_by_run,
    names_pushed_by_task_instance,
    names_pushed_by_tasks,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds between two rounds of attempts, and seconds that one request may take.
PAUSE = 1.0
REQUEST_TIMEOUT = 5.0


class DaiCancelOperationNotifier(BaseNotifier):
    """
    Ask the service to cancel ingests, from an ``on_failure_callback`` or ``on_retry_callback`` of a task or a DAG.

    Without a name and without task ids, a task's callback cancels what that task instance has pushed, and a DAG's
    callback what any task of the run has pushed. A task's callback reaches its own map index only. What is read of a
    task is its XCom ``operation_name``, else a returned string that is the name of an operation.

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
        """
        super(DaiCancelOperationNotifier, copy(self)).__call__(*args)

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Render; also to nothing, where Airflow 2 would keep the template, and with a DAG that has no environment."""
        dag = context.get("dag")
        jinja_env = jinja_env or self.get_template_env(dag if hasattr(dag, "get_template_env") else None)
        for field in self.template_fields:
            setattr(self, field, self.render_template(getattr(self, field), context, jinja_env))

    def notify(self, context: Context) -> None:
        """
        Cancel what is named, or what was pushed.

        :raises AirflowException: after every attempt, when an operation could not be cancelled; the message names it.
        """
        names, problems = self._collect(context)
        if names:
            problems += self._cancel_all(names)
        elif not problems:
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
                names.append(check_operation_name(name))
            except InvalidNameError as error:
                problems.append(str(error))
        return list(dict.fromkeys(names)), problems

    def _pushed(self, context: Context) -> list[object]:
        if self.ingest_task_ids is not None:
            return names_pushed_by_tasks(context, map(str, _given(self.ingest_task_ids)), self.log)
        if self.operation_name is not None:
            return []
        if is_dag_callback(context):
            return names_pushed_by_run(context, self.log)
        return names_pushed_by_task_instance(context, self.log)

    def _source(self, context: Context) -> str:
        """Say where no operation was found."""
        if self.ingest_task_ids is not None:
            return f"{', '.join(map(str, _given(self.ingest_task_ids))) or 'no task'} has pushed none"
        if self.operation_name is not None:
            return "operation_name is empty"
        return f"{'the run' if is_dag_callback(context) else 'the task instance'} has pushed none"

    def _cancel_all(self, names: list[str]) -> list[str]:
        """Request every cancellation, in rounds, until the time is up; return what is wrong with which operation."""
        left = dict.fromkeys(names, "the time was up before it could be cancelled")
        problems: list[str] = []
        try:
            with self._make_hook() as hook:
                deadline = self._clock() + self.timeout
                while left and self._clock() < deadline:
                    for name in list(left):
                        if self._clock() < deadline:
                            self._attempt(hook, name, left, problems)
                    if left:
                        self._sleep(PAUSE)
        except Exception as error:
            # Whatever it is, the log has to name what may still run, and the caller has a failure of its own.
            self.log.exception("The cancellation of %s has broken off", ", ".join(left))
            left = dict.fromkeys(left, str(error))
        return problems + [f"{name} may still run: {reason}" for name, reason in left.items()]

    def _make_hook(self) -> DaiHook:
        """Make a hook whose connection and session stand before the time starts to count."""
        from airflow_dai_provider.hooks.dai import DaiHook

        hook = DaiHook(
            self.gcp_conn_id,
            self.impersonation_chain,
            self.api_endpoint,
            timeout=min(REQUEST_TIMEOUT, check_seconds("timeout", self.timeout)),
            retry_timeout=0,
        )
        hook.get_conn()
        return hook

    def _attempt(self, hook: DaiHook, name: str, left: dict[str, str], problems: list[str]) -> None:
        """Request one cancellation; take the name from ``left`` when that settles it."""
        from google.api_core.exceptions import GoogleAPICallError, NotFound

        try:
            request_cancellation(hook, name, self.log)
        except NotFound as error:
            self.log.info("%s Nothing is left to cancel.", error.message)
        except GoogleAPICallError as error:
            if error_code(error) not in PERMANENT:
                left[name] = error.message
                self.log.warning("%s", error.message)
                return
            problems.append(f"{name} may still run: {error.message}")
        del left[name]


def _given(values: object) -> list[object]:
    """Return one value or several as a list, without what renders to nothing."""
    listed = (
        list(values) if isinstance(values, Collection) and not isinstance(values, str | bytes | Mapping) else [values]
    )
    return [value for value in listed if not is_missing_name(value)]
