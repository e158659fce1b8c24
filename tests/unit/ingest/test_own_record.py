"""What a create task writes down about its ingests, for the sweep."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.ingest.own_record import STARTS, WRITE_INTERVAL
from airflow_dai_provider.ingest.ownership import ASSET, MOST_WRITES, Opening, Owner, OwnerRecords, Record, medium
from airflow_dai_provider.ingest.recovery import IngestMayHaveStartedError
from tests.support.clock import Clock
from tests.support.emulators import count
from tests.support.ingests import CANCEL, CREATE, SECRET, URL, both, execute, make, the
from tests.support.log import Log
from tests.support.payloads import creative
from tests.support.task_instance import Store, Ti

FLAGS = {"waits": True, "cancel_on_kill": True, "cancel_on_failure": True, "cancel_with_run": False}


def urls(number: int) -> list[str]:
    return [f"https://media.example.com/{index}.mp4?{SECRET}" for index in range(number)]


def record_of(records: Store, run_id: str = "a_run") -> Record | None:
    return OwnerRecords(records).get(Owner("a_dag", run_id, "ingest").key("owner"))


def opening_of(records: Store) -> Opening:
    record = record_of(records)
    assert record
    return record.openings[-1]


def written(records: Store) -> list[tuple[str, Any]]:
    """Note everything that is written from now on."""
    every: list[tuple[str, Any]] = []
    keep = records.set

    def note(key: str, value: Any) -> None:
        every.append((key, json.loads(json.dumps(value))))
        keep(key, value)

    records.set = note  # type: ignore[method-assign]
    return every


def owners_of(records: Store) -> set[str]:
    return {key for key in records.kept if key.startswith("owner-")}


class TestRecord:
    def test_it_is_written_before_the_service_is_asked(
        self, slow: DaiEmulator, context: Any, records: Store, clock: Clock
    ) -> None:
        seen: list[int] = []
        keep = records.set

        def note(key: str, value: Any) -> None:
            seen.append(count(slow, CREATE))
            keep(key, value)

        records.set = note  # type: ignore[method-assign]
        execute(context, wait_for_completion=False, cancel_with_run=True)
        assert seen == [0, 0, 1]
        assert record_of(records) == Record(
            Owner("a_dag", "a_run", "ingest", -1),
            flags=FLAGS | {"waits": False, "cancel_with_run": True},
            names=frozenset(slow.states()),
            openings=(Opening(1, clock.now, clock.now, True, frozenset({medium(slow.endpoint, URL)})),),
        )

    @both
    @pytest.mark.parametrize("number", [1, 3, 30])
    @pytest.mark.usefixtures("slow")
    def test_it_is_removed_when_the_ingests_have_finished(
        self, context: Any, records: Store, number: int, deferrable: bool
    ) -> None:
        given = [creative(url) for url in urls(number)]
        execute(context, creative=given if number > 1 else given[0], deferrable=deferrable)
        assert records.kept == {}

    @pytest.mark.usefixtures("slow")
    def test_it_is_removed_when_the_ingest_has_failed(self, context: Any, records: Store) -> None:
        with pytest.raises(AirflowFailException, match="INVALID_MEDIA"):
            execute(context, creative=creative(f"{URL}&outcome=INVALID_MEDIA"))
        assert records.kept == {}

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("number", [1, 3, 30])
    def test_it_is_removed_when_the_ingest_is_meant_to_run_on(self, context: Any, records: Store, number: int) -> None:
        given = [creative(url) for url in urls(number)]
        execute(context, creative=given if number > 1 else given[0], wait_for_completion=False)
        assert records.kept == {}

    def test_it_leaves_the_records_of_others_with_the_same_media(
        self, slow: DaiEmulator, context: Any, records: Store, store: Store, ti: Ti
    ) -> None:
        execute(context, wait_for_completion=False, cancel_with_run=True)
        store.kept.clear()
        ti.run_id = "b_run"
        execute(context)
        assert owners_of(records) == {Owner("a_dag", "a_run", "ingest").key("owner")}
        assert OwnerRecords(records).of_medium(medium(slow.endpoint, URL)) == sorted(owners_of(records))

    @pytest.mark.usefixtures("slow")
    def test_it_stays_while_the_ingest_may_run_by_mistake(self, context: Any, records: Store) -> None:
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, timeout=10)
        assert len(owners_of(records)) == 1

    @pytest.mark.parametrize("number", [1, 3])
    def test_a_refused_start_claims_nothing(self, slow: DaiEmulator, context: Any, records: Store, number: int) -> None:
        slow.inject(Fault(CREATE, rpc_status="PERMISSION_DENIED", times=None))
        given = [creative(url) for url in urls(number)]
        with pytest.raises(AirflowFailException):
            execute(context, creative=given if number > 1 else given[0])
        if record := record_of(records):
            assert (record.names, record.openings[-1].ended, record.is_in_doubt) == (frozenset(), True, False)

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("number", [1, 3, MOST_WRITES, MOST_WRITES + 1, 200])
    def test_it_holds_no_signature(self, context: Any, records: Store, number: int) -> None:
        every = written(records)
        execute(context, creative=[creative(url) for url in urls(number)])
        assert every
        assert "media.example" not in json.dumps(every)
        assert SECRET.partition("=")[2] not in json.dumps(every)
        assert max(len(key) for key, _ in every) <= 512

    def test_each_media_file_refers_to_it(self, slow: DaiEmulator, context: Any, records: Store) -> None:
        files = [creative(url)["mediaFiles"][0] for url in urls(3)]
        given = {**creative(URL), "mediaFiles": files}
        execute(context, creative=given, wait_for_completion=False, cancel_with_run=True)
        (key,) = owners_of(records)
        referred = [OwnerRecords(records).of_medium(medium(slow.endpoint, url)) for url in urls(3)]
        assert referred == [[key]] * 3

    def test_two_tasks_with_the_same_media_keep_both_records(
        self, slow: DaiEmulator, context: Any, records: Store, store: Store, ti: Ti
    ) -> None:
        for run in ("a_run", "b_run"):
            ti.run_id = run
            store.kept.clear()
            execute(context, wait_for_completion=False, cancel_with_run=True)
        keys = OwnerRecords(records).of_medium(medium(slow.endpoint, URL))
        assert keys == [Owner("a_dag", run, "ingest").key("owner") for run in ("a_run", "b_run")]
        assert set(keys) == owners_of(records)

    def test_a_reference_that_another_task_has_overwritten_is_written_again(
        self, slow: DaiEmulator, context: Any, records: Store
    ) -> None:
        place = f"url-{medium(slow.endpoint, URL)}"
        keep, pending = records.set, ["owner-of-another"]

        def overwrite(key: str, value: Any) -> None:
            keep(key, [pending.pop()] if key == place and pending else value)

        records.set = overwrite  # type: ignore[method-assign]
        execute(context, wait_for_completion=False, cancel_with_run=True)
        assert owners_of(records) <= set(records.kept[place])

    @pytest.mark.usefixtures("slow")
    def test_a_long_list_takes_few_requests(self, context: Any, records: Store) -> None:
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, creative=[creative(url) for url in urls(1000)], timeout=10)
        assert len(records.asked) <= 8
        assert len(opening_of(records).media) == 1000
        assert opening_of(records).ended

    @pytest.mark.parametrize("tries", [1, 5])
    def test_tries_without_a_doubt_do_not_make_it_longer(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti, tries: int
    ) -> None:
        ti.max_tries = tries
        slow.inject(Fault(CREATE, rpc_status="RESOURCE_EXHAUSTED", times=None))
        for ti.try_number in range(1, tries + 1):
            with pytest.raises(AirflowException):
                execute(context)
        record = record_of(records)
        assert record
        assert (record.try_number, len(record.openings), record.is_in_doubt) == (tries, 1, False)

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("number", [3, 30])
    def test_a_retry_keeps_the_names_of_what_it_has_reattached_to(
        self, context: Any, records: Store, ti: Ti, number: int
    ) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, creative=[creative(url) for url in urls(number)], timeout=10)
        ti.try_number = 2
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, creative=[creative(url) for url in urls(number + 5)], timeout=10)
        record = record_of(records)
        assert record
        assert len(record.names) == number + 5
        assert [len(opening.media) for opening in record.openings] == [number, 5]
        assert record.try_number == 2

    def test_while_a_long_list_is_started_it_is_written_now_and_then(
        self, context: Any, records: Store, clock: Clock, slow: DaiEmulator
    ) -> None:
        operator = make(creative=[creative(url) for url in urls(3)])
        own = operator._own_record(context)
        own.open(slow.endpoint, urls(3))
        every = written(records)
        own.note(["operations/a"])
        assert every == []
        clock.advance(WRITE_INTERVAL)
        own.note(["operations/a"])
        assert len(every) == 1
        assert opening_of(records).last == clock.now


class TestOutage:
    def test_a_record_that_cannot_be_kept_is_a_warning_and_attempted_once(
        self, slow: DaiEmulator, context: Any, records: Store, log: Log
    ) -> None:
        records.broken = True
        assert execute(context) == the(slow)
        assert len(records.asked) == 1
        (line,) = log.lines("Could not write down whose ingests these are, so the sweep cannot tell")
        assert "the API server is unavailable" in line
        assert log.errors == []

    def test_without_a_record_a_lost_start_is_not_attempted_again(
        self, slow: DaiEmulator, context: Any, records: Store
    ) -> None:
        records.broken = True
        slow.inject(Fault(CREATE, drop="before", times=1))
        with pytest.raises(IngestMayHaveStartedError):
            execute(context)
        assert count(slow, CREATE) == 1

    @pytest.mark.usefixtures("slow")
    def test_before_3_3_nothing_is_read_or_written(self, context_before_3_3: Any, records: Store) -> None:
        execute(context_before_3_3)
        assert records.asked == []


class TestDoubt:
    @both
    def test_a_lost_start_is_attempted_again(
        self, slow: DaiEmulator, context: Any, records: Store, log: Log, deferrable: bool
    ) -> None:
        slow.inject(Fault(CREATE, drop="before", times=1))
        assert execute(context, deferrable=deferrable) == the(slow)
        assert opening_of(records).doubts == {medium(slow.endpoint, URL)}
        assert record_of(records).names == {the(slow)}  # type: ignore[union-attr]
        assert log.lines("Starting it again")

    def test_it_is_attempted_a_few_times_only(self, slow: DaiEmulator, context: Any, records: Store) -> None:
        slow.inject(Fault(CREATE, drop="before", times=None))
        with pytest.raises(IngestMayHaveStartedError):
            execute(context)
        assert count(slow, CREATE) == STARTS
        assert opening_of(records).doubts == {medium(slow.endpoint, URL)}

    def test_an_ingest_that_has_started_is_found_and_not_started_again(
        self, slow: DaiEmulator, context: Any, records: Store
    ) -> None:
        slow.inject(Fault(CREATE, drop="after", times=1))
        assert execute(context) == the(slow)
        assert count(slow, CREATE) == 1
        assert owners_of(records) == set()

    def test_a_refusal_after_a_lost_start_leaves_the_doubt(
        self, slow: DaiEmulator, context: Any, records: Store
    ) -> None:
        slow.inject(Fault(CREATE, drop="before", times=1))
        slow.inject(Fault(CREATE, rpc_status="PERMISSION_DENIED", times=None))
        with pytest.raises(AirflowFailException, match="PERMISSION_DENIED"):
            execute(context)
        assert opening_of(records).doubts == {medium(slow.endpoint, URL)}

    @pytest.mark.parametrize("number", [3, 30])
    def test_lost_starts_of_a_list_are_attempted_again(
        self, slow: DaiEmulator, context: Any, records: Store, number: int
    ) -> None:
        slow.inject(Fault(CREATE, drop="before", times=2))
        names = execute(context, creative=[creative(url) for url in urls(number)])
        assert sorted(names) == sorted(slow.states())
        assert len(set(names)) == number
        assert len(opening_of(records).doubts) == 2
        assert record_of(records).names == set(names)  # type: ignore[union-attr]

    def test_a_list_that_cannot_be_searched_leaves_the_doubt(
        self, slow: DaiEmulator, context: Any, records: Store
    ) -> None:
        slow.inject(Fault(CREATE, drop="before", times=1))
        slow.inject(Fault("operations.list", rpc_status="UNIMPLEMENTED", times=None))
        with pytest.raises(AirflowFailException):
            execute(context, creative=[creative(url) for url in urls(3)])
        assert count(slow, CREATE) == 3
        assert len(opening_of(records).doubts) == 1

    def test_what_an_earlier_try_may_have_started_is_in_doubt(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti
    ) -> None:
        make()._own_record(context).open(slow.endpoint, [URL])
        ti.try_number = 2
        execute(context)
        record = record_of(records)
        assert record
        assert [bool(opening.doubts) for opening in record.openings] == [True, False]


class TestStrays:
    @pytest.mark.parametrize("number", [1, 3])
    def test_a_try_does_not_reattach_to_what_the_sweep_cancels(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti, log: Log, number: int
    ) -> None:
        ti.max_tries = 1
        given = [creative(url) for url in urls(number)]
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, creative=given if number > 1 else given[0], timeout=10)
        first = list(slow.states())
        OwnerRecords(records).write_strays(Owner("a_dag", "a_run", "ingest", -1), first)
        ti.try_number, ti.max_tries = 2, 2
        names = execute(context, creative=given if number > 1 else given[0])
        assert not set(first) & set(names if number > 1 else [names])
        assert {slow.states()[name] for name in first} == {"CANCELLED"}
        assert count(slow, CANCEL) == number
        assert len(log.lines("The sweep cancels")) == 1

    def test_one_that_the_service_no_longer_knows_is_no_error(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti
    ) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, timeout=10)
        first = the(slow)
        OwnerRecords(records).write_strays(Owner("a_dag", "a_run", "ingest", -1), [first])
        slow.inject(Fault(CANCEL, rpc_status="NOT_FOUND", times=None))
        slow.inject(Fault("operations.get", first, rpc_status="NOT_FOUND", times=None))
        ti.try_number, ti.max_tries = 2, 2
        assert execute(context) != first


class TestForm:
    def test_a_record_comes_back_as_it_was(self) -> None:
        openings = (
            Opening(1, 1.5, 2.5, True, frozenset({"a" * 16, "b" * 16}), frozenset({"b" * 16})),
            Opening(2, 3.5, 3.5, False, frozenset({"c" * 16})),
        )
        record = Record(Owner("d", "r", "t", 3), FLAGS, frozenset({"operations/x"}), openings)
        assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record

    @pytest.mark.parametrize(
        "value", [None, 1, "text", [], {}, {"owner": ["d"]}, {"openings": [{}]}, {"openings": [], "owner": 1}], ids=str
    )
    def test_anything_else_is_none(self, value: Any) -> None:
        assert Record.from_json(value) is None
        kept = Store({"owner-x": value, "lists": value, "url-x": value})
        assert OwnerRecords(kept).get("owner-x") is None
        assert all(isinstance(key, str) for key in OwnerRecords(kept).of_lists())

    def test_map_index_and_run_make_other_owners(self) -> None:
        owners = [Owner("d", "r", "t"), Owner("d", "r", "t", 0), Owner("d", "r", "t_0"), Owner("d", "s", "t")]
        assert len({owner.key("owner") for owner in owners}) == 4


def test_the_name_of_the_asset_is_fixed() -> None:
    """Tasks of another version write there too."""
    assert ASSET == "airflow_dai_provider_ingests"
