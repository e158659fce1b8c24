"""Request the cancellation of one operation, or of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.retry import PERMANENT

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds between two rounds of attempts.
PAUSE = 1.0
#: The most requests under way at a time when a callback cancels many operations.
CALLBACK_CONCURRENCY = 16
_TIME_IS_UP = "the time was up before it could be cancelled"
#: What cancelling a finished operation can return, which is not documented.
_FINISHED = frozenset({Code.FAILED_PRECONDITION, Code.NOT_FOUND})


def request_cancellation(hook: DaiHook, name: str, log: Any) -> Operation | None:
    """Request the cancellation of an operation; where the service refuses, ask get what is true.

    :param log: says what was requested, or that there was nothing to cancel.
    :return: the operation when it had already finished and the service therefore refused; None when the service has
        accepted the request, which says nothing yet about the final state.
    :raises ServiceError: NOT_FOUND when the service does not know the operation; any other when it refuses although
        the operation runs, or fails.
    """
    try:
        hook.cancel_operation(name)
    except ServiceError as error:
        if error.rpc_code not in _FINISHED:
            raise
        operation = hook.get_operation(name)
        if not operation.done:
            # Never NOT_FOUND, which callers may take for an operation that does not run.
            raise ServiceError(f"{error} But {operation}.", Code.FAILED_PRECONDITION) from error
        log.info("%s: it had already finished, there is nothing to cancel.", operation)
        return operation
    log.info("Requested the cancellation of %s.", name)
    return None


def request_cancellations(
    hook: DaiHook,
    names: Sequence[str],
    *,
    timeout: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    log: Any,
) -> list[str]:
    """Request many cancellations in a bounded time: each once per round, until it is settled or the time is up.

    A permanent error settles an operation, as does a response that nothing runs.

    :param hook: whose connection is used; its session stands before the time starts to count.
    :param timeout: seconds for all rounds.
    :param clock: gives seconds.
    :param sleep: waits for seconds.
    :param log: says what was requested, and what has failed for now.
    :return: for each operation that may still run, a sentence that says why.
    """
    # Imported here, since DAG files are parsed often and few tasks cancel many operations.
    from airflow_dai_provider.transport.threads import Workers

    problems: dict[str, str] = {}
    left = dict.fromkeys(names, _TIME_IS_UP)
    deadline = clock() + timeout
    hooks = [hook.sibling() for _ in range(min(len(left), CALLBACK_CONCURRENCY))]
    with Workers(hooks, stopped=lambda: _TIME_IS_UP if clock() >= deadline else None) as workers:
        while left and clock() < deadline:
            for name, _, error in workers.call(left, lambda own, name: request_cancellation(own, name, log)):
                if error is None:
                    del left[name]
                elif error.rpc_code is Code.NOT_FOUND:
                    log.info("%s Nothing is left to cancel.", error)
                    del left[name]
                elif error.rpc_code in PERMANENT:
                    problems[name] = str(error)
                    del left[name]
                elif error.rpc_code is not Code.CANCELLED:
                    log.warning("%s", error)
                    left[name] = str(error)
            if left:
                sleep(PAUSE)
    return [f"{name} may still run: {reason}" for name, reason in (problems | left).items()]
