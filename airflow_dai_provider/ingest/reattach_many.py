"""Reattach to the ingests of a list that an earlier try has started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import ManyWait, some_of
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.ingest.outcome import may_start_again
from airflow_dai_provider.ingest.reattach import POLL_INTERVAL, SETTLE_SECONDS, TOLD, IngestStore, StartedIngest
from airflow_dai_provider.tasks.cancel_requests import request_cancellations
from airflow_dai_provider.tasks.events import describe_names
from airflow_dai_provider.tasks.failures import task_error

if TYPE_CHECKING:
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.ingest.guard import IngestGuard
    from airflow_dai_provider.transport.threads import Workers


def reattach_or_cancel_many(
    saved: Collection[StartedIngest],
    store: IngestStore,
    hook: DaiHook,
    workers: Workers[DaiHook],
    guard: IngestGuard,
    *,
    digests: Collection[str],
    retry_on: Collection[str],
    settle: bool,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    log: Any,
) -> tuple[dict[str, str], dict[str, Operation]]:
    """Decide for each ingest of an earlier try as :func:`airflow_dai_provider.ingest.reattach.reattach_or_cancel` does.

    :param guard: the guard of all of them; it learns which have finished.
    :param digests: of what this try would submit.
    :return: by digest, the operations that this try continues; and by name those of them that have finished, which
        are its results. The others certainly do not run.
    """
    by_name = {one.operation_name: one for one in saved}
    cleared = {name for name, one in by_name.items() if one.max_tries not in (None, store.max_tries)}
    many = _poll_each(hook, workers, guard, list(by_name))
    errors = {name: error for name, error in many.failed.items() if error.rpc_code is not Code.NOT_FOUND}
    running = [name for name in many.left if by_name[name].digest in digests]
    if others := [name for name in many.left if by_name[name].digest not in digests]:
        message = "%s still running; an earlier try started them, with other creatives. Cancelling them first."
        log.warning(message, describe_names(others))
        _, refused = request_cancellations(
            workers, others, retry_timeout=hook.retry_timeout, clock=clock, sleep=sleep, log=log
        )
        errors |= {name: error for name, error in refused.items() if error.rpc_code is not Code.NOT_FOUND}
    _check_refusals(errors, by_name, cleared, store, log)
    if settle and running:
        limits: dict[str, Any] = {"timeout": SETTLE_SECONDS, "poll_interval": POLL_INTERVAL, "responded": True}
        settling = ManyWait(running, hook.make_wait(describe_names(running), **limits))
        try:
            hook.wait_for_many(workers, settling)
        except WaitTimeoutError:
            log.info("%s.", settling.progress)
        many.finished |= settling.finished
        running = list(settling.left)
    results = {
        name: operation
        for name, operation in many.finished.items()
        if name not in cleared
        and by_name[name].digest in digests
        and operation.state is not OperationState.CANCELLED
        and not may_start_again(operation, retry_on)
    }
    usable = {by_name[name].digest: name for name in (*results, *running)}
    _tell(running, results, len(by_name), len(set(digests)) - len(usable), log)
    if cleared.intersection(running):
        kept = [replace(by_name[name], max_tries=store.max_tries, refused=False) for name in usable.values()]
        store.try_to_save(kept, log)
    return usable, results


def _poll_each(hook: DaiHook, workers: Workers[DaiHook], guard: IngestGuard, names: list[str]) -> ManyWait:
    """Poll each operation until the service has returned it; tolerate an outage as a wait does."""
    # The API has responded here before: to the try that has started them.
    many = ManyWait(names, hook.make_wait(describe_names(names), poll_interval=POLL_INTERVAL, responded=True))
    # Before the first poll: a refusal of one does not have the guard cancel what has finished.
    guard.finished = many.finished
    try:
        hook.poll_many(workers, many)
    except ServiceError as error:
        if error.rpc_code is not Code.UNIMPLEMENTED:
            raise
        # It holds for all of them.
        for name in list(many.left):
            many.fail(name, error)
    return many


def _check_refusals(
    errors: Mapping[str, ServiceError],
    by_name: Mapping[str, StartedIngest],
    cleared: Collection[str],
    store: IngestStore,
    log: Any,
) -> None:
    """Fail if the service refuses to return or cancel an ingest, unless the task was cleared after such a failure."""
    for error in errors.values():
        if error.rpc_code not in PERMANENT or error.rpc_code is Code.UNAUTHENTICATED:
            raise error
    told = [name for name in errors if not (name in cleared and by_name[name].refused)]
    if not told:
        if errors:
            message = "%s may still run. The task was cleared after it had reported this. Starting new ingests."
            log.warning(message, some_of(errors))
        return
    refused = [
        replace(one, max_tries=store.max_tries, refused=True) if name in errors else one
        for name, one in by_name.items()
    ]
    store.try_to_save(refused, log)
    error = errors[told[0]]
    raise task_error(error.rpc_code, str(error), TOLD.format(name=some_of(told))) from error


def _tell(running: Collection[str], results: Mapping[str, Operation], total: int, left: int, log: Any) -> None:
    states = Counter(operation.state.value.lower() for operation in results.values())
    parts = [f"{len(running):,} running", *(f"{count:,} {state}" for state, count in sorted(states.items()))]
    message = "Reattached to ingests of an earlier try, which started %s: %s. Starting %s."
    log.info(message, f"{total:,}", ", ".join(parts), f"{left:,}")
