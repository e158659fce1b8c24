"""``list``, ``get``, ``whose`` and ``check``: what they show, in each format, and what they say of what goes wrong."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest
import yaml
from airflow.cli import simple_table

from airflow_dai_provider import metadata_database
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.cli.output import Rows
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.ingest.ownership import ASSET, OWNER_KEYS
from airflow_dai_provider.version_compat import HAS_ASSET_STATE_STORE
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator, methods
from tests.support.payloads import SIGNATURE, SIGNED_URL, URL
from tests.unit.cli.conftest import Dai, Start, Started

pytestmark = pytest.mark.usefixtures("metadata_database")

FORMATS = ("table", "json", "yaml", "plain")
READS = {
    "list": ["list"],
    "get": ["get", "operations/a"],
    "whose": ["whose", "operations/a"],
    "check": ["check"],
}


def read(output: str, text: str) -> list[dict[str, str | None]]:
    """Return the rows of a format, with None for an empty cell."""
    if output == "json":
        return json.loads(text)  # type: ignore[no-any-return]
    if output == "yaml":
        return yaml.safe_load(text)  # type: ignore[no-any-return]
    lines = [line for line in text.splitlines() if line.strip()]
    if output == "table":
        head, _, *rows = [[cell.strip() or None for cell in line.split("|")] for line in lines]
        return [dict(zip(head, row, strict=True)) for row in rows]
    columns = lines[0].split()
    starts = [lines[0].index(f"{column}") for column in columns]
    ends = [*starts[1:], None]
    return [
        {column: line[start:end].strip() or None for column, start, end in zip(columns, starts, ends, strict=True)}
        for line in lines[1:]
    ]


class TestList:
    @pytest.mark.parametrize("output", FORMATS)
    def test_each_format_shows_what_runs_and_whose_it_is(
        self, emulator: DaiEmulator, dai: Dai, start: Start, clock: Clock, output: str
    ) -> None:
        started = start()
        other = emulator.start_ingest("operations/of/another", creative_url="https://media.example/[red]b.mp4")
        emulator.start_ingest("operations/finished", seconds=1)
        clock.advance(90)
        result = dai("list", "--output", output)
        assert (result.code, result.err) == (0, "")
        assert SIGNATURE not in result.out
        rows = {row["name"]: row for row in read(output, result.out)}
        owner = {"dag_id": "starts", "run_id": started.run.run_id, "task_id": "ingest", "map_index": None}
        assert rows == {
            started.name: {"name": started.name, "state": "RUNNING", "age": "1:01:30", "media_url": URL}
            | owner
            | {"task_state": "success"},
            other: {
                "name": other,
                "state": "RUNNING",
                "age": "0:01:30",
                "media_url": "https://media.example/[red]b.mp4",
            }
            | dict.fromkeys([*owner, "task_state"]),
        }

    def test_finished_ones_are_shown_when_asked_for(self, emulator: DaiEmulator, dai: Dai, clock: Clock) -> None:
        names = [emulator.start_ingest(f"operations/{seconds}", seconds=seconds) for seconds in (1, 1e9)]
        clock.advance(60)
        states = {row["name"]: row["state"] for row in dai("list", "--all", "-o", "json").rows}
        assert states == dict(zip(names, ("SUCCEEDED", "RUNNING"), strict=True))

    def test_it_can_be_narrowed(self, emulator: DaiEmulator, dai: Dai, clock: Clock) -> None:
        old = emulator.start_ingest(creative_url="https://media.example/a.mp4")
        clock.advance(7 * 3600)
        emulator.start_ingest(creative_url="https://media.example/b.mp4")
        clock.advance(60)
        assert [row["name"] for row in dai("list", "--older-than", "6h", "-o", "json").rows] == [old]
        found = dai("list", "--url-prefix", "https://media.example/a", "-o", "json").rows
        assert [row["name"] for row in found] == [old]
        undated = {
            "operations": [{"name": "operations/undated", "metadata": {"creativeUrl": "https://media.example/a"}}]
        }
        emulator.inject(Fault("operations.list", status=200, body=json.dumps(undated).encode(), times=2))
        result = dai("list", "--older-than", "1s", "-o", "json")
        assert (result.code, result.rows) == (0, [])
        assert "Not shown, because they have no create time: 1.\n" in result.err
        assert len(dai("list", "-o", "json").rows) == 1

    @pytest.mark.parametrize(
        ("output", "text"), [("table", ""), ("json", "[]\n"), ("yaml", "[]\n"), ("plain", "")], ids=FORMATS
    )
    @pytest.mark.usefixtures("emulator")
    def test_nothing(self, dai: Dai, output: str, text: str) -> None:
        result = dai("list", "-o", output)
        assert (result.code, result.out, result.err) == (0, text, "No operations are running.\n")

    def test_what_is_no_operation_is_counted_once(self, emulator: DaiEmulator, dai: Dai) -> None:
        page = {"operations": [{"name": "operations/a"}, {"name": "../b"}, {}]}
        emulator.inject(Fault("operations.list", status=200, body=json.dumps(page).encode()))
        result = dai("list", "-o", "json")
        assert (result.code, [row["name"] for row in result.rows]) == (1, ["operations/a"])
        (line,) = result.err.splitlines()
        assert line.startswith("operations.list: 2 unreadable operations were passed over; of the first: ")

    @pytest.mark.parametrize("output", ["json", "yaml", "plain"])
    def test_what_was_read_of_a_list_that_does_not_end_is_printed(
        self, make_emulator: MakeEmulator, dai: Dai, output: str
    ) -> None:
        emulator = make_emulator()
        for _ in range(150):
            emulator.start_ingest()
        emulator.inject(Fault("operations.list", merge={"nextPageToken": "t"}))
        emulator.inject(Fault("operations.list", status=200, body=b'{"nextPageToken": "t"}', times=None))
        result = dai("list", "--output", output)
        assert result.code == 1
        assert "same page token twice" in result.err
        assert len(read(output, result.out)) == 100

    def test_one_that_moves_between_two_pages_is_listed_once(self, emulator: DaiEmulator, dai: Dai) -> None:
        pages: list[dict[str, Any]] = [
            {"operations": [{"name": "operations/a"}, {"name": "operations/b"}], "nextPageToken": "t"},
            {"operations": [{"name": "operations/b"}, {"name": "operations/c"}]},
        ]
        for page in pages:
            emulator.inject(Fault("operations.list", status=200, body=json.dumps(page).encode()))
        result = dai("list", "-o", "json")
        assert [row["name"] for row in result.rows] == ["operations/a", "operations/b", "operations/c"]

    def test_of_a_mapped_task_the_map_index_is_shown(self, dai: Dai, start: Start) -> None:
        started = start(mapped=True)
        for command in (["list"], ["whose", started.name]):
            assert [row["map_index"] for row in dai(*command, "-o", "json").rows] == ["0"]

    @pytest.mark.parametrize(("output", "number"), [*((output, 1_000) for output in FORMATS), ("plain", 10_000)])
    def test_a_long_list_is_printed_page_by_page_and_not_kept(
        self, make_emulator: MakeEmulator, dai: Dai, monkeypatch: pytest.MonkeyPatch, output: str, number: int
    ) -> None:
        emulator = make_emulator()
        names = [emulator.start_ingest() for _ in range(number)]
        pages: list[int] = []
        kept: list[int] = []
        add = Rows.add

        def note(self: Rows, page: Any) -> None:
            pages.append(methods(emulator).count("operations.list"))
            if len(pages) % 10 == 0:
                # Not isinstance, which asks proxies of Airflow for what they stand for.
                kept.append(sum(type(one) is Operation for one in gc.get_objects()))
            add(self, page)

        monkeypatch.setattr(Rows, "add", note)
        result = dai("list", "-o", output)
        if output == "table":
            found = [line.split()[0] for line in result.out.splitlines() if line.startswith("operations/")]
        else:
            found = [str(row["name"]) for row in read(output, result.out)]
        assert sorted(found) == sorted(names)
        # Each page was printed before the next one was read.
        assert pages == list(range(1, number // 100 + 1))
        # This page, and the one that was read last.
        assert max(kept) <= 200


class TestGet:
    @pytest.mark.parametrize("output", FORMATS)
    def test_it_shows_all_that_is_known(self, dai: Dai, start: Start, output: str) -> None:
        started = start()
        result = dai("get", started.name, "-o", output)
        assert (result.code, result.err) == (0, "")
        assert SIGNATURE not in result.out
        rows = read(output, result.out)
        # A table has a line for each column.
        row = {str(one["field"]): one["value"] for one in rows} if output == "table" else rows[0]
        assert row["dag_id"] == "starts"
        if output == "json":
            assert row | {"create_time": None} == {
                "name": started.name,
                "state": "RUNNING",
                "age": "1:00:00",
                "media_url": URL,
                "create_time": None,
                "youtube_state": "PROCESSING",
                "creative_name": None,
                "error": None,
                "dag_id": "starts",
                "run_id": started.run.run_id,
                "task_id": "ingest",
                "map_index": None,
                "task_state": "success",
                "reason": "has succeeded; its run is success",
            }

    def test_a_failed_one_has_its_reason(self, emulator: DaiEmulator, dai: Dai, clock: Clock) -> None:
        name = emulator.start_ingest(seconds=1, outcome="INVALID_MEDIA")
        clock.advance(60)
        (row,) = dai("get", name, "-o", "json").rows
        assert (row["state"], row["youtube_state"]) == ("FAILED", "FAILURE")
        assert row["error"].startswith("INVALID_MEDIA (")

    @pytest.mark.parametrize("output", FORMATS)
    def test_control_characters_break_no_row_and_reach_no_terminal(
        self, emulator: DaiEmulator, dai: Dai, clock: Clock, output: str
    ) -> None:
        name = emulator.start_ingest(seconds=1, outcome="INVALID_MEDIA")
        clock.advance(60)
        failed = {"error": {"code": 3, "message": "a\r\nb\x1b[2Jc"}}
        emulator.inject(Fault("operations.get", merge=failed, times=None))
        result = dai("wait", name, "-o", output)
        (row,) = read(output, result.out)
        assert row["name"] == name
        asked = dai("cancel", name)
        assert "\x1b" not in result.out + asked.err


@pytest.mark.parametrize("columns", [80, 200])
def test_a_table_keeps_each_name_whole(
    emulator: DaiEmulator, dai: Dai, start: Start, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(simple_table, "is_tty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    name = start().name
    listed = dai("list").out.splitlines()
    assert ("map_index" in listed[0]) == (columns == 200)
    long = emulator.start_ingest(f"operations/{'long' * 40}")
    for arguments, names in (
        (["list"], [name, long]),
        (["get", name], [name]),
        (["get", long], [long]),
        (["whose", name], [name]),
        (["cancel", "-y", name, long], [name, long]),
    ):
        lines = dai(*arguments).out.splitlines()
        assert [one for one in names if not any(one in line.split() for line in lines)] == []


class TestWhose:
    @pytest.mark.parametrize("run_state", ["success", "failed"])
    def test_it_names_the_task_and_says_whether_it_is_a_stray(self, dai: Dai, start: Start, run_state: str) -> None:
        started = start()
        if run_state == "failed":
            started.fail()
        result = dai("whose", started.name, "-o", "json")
        assert (result.code, result.err) == (0, "")
        assert result.rows == [
            {
                "name": started.name,
                "dag_id": "starts",
                "run_id": started.run.run_id,
                "task_id": "ingest",
                "map_index": None,
                "task_state": "success",
                "try_number": "1",
                "is_stray": "yes" if run_state == "failed" else "no",
                "reason": f"has succeeded; its run is {run_state}",
            }
        ]

    def test_without_the_service_a_known_name_is_enough(self, emulator: DaiEmulator, dai: Dai, start: Start) -> None:
        started = start()
        emulator.inject(Fault("operations.get", rpc_status="UNAVAILABLE", times=None))
        result = dai("whose", started.name, "-o", "json")
        assert (result.code, [row["dag_id"] for row in result.rows]) == (0, ["starts"])
        assert "UNAVAILABLE" in result.err

    def test_what_another_system_has_started_has_no_owner(self, emulator: DaiEmulator, dai: Dai) -> None:
        name = emulator.start_ingest(creative_url=SIGNED_URL)
        result = dai("whose", name, "-o", "json")
        assert (result.code, result.rows) == (1, [])
        assert f"No task is known to have started {name}: another system may have started it." in result.err

    @pytest.mark.skipif(not HAS_ASSET_STATE_STORE, reason="Airflow before 3.3 has no records of owners")
    @pytest.mark.usefixtures("asset")
    def test_a_record_that_cannot_be_read_is_told(self, emulator: DaiEmulator, dai: Dai) -> None:
        store: Any = metadata_database.find_asset_store(ASSET)
        store.set(f"{OWNER_KEYS}of-another-version", {"owner": {"dag": "starts"}})
        name = emulator.start_ingest(creative_url=SIGNED_URL)
        told = "Cannot read 1 of 1 records of owners, which another version may have written."
        for arguments in (["list"], ["get", name], ["whose", name]):
            result = dai(*arguments)
            assert result.code == 1
            assert f"{told} Operations of these tasks are shown without an owner." in result.err
        assert dai("check", "-o", "json").rows[1]["reason"].endswith(told)
        assert f"to have started {name}: another system, or one of these tasks, may have started it." in result.err


#: How an ingest finishes whose task waits for it, by the state of that task: the query of its media URL, and the state
#: of the task in words.
FINISHED = {
    "success": ("seconds=60", "has succeeded"),
    "failed": ("seconds=60&outcome=INVALID_MEDIA", "is failed"),
}


@pytest.mark.parametrize(("task_state", "query", "words"), [(state, *how) for state, how in FINISHED.items()])
class TestAnIngestForWhichItsTaskWaited:
    @pytest.fixture
    def finished(self, start: Start, query: str) -> Started:
        return start(url=f"{URL}?{query}", waits=True)

    def test_it_is_no_stray_when_it_has_finished(
        self, dai: Dai, finished: Started, task_state: str, words: str
    ) -> None:
        reason = f"{words}; the operation has finished"
        (owner,) = dai("whose", finished.name, "-o", "json").rows
        assert (owner["task_state"], owner["is_stray"], owner["reason"]) == (task_state, "no", reason)
        (shown,) = dai("get", finished.name, "-o", "json").rows
        assert (shown["task_state"], shown["reason"]) == (task_state, reason)
        (listed,) = dai("list", "--all", "-o", "json").rows
        assert (listed["name"], listed["task_state"]) == (finished.name, task_state)
        asked = dai("cancel", finished.name)
        assert f"of DAG starts, which {reason}. Cancel" in " ".join(asked.err.split())
        swept = dai("sweep", "-o", "json")
        assert swept.rows == []
        assert "1 operations listed: 1 finished" in swept.err

    def test_without_the_service_it_is_not_known_whether_it_is_a_stray(
        self, emulator: DaiEmulator, dai: Dai, finished: Started, task_state: str, words: str
    ) -> None:
        emulator.inject(Fault("operations.get", rpc_status="UNAVAILABLE", times=None))
        result = dai("whose", finished.name, "-o", "json")
        (owner,) = result.rows
        assert (result.code, owner["task_state"], owner["is_stray"]) == (0, task_state, "unknown")
        reason = f"{words}; it is not known whether the operation has finished: operations.get of"
        assert owner["reason"].startswith(reason)


class TestCheck:
    @pytest.mark.usefixtures("asset")
    def test_all_is_well(self, emulator: DaiEmulator, dai: Dai) -> None:
        result = dai("check", "-o", "json")
        assert result.code == 0
        assert [(row["name"], row["result"]) for row in result.rows] == [("service", "ok"), ("owners", "ok")]
        assert f"{emulator.endpoint} responded to operations.list." in result.out
        assert set(methods(emulator)) == {"operations.list"}


class TestTrouble:
    @pytest.mark.usefixtures("fake_time")
    @pytest.mark.parametrize("arguments", READS.values(), ids=READS)
    def test_the_service_is_down(
        self, dai: Dai, closed_port: int, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
    ) -> None:
        monkeypatch.setenv("DAI_EMULATOR_HOST", f"127.0.0.1:{closed_port}")
        result = dai(*arguments)
        assert result.code == 1
        assert "got no response from" in result.out + result.err
        assert "Traceback" not in result.err

    @pytest.mark.parametrize("arguments", READS.values(), ids=READS)
    def test_no_permission(self, emulator: DaiEmulator, dai: Dai, arguments: list[str]) -> None:
        for method in ("operations.list", "operations.get"):
            emulator.inject(Fault(method, rpc_status="PERMISSION_DENIED", times=None))
        result = dai(*arguments)
        assert result.code == 1
        assert "PERMISSION_DENIED" in result.out + result.err
        if arguments[0] in ("list", "get"):
            assert "Google must have allow-listed it for DAI" in result.err

    @pytest.mark.usefixtures("emulator")
    @pytest.mark.parametrize("command", ["get", "whose"])
    def test_an_unknown_name(self, dai: Dai, command: str) -> None:
        result = dai(command, "operations/unknown")
        assert result.code == 1
        assert "operations.get of operations/unknown returned 404 NOT_FOUND" in result.err

    def test_an_undefined_connection(self, dai: Dai) -> None:
        result = dai("list", "--conn-id", "no_such_connection")
        assert result.code == 1
        assert "The connection 'no_such_connection' could not be looked up" in result.err

    @pytest.mark.usefixtures("asset", "fake_time")
    def test_with_an_undefined_connection_the_database_is_checked_nevertheless(self, dai: Dai) -> None:
        result = dai("check", "--conn-id", "no_such_connection", "-o", "json")
        service, database = result.rows
        assert (result.code, service["name"], service["result"]) == (1, "service", "failed")
        assert service["reason"].startswith("The connection 'no_such_connection' could not be looked up")
        assert (database["name"], database["result"]) == ("owners", "ok")

    def test_with_an_undefined_connection_the_endpoint_is_enough_for_the_owner(
        self, emulator: DaiEmulator, dai: Dai, start: Start
    ) -> None:
        connection = ["--conn-id", "no_such_connection", "--api-endpoint", emulator.endpoint]
        result = dai("whose", start().name, *connection, "-o", "json")
        assert (result.code, [row["dag_id"] for row in result.rows]) == (0, ["starts"])
        assert "The connection 'no_such_connection' could not be looked up" in result.err

    @pytest.mark.usefixtures("fake_time")
    def test_without_an_endpoint_no_owner_is_known(self, dai: Dai) -> None:
        result = dai("whose", "operations/a", "--conn-id", "no_such_connection", "-o", "json")
        assert (result.code, result.rows) == (1, [])
        assert "The connection 'no_such_connection' could not be looked up" in result.err
        assert "Owners are not shown: the endpoint is not known. Give --api-endpoint" in result.err
        assert "another system" not in result.err

    def test_a_connection_in_the_database_is_found(
        self, make_emulator: MakeEmulator, dai: Dai, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from airflow.models import Connection
        from airflow.utils.session import create_session

        emulator = make_emulator()
        name = emulator.start_ingest()
        monkeypatch.delenv("DAI_EMULATOR_HOST")
        extra = json.dumps({"is_anonymous": True, "dai_api_endpoint": emulator.endpoint})
        with create_session() as session:
            session.query(Connection).filter_by(conn_id="on_call").delete()
            session.add(Connection(conn_id="on_call", conn_type="google_cloud_platform", extra=extra))
        result = dai("list", "--conn-id", "on_call", "-o", "json")
        assert (result.code, [row["name"] for row in result.rows]) == (0, [name])

    def test_a_database_that_cannot_be_read_costs_only_the_owners(
        self, emulator: DaiEmulator, dai: Dai, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("postgresql://user:s3cret@host/ is away\n[SQL: SELECT ...]")

        monkeypatch.setattr(metadata_database, "find_asset_store", fail)
        names = [emulator.start_ingest() for _ in range(150)]
        result = dai("list", "-o", "json")
        assert sorted(row["name"] for row in result.rows) == sorted(names)
        assert (result.code, result.err) == (
            1,
            "Owners are not shown. The metadata database cannot be read: postgresql://host/ is away.\n",
        )
        checked = dai("check", "-o", "json")
        assert (checked.code, checked.rows[1]["result"]) == (1, "failed")
        assert checked.rows[1]["reason"] == "The metadata database cannot be read: postgresql://host/ is away"
