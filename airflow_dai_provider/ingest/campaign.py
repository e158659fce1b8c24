"""The ingests of a list of creatives: start them concurrently, and record the outcome of each creative."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.creative import creative_digest, media_urls
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import MANY_PAGES
from airflow_dai_provider.api.operation import InvalidOperationError, Operation, OperationState
from airflow_dai_provider.api.operation_list import to_dicts
from airflow_dai_provider.api.redaction import redact_urls
from airflow_dai_provider.api.retry import THROTTLED, as_outage, may_have_acted
from airflow_dai_provider.ingest.reattach import LATE_GUARD
from airflow_dai_provider.ingest.recovery import IngestMayHaveStartedError, LostStart, may_have_started, recover_ingests
from airflow_dai_provider.tasks.cancel_requests import KILLED
from airflow_dai_provider.tasks.failures import sentences
from airflow_dai_provider.tasks.rounds import PAUSE
from airflow_dai_provider.tasks.xcom import XCOM_OPERATION, pull

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.ingest.guard import IngestGuard
    from airflow_dai_provider.transport.threads import Workers

#: Seconds from the first response of several until their names are pushed, which takes a while too.
PUSH_INTERVAL = 0.5
#: After an interruption, the seconds beyond one request's timeout to wait for the responses to those under way.
DRAIN_SECONDS = 5.0

_INTERRUPTED = "the task was interrupted before this was attempted"
_CODES = list(Code)


class Campaign:
    """The creatives of a list. Equal creatives share one ingest, which appears at each of their positions.

    :param creatives: checked ones, in the order of the input.
    :param dynamic_creative_info: of each of them.
    """

    def __init__(self, creatives: Sequence[Mapping[str, Any]], dynamic_creative_info: Mapping[str, Any] | None) -> None:
        self._info = dynamic_creative_info
        #: The digest of each creative, in the order of the input; by digest, the creatives.
        self.digests = [creative_digest(creative, dynamic_creative_info) for creative in creatives]
        self.creatives = dict(zip(self.digests, creatives, strict=True))
        #: By digest, the operations of those that have started, and the errors of those that have not. After UNKNOWN,
        #: an ingest may run under an unknown name.
        self.names: dict[str, str] = {}
        self.errors: dict[str, ServiceError] = {}
        #: Of the latter, those for which the service lists no ingest.
        self.not_listed: list[str] = []
        self._stop_reason: str | None = None

    def __len__(self) -> int:
        return len(self.creatives)

    @property
    def started(self) -> list[str]:
        """The operations that have started, in the order of the input."""
        names = dict(self.names)  # threads add to it
        return list(dict.fromkeys(names[digest] for digest in self.creatives if digest in names))

    @property
    def not_started(self) -> list[str]:
        """The digests of the creatives that have not started."""
        return [digest for digest in self.creatives if digest not in self.names]

    def urls(self, digests: Iterable[str]) -> set[str]:
        """Return the media URLs of creatives, with their signatures."""
        return {url for digest in digests for url in media_urls(self.creatives[digest])}

    def media(self, digest: str) -> list[str]:
        """Return the media URLs of a creative, without their signatures."""
        return sorted(map(redact_urls, media_urls(self.creatives[digest])))

    def start(
        self,
        digests: Sequence[str],
        hook: DaiHook,
        workers: Workers[DaiHook],
        guard: IngestGuard,
        *,
        progress: Callable[[], None],
        known: Collection[str],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        log: Any,
    ) -> None:
        """Start an ingest for each of these creatives; a refused one does not stop the others.

        An ingest that the service was too busy to start is attempted again, as long as each round starts another one.

        When responses are lost, their ingests are searched for after all others have responded: by then each ingest of
        the same media that this task has started is known by its name.

        :param digests: of creatives that have no ingest.
        :param workers: threads that end their work by :meth:`stopped`.
        :param guard: is armed with each ingest by the thread that has started it.
        :param progress: called at the latest a second after a response, and at the end; pushes the names.
        :param known: operations that no lost response can have started.
        :param clock: returns the current time in seconds since the epoch.
        :raises IngestMayHaveStartedError: when an interruption leaves ingests that may run under unknown names.
        """
        self.not_listed = []
        lost: dict[str, LostStart] = {}
        under_way: dict[str, LostStart] = {}
        pages: list[ServiceError] = []

        def start_one(own: DaiHook, digest: str) -> None:
            urls = media_urls(self.creatives[digest])
            under_way[digest] = sent = LostStart(
                urls, datetime.fromtimestamp(clock(), UTC), "No response came in time."
            )
            try:
                # Checked after this request is in under_way, whereas an interruption does both in the reverse order: so
                # either it waits for this request, or this request is not sent.
                self._check_stopped(guard)
                operation = own.create_creative(self.creatives[digest], self._info)
            except ServiceError as error:
                if may_have_acted(error):
                    lost[digest] = LostStart(urls, sent.sent, str(error))
                if error.rpc_code is Code.UNIMPLEMENTED and not self._is_passing_page(error, pages):
                    self._stop_reason = f"the server does not support the method: {error}"
                raise as_outage(error, bool(self.names)) from error.__cause__
            else:
                guard.arm_in_thread(own, operation.name, ", ".join(self.media(digest)))
                self.names[digest] = operation.name
            finally:
                del under_way[digest]

        def finish() -> None:
            guard.tell_of_threads()
            if lost:
                found, doubts = recover_ingests(hook, lost, sleep, log, {*known, *self.names.values()})
                for digest, operation in found.items():
                    self.names[digest] = operation.name
                    guard.arm(hook, operation.name, ", ".join(self.media(digest)))
                for digest, doubt in doubts.items():
                    self.errors[digest] = ServiceError(str(doubt), Code.UNKNOWN)
                self.not_listed = [digest for digest, doubt in doubts.items() if doubt.is_unseen]
            progress()

        try:
            left = list(digests)
            while left:
                before = len(self.names)
                for digest in left:
                    self.errors.pop(digest, None)
                for outcomes in workers.batches(
                    left, start_one, retry_timeout=hook.retry_timeout, seconds=PUSH_INTERVAL
                ):
                    for digest, _, error in outcomes:
                        if error and digest not in lost:
                            self.errors[digest] = error
                    guard.tell_of_threads()
                    progress()
                # Once the retries of one call are used up, those behind it are refused without a request. And the page
                # of a front end says nothing of the API, which has started others.
                left = [one for one in left if (error := self.errors.get(one)) and _may_pass(error)]
                if len(self.names) == before:
                    break
                if left:
                    sleep(PAUSE)
        except BaseException as interruption:
            # A time limit, a kill before Airflow 3, or an XCom that could not be pushed. Requests under way continue:
            # their ingests are passed to the guard and the next try, and then the interruption is raised again.
            self._stop_reason = _INTERRUPTED
            _drain(under_way, hook.timeout + DRAIN_SECONDS, interruption)
            finish()
            for error in self.errors.values():
                if is_in_doubt(error):
                    # After an interruption Airflow would retry the task, and the next try would start a second ingest.
                    message = sentences(error, f"The task was interrupted: {interruption}")
                    raise IngestMayHaveStartedError(message) from interruption
            raise
        finish()

    def _is_passing_page(self, error: ServiceError, pages: list[ServiceError]) -> bool:
        """Return whether this is the page of a front end, and the API may still start other ingests.

        :param pages: the pages so far; this one is appended.
        """
        if error.from_front_end:
            pages.append(error)
        return error.from_front_end and (bool(self.names) or len(pages) < MANY_PAGES)

    def _check_stopped(self, guard: IngestGuard) -> None:
        if reason := KILLED if guard.killed else self._stop_reason:
            raise ServiceError(reason, Code.CANCELLED, sent=False)

    def stopped(self) -> str | None:
        """Return the reason to start nothing more, or None."""
        return self._stop_reason

    def cancelled_by_an_earlier_try(
        self, adopted: Collection[str], finished: Mapping[str, Operation], seen_after: Mapping[str, float]
    ) -> list[str]:
        """Return the digests whose ingests a guard of an earlier try cancelled after this try had reattached to them.

        The time runs from the beginning of the wait, since nothing is polled while the others are started.

        :param adopted: the digests of what this try has reattached to.
        :param finished: by name, the operations that have finished.
        :param seen_after: by name, the seconds of the wait after which an end was seen.
        """
        return [
            digest
            for digest in adopted
            if (operation := finished.get(name := self.names[digest]))
            and operation.state is OperationState.CANCELLED
            and seen_after.get(name, LATE_GUARD) < LATE_GUARD
        ]

    def rows(
        self, finished: Mapping[str, Operation], errors: Mapping[str, ServiceError] | None = None
    ) -> list[dict[str, Any]]:
        """Return the outcome of each creative, in the order of the input.

        :param finished: by name, the operations that have finished, and others as they were polled last.
        :param errors: by name, the errors of those that could not be polled.
        :return: ``Operation.to_dict()``, or its first fields, with ``media_files``.
        """
        found: list[Operation | dict[str, Any]] = []
        for digest in self.digests:
            name = self.names.get(digest)
            error = (errors or {}).get(name) if name else self.errors.get(digest)
            row = {
                "name": name,
                "state": OperationState.RUNNING.value if name and not error else None,
                "done": False,
                "error_code": _CODES.index(error.rpc_code) + 1 if error else None,
                "error_message": str(error) if error else None,
                "creative_name": None,
                "ingest": None,
            }
            found.append((finished.get(name) if name else None) or row)
        dicts = to_dicts(found)
        return [
            (row or {}) | {"media_files": self.media(digest)} for digest, row in zip(self.digests, dicts, strict=True)
        ]

    def load(self, rows: object) -> dict[str, Operation] | None:
        """Take from the rows of an earlier process what has started.

        :return: by name, the operations that had finished by then; None when the rows are not those of this list.
        """
        if not isinstance(rows, list) or len(rows) != len(self.digests):
            return None
        finished: dict[str, Operation] = {}
        for digest, row in zip(self.digests, rows, strict=True):
            if not isinstance(row, dict) or row.get("media_files") != self.media(digest):
                return None
            match row:
                case {"name": str(name)}:
                    self.names[digest] = name
                    if row.get("done") is True:
                        try:
                            finished[name] = Operation.from_dict(row)
                        except InvalidOperationError:
                            return None
                case {"name": None, "error_code": int(code), "error_message": str(message)}:
                    self.errors[digest] = ServiceError(message, _CODES[code - 1])
                case _:
                    return None
        return finished


def pushed_rows(context: Context) -> object:
    """Return the rows that a task has pushed before it was deferred."""
    ti = context["ti"]
    return next(iter(pull(ti, ti.task_id, XCOM_OPERATION, ti.map_index)), None)


def without_finished(context: Context, names: Sequence[str]) -> list[str]:
    """Return the operations that a resumed task waits for: those that had not finished before it was deferred."""
    rows = pushed_rows(context)
    done = {
        str(row.get("name"))
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and row.get("done")
    }
    return [name for name in names if name not in done]


def is_in_doubt(error: ServiceError) -> bool:
    """Return whether an ingest may run under an unknown name, after a start that has failed with this error."""
    return error.rpc_code is Code.UNKNOWN


def _may_pass(error: ServiceError) -> bool:
    return error.rpc_code in THROTTLED or error.from_front_end


def _drain(under_way: Mapping[str, LostStart], seconds: float, interruption: BaseException) -> None:
    """Wait for the responses to requests that are under way.

    :raises IngestMayHaveStartedError: when some do not come in time, or the wait is interrupted too.
    """
    until = time.monotonic() + seconds
    try:
        while under_way and time.monotonic() < until:
            time.sleep(0.02)
    except BaseException as again:
        interruption = again
    if left := list(under_way.values()):
        raise may_have_started(left, f"the task was interrupted: {interruption}.") from interruption
