"""The owners of ingests: what create tasks write down, and what the sweep reads.

The service knows no owners. So a task writes a record before it asks the service to start anything, and adds the names
of its operations when it knows them. An operation whose name is unknown, because a response was lost or a process
ended, is known by its media URL and the time of its creation. The records are kept in the state store of an asset of
Airflow (3.3 and later), which all tasks share. Its keys cannot be listed:

=================  ====================================================================================================
key                value
=================  ====================================================================================================
``owner-<hash>``   the :class:`Record` of a task instance, written by that task only
``url-<hash>``     the keys of the records of those that have submitted a media URL, usually one
``lists``          the keys of the records of those that have submitted too many URLs for a write each
``strays-<hash>``  the operations of a task in a run that the sweep is about to cancel: no try reattaches to them
``swept-<hash>``   the keys of the records that a sweep has met, and has not removed yet
=================  ====================================================================================================

A task removes its record when its ingests have finished, or are meant to run on. The record stays after a start in
doubt: the first request can still start an ingest, although a second one was sent. The sweep removes what is left of
tasks that have failed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any, Self

from airflow_dai_provider.api.storable import pack, unpack

#: The asset whose state store has the records. The sweep has it as an inlet, by which Airflow comes to know it.
ASSET = "airflow_dai_provider_ingests"
#: Seconds after its request in which the service can still start an ingest.
LATEST_START = 900.0
#: How far the clocks of service and worker can be apart; the service can also tell whole seconds only.
CLOCK_SKEW = 10.0

#: A record with more media than this is referred to by ``lists``, and not by a write for each.
MOST_WRITES = 10

_LISTS = "lists"


def medium(endpoint: str, url: str) -> str:
    """Return what stands for a media URL, with its signature, at an endpoint: 16 hexadecimal digits."""
    return hashlib.sha256(f"{endpoint}\n{url}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Owner:
    """A task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    @classmethod
    def of(cls, ti: Any) -> Self:
        """Return the owner that a task instance of Airflow is."""
        return cls(ti.dag_id, ti.run_id, ti.task_id, ti.map_index if isinstance(ti.map_index, int) else -1)

    def __str__(self) -> str:
        index = f" (map index {self.map_index})" if self.map_index >= 0 else ""
        return f"task {self.task_id}{index} of run {self.run_id} of DAG {self.dag_id}"

    def key(self, kind: str) -> str:
        """Return the key of a record of this owner."""
        return f"{kind}-{hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True)
class Opening:
    """One time at which a try has started ingests.

    :param try_number: of the task instance.
    :param since: when the first request was about to be sent, in seconds of the epoch.
    :param last: when this was written last.
    :param ended: whether all responses had come by then; otherwise the process may have ended before.
    :param media: what was submitted, see :func:`medium`.
    :param doubts: those of them for which a request got no response.
    """

    try_number: int
    since: float
    last: float
    ended: bool = False
    media: frozenset[str] = frozenset()
    doubts: frozenset[str] = frozenset()

    @property
    def places(self) -> set[str]:
        """The keys under which the record is found, see :class:`Record`."""
        return {_LISTS} if len(self.media) > MOST_WRITES else {f"url-{one}" for one in self.media}

    def may_have_started(self, one: str, created: float) -> bool:
        """Return whether an operation under an unknown name can be of a request of this opening.

        :param one: its medium.
        :param created: when the service has created it, in seconds of the epoch.
        """
        unknown = self.doubts if self.ended else self.media
        return one in unknown and self.since - CLOCK_SKEW <= created <= self.last + LATEST_START


@dataclass(frozen=True, slots=True)
class Record:
    """What a task instance has started.

    :param flags: whether the task waits until its ingests have finished (``waits``); and whether a kill of it, a
        failure, or the failure of its run is meant for them too (``cancel_on_kill``, ``cancel_on_failure``,
        ``cancel_with_run``).
    :param names: the operations that it has started, of all its openings.
    :param openings: in their order.
    """

    owner: Owner
    flags: Mapping[str, bool]
    names: frozenset[str] = frozenset()
    openings: tuple[Opening, ...] = field(default=())

    @property
    def try_number(self) -> int:
        """The last try that has started something."""
        return self.openings[-1].try_number if self.openings else 0

    @property
    def last(self) -> float:
        """When its task has last begun or ended to start ingests, in seconds of the epoch."""
        return max((opening.last for opening in self.openings), default=0.0)

    @property
    def is_in_doubt(self) -> bool:
        """Whether a request without a response can still start an ingest."""
        return any(opening.doubts for opening in self.openings)

    @property
    def places(self) -> list[str]:
        """The keys under which this record is found."""
        found = {place for opening in self.openings for place in opening.places}
        return sorted(found)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        openings = [
            asdict(one) | {"media": pack(sorted(one.media)), "doubts": sorted(one.doubts)} for one in self.openings
        ]
        names = pack(sorted(self.names))
        return {"owner": list(astuple(self.owner)), "flags": dict(self.flags), "names": names, "openings": openings}

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the record of a JSON form; None for anything else, as another version can have written it."""
        try:
            openings = tuple(
                Opening(
                    int(one["try_number"]),
                    float(one["since"]),
                    float(one["last"]),
                    one["ended"] is True,
                    frozenset(unpack(one["media"])),
                    frozenset(one["doubts"]),
                )
                for one in value["openings"]
            )
            dag_id, run_id, task_id, map_index = value["owner"]
            owner = Owner(str(dag_id), str(run_id), str(task_id), int(map_index))
            flags = {str(flag): given is True for flag, given in value["flags"].items()}
            return cls(owner, flags, frozenset(unpack(value["names"])), openings)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None


class OwnerRecords:
    """The records of all tasks, in the state store of the asset.

    :param store: has ``get``, ``set`` and ``delete``.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def get(self, key: str) -> Record | None:
        """Return a record by its key."""
        return Record.from_json(self._store.get(key))

    def write(self, record: Record) -> None:
        """Replace the record of an owner."""
        self._store.set(record.owner.key("owner"), record.to_json())

    def remove(self, record: Record) -> None:
        """Delete a record, and what refers to it."""
        key = record.owner.key("owner")
        for place in record.places:
            others = [other for other in self._keys(place) if other != key]
            self._replace(place, others)
        self._store.delete(key)

    def of_medium(self, one: str) -> list[str]:
        """Return the keys of the records of those that have submitted a medium."""
        return self._keys(f"url-{one}")

    def of_lists(self) -> list[str]:
        """Return the keys of the records of those that have submitted too many media for a write each."""
        return self._keys(_LISTS)

    def refer(self, record: Record) -> bool:
        """Let the media of the last opening of a record refer to it, and return whether they refer to others too."""
        return any([self._refer(record.owner.key("owner"), place) for place in sorted(record.openings[-1].places)])

    def _refer(self, key: str, place: str) -> bool:
        others: list[str] = []
        # Read again after it was written: another task can have written at the same time, without this one.
        for _ in range(3):
            found = self._keys(place)
            others = [other for other in found if other != key]
            if key in found:
                break
            others = [other for other in others if self.get(other)]
            self._store.set(place, [*others, key])
        return bool(others)

    def strays(self, owner: Owner) -> set[str]:
        """Return the operations that the sweep is about to cancel, or has cancelled, of an owner and its siblings."""
        return set(self._keys(replace(owner, map_index=-1).key("strays")))

    def write_strays(self, owner: Owner, names: Collection[str]) -> None:
        """Replace them: one write for all map indexes of a task."""
        self._replace(replace(owner, map_index=-1).key("strays"), sorted(names))

    def swept(self, sweep: Owner) -> set[str]:
        """Return the keys of the records that a sweep has met and has not removed."""
        return set(self._keys(replace(sweep, run_id="").key("swept")))

    def write_swept(self, sweep: Owner, keys: Collection[str]) -> None:
        """Replace them, for all runs of the sweep."""
        self._replace(replace(sweep, run_id="").key("swept"), sorted(keys))

    def check(self) -> None:
        """Write something: a read does not tell that Airflow does not know the asset.

        :raises Exception: when nothing can be written.
        """
        self._store.set("sweep", True)

    def _replace(self, place: str, keys: Collection[str]) -> None:
        if keys:
            self._store.set(place, list(keys))
        else:
            self._store.delete(place)

    def _keys(self, place: str) -> list[str]:
        found = self._store.get(place)
        return [str(key) for key in found] if isinstance(found, list) else []
