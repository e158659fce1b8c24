"""Owners of ingests on a real Airflow: what a record adds to a campaign, and what a sweep and a listing cost.

The listing is that of ``airflow dai list``, which tells the owner of each operation.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from campaigns import PATIENCE, ROOT, START, Campaigns, Run, Stack, make_stack, wait_until
from processes import Bench
from report import Limit, Topic, ratio, times

from airflow_dai_provider.emulator import DaiEmulator
from tests.support.processes import running

HERE = Path(__file__).parent
#: The ingests of the campaign.
CAMPAIGN = 1_000
#: The runs that fail, and the ingests that each leaves running: of two tasks.
FAILED, LEFT = 50, 20
#: The operations of the longest listing, and how often each is measured: the quickest counts.
LISTED, LISTINGS = 10_000, 3


@dataclass(frozen=True)
class Listing:
    """What a listing has cost.

    :param rows: the operations.
    :param first_row: seconds from the start of the command until its first row.
    :param seconds: until its end.
    :param memory: the most that the process has used, in bytes.
    """

    rows: int
    first_row: float
    seconds: float
    memory: int


def owners(bench: Bench) -> Topic:
    """Measure a campaign without and with a record, and a sweep over a thousand ingests of fifty runs."""
    title = f"owners: records and the sweep, through Airflow {version('apache-airflow')} with LocalExecutor"
    columns = ("", "operations", "seconds", "CPU", "requests to Airflow")
    # Not by version_compat: an import of Airflow prints the requests that the emulator gets.
    if tuple(map(int, version("apache-airflow").split(".")[:2])) < (3, 3):
        return Topic(title, columns, notes=["This version of Airflow has no records."])
    lines, dags = bench.work / "processes", bench.work / "dags"
    dags.mkdir()
    for name in ("campaign_tasks.py", "campaigns.py"):
        shutil.copy(HERE / "dags" / name, dags)
    number, runs = bench.reduced(CAMPAIGN), bench.reduced(FAILED)
    with DaiEmulator(ingest_seconds=86_400) as emulator:
        env = {"DAI_EMULATOR_HOST": emulator.host, "BENCHMARK_PROCESSES": str(lines)}
        bench.say("owners: starting Airflow")
        with make_stack(ROOT / ".airflow" / f"owners-{version('apache-airflow')}", dags, env) as stack:
            stack.wait_for_dags("ingests_list")
            campaigns = Campaigns(stack, emulator, lines)
            campaigns.run("ingests_list", 1)  # of the first run, more is read and compiled
            bench.say(f"owners: a campaign of {number:,} without a record")
            without = campaigns.run("ingests_list", number)
            # Airflow knows the asset as soon as it has parsed a DAG with the sweep.
            shutil.copy(HERE / "dags" / "owners.py", dags)
            stack.wait_for_dags("failing_runs", "sweep_owned")
            bench.say(f"owners: a campaign of {number:,} with a record")
            recorded = campaigns.run("ingests_list", number)
            _check_records(stack)
            bench.say(f"owners: {runs} runs fail, and leave {LEFT} ingests each")
            left = _leave(stack, emulator, lines, runs)
            bench.say(f"owners: a sweep over {left:,} ingests")
            sweep = _sweep(stack, lines)
            listings = _list(bench, stack, emulator)
        cancelled = list(emulator.states().values()).count("CANCELLED")
    topic = Topic(
        title,
        columns,
        data={
            "without": asdict(without),
            "with": asdict(recorded),
            "sweep": sweep,
            "listings": [asdict(listing) for listing in listings],
        },
    )
    topic.rows += [
        ("campaign without a record", *_figures(without), ""),
        ("campaign with a record", *_figures(recorded), ""),
        ("sweep", f"{left:,}", f"{sweep['seconds']:.1f} s", "", f"{sweep['requests']:,}"),
        *(("airflow dai list", f"{one.rows:,}", f"{one.seconds:.1f} s", "", "") for one in listings),
    ]
    none, few, many = listings
    topic.notes += [
        f"With a record, a campaign takes {times(recorded.cpu / without.cpu)} of the CPU without.",
        *(
            f"airflow dai list of {one.rows:,}: the first row after {one.first_row:.1f} s, {one.memory / 2**20:.0f} MiB"
            for one in listings
        ),
    ]
    topic.limits += [
        Limit(f"first of {many.rows:,} rows / a listing of none", ratio(many.first_row, none.seconds), 1.25),
        Limit(f"memory of a listing, {many.rows:,} / {few.rows:,}", ratio(many.memory, few.memory), 1.1),
        Limit(f"CPU of a campaign of {number:,}, with a record / without", ratio(recorded.cpu, without.cpu), 1.3),
        Limit("requests to Airflow / (3 per run and task, and 2 per operation)", _share(sweep, left, runs), 1.0),
        Limit("strays that the sweep has left", left - cancelled, 0),
    ]
    return topic


def _check_records(stack: Stack) -> None:
    """Check that the campaign has written its record: a warning says that it has not."""
    runs = sorted(path.name for path in (stack.home / "logs" / "dag_id=ingests_list").iterdir())
    log = stack.task_log("ingests_list", runs[-1].removeprefix("run_id="), "ingest")
    if "Could not record" in log or not log:
        raise RuntimeError(f"The campaign has written no record:\n{log}")


def _leave(stack: Stack, emulator: DaiEmulator, lines: Path, runs: int) -> int:
    """Have runs fail while their ingests run; return the number of ingests."""
    emulator.reset()
    lines.write_text("")
    started = [
        stack.trigger("failing_runs", {"campaign": f"run-{run}", "number": LEFT // 2, "seconds": 86_400})
        for run in range(runs)
    ]
    states = [stack.wait_for_run("failing_runs", run, PATIENCE) for run in started]
    requested = sum(request.method == START for request in emulator.requests)
    if states != ["failed"] * runs or requested != runs * LEFT:
        raise RuntimeError(f"The runs have started {requested} ingests, and are {set(states)}")
    return requested


def _sweep(stack: Stack, lines: Path) -> dict[str, float]:
    run = stack.trigger("sweep_owned")
    if stack.wait_for_run("sweep_owned", run, PATIENCE) != "success":
        raise RuntimeError(f"The sweep has failed:\n{stack.task_log('sweep_owned', run, 'sweep')}")

    def noted() -> list[dict[str, float]]:
        return [note for line in lines.read_text().splitlines() if "requests" in (note := json.loads(line))]

    (sweep,) = wait_until("the figures of the sweep", noted, 10.0, 0.2)
    # The cancellations take effect at the next request.
    time.sleep(1)
    return dict(sweep)


def _list(bench: Bench, stack: Stack, emulator: DaiEmulator) -> tuple[Listing, Listing, Listing]:
    """List nothing, the operations of the failed runs, and these among many more."""
    found: list[Listing] = []
    for options in (["--url-prefix", "https://nowhere.example/"], [], []):
        if len(found) == 2:
            for _ in range(bench.reduced(LISTED) - found[-1].rows):
                emulator.start_ingest()
        bench.say(f"owners: airflow dai list {' '.join(options)}")
        runs = [_list_once(stack, options) for _ in range(LISTINGS)]
        found.append(min(runs, key=lambda run: run.first_row))
    none, few, many = found
    if (none.rows, few.rows, many.rows) != (0, bench.reduced(FAILED) * LEFT, bench.reduced(LISTED)):
        raise RuntimeError(f"The listings have {none.rows}, {few.rows} and {many.rows} rows")
    return none, few, many


def _list_once(stack: Stack, options: list[str]) -> Listing:
    command = [sys.executable, "-m", "airflow_dai_provider", "list", "--all", "--output", "plain", *options]
    began = time.monotonic()
    with running(command, env=stack.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        output: Any = process.stdout
        output.readline()  # the names of the columns
        row = output.readline()
        first_row = time.monotonic() - began
        rows = sum(1 for _ in output) + bool(row)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} has exited with {process.returncode}")
    return Listing(rows, first_row, time.monotonic() - began, usage.ru_maxrss * 1024)


def _figures(run: Run) -> tuple[str, str, str]:
    return f"{run.operations:,}", f"{run.seconds:.0f} s", f"{run.cpu:.1f} s"


def _share(sweep: dict[str, float], operations: int, runs: int) -> float:
    return sweep["requests"] / (3 * runs * 2 + 2 * operations)
