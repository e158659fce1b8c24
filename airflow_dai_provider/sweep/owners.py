"""The owners of running operations, as Airflow knows them, and whether these are over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.ingest.ownership import ASSET, CLOCK_SKEW, Claim, Owner, OwnerRecords, url_hash
from airflow_dai_provider.tasks.xcom import XCOM_OPERATION_NAME, XCOM_STARTED, as_list
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
    "This version of Airflow does not tell the owners of operations, so older_than is required: the age from which an "
    "operation is a stray."
)

#: The states in which a task instance is over, unless it succeeds. Every other one is alive, those included that a task
#: has after a clear, and those that this code does not know.
OVER = frozenset({"failed", "upstream_failed", "skipped", "removed"})
#: Stands for the state of a task instance whose run was deleted.
GONE = "gone"
#: So many runs are asked about at a time.
_RUNS_AT_A_TIME = 50


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whose an operation is, and whether it is a stray.

    :param claim: of the owner.
    :param is_stray: whether the owner is over, and did not mean the operation to run on.
    :param reason: why, as the end of a sentence.
    :param at_once: whether it is one whatever becomes of its owner.
    """

    claim: Claim
    is_stray: bool
    reason: str
    at_once: bool = False

    @property
    def is_suspect(self) -> bool:
        """Whether it is a stray if its owner is still over when that is looked at again."""
        return self.is_stray and not self.at_once

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        owner = self.claim.owner
        return {
            "dag_id": owner.dag_id,
            "run_id": owner.run_id,
            "task_id": owner.task_id,
            "map_index": owner.map_index,
            "try_number": self.claim.try_number,
            "reason": self.reason,
        }

    def __str__(self) -> str:
        return f"of try {self.claim.try_number} of {self.claim.owner}: {self.reason}"


class Owners:
    """Tells the owners of operations, and whether they are over.

    :param records: what the create tasks have written down; None where the XComs in the metadata database tell it.
    :param endpoint: base URL of the service that runs the operations.
    """

    def __init__(self, records: OwnerRecords | None, endpoint: str) -> None:
        self._records = records
        self._endpoint = endpoint
        self._by_url: dict[str, list[Claim]] = {}
        self._pushed_by: dict[Owner, set[str]] = {}
        self._since = datetime.now(UTC)

    def judge(self, running: Collection[Operation]) -> dict[str, Verdict]:
        """Return the verdicts on running operations, by name; one without an owner has none.

        :raises Exception: when Airflow does not tell.
        """
        times = [one.ingest.create_time for one in running if one.ingest and one.ingest.create_time]
        self._since = min(times, default=self._since) - timedelta(seconds=CLOCK_SKEW)
        twins: dict[str, Verdict] = {}
        owned: dict[str, Claim] = {}
        for operation in running:
            if not (claim := self._claim_on(operation)):
                continue
            adopted = claim.adopted(self._key(operation))
            if adopted in (None, operation.name):
                owned[operation.name] = claim
            else:
                reason = f"a second ingest of its media: it has adopted {adopted}"
                twins[operation.name] = Verdict(claim, is_stray=True, reason=reason, at_once=True)
        verdicts = _verdicts(owned)
        if self._records:
            suspects: dict[tuple[Owner, str], list[str]] = defaultdict(list)
            for operation in running:
                # After a start in doubt, each of them is the owner's.
                claim, key = owned.get(operation.name), self._key(operation)
                if claim and verdicts[operation.name].is_stray and not claim.doubts(key):
                    suspects[claim.owner, key].append(operation.name)
            for same in suspects.values():
                for name in self._of_others(owned[same[0]], same):
                    del verdicts[name]
        return verdicts | twins

    def confirm(self, verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
        """Look at the owners of suspects again, and return the verdicts by then.

        What is about to be cancelled is written down before its owner is looked at. A task is running before it reads
        that, and does not reattach to it then. So one of the two always sees the other.

        :param verdicts: by name, those of the first look on operations whose owner was over.
        """
        names: dict[Owner, list[str]] = defaultdict(list)
        for name, verdict in verdicts.items():
            names[verdict.claim.owner].append(name)
        if self._records:
            for owner, every in names.items():
                self._records.write_strays(owner, self._endpoint, every)
        again = _verdicts({name: verdict.claim for name, verdict in verdicts.items()})
        for owner, every in names.items():
            left = [name for name in every if again[name].is_stray]
            if self._records and left != every:
                self._records.write_strays(owner, self._endpoint, left)
        return again

    def _key(self, operation: Operation) -> str:
        url = operation.ingest.signed_creative_url if operation.ingest else None
        return url_hash(self._endpoint, url or "")

    def _claims(self, operation: Operation) -> list[Claim]:
        """Return the claims that cover an operation."""
        if self._records is None:
            return self._pushed.get(operation.name, [])
        ingest = operation.ingest
        if not (ingest and ingest.signed_creative_url and ingest.create_time):
            return []
        key, created = self._key(operation), ingest.create_time.timestamp()
        if key not in self._by_url:
            self._by_url[key] = self._records.of_url(key)
        return [claim for claim in (*self._by_url[key], *self._lists) if claim.covers(key, created)]

    @cached_property
    def _lists(self) -> list[Claim]:
        records = self._records
        return [claim for key in records.lists() if (claim := records.of_list(key))] if records else []

    @cached_property
    def _pushed(self) -> dict[str, list[Claim]]:
        """The claims of those that have pushed operations, by the names of these, from the metadata database."""
        found: dict[str, list[Claim]] = defaultdict(list)
        for dag_id, run_id, task_id, map_index, pushed in xcoms_in_database(XCOM_STARTED, self._since):
            match pushed:
                # Code of a user can push names too, and says nothing of what they are meant for.
                case {
                    "endpoint": self._endpoint,
                    "pushed_at": {**names},
                    "flags": {**flags},
                    "try_number": int(number),
                } if flags:
                    owner = Owner(dag_id, run_id, task_id, map_index)
                    given = {str(flag): value is True for flag, value in flags.items()}
                    claim = Claim(owner, number, since=0.0, until=None, flags=given, number=len(names))
                    for name in map(str, names):
                        found[name].append(claim)
        return found

    def _claim_on(self, operation: Operation) -> Claim | None:
        """Return the claim of the owner of an operation, if there is one."""
        of_owner = {claim.owner: claim for claim in self._claims(operation)}
        if len(of_owner) <= 1:
            return next(iter(of_owner.values()), None)
        # Several tasks have submitted the same media at about the same time. What they have pushed tells them apart.
        left: list[Claim] = []
        for claim in of_owner.values():
            names = self._names(claim.owner)
            if operation.name in names:
                return claim
            if len(names) < claim.number:
                left.append(claim)
        return left[0] if len(left) == 1 else None

    def _of_others(self, claim: Claim, same: list[str]) -> list[str]:
        """Return those operations of one medium that another system has started, in the window of a claim.

        What the owner has pushed tells them apart. One that it has not pushed is its own only if nothing else can be:
        its process can have ended before the push.
        """
        names = self._names(claim.owner)
        own = names.intersection(same)
        if not own and len(same) == 1 and len(names) < claim.number:
            return []
        return [name for name in same if name not in own]

    def _names(self, owner: Owner) -> set[str]:
        """Return the operations that a task instance has pushed."""
        if owner not in self._pushed_by:
            pushed = run_xcom(owner.dag_id, owner.run_id, owner.task_id, owner.map_index, XCOM_OPERATION_NAME)
            self._pushed_by[owner] = set() if pushed is None else set(map(str, as_list(pushed)))
        return self._pushed_by[owner]


def find_owners(endpoint: str) -> Owners | None:
    """Return what tells the owners of operations at an endpoint, or None where Airflow cannot tell them."""
    if HAS_ASSET_STATE_STORE:
        return Owners(OwnerRecords(asset_store(ASSET)), endpoint)
    return Owners(None, endpoint) if TASKS_READ_DATABASE else None


def _judge(claim: Claim, state: str | None) -> Verdict:
    """Decide by the state of its owner, and by what the owner is meant to cancel, whether an operation is a stray."""
    means = {flag for flag, given in claim.flags.items() if given is True}
    if state == "success" and "waits" not in means:
        if "cancel_with_run" not in means:
            return Verdict(claim, is_stray=False, reason="it has succeeded, and its ingest is meant to run on")
        run = run_state(claim.owner.dag_id, claim.owner.run_id)
        return Verdict(claim, is_stray=run == "failed", reason=f"it has succeeded, and its run is {run}")
    if state == "success":
        return Verdict(claim, is_stray="cancel_on_kill" in means, reason="it was marked as success")
    if state in OVER or state == GONE:
        why = "its run was deleted" if state == GONE else f"it is {state}"
        for flag in ("cancel_on_kill", "cancel_on_failure"):
            if flag not in means:
                return Verdict(claim, is_stray=False, reason=f"{why}, but it has {flag}=False")
        return Verdict(claim, is_stray=True, reason=why)
    return Verdict(claim, is_stray=False, reason=f"it is {state or 'waiting to be scheduled'}")


def _verdicts(claims: Mapping[str, Claim]) -> dict[str, Verdict]:
    """Return by operation whether it is a stray, as its owner is now."""
    states = _states({claim.owner for claim in claims.values()})
    return {name: _judge(claim, states[claim.owner]) for name, claim in claims.items()}


def _states(owners: Collection[Owner]) -> Mapping[Owner, str | None]:
    """Return the states of task instances; :data:`GONE` for those whose run was deleted."""
    runs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for dag_id, run_id, task_id in sorted({(owner.dag_id, owner.run_id, owner.task_id) for owner in owners}):
        runs[dag_id, task_id].append(run_id)
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for (dag_id, task_id), run_ids in runs.items():
        # One task at a time: map index 3 of a task ``a`` and a task ``a_3`` are named alike.
        of_task: dict[str, dict[str, Any]] = {}
        for start in range(0, len(run_ids), _RUNS_AT_A_TIME):
            of_task |= task_states(dag_id, run_ids[start : start + _RUNS_AT_A_TIME], [task_id])
        found[dag_id, task_id] = of_task
    gone: dict[tuple[str, str], bool] = {}
    states: dict[Owner, str | None] = {}
    for owner in owners:
        of_run = found[owner.dag_id, owner.task_id].get(owner.run_id)
        run = owner.dag_id, owner.run_id
        if not of_run and run not in gone:
            gone[run] = not has_run(*run)
        if not of_run and gone[run]:
            states[owner] = GONE
            continue
        key = owner.task_id if owner.map_index < 0 else f"{owner.task_id}_{owner.map_index}"
        state = (of_run or {}).get(key)
        states[owner] = None if state is None else str(getattr(state, "value", state))
    return states
