"""Request the cancellation of one operation, or of many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import MAX_LISTED
from airflow_dai_provider.api.polling import NOT_FOUND_GRACE, WaitTimeoutError
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.tasks.failures import sentences
from airflow_dai_provider.tasks.rounds import PAUSE, in_order, request_in_rounds

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.transport.threads import Workers

#: The reason why a killed task sends no request.
KILLED = "the task was killed before this was attempted"
#: The reason why a callback whose time is up sends no request.
TIME_IS_UP = "the time was up before it could be cancelled"
#: After these errors get is not tried: they say nothing about this operation, and get would be refused as well.
_REFUSED_ACCESS = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED})
#: Refusals that a running operation contradicts: they say that there is nothing to cancel.
_SAYS_FINISHED = frozenset({Code.FAILED_PRECONDITION, Code.NOT_FOUND})
#: Refusals that can say the same. When they last although it runs, they are refusals of this request.
_MAY_SAY_FINISHED = PERMANENT - _REFUSED_ACCESS
#: Seconds to poll after each such refusal, if get shows the operation running: get can be behind, or cancel wrong.
_CATCH_UP = (PAUSE, NOT_FOUND_GRACE - PAUSE)
_WAITS = "%s Waiting until operations.get shows that it has finished."


def request_cancellation(hook: DaiHook, name: str, log: Any = None, *, waits: bool = False) -> Operation | None:
    """Request the cancellation of an operation; after an error, get decides.

    It is not documented how the service responds to the cancellation of a finished operation, nor what it has done
    after several failed attempts. So get decides after every error, except a lack of access and a request that
    did not reach the service.

    :param log: says what was requested, or that there was nothing to cancel; nothing is said without it.
    :param waits: whether the caller polls until the operation has finished. If cancel reports it as finished and get as
        running, that is then a warning in the log instead of an error.
    :return: the operation when it had already finished and the service therefore refused, with ``waits`` also when get
        still shows it running; None when the service has accepted the request, which says nothing yet about the final
        state.
    :raises ServiceError: NOT_FOUND when the service does not know the operation; a transient code when cancel and get
        contradict each other; any other when it refuses although the operation runs, or fails.
    """
    error = _cancel(hook, name)
    operation = _after_refusal(error, hook, name, patient=True) if error else None
    for seconds in _CATCH_UP:
        if operation is None or operation.done:
            break
        error = _cancel(hook, name)
        operation = _poll_on(hook, operation, seconds) if error else None
    if error and operation and not operation.done:
        if error.rpc_code not in _SAYS_FINISHED:
            raise error
        if not waits:
            raise _contradiction(error, operation)
        if log:
            log.warning(_WAITS, sentences(error, f"But {operation}"))
        return operation
    if log:
        log.info("%s", _done(name, operation))
    return operation


def _after_refusal(error: ServiceError, hook: DaiHook, name: str, *, patient: bool) -> Operation:
    """Let get decide what the failed request of a cancellation means; as :func:`request_cancellation`.

    :param patient: whether to wait until NOT_FOUND can be believed; callers that come back soon do without it.
    :return: the operation; it runs where cancel and get contradict each other.
    """
    if error.rpc_code in _REFUSED_ACCESS or not error.sent or hook.stopped():
        raise error
    operation = _poll_after(error, hook, name, patient=patient)
    if not operation.done and error.rpc_code not in _MAY_SAY_FINISHED:
        raise error
    return operation


def _contradiction(error: ServiceError, operation: Operation) -> ServiceError:
    """Return the error for an operation that get shows as running and that cancel refuses to cancel.

    It is never NOT_FOUND, which to a caller may mean that the operation does not run. It is transient, since both may
    soon agree.
    """
    return _with_code(Code.ABORTED, sentences(error, f"But {operation}"))


def _poll_on(hook: DaiHook, operation: Operation, seconds: float) -> Operation:
    """Poll an operation until it has finished, for some seconds; return what was seen last."""
    try:
        return hook.wait_for_operation(operation.name, timeout=seconds, poll_interval=seconds)
    except WaitTimeoutError:
        return operation


def _cancel(hook: DaiHook, name: str) -> ServiceError | None:
    """Send the request; return its error, if it fails."""
    try:
        hook.cancel_operation(name)
    except ServiceError as error:
        return error
    return None


def _poll_after(refusal: ServiceError, hook: DaiHook, name: str, *, patient: bool) -> Operation:
    """Poll an operation whose cancellation has failed.

    :raises ServiceError: when the poll fails too; transient if either error is.
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
    workers: Workers[DaiHook],
    names: Collection[str],
    *,
    timeout: float | None = None,
    retry_timeout: float = 0.0,
    unimplemented_ends: bool = False,
    waits: bool = False,
    on_settled: Callable[[str, Operation | None], None] | None = None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    log: Any,
) -> tuple[dict[str, Operation], dict[str, ServiceError]]:
    """Request many cancellations, as :func:`request_in_rounds` does; after an error, get decides.

    :param timeout: seconds for all rounds, or None.
    :param retry_timeout: seconds after which one request is not retried again within a round.
    :param unimplemented_ends: whether UNIMPLEMENTED of the cancellation is raised at once, since it holds for all.
    :param waits: whether the caller polls until they have finished; those that cancel reports as finished and get as
        running then have no error.
    :param on_settled: called for each operation whose cancellation the service has accepted, or which had finished;
        with ``waits`` also for those that run in contradiction to cancel.
    :param clock: returns monotonic time in seconds.
    :param sleep: waits for seconds.
    :param log: says what was requested, and the first error of each rpc code.
    :return: the operations that had already finished, and the last error of each that may still run; with NOT_FOUND,
        the service does not know it.
    """
    total, requested = len(set(names)), 0
    finished: dict[str, Operation] = {}
    contradicted: dict[str, tuple[ServiceError, Operation]] = {}
    unimplemented: list[ServiceError] = []

    def request(hook: DaiHook, name: str) -> Operation | None:
        error = _cancel(hook, name)
        if error and error.rpc_code is Code.UNIMPLEMENTED and unimplemented_ends:
            unimplemented.append(error)
        if error is None:
            return None
        operation = _after_refusal(error, hook, name, patient=False)
        if not operation.done:
            contradicted[name] = error, operation
            raise _contradiction(error, operation)
        return operation

    def note(name: str, operation: Operation | None) -> None:
        nonlocal requested
        requested += operation is None
        if operation:
            finished[name] = operation
        if on_settled:
            on_settled(name, operation)
        if total <= MAX_LISTED:
            log.info("%s", _done(name, operation))

    _, errors = request_in_rounds(
        workers,
        names,
        request,
        timeout=timeout,
        retry_timeout=retry_timeout,
        # Most that are unknown were started just now.
        rechecks=(PAUSE, NOT_FOUND_GRACE),
        # Not the error of the get after a refusal: others can be cancelled without get.
        is_fatal=lambda error: error in unimplemented,
        on_done=note,
        clock=clock,
        sleep=sleep,
        log=log,
    )
    for error in errors.values():
        if error in unimplemented:
            raise error
    for name, (refusal, operation) in contradicted.items():
        if name not in errors or errors[name].rpc_code is not Code.ABORTED:
            continue
        if refusal.rpc_code not in _SAYS_FINISHED:
            errors[name] = refusal
        elif waits:
            log.warning(_WAITS, sentences(errors.pop(name)))
            if on_settled:
                on_settled(name, operation)
    if total > MAX_LISTED:
        message = "Requested the cancellation of %s of %s operations; %s had already finished, %s failed."
        log.info(message, *(f"{number:,}" for number in (requested, total, len(finished), len(errors))))
    return in_order(names, finished), errors


def problems_of(errors: Mapping[str, ServiceError], log: Any) -> list[str]:
    """Return a sentence for each operation that may still run; what the service does not know is logged instead."""
    problems = []
    for name, error in errors.items():
        if error.rpc_code is Code.NOT_FOUND:
            log.warning("%s Nothing is left to cancel, unless %s was started just now.", sentences(error), name)
        else:
            problems.append(f"{name} may still run: {error}")
    return problems


def _done(name: str, operation: Operation | None) -> str:
    if operation is None:
        return f"Requested the cancellation of {name}."
    return f"{operation}: it had already finished, there is nothing to cancel."
