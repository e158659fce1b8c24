"""The requests of a sweep: cancel what was found, and wait until it has finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.polling import Wait, WaitTimeoutError
from airflow_dai_provider.metrics import count_finished
from airflow_dai_provider.sweep.report import Failure, SweepReport
from airflow_dai_provider.tasks.cancel_requests import request_cancellation

if TYPE_CHECKING:
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.transport.threads import Workers


def cancel_found(workers: Workers[DaiHook], report: SweepReport, retry_timeout: float, log: Any) -> None:
    """Request the cancellation of every operation that is left.

    :param retry_timeout: seconds after which one request is not retried again.
    """
    calls = workers.call(
        report.left, lambda hook, name: request_cancellation(hook, name, log), retry_timeout=retry_timeout
    )
    for name, finished, error in calls:
        if error:
            _note_failure(report, name, error, log)
        elif finished:
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
    running = False
    last_error: ServiceError | None = None
    # Not retried: the next round is the retry.
    for name, operation, error in workers.call(report.requested, lambda hook, name: hook.get_operation(name)):
        if error:
            _note_failure(report, name, error, log)
            last_error = error if name in report.requested else last_error
        elif operation:
            report.seen(name, operation)
            running = running or not operation.done
            if operation.done:
                count_finished(operation.state)
                log.info("%s.", operation)
    return None if running else last_error


def _note_failure(report: SweepReport, name: str, error: ServiceError, log: Any) -> None:
    reason = str(error).rstrip(".")
    log.warning("%s: %s", name, reason)
    report.failed(name, Failure(error.rpc_code, reason))
