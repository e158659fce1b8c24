"""Errors of the service, and their rpc codes. Pure.

Source: ``google/rpc/code.proto``.
"""

from __future__ import annotations

from enum import StrEnum

from airflow_dai_provider.api.storable import MAX_MESSAGE, storable_text


class Code(StrEnum):
    """The names of ``google.rpc.Code`` that an error can carry, in the order of their numbers, from 1."""

    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"


_CODE_BY_HTTP_STATUS = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ABORTED,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


#: The codes that share the HTTP status of another.
_SHARED_HTTP_STATUS = {
    Code.UNKNOWN: 500,
    Code.ALREADY_EXISTS: 409,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.DATA_LOSS: 500,
}


class ServiceError(Exception):
    """A request that did not get the response it asked for.

    The hooks raise a subclass for each rpc code, which is also the class of ``google.api_core.exceptions``: see
    :mod:`airflow_dai_provider.transport.google_errors`. Code that decides reads ``rpc_code`` and never the class, since
    three codes share ``BadRequest``.

    The parameters are positional, and only the message is required, so that an error can be pickled.

    :param message: the request and its response; holds no secret. Characters that Airflow cannot store are replaced,
        since it goes into trigger events and reports.
    :param rpc_code: the rpc code; by default that of the class.
    :param retry_after: seconds that the server asked to wait, or None.
    :param sent: False when the request certainly did not reach the service.
    :param from_front_end: True when a front end or a proxy responded in place of the API: without its JSON error, or
        with a certificate that is not trusted. Also True when a local file that the request needs (credentials or
        certificate authorities) cannot be read. Before the API has responded, this indicates a wrong configuration;
        afterwards, an outage.
    """

    rpc_code = Code.UNKNOWN

    def __init__(
        self,
        message: str,
        rpc_code: Code | None = None,
        retry_after: float | None = None,
        sent: bool = True,
        from_front_end: bool = False,
    ) -> None:
        super().__init__(storable_text(message, MAX_MESSAGE))
        self.rpc_code = rpc_code or self.rpc_code
        self.retry_after = retry_after
        self.sent = sent
        self.from_front_end = from_front_end

    def __str__(self) -> str:
        # Google's classes put an HTTP status in front, also where no server has responded.
        return str(self.args[0])


def code_of_number(number: int) -> Code:
    """Return the rpc code that a number stands for: that of ``google.rpc.Code``, or an HTTP status."""
    return list(Code)[number - 1] if 1 <= number <= len(Code) else code_of_http_status(number)


def code_of_http_status(status: int) -> Code:
    """Return the rpc code that an HTTP status stands for where the response names none."""
    fallback = Code.FAILED_PRECONDITION if 400 <= status < 500 else Code.INTERNAL if status >= 500 else Code.UNKNOWN
    return _CODE_BY_HTTP_STATUS.get(status, fallback)


def http_statuses(code: Code) -> set[int]:
    """Return the HTTP statuses under which an error of this code comes."""
    statuses = {status for status, usual in _CODE_BY_HTTP_STATUS.items() if usual is code}
    return statuses | {_SHARED_HTTP_STATUS[code]} if code in _SHARED_HTTP_STATUS else statuses
