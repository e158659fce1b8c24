"""Airflow 3 as in production: workers of Celery, two triggerers, and an API server with two processes."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

from stack_airflow_3 import Airflow3Stack
from stack_waits import wait_until

from tests.support.processes import kill, processes_of

#: What a worker logs once it takes tasks.
READY = " ready."
#: Tasks at a time in one of the two workers.
CONCURRENCY = "12"


class CeleryStack(Airflow3Stack):
    """
    Airflow 3 with the CeleryExecutor, which needs PostgreSQL.

    :param broker: the URL of an empty Redis.
    """

    runs_tasks = ("worker", "second-worker")

    def __init__(self, home: Path, dags: Path, env: Mapping[str, str] | None, database: str, broker: str) -> None:
        self.broker = broker
        super().__init__(home, dags, env, database)

    def _settings(self, dags: Path) -> dict[str, str]:
        settings = super()._settings(dags)
        worker = ["celery", "worker", "--skip-serve-logs", "--concurrency", CONCURRENCY, "--celery-hostname"]
        self.components = {
            **self.components,
            "api-server": [*self.components["api-server"][:-1], "2"],
            "second-triggerer": self.components["triggerer"],
            "worker": [*worker, "first@localhost"],
            "second-worker": [*worker, "second@localhost"],
        }
        return settings | {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CELERY__BROKER_URL": self.broker,
            # By default 5 s, four times; on a busy machine, Airflow then fails a task that has not begun.
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "30",
        }

    def start(self) -> None:
        super().start()
        for worker in self.runs_tasks:
            self.wait_for_worker(worker)

    def end_worker(self, component: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Signal the main process of a worker; SIGKILL all its processes, as the loss of its machine does."""
        leader = self.processes[component]
        if how != signal.SIGKILL:
            leader.send_signal(how)
            return
        kill(*processes_of(leader.pid))
        leader.wait()
        del self.processes[component]

    def revive(self) -> None:
        """Start again what has exited, as the supervisor of a service does."""
        for component, process in list(self.processes.items()):
            if process.poll() is not None:
                self.start_component(component)

    def wait_for_worker(self, component: str, times: int = 1) -> None:
        """Wait until a worker that has been started this many times takes tasks."""
        log = self.home / f"{component}.log"
        wait_until(f"the {component}", lambda: log.read_text(errors="replace").count(READY) >= times, 120, 0.3)
