"""What tests of the sweep share: stray ingests, a sweep on the test's clock, and its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.operators.dai import XCOM_REPORT, DaiCancelStrayOperationsOperator
from tests.support.clock import Clock
from tests.support.payloads import metadata
from tests.support.task_instance import Store, Ti

LIST, GET, CANCEL = "operations.list", "operations.get", "operations.cancel"
HOUR = 3600.0
PLACES = ("requested", "cancelled", "finished", "refused", "left")
SIGNED = "https://user:s3cret@media.example/ad.mp4?X-Goog-Signature=s3cret#s3cret"


@pytest.fixture
def sweep_time(fake_time: Clock, records: Store) -> None:
    """Let sweeps and their hooks live on the test's clock, and read the owners from a stand-in."""


@pytest.fixture
def strays(emulator: DaiEmulator, clock: Clock) -> Callable[..., list[str]]:
    """Give a function that starts ingests which are two hours old then."""

    def start(*names: str, **options: Any) -> list[str]:
        started = [emulator.start_ingest(f"operations/{name}", **options) for name in names]
        clock.advance(2 * HOUR)
        return started

    return start


@pytest.fixture
def sweep(ti: Ti, sweep_time: None) -> Callable[..., Any]:
    """Give a function that executes a sweep on the test's clock."""

    def run(**options: Any) -> Any:
        return make(**options).execute({"ti": ti})

    return run


def make(**options: Any) -> DaiCancelStrayOperationsOperator:
    return DaiCancelStrayOperationsOperator(task_id="sweep", **{"older_than": HOUR, **options})


def pushed_report(ti: Ti) -> dict[str, Any]:
    report: dict[str, Any] = ti.pushed[ti.task_id, -1, XCOM_REPORT]
    assert json.loads(json.dumps(report)) == report
    return report


def places(report: dict[str, Any]) -> dict[str, Any]:
    """Return where the operations found are, without what is empty."""
    return {place: report[place] for place in PLACES if report[place]}


def listed(name: str, **fields: Any) -> dict[str, Any]:
    """Return a running operation as a list shows it."""
    return {"name": name, "metadata": metadata(**fields)}


def answer_list(emulator: DaiEmulator, *operations: dict[str, Any], token: str | None = None) -> None:
    """Have the next list request answer these."""
    page = {"operations": list(operations), "nextPageToken": token}
    emulator.inject(Fault(method=LIST, status=200, body=json.dumps(page).encode()))
