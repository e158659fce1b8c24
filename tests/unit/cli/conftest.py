"""The commands, run in this process on the clock of the test."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator
from tests.support.clock import Clock
from tests.support.dag_runs import Run, RunDag
from tests.support.payloads import SIGNED_URL, creative


@dataclass
class Result:
    """What a command has left: its exit code, and what it has printed."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``--output json``."""
        found: list[dict[str, Any]] = json.loads(self.out)
        return found


Dai = Callable[..., Result]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Let signals have their effect, also where the tests are started under nohup or in the background of a shell."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def dai(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_sleep: Clock) -> Dai:
    """Give a function that runs a command, without a terminal.

    :param answer: what the user types; None where stdin is closed.
    """
    from airflow_dai_provider.__main__ import main
    from airflow_dai_provider.cli.session import Session

    monkeypatch.setattr(Session, "_clock", staticmethod(no_sleep))
    monkeypatch.setattr(Session, "sleep", staticmethod(no_sleep.sleep))
    monkeypatch.setitem(os.environ, "_AIRFLOW_PROCESS_CONTEXT", "client")

    def run(*arguments: str, answer: str | None = "") -> Result:
        monkeypatch.setattr("sys.stdin", None if answer is None else io.StringIO(answer))
        capsys.readouterr()
        code: Any = 0
        try:
            main(arguments)
        except SystemExit as exit_:
            code = exit_.code
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return run


@dataclass
class Started:
    """An ingest that a task of a run has started."""

    name: str
    run: Run

    def fail(self) -> None:
        """Let the run fail, which this ingest does not survive."""
        self.set_state("failed")

    def set_state(self, state: str) -> None:
        from airflow.models import DagRun
        from airflow.utils.session import create_session

        with create_session() as session:
            session.query(DagRun).filter_by(dag_id=self.run.dag_id, run_id=self.run.run_id).update({"state": state})


Start = Callable[..., Started]


@pytest.fixture
def start(emulator: DaiEmulator, run_dag: RunDag, asset: None, clock: Clock) -> Start:
    """Give a function that runs a DAG whose task starts an ingest, and does not wait unless told to; an hour passes."""

    def run(dag_id: str = "starts", url: str = SIGNED_URL, *, waits: bool = False, mapped: bool = False) -> Started:
        options = {"task_id": "ingest", "wait_for_completion": waits, "cancel_with_run": not waits}
        with DAG(dag_id, schedule=None) as dag:
            if mapped:
                DaiCreateCreativeOperator.partial(**options).expand(creative=[creative(url)])
            else:
                DaiCreateCreativeOperator(creative=creative(url), **options)
        ran = run_dag(dag)
        clock.advance(3600)
        return Started(ran.xcom("ingest", "operation_name", 0 if mapped else -1), ran)

    return run
