"""The topics: the scenarios, the table and the limits of each."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from statistics import mean, median
from typing import Any

from campaigns import campaign
from load_topics import poll, scale
from many_topic import many
from owners import owners
from processes import Bench, ScenarioError, running_script
from report import Limit, Topic, milli, times


def notice(bench: Bench) -> Topic:
    """Measure how soon a finished cancellation is noticed."""
    seconds, seeds, poll_interval, fixed = (0.2, 1.0, 3.0, 10.0, 60.0), 25, 30.0, (30.0, 60.0)
    results = bench.run("finish", seconds=seconds, seeds=seeds, poll_interval=poll_interval, fixed=fixed)
    topic = Topic(
        f"notice: from a finished cancellation to the trigger's event, on a simulated clock, {seeds} seeds each",
        (
            "cancellation",
            "delay, mean",
            "max",
            "polls, max",
            "every 30 s: mean",
            "polls",
            "60 s: mean",
            "polls",
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
                str(_most_polls(ours)),
                *(
                    cell
                    for run in (every_30, every_60)
                    for cell in (f"{_mean_delay(run):.1f} s", str(_most_polls(run)))
                ),
                times(mean(delays) / _mean_delay(every_30)),
            )
        )
        if nominal == max(seconds):
            topic.limits.append(Limit(f"polls for a cancellation of {nominal:g} s", _most_polls(ours), 12))
    topic.notes.append(f"poll_interval {poll_interval:g} s; a cancellation takes up to 20 % more or less than stated.")
    topic.limits += [
        Limit("delay / (1 s + half of the cancellation), worst", worst_share, 1.0),
        Limit("delay / poll_interval, worst", worst_delay / poll_interval, 1.0),
    ]
    return topic


def _mean_delay(results: list[dict[str, Any]]) -> float:
    return mean(result["delay"] for result in results)


def _most_polls(results: list[dict[str, Any]]) -> int:
    return max(result["polls"] for result in results)


def imports(bench: Bench) -> Topic:
    """Measure what the import of ours adds to that of Airflow in a DAG file."""
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
        raise ScenarioError(f"importing {modules} has exited with {process.returncode}")
    return json.loads(output.splitlines()[-1])


def sync(bench: Bench) -> Topic:
    """Measure a sensor in poke mode, which keeps its hook."""
    polls = 20
    runs = {kind: bench.run("sensor", kind=kind, polls=polls, repetitions=5) for kind in ("ours", "hook_per_poke")}
    ours, habit = runs.values()
    topic = Topic(
        f"sync: a sensor in poke mode that polls {polls} times, without a pause",
        ("", "polls", "connections", "tokens", "lines", "CPU", "ours is"),
        data=runs,
    )
    for kind, run in runs.items():
        counted = (str(run[key]) for key in ("polls", "connections", "tokens", "lines"))
        topic.rows.append((kind.replace("_", " "), *counted, milli(run["cpu"]), times(ours["cpu"] / run["cpu"])))
    topic.notes.append(
        "One run of the sensor, the cheapest of 5. Connections to the service; each token takes another one."
    )
    for key in ("connections", "tokens"):
        topic.limits.append(Limit(f"{key} of ours, in any of the runs", max(run[key] for run in ours["runs"]), 1))
    return topic


TOPICS = {
    "poll": poll,
    "scale": scale,
    "many": many,
    "notice": notice,
    "import": imports,
    "sync": sync,
    "campaign": campaign,
    "owners": owners,
}
