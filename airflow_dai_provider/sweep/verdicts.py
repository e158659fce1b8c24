"""Verdicts on operations: who owns each, and whether it is a stray. The sweep and the command line share them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Protocol

from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.ingest.ownership import CLOCK_SKEW, Opening, Owner, Record, media_key

#: The states in which a task instance is over, besides success. In every other state it counts as alive, including the
#: states after a clear and those that this code does not know.
OVER = frozenset({"failed", "upstream_failed", "skipped", "removed"})
#: Stands for the state of a task instance whose run was deleted.
GONE = "gone"
#: The most characters of the ids of runs in the URL of one request.
_CHARACTERS_AT_A_TIME = 3000
#: Before any operation.
_EVER = datetime(2000, 1, 1, tzinfo=UTC)


class States(Protocol):
    """Where the states of tasks and runs are read: ``version_compat`` in a task, else ``metadata_database``."""

    def task_states(
        self, dag_id: str, run_ids: list[str], task_ids: list[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return by run the states of task instances; of a mapped one by ``<task id>_<map index>``."""

    def has_run(self, dag_id: str, run_id: str) -> bool:
        """Return whether a run exists."""

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run that exists."""

    def run_xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int, key: str) -> Any:
        """Return one XCom of a run, or None."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The owner of an operation, and whether it is a stray.

    :param record: of the owner.
    :param try_number: of the try to which the operation belongs.
    :param is_stray: whether the owner is over, and did not mean the operation to run on.
    :param reason: why, as the end of a sentence about the owner.
    :param owners: all owners that it can have.
    :param state: of the task instance; :data:`GONE` where its run was deleted, None before it is scheduled.
    """

    record: Record
    try_number: int
    is_stray: bool
    reason: str
    owners: tuple[Owner, ...] = ()
    state: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self.record.owner) | {"try_number": self.try_number, "reason": self.reason}

    def __str__(self) -> str:
        return f"of try {self.try_number} of {self.record.owner}, which {self.reason}"


#: An owner's record, and the opening to which an operation belongs.
Found = tuple[Record, Opening]


class OwnerIndex:
    """The records of owners, by the operations that they have started at one endpoint.

    A task that has written the name is the owner. Else it is a task with a request for this media, at about this time,
    whose response is not known.

    :param endpoint: base URL of the service that runs the operations.
    """

    def __init__(self, endpoint: str, records: Iterable[Record] = ()) -> None:
        self._endpoint = endpoint
        self._by_name: dict[str, dict[Owner, Found]] = {}
        self._by_media: dict[str, list[Found]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Add a record. An operation that an earlier record of the same owner already has keeps that record.

        An operation in several openings belongs to the last one.
        """
        here = [opening for opening in record.openings if opening.endpoint == self._endpoint]
        for name, last in {name: opening for opening in here for name in opening.names}.items():
            self._by_name.setdefault(name, {}).setdefault(record.owner, (record, last))
        for opening in here:
            for media in opening.unknown:
                self._by_media.setdefault(media, []).append((record, opening))

    def find(self, operation: Operation) -> list[Found]:
        """Return the possible owners of an operation; mostly one, or none."""
        if owners := self._by_name.get(operation.name):
            return list(owners.values())
        ingest = operation.ingest
        if not (ingest and ingest.signed_creative_url and ingest.create_time):
            return []
        media, created = media_key(ingest.signed_creative_url), ingest.create_time.timestamp()
        by_owner = {
            record.owner: (record, opening)
            for record, opening in self._by_media.get(media, ())
            if opening.may_have_started(media, created)
        }
        return list(by_owner.values())


def judge_each(
    index: OwnerIndex,
    operations: Iterable[Operation],
    airflow: States,
    correct: Callable[[str, Found], Found] = lambda _, found: found,
) -> dict[str, list[Verdict]]:
    """Return by operation the verdicts, one for each possible owner; one without an owner is left out.

    :param correct: returns what is known of an owner besides its record.
    :raises Exception: when Airflow does not respond.
    """
    found = {one.name: owners for one in operations if (owners := index.find(one))}
    states = read_states({record.owner for owners in found.values() for record, _ in owners}, airflow)
    state_of_run = cache(airflow.run_state)
    return {
        name: [_judge(name, correct(name, owner), states[owner[0].owner], state_of_run) for owner in owners]
        for name, owners in found.items()
    }


def judge_all(
    index: OwnerIndex, operations: Iterable[Operation], airflow: States, correct: Callable[[str, Found], Found]
) -> dict[str, Verdict]:
    """Do the same, and return one verdict on each operation: of several possible owners, the first that needs it."""
    return {
        name: replace(
            next((one for one in each if not one.is_stray), each[0]), owners=tuple(one.record.owner for one in each)
        )
        for name, each in judge_each(index, operations, airflow, correct).items()
    }


def pushed_since(operations: Iterable[Operation]) -> datetime:
    """Return the earliest time at which a task can have pushed the name of one of these operations."""
    # Nothing is earlier than its operation, but the clocks can differ; one without a create time is of any age.
    times = [(one.ingest.create_time if one.ingest else None) or _EVER for one in operations]
    return max(_EVER, min(times, default=_EVER)) - timedelta(seconds=CLOCK_SKEW)


def pushed_records(xcoms: Iterable[tuple[str, str, str, int, Any]]) -> Iterator[Record]:
    """Yield the records that XComs ``operation_started`` make: the DAG, run, task, map index and value of each.

    A user's own code can push names too, but without flags; such an XCom makes no record.
    """
    for dag_id, run_id, task_id, map_index, pushed in xcoms:
        match pushed:
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
                    # An earlier version did not push this key: then some may have been refused.
                    refused=runs_on and pushed.get("refused") is not False,
                )
                yield Record(Owner(dag_id, run_id, task_id, map_index), given, (opening,))


def is_unknown_to_owner(name: str, found: Found) -> bool:
    """Return whether the owner does not know this operation: it waits, or has waited, for another one instead."""
    record, opening = found
    return opening != record.openings[-1] or (opening.ended and name not in opening.names)


def _judge(name: str, found: Found, state: str | None, state_of_run: Callable[[str, str], str]) -> Verdict:
    """Decide whether an operation is a stray: by the state of its owner, and by what the owner is meant to cancel."""
    record, opening = found
    flags = {flag for flag, given in record.flags.items() if given}
    is_over, reason = _is_over(record, flags, state, state_of_run)
    needed = ["cancel_on_kill"] if state == "success" else ["cancel_on_kill", "cancel_on_failure"]
    if is_unknown_to_owner(name, found):
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
        is_over, reason = False, f"{reason}, but has {missing[0]}=False"
    return Verdict(record, opening.try_number, is_stray=is_over, reason=reason, state=state)


def _is_over(
    record: Record, flags: Collection[str], state: str | None, state_of_run: Callable[[str, str], str]
) -> tuple[bool, str]:
    """Return whether an owner, judging by its state, no longer needs its ingests, and why."""
    opening = record.openings[-1]
    is_over = state in OVER or state == GONE
    described = "is gone with its run" if state == GONE else f"is {state or 'waiting to be scheduled'}"
    if opening.runs_on and (state != "failed" or opening.refused):
        return False, f"{'has succeeded' if state == 'success' else described}, and meant its ingest to keep running"
    if state != "success":
        return is_over, described
    if "waits" in flags:
        return True, "was marked as success"
    if "cancel_with_run" not in flags:
        return False, "has succeeded, and meant its ingest to keep running"
    run = state_of_run(record.owner.dag_id, record.owner.run_id)
    return run == "failed", f"has succeeded; its run is {run}"


def read_states(owners: Collection[Owner], airflow: States) -> Mapping[Owner, str | None]:
    """Return the states of task instances; :data:`GONE` for those whose run was deleted."""
    runs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for dag_id, task_id, run_id in sorted({(owner.dag_id, owner.task_id, owner.run_id) for owner in owners}):
        runs[dag_id, task_id].append(run_id)
    # One task at a time: map index 3 of a task ``a`` and a task ``a_3`` are named alike.
    found = {
        (dag_id, task_id): {
            run_id: states
            for batch in _batches(run_ids)
            for run_id, states in airflow.task_states(dag_id, batch, [task_id]).items()
        }
        for (dag_id, task_id), run_ids in runs.items()
    }
    exists: dict[tuple[str, str], bool] = {}
    states: dict[Owner, str | None] = {}
    for owner in owners:
        run = owner.dag_id, owner.run_id
        of_run = found[owner.dag_id, owner.task_id].get(owner.run_id)
        if not of_run and run not in exists:
            exists[run] = airflow.has_run(*run)
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
