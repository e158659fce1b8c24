"""Sensor for ingests of Google's Video Creative Ingest API (DAI)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_dai_provider.names import check_operation_name
from airflow_dai_provider.operation import OperationState
from airflow_dai_provider.outcome import UnexpectedEndError, accept_end, check_expected_states, task_errors
from airflow_dai_provider.polling import describe_look

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.operation import Operation


class DaiOperationSensor(BaseSensorOperator):
    """
    Wait until an operation has ended, and return what the service then reports.

    Follows https://developers.google.com/video-creative-ingest/reference/rest/v1/operations/get

    :param operation_name: ``operations/...`` (templated); takes the output of the task that started or cancelled it.
    :param expected_states: the ends to accept: ``"CANCELLED"``, ``"SUCCEEDED"``, ``"FAILED"``; None accepts each
        (templated). Any other end fails the task with the ingest's reason.
    :param missing_ok: whether an operation that the service does not know ends the wait, with None as the result.
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
        operation_name: str,
        expected_states: Collection[str | OperationState] | str | None = (
            OperationState.CANCELLED.value,
            OperationState.SUCCEEDED.value,
        ),
        missing_ok: bool = False,
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.operation_name = operation_name
        self.expected_states = expected_states
        self.missing_ok = missing_ok
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint

    @cached_property
    def hook(self) -> DaiHook:
        """The hook, kept from poke to poke with its session and token."""
        from airflow_dai_provider.hooks.dai import DaiHook

        return DaiHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint)

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Poke until the operation has ended; return its dict, or None for one that is missing."""
        try:
            result: dict[str, Any] | None = super().execute(context)
        except AirflowSkipException as skip:
            raise self._failure_behind(skip) or skip from skip.__cause__
        except AirflowSensorTimeout as timeout:
            raise AirflowSensorTimeout(f"{timeout} {self.operation_name} may still run.") from timeout
        finally:
            self._close_hook()
        return result

    def poke(self, context: Context) -> PokeReturnValue:  # noqa: ARG002 - Airflow's signature
        """Look once; done with the operation's dict (None for a missing one) as the sensor's result."""
        expected = check_expected_states(self.expected_states)
        with task_errors():
            operation = self._look(check_operation_name(self.operation_name))
        if operation is None:
            return PokeReturnValue(is_done=True)
        if not operation.done:
            self._last_look = operation
            return PokeReturnValue(is_done=False)
        self.log.info("%s.", operation)
        return PokeReturnValue(is_done=True, xcom_value=accept_end(operation, expected).to_dict())

    def _look(self, name: str) -> Operation | None:
        from google.api_core.exceptions import NotFound

        try:
            return self.hook.get_operation(name)
        except NotFound as error:
            if not self.missing_ok:
                raise
            self.log.info("%s The wait is over, since missing_ok is set.", error.message)
            return None

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        """Log the look; the base asks here for the interval, and only here are both times known in every mode."""
        interval: float = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        if last_look := self.__dict__.pop("_last_look", None):
            self.log.info("%s", describe_look(last_look, run_duration(), interval))
        return interval

    def _failure_behind(self, skip: AirflowSkipException) -> AirflowFailException | None:
        """Return what must fail the task although the sensor base made a skip of it: what can never succeed."""
        cause = skip.__cause__
        if self.soft_fail and isinstance(cause, AirflowFailException) and not isinstance(cause, UnexpectedEndError):
            return cause
        return None

    def _close_hook(self) -> None:
        if hook := self.__dict__.pop("hook", None):
            hook.close()
