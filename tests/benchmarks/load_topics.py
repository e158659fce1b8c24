"""The topics of many waits on one loop: the cost of a poll, and how it grows with the number of waits."""

from __future__ import annotations

from statistics import median
from typing import Any

from processes import Bench
from report import Limit, Topic, micro, milli, times

RATE = 500
WAITS = 1_000
REPETITIONS = 3
WINDOWS = 2
#: A start costs ours as much as a poll does.
STARTS = {"ours": RATE / 2}


def poll(bench: Bench) -> Topic:
    """Measure the CPU of a poll, compared with the least possible and with sessions that are not shared."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "floor": [], "floor_with_line": [], "session_per_poll": []}
    for _ in range(REPETITIONS):
        for kind, results in runs.items():
            results.append(_run(bench, kind, WAITS, windows=WINDOWS))
    few = {"waits": 40, "polls_per_second": 20, "windows": 1, "window_polls": 60}
    runs["session_and_token_per_poll"] = [bench.run("load", kind="session_and_token_per_poll", **few)]
    ours = runs["ours"]
    ratio = {kind: _ratio(ours, results, "yardsticks_per_poll") for kind, results in runs.items()}
    topic = Topic(
        f"poll: CPU of the client per poll, {WAITS:,} waits on one loop, {RATE} polls/s wanted, over TLS",
        ("", "CPU/poll", "ours is", "yardsticks", "ours is", "polls/s", "connections", "polls", "tokens", "lines/poll"),
        data=runs,
    )
    for kind, results in runs.items():
        topic.rows.append(
            (
                kind.replace("_", " "),
                micro(_median(results, "cpu_per_poll")),
                times(_ratio(ours, results, "cpu_per_poll")),
                f"{_median(results, 'yardsticks_per_poll'):.2f}",
                times(ratio[kind]),
                f"{_median(results, 'polls_per_second'):.0f}",
                *(str(max(run[key] for run in results)) for key in ("connections", "polls", "tokens")),
                f"{results[0]['lines_per_poll']:.2f}",
            )
        )
    topic.notes += [
        f"Medians of {REPETITIONS} processes in turn, each with {WINDOWS} windows of 1,000 polls. Limits are in",
        "yardsticks, a piece of work timed beside the polls, since other load on the machine slows both.",
        "Connections, polls and tokens are those of one process, including warm-up.",
        "Logged at Airflow's default level, INFO, in the triggerer's format. Ours logs a line when a poll finds",
        f"something new, and Airflow some at the start: {ours[0]['lines'] / ours[0]['operations']:.1f} lines per wait.",
        "Session and token per poll: 40 waits, 20 polls/s wanted.",
        f"The start of a wait costs ours {micro(_median(ours, 'cpu_per_start'))}, as much as "
        f"{median(run['cpu_per_start'] / run['cpu_per_poll'] for run in ours):.1f} polls.",
    ]
    topic.limits += [
        Limit("CPU/poll, ours / floor", ratio["floor"], 1.5),
        Limit("CPU/poll, ours / session per poll", ratio["session_per_poll"], 1 / 3),
        Limit("connections of ours", max(run["connections"] for run in ours), 100),
        Limit("tokens of ours", max(run["tokens"] for run in ours), 1),
        Limit("CPU of a start / poll", median(run["cpu_per_start"] / run["cpu_per_poll"] for run in ours), 1.0),
    ]
    return topic


def scale(bench: Bench) -> Topic:
    """Measure different numbers of waits at the same rate of polls."""
    pairs = ("CPU/poll", "lag p50", "lag p99", "lag max", "memory/wait")
    topic = Topic(
        f"scale: more waits on one loop, always {RATE} polls/s; each figure of ours beside that of the floor",
        ("waits", *(column for name in pairs for column in (name, "floor"))),
        data=[],
    )
    ours: dict[int, dict[str, Any]] = {}
    for waits in (100, 1_000, 10_000):
        both = [_run(bench, kind, waits, windows=3, probe=True) for kind in ("ours", "floor")]
        topic.data += both
        ours[waits] = both[0]
        cells = [f"{micro(run['cpu_per_poll'])} ({run['yardsticks_per_poll']:.2f})" for run in both]
        cells += [milli(run["lag"][share]) for share in ("p50", "p99", "max") for run in both]
        cells += [f"{run['memory_per_wait'] / 1024:.1f} KiB" for run in both]
        topic.rows.append((f"{waits:,}", *cells))
    topic.notes += [
        "CPU: median of 3 windows of 1,000 polls, in brackets in yardsticks, which the ratio uses. Logs as in poll.",
        "Lag: the delay with which a coroutine wakes that sleeps 10 ms.",
        "Memory: growth of the process since the first wait had polled, including connections and threads.",
    ]
    for words, what in (("CPU/poll", "yardsticks_per_poll"), ("memory/wait", "memory_per_wait")):
        topic.limits.append(Limit(f"{words}, 10,000 waits / 1,000", ours[10_000][what] / ours[1_000][what], 1.3))
    return topic


def _run(bench: Bench, kind: str, waits: int, **options: Any) -> dict[str, Any]:
    starts = STARTS.get(kind, RATE)
    return bench.run("load", kind=kind, waits=waits, polls_per_second=RATE, starts_per_second=starts, **options)


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return median(run[key] for run in runs)


def _ratio(ours: list[dict[str, Any]], others: list[dict[str, Any]], key: str) -> float:
    """Compare runs of the same turn, within which the load of the machine changes least."""
    pairs = zip(ours, others, strict=False)
    return median(our[key] / other[key] for our, other in pairs)
