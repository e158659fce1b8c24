"""Operator that cancels operations."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, conf

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.parameters import Duration, check_flag, check_seconds
from airflow_dai_provider.metrics import count_finished, time_cancel
from airflow_dai_provider.operators.dai.cancel_many import KEY, CancelMany, in_doubt
from airflow_dai_provider.tasks.arguments import check_literals, explained_names, shows_literals
from airflow_dai_provider.tasks.cancel_requests import KILLED, request_cancellation
from airflow_dai_provider.tasks.deferral import check_deferrable, defer_wait, resumption
from airflow_dai_provider.tasks.events import describe_names, read_event
from airflow_dai_provider.tasks.failures import (
    accept_missing,
    check_expected_states,
    check_final_state,
    refused_parameters,
    task_errors,
)
from airflow_dai_provider.tasks.one_or_many import check_operation_names, given_form
from airflow_dai_provider.tasks.task_state import TaskState
from airflow_dai_provider.tasks.templates import check_rendered_fields, given_fields
from airflow_dai_provider.tasks.xcom import XCOM_OPERATION

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook


class DaiCancelOperationOperator(BaseOperator):
    """Request the cancellation of operations, and wait until they have finished if told to.

    Cancelling is best effort: an operation can still complete, which is not an error. The final state is in the log
    and, if the task waits, in the XCom ``operation``. There, ``already_finished`` says whether the operation had
    finished before the request; it is None if that is not known. If the service refuses the request for a reason other
    than missing access, operations.get decides.

    With a list, every operation is attempted before the task fails because of one of them, and what is known is also
    pushed when the wait times out or ends with an outage. On Airflow 3.3 or later, a retry requests only the
    cancellations that are still missing.

    Follows https://developers.google.com/video-creative-ingest/reference/rest/v1/operations/cancel

    :param operation_name: ``operations/...``, or a list of up to 10,000 (templated). One gives one name and one dict in
        the XComs, a list gives lists in its order.
    :param wait_for_completion: whether to wait until the operation has finished.
    :param expected_states: the final states to accept when the task waits: ``"CANCELLED"``, ``"SUCCEEDED"``,
        ``"FAILED"``; None accepts each, since the aim is that nothing runs (templated).
    :param missing_ok: whether to accept an operation that the service does not know, as one that does not run. That is
        believed when the service says so twice, ten seconds apart.
    :param poll_interval: the most seconds between two polls; the first ones are quicker. A duration is a number of
        seconds, a timedelta, or a text such as ``"90s"`` or ``"6h"``.
    :param timeout: the longest wait, a duration too.
    :param deferrable: whether to wait in the triggerer, which holds no worker slot.
    :param gcp_conn_id: the Google Cloud connection (templated).
    :param impersonation_chain: service account(s) to impersonate (templated).
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own (templated).
    :return: the operation's name, or the list of names, so that a sensor can take ``cancel.output``.
    :raises AirflowFailException: for a permanent error: UNIMPLEMENTED, PERMISSION_DENIED, an invalid name, an unknown
        operation without ``missing_ok``, a final state outside ``expected_states``.
    :raises AirflowException: when the service stays unavailable, or the operation has not finished in time.
    """

    template_fields: Sequence[str] = (
        "operation_name",
        "expected_states",
        "gcp_conn_id",
        "impersonation_chain",
        "api_endpoint",
    )
    ui_color = "#fce8e6"

    #: Replaced in tests. The clock is the epoch's, as a wait can outlive the process.
    _clock: Callable[[], float] = staticmethod(time.time)
    _sleep: Callable[[float], None] = staticmethod(time.sleep)

    _killed = False

    def __init__(
        self,
        *,
        operation_name: str | Sequence[str] | XComArg,
        wait_for_completion: bool = False,
        expected_states: Collection[str | OperationState] | str | None = None,
        missing_ok: bool = False,
        poll_interval: Duration = 30.0,
        timeout: Duration = 3600.0,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
        **kwargs: Any,
    ) -> None:
        with explained_names(type(self), kwargs):
            super().__init__(**kwargs)
        self.operation_name: Any = operation_name  # a string or a list, once it is rendered
        with refused_parameters():
            self.wait_for_completion = check_flag("wait_for_completion", wait_for_completion)
            self.missing_ok = check_flag("missing_ok", missing_ok)
            self.poll_interval = check_seconds("poll_interval", poll_interval)
            self.timeout = check_seconds("timeout", timeout)
            self.deferrable = check_flag("deferrable", deferrable)
        self.expected_states = expected_states
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint
        self._given = given_fields(self)
        with refused_parameters():
            check_literals(self, {"operation_name": check_operation_names, "expected_states": check_expected_states})
            # Those of default_args can be meant for other tasks of the DAG.
            meant = (kwargs.get("default_args") or {}).get("expected_states") is not expected_states
            # Not of a mapped task, which is constructed when it runs: its cancellation would not be requested.
            if expected_states is not None and meant and not self.wait_for_completion and shows_literals(self):
                raise ValueError(
                    "expected_states needs wait_for_completion=True: without it, the task does not see the final state."
                )

    def execute(self, context: Context) -> str | list[str]:
        """Request the cancellation, poll once, wait if told to; return the operation's name, or the list of names."""
        with task_errors():
            names, several = check_operation_names(self.operation_name)
            self.operation_name = given_form(names, several=several)
            check_rendered_fields(self, self._given)
            check_expected_states(self.expected_states)
            if several and self.wait_for_completion and self.deferrable:
                check_deferrable(names)
        if several:
            CancelMany(self, context, names).execute()
            return names
        (name,) = names
        from airflow_dai_provider.hooks.dai import DaiHook

        finished: Operation | None = None
        requested = self._clock()
        with (
            self._accept_missing(),
            task_errors(f"{name} may still run"),
            DaiHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint) as hook,
        ):
            hook.stopped = self._stopped
            state = TaskState(context, KEY, self.log, lambda: hook.endpoint.url)
            operation, already_finished = self._cancel(context, hook, name, state)
            if self.wait_for_completion:
                finished = operation if operation and operation.done else None
                if not finished:
                    if operation is None or already_finished is not None:
                        # Otherwise it was refused, and runs.
                        state.save({"requested": [name]})
                    finished = self._wait(hook, name, requested, already_finished)
        if finished:
            self._finish(context, finished, requested, already_finished=already_finished)
        return name

    def execute_complete(
        self,
        context: Context,
        event: Any = None,
        requested: float | None = None,
        already_finished: bool | None = False,
        **resumed_with: Any,
    ) -> str | list[str]:
        """Finish the task when the wait in the triggerer is over; return the operation's name, or the list of names."""
        if isinstance(self.operation_name, list):
            return CancelMany(self, context, self.operation_name).complete(event, requested=requested, **resumed_with)
        name: str = self.operation_name
        with self._accept_missing():
            operation = read_event(event, name, f"{name} may still run")
            self._finish(context, operation, requested, already_finished=already_finished)
        return name

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the task after a deferral."""
        with task_errors():
            names, several = check_operation_names(self.operation_name)
        self.operation_name = given_form(names, several=several)

        def waited_for() -> str | list[str]:
            return CancelMany(self, context, names).waited_for if several else names[0]

        consequence = f"{describe_names(self.operation_name)} may still run"
        with resumption(self, next_method, next_kwargs, waited_for, consequence=consequence) as resumed:
            return super().resume_execution(*resumed, context)

    def on_kill(self) -> None:
        """Make no further request."""
        self._killed = True

    def _stopped(self) -> str | None:
        return KILLED if self._killed else None

    def _wait(self, hook: DaiHook, name: str, requested: float, already_finished: bool | None) -> Operation:
        """Wait until the operation has finished, in this process or in the triggerer."""
        if not self.deferrable:
            return hook.wait_for_operation(name, timeout=self.timeout, poll_interval=self.poll_interval)
        # Imported here, since DAG files are parsed often and few of their tasks defer.
        from airflow_dai_provider.triggers.dai import DaiOperationTrigger

        resume_with = {"requested": requested, "already_finished": already_finished}
        return defer_wait(
            self, hook, DaiOperationTrigger, name, poll_interval=self.poll_interval, resume_with=resume_with
        )

    def _finish(
        self, context: Context, operation: Operation, requested: float | None, *, already_finished: bool | None
    ) -> None:
        """Report how the operation has finished, and check that its state is expected."""
        self.log.info("%s.", operation)
        count_finished(operation.state)
        if requested is not None and operation.state is OperationState.CANCELLED:
            time_cancel(self._clock() - requested)
        context["ti"].xcom_push(XCOM_OPERATION, operation.to_dict() | {"already_finished": already_finished})
        check_final_state(operation, check_expected_states(self.expected_states))
        TaskState(context, KEY, self.log, str).delete()

    def _accept_missing(self) -> AbstractContextManager[None, bool | None]:
        meaning = "Nothing is left to cancel, and missing_ok is set."
        return accept_missing(self.log, meaning, missing_ok=self.missing_ok)

    def _cancel(
        self, context: Context, hook: DaiHook, name: str, state: TaskState
    ) -> tuple[Operation | None, bool | None]:
        """Request the cancellation, and poll.

        The service has accepted the request by then, so a failed poll after it does not fail the task, except on a
        server that does not support polling at all. A wait polls again.

        :return: the operation as it is then, or None when it could not be polled; and whether it had finished before,
            None where that cannot be told.
        """
        requested_before = False
        if self.wait_for_completion:
            # Its retries cover the endpoint too, without which no state can be read.
            hook.connect()
            requested_before = name in (state.load() or {}).get("requested", ())
        if refused := request_cancellation(hook, name, self.log, waits=self.wait_for_completion):
            return refused, None if in_doubt(context, state) or not refused.done else not requested_before
        try:
            operation = hook.get_operation(name, retry=False)
        except ServiceError as error:
            if error.rpc_code is Code.UNIMPLEMENTED:
                raise
            self.log.warning("The cancellation is requested, but the operation could not be polled yet: %s", error)
            return None, False if requested_before else None
        if requested_before:
            return operation, False
        finished_otherwise = operation.done and operation.state is not OperationState.CANCELLED
        self.log.info("%s%s.", operation, ": it had already finished" if finished_otherwise else "")
        if finished_otherwise and in_doubt(context, state):
            return operation, None
        return operation, finished_otherwise
