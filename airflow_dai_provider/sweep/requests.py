"""The requests of a sweep: cancel what was found, and wait until it has finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code, ServiceError
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
        report.left,
        lambda hook, name: request_cancellation(hook, name, log, patient=False),
        retry_timeout=retry_timeout,
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

    An error of one operation is believed if a wait for that one alone would believe it.

    :param wait: one for all of them: the service counts as unavailable when no poll of a round succeeds.
    """
    failing: dict[str, Wait] = {}
    while report.requested:
        error, soonest = _poll_requested(workers, report, wait, failing, clock, log)
        if not report.requested:
            break
        now = clock()
        try:
            if error:
                seconds, line = wait.after_error(error, now)
            else:
                if recovered := wait.after_response(now):
                    log.info("%s.", recovered)
                unpolled = f", {len(failing)} of them could not be polled" if failing else ""
                found = f"{len(report.requested)} operations have not finished yet{unpolled}"
                seconds, line = wait.after_poll(found, now)
        except (WaitTimeoutError, ServiceError):
            report.leave_requested(f"the sweep has waited for {now - wait.started:.0f} s")
            break
        if line:
            log.info("%s", line)
        sleep(min(seconds, soonest))


def _poll_requested(
    workers: Workers[DaiHook],
    report: SweepReport,
    wait: Wait,
    failing: dict[str, Wait],
    clock: Callable[[], float],
    log: Any,
) -> tuple[ServiceError | None, float]:
    """Poll every requested operation once.

    :param failing: by name, the waits of those whose last poll failed.
    :return: an error when the service has responded for none of them, and the seconds until the first of those that
        failed is to be polled again.
    """
    responded = False
    last_error: ServiceError | None = None
    soonest = float("inf")
    # Not retried: the next round is the retry.
    for name, operation, error in workers.call(report.requested, lambda hook, name: hook.get_operation(name)):
        if operation:
            failing.pop(name, None)
            responded = True
            report.seen(name, operation)
            if operation.done:
                count_finished(operation.state)
                log.info("%s.", operation)
        elif error:
            own = failing.get(name) or Wait(
                name, started=wait.started, poll_interval=wait.poll_interval, responded=True, jitter=wait.jitter
            )
            failing[name] = own
            responded = responded or error.rpc_code is Code.NOT_FOUND
            try:
                seconds, _ = own.after_error(error, clock())
            except ServiceError as verdict:
                del failing[name]
                _note_failure(report, name, verdict, log)
            else:
                soonest = min(soonest, seconds)
                report.poll_failed(name, _failure(error))
            last_error = error if name in report.requested else last_error
    return None if responded else last_error, soonest


def _note_failure(report: SweepReport, name: str, error: ServiceError, log: Any) -> None:
    failure = _failure(error)
    log.warning("%s: %s", name, failure.reason)
    report.failed(name, failure)


def _failure(error: ServiceError) -> Failure:
    return Failure(error.rpc_code, str(error).rstrip("."))
