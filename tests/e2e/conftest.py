"""The running Airflow and the emulator that the end-to-end tests share, and the table of the rows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import report
from stack import Airflow2Stack, Airflow3Stack, make_stack
from stage import INSTALLATION

from airflow_dai_provider.emulator import DaiEmulator
from tests.support.interruption import raise_on_signals

ROOT = Path(__file__).resolve().parents[2]


def pytest_configure() -> None:
    """Stop Airflow when a signal stops pytest."""
    raise_on_signals()


@pytest.fixture(scope="session")
def emulator() -> Iterator[DaiEmulator]:
    with DaiEmulator(ingest_seconds=600) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def airflow(emulator: DaiEmulator) -> Iterator[Airflow2Stack | Airflow3Stack]:
    home = ROOT / ".airflow" / f"e2e-{version('apache-airflow')}"
    with make_stack(home, collect_dags(home.with_suffix(".dags")), {"DAI_EMULATOR_HOST": emulator.host}) as stack:
        # One of each file whose DAGs are triggered.
        stack.wait_for_dags("run_callback_by_name", "many_deferred_sensors", "cancel_dai_ingest")
        yield stack


def collect_dags(folder: Path) -> Path:
    """Create a DAG folder with the DAGs of these tests and the first DAG of the README."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(__file__).parent / "dags", folder, ignore=shutil.ignore_patterns("owned.py", "many.py"))
    first = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert first is not None
    (folder / "readme.py").write_text(first[1])
    return folder


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of the rows that were played, and write it to a file."""
    played = config.stash.get(report.PLAYED, None)
    if played:
        table = report.table(played)
        (ROOT / ".airflow" / f"rows-{INSTALLATION}.md").write_text(table + "\n")
        terminalreporter.section(f"rows on Airflow {INSTALLATION}")
        terminalreporter.write_line(table)
