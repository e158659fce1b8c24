"""A real Airflow without a user interface, in processes of its own, for the end-to-end tests and the demo."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from stack_airflow_2 import Airflow2Stack
from stack_airflow_3 import Airflow3Stack
from stack_celery import CeleryStack
from stack_waits import StackError, wait_until

__all__ = ["Airflow2Stack", "Airflow3Stack", "CeleryStack", "StackError", "make_stack", "wait_until"]


def make_stack(
    home: Path,
    dags: Path,
    env: Mapping[str, str] | None = None,
    database: str | None = None,
    broker: str | None = None,
) -> Airflow3Stack | Airflow2Stack:
    """
    Return a stack of the Airflow that this Python has installed.

    :param database: the URL of its database, instead of SQLite.
    :param broker: the URL of a broker, to have the CeleryExecutor.
    """
    if broker and database:
        return CeleryStack(home, dags, env, database, broker)
    kind = Airflow2Stack if version("apache-airflow").startswith("2.") else Airflow3Stack
    return kind(home, dags, env, database)
