"""The requests of a sweep: cancel what was found, and wait until it has finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.polling import Wait, WaitTimeoutError
from airflow_dai_provider.metrics import count_finished
from airflow_dai_provider.sweep.report import Failure, SweepReport
from airflow_dai_provider.tasks.cancellation import request_cancellation

if TYPE_CHECKING:
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.transport.workers import Workers

_KILLED = Failure(Code.CANCELLED, "the task was killed before this was attempted")


def cancel_found(workers: Workers[DaiHook], report: SweepReport, retry_timeout: float, log: Any) -> None:
    """Request the cancellation of every operation that is left.

    :param retry_timeout: seconds after which one request is not retried again.
    """
    results, failures = workers.call(
        list(report.left), lambda hook, name: request_cancellation(hook, name, log), retry_timeout=retry_timeout
    )
    for name in list(report.left):
        if name in failures:
            _note_failure(report, name, failures[name], log)
        elif name not in results:
            report.failed(name, _KILLED)
        elif finished := results[name]:
            count_finished(finished.state)
            report.seen(name, finished)
        else:
            report.request_accepted(name)


def wait_for_requested(
    workers: Workers[DaiHook],
    report: SweepReport,
    wait: Wait,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    log: Any,
) -> None:
    """Poll in rounds until every operation whose cancellation is requested has finished; what has not is left then.

    :param wait: one for all of them: the service counts as unavailable when no poll of a round succeeds.
    """
    while report.requested:
        error = _poll_requested(workers, report, log)
        if not report.requested:
            break
        now = clock()
        try:
            if error:
                seconds, line = wait.after_error(error, now)
            else:
                seconds, line = wait.after_poll(f"{len(report.requested)} operations have not finished yet", now)
        except (WaitTimeoutError, ServiceError):
            report.leave_requested(f"the sweep has waited for {now - wait.started:.0f} s")
            break
        log.info("%s", line)
        sleep(seconds)


def _poll_requested(workers: Workers[DaiHook], report: SweepReport, log: Any) -> ServiceError | None:
    """Poll every requested operation once; return an error when none of them was seen to run."""
    names = list(report.requested)
    # Not retried: the next round is the retry.
    results, failures = workers.call(names, lambda hook, name: hook.get_operation(name))
    for name in names:
        if name in failures:
            _note_failure(report, name, failures[name], log)
        elif name not in results:
            report.failed(name, _KILLED)
        else:
            report.seen(name, results[name])
            if results[name].done:
                count_finished(results[name].state)
                log.info("%s.", results[name])
    running = any(not operation.done for operation in results.values())
    errors = [error for name, error in failures.items() if name in report.requested]
    return errors[-1] if errors and not running else None


def _note_failure(report: SweepReport, name: str, error: ServiceError, log: Any) -> None:
    reason = str(error).rstrip(".")
    log.warning("%s: %s", name, reason)
    report.failed(name, Failure(error.rpc_code, reason))
