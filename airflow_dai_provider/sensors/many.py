"""The pokes of a sensor for a list of operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import ManyWait, some_of
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.operation_list import errors_from_json, errors_to_json, from_dicts, to_dicts
from airflow_dai_provider.metrics import count_finished
from airflow_dai_provider.tasks.failures import check_expected_states, check_many
from airflow_dai_provider.tasks.task_state import TaskState

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.api.polling import Wait
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.sensors.dai import DaiOperationSensor
    from airflow_dai_provider.transport.threads import Workers

#: The key in the task state store.
KEY = "dai_sensor"


class ManyPokes:
    """Poll a list of operations poke by poke, and report how all of them have finished.

    The process keeps from poke to poke what has finished and what cannot be polled, and in ``mode="reschedule"`` so
    does the task state store. Another try keeps only what has finished.

    :param names: the operations, valid names in the order in which they were given.
    """

    def __init__(self, sensor: DaiOperationSensor, context: Context, names: list[str]) -> None:
        self._sensor = sensor
        self._given = names
        self.names = list(dict.fromkeys(names))
        self._expected = check_expected_states(sensor.expected_states)
        self._state = TaskState(context, KEY, sensor.log, lambda: sensor.hook.endpoint.url)
        # An error can have passed by the next try.
        self._try_number = getattr(context.get("ti"), "try_number", None)
        self._many: ManyWait | None = None
        self._workers: Workers[DaiHook] | None = None

    def poke(self, hook: DaiHook, wait: Wait) -> bool:
        """Poll until the service responds, mostly once; return whether each operation has finished.

        :param wait: the wait of this process.
        :raises WaitTimeoutError: when the time is up.
        """
        if self._many is None:
            self._many = ManyWait(self.names, wait, self._expected)
            if self._sensor.reschedule:
                self._load(self._many)
        if not self._many.left:
            return True
        left = len(self._many.left)
        if self._workers is None:
            self._workers = hook.workers(len(self._many.left), wait=wait)
        try:
            hook.poll_many(self._workers, self._many, by_list=True)
        finally:
            if self._sensor.reschedule and len(self._many.left) < left:
                self._save(self._many)
        return not self._many.left

    def close(self) -> None:
        """End the threads."""
        if self._workers:
            self._workers.__exit__(None, None, None)
            self._workers = None

    @property
    def progress(self) -> str:
        """How many have finished, and how."""
        return self._many.progress if self._many else f"0 of {len(self.names):,} finished"

    @property
    def responded(self) -> bool:
        """Whether the service has responded to the last poll."""
        return self._many is not None and self._many.responded

    @property
    def left(self) -> list[str]:
        """The operations that have not been seen to have finished."""
        return list(self._many.left) if self._many else self.names

    @property
    def consequence(self) -> str:
        """What may still run."""
        return f"{some_of(self.left)} may still run" if self.left else ""

    def result(self) -> list[dict[str, Any] | None]:
        """Return the sensor's result, when each operation has finished; see :meth:`conclude`."""
        many = self._many
        return self.conclude(many.finished, many.failed) if many else []

    def conclude(self, finished: dict[str, Operation], errors: dict[str, ServiceError]) -> list[dict[str, Any] | None]:
        """Return the dicts in the order of the names, when the final states are expected.

        :param errors: by name, the errors of those that could not be polled.
        :raises AirflowException: as :func:`check_many`.
        """
        sensor = self._sensor
        for operation in finished.values():
            count_finished(operation.state)
        missing = [name for name, error in errors.items() if error.rpc_code is Code.NOT_FOUND]
        if missing and sensor.missing_ok:
            sensor.log.info("The service does not know %s, and missing_ok is set.", some_of(missing))
            errors = {name: error for name, error in errors.items() if error.rpc_code is not Code.NOT_FOUND}
        with sensor._accept_missing():
            check_many(
                finished.values(),
                self._expected,
                errors,
                total=len(self.names),
                failed="operations could not be polled",
                consequence="They may still run" if errors else "",
            )
        self._state.delete()
        return to_dicts([finished.get(name) for name in self._given])

    def _load(self, many: ManyWait) -> None:
        """Note what earlier pokes have found."""
        saved = self._state.load()
        if not saved:
            return
        try:
            finished = from_dicts(saved["finished"])
            errors = errors_from_json(saved["failed"]) if saved["try_number"] == self._try_number else {}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._sensor.log.warning("Polling all operations again: the task state store cannot be read: %r", error)
            return
        for operation in finished:
            if operation and operation.name in many.left:
                many.finish(operation)
        for name, failure in errors.items():
            if name in many.left:
                many.fail(name, failure)

    def _save(self, many: ManyWait) -> None:
        finished, failed = to_dicts(list(many.finished.values())), errors_to_json(many.failed)
        self._state.save({"finished": finished, "failed": failed, "try_number": self._try_number})
