"""The owners of running operations: a sweep reads them, and announces to them what it is about to cancel."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider import metadata_database, version_compat
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.ingest.ownership import ASSET, CLOCK_SKEW, LATEST_START, Owner, OwnerRecords, Record
from airflow_dai_provider.sweep.verdicts import (
    GONE,
    OVER,
    Found,
    OwnerIndex,
    States,
    Verdict,
    is_unknown_to_owner,
    judge_all,
    pushed_records,
    pushed_since,
    read_states,
)
from airflow_dai_provider.tasks.failures import sentences
from airflow_dai_provider.tasks.xcom import XCOM_STARTED
from airflow_dai_provider.version_compat import HAS_ASSET_STATE_STORE, TASKS_READ_DATABASE, asset_store

NO_OWNERS = (
    "The owners of operations are not known on this version of Airflow, so older_than is required: the age from which "
    "an operation is a stray."
)
NO_ASSET = (
    f"Airflow does not know the asset {ASSET}, which holds the owners of operations. A DAG with a sweep that is not "
    f'mapped registers it; a mapped sweep needs .partial(inlets=[Asset("{ASSET}")]).'
)
#: Seconds after which a record is removed although an operation of it is not listed as finished: the service forgets
#: operations, and another account's are not listed.
KEPT = 7 * 86400.0


class Owners:
    """Find the owners of running operations, and judge by them which are strays.

    :param records: what the create tasks have written, or None.
    :param endpoint: base URL of the service that runs the operations.
    :param sweep: the task instance of the sweep, or an identity in its place for a command line.
    :param airflow: where the states of tasks are read.
    :param read_xcoms: whether the XComs in the metadata database tell of owners too.
    """

    def __init__(
        self, records: OwnerRecords | None, endpoint: str, sweep: Owner, airflow: States, *, read_xcoms: bool
    ) -> None:
        self._records = records
        self._endpoint = endpoint
        self._sweep = sweep
        self._airflow = airflow
        self._read_xcoms = read_xcoms
        self._has_begun = False
        #: As they were read last.
        self._read: dict[Owner, Record] = {}
        #: By sentence on a record or an XCom that cannot be read, the latest create time of an operation that may
        #: belong to it, in seconds since the epoch: an XCom has only what had started when it was pushed.
        self.unreadable: dict[str, float] = {}

    def begin(self, now: float) -> None:
        """Note that this sweep begins.

        :raises Exception: when Airflow does not know the asset, or does not respond.
        """
        if self._records:
            self._records.note_sweep(None, now)
            self._has_begun = True

    def note_complete(self, account: str, began: float) -> None:
        """Note that this sweep cancels every stray of the endpoint, so that a lost start can be attempted again.

        :param account: whose operations the service lists.
        """
        if self._records:
            self._records.note_sweep((self._endpoint, account), began)

    def judge(self, running: Collection[Operation]) -> dict[str, Verdict]:
        """Return the verdicts on running operations, by name; one without an owner has none.

        :raises Exception: when Airflow does not respond, or does not know the asset any more.
        """
        self.unreadable.clear()
        written = self._records.all(self._note_unreadable) if self._records else []
        # Of an asset that it does not know, Airflow returns nothing, and no error.
        if self._records and self._has_begun and not self._records.last_sweep(None):
            raise AirflowException(sentences(NO_ASSET, "No cancellation was requested"))
        self._read = {record.owner: record for record in written}
        return self._judge([*written, *self._pushed(running)], running)

    def confirm(self, suspects: Mapping[str, Verdict], running: Iterable[Operation]) -> dict[str, Verdict]:
        """Read the owners again, and return the verdicts by then.

        The sweep announces what it is about to cancel before it reads the state of the owner. A task is running before
        it reads the announcements, and does not reattach to what they name. So one of the two always sees the other.

        :param suspects: by name, the verdicts of the first reading on the strays.
        :param running: the operations, these among them.
        """
        suspected = [one for one in running if one.name in suspects]
        if self._records:
            again = self._announce_and_judge(self._records, suspects, suspected)
        else:
            again = self._judge([*self._pushed(suspected)], suspected)
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
            again = self._judge([*filter(None, read), *self._pushed(running)], running)
        finally:
            for owner, every in names.items():
                if left := [name for name in every if name not in again or not again[name].is_stray]:
                    records.retract(self._sweep, owner, self._endpoint, left)
        return again

    def remove_leftovers(
        self,
        listed: Mapping[str, bool],
        listed_at: float,
        kept: float = KEPT,
        *,
        on_removed: Callable[[Owner], object] = lambda _: None,
    ) -> None:
        """Remove the records of tasks that are over, and whose ingests have finished.

        They are those that :meth:`judge` has read.

        :param listed: the operations that the service lists, by name, and whether they have finished.
        :param listed_at: when that was, in seconds since the epoch.
        :param kept: seconds after which a record is removed although its operations are not listed any more.
        :param on_removed: called with the owner of each, when it is removed.
        """
        if not self._records:
            return
        running = {name for name, done in listed.items() if not done}
        idle = [record for record in self._read.values() if self._is_idle(record, listed, listed_at, kept)]
        states = read_states([record.owner for record in idle], self._airflow)
        for record in idle:
            # A task that was cleared meanwhile has changed it.
            if states[record.owner] in {*OVER, GONE, "success"} and self._records.get(record.owner) == record:
                self._records.delete(record.owner)
                on_removed(record.owner)
                self._records.forget(record.owner, self._endpoint, running)
        self._records.unlist_gone()

    def _judge(self, records: Iterable[Record], operations: Collection[Operation]) -> dict[str, Verdict]:
        return judge_all(OwnerIndex(self._endpoint, records), operations, self._airflow, self._correct)

    def _correct(self, name: str, found: Found) -> Found:
        """Return the owner with what it has pushed to XCom, in case its record could not be written."""
        record, _ = found
        if not self._records or not is_unknown_to_owner(name, found):
            return found
        owner = record.owner
        own = record.change(names=record.openings[-1].names | {name})
        try:
            started = self._airflow.run_xcom(owner.dag_id, owner.run_id, owner.task_id, owner.map_index, XCOM_STARTED)
        except Exception as error:
            if version_compat.is_outage(error):
                raise
            self._note_unreadable(f"Cannot read the XCom {XCOM_STARTED} of {owner}: {type(error).__name__}")
            # It can have pushed this name.
            return own, own.openings[-1]
        match started:
            case {"endpoint": self._endpoint, "pushed_at": {**names}} if name in names:
                return own, own.openings[-1]
        return found

    def _is_idle(self, record: Record, listed: Mapping[str, bool], listed_at: float, kept: float) -> bool:
        """Return whether, according to this list, no operation of a record can still run."""
        here = all(opening.endpoint == self._endpoint for opening in record.openings)
        known = {listed.get(name) for name in record.names} if here else {None}
        if False in known:
            return False
        finished = None not in known and not record.has_unknown
        return listed_at - record.last > (LATEST_START if finished else max(kept, LATEST_START))

    def _pushed(self, operations: Collection[Operation]) -> Iterator[Record]:
        """Yield the records that the XComs in the metadata database make."""
        if self._read_xcoms and operations:
            yield from pushed_records(
                metadata_database.xcoms(XCOM_STARTED, pushed_since(operations), on_unreadable=self._note_unreadable)
            )

    def _note_unreadable(self, told: str, pushed: datetime | None = None) -> None:
        until = pushed.timestamp() + CLOCK_SKEW if pushed else math.inf
        # The map indexes of a task share a sentence.
        self.unreadable[told] = max(until, self.unreadable.get(told, 0.0))


def find_owners(endpoint: str, sweep: Owner) -> Owners | None:
    """Return the owners of operations at an endpoint, as a task knows them; None where it does not know them."""
    if HAS_ASSET_STATE_STORE:
        records = OwnerRecords(asset_store(ASSET))
        return Owners(records, endpoint, sweep, version_compat, read_xcoms=False)
    return Owners(None, endpoint, sweep, version_compat, read_xcoms=True) if TASKS_READ_DATABASE else None
