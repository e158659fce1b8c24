"""Measure a sensor in poke mode, and one that creates a hook at each poke, as is common."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import BaseSensorOperator
from counters import Counters
from logs import log_like_the_triggerer
from server import FINISHES_AFTER

from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.sensors.dai import DaiOperationSensor


class HookPerPokeSensor(BaseSensorOperator):
    """The same call by a new hook each time, as in most sensors."""

    def __init__(self, *, operation_name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.operation_name = operation_name

    def poke(self, context: Any) -> bool:  # noqa: ARG002 - Airflow's signature
        self.log.info("Poking for %s", self.operation_name)
        with DaiHook() as hook:
            return hook.get_operation(self.operation_name).done


SENSORS = {"ours": DaiOperationSensor, "hook_per_poke": HookPerPokeSensor}


def sensor(kind: str, polls: int, repetitions: int) -> dict[str, Any]:
    """
    Run a sensor that polls until the operation has finished, without a pause.

    :param kind: a key of :data:`SENSORS`.
    :param polls: the number of polls until the operation has finished.
    :param repetitions: the number of runs, each with a new sensor; the cheapest counts.
    :return: the cost of one run, and the counters of the server in it.
    """
    sink = log_like_the_triggerer()
    counters = Counters(Path(os.environ["BENCHMARK_COUNTERS"]))
    runs = []
    for number in range(repetitions):
        name = f"{FINISHES_AFTER}{polls}/{kind}-{os.getpid()}-{number}"
        task = SENSORS[kind](task_id=f"wait-{number}", operation_name=name, poke_interval=0.001)
        before, lines, began = counters.read(), sink.lines, time.process_time()
        task.execute({})
        cpu = time.process_time() - began
        counted = {key: value - before[key] for key, value in counters.read().items()}
        runs.append({"cpu": cpu, "lines": sink.lines - lines, **counted})
    return {"kind": kind, **min(runs, key=lambda run: run["cpu"]), "runs": runs}
