"""Sensor for ingests of Google's Video Creative Ingest API (DAI)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
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

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.parameters import check_flag, check_seconds
from airflow_dai_provider.api.polling import FIRST_INTERVAL, MAX_OUTAGE, WaitTimeoutError, describe_poll
from airflow_dai_provider.ingest.guard import IngestGuard
from airflow_dai_provider.metrics import count_finished
from airflow_dai_provider.sensors.many import ManyPokes
from airflow_dai_provider.tasks.arguments import check_literals, explained_names
from airflow_dai_provider.tasks.deferral import check_deferrable, defer_wait, resumption
from airflow_dai_provider.tasks.events import describe_names, read_event, read_many_event
from airflow_dai_provider.tasks.failures import (
    UnexpectedStateError,
    accept_missing,
    check_expected_states,
    check_final_state,
    refused_parameters,
    task_errors,
)
from airflow_dai_provider.tasks.one_or_many import check_operation_names, given_form
from airflow_dai_provider.tasks.templates import check_rendered_fields, given_fields
from airflow_dai_provider.version_compat import first_poke_time

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.api.polling import Wait
    from airflow_dai_provider.hooks.dai import DaiHook


#: Parameters of Airflow's sensors.
_SENSOR_FLAGS = frozenset({"soft_fail", "silent_fail", "never_fail", "exponential_backoff"})
_SENSOR_DURATIONS = frozenset({"poke_interval", "timeout", "max_wait"})


class DaiOperationSensor(BaseSensorOperator):
    """Wait until operations have finished, and return what the service then reports.

    Follows https://developers.google.com/video-creative-ingest/reference/rest/v1/operations/get

    :param operation_name: ``operations/...``, or a list of up to 10,000 (templated); takes the output of the task that
        started or cancelled them. The wait for a list is over when each has finished; an unexpected
        final state is logged when it is seen.
    :param expected_states: the final states to accept: ``"CANCELLED"``, ``"SUCCEEDED"``, ``"FAILED"``; None accepts
        each (templated). Any other final state fails the task with the ingest's reason.
    :param missing_ok: whether an operation that the service does not know ends the wait, with None as the result.
    :param cancel_on_kill: whether the operation is cancelled when the waiting task is killed: marked, cleared, or
        stopped with its run, while it is deferred or occupies a worker. Between the pokes of ``mode="reschedule"``
        Airflow runs nothing of the task, so nothing is cancelled then.
    :param deferrable: whether to wait in the triggerer, which holds no worker slot; ``poke_interval`` is then the
        longest time between two polls, the first ones being quicker.
    :param gcp_conn_id: the Google Cloud connection (templated).
    :param impersonation_chain: service account(s) to impersonate (templated).
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own (templated).

    Every parameter of Airflow's sensors works too: ``mode`` (``poke`` or ``reschedule``), ``poke_interval``,
    ``timeout`` and ``max_wait`` (numbers of seconds, timedeltas, or texts such as ``"90s"`` and ``"6h"``),
    ``soft_fail`` (an unexpected final state and a timeout skip the task; a permanent error, such as UNIMPLEMENTED,
    still fails it), ``exponential_backoff``, ``silent_fail``, ``never_fail``.

    An outage of the service is tolerated for five minutes in every mode, counted from the first failed poll. In
    ``poke`` and ``reschedule`` mode, the poke during which the outage begins keeps polling, even when the next poke
    would be due, because Airflow carries no state from one poke to the next. NOT_FOUND is believed in the same way,
    after ten seconds. A deferrable sensor whose first poll fails leaves the outage to the triggerer.

    In a list, an operation that has finished or cannot be polled is not polled again, except once when the wait moves
    to the triggerer. On Airflow 3.3 or later, the pokes of ``mode="reschedule"`` keep these results in the task state
    store; on earlier versions, each poke polls the whole list.

    :return: ``Operation.to_dict()``: ``{"name", "state", "done", "error_code", "error_message", "creative_name",
        "ingest", "response", "metadata"}``; of a list, the list of them in its order.
    :raises AirflowFailException: for an unexpected final state, and for a permanent error.
    :raises AirflowSensorTimeout: when the operation has not finished in time; nothing is cancelled.
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
        operation_name: str | Sequence[str] | XComArg,
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
        with refused_parameters():
            # Before and after: Airflow itself fails on a large one, or on a text, and has a default of its own.
            kwargs |= {name: _check_duration(name, kwargs[name]) for name in _SENSOR_DURATIONS & kwargs.keys()}
            default_args = dict(kwargs.get("default_args") or {})
            for name in _SENSOR_DURATIONS & default_args.keys() - kwargs.keys():
                default_args[name] = _check_duration(name, default_args[name])
            with explained_names(type(self), kwargs):
                super().__init__(**kwargs | {"default_args": default_args})
            for name in _SENSOR_DURATIONS:
                _check_duration(name, getattr(self, name))
            for name in _SENSOR_FLAGS:
                check_flag(name, getattr(self, name))
            self.missing_ok = check_flag("missing_ok", missing_ok)
            self.cancel_on_kill = check_flag("cancel_on_kill", cancel_on_kill)
            self.deferrable = check_flag("deferrable", deferrable)
        self.operation_name: Any = operation_name  # a string or a list, once it is rendered
        self.expected_states = expected_states
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint
        self._given = given_fields(self)
        with refused_parameters():
            check_literals(self, {"operation_name": check_operation_names, "expected_states": check_expected_states})

    #: The guard of the process that pokes, if ``cancel_on_kill`` is set.
    _guard: IngestGuard | None = None
    _killed = False
    #: The wait that the pokes of this process belong to, and the sentence on its last failed poll when its time was up.
    _wait: Wait | None = None
    _last_failure = ""
    #: The result of the last poll until it is logged; not set before the first poll.
    _last_poll: Operation | str
    #: The pokes of this process, where a list was given.
    _many: ManyPokes | None = None

    #: Replaced in tests. The clock is the epoch's, as the first poke can have been in another process.
    _clock: Callable[[], float] = staticmethod(time.time)

    @cached_property
    def hook(self) -> DaiHook:
        """The hook, kept from poke to poke with its session and token."""
        from airflow_dai_provider.hooks.dai import DaiHook

        return DaiHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint)

    def execute(self, context: Context) -> Any:
        """Wait until the operations have finished; return the dict, or None if the service does not know it.

        :return: of a list, the list of them.
        """
        try:
            if self.deferrable:
                return self._defer(context)
            # Unwrapped: Airflow 2 wraps execute in a check, which takes a second call for one from outside a task.
            return unwrap(BaseSensorOperator.execute)(self, context)
        except AirflowSkipException as skip:
            if failure := self._permanent_error_behind(skip):
                raise failure from failure.__cause__
            raise self._timed_out(skip) if skip.__cause__ is None else skip from skip.__cause__
        except AirflowSensorTimeout as timeout:
            raise self._timed_out(timeout) from timeout
        finally:
            if self._guard:
                self._guard.disarm()
                self._guard.close()
            if self._many:
                self._many.close()
            if hook := self.__dict__.pop("hook", None):
                hook.close()

    def on_kill(self) -> None:
        """Request the cancellation when the task is killed while it pokes; Airflow calls this from a signal handler."""
        self._killed = True
        if self._guard:
            self._guard.kill()

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll until the service responds, mostly once.

        When each operation has finished, its dict (or None if it is unknown), or the list of them, is the sensor's
        result.
        """
        check_expected_states(self.expected_states)
        result = PokeReturnValue(is_done=True)
        with task_errors():
            names, several = self._read_names()
        if several:
            return self._poke_many(context, names)
        (name,) = names
        with self._accept_missing(), task_errors(f"{name} may still run"):
            self._arm(names)
            if self._wait is None:
                self._wait = self._begin_wait(name, context)
            try:
                operation = self.hook.poll(self._wait)
            except WaitTimeoutError as error:
                # The sensor base ends the wait, since its own timeout has passed too.
                self._last_failure = f"{error}."
                result.is_done = False
                return result
            self._arm(names)
            if operation.done:
                result.xcom_value = self._accept(operation)
            else:
                self._last_poll = operation
                result.is_done = False
        return result

    def _poke_many(self, context: Context, names: list[str]) -> PokeReturnValue:
        """Poll each of many operations that has not finished."""
        many = self._many = self._many or ManyPokes(self, context, names)
        if done := not names:
            self.log.info("The list of operations is empty: there is nothing to wait for.")
        with task_errors(many.consequence):
            if self._wait is None:
                self._wait = self._begin_wait(describe_names(many.names), context)
            self._arm(many.names)
            try:
                done = done or many.poke(self.hook, self._wait)
                self._last_failure = ""
            except WaitTimeoutError as error:
                self._last_failure = "" if many.responded else f"{error}."
            self._arm(many.names)
        if self._guard:
            self._guard.finished = set(many.names).difference(many.left)
        if done:
            return PokeReturnValue(is_done=True, xcom_value=many.result())
        if many.responded:
            self._last_poll = many.progress
        return PokeReturnValue(is_done=False)

    def _read_names(self) -> tuple[list[str], bool]:
        """Return the operations of the rendered field, and whether a list was given."""
        names, several = check_operation_names(self.operation_name)
        self.operation_name = given_form(names, several=several)
        check_rendered_fields(self, self._given)
        return names, several

    def _begin_wait(self, name: str, context: Context) -> Wait:
        """Return the wait of this process; in reschedule mode it goes on from the first poke."""
        first = first_poke_time(self, context) if self.reschedule and not self.deferrable else None
        elapsed = self._clock() - first.timestamp() if first else 0.0
        return self.hook.make_wait(
            name,
            # The base keeps to a shorter interval, but a failed poll is not retried sooner.
            poll_interval=max(self._longest_interval(), FIRST_INTERVAL),
            # Before it defers, a sensor polls once.
            timeout=0.0 if self.deferrable else self.timeout,
            # With silent_fail, the base pokes again after any outage, so in poke mode one poke may as well outlast it.
            max_outage=MAX_OUTAGE if self.reschedule and not self.deferrable else self._max_outage,
            elapsed=elapsed,
            # A poke that had met an outage would not have rescheduled.
            responded=elapsed > 0,
        )

    @property
    def _max_outage(self) -> float | None:
        return None if self.silent_fail else MAX_OUTAGE

    def _arm(self, names: list[str]) -> None:
        """Arm the guard before the first poll, which can take a minute when the service is unavailable.

        If the connection cannot be looked up now, the poll that follows meets the same error, and the wait decides
        what it means; the guard is armed after that poll.
        """
        if self.cancel_on_kill and not self._guard:
            guard = IngestGuard(on_kill=True, on_failure=False, log=self.log)
            try:
                guard.prepare(self.hook, len(names))
                for name in names:
                    guard.arm(self.hook, name)
            except ServiceError:
                return
            self._guard = guard
            if self._killed:
                # The kill came before there was a guard, while the hook was being made.
                guard.kill()

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Finish the task when the wait in the triggerer is over; return what :meth:`execute` does."""
        if isinstance(self.operation_name, list):
            many = ManyPokes(self, context, self.operation_name)
            return many.conclude(*read_many_event(event, many.names, many.consequence))
        result = None
        with self._accept_missing():
            result = self._accept(read_event(event, self.operation_name, f"{self.operation_name} may still run"))
        return result  # noqa: RET504 - None where a missing operation is accepted

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the task after a deferral; errors mean the same as in poke mode."""
        try:
            with task_errors():
                names, several = self._read_names()
            with resumption(
                self,
                next_method,
                next_kwargs,
                list(dict.fromkeys(names)) if several else names[0],
                consequence=f"{describe_names(self.operation_name)} may still run",
                timeout_error=AirflowSensorTimeout,
            ) as resumed:
                # Not the method of the sensor base: with soft_fail it turns every error into a skip.
                return super(BaseSensorOperator, self).resume_execution(*resumed, context)
        except AirflowException as error:
            self._raise_as_in_poke_mode(error)

    def _defer(self, context: Context) -> Any:
        """Poll once, and defer unless each operation has finished."""
        names: list[str] = []
        several = False
        try:
            with task_errors():
                names, several = self._read_names()
                if several:
                    check_deferrable(names)
            first = self.poke(context)
            if first.is_done:
                return first.xcom_value
        except AirflowException as error:
            if not self.silent_fail or isinstance(error, AirflowFailException):
                self._raise_as_in_poke_mode(error)
            self.log.warning("The first poll failed: %s", error)
        if self._last_failure:
            self.log.warning("The first poll failed: %s", self._last_failure)
        # Imported here, since DAG files are parsed often and few of their tasks defer.
        from airflow_dai_provider.triggers.dai import DaiOperationTrigger

        return defer_wait(
            self,
            self.hook,
            DaiOperationTrigger,
            list(dict.fromkeys(names)) if several else names[0],
            poll_interval=max(self._longest_interval(), FIRST_INTERVAL),
            expected_states=check_expected_states(self.expected_states) if several else None,
            max_outage=self._max_outage,
            cancel_on_kill=self.cancel_on_kill,
        )

    def _longest_interval(self) -> float:
        """Return the most seconds between two polls of the trigger, whose interval grows by itself."""
        if not self.exponential_backoff:
            return float(self.poke_interval)
        return self.max_wait.total_seconds() if self.max_wait else max(self.timeout, self.poke_interval)

    def _accept_missing(self) -> AbstractContextManager[None, bool | None]:
        return accept_missing(self.log, "The wait is over, since missing_ok is set.", missing_ok=self.missing_ok)

    def _accept(self, operation: Operation) -> dict[str, Any]:
        """Return the sensor's result when the final state is expected."""
        self.log.info("%s.", operation)
        count_finished(operation.state)
        return check_final_state(operation, check_expected_states(self.expected_states)).to_dict()

    def _get_next_poke_interval(
        self, started_at: datetime | float, run_duration: Callable[[], float], poke_count: int
    ) -> float:
        """Log the poll: the sensor base asks for the interval here, where both times are known in every mode."""
        interval: float = super()._get_next_poke_interval(started_at, run_duration, poke_count)
        if last_poll := self.__dict__.pop("_last_poll", None):
            self.log.info("%s", describe_poll(last_poll, run_duration(), interval))
        return interval

    def _timed_out(self, error: AirflowException) -> AirflowException:
        """Log the last poll; return the timeout of the sensor base, extended by what may still run."""
        if last_poll := self.__dict__.pop("_last_poll", None):
            self.log.info("%s.", last_poll)
        left = self._many.consequence if self._many else f"{self.operation_name} may still run"
        return type(error)(" ".join(filter(None, (str(error), self._last_failure, f"{left}."))))

    def _permanent_error_behind(self, skip: AirflowSkipException) -> AirflowException | None:
        """Return the permanent error that the sensor base has turned into a skip, and that must fail the task."""
        cause = skip.__cause__
        if self.soft_fail and isinstance(cause, AirflowFailException) and not isinstance(cause, UnexpectedStateError):
            return cause
        return None

    def _raise_as_in_poke_mode(self, error: AirflowException) -> NoReturn:
        """Raise an error, or the skip that ``soft_fail`` or ``never_fail`` makes of it."""
        if isinstance(error, AirflowSensorTimeout):
            skipped = self.soft_fail
        else:
            skipped = self.never_fail or (self.soft_fail and isinstance(error, UnexpectedStateError))
        if skipped:
            raise AirflowSkipException(str(error)) from error
        raise error


def _check_duration(name: str, value: object) -> float | None:
    """Return a duration of a sensor in seconds; ``timeout=0`` means one poke."""
    return None if value is None else check_seconds(name, value, zero=name == "timeout")
