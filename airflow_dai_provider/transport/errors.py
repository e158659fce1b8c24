"""Which class of ``google.api_core.exceptions`` an error of the service is raised as: the one of its rpc code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from google.api_core import exceptions

from airflow_dai_provider.api.errors import Code, ServiceError

_EXCEPTIONS: dict[Code, type[exceptions.GoogleAPICallError]] = {
    Code.CANCELLED: exceptions.Cancelled,
    Code.UNKNOWN: exceptions.Unknown,
    Code.INVALID_ARGUMENT: exceptions.InvalidArgument,
    Code.DEADLINE_EXCEEDED: exceptions.DeadlineExceeded,
    Code.NOT_FOUND: exceptions.NotFound,
    Code.ALREADY_EXISTS: exceptions.AlreadyExists,
    Code.PERMISSION_DENIED: exceptions.PermissionDenied,
    Code.RESOURCE_EXHAUSTED: exceptions.ResourceExhausted,
    Code.FAILED_PRECONDITION: exceptions.FailedPrecondition,
    Code.ABORTED: exceptions.Aborted,
    Code.OUT_OF_RANGE: exceptions.OutOfRange,
    Code.UNIMPLEMENTED: exceptions.MethodNotImplemented,
    Code.INTERNAL: exceptions.InternalServerError,
    Code.UNAVAILABLE: exceptions.ServiceUnavailable,
    Code.DATA_LOSS: exceptions.DataLoss,
    Code.UNAUTHENTICATED: exceptions.Unauthenticated,
}


@contextmanager
def api_error() -> Iterator[None]:
    """Raise a ServiceError as the class that belongs to its code."""
    try:
        yield
    except ServiceError as error:
        raise _EXCEPTIONS[error.code](str(error)) from error
