"""What the process of a task knows of the ingest that it has started, and how that is cancelled from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.cancellation import request_cancellation

if TYPE_CHECKING:
    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds that connecting, and then the answer, may take on a kill: Airflow 3 ends the process 5 s after it.
KILL_TIMEOUT = 1.8


class IngestGuard:
    """
    Guards one ingest at a time, from its start until it has ended, is cancelled, or is meant to run on.

    :param on_kill: whether a killed task cancels its ingest.
    :param on_failure: whether a failed task does.
    :param log: says what was requested, and what may still run.
    """

    def __init__(self, *, on_kill: bool, on_failure: bool, log: Any) -> None:
        self._on_kill = on_kill
        self._on_failure = on_failure
        self._log = log
        self._cancel_now: Callable[[], None] | None = None
        self._settled = False
        #: The ingest that was taken last.
        self.operation_name: str | None = None
        #: Whether the task has been killed; it still runs for a while.
        self.killed = False

    @property
    def has_nothing_to_do(self) -> bool:
        """Whether a failure leaves nothing to cancel, or nothing that may be cancelled."""
        return self._settled or not self._on_failure or (self.killed and not self._on_kill)

    def take(self, hook: DaiHook, name: str) -> None:
        """Guard an ingest from now on."""
        self.operation_name = name
        self._settled = False
        if self._on_kill:
            self._cancel_now = hook.prepare_cancellation(name, timeout=KILL_TIMEOUT)
        if self.killed:
            # It was killed while the service was being asked to start this.
            self.kill()

    def settle(self) -> None:
        """Guard it no longer: it has ended, or is meant to run on. A late kill must not cancel it."""
        self._settled = True
        self._cancel_now = None

    def kill(self) -> None:
        """
        Request the cancellation from a signal handler.

        The task can be anywhere, so nothing of Airflow is asked here, and nothing that the task uses is touched.
        """
        self.killed = True
        cancel, self._cancel_now = self._cancel_now, None
        if cancel is None:
            return
        try:
            cancel()
        except Exception as error:
            self._log.error("%s may still run: its task was killed, but %s", self.operation_name, error)
        else:
            self._log.info("Requested the cancellation of %s: its task was killed.", self.operation_name)
            self._settled = True

    def cancel(self, make_hook: Callable[[], DaiHook], names: list[str]) -> None:
        """Request the cancellation after a failure, which this never hides."""
        try:
            with make_hook() as hook:
                for name in names:
                    request_cancellation(hook, name, self._log)
        except Exception as error:
            self._log.error("%s may still run: it could not be cancelled: %s", ", ".join(names), error)
        else:
            self.settle()
