"""The claim of one create task, written down as far as that is possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from airflow_dai_provider.ingest.ownership import ASSET, Claim, Owner, OwnerRecords, shortened, url_hash
from airflow_dai_provider.tasks.cancel_requests import request_cancellation
from airflow_dai_provider.tasks.failures import describe_error
from airflow_dai_provider.version_compat import HAS_ASSET_STATE_STORE, asset_store

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.ingest.resume import StartedIngest

#: How often the start of one ingest is attempted at most, when responses are lost.
STARTS = 3
START_AGAIN = (
    "Starting it again. If the first request still starts an ingest, it is one without an adopted name, which the "
    "sweep cancels."
)
#: More media URLs than this are claimed by one write.
MOST_WRITES = 20

P = ParamSpec("P")
T = TypeVar("T")


def _attempted(
    what: str,
) -> Callable[[Callable[Concatenate[OwnClaim, OwnerRecords, P], T]], Callable[Concatenate[OwnClaim, P], T | None]]:
    """Let a method of :class:`OwnClaim` return None where there are no records, or they cannot be used.

    :param what: the beginning of the warning.
    """

    def decorate(
        method: Callable[Concatenate[OwnClaim, OwnerRecords, P], T],
    ) -> Callable[Concatenate[OwnClaim, P], T | None]:
        @wraps(method)
        def attempt(self: OwnClaim, *args: P.args, **kwargs: P.kwargs) -> T | None:
            if self.records is None:
                return None
            try:
                return method(self, self.records, *args, **kwargs)
            except Exception as error:
                # A request to an API server that is away can take a minute and a half.
                self.records = None
                self.written = False
                self.log.warning("Could not %s, so the sweep cannot tell: %s", what, describe_error(error))
                return None

        return cast("Callable[Concatenate[OwnClaim, P], T | None]", attempt)

    return decorate


class OwnClaim:
    """The claim of a create task, written down as far as that is possible.

    No method raises: without the record, the sweep knows no owner, and a lost start is not attempted again. After a
    first failure nothing more is attempted.

    :param records: of all tasks, or None where Airflow cannot keep any.
    :param claim: of this task instance, without media.
    :param endpoint: base URL of the service.
    :param media: the URLs of all that the task can start.
    :param clock: gives seconds of the epoch.
    :param log: receives why there is no record.
    """

    def __init__(
        self,
        records: OwnerRecords | None,
        claim: Claim,
        endpoint: str,
        media: Iterable[str],
        *,
        clock: Callable[[], float],
        log: Any,
    ) -> None:
        self.records = records
        self.log = log
        #: Whether the claim is written down, so that the sweep finds an ingest under an unknown name.
        self.written = False
        self._claim = claim
        self._endpoint = endpoint
        self._clock = clock
        self._hashes = {url_hash(endpoint, url) for url in media}
        self._list_key: str | None = None
        if len(self._hashes) > MOST_WRITES:
            self._list_key = claim.owner.key("list", endpoint)

    @_attempted("write down whose ingests these are")
    def open(self, records: OwnerRecords, media: Iterable[str], *, more: bool = False) -> None:
        """Write down the claim, before anything is sent.

        :param media: the URLs of what is about to be started.
        :param more: whether ingests of an earlier try, to which this one has reattached, stay claimed.
        """
        hashes = frozenset(url_hash(self._endpoint, url) for url in media)
        claim = replace(self._claim, since=self._clock(), until=None)
        if key := self._list_key:
            claim = replace(claim, hashes=frozenset(map(shortened, hashes)))
            if more and (earlier := records.of_list(key)):
                claim = replace(claim, since=earlier.since, hashes=claim.hashes | earlier.hashes)
            records.write_list(key, claim)
            self._enter_index(records, key)
        else:
            for one in hashes:
                records.write_url(one, [*records.of_url(one), replace(claim, hashes=frozenset({one}))])
        self.written = True

    @_attempted("write down when the ingests had started")
    def started(self, records: OwnerRecords) -> None:
        """Write down that all of a list have started: what the service creates later is not of this task."""
        if key := self._list_key:
            if claim := records.of_list(key):
                records.write_list(key, replace(claim, until=self._clock()))
            # Another task can have written the index at the same time, without this one.
            self._enter_index(records, key)

    @_attempted("write down that a start was in doubt")
    def doubt(self, records: OwnerRecords, adopted: Mapping[str, str | None]) -> bool:
        """Write down that starts were in doubt; return whether that is done.

        :param adopted: by media URL, the operation that was adopted, or None while there is none.
        """
        hashes = {url_hash(self._endpoint, url): name for url, name in adopted.items()}
        doubts = [{one: name} for one, name in hashes.items()]
        if self._list_key:
            doubts = [{shortened(one): name for one, name in hashes.items()}]
        for doubt in doubts:
            one = next(iter(doubt), "")
            claims = self._claims(records, one)
            if not any(claim.owner == self._claim.owner for claim in claims):
                return False
            self._write(records, one, [self._with_doubt(claim, doubt) for claim in claims])
        return True

    @_attempted("remove the record of the owner")
    def close(self, records: OwnerRecords) -> None:
        """Remove the claim, since nothing of this task runs by mistake any more; what is in doubt stays."""
        for one in self._hashes:
            claims = self._claims(records, one)
            kept = [claim for claim in claims if claim.owner != self._claim.owner or claim.in_doubt]
            if len(kept) < len(claims):
                self._write(records, one, kept)
            if self._list_key:
                if not kept:
                    lists = records.lists()
                    records.write_lists({key: since for key, since in lists.items() if key != self._list_key})
                return

    @_attempted("learn whether the sweep is about to cancel an ingest of an earlier try")
    def strays(self, records: OwnerRecords) -> set[str]:
        """Return the operations that the sweep is about to cancel, to which no try reattaches then."""
        return records.strays(self._claim.owner, self._endpoint)

    def leave_strays(self, saved: list[StartedIngest], hook: DaiHook) -> list[StartedIngest]:
        """Return the ingests of an earlier try without those that the sweep is about to cancel, which are cancelled."""
        if not saved or not (strays := self.strays()):
            return saved
        for one in saved:
            if one.operation_name in strays:
                self.log.warning("The sweep cancels %s, which an earlier try started.", one.operation_name)
                request_cancellation(hook, one.operation_name, self.log)
        return [one for one in saved if one.operation_name not in strays]

    def _with_doubt(self, claim: Claim, doubt: Mapping[str, str | None]) -> Claim:
        if claim.owner != self._claim.owner:
            return claim
        return replace(claim, in_doubt={**claim.in_doubt, **doubt})

    def _claims(self, records: OwnerRecords, one: str) -> list[Claim]:
        if self._list_key is None:
            return records.of_url(one)
        claim = records.of_list(self._list_key)
        return [claim] if claim else []

    def _write(self, records: OwnerRecords, one: str, claims: list[Claim]) -> None:
        if self._list_key is None:
            records.write_url(one, claims)
        else:
            records.write_list(self._list_key, next(iter(claims), None))

    def _enter_index(self, records: OwnerRecords, key: str) -> None:
        lists = records.lists()
        if key not in lists:
            records.write_lists({**lists, key: self._clock()})


def make_own_claim(
    context: Context,
    endpoint: str,
    media: Iterable[str],
    flags: Mapping[str, bool],
    number: int = 1,
    *,
    clock: Callable[[], float],
    log: Any,
) -> OwnClaim:
    """Return the claim of a running create task, before anything is written down.

    :param media: the URLs of all that the task can start.
    :param flags: what the task is meant to cancel, see :class:`Claim`.
    :param number: how many ingests it starts.
    """
    ti = context["ti"]
    records = None
    if HAS_ASSET_STATE_STORE and context.get("task_state_store") is not None:
        records = OwnerRecords(asset_store(ASSET))
    index = ti.map_index if isinstance(ti.map_index, int) else -1
    owner = Owner(ti.dag_id, ti.run_id, ti.task_id, index)
    claim = Claim(owner, ti.try_number, since=clock(), until=None, flags=dict(flags), number=number)
    return OwnClaim(records, claim, endpoint, media, clock=clock, log=log)
