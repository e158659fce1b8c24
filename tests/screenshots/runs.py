"""The runs of the examples that the pictures show, on a real Airflow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_dai_provider.emulator import DaiEmulator

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from stack import Airflow3Stack, StackError, make_stack, wait_until  # noqa: E402

MEDIA = "https://media.example.com/ad.mp4"
OPERATION = "operations/my-ingest"
STATES = {"cancel_ingest": "success", "ingest": "failed", "cancel_and_wait": "failed"}


@contextmanager
def playing() -> Iterator[tuple[DaiEmulator, Airflow3Stack]]:
    """Yield a local DAI service, and an Airflow that runs the examples on it."""
    with DaiEmulator() as emulator:
        environment = {"DAI_EMULATOR_HOST": emulator.host}
        stack = make_stack(ROOT / ".airflow" / "screenshots", ROOT / "dags_examples", environment)
        if not isinstance(stack, Airflow3Stack):
            raise StackError("the stack of Airflow 2 has no web server")
        with stack:
            stack.wait_for_dags(*STATES)
            yield emulator, stack


def play(emulator: DaiEmulator, stack: Airflow3Stack) -> tuple[dict[str, str], str]:
    """
    Run the examples.

    :return: the id of each one's run by the id of its DAG, and what a terminal shows after the commands of who is on
        call.
    :raises StackError: if a run has finished in an unexpected state.
    """
    runs = {
        "cancel_ingest": stack.trigger("cancel_ingest", {"media_url": f"{MEDIA}?seconds=3600&cancel_seconds=8"}),
        "ingest": stack.trigger("ingest", {"media_url": f"{MEDIA}?seconds=3600"}),
    }
    name = wait_in_triggerer(emulator, stack, runs["ingest"])
    stack.mark("ingest", runs["ingest"], "ingest", "failed")
    wait_until("the ingest to be cancelled", lambda: emulator.state(name) == "CANCELLED", 60)
    finished = {dag_id: stack.wait_for_run(dag_id, run_id) for dag_id, run_id in runs.items()}
    commands = on_call(emulator, stack)
    # No operation can be cancelled from here on.
    emulator.unimplement("operations.cancel")
    emulator.start_ingest(OPERATION, seconds=3600, creative_url=MEDIA)
    runs["cancel_and_wait"] = stack.trigger("cancel_and_wait", {"operation": OPERATION})
    finished["cancel_and_wait"] = stack.wait_for_run("cancel_and_wait", runs["cancel_and_wait"])
    if finished != STATES:
        raise StackError(f"expected the runs to finish as {STATES}, got {finished}")
    return runs, commands


def on_call(emulator: DaiEmulator, stack: Airflow3Stack) -> str:
    """Find a stuck ingest and cancel it with ``airflow dai``; return the commands and what they print."""
    name = wait_in_triggerer(emulator, stack, stack.trigger("ingest", {"media_url": f"{MEDIA}?seconds=3600"}))
    shown = ""
    for arguments in (["list"], ["cancel", name, "--wait", "--yes"]):
        command = [stack._airflow_command(), "dai", *arguments]
        done = subprocess.run(
            command,
            env=stack.env | {"COLUMNS": "180"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        shown += f"$ airflow dai {' '.join(arguments)}\n{done.stdout.rstrip()}\n\n"
    return shown.rstrip()


def wait_in_triggerer(emulator: DaiEmulator, stack: Airflow3Stack, run_id: str) -> str:
    """Wait until the triggerer polls the ingest of a run of ``ingest``; return its name."""

    def deferred() -> bool:
        return stack.task_states("ingest", run_id)["ingest"] == "deferred"

    def polled() -> bool:
        # Airflow tells a trigger of a mark only if a triggerer already runs it.
        return any(request.method == "operations.get" and request.name == name for request in emulator.requests)

    wait_until("the ingest to be deferred", deferred, 60)
    name = str(stack.xcom("ingest", run_id, "ingest", "operation_name"))
    wait_until("the triggerer to poll it", polled, 60)
    return name
