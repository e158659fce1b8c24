"""
Asking the service to cancel one operation: what operators and notifiers share.

The rules are written once, as coroutines: an event loop runs them on an asynchronous hook, and :func:`run_at_once` runs
them on a synchronous one, where nothing in them waits.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook

T = TypeVar("T")


class Service(Protocol):
    """What a cancellation needs of the service: ``DaiAsyncHook`` as it is, ``DaiHook`` as :class:`AtOnce`."""

    async def cancel_operation(self, name: str) -> None:
        """Ask the service to cancel an operation."""

    async def get_operation(self, name: str) -> Operation:
        """Return the latest state of an operation."""


class AtOnce:
    """
    A synchronous hook as a :class:`Service` whose coroutines never wait.

    :param hook: the hook, which does the work.
    """

    def __init__(self, hook: DaiHook) -> None:
        self._hook = hook

    async def cancel_operation(self, name: str) -> None:
        """Ask the service to cancel an operation."""
        self._hook.cancel_operation(name)

    async def get_operation(self, name: str) -> Operation:
        """Return the latest state of an operation."""
        return self._hook.get_operation(name)


def run_at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """
    Run a coroutine in which nothing waits, without an event loop.

    :raises RuntimeError: when it waits after all.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine} waits, so it needs an event loop.")


def request_cancellation(hook: DaiHook, name: str, log: Any) -> Operation | None:
    """Request the cancellation of an operation, as :func:`async_request_cancellation` does, on a synchronous hook."""
    return run_at_once(async_request_cancellation(AtOnce(hook), name, log))


async def async_request_cancellation(service: Service, name: str, log: Any) -> Operation | None:
    """
    Request the cancellation of an operation.

    What cancelling a finished operation answers is not documented: where the service refuses, get is asked.

    :param log: says what was requested, or that there was nothing to cancel.
    :return: the operation when it had already finished and the service therefore refused; None when the request
        was taken, which says nothing yet about the end.
    :raises google.api_core.exceptions.NotFound: when the service does not know the operation.
    :raises google.api_core.exceptions.GoogleAPICallError: when it refuses although the operation runs, or fails.
    """
    # Imported here, since DAG files are parsed often and this is heavy; whoever has made the hook has loaded it.
    from google.api_core.exceptions import FailedPrecondition, NotFound

    try:
        await service.cancel_operation(name)
    except (FailedPrecondition, NotFound) as error:
        operation = await service.get_operation(name)
        if not operation.done:
            # Never NotFound, which callers may take for an operation that does not run.
            raise FailedPrecondition(f"{error.message} But {operation}.") from error
        log.info("%s: it had already finished, there is nothing to cancel.", operation)
        return operation
    log.info("Requested the cancellation of %s.", name)
    return None
