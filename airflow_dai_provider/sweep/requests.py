"""The requests of a sweep: cancel what was found, and wait until it has finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.metrics import count_finished
from airflow_dai_provider.sweep.report import Failure, SweepReport
from airflow_dai_provider.tasks.cancel_requests import request_cancellations

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.transport.threads import Workers


def cancel_found(
    workers: Workers[DaiHook],
    report: SweepReport,
    retry_timeout: float,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    log: Any,
) -> None:
    """Request the cancellation of every operation that is left.

    :param retry_timeout: seconds after which one request is not retried again.
    """

    def settled(name: str, operation: Operation | None) -> None:
        if operation:
            count_finished(operation.state)
            report.seen(name, operation)
        else:
            report.request_accepted(name)

    _, errors = request_cancellations(
        workers,
        list(report.left),
        retry_timeout=retry_timeout,
        # At once, since an interruption from outside leaves the report as it is.
        on_settled=settled,
        clock=clock,
        sleep=sleep,
        log=log,
    )
    for name, error in errors.items():
        report.failed(name, _failure(error))


def wait_for_requested(
    hook: DaiHook,
    workers: Workers[DaiHook],
    report: SweepReport,
    on_finish: Callable[[Operation], None] = lambda _: None,
    **limits: Any,
) -> None:
    """Poll until every operation whose cancellation is requested has finished; what has not is left then.

    :param on_finish: called for each operation that has finished.
    :param limits: of the wait, see :meth:`DaiHook.make_wait`.
    """
    if not report.requested:
        return
    wait = hook.make_wait("the stray operations", responded=True, **limits)
    many = ManyWait(report.requested, wait, on_finish=on_finish)
    verdict: Exception | None = None
    try:
        hook.wait_for_many(workers, many)
    except (WaitTimeoutError, ServiceError) as error:
        verdict = error
    finally:
        # Also after an interruption from outside.
        for name, operation in (many.running | many.finished).items():
            report.seen(name, operation)
            if operation.done:
                count_finished(operation.state)
        for name, failing in many.errors.items():
            report.poll_failed(name, _failure(failing))
        for name, believed in many.failed.items():
            report.failed(name, _failure(believed))
    if isinstance(verdict, ServiceError) and not verdict.sent:
        for name in report.requested:
            report.poll_failed(name, _failure(verdict))
    if report.requested:
        report.leave_requested(f"the sweep has waited for {many.waited:.0f} s")


def _failure(error: ServiceError) -> Failure:
    return Failure(error.rpc_code, str(error).rstrip("."))
