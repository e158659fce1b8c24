"""The topics: which scenarios each runs, what it shows, and which limits it holds against them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from statistics import mean, median
from typing import Any

from bench import Bench
from load_topics import look, scale
from processes import ScenarioError, running_script
from report import Limit, Topic, milli, times


def notice(bench: Bench) -> Topic:
    """How soon the end of a cancel is noticed."""
    seconds, seeds, poll_interval, fixed = (0.2, 1.0, 3.0, 10.0, 60.0), 25, 30.0, (30.0, 60.0)
    results = bench.run("end", seconds=seconds, seeds=seeds, poll_interval=poll_interval, fixed=fixed)
    topic = Topic(
        f"notice: from the end of a cancel to the trigger's event, on a simulated clock, {seeds} seeds each",
        (
            "cancel takes",
            "delay, mean",
            "max",
            "looks, max",
            "every 30 s: mean",
            "looks",
            "60 s: mean",
            "looks",
            "ours / 30 s",
        ),
        data=results,
    )
    worst_share = worst_delay = 0.0
    for nominal in seconds:
        ours, every_30, every_60 = (
            [result for result in results if (result["nominal"], result["interval"]) == (nominal, interval)]
            for interval in (None, *fixed)
        )
        delays = [result["delay"] for result in ours]
        worst_share = max(worst_share, *(result["delay"] / (1 + result["takes"] / 2) for result in ours))
        worst_delay = max(worst_delay, *delays)
        topic.rows.append(
            (
                f"{nominal:g} s",
                f"{mean(delays):.2f} s",
                f"{max(delays):.2f} s",
                str(_most_looks(ours)),
                *(
                    cell
                    for run in (every_30, every_60)
                    for cell in (f"{_mean_delay(run):.1f} s", str(_most_looks(run)))
                ),
                times(mean(delays) / _mean_delay(every_30)),
            )
        )
        if nominal == max(seconds):
            topic.limits.append(Limit(f"looks for a cancel of {nominal:g} s", _most_looks(ours), 12))
    topic.notes.append(f"poll_interval {poll_interval:g} s; each cancel takes up to 20 % more or less than stated.")
    topic.limits += [
        Limit("delay / (1 s + half of the cancel's own time), worst", worst_share, 1.0),
        Limit("delay / poll_interval, worst", worst_delay / poll_interval, 1.0),
    ]
    return topic


def _mean_delay(results: list[dict[str, Any]]) -> float:
    return mean(result["delay"] for result in results)


def _most_looks(results: list[dict[str, Any]]) -> int:
    return max(result["looks"] for result in results)


def imports(bench: Bench) -> Topic:
    """What a DAG file pays for importing ours, above Airflow itself."""
    base = "airflow.sdk" if find_spec("airflow.sdk") else "airflow.models.baseoperator,airflow.sensors.base"
    ours = ",".join(
        f"airflow_dai_provider.{kind}.dai" for kind in ("operators", "sensors", "triggers", "notifications")
    )
    google = "airflow.providers.google.cloud.operators.dataproc"
    env = {**bench.env, "PYTHONPYCACHEPREFIX": str(bench.work / "bytecode")}
    runs: dict[str, list[dict[str, Any]]] = {ours: [], google: []}
    repetitions = 4
    for repetition in range(repetitions + 1):
        for modules, results in runs.items():
            bench.say(f"import: {repetition or 'compile'}: {modules}")
            measured = _import_times(env, base, modules)
            if repetition:
                results.append(measured)
    topic = Topic(
        "import: CPU of importing, in fresh interpreters with compiled bytecode",
        ("", "CPU", "of the base", "modules"),
        data={"base": base, **runs},
    )
    base_cpu = median(run["base"]["cpu"] for results in runs.values() for run in results)
    topic.rows.append((f"base: {base}", milli(base_cpu), times(1), str(runs[ours][0]["base"]["modules"])))
    for words, modules in (("ours above it, all four modules", ours), (f"{google} above it", google)):
        cpu = median(run["above"]["cpu"] for run in runs[modules])
        topic.rows.append((words, milli(cpu), f"{cpu / base_cpu:.3f} x", str(runs[modules][0]["above"]["modules"])))
    share = median(run["above"]["cpu"] / run["base"]["cpu"] for run in runs[ours])
    topic.limits.append(Limit("import, ours / base", share, 0.05))
    heavy = ", ".join(runs[ours][0]["heavy"]) or "none"
    topic.notes.append(f"Medians of {repetitions} interpreters. Heavy libraries that ours adds to the base: {heavy}.")
    return topic


def _import_times(env: Mapping[str, str], base: str, modules: str) -> dict[str, Any]:
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    with running_script("import_timer.py", base, modules, env=env, **streams) as process:
        output, _ = process.communicate(timeout=120)
    if process.returncode:
        raise ScenarioError(f"importing {modules} has ended with exit code {process.returncode}")
    return json.loads(output.splitlines()[-1])


def sync(bench: Bench) -> Topic:
    """What a sensor in poke mode costs that keeps its hook."""
    looks = 20
    runs = {kind: bench.run("sensor", kind=kind, looks=looks, repetitions=5) for kind in ("ours", "hook_per_poke")}
    ours, habit = runs.values()
    topic = Topic(
        f"sync: a sensor in poke mode that looks {looks} times, without a pause",
        ("", "looks", "connections", "tokens", "lines", "CPU", "ours is"),
        data=runs,
    )
    for kind, run in runs.items():
        counted = (str(run[key]) for key in ("looks", "connections", "tokens", "lines"))
        topic.rows.append((kind.replace("_", " "), *counted, milli(run["cpu"]), times(ours["cpu"] / run["cpu"])))
    topic.notes.append(
        "One run of the sensor, the cheapest of 5. Connections to the service; each token takes another one."
    )
    topic.limits += [Limit("connections of ours", ours["connections"], 1), Limit("tokens of ours", ours["tokens"], 1)]
    return topic


TOPICS = {"look": look, "scale": scale, "notice": notice, "import": imports, "sync": sync}
