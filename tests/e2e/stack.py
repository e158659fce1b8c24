"""A real, headless Airflow in processes of its own, for the end-to-end tests and the demo."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests

LOOPBACK = "127.0.0.1"
#: The triggerer lets 10 s pass before it ends, even when it has nothing to do; there is nothing to wait for.
STOP_SECONDS = {"triggerer": 1}


class StackError(Exception):
    """The Airflow under test did not do what was asked of it in time."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        return int(sock.getsockname()[1])


def wait_until(what: str, check: Callable[[], Any], seconds: float, pause: float = 0.5) -> Any:
    """Return the first true result of ``check``; raise StackError when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (result := check()):
        if time.monotonic() > deadline:
            raise StackError(f"waited {seconds:g} s for {what}, in vain")
        time.sleep(pause)
    return result


class AirflowStack:
    """
    What both Airflows have in common: a home, an environment, and processes that are stopped by group.

    :param home: AIRFLOW_HOME; made anew at each start, with a copy of a migrated database that is kept beside it.
    :param dags: the folder with the DAG files.
    :param env: further environment variables.
    """

    components: Mapping[str, list[str]]

    def __init__(self, home: Path, dags: Path, env: Mapping[str, str] | None = None) -> None:
        self.home = home.resolve()
        self.migrated = self.home.parent / f"migrated-{version('apache-airflow')}.db"
        self.port = free_port()
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("AIRFLOW", "GOOGLE_", "DAI_")) and not key.lower().endswith("_proxy")
        }
        self.env = inherited | self._settings(dags.resolve()) | dict(env or {})
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def _settings(self, dags: Path) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__FERNET_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
        }

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
        """Make an empty home, start every component, and wait until all are healthy."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        database = self.home / "airflow.db"
        if self.migrated.exists():
            shutil.copyfile(self.migrated, database)
        else:
            self.airflow("db", "migrate")
            shutil.copyfile(database, f"{self.migrated}.{os.getpid()}")
            Path(f"{self.migrated}.{os.getpid()}").replace(self.migrated)
        for component in self.components:
            self.start_component(component)
        self._wait_until_healthy()

    def stop(self) -> None:
        """Stop every process that was started here, with its children."""
        for process in self.processes.values():
            _signal_group(process, signal.SIGTERM)
        for component, process in self.processes.items():
            try:
                process.wait(STOP_SECONDS.get(component, 20))
            except subprocess.TimeoutExpired:
                if component not in STOP_SECONDS:
                    print(f"{component} did not stop in time and is killed", file=sys.stderr)
            _signal_group(process, signal.SIGKILL)
            process.wait()
        self.processes.clear()

    def start_component(self, component: str) -> None:
        """Start a component; ``second-triggerer`` is another triggerer."""
        arguments = self.components[component.removeprefix("second-")]
        with (self.home / f"{component}.log").open("ab") as log:
            self.processes[component] = subprocess.Popen(
                [self._airflow_command(), *arguments],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill_component(self, component: str, how: signal.Signals = signal.SIGKILL) -> None:
        process = self.processes.pop(component)
        _signal_group(process, how)
        process.wait()

    def check_alive(self) -> None:
        """Raise StackError when a component has ended by itself."""
        for component, process in self.processes.items():
            if process.poll() is not None:
                log = (self.home / f"{component}.log").read_text(errors="replace")
                raise StackError(f"{component} has ended with {process.returncode}:\n{log[-2000:]}")

    def airflow(self, *arguments: str) -> str:
        """Run an ``airflow`` command to its end and return what it printed."""
        done = subprocess.run(
            [self._airflow_command(), *arguments], env=self.env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise StackError(f"airflow {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def task_log(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return all that a task has logged, in all its tries and map indexes."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return "\n".join(path.read_text() for path in sorted(folder.rglob("*.log")))

    def task_log_lines(self, dag_id: str, run_id: str, task_id: str) -> list[str]:
        """Return the messages that a task has logged, without the JSON that Airflow 3 wraps them in."""
        return [_message(line) for line in self.task_log(dag_id, run_id, task_id).splitlines()]

    def component_logs(self) -> str:
        """Return what the components, and the dag processor for each file, have logged."""
        files = [*self.home.glob("*.log"), *(self.home / "logs").rglob("*.py.log")]
        return "\n".join(path.read_text(errors="replace") for path in sorted(files))

    def _airflow_command(self) -> str:
        return str(Path(sys.executable).with_name("airflow"))

    def _wait_until_healthy(self) -> None:
        raise NotImplementedError

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run and return its id."""
        raise NotImplementedError

    def run_state(self, dag_id: str, run_id: str) -> str:
        raise NotImplementedError

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task that is not mapped, as a user does."""
        raise NotImplementedError

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return ``{"task_id", "map_index", "state", "try_number"}`` of each task instance."""
        raise NotImplementedError

    def wait_for_run(self, dag_id: str, run_id: str, seconds: float = 120) -> str:
        """Return the state in which a run has ended."""

        def ended() -> str | None:
            self.check_alive()
            state = self.run_state(dag_id, run_id)
            return state if state in ("success", "failed") else None

        return str(wait_until(f"the end of {dag_id} {run_id}", ended, seconds))

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """Return the state by task id; ``task[0]`` for a map index."""
        return {
            ti["task_id"] + (f"[{ti['map_index']}]" if ti["map_index"] >= 0 else ""): ti["state"]
            for ti in self.task_instances(dag_id, run_id)
        }


class Airflow3Stack(AirflowStack):
    """Airflow 3: API server, scheduler with local executor, triggerer and dag processor, by the public API."""

    def _settings(self, dags: Path) -> dict[str, str]:
        self.components = {
            "api-server": ["api-server", "--host", LOOPBACK, "--port", str(self.port), "--workers", "1"],
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "triggerer": ["triggerer", "--skip-serve-logs"],
            "dag-processor": ["dag-processor"],
        }
        return super()._settings(dags) | {
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "8",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{LOOPBACK}:{self.port}/execution/",
            "AIRFLOW__API__BASE_URL": f"http://{LOOPBACK}:{self.port}",
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "12",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
            "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "3",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "15",
        }

    def _wait_until_healthy(self) -> None:
        self._http = requests.Session()
        self._http.trust_env = False
        names = {"api-server": "metadatabase", "dag-processor": "dag_processor"}
        expected = {names.get(component, component) for component in self.components}

        def healthy() -> bool:
            try:
                health = self._http.get(f"http://{LOOPBACK}:{self.port}/api/v2/monitor/health", timeout=5).json()
            except (requests.RequestException, ValueError):
                return False
            return all((health.get(name) or {}).get("status") == "healthy" for name in expected)

        wait_until("Airflow to be healthy", healthy, 120, 0.3)
        token = self._http.get(f"http://{LOOPBACK}:{self.port}/auth/token", timeout=10).json()["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"

    def api(self, method: str, path: str, **kwargs: Any) -> Any:
        """Call Airflow's public API and return its JSON."""
        answer = self._http.request(method, f"http://{LOOPBACK}:{self.port}/api/v2/{path}", timeout=30, **kwargs)
        if not answer.ok:
            raise StackError(f"{method} {path} answered {answer.status_code}: {answer.text[:500]}")
        return answer.json() if answer.content else None

    def wait_for_dags(self, *dag_ids: str) -> None:
        """Wait until the dag processor has read these DAGs."""

        def known() -> bool:
            return set(dag_ids) <= {dag["dag_id"] for dag in self.api("GET", "dags?limit=200")["dags"]}

        wait_until(f"the DAGs {', '.join(dag_ids)}", known, 60, 0.3)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self.api("POST", f"dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self.api("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self.api("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=100&offset={len(found)}")
            found += page["task_instances"]
            if len(found) >= page["total_entries"]:
                return found

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self.api("PATCH", path, json={"new_state": state})

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """Return an XCom as the UI shows it."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}?deserialize=true"
        return self.api("GET", path)["value"]


class Airflow2Stack(AirflowStack):
    """Airflow 2: scheduler (with its dag processor) and triggerer, asked through the metadata database."""

    components = {
        "scheduler": ["scheduler", "--skip-serve-logs"],
        "triggerer": ["triggerer", "--skip-serve-logs"],
    }

    def _settings(self, dags: Path) -> dict[str, str]:
        return super()._settings(dags) | {
            "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor",
            "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "60",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
        }

    def _wait_until_healthy(self) -> None:
        os.environ.update({key: value for key, value in self.env.items() if key.startswith("AIRFLOW")})
        from airflow.jobs.job import Job
        from airflow.utils.session import create_session

        def healthy() -> bool:
            with create_session() as session:
                jobs = session.query(Job).filter(Job.state == "running").all()
                return {job.job_type for job in jobs if job.is_alive()} >= {"SchedulerJob", "TriggererJob"}

        wait_until("Airflow to be healthy", healthy, 120)

    def wait_for_dags(self, *dag_ids: str) -> None:
        from airflow.models.dag import DagModel
        from airflow.utils.session import create_session

        def known() -> bool:
            with create_session() as session:
                return set(dag_ids) <= {dag_id for (dag_id,) in session.query(DagModel.dag_id)}

        wait_until(f"the DAGs {', '.join(dag_ids)}", known, 60)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        from airflow.api.common.trigger_dag import trigger_dag

        run_id = f"manual__{secrets.token_hex(4)}"
        trigger_dag(dag_id, run_id=run_id, conf=dict(conf or {}), replace_microseconds=False)
        return run_id

    def run_state(self, dag_id: str, run_id: str) -> str:
        from airflow.models.dagrun import DagRun

        return str(DagRun.find(dag_id=dag_id, run_id=run_id)[0].state)

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            found = session.query(TaskInstance).filter_by(dag_id=dag_id, run_id=run_id).all()
            return [
                {"task_id": ti.task_id, "map_index": ti.map_index, "state": ti.state, "try_number": ti.try_number}
                for ti in found
            ]

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            session.query(TaskInstance).filter_by(dag_id=dag_id, run_id=run_id, task_id=task_id).one().set_state(
                state, session=session
            )

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        from airflow.models.xcom import XCom

        return XCom.get_one(dag_id=dag_id, run_id=run_id, task_id=task_id, key=key)


def make_stack(home: Path, dags: Path, env: Mapping[str, str] | None = None) -> Airflow3Stack | Airflow2Stack:
    """Make the stack of the Airflow that is installed beside this Python."""
    kind = Airflow2Stack if version("apache-airflow").startswith("2.") else Airflow3Stack
    return kind(home, dags, env)


def _message(line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if not isinstance(record, dict):
        return line
    errors = [f": {detail['exc_type']}: {detail['exc_value']}" for detail in record.get("error_detail") or []]
    return str(record.get("event", line)) + "".join(errors[:1])


def _signal_group(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    try:
        os.killpg(process.pid, how)
    except ProcessLookupError:
        return
