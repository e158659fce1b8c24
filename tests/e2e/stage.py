"""A running Airflow with the DAGs of the rows, on PostgreSQL, with the executor that the environment names."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from outcomes import AIRFLOW, SETTINGS
from play import Service, Stack
from rows import AIRFLOW_3
from stack import make_stack
from stack_airflow_2 import CONCURRENT

from airflow_dai_provider.emulator import DaiEmulator
from tests.support.postgresql import postgresql_server
from tests.support.redis_server import redis_server
from tests.support.servers import Server

HERE = Path(__file__).resolve().parent
#: The executor of this Airflow: ``local`` or ``celery``.
EXECUTOR = os.environ.get("E2E_EXECUTOR", "local")
#: What a home, and the table of the rows, are named after.
INSTALLATION = version("apache-airflow") + ("-celery" if EXECUTOR == "celery" else "")


@dataclass
class Stage:
    """A running Airflow, a service, an ingest that belongs to neither, and the servers that Airflow needs."""

    airflow: Stack
    service: Service
    spared: str
    database: Server
    broker: Server | None


@contextmanager
def stage_of(name: str, clock: Callable[[], float] = time.time) -> Iterator[Stage]:
    """Start Airflow in a home of this name, and a service with this clock."""
    home = HERE.parents[1] / ".airflow" / f"{name}-{INSTALLATION}"
    dags = home.with_name(f"{home.name}.dags")
    shutil.rmtree(dags, ignore_errors=True)
    dags.mkdir(parents=True)
    for file in ("rows.py", "owned.py", "many.py"):
        shutil.copy(HERE / "dags" / file, dags)
    logging.getLogger("airflow_dai_provider.emulator").setLevel(logging.WARNING)
    with ExitStack() as stack:
        emulator = stack.enter_context(DaiEmulator(clock=clock))
        env = {"DAI_EMULATOR_HOST": emulator.host, **SETTINGS}
        if AIRFLOW < AIRFLOW_3:
            env |= CONCURRENT
        # So many tasks at a time lock SQLite so long that Airflow itself sets some of them to failed.
        database = stack.enter_context(postgresql_server())
        broker = stack.enter_context(redis_server()) if EXECUTOR == "celery" else None
        airflow = stack.enter_context(make_stack(home, dags, env, database.url, broker.url if broker else None))
        airflow.wait_for_dags("waits__own", "sweep_once")
        yield Stage(airflow, Service(emulator), emulator.start_ingest(seconds=7200), database, broker)
