"""The error vocabulary of Google's APIs, and the two kinds of error that the emulator raises itself."""

from collections.abc import Mapping, Sequence

RPC_NUMBERS = {
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}
"""The number of each rpc code (google/rpc/code.proto), as ``Operation.error.code`` holds it."""

HTTP_STATUSES = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
"""The HTTP status with which each rpc code is answered."""

RPC_STATUS_OF_HTTP = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""The rpc code to expect behind an HTTP status; where several share one, the usual."""


class ApiError(Exception):
    """An error that the service answers as JSON.

    :param rpc_status: name of the rpc code, such as ``NOT_FOUND``.
    :param message: what a developer reads.
    :param details: the objects of ``error.details``.
    :param headers: headers of the answer, beside the content type.
    """

    def __init__(
        self,
        rpc_status: str,
        message: str,
        details: Sequence[Mapping[str, object]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the parts for the answer."""
        super().__init__(message)
        self.rpc_status = rpc_status
        self.message = message
        self.details = details
        self.headers = headers or {}


def wrong_value(field: str, given: object, expected: str) -> ValueError:
    """Build the error for a value that cannot be used, saying what was given and what was expected.

    :param field: name of the parameter or field.
    :param given: the value.
    :param expected: what would have been right.
    :return: the error, to be raised.
    """
    return ValueError(f"{field}: got {given!r}, expected {expected}")
