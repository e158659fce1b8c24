"""Operator that cancels an operation."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, BaseOperator, conf

from airflow_dai_provider.api.errors import PERMANENT
from airflow_dai_provider.api.names import check_operation_name
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.polling import WaitTimeoutError, check_seconds
from airflow_dai_provider.metrics import time_cancel
from airflow_dai_provider.tasks.cancellation import request_cancellation
from airflow_dai_provider.tasks.deferral import FAILED_DEFERRAL, ended_at_deadline, raise_task_timeout, wait_or_defer
from airflow_dai_provider.tasks.event import read_event
from airflow_dai_provider.tasks.failures import (
    OperationNotFoundError,
    accept_end,
    accept_missing,
    check_expected_states,
    error_code,
    task_errors,
)
from airflow_dai_provider.tasks.xcom import XCOM_OPERATION

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook


class DaiCancelOperationOperator(BaseOperator):
    """
    Ask the service to cancel an operation, and wait for its end if told to.

    Cancelling is best effort: the operation can still complete. What became of it is in the log, and, when the task
    waits, in the XCom ``operation``. An operation that had already finished is no error.

    Follows https://developers.google.com/video-creative-ingest/reference/rest/v1/operations/cancel

    :param operation_name: ``operations/...`` (templated).
    :param wait_for_completion: whether to wait until the operation has ended.
    :param expected_states: the ends to accept when the task waits: ``"CANCELLED"``, ``"SUCCEEDED"``, ``"FAILED"``;
        None accepts each, since the aim is that nothing runs (templated).
    :param missing_ok: whether an operation that the service does not know counts as one that no longer runs.
    :param poll_interval: the most seconds between two looks; the first ones are quicker.
    :param timeout: seconds to wait at most.
    :param deferrable: whether to wait in the triggerer, which holds no worker slot.
    :param gcp_conn_id: the Google Cloud connection (templated).
    :param impersonation_chain: service account(s) to impersonate (templated).
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own (templated).
    :return: the operation's name, so that a sensor can take ``cancel.output``.
    :raises AirflowFailException: for what a retry cannot heal: UNIMPLEMENTED, PERMISSION_DENIED, an invalid name, an
        unknown operation without ``missing_ok``, an end outside ``expected_states``.
    :raises AirflowException: when the service stays unavailable, or the operation has not ended in time.
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

    def __init__(
        self,
        *,
        operation_name: str | XComArg,
        wait_for_completion: bool = False,
        expected_states: Collection[str | OperationState] | str | None = None,
        missing_ok: bool = False,
        poll_interval: float = 30.0,
        timeout: float = 3600.0,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.operation_name: Any = operation_name  # a string, once it is rendered
        self.wait_for_completion = wait_for_completion
        self.expected_states = expected_states
        self.missing_ok = missing_ok
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.deferrable = deferrable
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint

    def execute(self, context: Context) -> str:
        """Request the cancellation, say what the service reports, wait if told to; return the operation's name."""
        check_expected_states(self.expected_states)
        with task_errors():
            name = check_operation_name(self.operation_name)
            check_seconds("poll_interval", self.poll_interval)
            check_seconds("timeout", self.timeout)
        from airflow_dai_provider.hooks.dai import DaiHook

        try:
            with (
                task_errors(f"{name} may still run"),
                DaiHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint) as hook,
            ):
                requested = self._clock()
                operation = self._cancel(hook, name)
                if self.wait_for_completion:
                    if not (operation and operation.done):
                        operation = wait_or_defer(
                            self, hook, name, poll_interval=self.poll_interval, resume_with={"requested": requested}
                        )
                    return self._finish(context, operation, requested)
        except OperationNotFoundError as error:
            self._accept_missing(error)
        return name

    def execute_complete(self, context: Context, event: Any = None, requested: float | None = None) -> str:
        """Go on when the wait in the triggerer is over; return the operation's name."""
        name: str = self.operation_name
        try:
            return self._finish(context, read_event(event, name, f"{name} may still run."), requested)
        except OperationNotFoundError as error:
            self._accept_missing(error)
        except WaitTimeoutError as error:
            raise_task_timeout(self, str(error))
            raise AirflowException(f"{error}. {name} may still run.") from error
        return name

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume; a deferral that Airflow itself has ended says what may still run."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException as error:
            if next_method != FAILED_DEFERRAL:
                raise
            message = f"{self.operation_name} may still run: {error}."
            if ended_at_deadline(next_kwargs):
                raise_task_timeout(self, message)
            raise AirflowException(message) from error

    def _finish(self, context: Context, operation: Operation, requested: float | None) -> str:
        """Say how the operation has ended, and check that it was expected."""
        self.log.info("%s.", operation)
        if requested is not None and operation.state is OperationState.CANCELLED:
            time_cancel(self._clock() - requested)
        context["ti"].xcom_push(XCOM_OPERATION, operation.to_dict())
        accept_end(operation, check_expected_states(self.expected_states))
        return operation.name

    def _accept_missing(self, error: OperationNotFoundError) -> None:
        meaning = "Nothing is left to cancel, and missing_ok is set."
        accept_missing(error, self.log, meaning, missing_ok=self.missing_ok)

    def _cancel(self, hook: DaiHook, name: str) -> Operation | None:
        """Request the cancellation; return what the service then reports, or None when that cannot be seen yet."""
        from google.api_core.exceptions import GoogleAPICallError

        if finished := request_cancellation(hook, name, self.log):
            return finished
        try:
            operation = hook.get_operation(name)
        except GoogleAPICallError as error:
            if error_code(error) in PERMANENT:
                raise
            self.log.warning("The cancellation is requested, but it cannot be seen yet: %s", error.message)
            return None
        finished_otherwise = operation.done and operation.state is not OperationState.CANCELLED
        self.log.info("%s%s.", operation, ": it had already finished" if finished_otherwise else "")
        return operation
