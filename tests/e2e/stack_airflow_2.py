"""Airflow 2, controlled through its metadata database."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stack_base import AirflowStack
from stack_waits import wait_until

#: Settings to run several tasks at once. Airflow's own tests use this executor on SQLite too; a lock can fail a try.
CONCURRENT = {
    "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
    "AIRFLOW__CORE__PARALLELISM": "8",
    "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
}


class Airflow2Stack(AirflowStack):
    """Airflow 2: scheduler (with its dag processor) and triggerer, controlled through the metadata database."""

    components = {
        "scheduler": ["scheduler", "--skip-serve-logs"],
        "triggerer": ["triggerer", "--skip-serve-logs"],
    }

    def _settings(self, dags: Path) -> dict[str, str]:
        return super()._settings(dags) | {
            "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor",
            # Heartbeats are late on a busy machine: at 12 s, healthy tasks are killed.
            "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "30",
            # The dag processor must have handled a lost task before the next detection, which would report it again:
            # Airflow would then fail the next try.
            "AIRFLOW__SCHEDULER__ZOMBIE_DETECTION_INTERVAL": "40",
            "AIRFLOW__SCHEDULER__LOCAL_TASK_JOB_HEARTBEAT_SEC": "2",
            "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "3",
            "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "60",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
        }

    def _wait_until_healthy(self) -> None:
        os.environ.update({key: value for key, value in self.env.items() if key.startswith("AIRFLOW")})
        from airflow import settings
        from airflow.jobs.job import Job
        from airflow.utils.session import create_session

        # An earlier stack in this process may have used another database.
        settings.dispose_orm()
        settings.configure_vars()
        settings.configure_orm()

        def healthy() -> bool:
            with create_session() as session:
                jobs = session.query(Job).filter(Job.state == "running").all()
                return {job.job_type for job in jobs if job.is_alive()} >= {"SchedulerJob", "TriggererJob"}

        wait_until("Airflow to be healthy", healthy, 300)

    def wait_for_dags(self, *dag_ids: str) -> None:
        from airflow.models.dag import DagModel
        from airflow.utils.session import create_session

        def known() -> bool:
            with create_session() as session:
                return set(dag_ids) <= {dag_id for (dag_id,) in session.query(DagModel.dag_id)}

        wait_until(f"the DAGs {', '.join(dag_ids)}", known, 180)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        from airflow.api.common.trigger_dag import trigger_dag

        run_id = f"manual__{secrets.token_hex(4)}"
        trigger_dag(dag_id, run_id=run_id, conf=dict(conf or {}), replace_microseconds=False)
        return run_id

    def run_state(self, dag_id: str, run_id: str) -> str:
        from airflow.models.dagrun import DagRun

        return str(DagRun.find(dag_id=dag_id, run_id=run_id)[0].state)

    def run_started(self, dag_id: str, run_id: str) -> float:
        from airflow.models.dagrun import DagRun

        return float(DagRun.find(dag_id=dag_id, run_id=run_id)[0].start_date.timestamp())

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            found = session.query(TaskInstance).filter_by(dag_id=dag_id, run_id=run_id).all()
            return [
                {
                    "task_id": ti.task_id,
                    "map_index": ti.map_index,
                    "state": ti.state,
                    "try_number": ti.try_number,
                    "start_date": ti.start_date and ti.start_date.isoformat(),
                }
                for ti in found
            ]

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        one = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
        with create_session() as session:
            session.query(TaskInstance).filter_by(**one).one().set_state(state, session=session)

    def mark_run(self, dag_id: str, run_id: str, state: str) -> None:
        from airflow.api.common.mark_tasks import set_dag_run_state_to_failed

        assert state == "failed"
        set_dag_run_state_to_failed(dag=self._dag(dag_id), run_id=run_id, commit=True)

    def clear(self, dag_id: str, run_id: str, task_id: str) -> None:
        from airflow.models.taskinstance import TaskInstance, clear_task_instances
        from airflow.utils.session import create_session

        dag = self._dag(dag_id)
        tasks = {task_id, *(task.task_id for task in dag.get_task(task_id).get_flat_relatives(upstream=False))}
        with create_session() as session:
            found = session.query(TaskInstance).filter_by(dag_id=dag_id, run_id=run_id)
            clear_task_instances([ti for ti in found if ti.task_id in tasks], session, dag=dag)

    def delete_run(self, dag_id: str, run_id: str) -> None:
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session

        # One statement: the ORM would need a table of users, whose provider is not installed.
        with create_session() as session:
            session.query(DagRun).filter_by(dag_id=dag_id, run_id=run_id).delete()

    def set_variable(self, key: str, value: str) -> None:
        from airflow.models.variable import Variable

        Variable.set(key, value)

    def _dag(self, dag_id: str) -> Any:
        from airflow.models.serialized_dag import SerializedDagModel

        return SerializedDagModel.get_dag(dag_id)

    def _process_title(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        one = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
        with create_session() as session:
            job = session.query(TaskInstance).filter_by(**one).one().job_id
        return f"airflow task runner: {dag_id} {task_id} {run_id} {job}"

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        from airflow.models.xcom import XCom

        return XCom.get_one(dag_id=dag_id, run_id=run_id, task_id=task_id, key=key)
