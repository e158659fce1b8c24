"""Sensor for ingests of Google's Video Creative Ingest API (DAI)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import cached_property
from inspect import unwrap
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_dai_provider.api.names import check_operation_name
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.polling import FIRST_INTERVAL, MAX_OUTAGE, WaitTimeoutError, describe_look
from airflow_dai_provider.ingest.guard import IngestGuard
from airflow_dai_provider.tasks.deferral import FAILED_DEFERRAL, defer_wait, ended_at_deadline, raise_task_timeout
from airflow_dai_provider.tasks.event import read_event
from airflow_dai_provider.tasks.failures import (
    OperationNotFoundError,
    UnexpectedEndError,
    accept_end,
    accept_missing,
    check_expected_states,
    task_errors,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook


class DaiOperationSensor(BaseSensorOperator):
    """
    Wait until an operation has ended, and return what the service then reports.

    Follows https://developers.google.com/video-creative-ingest/reference/rest/v1/operations/get

    :param operation_name: ``operations/...`` (templated); takes the output of the task that started or cancelled it.
    :param expected_states: the ends to accept: ``"CANCELLED"``, ``"SUCCEEDED"``, ``"FAILED"``; None accepts each
        (templated). Any other end fails the task with the ingest's reason.
    :param missing_ok: whether an operation that the service does not know ends the wait, with None as the result.
    :param cancel_on_kill: whether the operation is cancelled when the waiting task is killed: marked, cleared, or ended
        with its run, while it is deferred or occupies a worker (not between the pokes of ``mode="reschedule"``, when
        Airflow runs nothing of it).
    :param deferrable: whether to wait in the triggerer, which holds no worker slot; ``poke_interval`` is then the
        longest time between two looks, the first ones being quicker.
    :param gcp_conn_id: the Google Cloud connection (templated).
    :param impersonation_chain: service account(s) to impersonate (templated).
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own (templated).

    Every parameter of Airflow's sensors works too: ``mode`` (``poke`` or ``reschedule``), ``poke_interval`` and
    ``timeout`` in seconds, ``soft_fail`` (an unexpected end and a timeout skip the task; what can never succeed,
    such as UNIMPLEMENTED, still fails it), ``exponential_backoff``, ``max_wait``, ``silent_fail``, ``never_fail``.

    :return: ``Operation.to_dict()``: ``{"name", "state", "done", "error_code", "error_message", "ingest",
        "response", "metadata"}``.
    :raises AirflowFailException: for an unexpected end, and for what a retry cannot heal.
    :raises AirflowSensorTimeout: when the operation has not ended in time; nothing is cancelled.
    :raises AirflowException: when the service stays unavailable.
    """

    template_fields: Sequence[str] = (
        "operation_name",
        "expected_states",
        "gcp_conn_id",
        "impersonation_chain",
        "api_endpoint",
    )
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        operation_name: str | XComArg,
        expected_states: Collection[str | OperationState] | str | None = (
            OperationState.CANCELLED.value,
            OperationState.SUCCEEDED.value,
        ),
        missing_ok: bool = False,
        cancel_on_kill: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.operation_name: Any = operation_name  # a string, once it is rendered
        self.expected_states = expected_states
        self.missing_ok = missing_ok
        self.cancel_on_kill = cancel_on_kill
        self.deferrable = deferrable
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint

    #: Made by the process that pokes, if a kill is to cancel.
    _guard: IngestGuard | None = None
    _killed = False

    @cached_property
    def hook(self) -> DaiHook:
        """The hook, kept from poke to poke with its session and token."""
        from airflow_dai_provider.hooks.dai import DaiHook

        return DaiHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint)

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Wait until the operation has ended; return its dict, or None for one that is missing."""
        try:
            if self.deferrable:
                return self._defer(context)
            # Unwrapped, since Airflow 2 takes a second pass through its guard for a call from outside a task.
            result: dict[str, Any] | None = unwrap(BaseSensorOperator.execute)(self, context)
        except AirflowSkipException as skip:
            if failure := self._failure_behind(skip):
                raise failure from failure.__cause__
            raise self._timed_out(skip) if skip.__cause__ is None else skip from skip.__cause__
        except AirflowSensorTimeout as timeout:
            raise self._timed_out(timeout) from timeout
        else:
            return result
        finally:
            if self._guard:
                self._guard.settle()
            self._close_hook()

    def on_kill(self) -> None:
        """Request the cancellation, if told to, when the poking task is killed; Airflow calls this in a handler."""
        self._killed = True
        if self._guard:
            self._guard.kill()

    def poke(self, context: Context) -> PokeReturnValue:  # noqa: ARG002 - Airflow's signature
        """Look once; done with the operation's dict (None for a missing one) as the sensor's result."""
        check_expected_states(self.expected_states)
        try:
            with task_errors():
                name = check_operation_name(self.operation_name)
                self._watch_for_kill(name)
                operation = self.hook.get_operation(name)
        except OperationNotFoundError as error:
            self._accept_missing(error)
            return PokeReturnValue(is_done=True)
        if not operation.done:
            self._last_look = operation
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._accept(operation))

    def _watch_for_kill(self, name: str) -> None:
        """Be ready for a kill before the first look, which can take a minute when the service is away."""
        if self.cancel_on_kill and not self._guard:
            guard = IngestGuard(on_kill=True, on_failure=False, log=self.log)
            guard.take(self.hook, name)
            self._guard = guard
            if self._killed:
                # While the hook was being made.
                guard.kill()

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any] | None:  # noqa: ARG002
        """Go on when the wait in the triggerer is over; return the operation's dict, or None for a missing one."""
        try:
            return self._accept(read_event(event, self.operation_name))
        except OperationNotFoundError as error:
            self._accept_missing(error)
            return None
        except WaitTimeoutError as error:
            raise_task_timeout(self, str(error))
            raise AirflowSensorTimeout(f"{error}. {self.operation_name} may still run.") from error

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume; what ends the wait means the same as in poke mode, which the sensor base does not see to."""
        try:
            # Not the sensor base's own method: it makes a skip of every error.
            return super(BaseSensorOperator, self).resume_execution(next_method, next_kwargs, context)
        except AirflowException as error:
            if ended_at_deadline(next_kwargs):
                error = AirflowSensorTimeout(f"{self.operation_name} may still run: {error}.")
                raise_task_timeout(self, str(error))
            elif next_method == FAILED_DEFERRAL:
                error = AirflowException(f"{self.operation_name} may still run: {error}.")
            self._raise_as_in_poke_mode(error)

    def _defer(self, context: Context) -> dict[str, Any] | None:
        """Look once, and hand the wait over unless it is over."""
        try:
            first = self.poke(context)
            if first.is_done:
                result: dict[str, Any] | None = first.xcom_value
                return result
        except AirflowException as error:
            if not self.silent_fail or isinstance(error, AirflowFailException):
                self._raise_as_in_poke_mode(error)
            self.log.warning("The first look has failed: %s", error)
        return defer_wait(
            self,
            self.operation_name,
            poll_interval=max(self._longest_interval(), FIRST_INTERVAL),
            max_outage=None if self.silent_fail else MAX_OUTAGE,
            cancel_on_kill=self.cancel_on_kill,
        )

    def _longest_interval(self) -> float:
        """Return the most seconds between two looks of the trigger, whose interval grows by itself."""
        if not self.exponential_backoff:
            return float(self.poke_interval)
        return self.max_wait.total_seconds() if self.max_wait else max(self.timeout, self.poke_interval)

    def _accept_missing(self, error: OperationNotFoundError) -> None:
        accept_missing(error, self.log, "The wait is over, since missing_ok is set.", missing_ok=self.missing_ok)

    def _accept(self, operation: Operation) -> dict[str, Any]:
        """Return the sensor's result, when the operation has ended as expected."""
        self.log.info("%s.", operation)
        return accept_end(operation, check_expected_states(self.expected_states)).to_dict()

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        """Log the look; the base asks here for the interval, and only here are both times known in every mode."""
        interval: float = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        if last_look := self.__dict__.pop("_last_look", None):
            self.log.info("%s", describe_look(last_look, run_duration(), interval))
        return interval

    def _timed_out(self, error: AirflowException) -> AirflowException:
        """Return the sensor base's timeout with what it leaves behind, and log the last look."""
        if last_look := self.__dict__.pop("_last_look", None):
            self.log.info("%s.", last_look)
        return type(error)(f"{error} {self.operation_name} may still run.")

    def _failure_behind(self, skip: AirflowSkipException) -> AirflowException | None:
        """Return what must fail the task although the sensor base made a skip of it: what can never succeed."""
        cause = skip.__cause__
        if self.soft_fail and isinstance(cause, AirflowFailException) and not isinstance(cause, UnexpectedEndError):
            return cause
        return None

    def _raise_as_in_poke_mode(self, error: AirflowException) -> NoReturn:
        """Raise an error as what it is under ``soft_fail`` and ``never_fail``."""
        if isinstance(error, AirflowSensorTimeout):
            skipped = self.soft_fail
        else:
            skipped = self.never_fail or (self.soft_fail and isinstance(error, UnexpectedEndError))
        if skipped:
            raise AirflowSkipException(str(error)) from error
        raise error

    def _close_hook(self) -> None:
        if hook := self.__dict__.pop("hook", None):
            hook.close()
