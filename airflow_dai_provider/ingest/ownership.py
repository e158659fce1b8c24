"""Records of ownership: what create tasks write down before they start ingests, and what the sweep reads.

The service knows no owners. So a task writes a record before it asks the service to start anything, and adds the names
of its operations when it knows them. An operation whose name is unknown, because a response was lost or a process
ended, is known by its media URL and the time of its creation. The records are kept in the state store of an asset of
Airflow (3.3 and later), which all tasks share. Airflow cannot list its keys, so these are used:

=================  ====================================================================================================
key                value
=================  ====================================================================================================
``owner-<hash>``   the :class:`Record` of a task instance, written by that task only
``owners-<part>``  the keys of the records; in parts, since the tasks of an installation write them at the same time
``strays-<hash>``  the operations of a task in a run that sweeps are about to cancel: no try reattaches to them
``sweep-<hash>``   when the last complete sweep of an endpoint began: one without a filter, and within its limit
``sweep``          when the last sweep began
=================  ====================================================================================================

A task removes its record when its ingests have finished. What others leave is removed by the sweep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any, Self

from airflow_dai_provider.api.storable import pack, unpack
from airflow_dai_provider.version_compat import is_outage

#: The asset whose state store has the records. The sweep has it as an inlet, which registers it.
ASSET = "airflow_dai_provider_ingests"
#: Seconds after its request in which the service can still start an ingest.
LATEST_START = 900.0
#: How far the clocks of service and worker can be apart, in seconds.
CLOCK_SKEW = 60.0

#: Where the ingests of an account run: the base URL of the service, and what stands for the account.
Place = tuple[str, str]

#: The beginning of the keys of records.
OWNER_KEYS = "owner-"
_PARTS = 32
#: How often a key is written into its list at most: others that are writing at the same time can leave it out.
_LISTINGS = 10


def media_key(url: str) -> str:
    """Return a short hash of a media URL and its signature: 16 hexadecimal digits."""
    return _hash(url)[:16]


@dataclass(frozen=True, slots=True)
class Owner:
    """A task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    @classmethod
    def of(cls, ti: Any) -> Self:
        """Return the owner that identifies a task instance of Airflow."""
        return cls(ti.dag_id, ti.run_id, ti.task_id, ti.map_index if isinstance(ti.map_index, int) else -1)

    def __str__(self) -> str:
        index = f" (map index {self.map_index})" if self.map_index >= 0 else ""
        return f"task {self.task_id}{index} of run {self.run_id} of DAG {self.dag_id}"

    @property
    def key(self) -> str:
        """The key of its record."""
        return f"{OWNER_KEYS}{_hash(repr(astuple(self)))}"


@dataclass(frozen=True, slots=True)
class Opening:
    """The ingests that one try has started or reattached to.

    :param try_number: of the task instance.
    :param endpoint: base URL of the service.
    :param since: when the first request was about to be sent, in seconds since the epoch.
    :param last: when this was written last.
    :param ended: whether all responses had come by then; otherwise the process may have ended before.
    :param unknown: the keys of the media whose operations are not known by name, see :func:`media_key`: all of them
        until it has ended, and then those for which a request got no response.
    :param names: the operations that are known.
    :param runs_on: whether these are meant to run on, since the task does not wait and has done its work.
    :param refused: whether they are, although the task fails because the service refused others of its list.
    """

    try_number: int
    endpoint: str
    since: float
    last: float
    ended: bool = False
    unknown: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    runs_on: bool = False
    refused: bool = False

    def may_have_started(self, media: str, created: float) -> bool:
        """Return whether a request of this opening may have started an operation whose name was unknown.

        :param media: its key.
        :param created: when the service has created it, in seconds since the epoch.
        """
        return media in self.unknown and self.since - CLOCK_SKEW <= created <= self.last + LATEST_START

    def without(self, names: Collection[str]) -> Opening:
        """Return the opening as ended, without the operations that a later try has taken over."""
        return replace(self, ended=True, names=self.names - frozenset(names))


@dataclass(frozen=True, slots=True)
class Record:
    """What a task instance has started.

    :param flags: whether the task waits until its ingests have finished (``waits``), and whether they are cancelled
        when the task is killed (``cancel_on_kill``), when it fails (``cancel_on_failure``), or when its run fails
        (``cancel_with_run``).
    :param openings: one per try, in order. Each but the last keeps only what no later try has taken over.
    """

    owner: Owner
    flags: Mapping[str, bool]
    openings: tuple[Opening, ...] = field(default=())

    @property
    def last(self) -> float:
        """When it was written last, in seconds since the epoch."""
        return max((opening.last for opening in self.openings), default=0.0)

    @property
    def names(self) -> frozenset[str]:
        """The operations that are known."""
        return frozenset().union(*(opening.names for opening in self.openings))

    @property
    def has_unknown(self) -> bool:
        """Whether an operation of this task can run under a name that is not known."""
        return any(opening.unknown for opening in self.openings)

    def open(self, opening: Opening) -> Record:
        """Return the record with another opening, which has taken over its names from earlier ones."""
        earlier = (one.without(opening.names if one.endpoint == opening.endpoint else ()) for one in self.openings)
        return replace(self, openings=(*(one for one in earlier if one.names or one.unknown), opening))

    def change(self, **changes: Any) -> Record:
        """Return the record with changes of its last opening."""
        *earlier, opening = self.openings
        return replace(self, openings=(*earlier, replace(opening, **changes)))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        openings = [
            asdict(one) | {"unknown": pack(sorted(one.unknown)), "names": pack(sorted(one.names))}
            for one in self.openings
        ]
        return {"owner": list(astuple(self.owner)), "flags": dict(self.flags), "openings": openings}

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the record of a JSON form; None for anything else, as another version can have written it."""
        try:
            openings = tuple(
                Opening(
                    int(one["try_number"]),
                    str(one["endpoint"]),
                    float(one["since"]),
                    float(one["last"]),
                    one["ended"] is True,
                    frozenset(unpack(one["unknown"])),
                    frozenset(unpack(one["names"])),
                    one["runs_on"] is True,
                    one["refused"] is True,
                )
                for one in value["openings"]
            )
            dag_id, run_id, task_id, map_index = value["owner"]
            owner = Owner(str(dag_id), str(run_id), str(task_id), int(map_index))
            return cls(owner, {str(flag): given is True for flag, given in value["flags"].items()}, openings)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None


class OwnerRecords:
    """The records of all tasks, in the state store of the asset.

    :param store: has ``get``, ``set`` and ``delete``.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        #: The keys that are listed without a record.
        self._gone: set[str] = set()

    def get(self, owner: Owner) -> Record | None:
        """Return the record of an owner."""
        return Record.from_json(self._store.get(owner.key))

    def write(self, record: Record) -> None:
        """Replace the record of an owner, and see that it is listed.

        :raises RuntimeError: when it is not listed, since too many tasks write at the same time.
        """
        self._store.set(record.owner.key, record.to_json())
        self._list(record.owner.key)

    def _list(self, key: str) -> None:
        part = _part(key)
        # Read again after it was written: another task can have written at the same time, without this one.
        for _ in range(_LISTINGS):
            keys = self._keys(part)
            if key in keys:
                return
            self._store.set(part, [*keys, key])
        if key not in self._keys(part):
            raise RuntimeError(f"too many tasks write {part} at the same time")

    def delete(self, owner: Owner) -> None:
        """Remove the record of an owner; its key stays listed until :meth:`unlist_gone`."""
        self._store.delete(owner.key)

    def all(self, on_unreadable: Callable[[str], None] = lambda _: None) -> list[Record]:
        """Return the records of all owners. Nothing is written.

        :param on_unreadable: called for each record that cannot be read, with a sentence on it.
        """
        records: list[Record] = []
        self._gone.clear()
        for part in map(_part_name, range(_PARTS)):
            for key in self._keys(part):
                try:
                    value = self._store.get(key)
                except Exception as error:
                    if is_outage(error):
                        raise
                    # Of a backend of the user's, whose object can be gone; it must not keep all others from being read.
                    on_unreadable(f"Cannot read the record {key} of an owner: {type(error).__name__}")
                    continue
                if record := Record.from_json(value):
                    records.append(record)
                elif value is not None:
                    on_unreadable(f"Cannot read the record {key} of an owner: another version has written it")
                else:
                    self._gone.add(key)
        return records

    def unlist_gone(self) -> None:
        """List no longer what :meth:`all` has found to be gone."""
        for part in {*map(_part, self._gone)}:
            keys = self._keys(part)
            if gone := self._gone.intersection(keys):
                self._replace(part, [key for key in keys if key not in gone])
            # Its owner can have written it meanwhile, and have seen that it was listed.
            for key in gone:
                if self._store.get(key) is not None:
                    self._list(key)
        self._gone.clear()

    def pending_cancellations(self, owner: Owner, endpoint: str) -> set[str]:
        """Return the operations of an owner and its siblings that sweeps are about to cancel, or have cancelled."""
        return set(self._pending(_pending_key(owner, endpoint)))

    def announce(self, sweep: Owner, owner: Owner, endpoint: str, names: Iterable[str]) -> None:
        """Announce that a sweep is about to cancel operations of an owner."""
        pending = self._pending(key := _pending_key(owner, endpoint))
        for name in names:
            pending[name] = sorted({*pending.get(name, ()), sweep.key})
        self._replace(key, pending)

    def retract(self, sweep: Owner, owner: Owner, endpoint: str, names: Iterable[str]) -> None:
        """Withdraw announcements of a sweep; those of other sweeps stay."""
        pending = self._pending(key := _pending_key(owner, endpoint))
        for name in names:
            pending[name] = [one for one in pending.get(name, ()) if one != sweep.key]
        self._replace(key, {name: sweeps for name, sweeps in pending.items() if sweeps})

    def forget(self, owner: Owner, endpoint: str, running: Collection[str]) -> None:
        """Withdraw all announcements of operations that no longer run."""
        pending = self._pending(key := _pending_key(owner, endpoint))
        left = {name: sweeps for name, sweeps in pending.items() if name in running}
        if left != pending:
            self._replace(key, left)

    def note_sweep(self, place: Place | None, now: float) -> None:
        """Note that a sweep began. Only a write fails when Airflow does not know the asset.

        :param place: of a sweep that cancels all strays there; None for any sweep.
        """
        self._store.set(_sweep_key(place), now)

    def last_sweep(self, place: Place | None) -> float:
        """Return when the last such sweep began, in seconds since the epoch; 0 if none has been noted."""
        noted = self._store.get(_sweep_key(place))
        return float(noted) if isinstance(noted, int | float) else 0.0

    def _pending(self, key: str) -> dict[str, list[str]]:
        found = self._store.get(key)
        return {str(name): list(map(str, sweeps)) for name, sweeps in found.items()} if isinstance(found, dict) else {}

    def _replace(self, key: str, value: list[str] | dict[str, Any]) -> None:
        if value:
            self._store.set(key, value)
        else:
            self._store.delete(key)

    def _keys(self, part: str) -> list[str]:
        found = self._store.get(part)
        return [str(key) for key in found] if isinstance(found, list) else []


def _pending_key(owner: Owner, endpoint: str) -> str:
    """Return the key of what is about to be cancelled of a task in a run: one for all its map indexes."""
    return f"strays-{_hash(repr((endpoint, *astuple(replace(owner, map_index=-1)))))}"


def _sweep_key(place: Place | None) -> str:
    return f"sweep-{_hash(repr(place))}" if place else "sweep"


def _part(key: str) -> str:
    return _part_name(int(key[-8:], 16) % _PARTS)


def _part_name(number: int) -> str:
    return f"owners-{number}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
