"""
The DAGs of the rows, each in three forms.

``<name>__own`` contains the ingest alone. ``<name>__swept`` does too, and a sweep of ``owned.py`` looks after it.
``<name>__rings`` adds the DAG's failure callback and a teardown, and in one case a Deadline. The DAG ``sweep`` comes
after all of them. ``rows.py`` of the tests names the DAG of each row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, task

from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.operators.dai import (
    DaiCancelOperationOperator,
    DaiCancelStrayOperationsOperator,
    DaiCreateCreativeOperator,
)
from airflow_dai_provider.sensors.dai import DaiOperationSensor

NAME = "{{ ti.xcom_pull(task_ids='ingest', key='operation_name') }}"
#: The unit, in seconds, of all time limits.
SOON = 8
NO_WAIT = {"wait_for_completion": False, "cancel_with_run": True}


def creative(url: str) -> dict[str, Any]:
    return {
        "adSystem": "rows",
        "mediaFiles": [{"uri": url, "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}],
    }


def ingest(url: str = "{{ params.url }}", **kwargs: Any) -> DaiCreateCreativeOperator:
    # On Airflow 2 a cleared task waits for its retry delay.
    defaults = {"poll_interval": 2, "retry_delay": timedelta(seconds=1)}
    return DaiCreateCreativeOperator(task_id="ingest", creative=creative(url), **{**defaults, **kwargs})


def ingests(**kwargs: Any) -> DaiCreateCreativeOperator:
    creatives = [creative(f"{{{{ params.url }}}}&number={number}") for number in range(3)]
    return DaiCreateCreativeOperator(task_id="ingest", creative=creatives, **{"poll_interval": 2, **kwargs})


@task
def work(params: dict) -> None:
    """Fail, skip or sleep while the ingest runs."""
    if params["work"] == "raise":
        raise RuntimeError("the original failure")
    if params["work"] == "skip":
        raise AirflowSkipException("nothing to do")
    time.sleep(600)


@contextmanager
def dag(name: str, guards: str, *, setup: bool = False, teardown: bool = True, **kwargs: Any) -> Iterator[DAG]:
    """Create a DAG, with the recommended guards around its task ``ingest`` if ``guards`` is ``rings``."""
    if guards == "rings":
        kwargs["on_failure_callback"] = DaiCancelOperationNotifier(ingest_task_ids="ingest")
    params = {"url": "https://media.example.com/ad.mp4", "urls": [], "work": "sleep"}
    with DAG(f"{name}__{guards}", schedule=None, params=params, max_active_runs=100, **kwargs) as made:
        yield made
        if guards == "rings" and teardown:
            start, last = made.get_task("ingest"), made.leaves
            cancel = DaiCancelOperationOperator(task_id="cancel", operation_name=NAME)
            # After all other tasks: directly after the start it would cancel an ingest that no task waits for.
            upstream = last if setup else {start, *last}
            list(upstream) >> cancel.as_teardown(setups=[start] if setup else [])


for guards in ("own", "rings", "swept"):
    with dag("waits", guards):
        ingest()
    with dag("waits_with_retry", guards):
        ingest(retries=1)
    with dag("waits_with_retry_callback", guards):
        ingest(retries=1, on_retry_callback=DaiCancelOperationNotifier())
    with dag("waits_for_retry", guards):
        ingest(retries=1, retry_delay=timedelta(minutes=10), timeout=SOON)
    with dag("raises", guards):
        ingest(timeout=SOON)
    with dag("raises_with_retry", guards):
        ingest(timeout=6 * SOON, retries=1)
    with dag("times_out", guards):
        ingest(execution_timeout=timedelta(seconds=2 * SOON))
    with dag("times_out_with_retry", guards):
        ingest(execution_timeout=timedelta(seconds=6 * SOON), retries=1)
    with dag("run_times_out", guards, dagrun_timeout=timedelta(seconds=3 * SOON)):
        ingest()

    with dag("defers", guards):
        ingest(deferrable=True)
    with dag("defers_and_raises", guards):
        ingest(deferrable=True, timeout=SOON)
    with dag("defers_and_raises_later", guards):
        ingest(deferrable=True, timeout=3 * SOON)
    with dag("defers_and_times_out", guards):
        ingest(deferrable=True, execution_timeout=timedelta(seconds=2 * SOON))
    with dag("defers_and_run_times_out", guards, dagrun_timeout=timedelta(seconds=3 * SOON)):
        ingest(deferrable=True)

    with dag("list_waits", guards):
        ingests()
    with dag("list_raises", guards):
        ingests(timeout=SOON)
    with dag("list_raises_with_retry", guards):
        ingests(timeout=6 * SOON, retries=1, retry_delay=timedelta(seconds=1))
    with dag("list_times_out", guards):
        ingests(execution_timeout=timedelta(seconds=2 * SOON))
    with dag("list_defers", guards):
        ingests(deferrable=True)

    with dag("then_work", guards):
        ingest(**NO_WAIT) >> work()
    with dag("setup_then_work", guards, setup=True):
        ingest(**NO_WAIT) >> work()
    with dag("setup_then_deferred", guards, setup=True):
        ingest(**NO_WAIT) >> DaiOperationSensor(task_id="work", operation_name=NAME, deferrable=True)
    with dag("setup_waits", guards, setup=True):
        ingest() >> work()
    with dag("then_rescheduled", guards):
        ingest(**NO_WAIT) >> DaiOperationSensor(
            task_id="work", operation_name=NAME, mode="reschedule", poke_interval=15
        )

    # A mapped task has many names, which this teardown does not take; it gets the callback only.
    with dag("mapped", guards, teardown=False):

        @task
        def creatives(params: dict) -> list[dict]:
            return [creative(url) for url in params["urls"]]

        callback = {"on_failure_callback": DaiCancelOperationNotifier()} if guards == "rings" else {}
        DaiCreateCreativeOperator.partial(task_id="ingest", poll_interval=2, **callback).expand(creative=creatives())

    # The media URL is a variable, so that the DAG can be corrected between two tries.
    with dag("fixed", guards):
        ingest("{{ var.value.get(params.url) }}")

with dag("late", "own"):
    ingest()
try:
    from airflow.sdk.definitions.deadline import AsyncCallback, DeadlineAlert, DeadlineReference
except ImportError:
    pass
else:
    late = DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=3 * SOON),
        callback=AsyncCallback(DaiCancelOperationNotifier, kwargs={"ingest_task_ids": "ingest"}),
    )
    with dag("late", "rings", deadline=late):
        ingest()

# Many runs fail at once, and only the DAG's callback cancels their ingests.
with DAG(
    "burst",
    schedule=None,
    params={"url": "https://media.example.com/ad.mp4"},
    max_active_runs=100,
    max_active_tasks=12,
    on_failure_callback=DaiCancelOperationNotifier(ingest_task_ids="ingest"),
):
    ingest(timeout=1, cancel_on_failure=False)

with DAG("sweep", schedule=None, params={"older_than": 60, "spare": []}, render_template_as_native_obj=True):
    DaiCancelStrayOperationsOperator(
        task_id="sweep",
        older_than="{{ params.older_than }}",
        spare="{{ params.spare }}",
        wait_for_completion=True,
        max_cancellations=100,
        poll_interval=2,
    )
