"""Many deferred waits, for cancelled operations and for successful ones."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.sensors.dai import DaiOperationSensor

for state in ("CANCELLED", "SUCCEEDED"):
    with DAG(f"soak_{state.lower()}", schedule=None, params={"operations": ["operations/x"]}, max_active_tasks=16):

        @task
        def operations(params: dict) -> list[str]:
            return params["operations"]

        DaiOperationSensor.partial(
            task_id="wait", expected_states=state, deferrable=True, poke_interval=5, timeout=3600, cancel_on_kill=True
        ).expand(operation_name=operations())
