"""What a create task writes down about its ingests, for the sweep."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.ingest.own_claim import MOST_WRITES, STARTS
from airflow_dai_provider.ingest.ownership import ASSET, Claim, Owner, OwnerRecords, url_hash
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


def claims(records: Store, emulator: DaiEmulator, url: str = URL) -> list[Claim]:
    return OwnerRecords(records).of_url(url_hash(emulator.endpoint, url))


def only_list(records: Store) -> Claim:
    (key,) = OwnerRecords(records).lists()
    claim = OwnerRecords(records).of_list(key)
    assert claim
    return claim


@pytest.mark.usefixtures("slow")
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
        assert seen == [0]
        (claim,) = claims(records, slow)
        assert claim == Claim(
            Owner("a_dag", "a_run", "ingest", -1),
            try_number=1,
            since=clock.now,
            until=None,
            flags=FLAGS | {"waits": False, "cancel_with_run": True},
            hashes=frozenset({url_hash(slow.endpoint, URL)}),
        )

    @both
    def test_it_is_removed_when_the_ingest_has_finished(self, context: Any, records: Store, deferrable: bool) -> None:
        execute(context, deferrable=deferrable)
        assert records.kept == {}

    def test_it_is_removed_when_the_ingest_has_failed(self, context: Any, records: Store) -> None:
        with pytest.raises(AirflowFailException, match="INVALID_MEDIA"):
            execute(context, creative=creative(f"{URL}&outcome=INVALID_MEDIA"))
        assert records.kept == {}

    def test_it_is_removed_when_the_ingest_is_meant_to_run_on(self, context: Any, records: Store) -> None:
        execute(context, wait_for_completion=False)
        assert records.kept == {}

    def test_it_stays_while_the_ingest_may_run_by_mistake(
        self, slow: DaiEmulator, context: Any, records: Store
    ) -> None:
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, timeout=10)
        assert len(claims(records, slow)) == 1

    @pytest.mark.parametrize("number", [1, 3, MOST_WRITES, MOST_WRITES + 1, 200])
    def test_it_holds_no_signature(self, context: Any, records: Store, number: int) -> None:
        written: list[Any] = []
        keep = records.set

        def note(key: str, value: Any) -> None:
            written.append((key, value))
            keep(key, value)

        records.set = note  # type: ignore[method-assign]
        execute(context, creative=[creative(url) for url in urls(number)])
        assert written
        assert "media.example" not in json.dumps(written)
        assert SECRET.partition("=")[2] not in json.dumps(written)
        assert max(len(key) for key, _ in written) <= 512
        assert records.kept.keys() <= {"lists"}

    def test_each_media_file_has_a_record(self, slow: DaiEmulator, context: Any, records: Store) -> None:
        files = [creative(url)["mediaFiles"][0] for url in urls(3)]
        execute(
            context, creative={**creative(URL), "mediaFiles": files}, wait_for_completion=False, cancel_with_run=True
        )
        assert [len(claims(records, slow, url)) for url in urls(3)] == [1, 1, 1]

    def test_two_tasks_with_the_same_media_keep_both_claims(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti
    ) -> None:
        for run in ("a_run", "b_run"):
            ti.run_id = run
            execute(context, wait_for_completion=False, cancel_with_run=True)
        assert [claim.owner.run_id for claim in claims(records, slow)] == ["a_run", "b_run"]
        execute(context)
        assert [claim.owner.run_id for claim in claims(records, slow)] == ["a_run"]

    def test_a_long_list_takes_few_writes(self, context: Any, records: Store) -> None:
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, creative=[creative(url) for url in urls(1000)], timeout=10)
        assert len(records.asked) <= 8
        claim = only_list(records)
        assert len(claim.hashes) == 1000
        assert claim.until is not None

    def test_a_retry_keeps_the_claim_of_what_it_has_reattached_to(self, context: Any, records: Store, ti: Ti) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, creative=[creative(url) for url in urls(30)], timeout=10)
        first = only_list(records)
        ti.try_number = 2
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, creative=[creative(url) for url in urls(40)], timeout=10)
        claim = only_list(records)
        assert (claim.since, len(claim.hashes)) == (first.since, 40)


class TestOutage:
    def test_a_record_that_cannot_be_kept_is_a_warning_and_attempted_once(
        self, slow: DaiEmulator, context: Any, records: Store, log: Log
    ) -> None:
        records.broken = True
        assert execute(context) == the(slow)
        assert len(records.asked) == 1
        (line,) = log.lines("Could not write down whose ingests these are")
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
        (claim,) = claims(records, slow)
        assert list(claim.in_doubt.values()) == [the(slow)]
        assert log.lines("Starting it again")

    def test_it_is_attempted_a_few_times_only(self, slow: DaiEmulator, context: Any, records: Store) -> None:
        slow.inject(Fault(CREATE, drop="before", times=None))
        with pytest.raises(IngestMayHaveStartedError):
            execute(context)
        assert count(slow, CREATE) == STARTS
        (claim,) = claims(records, slow)
        assert list(claim.in_doubt.values()) == [None]

    def test_an_ingest_that_has_started_is_found_and_not_started_again(
        self, slow: DaiEmulator, context: Any, records: Store
    ) -> None:
        slow.inject(Fault(CREATE, drop="after", times=1))
        assert execute(context) == the(slow)
        assert count(slow, CREATE) == 1
        assert records.kept == {}

    def test_a_killed_task_starts_nothing_again(self, slow: DaiEmulator, context: Any) -> None:
        operator = make()
        slow.inject(Fault(CREATE, drop="before", times=1))
        operator._guard.killed = True
        with pytest.raises(AirflowException):
            operator.execute(context)
        assert slow.states() == {}

    @pytest.mark.parametrize("number", [3, 30])
    def test_lost_starts_of_a_list_are_attempted_again(
        self, slow: DaiEmulator, context: Any, records: Store, number: int
    ) -> None:
        slow.inject(Fault(CREATE, drop="before", times=2))
        names = execute(context, creative=[creative(url) for url in urls(number)])
        assert sorted(names) == sorted(slow.states())
        assert len(names) == number
        doubts = (
            [only_list(records).in_doubt]
            if number > MOST_WRITES
            else [claim.in_doubt for url in urls(number) for claim in claims(records, slow, url) if claim.in_doubt]
        )
        assert sorted(name for one in doubts for name in one.values() if name) == sorted(
            name for name in names if name in {value for one in doubts for value in one.values()}
        )
        assert sum(map(len, doubts)) == 2


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
        OwnerRecords(records).write_strays(Owner("a_dag", "a_run", "ingest", -1), slow.endpoint, first)
        ti.try_number, ti.max_tries = 2, 2
        names = execute(context, creative=given if number > 1 else given[0])
        assert not set(first) & set(names if number > 1 else [names])
        assert {slow.states()[name] for name in first} == {"CANCELLED"}
        assert count(slow, CANCEL) == number
        assert len(log.lines("The sweep cancels")) == number


class TestForm:
    def test_a_claim_comes_back_as_it_was(self) -> None:
        claim = Claim(
            Owner("d", "r", "t", 3), 2, 1.5, 2.5, FLAGS, frozenset({"a" * 64}), {"a" * 64: None, "b": "operations/x"}
        )
        assert Claim.from_json(json.loads(json.dumps(claim.to_json()))) == claim

    @pytest.mark.parametrize("value", [None, 1, "text", [], {}, {"dag_id": "d"}, {"hashes": "x"}, [[1]]], ids=str)
    def test_anything_else_is_none(self, value: Any) -> None:
        assert Claim.from_json(value) is None
        kept = Store({"url-x": [value], "lists": value})
        assert OwnerRecords(kept).of_url("x") == []
        assert OwnerRecords(kept).lists() in ({}, {"dag_id": "d"}, {"hashes": "x"})


def test_the_name_of_the_asset_is_fixed() -> None:
    """Tasks of another version write there too."""
    assert ASSET == "airflow_dai_provider_ingests"
