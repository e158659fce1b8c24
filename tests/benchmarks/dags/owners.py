"""Runs that fail while their ingests run, and the sweep that finds them."""

from __future__ import annotations

import time
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task
from campaign_tasks import PARAMS, creatives, note

from airflow_dai_provider.operators.dai import DaiCancelStrayOperationsOperator, DaiCreateCreativeOperator


class CountedSweep(DaiCancelStrayOperationsOperator):
    """The sweep; it notes its requests to Airflow, and the seconds without the pause between its two looks."""

    def execute(self, context: Any) -> dict[str, Any]:
        """Sweep, and count."""
        from airflow.sdk.execution_time import task_runner

        # The instance takes no other method.
        decoder = type(task_runner.SUPERVISOR_COMMS)
        send, requests = decoder.send, 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal requests
            requests += 1
            return send(*args, **kwargs)

        decoder.send = counted  # type: ignore[method-assign]
        began = time.monotonic()
        report = super().execute(context)
        note(task="sweep", requests=requests, seconds=time.monotonic() - began - self.orphaned_for)
        return report


@task
def fail() -> None:
    """Fail the run."""
    raise RuntimeError("The ads are not wanted any more.")


with DAG("failing_runs", schedule=None, params=PARAMS, max_active_runs=100):
    for part in ("first", "second"):
        ingest = DaiCreateCreativeOperator(
            task_id=part,
            creative=creatives.override(task_id=f"creatives_{part}")(part=part),
            wait_for_completion=False,
            cancel_with_run=True,
        )
        ingest >> fail.override(task_id=f"fail_{part}")()

with DAG("sweep_owned", schedule=None):
    CountedSweep(task_id="sweep", orphaned_for=1, max_cancellations=10_000, max_concurrency=50)
