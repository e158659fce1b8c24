"""Asking the service to cancel one operation: what operators and notifiers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.operation import Operation


def request_cancellation(hook: DaiHook, name: str, log: Any) -> Operation | None:
    """
    Request the cancellation of an operation.

    What cancelling a finished operation answers is not documented: where the service refuses, get is asked.

    :param log: says what was requested, or that there was nothing to cancel.
    :return: the operation when it had already finished and the service therefore refused; None when the request
        was taken, which says nothing yet about the end.
    :raises google.api_core.exceptions.NotFound: when the service does not know the operation.
    :raises google.api_core.exceptions.GoogleAPICallError: when it refuses although the operation runs, or fails.
    """
    # Imported here, since DAG files are parsed often and this is heavy.
    from google.api_core.exceptions import FailedPrecondition, NotFound

    try:
        hook.cancel_operation(name)
    except (FailedPrecondition, NotFound) as error:
        operation = hook.get_operation(name)
        if not operation.done:
            # Never NotFound, which callers may take for an operation that does not run.
            raise FailedPrecondition(f"{error.message} But {operation}.") from error
        log.info("%s: it had already finished, there is nothing to cancel.", operation)
        return operation
    log.info("Requested the cancellation of %s.", name)
    return None
