"""The record of one create task, written as far as that is possible."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.ingest.ownership import ASSET, Opening, Owner, OwnerRecords, Record, medium
from airflow_dai_provider.tasks.cancel_requests import request_cancellations
from airflow_dai_provider.tasks.failures import describe_error, task_error
from airflow_dai_provider.version_compat import HAS_ASSET_STATE_STORE, asset_store

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.ingest.resume import StartedIngest

#: How often the start of one ingest is attempted at most, when the service lists none after a lost response.
STARTS = 3
START_AGAIN = (
    "Starting it again. If the first request still starts an ingest, the sweep cancels that one, whose name no task "
    "knows."
)
#: Seconds between two writes while many ingests are being started.
WRITE_INTERVAL = 60.0


class OwnRecord:
    """The record of a running create task.

    Errors of the store are logged. Without it the sweep knows no owner, and a lost start is not attempted again. After
    a first error nothing more is attempted, since a request to an API server that is away can take a minute and a half.

    :param context: of the task.
    :param flags: what the task is meant to cancel, see :class:`Record`.
    :param clock: gives seconds of the epoch.
    :param log: receives why there is no record.
    """

    def __init__(self, context: Context, flags: Mapping[str, bool], *, clock: Callable[[], float], log: Any) -> None:
        ti = context["ti"]
        self._records: OwnerRecords | None = None
        if HAS_ASSET_STATE_STORE and context.get("task_state_store") is not None:
            self._records = OwnerRecords(asset_store(ASSET))
        self._try_number = ti.try_number
        self._record = Record(Owner.of(ti), flags)
        self._clock = clock
        self._log = log
        self._endpoint = ""
        self._has_neighbours = False
        self._is_open = False

    def open(self, endpoint: str, urls: Collection[str], adopted: Iterable[str] = ()) -> None:
        """Write down that ingests are about to be started; before anything is sent.

        What an earlier try has begun to start, and has not adopted, can be an ingest that nobody waits for.

        :param endpoint: base URL of the service.
        :param urls: of the media.
        :param adopted: the operations of earlier tries to which this one has reattached.
        """
        now = self._clock()
        self._endpoint = endpoint
        media = frozenset(medium(endpoint, url) for url in urls)
        with self._writing("Could not write down whose ingests these are") as records:
            if not records:
                return
            owner = self._record.owner
            earlier = records.get(owner.key("owner"))
            openings = earlier.openings if earlier else ()
            lost = [one if one.ended else replace(one, ended=True, doubts=one.media) for one in openings]
            names = (earlier.names if earlier else frozenset()) | frozenset(adopted)
            opening = Opening(self._try_number, since=now, last=now, media=media)
            # One without doubts tells nothing more, unless only by it the record is found and removed.
            kept = [one for one in lost if one.doubts or not one.places <= opening.places]
            self._record = replace(self._record, names=names, openings=(*kept, opening))
            records.write(self._record)
            self._has_neighbours = records.refer(self._record)
            self._is_open = True

    @property
    def is_open(self) -> bool:
        """Whether the sweep finds an ingest of this try under an unknown name, so that a start can be repeated."""
        return self._is_open

    def note(self, names: Iterable[str]) -> None:
        """Write down the operations that have started so far, now and then."""
        opening = self._record.openings[-1] if self._is_open else None
        if opening and self._clock() >= opening.last + WRITE_INTERVAL:
            self._write(names, replace(opening, last=self._clock()))

    def end(self, names: Iterable[str], doubts: Iterable[str] = ()) -> None:
        """Write down that all responses have come, or will not.

        :param names: the operations that have started.
        :param doubts: the media URLs of requests that got no response.
        """
        if self._is_open:
            unknown = frozenset(medium(self._endpoint, url) for url in doubts)
            self._write(names, replace(self._record.openings[-1], last=self._clock(), ended=True, doubts=unknown))
            self._is_open = False

    def close(self, *, runs_on: bool = False) -> None:
        """Remove the record, since nothing of this task runs by mistake any more.

        :param runs_on: whether its ingests are meant to run on. Then the record stays if others have submitted the same
            media, so that these are not taken for theirs.
        """
        with self._writing("Could not remove the record of the owner") as records:
            if not records:
                return
            owner = self._record.owner
            record = self._record if self._record.openings else records.get(owner.key("owner"))
            if record and not record.is_in_doubt and not (runs_on and self._has_neighbours):
                records.remove(record)

    def leave_strays(self, saved: list[StartedIngest], hook: DaiHook) -> list[StartedIngest]:
        """Return the ingests of an earlier try without those that the sweep cancels; these are cancelled.

        :raises AirflowException: when one cannot be cancelled.
        """
        strays: set[str] = set()
        if saved:
            with self._writing("Could not learn what the sweep cancels") as records:
                strays = records.strays(self._record.owner) if records else set()
        names = [one.operation_name for one in saved if one.operation_name in strays]
        if not names:
            return saved
        self._log.warning("The sweep cancels %s, which an earlier try started.", ", ".join(names))
        with hook.workers(len(names)) as workers:
            _, errors = request_cancellations(
                workers,
                names,
                retry_timeout=hook.retry_timeout,
                on_settled=lambda *_: None,
                clock=hook._clock,
                sleep=hook._sleep,
                log=self._log,
            )
        for name, error in errors.items():
            if error.rpc_code is not Code.NOT_FOUND:
                raise task_error(error.rpc_code, str(error), f"{name} may still run")
        return [one for one in saved if one.operation_name not in strays]

    def _write(self, names: Iterable[str], opening: Opening) -> None:
        record = self._record
        every = record.names | frozenset(names)
        self._record = replace(record, names=every, openings=(*record.openings[:-1], opening))
        with self._writing("Could not write down which ingests have started") as records:
            if records:
                records.write(self._record)

    @contextmanager
    def _writing(self, failure: str) -> Iterator[OwnerRecords | None]:
        """Give the records, or None where there are none; an error is logged, and ends their use."""
        try:
            yield self._records
        except Exception as error:
            self._records = None
            self._is_open = False
            self._log.warning("%s, so the sweep cannot tell: %s", failure, describe_error(error))
