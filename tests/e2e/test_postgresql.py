"""Odd text and values of the service, on an Airflow whose database is PostgreSQL, which stores less than SQLite."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from stack import Airflow2Stack, Airflow3Stack, make_stack, wait_until
from stack_airflow_2 import CONCURRENT

from airflow_dai_provider.emulator import DaiEmulator, Fault
from tests.support.emulators import cancel_from_outside
from tests.support.hostile import store_all_that_a_server_can_send
from tests.support.postgresql import postgresql
from tests.support.processes import processes_of

ROOT = Path(__file__).resolve().parents[2]
DAG_ID = "many_deferred_sensors"
#: Waits for operations without anything odd.
OTHERS = 50


def finished(name: str, **fields: object) -> bytes:
    """Return an operation that is done; the JSON has escapes for what UTF-8 cannot hold."""
    return json.dumps({"name": name, "done": True, **fields}).encode()


def metadata(**fields: object) -> dict[str, object]:
    return {"@type": "type.googleapis.com/google.ads.dai.v1.CreateCreativeOperationMetadata", **fields}


#: What get returns for each odd operation, and the state of its task.
ODD = {
    "nul": ({"error": {"code": 13, "message": "nul \u0000 x"}}, "failed"),
    "nul-in-a-key": ({"response": {"a\u0000b": 1}}, "success"),
    "surrogate": ({"response": {"adTitle": "cut \ud83d"}}, "success"),
    "surrogate-in-metadata": ({"metadata": metadata(gvRegistryId="\udc00")}, "success"),
    "huge-number": ({"metadata": {"number": 10**400}}, "success"),
    "not-a-number": ({"response": {"bitrate": float("nan"), "size": float("-inf")}}, "success"),
    "long": ({"error": {"code": 3, "message": "x" * 1_000_000}}, "failed"),
}


@pytest.fixture(scope="module")
def airflow(emulator: DaiEmulator) -> Iterator[Airflow2Stack | Airflow3Stack]:
    home = ROOT / ".airflow" / f"postgresql-{version('apache-airflow')}"
    env = {"DAI_EMULATOR_HOST": emulator.host, **CONCURRENT}
    with postgresql() as database, make_stack(home, Path(__file__).parent / "dags", env, database) as stack:
        stack.wait_for_dags(DAG_ID)
        yield stack


def triggerer_processes(airflow: Airflow2Stack | Airflow3Stack) -> set[tuple[int, float]]:
    """Return the processes of the triggerer, by what tells them from a later one with the same number."""
    leader = airflow.processes["triggerer"].pid
    return {(process.pid, process.create_time()) for process in processes_of(leader)}


def test_odd_text_of_one_operation_reaches_no_other_wait(
    airflow: Airflow2Stack | Airflow3Stack, emulator: DaiEmulator
) -> None:
    odd = {emulator.start_ingest(f"operations/odd/{kind}", seconds=1200): kind for kind in ODD}
    deep = emulator.start_ingest("operations/odd/deep", seconds=1200)
    others = [emulator.start_ingest(f"operations/even/{number}", seconds=1200) for number in range(OTHERS)]
    names = [*odd, deep, *others]
    run = airflow.trigger(DAG_ID, {"operations": names})

    def states() -> dict[str, str]:
        by_task = airflow.task_states(DAG_ID, run)
        return {name: by_task.get(f"wait[{index}]", "") for index, name in enumerate(names)}

    wait_until("all sensors to be deferred", lambda: set(states().values()) == {"deferred"}, 600, 2)
    before = triggerer_processes(airflow)
    for name, kind in odd.items():
        body = finished(name, **ODD[kind][0])
        emulator.inject(Fault("operations.get", name, status=200, body=body, times=None))
    nested = b'{"name": "%s", "metadata": %s1%s}' % (deep.encode(), b'{"a": ' * 600, b"}" * 600)
    emulator.inject(Fault("operations.get", deep, status=200, body=nested, times=None))

    expected = {name: ODD[kind][1] for name, kind in odd.items()}
    wait_until("the odd ones", lambda: {name: states()[name] for name in odd} == expected, 180, 2)
    cancel_from_outside(emulator, *others)
    wait_until("the others", lambda: {states()[name] for name in others} == {"success"}, 300, 2)
    # The wait for the one that cannot be read goes on, and ends well when it can be.
    assert states()[deep] == "deferred"
    emulator.clear_faults()
    cancel_from_outside(emulator, deep)
    wait_until("the one that could not be read", lambda: states()[deep] == "success", 120, 2)

    assert triggerer_processes(airflow) == before
    assert all(psutil.pid_exists(pid) for pid, _ in before)


def test_whatever_a_server_sends_can_be_stored(airflow: Airflow2Stack | Airflow3Stack) -> None:
    """After the other test, whose task instances are used."""
    from airflow.models.taskinstance import TaskInstance

    with Session(create_engine(str(airflow.database))) as session:
        ti = session.query(TaskInstance).filter_by(dag_id=DAG_ID).first()
        store_all_that_a_server_can_send(session, ti, examples=300)


def test_the_command_line_reads_each_xcom_of_many_pages_once(airflow: Airflow2Stack | Airflow3Stack) -> None:
    """After the first test, whose sensors have pushed what they return."""
    code = (
        "import json\n"
        "from datetime import UTC, datetime\n"
        "from airflow_dai_provider import metadata_database as database\n"
        "database._ROWS = 7\n"
        "found = database.xcoms('return_value', datetime(2026, 1, 1, tzinfo=UTC), on_unreadable=print)\n"
        f"print(json.dumps([place[2:] for *place, value in found if place[0] == {DAG_ID!r} and value]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=airflow.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    query = text("SELECT task_id, map_index FROM xcom WHERE key = 'return_value' AND dag_id = :dag_id")
    with create_engine(str(airflow.database)).connect() as connection:
        pushed = [list(row) for row in connection.execute(query, {"dag_id": DAG_ID})]
    assert sorted(read) == sorted(pushed)
    assert len(read) > 2 * 7
