"""Owners of running operations, as Airflow knows them, and whether these are over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any

from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.ingest.ownership import (
    ASSET,
    CLOCK_SKEW,
    LATEST_START,
    Opening,
    Owner,
    OwnerRecords,
    Record,
    media_key,
)
from airflow_dai_provider.tasks.xcom import XCOM_STARTED
from airflow_dai_provider.version_compat import (
    HAS_ASSET_STATE_STORE,
    TASKS_READ_DATABASE,
    asset_store,
    has_run,
    run_state,
    run_xcom,
    task_states,
    xcoms_in_database,
)

NO_OWNERS = (
    "The owners of operations are not known on this version of Airflow, so older_than is required: the age from which "
    "an operation is a stray."
)
NO_ASSET = (
    f"Airflow does not know the asset {ASSET}, which has the owners of operations. A DAG with a sweep that is not "
    f'mapped registers it; a mapped sweep needs .partial(inlets=[Asset("{ASSET}")]).'
)

#: The states in which a task instance is over, unless it succeeds. Every other one is alive, those included that a task
#: has after a clear, and those that this code does not know.
OVER = frozenset({"failed", "upstream_failed", "skipped", "removed"})
#: Stands for the state of a task instance whose run was deleted.
GONE = "gone"
#: Seconds after which a record is removed although an operation of it is not listed as finished: the service forgets
#: operations, and another account's are not listed.
KEPT = 7 * 86400.0
#: The most characters of the ids of runs in the URL of one request.
_CHARACTERS_AT_A_TIME = 3000


@dataclass(frozen=True, slots=True)
class Verdict:
    """The owner of an operation, and whether it is a stray.

    :param record: of the owner.
    :param is_stray: whether the owner is over, and did not mean the operation to run on.
    :param reason: why, as the end of a sentence about the owner.
    :param owners: all owners that it can have.
    """

    record: Record
    is_stray: bool
    reason: str
    owners: tuple[Owner, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self.record.owner) | {"try_number": self.record.try_number, "reason": self.reason}

    def __str__(self) -> str:
        return f"of try {self.record.try_number} of {self.record.owner}, which {self.reason}"


class Owners:
    """Find the owners of running operations, and judge by them which are strays.

    :param records: what the create tasks have written; None where the XComs in the metadata database have it.
    :param endpoint: base URL of the service that runs the operations.
    :param sweep: the task instance that asks.
    """

    def __init__(self, records: OwnerRecords | None, endpoint: str, sweep: Owner) -> None:
        self._records = records
        self._endpoint = endpoint
        self._sweep = sweep
        #: As they were read last.
        self._read: dict[Owner, Record] = {}

    def note_sweep(self, now: float, *, of_all: bool) -> None:
        """Note that this sweep begins.

        :param of_all: whether it has no filter.
        :raises Exception: when Airflow does not know the asset, or does not respond.
        """
        if self._records:
            self._records.note_sweep(self._endpoint if of_all else None, now)

    def judge(self, running: Collection[Operation]) -> dict[str, Verdict]:
        """Return the verdicts on running operations, by name; one without an owner has none.

        :raises Exception: when Airflow does not respond.
        """
        read = self._records.all() if self._records else self._pushed(running)
        self._read = {record.owner: record for record in read}
        return self._judge(read, running)

    def confirm(self, suspects: Mapping[str, Verdict], running: Iterable[Operation]) -> dict[str, Verdict]:
        """Read the owners again, and return the verdicts by then.

        What is about to be cancelled is written down before the state of its owner is read. A task is running before it
        reads that, and does not reattach to it then. So one of the two always sees the other.

        :param suspects: the verdicts of the first time on what was found to be stray, by name.
        :param running: the operations, these among them.
        """
        suspected = [one for one in running if one.name in suspects]
        if self._records:
            again = self._announce_and_judge(self._records, suspects, suspected)
        else:
            again = self._judge(self._pushed(suspected), suspected)
        return {
            name: again.get(name) or replace(verdict, is_stray=False, reason="was not found again")
            for name, verdict in suspects.items()
        }

    def _announce_and_judge(
        self, records: OwnerRecords, suspects: Mapping[str, Verdict], running: Collection[Operation]
    ) -> dict[str, Verdict]:
        names: dict[Owner, list[str]] = defaultdict(list)
        for name, verdict in suspects.items():
            for owner in {replace(owner, map_index=-1) for owner in verdict.owners}:
                names[owner].append(name)
        again: dict[str, Verdict] = {}
        try:
            for owner, every in names.items():
                records.announce(self._sweep, owner, self._endpoint, every)
            read = map(records.get, {owner for verdict in suspects.values() for owner in verdict.owners})
            again = self._judge([record for record in read if record], running)
        finally:
            for owner, every in names.items():
                if left := [name for name in every if name not in again or not again[name].is_stray]:
                    records.retract(self._sweep, owner, self._endpoint, left)
        return again

    def remove_leftovers(self, listed: Mapping[str, bool], listed_at: float) -> None:
        """Remove the records of tasks that are over, and whose ingests have finished.

        :param listed: the operations that the service lists, by name, and whether they have finished.
        :param listed_at: when that was, in seconds of the epoch.
        """
        if not self._records:
            return
        running = {name for name, done in listed.items() if not done}
        idle = [record for record in self._read.values() if self._is_idle(record, listed, listed_at)]
        states = _states([record.owner for record in idle])
        for record in idle:
            # A task that was cleared meanwhile has changed it.
            if states[record.owner] in {*OVER, GONE, "success"} and self._records.get(record.owner) == record:
                self._records.delete(record.owner)
                self._records.forget(record.owner, self._endpoint, running)

    def _judge(self, records: Iterable[Record], running: Collection[Operation]) -> dict[str, Verdict]:
        found = _find_owners(records, self._endpoint, running)
        states = _states({record.owner for owners in found.values() for record, _ in owners})
        state_of_run = cache(run_state)
        verdicts: dict[str, Verdict] = {}
        for name, owners in found.items():
            each = [_judge(name, self._correct(name, owner), states[owner[0].owner], state_of_run) for owner in owners]
            # Of several possible owners, each has to be over.
            if len(each) == 1 or all(one.is_stray for one in each):
                verdicts[name] = replace(each[0], owners=tuple(record.owner for record, _ in owners))
        return verdicts

    def _correct(self, name: str, found: Found) -> Found:
        """Return the owner with what it has pushed to XCom, in case that its record could not be written."""
        record, opening = found
        if not self._records or not _is_twin(name, found):
            return found
        owner = record.owner
        started = run_xcom(owner.dag_id, owner.run_id, owner.task_id, owner.map_index, XCOM_STARTED)
        match started:
            case {"endpoint": self._endpoint, "pushed_at": {**names}} if name in names:
                record = record.change(names=record.openings[-1].names | {name})
                return record, record.openings[-1]
        return record, opening

    def _is_idle(self, record: Record, listed: Mapping[str, bool], listed_at: float) -> bool:
        """Return whether no operation of a record can run any more, as far as this list shows."""
        here = all(opening.endpoint == self._endpoint for opening in record.openings)
        known = {listed.get(name) for name in record.names} if here else {None}
        if False in known:
            return False
        finished = None not in known and not record.has_unknown
        return listed_at - record.last > (LATEST_START if finished else KEPT)

    def _pushed(self, running: Collection[Operation]) -> list[Record]:
        """Return the records that the XComs in the metadata database make."""
        times = [one.ingest.create_time for one in running if one.ingest and one.ingest.create_time]
        if not times:
            return []
        records: list[Record] = []
        for dag_id, run_id, task_id, map_index, pushed in xcoms_in_database(
            XCOM_STARTED, min(times) - timedelta(seconds=CLOCK_SKEW)
        ):
            match pushed:
                # Code of a user can push names too, and says nothing of what they are meant for.
                case {
                    "endpoint": str(endpoint),
                    "pushed_at": {**names},
                    "flags": {**flags},
                    "try_number": int(number),
                } if flags:
                    given = {str(flag): value is True for flag, value in flags.items()}
                    runs_on = not given.get("waits") and not given.get("cancel_with_run")
                    opening = Opening(
                        number,
                        endpoint,
                        since=0.0,
                        last=0.0,
                        ended=True,
                        names=frozenset(map(str, names)),
                        runs_on=runs_on,
                        # Perhaps: it has not pushed that.
                        refused=runs_on,
                    )
                    records.append(Record(Owner(dag_id, run_id, task_id, map_index), given, (opening,)))
        return records


def find_owners(endpoint: str, sweep: Owner) -> Owners | None:
    """Return the owners of operations at an endpoint, or None where they are not known."""
    if HAS_ASSET_STATE_STORE:
        return Owners(OwnerRecords(asset_store(ASSET)), endpoint, sweep)
    return Owners(None, endpoint, sweep) if TASKS_READ_DATABASE else None


#: An owner's record, and the opening to which an operation belongs.
Found = tuple[Record, Opening]


def _find_owners(
    records: Iterable[Record], endpoint: str, running: Iterable[Operation]
) -> dict[str, Collection[Found]]:
    """Return the possible owners of operations, by name; mostly one, or none.

    A task that has written the name is the owner. Else it is a task with a request for this media, at about this time,
    whose response is not known.
    """
    by_name: dict[str, dict[Owner, Found]] = defaultdict(dict)
    by_media: dict[str, list[Found]] = defaultdict(list)
    for record in records:
        for opening in record.openings:
            if opening.endpoint == endpoint:
                for name in opening.names:
                    by_name[name][record.owner] = record, opening
                for media in opening.unknown:
                    by_media[media].append((record, opening))
    found: dict[str, Collection[Found]] = {}
    for one in running:
        owners = by_name.get(one.name, {})
        ingest = one.ingest
        if not owners and ingest and ingest.signed_creative_url and ingest.create_time:
            media, created = media_key(ingest.signed_creative_url), ingest.create_time.timestamp()
            owners = {
                record.owner: (record, opening)
                for record, opening in by_media.get(media, ())
                if opening.may_have_started(media, created)
            }
        if owners:
            found[one.name] = list(owners.values())
    return found


def _is_twin(name: str, found: Found) -> bool:
    """Return whether the owner of an operation does not know it: it waits for another one, or has waited for it."""
    record, opening = found
    return opening != record.openings[-1] or (opening.ended and name not in opening.names)


def _judge(name: str, found: Found, state: str | None, state_of_run: Callable[[str, str], str]) -> Verdict:
    """Decide whether an operation is a stray: by the state of its owner, and by what the owner is meant to cancel."""
    record, opening = found
    flags = {flag for flag, given in record.flags.items() if given}
    is_over, reason = _is_over(record, flags, state, state_of_run)
    needed = ["cancel_on_kill"] if state == "success" else ["cancel_on_kill", "cancel_on_failure"]
    if _is_twin(name, found):
        is_known = name in opening.names
        is_over = True
        reason += (
            ", but a later try has not reattached to this ingest"
            if is_known
            else ", and the request for this ingest got no response"
        )
    elif state == "success" and "waits" not in flags:
        needed = []
    missing = [flag for flag in needed if flag not in flags]
    if is_over and missing:
        return Verdict(record, is_stray=False, reason=f"{reason}, but has {missing[0]}=False")
    return Verdict(record, is_stray=is_over, reason=reason)


def _is_over(
    record: Record, flags: Collection[str], state: str | None, state_of_run: Callable[[str, str], str]
) -> tuple[bool, str]:
    """Return whether an owner needs its ingests no more, by its state, and why."""
    opening = record.openings[-1]
    is_over = state in OVER or state == GONE
    described = "is gone with its run" if state == GONE else f"is {state or 'waiting to be scheduled'}"
    if opening.runs_on and (state != "failed" or opening.refused):
        return False, f"{'has succeeded' if state == 'success' else described}, and meant its ingest to run on"
    if state != "success":
        return is_over, described
    if "waits" in flags:
        return True, "was marked as success"
    if "cancel_with_run" not in flags:
        return False, "has succeeded, and meant its ingest to run on"
    run = state_of_run(record.owner.dag_id, record.owner.run_id)
    return run == "failed", f"has succeeded; its run is {run}"


def _states(owners: Collection[Owner]) -> Mapping[Owner, str | None]:
    """Return the states of task instances; :data:`GONE` for those whose run was deleted."""
    runs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for dag_id, task_id, run_id in sorted({(owner.dag_id, owner.task_id, owner.run_id) for owner in owners}):
        runs[dag_id, task_id].append(run_id)
    # One task at a time: map index 3 of a task ``a`` and a task ``a_3`` are named alike.
    found = {
        (dag_id, task_id): {
            run_id: states
            for batch in _batches(run_ids)
            for run_id, states in task_states(dag_id, batch, [task_id]).items()
        }
        for (dag_id, task_id), run_ids in runs.items()
    }
    exists: dict[tuple[str, str], bool] = {}
    states: dict[Owner, str | None] = {}
    for owner in owners:
        run = owner.dag_id, owner.run_id
        of_run = found[owner.dag_id, owner.task_id].get(owner.run_id)
        if not of_run and run not in exists:
            exists[run] = has_run(*run)
        if of_run or exists[run]:
            key = owner.task_id if owner.map_index < 0 else f"{owner.task_id}_{owner.map_index}"
            state = (of_run or {}).get(key)
            states[owner] = None if state is None else str(getattr(state, "value", state))
        else:
            states[owner] = GONE
    return states


def _batches(run_ids: Collection[str]) -> Iterator[list[str]]:
    """Yield the runs in parts that fit into the URL of a request."""
    batch: list[str] = []
    for run_id in run_ids:
        if batch and sum(map(len, batch)) + len(run_id) > _CHARACTERS_AT_A_TIME:
            yield batch
            batch = []
        batch.append(run_id)
    if batch:
        yield batch
