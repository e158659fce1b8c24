"""The search of a sweep: list all operations, find their owners, and report which are strays."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import some_of
from airflow_dai_provider.api.rest import LIST_PAGE_SIZE
from airflow_dai_provider.sweep.report import SweepReport
from airflow_dai_provider.sweep.selection import PassedOver, Selection
from airflow_dai_provider.tasks.failures import describe_error, sentences
from airflow_dai_provider.tasks.rounds import PAUSE

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.sweep.owners import Owners
    from airflow_dai_provider.sweep.verdicts import Verdict

#: Seconds within which the suspects are polled, however many they are.
POLLING = 120.0


def find_strays(
    hook: DaiHook,
    selection: Selection,
    owners: Owners | None,
    *,
    orphaned_for: float,
    limit: int,
    max_concurrency: int = 8,
    dry_run: bool,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    log: Any,
) -> SweepReport:
    """List all operations before any is cancelled, and report what was found.

    An operation whose owner is over is polled once: it may have finished after it was listed, and its task after it.

    :param owners: None where only the ages of operations are known.
    :param orphaned_for: seconds that an owner has to be over; in a dry run it is read once.
    :param limit: the most operations without an owner to cancel, see :class:`SweepReport`.
    :param max_concurrency: how many polls are under way at a time.
    :param clock: returns the current time in seconds since the epoch.
    :raises ServiceError: when the service cannot be listed.
    :raises AirflowException: when it has no list, when the owners cannot be read, and when the hook is stopped.
    """
    # No filter is sent, since it is not documented which ones the service understands.
    unreadable: list[str] = []
    now = clock()
    try:
        listed = hook.list_operations(page_size=LIST_PAGE_SIZE, on_unreadable=unreadable.append)
        operations = list({operation.name: operation for operation in listed}.values())
    except ServiceError as error:
        if error.rpc_code is not Code.UNIMPLEMENTED:
            raise
        raise AirflowFailException(
            f"{error}. A sweep needs operations.list: nothing else tells which operations run. Check the endpoint; "
            "if it is right, cancel by name. No cancellation was requested."
        ) from error

    def pause() -> None:
        left = orphaned_for
        while left > 0 and not hook.stopped():
            sleep(min(left, PAUSE))
            left -= PAUSE
        if reason := hook.stopped():
            raise AirflowException(f"No cancellation was requested: {reason}.")

    def poll(names: Collection[str]) -> dict[str, Operation]:
        with hook.workers(len(names), max_concurrency) as workers:
            # One that is not polled by then counts as running, and so does one whose poll fails.
            until = time.monotonic() + POLLING
            batches = workers.batches(names, lambda session, name: session.get_operation(name), until=until)
            return {one.name: one.result for batch in batches for one in batch if one.result and one.result.done}

    running = [one for one in operations if not selection.passes_over(one)]
    twice = f"Reading their states again in {orphaned_for:.0f} s." if not dry_run else ""
    judged: dict[str, Verdict] = {}
    if owners:
        judged, finished = _judge(owners, running, poll, twice, pause, log)
        operations = [finished.get(one.name, one) for one in operations]
    if owners and owners.unreadable:
        told, until = some_of(owners.unreadable), max(owners.unreadable.values())
        created = f" created until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M:%S} UTC" if until < inf else ""
        message = "%s. Any operation%s may belong to these tasks, so operations without an owner are left alone."
        log.warning(message, told, created)
        selection = replace(selection, unowned_until=until)
    report = SweepReport(operations, selection, now, judged, limit=limit, dry_run=dry_run)
    report.unreadable = len(unreadable)
    log.info("%s.", report.selected)
    if undated := report.passed_over[PassedOver.UNDATED]:
        log.warning("%d running operations have no create time; only include_undated=True selects them.", undated)
    for stray in report.found:
        log.info("Found %s.", stray)
    return report


def _judge(
    owners: Owners,
    running: list[Operation],
    poll: Callable[[Collection[str]], dict[str, Operation]],
    twice: str,
    pause: Callable[[], None],
    log: Any,
) -> tuple[dict[str, Verdict], dict[str, Operation]]:
    """Return the verdicts on running operations, whose owners are read twice for suspects; and what has finished since.

    :param poll: returns those of these operations that have finished.
    :param twice: the sentence on the second read, for the log; empty where there is none.
    """
    with _reading_owners():
        verdicts = owners.judge(running)
    suspects = {name: verdict for name, verdict in verdicts.items() if verdict.is_stray}
    finished = poll(suspects) if suspects else {}
    suspects = {name: verdict for name, verdict in suspects.items() if name not in finished}
    if suspects and twice:
        log.info("The owners of %d operations are over. %s", len(suspects), twice)
        pause()
        with _reading_owners():
            verdicts |= owners.confirm(suspects, running)
    return verdicts, finished


@contextmanager
def _reading_owners() -> Iterator[None]:
    try:
        yield
    except AirflowException:
        raise
    except Exception as error:
        raise unreadable_owners(error) from error


def unreadable_owners(error: Exception) -> AirflowException:
    """Return the error of a sweep that cannot read the owners."""
    message = f"Cannot read the owners of the operations: {describe_error(error)}"
    return AirflowException(sentences(message, "No cancellation was requested"))
