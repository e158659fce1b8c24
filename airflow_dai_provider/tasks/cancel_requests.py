"""Request the cancellation of one operation, or of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.polling import NOT_FOUND_GRACE
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.tasks.failures import sentences

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook

#: The reason why a killed task sends no request.
KILLED = "the task was killed before this was attempted"
#: Seconds between two rounds of attempts.
PAUSE = 1.0
#: The most requests under way at a time when a callback cancels many operations.
CALLBACK_CONCURRENCY = 64
_TIME_IS_UP = "the time was up before it could be cancelled"
#: After these get is not asked: they say nothing about this operation, and get would be refused as well.
_REFUSED_ACCESS = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED})
#: Refusals that a running operation contradicts: they say that there is nothing to cancel.
_SAYS_FINISHED = frozenset({Code.FAILED_PRECONDITION, Code.NOT_FOUND})


def request_cancellation(hook: DaiHook, name: str, log: Any, *, patient: bool = True) -> Operation | None:
    """Request the cancellation of an operation; after an error, get decides.

    It is not documented how the service responds to the cancellation of a finished operation, nor what it has done
    after several failed attempts. So get decides after every error but one of access, and one of a request that did
    not reach the service.

    :param log: says what was requested, or that there was nothing to cancel.
    :param patient: whether to wait until NOT_FOUND can be believed; callers that come back soon do without it.
    :return: the operation when it had already finished and the service therefore refused; None when the service has
        accepted the request, which says nothing yet about the final state.
    :raises ServiceError: NOT_FOUND when the service does not know the operation; a transient code when cancel and get
        contradict each other; any other when it refuses although the operation runs, or fails.
    """
    error = _cancel(hook, name)
    if error:
        if error.rpc_code in _REFUSED_ACCESS or not error.sent or hook.stopped():
            raise error
        operation = _poll_after(error, hook, name, patient=patient)
        if operation.done:
            log.info("%s: it had already finished, there is nothing to cancel.", operation)
            return operation
        if error.rpc_code not in _SAYS_FINISHED:
            raise error
        if patient and error.rpc_code is Code.NOT_FOUND:
            # The service can have known it for a moment only.
            error = _cancel(hook, name)
        if error:
            # Never NOT_FOUND, which callers may take for an operation that does not run. And worth a retry: soon both
            # may see the same.
            raise _with_code(Code.ABORTED, sentences(error, f"But {operation}")) from None
    log.info("Requested the cancellation of %s.", name)
    return None


def _cancel(hook: DaiHook, name: str) -> ServiceError | None:
    """Send the request; return its error, if it fails."""
    try:
        hook.cancel_operation(name)
    except ServiceError as error:
        return error
    return None


def _poll_after(refusal: ServiceError, hook: DaiHook, name: str, *, patient: bool) -> Operation:
    """Poll an operation whose cancellation has failed.

    :raises ServiceError: when the poll fails too: transient when one of both is.
    """
    permanent = refusal.rpc_code in PERMANENT
    try:
        if permanent and patient:
            return hook.poll(hook.make_wait(name))
        # Where the error is transient, the retries are used up.
        return hook.get_operation(name, retry=permanent)
    except ServiceError as error:
        if not permanent:
            raise _with_code(refusal.rpc_code, sentences(refusal, error)) from None
        if error.rpc_code is refusal.rpc_code:
            raise
        # Get decides, also with NOT_FOUND: a finished operation can have expired.
        raise _with_code(error.rpc_code, sentences(error, refusal)) from None


def _with_code(rpc_code: Code, message: str) -> ServiceError:
    """Return an error whose message has all that is to be said, so that it needs no cause."""
    # Imported here, since DAG files are parsed often and few tasks meet an error.
    from airflow_dai_provider.transport.google_errors import typed

    return typed(ServiceError(message, rpc_code))


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

    A permanent error settles an operation, as does a response that it has finished. One that the service does not know
    is tried for a while, since it can have been started just now.

    :param hook: whose connection is used; its session stands before the time starts to count.
    :param timeout: seconds for all rounds.
    :param clock: gives seconds.
    :param sleep: waits for seconds.
    :param log: says what was requested, and what has failed for now.
    :return: for each operation that may still run, a sentence that says why.
    """
    # Imported here, since DAG files are parsed often and few tasks cancel many operations.
    from airflow_dai_provider.transport.threads import Workers

    began = clock()
    # By name: the last error of each operation that may still run.
    errors = dict.fromkeys(names, ServiceError(_TIME_IS_UP, Code.CANCELLED, sent=False))
    left = list(errors)
    hooks = [hook.sibling() for _ in range(min(len(left), CALLBACK_CONCURRENCY))]
    with Workers(hooks, stopped=lambda: _TIME_IS_UP if clock() >= began + timeout else None) as workers:
        while left and clock() < began + timeout:
            for name, _, error in workers.call(
                left, lambda own, name: request_cancellation(own, name, log, patient=False)
            ):
                if error is None:
                    del errors[name]
                elif error.sent or error.rpc_code is not Code.CANCELLED:
                    errors[name] = error
                    if error.rpc_code not in PERMANENT:
                        log.warning("%s", error)
            within_grace = clock() < began + NOT_FOUND_GRACE
            left = [name for name, error in errors.items() if _try_again(error, within_grace=within_grace)]
            if left:
                sleep(PAUSE)
    unknown = {name: error for name, error in errors.items() if error.rpc_code is Code.NOT_FOUND}
    for name, error in unknown.items():
        log.warning("%s Nothing is left to cancel, unless %s was started just now.", sentences(error), name)
    return [f"{name} may still run: {error}" for name, error in errors.items() if name not in unknown]


def _try_again(error: ServiceError, *, within_grace: bool) -> bool:
    """Return whether the next round tries an operation again after this error."""
    return within_grace if error.rpc_code is Code.NOT_FOUND else error.rpc_code not in PERMANENT
