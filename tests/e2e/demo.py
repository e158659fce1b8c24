"""``make demo``: cancel ingests of the emulator through a real Airflow, and print what happened."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from messages import REQUESTED
from stack import Airflow2Stack, Airflow3Stack, StackError, make_stack

from airflow_dai_provider.emulator import DaiEmulator, Fault
from tests.support.interruption import raise_on_signals

ROOT = Path(__file__).resolve().parents[2]
MEDIA = "https://media.example.com/ad.mp4"
NOT_CANCELLABLE = "operations/not-cancellable"


@dataclass(frozen=True)
class Scene:
    """One run of an example, and its expected outcome."""

    title: str
    dag_id: str
    conf: dict[str, str]
    run: str
    tasks: dict[str, str]
    ingest: str
    logged_by: str
    message: str


SCENES = (
    Scene(
        "An ingest is cancelled",
        "cancel_ingest",
        {"media_url": f"{MEDIA}?seconds=300&cancel_seconds=2"},
        run="success",
        tasks={"start_ingest": "success", "cancel": "success", "wait": "success"},
        ingest="CANCELLED",
        logged_by="wait",
        message="is CANCELLED",
    ),
    Scene(
        "An ingest completes in spite of the cancel",
        "cancel_ingest",
        {"media_url": f"{MEDIA}?seconds=10&cancel=ignored"},
        run="success",
        tasks={"start_ingest": "success", "cancel": "success", "wait": "success"},
        ingest="SUCCEEDED",
        logged_by="wait",
        message="is SUCCEEDED",
    ),
    Scene(
        "An ingest had already failed: cancelling it is no error, and the sensor fails with its reason",
        "cancel_ingest",
        {"media_url": f"{MEDIA}?seconds=0&outcome=DOWNLOAD_ERROR&code=404"},
        run="failed",
        tasks={"start_ingest": "success", "cancel": "success", "wait": "failed"},
        ingest="FAILED",
        logged_by="wait",
        message="DOWNLOAD_ERROR 404",
    ),
    Scene(
        "A task fails, and its failure callback cancels the ingest that the task had started",
        "cancel_on_task_failure",
        {"media_url": f"{MEDIA}?seconds=300"},
        run="failed",
        tasks={"ingest_and_publish": "failed"},
        ingest="CANCELLED",
        logged_by="ingest_and_publish",
        message=REQUESTED,
    ),
    Scene(
        "A service without cancel: the task, which has retries=3, fails at its first try",
        "cancel_and_wait",
        {"operation": NOT_CANCELLABLE},
        run="failed",
        tasks={"cancel": "failed"},
        ingest="RUNNING",
        logged_by="cancel",
        message="UNIMPLEMENTED",
    ),
)


def main() -> int:
    raise_on_signals()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    logging.getLogger("airflow_dai_provider.emulator").setLevel(logging.WARNING)
    airflow = version("apache-airflow")
    say(f"A local DAI service and Airflow {airflow}, which runs the DAGs of dags_examples/")
    with DaiEmulator() as emulator:
        emulator.start_ingest(NOT_CANCELLABLE, seconds=3600)
        emulator.inject(Fault("operations.cancel", NOT_CANCELLABLE, rpc_status="UNIMPLEMENTED", times=None))
        home = ROOT / ".airflow" / f"demo-{airflow}"
        stack = make_stack(home, ROOT / "dags_examples", {"DAI_EMULATOR_HOST": emulator.host})
        say("Starting Airflow" if stack.migrated.exists() else "Creating a database and starting Airflow")
        with stack:
            stack.wait_for_dags(*{scene.dag_id for scene in SCENES})
            say(f"Airflow is up; starting {len(SCENES)} runs")
            runs = [(scene, stack.trigger(scene.dag_id, scene.conf)) for scene in SCENES]
            accounts = [list(account(stack, emulator, scene, run_id)) for scene, run_id in runs]
            say("All runs have finished; stopping Airflow")
    say("Stopped")
    for number, (scene, lines) in enumerate(zip(SCENES, accounts, strict=True), 1):
        print(f"\n{number}. {scene.title}", *lines, sep="\n   ")
    wrong = sum(any(line.startswith("WRONG") for line in lines) for lines in accounts)
    print(f"\n{len(SCENES) - wrong} of {len(SCENES)} runs finished as expected.")
    return 1 if wrong else 0


def account(stack: Airflow2Stack | Airflow3Stack, emulator: DaiEmulator, scene: Scene, run_id: str) -> Iterator[str]:
    """Yield what happened in a run; a line begins with WRONG where it differs from what is expected."""
    run = stack.wait_for_run(scene.dag_id, run_id)
    tasks = stack.task_states(scene.dag_id, run_id)
    tries = {ti["try_number"] for ti in stack.task_instances(scene.dag_id, run_id)}
    yield f"run {run}: " + ", ".join(f"{task} {state}" for task, state in tasks.items())
    if (run, tasks, tries) != (scene.run, scene.tasks, {1}):
        yield f"WRONG: expected run {scene.run}: {scene.tasks}, each at try 1; the tries are {tries}"
    name = scene.conf.get("operation") or ingest_of(stack, scene, run_id)
    state = emulator.state(name)
    requests = sum(r.method == "operations.cancel" and r.name == name for r in emulator.requests)
    yield f"{name} is {state} according to the service, after {requests} cancel request(s)"
    if (state, requests) != (scene.ingest, 1):
        yield f"WRONG: expected {scene.ingest} after one cancel request"
    log = stack.task_log_lines(scene.dag_id, run_id, scene.logged_by)
    found = [line for line in log if scene.message in line]
    yield f"log of {scene.logged_by}: {found[-1]}" if found else f"WRONG: {scene.message!r} is not in the log"


def ingest_of(stack: Airflow2Stack | Airflow3Stack, scene: Scene, run_id: str) -> str:
    """Return the name of the operation that a run has started, from its XCom."""
    if "start_ingest" in scene.tasks:
        return str(stack.xcom(scene.dag_id, run_id, "start_ingest"))
    return str(stack.xcom(scene.dag_id, run_id, "ingest_and_publish", "operation_name"))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StackError as error:
        sys.exit(f"The demo failed: {error}")
    except KeyboardInterrupt as signal_name:
        sys.exit(f"Stopped by {signal_name}")
