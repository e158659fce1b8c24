"""The values that a task keeps for its next try or poke, in Airflow's task state store (3.3 and later)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.storable import pack, unpack
from airflow_dai_provider.tasks.failures import log_failure

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class TaskState:
    """One value of a task instance, which outlives its process. The task can do without it, so no error is raised.

    Where Airflow has no task state store, nothing is kept. A value of an earlier try does not count after a clear,
    since the user then wants everything done again, nor at another endpoint, where the same names are of other
    operations.

    :param context: the context of the running task.
    :param key: of the value.
    :param log: says what could not be kept or read.
    :param endpoint: returns the base URL of the service that the value is about; called only if there is a store.
    """

    def __init__(self, context: Context, key: str, log: Any, endpoint: Callable[[], str]) -> None:
        self._store: Any = context.get("task_state_store")
        self._key = key
        self._log = log
        self._endpoint = endpoint
        #: Whether it is known what an earlier try has kept.
        self.available = self._store is not None
        # Airflow raises it at the clear of a task that does not run, and at nothing else.
        self._max_tries: int | None = getattr(context.get("ti"), "max_tries", None)

    def load(self) -> Any:
        """Return the value that was saved last, or None."""
        if self._store is None:
            return None
        try:
            match self._store.get(self._key):
                case {"max_tries": int() | None as max_tries, "endpoint": str(endpoint), "value": str(value)}:
                    if max_tries == self._max_tries and endpoint == self._endpoint():
                        return unpack(value)
        except Exception as error:
            self.available = False
            log_failure(self._log, f"Could not read {self._key} from the task state store", error)
        return None

    def save(self, value: Any) -> None:
        """Save a JSON value in place of the last one."""
        if self._store is None:
            return
        try:
            kept = {"max_tries": self._max_tries, "endpoint": self._endpoint(), "value": pack(value)}
            self._store.set(self._key, kept)
        except Exception as error:
            log_failure(self._log, f"Could not save {self._key} in the task state store", error)

    def delete(self) -> None:
        """Delete the value."""
        if self._store is None:
            return
        try:
            self._store.delete(self._key)
        except Exception as error:
            log_failure(self._log, f"Could not delete {self._key} from the task state store", error)
