"""The topics of many waits on one loop: what a look costs, and whether it costs more when there are more waits."""

from __future__ import annotations

from statistics import median
from typing import Any

from bench import Bench
from report import Limit, Topic, micro, milli, times

RATE = 500
WAITS = 1_000
REPETITIONS = 3
WINDOWS = 2
#: A start costs ours as much as two looks, mostly for Airflow's look-up of the connection.
STARTS = {"ours": RATE / 2}


def look(bench: Bench) -> Topic:
    """Measure the CPU of a look, against the least that it can cost and against sessions that are not shared."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "floor": [], "floor_with_line": [], "session_per_look": []}
    for _ in range(REPETITIONS):
        for kind, results in runs.items():
            results.append(_run(bench, kind, WAITS, windows=WINDOWS))
    few = {"waits": 40, "looks_per_second": 20, "windows": 1, "window_looks": 60}
    runs["session_and_token_per_look"] = [bench.run("load", kind="session_and_token_per_look", **few)]
    ours = runs["ours"]
    ratio = {kind: _ratio(ours, results, "yardsticks_per_look") for kind, results in runs.items()}
    topic = Topic(
        f"look: CPU of the client per look, {WAITS:,} waits on one loop, {RATE} looks/s wanted, over TLS",
        ("", "CPU/look", "ours is", "yardsticks", "ours is", "looks/s", "connections", "looks", "tokens", "lines/look"),
        data=runs,
    )
    for kind, results in runs.items():
        topic.rows.append(
            (
                kind.replace("_", " "),
                micro(_median(results, "cpu_per_look")),
                times(_ratio(ours, results, "cpu_per_look")),
                f"{_median(results, 'yardsticks_per_look'):.2f}",
                times(ratio[kind]),
                f"{_median(results, 'looks_per_second'):.0f}",
                *(str(max(run[key] for run in results)) for key in ("connections", "looks", "tokens")),
                f"{results[0]['lines_per_look']:.2f}",
            )
        )
    topic.notes += [
        f"Medians of {REPETITIONS} processes in turn, each with {WINDOWS} windows of 1,000 looks. Limits hold for",
        "yardsticks, a piece of work that is timed beside the looks, as what else the machine does slows both.",
        "Connections, looks and tokens are those of one process, warm-up included.",
        "Logged at Airflow's default level, INFO, in the triggerer's format. Ours writes a line when a look brings",
        f"something new, and Airflow some at the start: {ours[0]['lines'] / ours[0]['operations']:.1f} lines per wait.",
        "Session and token per look: 40 waits, 20 looks/s wanted.",
        f"To start a wait costs ours {micro(_median(ours, 'cpu_per_start'))}, as much as "
        f"{median(run['cpu_per_start'] / run['cpu_per_look'] for run in ours):.1f} looks.",
    ]
    topic.limits += [
        Limit("CPU/look, ours / floor", ratio["floor"], 1.5),
        Limit("CPU/look, ours / session per look", ratio["session_per_look"], 1 / 3),
        Limit("connections of ours", max(run["connections"] for run in ours), 100),
        Limit("tokens of ours", max(run["tokens"] for run in ours), 1),
    ]
    return topic


def scale(bench: Bench) -> Topic:
    """Measure more waits at the same rate of looks."""
    pairs = ("CPU/look", "lag p50", "lag p99", "lag max", "memory/wait")
    topic = Topic(
        f"scale: more waits on one loop, always {RATE} looks/s; each figure of ours with the floor's beside it",
        ("waits", *(column for name in pairs for column in (name, "floor"))),
        data=[],
    )
    ours: dict[int, dict[str, Any]] = {}
    for waits in (100, 1_000, 10_000):
        both = [_run(bench, kind, waits, windows=3, probe=True) for kind in ("ours", "floor")]
        topic.data += both
        ours[waits] = both[0]
        cells = [f"{micro(run['cpu_per_look'])} ({run['yardsticks_per_look']:.2f})" for run in both]
        cells += [milli(run["lag"][share]) for share in ("p50", "p99", "max") for run in both]
        cells += [f"{run['memory_per_wait'] / 1024:.1f} KiB" for run in both]
        topic.rows.append((f"{waits:,}", *cells))
    topic.notes += [
        "CPU: median of 3 windows of 1,000 looks, in brackets in yardsticks, of which the ratio is. Logs as in look.",
        "Lag: how much later than asked a coroutine wakes that sleeps 10 ms.",
        "Memory: growth of the process since one wait had looked; connections and threads are in it.",
    ]
    for words, what in (("CPU/look", "yardsticks_per_look"), ("memory/wait", "memory_per_wait")):
        topic.limits.append(Limit(f"{words}, 10,000 waits / 1,000", ours[10_000][what] / ours[1_000][what], 1.3))
    return topic


def _run(bench: Bench, kind: str, waits: int, **options: Any) -> dict[str, Any]:
    starts = STARTS.get(kind, RATE)
    return bench.run("load", kind=kind, waits=waits, looks_per_second=RATE, starts_per_second=starts, **options)


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return median(run[key] for run in runs)


def _ratio(ours: list[dict[str, Any]], others: list[dict[str, Any]], key: str) -> float:
    """Compare what ran in the same turn: the machine changes less within one than in the whole run."""
    pairs = zip(ours, others, strict=False)
    return median(our[key] / other[key] for our, other in pairs)
