"""Base class of the Airflows under test: home, environment, processes and logs."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from stack_waits import StackError, wait_until

from tests.support.processes import command_line, free_port, kill, processes_of, signal_group

LOOPBACK = "127.0.0.1"
#: Seconds that all components together have to stop, before they are killed.
STOP_SECONDS = 20.0
#: The triggerer always takes 10 s to stop, even when it runs nothing; a worker waits for its tasks.
SLOW_TO_STOP = ("triggerer", "worker")
#: Seconds that those have.
SLOW_STOP_SECONDS = 1.0
#: Seconds that a process waits for a lock of the SQLite database. Most processes exit when it is not enough.
LOCK_SECONDS = 60.0


class AirflowStack:
    """
    An Airflow in an AIRFLOW_HOME of its own, whose processes are stopped by group.

    :param home: AIRFLOW_HOME; recreated at each start, with a copy of a migrated database that is kept beside it.
    :param dags: the folder with the DAG files.
    :param env: additional environment variables.
    :param database: the URL of an empty database, instead of SQLite in the home.
    """

    components: Mapping[str, list[str]]

    def __init__(
        self, home: Path, dags: Path, env: Mapping[str, str] | None = None, database: str | None = None
    ) -> None:
        self.home = home.resolve()
        self.database = database
        self.migrated = self.home.parent / f"migrated-{version('apache-airflow')}.db"
        self.port = free_port()
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("AIRFLOW", "GOOGLE_", "DAI_")) and not key.lower().endswith("_proxy")
        }
        self.env = inherited | self._settings(dags.resolve()) | dict(env or {})
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._sessions: set[int] = set()

    def _settings(self, dags: Path) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__FERNET_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._database(LOCK_SECONDS),
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
        }

    def _database(self, lock_seconds: float) -> str:
        return self.database or f"sqlite:///{self.home}/airflow.db?timeout={lock_seconds}"

    def _env_of(self, component: str) -> dict[str, str]:  # noqa: ARG002 (another Airflow's components differ)
        return self.env

    def __enter__(self) -> AirflowStack:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Create an empty home, start every component, and wait until all are healthy."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        database = self.home / "airflow.db"
        if self.database:
            self.airflow("db", "migrate")
        elif self.migrated.exists():
            shutil.copyfile(self.migrated, database)
        else:
            self.airflow("db", "migrate")
            shutil.copyfile(database, f"{self.migrated}.{os.getpid()}")
            Path(f"{self.migrated}.{os.getpid()}").replace(self.migrated)
        for component in self.components:
            self.start_component(component)
        self._wait_until_healthy()

    def stop(self) -> None:
        """Stop every process that was started here, and its children."""
        for process in self.processes.values():
            signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for component, process in self.processes.items():
            patient = kind_of(component) not in SLOW_TO_STOP
            left = max(0.0, deadline - time.monotonic()) if patient else SLOW_STOP_SECONDS
            try:
                process.wait(left)
            except subprocess.TimeoutExpired:
                if patient:
                    print(f"{component} did not stop in time and was killed", file=sys.stderr)
            signal_group(process, signal.SIGKILL)
            process.wait()
        # Some children lead a process group of their own.
        kill(*processes_of(*self._sessions))
        self.processes.clear()
        self._sessions.clear()

    def start_component(self, component: str) -> None:
        """Start a component; ``second-triggerer`` and ``another-triggerer`` are further triggerers."""
        arguments = self.components.get(component) or self.components[kind_of(component)]
        with (self.home / f"{component}.log").open("ab") as log:
            self.processes[component] = subprocess.Popen(
                [self._airflow_command(), *arguments],
                env=self._env_of(kind_of(component)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions.add(self.processes[component].pid)

    def kill_component(self, component: str, how: signal.Signals = signal.SIGKILL) -> None:
        process = self.processes.pop(component)
        signal_group(process, how)
        process.wait()

    def restart_component(self, component: str) -> None:
        """Start a killed component again, and wait until all are healthy."""
        self.start_component(component)
        self._wait_until_healthy()

    @property
    def triggerers(self) -> list[str]:
        """The triggerers that run."""
        return [component for component in self.processes if kind_of(component) == "triggerer"]

    def kill_triggerers(self) -> None:
        for component in self.triggerers:
            self.kill_component(component)

    def start_triggerers(self) -> None:
        """Start those triggerers that an undisturbed Airflow has."""
        for component in self.components:
            if kind_of(component) == "triggerer":
                self.start_component(component)

    def lose_scheduler(self) -> None:
        """Kill the scheduler alone; its running tasks become orphans and continue."""
        process = self.processes.pop("scheduler")
        process.kill()
        process.wait()

    def pause_component(self, component: str) -> None:
        """Suspend all processes of a component until :meth:`resume_component`."""
        signal_group(self.processes[component], signal.SIGSTOP)

    def resume_component(self, component: str) -> None:
        signal_group(self.processes[component], signal.SIGCONT)

    def kill_task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, *, worker: bool = False) -> None:
        """
        Kill the process of a running task, as the kernel does when it is out of memory.

        :param worker: kill the process that supervises the task first, as if the whole machine were lost.
        """
        process = self._process_of(dag_id, run_id, task_id, map_index)
        if worker:
            kill(*[other for other in processes_of(*self._sessions) if other.pid == process.ppid()])
        kill(process)

    def terminate_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Send SIGTERM to the process of a running task and to the one that supervises it, as the end of a pod does."""
        process = self._process_of(dag_id, run_id, task_id, -1)
        for one in (psutil.Process(process.ppid()), process):
            one.terminate()

    def component_of(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
        """Return the component that a running task is a process of."""
        session = os.getsid(self._process_of(dag_id, run_id, task_id, map_index).pid)
        return next(component for component, process in self.processes.items() if process.pid == session)

    def _process_of(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> psutil.Process:
        mark = self._process_title(dag_id, run_id, task_id, map_index)

        def found() -> list[psutil.Process]:
            return [process for process in processes_of(*self._sessions) if mark in command_line(process)]

        (process,) = wait_until(f"the process {mark!r}", found, 60, 0.2)
        return process

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes so far, with that of children that have ended."""
        seconds = 0.0
        for process in processes_of(*self._sessions):
            with suppress(psutil.NoSuchProcess):
                seconds += sum(process.cpu_times()[:4])
        return seconds

    def forget_peak_memory(self, component: str) -> None:
        """Let :meth:`peak_memory` of a component start at what its processes hold now."""
        for process in processes_of(self.processes[component].pid):
            # See proc(5): 5 sets the peak back.
            with suppress(FileNotFoundError, ProcessLookupError):
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak_memory(self, component: str) -> int:
        """Return the most bytes that the processes of a component have held, each by itself."""
        kibibytes = 0
        for process in processes_of(self.processes[component].pid):
            with suppress(FileNotFoundError, ProcessLookupError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                kibibytes += int(status.partition("VmHWM:")[2].split()[0])
        return kibibytes * 1024

    def check_alive(self) -> None:
        """Raise StackError if a component has exited by itself."""
        for component, process in self.processes.items():
            if process.poll() is not None:
                log = (self.home / f"{component}.log").read_text(errors="replace")
                raise StackError(f"{component} has exited with {process.returncode}:\n{log[-2000:]}")

    def airflow(self, *arguments: str) -> str:
        """Run an ``airflow`` command and return its output."""
        done = subprocess.run(
            [self._airflow_command(), *arguments], env=self.env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            command = f"airflow {' '.join(arguments)}"
            raise StackError(f"{command} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _airflow_command(self) -> str:
        return str(Path(sys.executable).with_name("airflow"))

    def _wait_until_healthy(self) -> None:
        raise NotImplementedError

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run and return its id."""
        raise NotImplementedError

    def run_state(self, dag_id: str, run_id: str) -> str:
        raise NotImplementedError

    def run_started(self, dag_id: str, run_id: str) -> float:
        """Return the start of a run, in epoch seconds."""
        raise NotImplementedError

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        """Mark a task, as a user does."""
        raise NotImplementedError

    def mark_run(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a run, as a user does."""
        raise NotImplementedError

    def clear(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Clear a task and its downstream tasks, as a user does."""
        raise NotImplementedError

    def delete_run(self, dag_id: str, run_id: str) -> None:
        raise NotImplementedError

    def set_variable(self, key: str, value: str) -> None:
        raise NotImplementedError

    def _process_title(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
        """Return a text that only the command line of this task's process contains."""
        raise NotImplementedError

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances, each with task_id, map_index, state, try_number and start_date."""
        raise NotImplementedError

    def wait_for_run(self, dag_id: str, run_id: str, seconds: float = 300) -> str:
        """Wait until a run has finished, and return its state."""

        def finished() -> str | None:
            self.check_alive()
            state = self.run_state(dag_id, run_id)
            return state if state in ("success", "failed") else None

        return str(wait_until(f"{dag_id} {run_id} to finish", finished, seconds))

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """Return the state of each task by its id; ``task[0]`` for map index 0."""
        return {
            ti["task_id"] + (f"[{ti['map_index']}]" if ti["map_index"] >= 0 else ""): ti["state"]
            for ti in self.task_instances(dag_id, run_id)
        }

    def task_log(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return the log of a task, with all its tries and map indexes."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return "\n".join(path.read_text() for path in sorted(folder.rglob("*.log")))

    def task_log_lines(self, dag_id: str, run_id: str, task_id: str) -> list[str]:
        """Return the messages in the log of a task, without the JSON around them that Airflow 3 writes."""
        return [_message(line) for line in self.task_log(dag_id, run_id, task_id).splitlines()]

    def component_logs(self) -> str:
        """Return the logs of the components, and those of the dag processor for each DAG file."""
        files = [*self.home.glob("*.log"), *(self.home / "logs").rglob("*.py.log")]
        return "\n".join(path.read_text(errors="replace") for path in sorted(files))


def kind_of(component: str) -> str:
    """Return what a component is, whether it is the first of its kind or another."""
    return component.removeprefix("second-").removeprefix("another-")


def _message(line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if not isinstance(record, dict):
        return line
    errors = [f": {detail['exc_type']}: {detail['exc_value']}" for detail in record.get("error_detail") or []]
    return str(record.get("event", line)) + "".join(errors[:1])
