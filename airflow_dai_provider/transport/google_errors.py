"""The errors that hooks raise: for each rpc code one class, which is ours and that of ``google.api_core``.

So users catch ``google.api_core.exceptions.NotFound``, and this package reads ``rpc_code`` of the same error.
"""

from __future__ import annotations

from google.api_core import exceptions

from airflow_dai_provider.api.errors import Code, ServiceError

_GOOGLE: dict[Code, type[exceptions.GoogleAPICallError]] = {
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

# No class sets ``code``: google-api-core would register it, for all users of the process.
_CLASSES: dict[Code, type[ServiceError]] = {
    code: type(google.__name__, (ServiceError, google), {"__module__": __name__, "rpc_code": code})
    for code, google in _GOOGLE.items()
}
# To pickle an error, its class is found in this module by name.
globals().update({kind.__name__: kind for kind in _CLASSES.values()})


def class_of(code: Code) -> type[ServiceError]:
    """Return the class of errors with this rpc code, which is also the class of ``google.api_core.exceptions``."""
    return _CLASSES[code]


def typed(error: ServiceError) -> ServiceError:
    """Return an error as the class of its rpc code, unless it has a class of Google's already."""
    if isinstance(error, exceptions.GoogleAPICallError):
        return error
    return class_of(error.rpc_code)(str(error), error.rpc_code, error.retry_after, error.sent, error.from_front_end)
