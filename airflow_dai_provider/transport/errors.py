"""The errors that hooks raise: for each rpc code one class, which is ours and that of ``google.api_core``.

So users catch ``google.api_core.exceptions.NotFound``, and this package reads ``rpc_code`` of the same error. No class
sets ``code``: google-api-core would register it in place of its own.
"""

from __future__ import annotations

from google.api_core import exceptions

from airflow_dai_provider.api.errors import Code, ServiceError


class Cancelled(ServiceError, exceptions.Cancelled):
    rpc_code = Code.CANCELLED


class Unknown(ServiceError, exceptions.Unknown):
    rpc_code = Code.UNKNOWN


class InvalidArgument(ServiceError, exceptions.InvalidArgument):
    rpc_code = Code.INVALID_ARGUMENT


class DeadlineExceeded(ServiceError, exceptions.DeadlineExceeded):
    rpc_code = Code.DEADLINE_EXCEEDED


class NotFound(ServiceError, exceptions.NotFound):
    rpc_code = Code.NOT_FOUND


class AlreadyExists(ServiceError, exceptions.AlreadyExists):
    rpc_code = Code.ALREADY_EXISTS


class PermissionDenied(ServiceError, exceptions.PermissionDenied):
    rpc_code = Code.PERMISSION_DENIED


class ResourceExhausted(ServiceError, exceptions.ResourceExhausted):
    rpc_code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(ServiceError, exceptions.FailedPrecondition):
    rpc_code = Code.FAILED_PRECONDITION


class Aborted(ServiceError, exceptions.Aborted):
    rpc_code = Code.ABORTED


class OutOfRange(ServiceError, exceptions.OutOfRange):
    rpc_code = Code.OUT_OF_RANGE


class Unimplemented(ServiceError, exceptions.MethodNotImplemented):
    rpc_code = Code.UNIMPLEMENTED


class Internal(ServiceError, exceptions.InternalServerError):
    rpc_code = Code.INTERNAL


class Unavailable(ServiceError, exceptions.ServiceUnavailable):
    rpc_code = Code.UNAVAILABLE


class DataLoss(ServiceError, exceptions.DataLoss):
    rpc_code = Code.DATA_LOSS


class Unauthenticated(ServiceError, exceptions.Unauthenticated):
    rpc_code = Code.UNAUTHENTICATED


_CLASSES = {
    kind.rpc_code: kind
    for kind in (
        *(Cancelled, Unknown, InvalidArgument, DeadlineExceeded, NotFound, AlreadyExists, PermissionDenied),
        *(ResourceExhausted, FailedPrecondition, Aborted, OutOfRange, Unimplemented, Internal, Unavailable),
        *(DataLoss, Unauthenticated),
    )
}


def typed(error: ServiceError) -> ServiceError:
    """Return an error as the class of its rpc code; transports raise no other."""
    return _CLASSES[error.rpc_code](str(error), error.rpc_code, error.retry_after, error.sent)
