"""Whose an ingest is: what a create task writes down, and what the sweep reads.

The service knows no owners. So a task writes a claim before it asks the service to start anything: that it, the task
instance, is about to start an ingest of these media. An ingest of a claimed medium that was created in the claim's
window is the owner's, also when its name was lost. Claims are kept in the state store of an asset of Airflow (3.3 and
later), which all tasks share and which nobody can list:

===========================  ==========================================================================================
key                          value
===========================  ==========================================================================================
``url-<hash>``               the claims of one media URL, a list: several tasks can submit the same file
``list-<hash>``              one claim, with the hashes of all media URLs: of a list that is too long for a write each
``lists``                    the keys of these, with the time of each
``strays-<hash>``            by owner: the operations that the sweep is about to cancel, to which no try reattaches then
===========================  ==========================================================================================

A claim is removed when its ingests have finished, or are meant to run on. One in doubt stays: a request without a
response was sent again, and the first one can still start an ingest, which is a stray then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any, Self

from airflow_dai_provider.api.storable import pack, unpack

#: The asset whose state store has the records. The sweep has it as an inlet, by which Airflow comes to know it.
ASSET = "airflow_dai_provider_ingests"
#: Seconds after its last request in which the service can start the ingest of a request without a response.
LATEST_START = 900.0
#: How far the service's clock may be behind the worker's; it can also tell whole seconds only.
CLOCK_SKEW = 1.0

_INDEX = "lists"
#: Of a hash in the claim of a list, which has up to 10,000 of them.
_SHORT = 16


def url_hash(endpoint: str, url: str) -> str:
    """Return what stands for a media URL, with its signature, at an endpoint: 64 hexadecimal digits."""
    return hashlib.sha256(f"{endpoint}\n{url}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Owner:
    """A task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    def __str__(self) -> str:
        index = f" (map index {self.map_index})" if self.map_index >= 0 else ""
        return f"task {self.task_id}{index} of run {self.run_id} of DAG {self.dag_id}"

    def key(self, kind: str, endpoint: str) -> str:
        """Return the key of a record of this owner at an endpoint."""
        return f"{kind}-{hashlib.sha256(repr((endpoint, *astuple(self))).encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Claim:
    """That a task instance starts ingests of some media.

    :param try_number: of the task instance.
    :param since: when the first request was about to be sent, in seconds of the epoch.
    :param until: when the last response had come; None while that is not known.
    :param flags: whether the task waits until its ingests have finished (``waits``); and whether a kill of it, a
        failure, or the failure of its run is meant for them too (``cancel_on_kill``, ``cancel_on_failure``,
        ``cancel_with_run``).
    :param number: how many ingests the task starts.
    :param hashes: of the media URLs, see :func:`url_hash`; shortened in the claim of a list.
    :param in_doubt: by hash, the operation that was adopted after a start in doubt, or None while there is none.
    """

    owner: Owner
    try_number: int
    since: float
    until: float | None
    flags: Mapping[str, bool]
    number: int = 1
    hashes: frozenset[str] = frozenset()
    in_doubt: Mapping[str, str | None] = field(default_factory=dict)

    def covers(self, key: str, created: float) -> bool:
        """Return whether an ingest of a medium can be one of the claim's.

        :param key: the medium's hash.
        :param created: when the service has created it, in seconds of the epoch.
        """
        if not _form_in(self.hashes, key):
            return False
        end = self.since if self.until is None else self.until
        # After the last response nothing is started any more, unless a request without one still arrives.
        late = LATEST_START if self.until is None or self.doubts(key) else CLOCK_SKEW
        return self.since - CLOCK_SKEW <= created <= end + late

    def doubts(self, key: str) -> bool:
        """Return whether a start of a medium's ingest was in doubt."""
        return _form_in(self.in_doubt, key) is not None

    def adopted(self, key: str) -> str | None:
        """Return the operation that was adopted after a start in doubt."""
        found = _form_in(self.in_doubt, key)
        return self.in_doubt[found] if found else None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        fields = asdict(self) | asdict(self.owner)
        del fields["owner"]
        return fields | {"hashes": pack(sorted(self.hashes))}

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the claim of a JSON form, or None for anything else."""
        try:
            fields = dict(value)
            owner = Owner(*(fields.pop(name) for name in ("dag_id", "run_id", "task_id", "map_index")))
            claim = cls(owner, hashes=frozenset(unpack(fields.pop("hashes"))), **fields)
            # What another version or a person has written can have any form.
            claim.covers("", 0.0)
            claim.adopted("")
            return claim if isinstance(claim.flags, dict) and isinstance(claim.number, int) else None
        except (AttributeError, KeyError, TypeError, ValueError):
            return None


def shortened(key: str) -> str:
    """Return the form that a medium's hash has in the claim of a list."""
    return key[:_SHORT]


def _form_in(keys: Collection[str], key: str) -> str | None:
    """Return the form in which a medium's hash is among these, whole or shortened; None where it is not."""
    return next((form for form in (key, shortened(key)) if form in keys), None)


class OwnerRecords:
    """The records of all tasks, in the state store of the asset."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def of_url(self, key: str) -> list[Claim]:
        """Return the claims of a medium, by its hash."""
        found = self._store.get(f"url-{key}")
        claims = map(Claim.from_json, found if isinstance(found, list) else [])
        return [claim for claim in claims if claim]

    def write_url(self, key: str, claims: Collection[Claim]) -> None:
        """Replace the claims of a medium."""
        if claims:
            self._store.set(f"url-{key}", [claim.to_json() for claim in claims])
        else:
            self._store.delete(f"url-{key}")

    def lists(self) -> dict[str, float]:
        """Return the keys of the claims of lists, with the time of each."""
        found = self._store.get(_INDEX)
        return found if isinstance(found, dict) else {}

    def write_lists(self, keys: Mapping[str, float]) -> None:
        """Replace the keys of the claims of lists."""
        self._store.set(_INDEX, dict(keys))

    def of_list(self, key: str) -> Claim | None:
        """Return the claim of a list, by its key."""
        return Claim.from_json(self._store.get(key))

    def write_list(self, key: str, claim: Claim | None) -> None:
        """Replace the claim of a list, or remove it."""
        if claim:
            self._store.set(key, claim.to_json())
        else:
            self._store.delete(key)

    def strays(self, owner: Owner, endpoint: str) -> set[str]:
        """Return the operations of an owner that the sweep is about to cancel, or has cancelled."""
        found = self._store.get(owner.key("strays", endpoint))
        return set(map(str, found)) if isinstance(found, list) else set()

    def write_strays(self, owner: Owner, endpoint: str, names: Collection[str]) -> None:
        """Replace them."""
        if names:
            self._store.set(owner.key("strays", endpoint), sorted(names))
        else:
            self._store.delete(owner.key("strays", endpoint))
