"""A campaign through a real Airflow: mapped, with a process or two for each operation, and as a list in one task."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from processes import Bench
from report import Limit, Topic, ratio, times

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.emulator.api import RecordedRequest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from stack import Airflow2Stack, Airflow3Stack, make_stack, wait_until  # noqa: E402

Stack = Airflow2Stack | Airflow3Stack

#: The operations of a campaign that runs mapped and as a list, and of those that run as a list only.
COMPARED, MORE = 200, (1_000, 5_000)
#: After so many cancellations the service is busy, and asks for a pause.
BUSY_AFTER, RETRY_AFTER = 100, 1
#: The ingests of a task that is killed, and the seconds that the service takes for the response to a cancel request.
KILLED, LATENCY = 1_000, 0.02
#: Seconds in which the CPU of an Airflow that runs nothing is measured.
IDLE = 10.0
PATIENCE = 1800.0
#: The most cancel requests that may be under way when the service asks for a pause.
UNDER_WAY = 64
#: Seconds without a cancel request after which a killed task has sent its last.
SETTLED = 10.0
IN_WORKER = "ingests_list_in_worker"
START, GET, CANCEL = "creatives.create", "operations.get", "operations.cancel"


@dataclass(frozen=True)
class Run:
    """
    One run of a campaign.

    :param dag_id: the DAG.
    :param operations: their number.
    :param seconds: from the start of the run to its end.
    :param cpu: seconds of CPU of all processes of Airflow, less what they use without a run.
    :param last_request: seconds from the start of the run to the last request to start or to cancel.
    :param processes: of the tasks that start, cancel or wait.
    :param memory: the most that one of these has held, in bytes.
    :param triggerer: the most that the triggerer has held, in bytes.
    """

    dag_id: str
    operations: int
    seconds: float
    cpu: float
    last_request: float
    processes: int
    memory: int
    triggerer: int

    @property
    def cpu_per_operation(self) -> float:
        return self.cpu / self.operations

    def memory_per_operation(self, one: Run) -> float:
        """Return the memory of the task and the triggerer beyond that of a run with one operation, for each."""
        more = self.memory - one.memory + max(0, self.triggerer - one.triggerer)
        return more / (self.operations - one.operations)


@dataclass(frozen=True)
class Kill:
    """
    What became of the ingests of a killed task.

    :param where: the kind of process that was killed.
    :param first, last: seconds from the kill to the first and to the last cancel request.
    :param left: the number of ingests that were not cancelled.
    :param twice: of those that were cancelled more than once.
    """

    where: str
    first: float
    last: float
    left: int
    twice: int


class Campaigns:
    """Runs campaigns on one Airflow, one after the other."""

    def __init__(self, stack: Stack, emulator: DaiEmulator, lines: Path) -> None:
        self._stack = stack
        self._emulator = emulator
        self._lines = lines
        self._number = 0
        before, began = stack.cpu_seconds(), time.monotonic()
        time.sleep(IDLE)
        self.idle = (stack.cpu_seconds() - before) / (time.monotonic() - began)

    def run(self, dag_id: str, operations: int, busy_after: int | None = None) -> Run:
        """Run a campaign, and check its result.

        :param busy_after: the number of cancellations after which the service asks for a pause, again and again.
        """
        stack, emulator = self._stack, self._emulator
        campaign = self._begin()
        stack.forget_peak_memory("triggerer")
        method = START if dag_id.startswith("ingests") else CANCEL
        if method == CANCEL:
            for number in range(operations):
                emulator.start_ingest(f"operations/{campaign}/{number}")
        for _ in range(operations // busy_after if busy_after else 0):
            emulator.inject(Fault(CANCEL, headers={"X-Served": "1"}, times=busy_after))
            emulator.inject(Fault(CANCEL, status=429, retry_after=RETRY_AFTER, lasts=float(RETRY_AFTER)))
        cpu, began = stack.cpu_seconds(), time.monotonic()
        run_id = stack.trigger(dag_id, {"campaign": campaign, "number": operations})

        def finished() -> bool:
            stack.check_alive()
            return stack.run_state(dag_id, run_id) in ("success", "failed")

        wait_until(f"{dag_id} with {operations} operations", finished, PATIENCE, 1.0)
        seconds = time.monotonic() - began
        cpu = stack.cpu_seconds() - cpu - self.idle * seconds
        states = set(emulator.states().values())
        expected = {"SUCCEEDED"} if method == START else {"CANCELLED"}
        if stack.run_state(dag_id, run_id) != "success" or states != expected or len(emulator.states()) != operations:
            raise RuntimeError(f"{dag_id} has not done its work: {stack.task_states(dag_id, run_id)}, {states}")
        notes = [json.loads(line) for line in self._lines.read_text().splitlines()]
        notes = [note for note in notes if note["task"] in ("cancel", "wait", "ingest")]
        last = max(request.time for request in emulator.requests if request.method == method)
        return Run(
            dag_id,
            operations,
            seconds,
            cpu,
            last - stack.run_started(dag_id, run_id),
            len({note["pid"] for note in notes}),
            max(note.get("memory", 0) for note in notes) * 1024,
            stack.peak_memory("triggerer"),
        )

    def kill(self, dag_id: str, operations: int, state: str) -> Kill:
        """Mark the task of a campaign failed, as a user does, when all its ingests run.

        :param state: the state in which the task waits.
        """
        stack, emulator = self._stack, self._emulator
        conf = {"campaign": self._begin(), "number": operations, "seconds": 86_400}
        emulator.inject(Fault(CANCEL, delay=LATENCY, rate=1.0))
        run_id = stack.trigger(dag_id, conf)

        def waits() -> bool:
            stack.check_alive()
            # A trigger that no triggerer runs yet is not told of a kill.
            polled = {request.name for request in emulator.requests if request.method == GET}
            return len(polled) == operations and stack.task_states(dag_id, run_id)["ingest"] == state

        wait_until(f"{dag_id} to wait for {operations} ingests", waits, PATIENCE)
        killed = time.time()
        stack.mark(dag_id, run_id, "ingest", "failed")

        def cancels() -> list[float]:
            return [request.time - killed for request in emulator.requests if request.method == CANCEL]

        def settled() -> bool:
            times = cancels()
            return bool(times) and time.time() - killed > max(times) + SETTLED

        wait_until(f"the cancellation of {operations} ingests", settled, 120.0)
        times, names = cancels(), emulator.states()
        asked = [emulator.cancel_requested(name) for name in names]
        return Kill(state, min(times), max(times), list(names.values()).count("RUNNING"), sum(one > 1 for one in asked))

    def _begin(self) -> str:
        self._emulator.reset()
        self._lines.write_text("")
        self._number += 1
        return f"campaign-{self._number}"


def campaign(bench: Bench) -> Topic:
    """Measure a campaign of one task, and compare it with one of mapped tasks."""
    lines = bench.work / "processes"
    with DaiEmulator(ingest_seconds=86_400) as emulator:
        env = {"DAI_EMULATOR_HOST": emulator.host, "BENCHMARK_PROCESSES": str(lines)}
        home = ROOT / ".airflow" / f"benchmarks-{version('apache-airflow')}"
        bench.say("campaign: starting Airflow")
        with make_stack(home, Path(__file__).parent / "dags", env) as stack:
            stack.wait_for_dags(*(f"{kind}_{form}" for kind in ("ingests", "cancels") for form in ("mapped", "list")))
            stack.wait_for_dags(IN_WORKER)
            campaigns = Campaigns(stack, emulator, lines)
            compared = bench.reduced(COMPARED)
            runs: dict[str, Run] = {}

            def run(dag_id: str, operations: int, busy_after: int | None = None) -> None:
                what = f"{dag_id} {operations}{' busy' if busy_after else ''}"
                bench.say(f"campaign: {what}")
                runs[what] = campaigns.run(dag_id, operations, busy_after)

            for kind in ("ingests", "cancels"):
                run(f"{kind}_mapped", compared)
                run(f"{kind}_list", 1)  # its memory is that of any
                for operations in (compared, *map(bench.reduced, MORE)):
                    run(f"{kind}_list", operations)
            run("cancels_list", bench.reduced(MORE[-1]), bench.reduced(BUSY_AFTER))
            answers = [request for request in emulator.requests if request.method == CANCEL]
            kills = []
            for dag_id, state in ((IN_WORKER, "running"), ("ingests_list", "deferred")):
                bench.say(f"campaign: {dag_id} {bench.reduced(KILLED)} killed")
                kills.append(campaigns.kill(dag_id, bench.reduced(KILLED), state))
    topic = Topic(
        f"campaign: operations mapped and as a list, through Airflow {version('apache-airflow')} with LocalExecutor",
        (
            "",
            "run",
            "last request",
            "CPU/operation",
            "of mapped",
            "processes",
            "memory of a task",
            "triggerer",
            "per operation",
        ),
        data={
            "idle": campaigns.idle,
            "runs": {name: asdict(one) for name, one in runs.items()},
            "kills": list(map(asdict, kills)),
        },
    )
    for name, one in runs.items():
        kind, _, form = name.partition("_")
        mapped, single = runs[f"{kind}_mapped {compared}"], runs[f"{kind}_list 1"]
        topic.rows.append(
            (
                name.replace("_", " "),
                f"{one.seconds:.0f} s",
                f"{one.last_request:.1f} s",
                f"{one.cpu_per_operation * 1e3:.1f} ms",
                times(one.cpu_per_operation / mapped.cpu_per_operation),
                str(one.processes),
                f"{one.memory / 2**20:.0f} MiB",
                f"{one.triggerer / 2**20:.0f} MiB",
                ""
                if one is single or form.startswith("mapped")
                else f"{one.memory_per_operation(single) / 2**10:.0f} KiB",
            )
        )
    topic.notes += [
        f"CPU of all processes of Airflow, less the {campaigns.idle:.2f} CPUs that it uses without a run. An ingest "
        "takes 20 s, and a cancellation no time.",
        "Last request: from the start of the run to the last request to start or to cancel.",
        "Memory per operation: of the task and the triggerer, beyond that of a list of one.",
        f"Busy: after each {bench.reduced(BUSY_AFTER)} cancellations the service answers 429, and asks for a pause of "
        f"{RETRY_AFTER} s.",
        *(
            f"A task with {bench.reduced(KILLED):,} ingests, {one.where}, is marked failed, at a service that takes "
            f"{LATENCY * 1e3:.0f} ms: the first cancel request came after {one.first:.1f} s, the last after "
            f"{one.last:.1f} s."
            for one in kills
        ),
    ]
    topic.limits += [*_limits(runs, compared, [bench.reduced(number) for number in MORE]), *_busy_limits(answers)]
    for one in kills:
        topic.limits += [
            Limit(f"ingests left running by a killed task, {one.where}", one.left, 0),
            Limit(f"ingests cancelled twice by a killed task, {one.where}", one.twice, 0),
        ]
    return topic


def _limits(runs: dict[str, Run], compared: int, more: list[int]) -> list[Limit]:
    limits = []
    for kind in ("ingests", "cancels"):
        mapped, one, few = (runs[f"{kind}_{what}"] for what in (f"mapped {compared}", "list 1", f"list {compared}"))
        if compared == COMPARED:  # of a small campaign, most of the CPU is that of any run
            limits.append(Limit(f"CPU of {compared} {kind}, list / mapped", ratio(few.cpu, mapped.cpu), 1 / 20))
        limits += [
            Limit(
                f"last request of {compared} {kind}, list / mapped",
                ratio(few.last_request, mapped.last_request),
                1 / 8,
            ),
            Limit(f"task processes of {compared} {kind} as a list", few.processes, 2),
        ]
        for number in more:
            many = runs[f"{kind}_list {number}"]
            limits += [
                Limit(
                    f"CPU per operation of {number:,} {kind} / of {compared}",
                    ratio(many.cpu_per_operation, few.cpu_per_operation),
                    1.3,
                ),
                Limit(
                    f"memory per operation of {number:,} {kind} / of {compared}",
                    ratio(many.memory_per_operation(one), few.memory_per_operation(one)),
                    1.3,
                ),
            ]
    return limits


def _busy_limits(requests: list[RecordedRequest]) -> list[Limit]:
    """Compare the cancel requests with what the rule allows in a pause: those that were under way, and no other."""
    pauses: list[list[RecordedRequest]] = []
    for request in sorted(requests, key=lambda request: request.time):
        if pauses and request.time < pauses[-1][0].time + RETRY_AFTER:
            pauses[-1].append(request)
        elif request.status == 429:
            pauses.append([request])
    by_connection = [Counter(request.connection for request in pause) for pause in pauses]
    return [
        Limit("requests in a pause, most", max(map(len, pauses)), UNDER_WAY),
        Limit("requests of one connection in a pause, most", max(max(counts.values()) for counts in by_connection), 1),
    ]
