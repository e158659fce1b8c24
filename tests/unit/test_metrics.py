"""What is counted arrives at a real StatsD listener, under the documented names."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

from airflow_dai_provider.emulator import DaiEmulator, Fault

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "metrics.md"

#: What a worker does: cancel one ingest and wait for it, in the worker and, for another, on an event loop.
WORK = """
import asyncio
from airflow_dai_provider.hooks.dai import DaiAsyncHook
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator, DaiCancelStrayOperationsOperator, sweep
from tests.support.airflow_versions import start_metrics

start_metrics()

class TaskInstance:
    dag_id, run_id, task_id, map_index, try_number = "a_dag", "a_run", "cancel", -1, 1
    def xcom_push(self, key, value): pass

DaiCancelOperationOperator(
    task_id="cancel", operation_name="operations/a", wait_for_completion=True
).execute({"ti": TaskInstance()})

DaiCancelOperationOperator(
    task_id="too_late", operation_name="operations/done", wait_for_completion=True
).execute({"ti": TaskInstance()})

async def main():
    async with DaiAsyncHook() as hook:
        await hook.cancel_operation("operations/b")
        await hook.wait_for_operation("operations/b")

asyncio.run(main())
# No Airflow runs here that knows owners.
sweep.find_owners = lambda *_: None
DaiCancelStrayOperationsOperator(
    task_id="sweep", older_than=0.001, wait_for_completion=True
).execute({"ti": TaskInstance()})
"""


def test_what_a_statsd_listener_gets() -> None:
    with DaiEmulator(ingest_seconds=3600) as emulator, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(0.5)
        for name in ("operations/a", "operations/b", "operations/c"):
            emulator.start_ingest(name)
        emulator.start_ingest("operations/done", seconds=0)
        emulator.inject(Fault("operations.cancel", "operations/a", status=503))
        env = os.environ | {
            "DAI_EMULATOR_HOST": emulator.host,
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(listener.getsockname()[1]),
            "AIRFLOW__METRICS__STATSD_PREFIX": "airflow",
        }
        done = subprocess.run(
            [sys.executable, "-c", WORK], env=env, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        received = receive(listener)

    counted = Counter({name: int(value) for name, value, kind in received if kind == "c"})
    assert counted == {
        "airflow.dai.cancel_requested": 4,
        "airflow.dai.polls": 4,
        "airflow.dai.operation_finished.cancelled": 2,
        "airflow.dai.operation_finished.succeeded": 1,
        "airflow.dai.retries": 1,
    }
    ((timer, milliseconds, _),) = [line for line in received if line[2] == "ms"]
    assert timer == "airflow.dai.cancel_duration"
    assert 200 < float(milliseconds) < 20_000  # it has waited for the repeat
    assert [(name, value) for name, value, kind in received if kind == "g"] == [("airflow.dai.strays_found", "1")]
    documented = PAGE.read_text()
    for name, _, _ in received:
        metric = name.removeprefix("airflow.")
        metric = re.sub(r"finished\.\w+", "finished.<state>", metric)
        assert f"`{metric}`" in documented


def receive(listener: socket.socket) -> list[tuple[str, str, str]]:
    """Return the name, value and kind of every metric of ours that has arrived, counters of a name added up."""
    text = ""
    while True:
        try:
            text += listener.recv(65535).decode() + "\n"
        except TimeoutError:
            break
    found = re.findall(r"^(airflow\.dai\.\S+?):([^|]+)\|(\w+)", text, re.MULTILINE)
    totals: Counter[str] = Counter()
    for name, value, kind in found:
        if kind == "c":
            totals[name] += int(value)
    counters = [(name, str(value), "c") for name, value in totals.items()]
    return counters + [line for line in found if line[2] != "c"]
