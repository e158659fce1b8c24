"""The error codes of Google's APIs, and the errors that the emulator raises: ``field: got ..., expected ...``."""

import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

from pydantic import Field, ValidationError

# Name: (number in google/rpc/code.proto, HTTP status).
_CODES = {
    "CANCELLED": (1, 499),
    "UNKNOWN": (2, 500),
    "INVALID_ARGUMENT": (3, 400),
    "DEADLINE_EXCEEDED": (4, 504),
    "NOT_FOUND": (5, 404),
    "ALREADY_EXISTS": (6, 409),
    "PERMISSION_DENIED": (7, 403),
    "RESOURCE_EXHAUSTED": (8, 429),
    "FAILED_PRECONDITION": (9, 400),
    "ABORTED": (10, 409),
    "OUT_OF_RANGE": (11, 400),
    "UNIMPLEMENTED": (12, 501),
    "INTERNAL": (13, 500),
    "UNAVAILABLE": (14, 503),
    "DATA_LOSS": (15, 500),
    "UNAUTHENTICATED": (16, 401),
}
RPC_NUMBERS = {name: number for name, (number, _) in _CODES.items()}
"""The number of each rpc code, as ``Operation.error.code`` holds it."""
HTTP_STATUSES = {name: status for name, (_, status) in _CODES.items()}
"""The HTTP status of each rpc code."""
RPC_STATUS_OF_HTTP = {
    **{status: name for name, status in HTTP_STATUSES.items()},
    **{400: "INVALID_ARGUMENT", 409: "ABORTED", 500: "INTERNAL"},  # several codes share these: the usual one
}
"""The rpc code to expect behind an HTTP status."""

_Model = TypeVar("_Model", bound=type)


class ApiError(Exception):
    """An error that the service sends as JSON.

    :param rpc_status: name of the rpc code, such as ``NOT_FOUND``.
    :param message: a message for developers.
    :param details: the objects of ``error.details``.
    :param reason: ``reason`` of the single entry of ``error.errors``, the older form of details; None for no entry.
    :param headers: headers of the response, beside the content type.
    :param status: HTTP status, where it is not the one of the rpc code.
    """

    def __init__(
        self,
        rpc_status: str,
        message: str,
        details: Sequence[object] = (),
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.rpc_status = rpc_status
        self.message = message
        self.details = details
        self.reason = reason
        self.headers = headers or {}
        self.status = status or HTTP_STATUSES[rpc_status]


def wrong_value(field: str, given: object, expected: str) -> ValueError:
    """Build the error for an invalid value, with the given and the expected one."""
    return ValueError(f"{field}: got {given!r}, expected {expected}")


def check_object(what: str, value: object, fields: Collection[str]) -> dict[str, Any]:
    """Return a JSON value if it is an object without unknown fields; ``what`` names it in the error."""
    expected = f"some of the fields {', '.join(fields)}"
    if not isinstance(value, dict):
        raise wrong_value(what, value, f"an object with {expected}")
    for name in value:
        if name not in fields:
            raise wrong_value(what, name, expected)
    return value


def explain(error: ValidationError, fields: Mapping[str, Any]) -> ValueError:
    """Return the first problem that pydantic has found as an error; the field's description says what was expected."""
    problem = error.errors(include_url=False)[0]
    if not problem["loc"]:  # from the model's own check of several fields
        return ValueError(str(problem["ctx"]["error"]))
    expected = fields[str(problem["loc"][0])].description
    return wrong_value(".".join(map(str, problem["loc"])), problem["input"], expected)


def explained(model: _Model) -> _Model:
    """Make the constructor of a pydantic dataclass raise its errors as :func:`explain` words them."""
    signature = inspect.signature(model)
    validate: Callable[..., None] = model.__init__  # type: ignore[misc]

    @wraps(validate)
    def init(self: object, *arguments: Any, **fields: Any) -> None:
        given = signature.bind(*arguments, **fields).arguments
        try:
            validate(self, **given)
        except ValidationError as error:
            raise explain(error, model.__pydantic_fields__) from None  # type: ignore[attr-defined]

    model.__init__ = init  # type: ignore[misc]
    return model


def invalid_argument(field: str, problem: str) -> ApiError:
    """Build the service's error for a field or parameter of a request."""
    return ApiError("INVALID_ARGUMENT", f"Invalid value of '{field}': {problem}.")


def read_json(body: bytes) -> object:
    """Parse the JSON body of a request to the service."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # ValueError: neither JSON nor UTF-8
        raise ApiError("INVALID_ARGUMENT", "Invalid JSON payload received.") from None


def choice(default: str | None, names: Iterable[str], expected: str = "one of") -> Any:
    """Build a model's field for one of several texts."""
    names = tuple(names)
    pattern = f"^(?:{'|'.join(map(re.escape, names))})$"
    return Field(default, pattern=pattern, description=f"{expected} {', '.join(names)}")


# Models are strict, so that 503.0 is not a status and 1 is not a flag; numbers and flags may come as text all the same.


def whole_from_text(value: object) -> object:
    """Read a whole number from its text, and leave other values alone."""
    return int(value) if isinstance(value, str) else value


def number_from_text(value: object) -> object:
    """Read a number from its text, and leave other values alone; ``inf`` is a number."""
    return float(value) if isinstance(value, str) else value


def flag_from_text(value: object) -> object:
    """Read a flag from ``true`` or ``false``, and leave other values alone."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
