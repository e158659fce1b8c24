"""Where the versions of Airflow keep what the tests ask of it: the newest place first, by what is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from airflow import __version__ as airflow_version

#: Only for what cannot be seen from what is there.
VERSION = tuple(map(int, airflow_version.split(".")[:2]))
IS_AIRFLOW_2 = VERSION < (3,)


def first(*places: str) -> Any:
    """
    Return what stands at the first of these places that is there, or None.

    :param places: ``module:name``.
    """
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    return None


def dag_bag(folder: str) -> Any:
    """Return the DAGs of a folder or of a file."""
    return first("airflow.dag_processing.dagbag:DagBag", "airflow.models.dagbag:DagBag")(folder)


def register(dag: Any) -> None:
    """Write a DAG to the metadata database, as Airflow 3 expects of one that is not in the DAGs folder."""
    manager = first("airflow.dag_processing.bundles.manager:DagBundlesManager")
    sync = first("airflow.dag_processing.dagbag:sync_bag_to_db", "airflow.models.dagbag:sync_bag_to_db")
    if manager is None or sync is None:
        return
    manager().sync_bundles_to_db()
    bag = dag_bag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    bag.bag_dag(dag)
    sync(bag, "dags-folder", None)


def serialize_xcom(value: Any) -> Any:
    """Return a value as a task of Airflow 3 pushes it."""
    return first("airflow.sdk.serde:serialize", "airflow.serialization.serde:serialize")(value)


def secrets_maskers() -> list[Any]:
    """Return what masks secrets: Airflow's own, and since 3.1 also the one of tasks."""
    modules = ("airflow._shared.secrets_masker", "airflow.sdk._shared.secrets_masker")
    found = [made for module in modules if (made := first(f"{module}:_secrets_masker"))]
    older = ("airflow.sdk.execution_time.secrets_masker", "airflow.utils.log.secrets_masker")
    return [made() for made in found or [first(*(f"{module}:_secrets_masker" for module in older))]]


#: What a sensor in reschedule mode raises between two pokes.
AirflowRescheduleException = first(
    "airflow.sdk.exceptions:AirflowRescheduleException", "airflow.exceptions:AirflowRescheduleException"
)

#: How Airflow says that a deferral has timed out, for example when there was no triggerer.
DEFERRAL_TIMED_OUT = "Trigger/execution timeout" if IS_AIRFLOW_2 else "Trigger timeout"

#: What runs the ``AsyncCallback`` of a Deadline alert in the triggerer; None where there are no such alerts.
CallbackTrigger = first(
    "airflow.triggers.callback:CallbackTrigger", "airflow.triggers.deadline:DeadlineCallbackTrigger"
)

#: Whether a callback is given the context; None where Airflow gives it to every one.
accepts_context = first("airflow._shared.module_loading:accepts_context", "airflow.models.callback:_accepts_context")

_execute_callback = first("airflow.sdk.execution_time.callback_supervisor:execute_callback")
_execute_callback_workload = first("airflow.executors.workloads.callback:execute_callback_workload")

#: Whether a Deadline alert takes a ``SyncCallback``.
HAS_SYNC_CALLBACKS = bool(_execute_callback or _execute_callback_workload)


def run_sync_callback(path: str, kwargs: Mapping[str, Any]) -> Any:
    """Run the ``SyncCallback`` of a Deadline alert as an executor does; return whether that went well, and why not."""
    import structlog

    log = structlog.get_logger("callback_runner")
    if _execute_callback:
        return _execute_callback(path, dict(kwargs), Path(), None, log)
    from airflow.executors.workloads.callback import CallbackDTO

    data = {"path": path, "kwargs": dict(kwargs)}
    return _execute_callback_workload(CallbackDTO(id="a_callback", fetch_method="import_path", data=data), log)


def deadline_names() -> dict[str, Any]:
    """Return what a DAG file imports for a Deadline alert; nothing where there are no such alerts."""
    names = ("AsyncCallback", "DeadlineAlert", "DeadlineReference")
    return {name: found for name in names if (found := first(f"airflow.sdk.definitions.deadline:{name}"))}


def start_metrics() -> None:
    """Let metrics go where the configuration says, as Airflow's components do when they start."""
    stats = first("airflow.sdk.observability.stats:Stats")
    if stats is None:
        return  # Before 3.2 it happens by itself.
    from airflow.sdk.observability.metrics.stats_utils import get_stats_factory

    if initialize := first("airflow.sdk.observability.stats:initialize"):
        initialize(factory=get_stats_factory(), export_legacy_names=True)
    else:
        stats.initialize(factory=get_stats_factory(stats))
