"""The table of rpc codes, independent of the one in the client."""

from __future__ import annotations

from typing import NamedTuple

from google.api_core import exceptions


class RpcCode(NamedTuple):
    """What comes with a code: its number, the HTTP status, and Google's class of its errors."""

    number: int
    http_status: int
    error: type[exceptions.GoogleAPICallError]


RPC_CODES = {
    "CANCELLED": RpcCode(1, 499, exceptions.Cancelled),
    "UNKNOWN": RpcCode(2, 500, exceptions.Unknown),
    "INVALID_ARGUMENT": RpcCode(3, 400, exceptions.InvalidArgument),
    "DEADLINE_EXCEEDED": RpcCode(4, 504, exceptions.DeadlineExceeded),
    "NOT_FOUND": RpcCode(5, 404, exceptions.NotFound),
    "ALREADY_EXISTS": RpcCode(6, 409, exceptions.AlreadyExists),
    "PERMISSION_DENIED": RpcCode(7, 403, exceptions.PermissionDenied),
    "RESOURCE_EXHAUSTED": RpcCode(8, 429, exceptions.ResourceExhausted),
    "FAILED_PRECONDITION": RpcCode(9, 400, exceptions.FailedPrecondition),
    "ABORTED": RpcCode(10, 409, exceptions.Aborted),
    "OUT_OF_RANGE": RpcCode(11, 400, exceptions.OutOfRange),
    "UNIMPLEMENTED": RpcCode(12, 501, exceptions.MethodNotImplemented),
    "INTERNAL": RpcCode(13, 500, exceptions.InternalServerError),
    "UNAVAILABLE": RpcCode(14, 503, exceptions.ServiceUnavailable),
    "DATA_LOSS": RpcCode(15, 500, exceptions.DataLoss),
    "UNAUTHENTICATED": RpcCode(16, 401, exceptions.Unauthenticated),
}
