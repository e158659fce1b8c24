"""The topic of waits that poll together, compared with one request per poll, and with the field's habit."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

from processes import Bench
from report import Limit, Topic, micro, times

#: For each number of waits: the interval in seconds, how many of them are measured, and how often. A short interval of
#: few waits gives enough polls to measure.
SIZES = {10: (0.2, 100, 3), 100: (2.0, 10, 1), 1_000: (10.0, 4, 1), 10_000: (30.0, 2, 1)}
SMALL = {10: (0.2, 20, 1), 100: (1.0, 4, 1)}
FINISHED = (1_000, 50_000)
#: The waits for which lists of other lengths, and a server without list, are measured.
LARGE = (1_000, 10_000)
#: For the field's habit: the interval of so many waits is longer, since each poll costs three times as much.
HABIT = {10_000: (60.0, 1)}
STARTS_PER_SECOND = 400.0
#: Seconds that one run may take.
LIMIT = 600.0
#: Seconds for which what was learned of a list lasts, as in the package.
GETS_FOR = 300.0
#: Seconds that a finish may be noticed later, beside the interval and the time to read the list.
SLACK = 0.5


def many(bench: Bench) -> Topic:
    """Measure waits that poll together."""
    sizes = SMALL if bench.small else SIZES
    topic = Topic(
        "many: waits that poll together, over TLS, at a poll_interval of 30 s",
        (
            "waits",
            "finished in the list",
            "",
            "requests/wait/min",
            "of gets",
            "CPU/wait/min",
            "of gets",
            "memory/wait",
            "notice, mean",
            "max",
            "list read in",
        ),
        data=[],
    )
    for waits, (interval, rounds, repetitions) in sizes.items():
        runs = [
            {kind: _run(bench, topic, kind, waits, 0, interval, rounds) for kind in ("together", "ours")}
            for _ in range(repetitions)
        ]
        gets = runs[0]["ours"]
        _show(topic, runs[0]["together"], gets)
        _show(topic, gets, gets)
        _show(topic, _run(bench, topic, "session_per_poll", waits, None, *HABIT.get(waits, (interval, rounds))), gets)
        _limit(topic, waits, runs)
        if waits in LARGE or bench.small:
            for listed in (*(bench.reduced(number) for number in FINISHED), None):
                run = _run(bench, topic, "together", waits, listed, interval, rounds)
                _show(topic, run, gets)
                what = "no list" if listed is None else f"{listed:,} finished in the list"
                most = 0.1 if waits in LARGE and listed == min(FINISHED) else 1.1
                topic.limits.append(Limit(f"requests, {waits:,} waits, {what}, / gets", _requests(run, gets), most))
    topic.notes += [
        "Each row is a process of its own; CPU is that of the client, in yardsticks where it is compared.",
        "Together: the trigger of the package. Ours: the same by get only. Session per poll: the field's habit. The",
        "interval is shorter for few waits: "
        + ", ".join(f"{waits:,}: {interval:g} s" for waits, (interval, _, _) in sizes.items())
        + "; requests and CPU are",
        "scaled to 30 s. Notice: from the finish of an operation until its wait ends, in intervals. The pages that",
        f"were read before the measurement count with their share of the {GETS_FOR:.0f} s for which they decide.",
    ]
    return topic


def _run(
    bench: Bench, topic: Topic, kind: str, waits: int, listed: int | None, interval: float, rounds: int
) -> dict[str, Any]:
    arguments = {"interval": interval, "rounds": rounds, "starts_per_second": STARTS_PER_SECOND, "listed": listed}
    run: dict[str, Any] = bench.run("many", limit=LIMIT, kind=kind, waits=waits, **arguments)
    topic.data.append(run)
    return run


def _requests(run: dict[str, Any], gets: dict[str, Any]) -> float:
    """Return the requests of a run as a share of those of gets only."""
    explored = run["explored"] * run["interval"] * run["rounds"] / GETS_FOR
    share = 1 + explored / run["requests"]
    return float(run["requests_per_wait_minute"] * share / gets["requests_per_wait_minute"])


def _show(topic: Topic, run: dict[str, Any], gets: dict[str, Any]) -> None:
    delays = [delay / run["interval"] for delay in run["delays"]]
    topic.rows.append(
        (
            f"{run['waits']:,}",
            "no list" if run["listed"] is None else f"{run['listed']:,}",
            run["kind"].replace("_", " "),
            f"{run['requests_per_wait_minute']:.3f}",
            times(_requests(run, gets)),
            micro(run["cpu_per_wait_minute"]),
            times(run["yardsticks_per_wait_minute"] / gets["yardsticks_per_wait_minute"]),
            f"{run['memory_per_wait'] / 1024:.1f} KiB",
            f"{mean(delays):.2f}",
            f"{max(delays):.2f}",
            f"{run['list_seconds']:.2f} s",
        )
    )


def _limit(topic: Topic, waits: int, runs: list[dict[str, dict[str, Any]]]) -> None:
    """Add the limits for a number of waits, without finished operations in the list."""
    requests = median(_requests(run["together"], run["ours"]) for run in runs)
    cpu = median(run["together"]["yardsticks"] / run["ours"]["yardsticks"] for run in runs)
    most_requests, most_cpu = (0.1, 0.25) if waits >= min(LARGE) else (1.05, 1.05)
    topic.limits += [
        Limit(f"requests, {waits:,} waits, together / gets", requests, most_requests),
        Limit(f"CPU, {waits:,} waits, together / gets", cpu, most_cpu),
    ]
    if waits >= min(LARGE):
        run = runs[0]["together"]
        later = max(run["delays"]) - run["interval"]
        topic.limits.append(
            Limit(f"notice beyond the interval, {waits:,} waits, s", later, run["list_seconds"] + SLACK)
        )
