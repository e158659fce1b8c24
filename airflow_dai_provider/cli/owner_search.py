"""Owners of operations, as a command line finds them: in the records of owners, and in the XComs of all tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider import metadata_database
from airflow_dai_provider.api.many_wait import some_of
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.redaction import redact_urls
from airflow_dai_provider.cli.output import Notes
from airflow_dai_provider.cli.rows import state_in_words
from airflow_dai_provider.ingest.ownership import ASSET, CLOCK_SKEW, OWNER_KEYS, Owner, OwnerRecords, Record
from airflow_dai_provider.sweep.owners import Owners
from airflow_dai_provider.sweep.verdicts import OwnerIndex, Verdict, judge_each, pushed_records
from airflow_dai_provider.tasks.failures import sentences
from airflow_dai_provider.tasks.xcom import XCOM_STARTED

_EVER = datetime(2000, 1, 1, tzinfo=UTC)


class KnownOwners:
    """The owners of operations. If the database cannot be read, that is reported once, and operations have no owners.

    XComs are read as far back as the oldest operation that was asked for, and each is read once.

    :param endpoint: base URL of the service; None where that is not known, and so no owner either.
    :param notes: receives the message that the database cannot be read.
    """

    def __init__(self, endpoint: str | None, notes: Notes) -> None:
        self._index = OwnerIndex(endpoint or "")
        self._notes = notes
        self._read_since: datetime | None = None
        #: Sentences on records and XComs that cannot be read, until they are told.
        self._unreadable: list[str] = []
        #: Whether the database, or what is asked for in it, cannot be read.
        self.unavailable = endpoint is None
        #: Whether some records or XComs in it cannot be read.
        self.incomplete = False

    @property
    def complete(self) -> bool:
        """Whether all that was asked for could be read."""
        return not (self.unavailable or self.incomplete)

    def of(self, operations: Collection[Operation]) -> dict[str, list[Verdict]]:
        """Return the verdicts on operations by name, one for each possible owner."""
        if self.unavailable or not operations:
            return {}
        try:
            self._read(operations)
            self._tell_unreadable()
            verdicts = judge_each(self._index, operations, metadata_database)
        except Exception as error:
            self._tell(error)
            return {}
        for operation in operations:
            if operation.done and operation.name in verdicts:
                verdicts[operation.name] = [*map(_of_finished, verdicts[operation.name])]
        return verdicts

    def _tell(self, error: Exception) -> None:
        self.unavailable = True
        self._notes.say(sentences("Owners are not shown", _unreadable(error)))

    def _tell_unreadable(self) -> None:
        if self._unreadable:
            self.incomplete = True
            self._notes.say(f"{some_of(self._unreadable)}. Operations of these tasks are shown without an owner.")
            self._unreadable.clear()

    def _read(self, operations: Collection[Operation]) -> None:
        times = [one.ingest.create_time if one.ingest else None for one in operations]
        known = [time for time in times if time]
        # Nothing is earlier than its operation, but the clocks can differ.
        since = min(known) - timedelta(seconds=CLOCK_SKEW) if len(known) == len(times) else _EVER
        if self._read_since is None:
            # Before the XComs: a record is what its task has last written.
            for record in read_records(self._unreadable.append):
                self._index.add(record)
        if self._read_since is None or since < self._read_since:
            pushed = metadata_database.xcoms(
                XCOM_STARTED, since, self._read_since, on_unreadable=lambda told, _: self._unreadable.append(told)
            )
            for record in pushed_records(pushed):
                self._index.add(record)
            self._read_since = since


def _of_finished(verdict: Verdict) -> Verdict:
    """Return the verdict on an operation that has finished: no stray, whatever has become of its owner."""
    return replace(verdict, is_stray=False, reason=f"{state_in_words(verdict.state)}; the operation has finished")


def _unreadable(error: Exception) -> str:
    """Return a sentence on an error of a database driver, without the SQL statement in its text."""
    text = redact_urls(str(error).partition("\n")[0])
    return f"The metadata database cannot be read: {text or type(error).__name__}"


@contextmanager
def database_errors(outcome: str) -> Iterator[None]:
    """Tell in one line that the metadata database cannot be read.

    :param outcome: what has been done by then, or not.
    :raises AirflowException: for any error.
    """
    try:
        yield
    except Exception as error:
        raise AirflowException(sentences(_unreadable(error), outcome)) from error


def read_records(on_unreadable: Callable[[str], None]) -> list[Record]:
    """Return the records of owners; on a version of Airflow without them, none.

    :param on_unreadable: called with a sentence when some cannot be read.
    """
    store = metadata_database.find_asset_store(ASSET)
    if store is None:
        return []
    values = store.values(OWNER_KEYS)
    if values is None:
        return OwnerRecords(store).all(on_unreadable)
    records = [record for record in map(Record.from_json, values) if record]
    if unreadable := len(values) - len(records):
        on_unreadable(
            f"Cannot read {unreadable:,} of {len(values):,} records of owners, which another version may have written"
        )
    return records


def check_database() -> tuple[bool, str]:
    """Return whether the metadata database can be read, and what it has of owners, or why not."""
    unreadable: list[str] = []
    try:
        records = len(read_records(unreadable.append))
        xcoms = metadata_database.xcoms(XCOM_STARTED, _EVER, on_unreadable=lambda told, _: unreadable.append(told))
        next(xcoms, None)
    except Exception as error:
        return False, _unreadable(error)
    return True, sentences(f"{records:,} records of owners, and the XComs, can be read", *unreadable)


def owners_for_sweep(endpoint: str) -> Owners:
    """Return the owners as a sweep needs them, which announces to them what it is about to cancel.

    :raises AirflowException: when the database cannot be read.
    """
    with database_errors("Nothing was changed"):
        store = metadata_database.find_asset_store(ASSET)
    sweep = Owner("airflow dai", str(uuid4()), "sweep")
    records = OwnerRecords(store) if store else None
    return Owners(records, endpoint, sweep, metadata_database, read_xcoms=True)
