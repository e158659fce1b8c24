"""The owners of running operations, as Airflow knows them, and whether these are over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cached_property
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
    medium,
)
from airflow_dai_provider.tasks.xcom import XCOM_STARTED
from airflow_dai_provider.version_compat import (
    HAS_ASSET_STATE_STORE,
    TASKS_READ_DATABASE,
    asset_store,
    has_run,
    run_state,
    task_states,
    xcoms_in_database,
)

NO_OWNERS = (
    "This version of Airflow does not tell the owners of operations, so older_than is required: the age from which an "
    "operation is a stray."
)

#: The states in which a task instance is over, unless it succeeds. Every other one is alive, those included that a task
#: has after a clear, and those that this code does not know.
OVER = frozenset({"failed", "upstream_failed", "skipped", "removed"})
#: Stands for the state of a task instance whose run was deleted.
GONE = "gone"
#: The most characters of the ids of runs in the URL of one request.
_CHARACTERS_AT_A_TIME = 3000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whose an operation is, and whether it is a stray.

    :param record: of the owner.
    :param is_stray: whether the owner is over, and did not mean the operation to run on.
    :param reason: why, as the end of a sentence about the owner.
    """

    record: Record
    is_stray: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self.record.owner) | {"try_number": self.record.try_number, "reason": self.reason}

    def __str__(self) -> str:
        return f"of try {self.record.try_number} of {self.record.owner}, which {self.reason}"


class Owners:
    """Tells the owners of running operations, and whether they are over.

    :param records: what the create tasks have written; None where the XComs in the metadata database tell it.
    :param endpoint: base URL of the service that runs the operations.
    """

    def __init__(self, records: OwnerRecords | None, endpoint: str) -> None:
        self._records = records
        self._endpoint = endpoint
        self._read: dict[str, Record | None] = {}
        #: The keys of the records of those that are owners.
        self._met: set[str] = set()
        #: The operations in place of which another one was started, after a lost response.
        self._twins: set[str] = set()

    def judge(self, running: Collection[Operation]) -> dict[str, Verdict]:
        """Return the verdicts on running operations, by name; one without an owner has none.

        :raises Exception: when Airflow does not tell.
        """
        if self._records:
            self._records.check()
            records = {one.name: self._record_of(one) for one in running}
        else:
            records = self._pushed(running)
        return self._verdicts({name: record for name, record in records.items() if record})

    def confirm(self, suspects: Mapping[str, Verdict]) -> dict[str, Verdict]:
        """Look at the owners again, and return the verdicts by then.

        What is about to be cancelled is written down before its owner is looked at. A task is running before it reads
        that, and does not reattach to it then. So one of the two always sees the other.

        :param suspects: the verdicts of the first look on what was found to be stray, by name.
        """
        names: dict[Owner, list[str]] = defaultdict(list)
        for name, verdict in suspects.items():
            names[replace(verdict.record.owner, map_index=-1)].append(name)
        again: dict[str, Verdict] = {}
        try:
            for owner, every in names.items():
                self._announce(owner, every)
            again = self._verdicts({name: verdict.record for name, verdict in suspects.items()})
        finally:
            for owner, every in names.items():
                left = [name for name in every if name in again and again[name].is_stray]
                if left != every:
                    self._announce(owner, left)
        return again

    def remove_leftovers(self, sweep: Owner, running: Collection[str], listed_at: float) -> None:
        """Remove the records of tasks that are over, and whose ingests have finished.

        Airflow cannot list them, so those that this and earlier sweeps have met are looked at.

        :param sweep: the task instance that sweeps.
        :param running: the operations that may still run, by name.
        :param listed_at: when these were listed, in seconds of the epoch.
        """
        if not self._records:
            return
        before = self._records.swept(sweep)
        keys = before | self._met
        records = {key: record for key in keys if (record := self._get(key))}
        idle = [
            record
            for record in records.values()
            if record.names.isdisjoint(running) and record.last + LATEST_START < listed_at
        ]
        states = _states([record.owner for record in idle])
        for record in idle:
            owner = record.owner
            if states[owner] in {*OVER, GONE, "success"}:
                if self._records.strays(owner).isdisjoint(running):
                    self._announce(owner, ())
                self._records.remove(record)
                del records[owner.key("owner")]
        if records.keys() != before:
            self._records.write_swept(sweep, records.keys())

    def _announce(self, owner: Owner, names: Collection[str]) -> None:
        if self._records:
            self._records.write_strays(owner, names)

    def _record_of(self, operation: Operation) -> Record | None:
        """Return the record of the owner of an operation, if it is known.

        A task that has written the name is the owner. Else it is the only one with a request for this media, at about
        this time, whose response is not known.
        """
        ingest = operation.ingest
        if not (self._records and ingest and ingest.signed_creative_url and ingest.create_time):
            return None
        one, created = medium(self._endpoint, ingest.signed_creative_url), ingest.create_time.timestamp()
        keys = [*self._records.of_medium(one), *self._lists]
        records = [record for key in dict.fromkeys(keys) if (record := self._get(key))]
        found = [record for record in records if operation.name in record.names]
        if not found:
            found = [record for record in records if any(o.may_have_started(one, created) for o in record.openings)]
            if len(found) == 1 and not any(o.may_have_started(one, created) for o in found[0].openings if not o.ended):
                self._twins.add(operation.name)
        if len(found) != 1:
            return None
        self._met.add(found[0].owner.key("owner"))
        return found[0]

    @cached_property
    def _lists(self) -> list[str]:
        return self._records.of_lists() if self._records else []

    def _get(self, key: str) -> Record | None:
        if self._records and key not in self._read:
            self._read[key] = self._records.get(key)
        return self._read.get(key)

    def _pushed(self, running: Collection[Operation]) -> dict[str, Record | None]:
        """Return by name the records that the XComs in the metadata database make."""
        times = [one.ingest.create_time for one in running if one.ingest and one.ingest.create_time]
        if not times:
            return {}
        found: dict[str, list[Record]] = defaultdict(list)
        for dag_id, run_id, task_id, map_index, pushed in xcoms_in_database(
            XCOM_STARTED, min(times) - timedelta(seconds=CLOCK_SKEW)
        ):
            match pushed:
                # Code of a user can push names too, and says nothing of what they are meant for.
                case {
                    "endpoint": self._endpoint,
                    "pushed_at": {**names},
                    "flags": {**flags},
                    "try_number": int(number),
                } if flags:
                    given = {str(flag): value is True for flag, value in flags.items()}
                    opening = Opening(number, since=0.0, last=0.0, ended=True)
                    owner = Owner(dag_id, run_id, task_id, map_index)
                    record = Record(owner, given, frozenset(map(str, names)), (opening,))
                    for name in record.names:
                        found[name].append(record)
        return {name: records[0] for name, records in found.items() if len(records) == 1}

    def _verdicts(self, records: Mapping[str, Record]) -> dict[str, Verdict]:
        """Return by operation whether it is a stray, as its owner is now."""
        every = {record.owner: record for record in records.values()}
        states = _states(every)
        verdicts = {owner: _judge(record, states[owner]) for owner, record in every.items()}
        twin = "has started another ingest of this media after a lost response"
        return {
            name: Verdict(record, is_stray=True, reason=twin) if name in self._twins else verdicts[record.owner]
            for name, record in records.items()
        }


def find_owners(endpoint: str) -> Owners | None:
    """Return what tells the owners of operations at an endpoint, or None where Airflow cannot tell them."""
    if HAS_ASSET_STATE_STORE:
        return Owners(OwnerRecords(asset_store(ASSET)), endpoint)
    return Owners(None, endpoint) if TASKS_READ_DATABASE else None


def _judge(record: Record, state: str | None) -> Verdict:
    """Decide by the state of its owner, and by what the owner is meant to cancel, whether an operation is a stray."""
    owner, means = record.owner, {flag for flag, given in record.flags.items() if given}
    if state == "success" and "waits" not in means:
        if "cancel_with_run" not in means:
            return Verdict(record, is_stray=False, reason="has succeeded, and meant its ingest to run on")
        run = run_state(owner.dag_id, owner.run_id)
        return Verdict(record, is_stray=run == "failed", reason=f"has succeeded; its run is {run}")
    if state == "success":
        return Verdict(record, is_stray="cancel_on_kill" in means, reason="was marked as success")
    if state in OVER or state == GONE:
        why = "is gone with its run" if state == GONE else f"is {state}"
        for flag in ("cancel_on_kill", "cancel_on_failure"):
            if flag not in means:
                return Verdict(record, is_stray=False, reason=f"{why}, but has {flag}=False")
        return Verdict(record, is_stray=True, reason=why)
    return Verdict(record, is_stray=False, reason=f"is {state or 'waiting to be scheduled'}")


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
