"""What a create task writes down about its ingests, for the sweep."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.ingest.own_record import STARTS, WRITE_INTERVAL
from airflow_dai_provider.ingest.ownership import ASSET, Opening, Owner, OwnerRecords, Record, media_key
from airflow_dai_provider.ingest.recovery import IngestMayHaveStartedError
from tests.support.clock import Clock
from tests.support.emulators import count
from tests.support.ingests import CANCEL, CREATE, LIST, SECRET, URL, both, execute, make, the
from tests.support.log import Log
from tests.support.payloads import creative
from tests.support.task_instance import Store, Ti

FLAGS = {"waits": True, "cancel_on_kill": True, "cancel_on_failure": True, "cancel_with_run": False}


def urls(number: int) -> list[str]:
    return [f"https://media.example.com/{index}.mp4?{SECRET}" for index in range(number)]


KEYS = {media_key(URL)}
SWEEP = Owner("a_dag", "b_run", "sweep")


def record_of(records: Store, run_id: str = "a_run") -> Record:
    record = OwnerRecords(records).get(Owner("a_dag", run_id, "ingest"))
    assert record
    return record


def announce(records: Store, endpoint: str, names: list[str]) -> None:
    OwnerRecords(records).announce(SWEEP, Owner("a_dag", "a_run", "ingest"), endpoint, names)


def opening_of(records: Store) -> Opening:
    return record_of(records).openings[-1]


#: What stands for the account of the tasks.
ACCOUNT = "google_cloud_default"


@pytest.fixture
def swept(slow: DaiEmulator, records: Store, clock: Clock) -> None:
    """Let a sweep have come ten minutes ago."""
    OwnerRecords(records).note_sweep((slow.endpoint, ACCOUNT), clock.now - 600)


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
        opening = Opening(1, slow.endpoint, clock.now, clock.now, ended=True, names=frozenset(slow.states()))
        assert record_of(records) == Record(
            Owner("a_dag", "a_run", "ingest", -1),
            flags=FLAGS | {"waits": False, "cancel_with_run": True},
            openings=(opening,),
        )

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("number", [1, 3])
    def test_until_the_response_all_its_media_are_unknown(self, context: Any, records: Store, number: int) -> None:
        every = written(records)
        execute(context, creative=[creative(url) for url in urls(number)])
        first = Record.from_json(next(value for key, value in every if key.startswith("owner-")))
        assert first
        (opening,) = first.openings
        assert (opening.unknown, opening.names, opening.ended) == (set(map(media_key, urls(number))), set(), False)

    @both
    @pytest.mark.parametrize("number", [1, 3, 30])
    @pytest.mark.usefixtures("slow")
    def test_it_is_removed_when_the_ingests_have_finished(
        self, context: Any, records: Store, number: int, deferrable: bool
    ) -> None:
        given = [creative(url) for url in urls(number)]
        execute(context, creative=given if number > 1 else given[0], deferrable=deferrable)
        assert owners_of(records) == set()

    @pytest.mark.usefixtures("slow")
    def test_it_is_removed_when_the_ingest_has_failed(self, context: Any, records: Store) -> None:
        with pytest.raises(AirflowFailException, match="INVALID_MEDIA"):
            execute(context, creative=creative(f"{URL}&outcome=INVALID_MEDIA"))
        assert owners_of(records) == set()

    @pytest.mark.parametrize("number", [1, 3, 30])
    def test_it_says_that_the_ingests_are_meant_to_run_on(
        self, slow: DaiEmulator, context: Any, records: Store, number: int
    ) -> None:
        given = [creative(url) for url in urls(number)]
        execute(context, creative=given if number > 1 else given[0], wait_for_completion=False)
        assert (opening_of(records).runs_on, opening_of(records).refused) == (True, False)
        assert opening_of(records).names == set(slow.states())

    @pytest.mark.parametrize(("with_run", "runs_on"), [(False, True), (True, False)])
    def test_those_beside_a_refused_one_are_meant_to_run_on_too(
        self, slow: DaiEmulator, context: Any, records: Store, with_run: bool, runs_on: bool
    ) -> None:
        slow.inject(Fault(CREATE, rpc_status="PERMISSION_DENIED", times=1))
        given = [creative(url) for url in urls(3)]
        with pytest.raises(AirflowFailException, match="PERMISSION_DENIED"):
            execute(context, creative=given, wait_for_completion=False, cancel_with_run=with_run)
        assert (opening_of(records).runs_on, opening_of(records).refused) == (runs_on, runs_on)
        assert opening_of(records).names == set(slow.states())
        assert len(slow.states()) == 2

    @pytest.mark.usefixtures("slow")
    def test_it_stays_while_the_ingest_may_run_by_mistake(self, context: Any, records: Store) -> None:
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, timeout=10)
        assert len(owners_of(records)) == 1

    @pytest.mark.parametrize("number", [1, 3])
    def test_a_refused_start_leaves_no_record(
        self, slow: DaiEmulator, context: Any, records: Store, number: int
    ) -> None:
        slow.inject(Fault(CREATE, rpc_status="PERMISSION_DENIED", times=None))
        given = [creative(url) for url in urls(number)]
        with pytest.raises(AirflowFailException):
            execute(context, creative=given)
        assert owners_of(records) == set()

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("number", [1, 3, 200])
    def test_it_holds_no_signature(self, context: Any, records: Store, number: int) -> None:
        every = written(records)
        execute(context, creative=[creative(url) for url in urls(number)])
        assert every
        assert "media.example" not in json.dumps(every)
        assert SECRET.partition("=")[2] not in json.dumps(every)
        assert max(len(key) for key, _ in every) <= 512

    def test_it_has_each_media_file(self, slow: DaiEmulator, context: Any, records: Store) -> None:
        slow.inject(Fault(CREATE, drop="before", times=None))
        files = [creative(url)["mediaFiles"][0] for url in urls(3)]
        with pytest.raises(IngestMayHaveStartedError):
            execute(context, creative={**creative(URL), "mediaFiles": files})
        assert opening_of(records).unknown == set(map(media_key, urls(3)))

    @pytest.mark.usefixtures("slow")
    def test_every_record_is_found(self, context: Any, records: Store, store: Store, ti: Ti) -> None:
        runs = [f"run_{number}" for number in range(100)]
        for ti.run_id in runs:
            store.kept.clear()
            execute(context, wait_for_completion=False)
        assert sorted(record.owner.run_id for record in OwnerRecords(records).all()) == sorted(runs)

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("times", [1, 3, 9])
    def test_a_list_of_records_that_another_task_has_overwritten_is_written_again(
        self, context: Any, records: Store, times: int
    ) -> None:
        keep, pending = records.set, ["owner-of-another"] * times

        def overwrite(key: str, value: Any) -> None:
            keep(key, [pending.pop()] if key.startswith("owners-") and pending else value)

        records.set = overwrite  # type: ignore[method-assign]
        execute(context, wait_for_completion=False)
        assert [record.owner.run_id for record in OwnerRecords(records).all()] == ["a_run"]

    @pytest.mark.usefixtures("slow")
    def test_one_that_always_is_is_a_warning(self, context: Any, records: Store, log: Log) -> None:
        keep = records.set
        records.set = lambda key, value: keep(key, ["owner-of-another"] if key.startswith("owners-") else value)  # type: ignore[method-assign]
        execute(context, wait_for_completion=False)
        (line,) = log.lines("Could not record the owner of the ingests, so the sweep does not know it")
        assert "too many tasks write owners-" in line

    @pytest.mark.usefixtures("slow")
    def test_a_long_list_takes_few_requests(self, context: Any, records: Store) -> None:
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, creative=[creative(url) for url in urls(1000)], timeout=10)
        assert len(records.asked) <= 8
        assert (len(opening_of(records).names), opening_of(records).ended) == (1000, True)

    @pytest.mark.parametrize("tries", [1, 5])
    def test_tries_that_reattach_do_not_make_it_longer(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti, tries: int
    ) -> None:
        ti.max_tries = tries
        for ti.try_number in range(1, tries + 1):
            with pytest.raises(AirflowException, match="within 5 s"):
                execute(context, timeout=5)
        record = record_of(records)
        assert (record.openings[-1].try_number, len(record.openings), record.names) == (tries, 1, {the(slow)})

    @pytest.mark.parametrize("number", [1, 3])
    def test_a_try_that_reattaches_takes_the_ingests_over(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti, number: int
    ) -> None:
        """Also where the earlier try could write nothing, and with the flags that the task has now."""
        ti.max_tries = 1
        given = [creative(url) for url in urls(number)]
        for ti.try_number, records.broken in ((1, True), (2, False)):
            with pytest.raises(AirflowException, match="within 10 s"):
                execute(
                    context, creative=given if number > 1 else given[0], timeout=10, cancel_on_failure=ti.try_number < 2
                )
        record = record_of(records)
        assert (record.names, len(record.openings), record.openings[-1].try_number) == (set(slow.states()), 1, 2)
        assert record.flags == FLAGS | {"cancel_on_failure": False}
        assert len(slow.states()) == number

    def test_what_a_later_try_has_not_taken_over_stays(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti, store: Store
    ) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, timeout=10)
        first = the(slow)
        store.kept.clear()
        ti.try_number = 2
        second = execute(context)
        record = record_of(records)
        assert [one.names for one in record.openings] == [{first}, {second}]

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
        assert (len(record.names), len(record.openings), record.openings[-1].try_number) == (number + 5, 1, 2)

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
        (line,) = log.lines("Could not record the owner of the ingests, so the sweep does not know it")
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
    @pytest.mark.usefixtures("swept")
    def test_a_lost_start_is_attempted_again(
        self, slow: DaiEmulator, context: Any, records: Store, log: Log, deferrable: bool
    ) -> None:
        slow.inject(Fault(CREATE, drop="before", times=1))
        assert execute(context, deferrable=deferrable) == the(slow)
        assert opening_of(records).unknown == KEYS
        assert record_of(records).names == {the(slow)}
        assert log.lines("Sending the create request again")

    @pytest.mark.usefixtures("swept")
    @pytest.mark.parametrize(
        "item", [None, {"name": "operations/x", "metadata": []}, {"name": "operations/x"}], ids=str
    )
    def test_it_is_not_attempted_again_if_something_in_the_list_can_be_it(
        self, slow: DaiEmulator, context: Any, item: Any
    ) -> None:
        slow.inject(Fault(CREATE, drop="before", times=1))
        slow.inject(Fault(LIST, listed=(item,), times=None))
        with pytest.raises(IngestMayHaveStartedError):
            execute(context)
        assert count(slow, CREATE) == 1

    @pytest.mark.parametrize("last", [None, 3601])
    def test_it_is_not_attempted_again_where_no_sweep_comes(
        self, slow: DaiEmulator, context: Any, records: Store, log: Log, clock: Clock, last: float | None
    ) -> None:
        if last:
            OwnerRecords(records).note_sweep((slow.endpoint, ACCOUNT), clock.now - last)
        for other in (None, ("https://elsewhere.example", ACCOUNT), (slow.endpoint, "another_connection")):
            OwnerRecords(records).note_sweep(other, clock.now)
        slow.inject(Fault(CREATE, drop="before", times=1))
        with pytest.raises(IngestMayHaveStartedError):
            execute(context)
        assert count(slow, CREATE) == 1
        assert log.lines("No complete sweep with this connection in the last hour")

    @pytest.mark.usefixtures("swept")
    @pytest.mark.parametrize("flag", ["cancel_on_kill", "cancel_on_failure"])
    def test_it_is_not_attempted_again_where_the_sweep_would_leave_both(
        self, slow: DaiEmulator, context: Any, flag: str
    ) -> None:
        slow.inject(Fault(CREATE, drop="before", times=1))
        with pytest.raises(IngestMayHaveStartedError):
            execute(context, **{flag: False})
        assert count(slow, CREATE) == 1

    @pytest.mark.usefixtures("swept")
    @pytest.mark.parametrize("age", [30, 7200])
    def test_it_is_not_attempted_again_while_another_ingest_of_the_media_runs(
        self, slow: DaiEmulator, context: Any, clock: Clock, age: float
    ) -> None:
        """By a clock that is wrong it can be the one whose response was lost."""
        other = slow.start_ingest(seconds=1e6, creative_url=URL)
        clock.advance(age)
        slow.inject(Fault(CREATE, drop="before", times=1))
        with pytest.raises(IngestMayHaveStartedError, match=f"{other} was created too early"):
            execute(context)
        assert count(slow, CREATE) == 1

    @pytest.mark.usefixtures("swept")
    def test_it_is_attempted_a_few_times_only(self, slow: DaiEmulator, context: Any, records: Store) -> None:
        slow.inject(Fault(CREATE, drop="before", times=None))
        with pytest.raises(IngestMayHaveStartedError):
            execute(context)
        assert count(slow, CREATE) == STARTS
        assert opening_of(records).unknown == KEYS

    @pytest.mark.usefixtures("swept")
    def test_an_ingest_that_has_started_is_found_and_not_started_again(
        self, slow: DaiEmulator, context: Any, records: Store
    ) -> None:
        slow.inject(Fault(CREATE, drop="after", times=1))
        assert execute(context) == the(slow)
        assert count(slow, CREATE) == 1
        assert owners_of(records) == set()

    @pytest.mark.usefixtures("swept")
    @pytest.mark.parametrize("ahead", [5, 30])
    def test_one_that_a_worker_whose_clock_is_ahead_does_not_adopt_is_not_started_again(
        self, slow: DaiEmulator, context: Any, clock: Clock, ahead: float
    ) -> None:
        slow.inject(Fault(CREATE, drop="after", times=1))
        operator = make()
        operator._clock = lambda: clock.now + ahead  # type: ignore[method-assign]
        with pytest.raises(IngestMayHaveStartedError):
            operator.execute(context)
        assert count(slow, CREATE) == 1

    @pytest.mark.usefixtures("swept")
    def test_a_refusal_after_a_lost_start_leaves_the_doubt(
        self, slow: DaiEmulator, context: Any, records: Store
    ) -> None:
        slow.inject(Fault(CREATE, drop="before", times=1))
        slow.inject(Fault(CREATE, rpc_status="PERMISSION_DENIED", times=None))
        with pytest.raises(AirflowFailException, match="PERMISSION_DENIED"):
            execute(context)
        assert opening_of(records).unknown == KEYS

    @pytest.mark.usefixtures("swept")
    @pytest.mark.parametrize("number", [3, 30])
    def test_lost_starts_of_a_list_are_attempted_again(
        self, slow: DaiEmulator, context: Any, records: Store, number: int
    ) -> None:
        slow.inject(Fault(CREATE, drop="before", times=2))
        names = execute(context, creative=[creative(url) for url in urls(number)])
        assert sorted(names) == sorted(slow.states())
        assert len(set(names)) == number
        assert len(opening_of(records).unknown) == 2
        assert record_of(records).names == set(names)

    @pytest.mark.usefixtures("swept")
    def test_a_list_that_cannot_be_searched_leaves_the_doubt(
        self, slow: DaiEmulator, context: Any, records: Store
    ) -> None:
        slow.inject(Fault(CREATE, drop="before", times=1))
        slow.inject(Fault("operations.list", rpc_status="UNIMPLEMENTED", times=None))
        with pytest.raises(AirflowFailException):
            execute(context, creative=[creative(url) for url in urls(3)])
        assert count(slow, CREATE) == 3
        assert len(opening_of(records).unknown) == 1

    def test_what_an_earlier_try_may_have_started_stays(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti
    ) -> None:
        make()._own_record(context).open(slow.endpoint, [URL])
        ti.try_number = 2
        execute(context)
        assert [one.unknown for one in record_of(records).openings] == [KEYS, set()]


def time_out_and_announce(
    slow: DaiEmulator, context: Any, records: Store, ti: Ti, number: int
) -> tuple[Any, list[str]]:
    """Let a try run out of time, and a sweep be about to cancel its ingests; return what was given, and their names."""
    ti.max_tries = 1
    several = [creative(url) for url in urls(number)]
    given = several if number > 1 else several[0]
    with pytest.raises(AirflowException, match="within 10 s"):
        execute(context, creative=given, timeout=10)
    names = list(slow.states())
    announce(records, slow.endpoint, names)
    return given, names


class TestStrays:
    @pytest.mark.parametrize("number", [1, 3])
    def test_a_try_does_not_reattach_to_what_the_sweep_cancels(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti, log: Log, number: int
    ) -> None:
        given, first = time_out_and_announce(slow, context, records, ti, number)
        ti.try_number, ti.max_tries = 2, 2
        names = execute(context, creative=given)
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
        announce(records, slow.endpoint, [first])
        slow.inject(Fault(CANCEL, rpc_status="NOT_FOUND", times=None))
        slow.inject(Fault("operations.get", first, rpc_status="NOT_FOUND", times=None))
        ti.try_number, ti.max_tries = 2, 2
        assert execute(context) != first

    @pytest.mark.parametrize("number", [1, 3])
    def test_a_try_reattaches_to_what_cannot_be_cancelled(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti, log: Log, number: int
    ) -> None:
        given, first = time_out_and_announce(slow, context, records, ti, number)
        slow.inject(Fault(CANCEL, rpc_status="PERMISSION_DENIED", times=None))
        ti.try_number = 2
        names = execute(context, creative=given)
        assert sorted(names if number > 1 else [names]) == sorted(first)
        assert sum("403 PERMISSION_DENIED" in line for line in log.lines("may still run")) == number

    def test_an_outage_of_the_service_fails_the_try(
        self, slow: DaiEmulator, context: Any, records: Store, ti: Ti
    ) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowException, match="within 10 s"):
            execute(context, timeout=10)
        announce(records, slow.endpoint, [the(slow)])
        slow.inject(Fault(None, rpc_status="UNAVAILABLE", times=None))
        ti.try_number = 2
        with pytest.raises(AirflowException, match="may still run") as raised:
            execute(context)
        assert not isinstance(raised.value, AirflowFailException)


class TestForm:
    def test_a_record_comes_back_as_it_was(self) -> None:
        openings = (
            Opening(
                1, "https://a.example", 1.5, 2.5, True, frozenset({"a" * 16, "b" * 16}), frozenset({"operations/x"})
            ),
            Opening(2, "https://a.example", 3.5, 3.5, False, frozenset({"c" * 16}), runs_on=True),
        )
        record = Record(Owner("d", "r", "t", 3), FLAGS, openings)
        assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record

    @pytest.mark.parametrize(
        "value", [None, 1, "text", [], {}, {"owner": ["d"]}, {"openings": [{}]}, {"openings": [], "owner": 1}], ids=str
    )
    def test_anything_else_is_none(self, value: Any) -> None:
        owner = Owner("d", "r", "t")
        assert Record.from_json(value) is None
        kept = Store({owner.key: value, **{f"owners-{part}": value for part in range(32)}})
        assert OwnerRecords(kept).get(owner) is None
        assert OwnerRecords(kept).all() == []
        kept = Store({"strays-" + owner.key: value})
        assert OwnerRecords(kept).pending_cancellations(owner, "https://a.example") == set()

    def test_map_index_and_run_make_other_owners(self) -> None:
        owners = [Owner("d", "r", "t"), Owner("d", "r", "t", 0), Owner("d", "r", "t_0"), Owner("d", "s", "t")]
        assert len({owner.key for owner in owners}) == 4


class TestPending:
    OWNER = Owner("a_dag", "a_run", "ingest")
    SWEEPS = (SWEEP, Owner("a_dag", "c_run", "sweep"))
    AT = "https://a.example"

    def test_what_one_sweep_takes_back_another_still_announces(self) -> None:
        records = OwnerRecords(Store())
        for sweep in self.SWEEPS:
            records.announce(sweep, self.OWNER, self.AT, ["operations/a", "operations/b"])
        records.retract(self.SWEEPS[1], self.OWNER, self.AT, ["operations/a", "operations/b"])
        assert records.pending_cancellations(self.OWNER, self.AT) == {"operations/a", "operations/b"}
        records.retract(self.SWEEPS[0], self.OWNER, self.AT, ["operations/a"])
        assert records.pending_cancellations(self.OWNER, self.AT) == {"operations/b"}

    def test_siblings_share_it(self) -> None:
        store = Store()
        records = OwnerRecords(store)
        for index in range(3):
            sibling = Owner("a_dag", "a_run", "ingest", index)
            records.announce(self.SWEEPS[0], sibling, self.AT, [f"operations/{index}"])
        assert len(store.kept) == 1
        records.forget(self.OWNER, self.AT, {"operations/2", "operations/3"})
        assert records.pending_cancellations(self.OWNER, self.AT) == {"operations/2"}
        records.forget(self.OWNER, self.AT, set())
        assert store.kept == {}

    def test_an_operation_of_the_same_name_at_another_endpoint_is_another_one(self) -> None:
        records = OwnerRecords(Store())
        records.announce(self.SWEEPS[0], self.OWNER, self.AT, ["operations/a"])
        assert records.pending_cancellations(self.OWNER, "https://b.example") == set()


def test_the_name_of_the_asset_is_fixed() -> None:
    """Tasks of another version write there too."""
    assert ASSET == "airflow_dai_provider_ingests"
