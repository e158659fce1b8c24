"""Airflow 3, controlled through its public API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

import requests
from stack_base import LOCK_SECONDS, LOOPBACK, AirflowStack, kind_of
from stack_waits import StackError, wait_until


class Airflow3Stack(AirflowStack):
    """Airflow 3: API server, scheduler with local executor, triggerer and dag processor."""

    #: The components whose processes run tasks.
    runs_tasks: Sequence[str] = ("scheduler",)

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
            # Lets the API return the values of XComs; Airflow 3.1 and later need no such setting.
            "AIRFLOW__API__ENABLE_XCOM_DESERIALIZE_SUPPORT": "True",
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

    def _env_of(self, component: str) -> dict[str, str]:
        # The API server waits for a lock on its event loop, which the request that holds the lock needs to release it.
        seconds = 0.5 if component == "api-server" else LOCK_SECONDS
        return self.env | {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._database(seconds)}

    def _wait_until_healthy(self) -> None:
        self._changing = Lock()
        self._http = requests.Session()
        self._http.trust_env = False
        names = {"api-server": "metadatabase", "dag-processor": "dag_processor"}
        kinds = {kind_of(component) for component in self.components} - {"worker"}
        expected = {names.get(kind, kind) for kind in kinds}

        def healthy() -> bool:
            try:
                health = self._http.get(f"http://{LOOPBACK}:{self.port}/api/v2/monitor/health", timeout=5).json()
            except (requests.RequestException, ValueError):
                return False
            return all((health.get(name) or {}).get("status") == "healthy" for name in expected)

        wait_until("Airflow to be healthy", healthy, 300, 0.3)
        token = self._http.get(f"http://{LOOPBACK}:{self.port}/auth/token", timeout=10).json()["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"

    def api(self, method: str, path: str, **kwargs: Any) -> Any:
        """Call Airflow's public API and return its JSON; retry if its database was locked."""
        url = f"http://{LOOPBACK}:{self.port}/api/v2/{path}"
        for pause in (0.5, 1, 2, 4, 8, None):
            with nullcontext() if method == "GET" else self._changing:
                response = self._http.request(method, url, timeout=60, **kwargs)
            if response.ok:
                return response.json() if response.content else None
            if response.status_code != 500 or pause is None:
                break
            time.sleep(pause)
        raise StackError(f"{method} {path} returned {response.status_code}: {response.text[:500]}")

    def _all(self, path: str, key: str) -> list[dict[str, Any]]:
        """Return what the pages of a list hold under a key."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.api("GET", f"{path}?limit=100&offset={len(found)}")
            found += page[key]
            if len(found) >= page["total_entries"] or not page[key]:
                return found

    def wait_for_dags(self, *dag_ids: str) -> None:
        """Wait until the dag processor has parsed these DAGs."""

        def known() -> bool:
            return set(dag_ids) <= {dag["dag_id"] for dag in self._all("dags", "dags")}

        wait_until(f"the DAGs {', '.join(dag_ids)}", known, 180, 0.3)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self.api("POST", f"dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self.api("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"])

    def run_started(self, dag_id: str, run_id: str) -> float:
        return datetime.fromisoformat(self.api("GET", f"dags/{dag_id}/dagRuns/{run_id}")["start_date"]).timestamp()

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        return self._all(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances")

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        self.api("PATCH", _task_path(dag_id, run_id, task_id, map_index), json={"new_state": state})

    def mark_run(self, dag_id: str, run_id: str, state: str) -> None:
        self.api("PATCH", f"dags/{dag_id}/dagRuns/{run_id}", json={"state": state})

    def clear(self, dag_id: str, run_id: str, task_id: str) -> None:
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": [task_id], "only_failed": False}
        self.api("POST", f"dags/{dag_id}/clearTaskInstances", json=body | {"include_downstream": True})

    def delete_run(self, dag_id: str, run_id: str) -> None:
        self.api("DELETE", f"dags/{dag_id}/dagRuns/{run_id}")

    def set_variable(self, key: str, value: str) -> None:
        known = {variable["key"] for variable in self._all("variables", "variables")}
        method, path = ("PATCH", f"variables/{key}") if key in known else ("POST", "variables")
        self.api(method, path, json={"key": key, "value": value})

    def _process_title(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
        return f"airflow worker -- {self.api('GET', _task_path(dag_id, run_id, task_id, map_index))['id']}"

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """Return the value of an XCom, as the user interface shows it."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}?deserialize=true"
        return self.api("GET", path)["value"]


def _task_path(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
    return path if map_index < 0 else f"{path}/{map_index}"
