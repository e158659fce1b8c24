"""The record of one create task; errors in reading or writing it are only logged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.ingest.ownership import ASSET, Opening, Owner, OwnerRecords, Place, Record, media_key
from airflow_dai_provider.tasks.cancel_requests import request_cancellations
from airflow_dai_provider.tasks.failures import describe_error, task_error
from airflow_dai_provider.version_compat import HAS_ASSET_STATE_STORE, TASKS_READ_DATABASE, asset_store

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.ingest.reattach import StartedIngest

#: How often the start of one ingest is attempted at most, when the service lists none after a lost response.
STARTS = 3
START_AGAIN = (
    "Sending the create request again. If the first one still starts an ingest, the sweep cancels that ingest."
)
#: Seconds within which a complete sweep of the endpoint, with the same account, must have begun for that.
SWEPT_WITHIN = 3600.0
#: Seconds between two writes while many ingests are being started.
WRITE_INTERVAL = 60.0


class OwnRecord:
    """The record of a running create task.

    Errors of the store are logged. Without it the sweep knows no owner, and a lost start is not attempted again. After
    a first error nothing more is attempted, since a request to an API server that is away can take a minute and a half.

    :param context: of the task.
    :param flags: what the task is meant to cancel, see :class:`Record`.
    :param clock: returns the current time in seconds since the epoch.
    :param log: receives why there is no record.
    """

    def __init__(self, context: Context, flags: Mapping[str, bool], *, clock: Callable[[], float], log: Any) -> None:
        ti = context["ti"]
        self._try_number = ti.try_number
        self._record = Record(Owner.of(ti), flags)
        self._clock = clock
        self._log = log
        self._is_open = False
        self._records: OwnerRecords | None = None
        if HAS_ASSET_STATE_STORE and context.get("task_state_store") is not None:
            with self._using("Could not open the store of the records"):
                self._records = OwnerRecords(asset_store(ASSET))
        if flags["cancel_with_run"] and not (HAS_ASSET_STATE_STORE or TASKS_READ_DATABASE):
            log.warning("cancel_with_run has no effect on this version of Airflow, whose sweep knows no owners.")

    def open(self, endpoint: str, urls: Collection[str], adopted: Iterable[str] = ()) -> None:
        """Write down that ingests are about to be started, before anything is sent.

        Ingests that an earlier try has started, or has begun to start, and that this one has not adopted, are strays.

        :param endpoint: base URL of the service.
        :param urls: the media URLs; empty for a try that only reattaches.
        :param adopted: the operations of earlier tries to which this one has reattached.
        """
        now = self._clock()
        opening = Opening(
            self._try_number,
            endpoint,
            since=now,
            last=now,
            ended=not urls,
            unknown=frozenset(map(media_key, urls)),
            names=frozenset(adopted),
        )
        with self._using("Could not record the owner of the ingests, so the sweep does not know it") as records:
            if not records:
                return
            earlier = records.get(self._record.owner)
            openings = earlier.openings if earlier else ()
            self._record = Record(self._record.owner, self._record.flags, openings).open(opening)
            records.write(self._record)
            self._is_open = bool(urls)

    def may_start_again(self, place: Place) -> bool:
        """Return whether a sweep finds an ingest of this try under an unknown name, so that a start can be retried.

        :param place: where it was started.
        """
        with self._using("Could not read when the last sweep began") as records:
            # Otherwise nothing that this task leaves is a stray.
            flags = self._record.flags
            if not (records and self._is_open and flags["cancel_on_kill"] and flags["cancel_on_failure"]):
                return False
            if self._clock() - records.last_sweep(place) <= SWEPT_WITHIN:
                return True
            self._log.info("No complete sweep with this connection in the last hour: the start is not attempted again.")
        return False

    def note(self, names: Iterable[str]) -> None:
        """Record the operations that have started so far, at most once per :data:`WRITE_INTERVAL`."""
        if self._is_open and self._clock() >= self._record.last + WRITE_INTERVAL:
            self._set(names)
            self._write()

    def end(self, names: Iterable[str], lost: Iterable[str] = ()) -> None:
        """Record that no further responses are expected.

        :param names: the operations that have started.
        :param lost: the media URLs of requests that got no response.
        """
        if self._is_open:
            self._is_open = False
            self._set(names, ended=True, unknown=frozenset(map(media_key, lost)))
            if self._record.names or self._record.has_unknown:
                self._write()
            else:
                self.close()

    def run_on(self, *, refused: bool = False) -> None:
        """Record that the started ingests are meant to keep running.

        :param refused: whether the task fails nevertheless, since the service has refused others of a list.
        """
        if self._record.openings:
            self._set((), runs_on=True, refused=refused)
            self._write()

    def close(self) -> None:
        """Remove the record, since all ingests of this task have finished; not while another one may run."""
        with self._using("Could not remove the record of the owner") as records:
            if not records:
                return
            record = self._record if self._record.openings else records.get(self._record.owner)
            if record and len(record.openings) == 1 and not record.has_unknown:
                records.delete(record.owner)

    def leave_strays(self, saved: list[StartedIngest], hook: DaiHook) -> list[StartedIngest]:
        """Cancel the ingests of an earlier try that a sweep is about to cancel; return the others.

        An ingest whose cancellation the service refuses is among the others.

        :raises AirflowException: when one cannot be cancelled for now.
        """
        strays: set[str] = set()
        if saved:
            with self._using("Could not read what the sweep cancels") as records:
                strays = records.pending_cancellations(self._record.owner, hook.endpoint.url) if records else set()
        names = [one.operation_name for one in saved if one.operation_name in strays]
        if not names:
            return saved
        self._log.warning("The sweep cancels %s, which an earlier try started.", ", ".join(names))
        with hook.workers(len(names)) as workers:
            _, errors = request_cancellations(
                workers,
                names,
                retry_timeout=hook.retry_timeout,
                clock=hook._clock,
                sleep=hook._sleep,
                log=self._log,
            )
        for name, error in errors.items():
            if error.rpc_code not in PERMANENT:
                raise task_error(error.rpc_code, str(error), f"{name} may still run")
            if error.rpc_code is not Code.NOT_FOUND:
                self._log.warning("%s may still run: %s", name, error)
                strays.remove(name)
        return [one for one in saved if one.operation_name not in strays]

    def _set(self, names: Iterable[str], **changes: Any) -> None:
        known = self._record.openings[-1].names | frozenset(names)
        self._record = self._record.change(names=known, last=self._clock(), **changes)

    def _write(self) -> None:
        with self._using("Could not record which ingests have started, so the sweep does not know them") as records:
            if records:
                records.write(self._record)

    @contextmanager
    def _using(self, failure: str) -> Iterator[OwnerRecords | None]:
        """Give the records, or None where there are none; an error is logged, and ends their use."""
        try:
            yield self._records
        except Exception as error:
            self._records = None
            self._is_open = False
            self._log.warning("%s: %s", failure, describe_error(error))
