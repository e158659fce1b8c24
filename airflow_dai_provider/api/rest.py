"""The REST binding: build requests and read responses. Pure, and shared by both hooks, so that they cannot differ.

Source: https://developers.google.com/video-creative-ingest/reference/rest
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

from airflow_dai_provider.api.creative import check_sendable
from airflow_dai_provider.api.errors import Code, ServiceError, code_of_http_status, code_of_number, http_statuses
from airflow_dai_provider.api.names import check_creative_name, check_operation_name
from airflow_dai_provider.api.operation import InvalidOperationError, Operation
from airflow_dai_provider.api.operation_page import OperationPage, PolledPage, read_page, read_polled
from airflow_dai_provider.api.redaction import redact_urls, short_repr
from airflow_dai_provider.api.retry import PERMANENT, THROTTLED, THROTTLED_OR_UNAVAILABLE, TRANSIENT, read_retry_after
from airflow_dai_provider.api.storable import storable_object

T = TypeVar("T")

#: A larger response is not read to its end.
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
#: The operations on a page of operations.list where all are listed; fewer where the response is larger than that limit.
LIST_PAGE_SIZE = 100

#: The reasons of a 403 that mean a limit, such as ``rateLimitExceeded`` and ``RATE_LIMIT_EXCEEDED``.
_LIMIT = re.compile(r"(limit|quota)_?exceeded", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response.

    :param status: the HTTP status.
    :param headers: a mapping that ignores case, or has lower-case names.
    :param body: the decoded bytes, at most ``MAX_RESPONSE_BYTES + 1`` of them.
    :param server: where it comes from, and the connection, for the messages.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    server: str = ""


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """One call of an API method.

    :param method: the name of the API method, such as ``operations.cancel``.
    :param http_method: ``GET``, ``POST`` or ``DELETE``.
    :param subject: the resource, for messages.
    :param path: from ``/v1`` on, already percent-encoded, with the query.
    :param read: makes the result from the decoded JSON object of a successful response.
    :param retryable_codes: the codes after which the same request may be sent again.
    :param body: the JSON object to send, or None for an empty body.
    :param too_large: the result where a successful response is too large, or None where that is an error.
    """

    method: str
    http_method: str
    subject: str
    path: str
    read: Callable[[dict[str, Any]], T]
    retryable_codes: frozenset[Code]
    body: Mapping[str, Any] | None = None
    too_large: T | None = None

    def __str__(self) -> str:
        return f"{self.method} of {self.subject}"


def get_operation(name: object) -> Request[Operation]:
    """Build operations.get; raises InvalidNameError."""
    checked = check_operation_name(name)
    return Request("operations.get", "GET", checked, _path(checked), partial(_read_operation, checked), TRANSIENT)


def cancel_operation(name: object) -> Request[None]:
    """Build operations.cancel, whose body is empty; raises InvalidNameError."""
    checked = check_operation_name(name)
    return Request("operations.cancel", "POST", checked, _path(checked) + ":cancel", _nothing, TRANSIENT)


def delete_operation(name: object) -> Request[None]:
    """Build operations.delete, which does not cancel; raises InvalidNameError."""
    checked = check_operation_name(name)
    return Request("operations.delete", "DELETE", checked, _path(checked), _nothing, THROTTLED_OR_UNAVAILABLE)


def list_operations(
    filter_: str | None = None, page_size: int | None = None, page_token: str | None = None
) -> Request[OperationPage]:
    """Build operations.list for one page; raises ValueError for a page size that is not a positive number.

    If the response is too large, the result has ``too_large`` set, unless the page was limited to one operation.
    """
    if page_size is not None and (type(page_size) is not int or page_size < 1):
        raise ValueError(f"Invalid page_size {short_repr(page_size)}: expected a whole number, 1 or more.")
    too_large = None if page_size == 1 else OperationPage((), page_token, too_large=True)
    return _list(filter_, page_size, page_token, read_page, too_large)


def poll_operations(
    seen: Mapping[str, Operation | None], page_token: str | None = None, page_size: int = LIST_PAGE_SIZE
) -> Request[PolledPage]:
    """Build operations.list for one page of all operations, of which only those that are polled are read.

    :param seen: by name, what the last poll of each has returned. It is read when the response has come.
    """
    too_large = PolledPage({}, frozenset(), page_token, too_large=True)
    return _list(None, page_size, page_token, partial(read_polled, seen), too_large)


def _list(
    filter_: str | None,
    page_size: int | None,
    page_token: str | None,
    read: Callable[[dict[str, Any]], T],
    too_large: T | None,
) -> Request[T]:
    query = {"filter": filter_, "pageSize": page_size, "pageToken": page_token}
    path = _path("operations", {key: value for key, value in query.items() if value is not None})
    return Request("operations.list", "GET", "operations", path, read, TRANSIENT, too_large=too_large)


def create_creative(
    creative: Mapping[str, Any], dynamic_creative_info: Mapping[str, Any] | None = None
) -> Request[Operation]:
    """Build creatives.create, which starts an ingest.

    It has no request id, so it is retried only where the service has certainly not acted.

    :raises InvalidCreativeError: when it holds what JSON, or the service's storage, cannot.
    """
    for field_name, value in (("creative", creative), ("dynamic_creative_info", dynamic_creative_info)):
        if not isinstance(value, Mapping) and not (value is None and field_name != "creative"):
            raise TypeError(f"Invalid {field_name} {short_repr(value)}: expected a JSON object (a dict).")
    check_sendable(creative, dynamic_creative_info)
    body: dict[str, Any] = {"creative": dict(creative)}
    if dynamic_creative_info is not None:
        body["dynamicCreativeInfo"] = dict(dynamic_creative_info)
    return Request("creatives.create", "POST", "a creative", _path("creatives"), _read_started, THROTTLED, body)


def get_creative(name: object) -> Request[dict[str, Any]]:
    """Build creatives.get; raises InvalidNameError."""
    checked = check_creative_name(name)
    return Request("creatives.get", "GET", checked, _path(checked), _read_creative, TRANSIENT)


def delete_creative(name: object) -> Request[None]:
    """Build creatives.delete; raises InvalidNameError."""
    checked = check_creative_name(name)
    return Request("creatives.delete", "DELETE", checked, _path(checked), _nothing, THROTTLED_OR_UNAVAILABLE)


def read_response(request: Request[T], response: Response, now: datetime) -> T:
    """Read the response to a request.

    The content type is ignored, since Google's servers have been seen to label JSON as ``text/plain``.

    :param now: the time to count an absolute ``Retry-After`` from, aware.
    :return: the result of ``request.read``.
    :raises ServiceError: for an error, and for a response that the method does not define.
    """
    if not 200 <= response.status < 300:
        raise _error(request, response, now)
    if request.too_large is not None and len(response.body) > MAX_RESPONSE_BYTES:
        return request.too_large
    try:
        if _error_object(response):
            # The error of the call, and not that of an operation.
            raise _error(request, response, now)
        return _read(request, response.body)
    except (InvalidOperationError, RecursionError) as error:
        message = f"{request} returned HTTP {response.status} with an invalid body: {error}"
        raise ServiceError(message, Code.UNKNOWN) from error


def _path(name: str, query: Mapping[str, Any] | None = None) -> str:
    """Percent-encode as ``google.api.http`` defines it for ``{name=operations/**}``: all but unreserved and '/'."""
    return f"/v1/{quote(name, safe='/')}" + (f"?{urlencode(query)}" if query else "")


def _nothing(resource: dict[str, Any]) -> None:
    """Read an empty object; an operation, as some servers return it, will do too."""
    if resource and not resource.keys() & {"name", "done", "@type"}:
        raise InvalidOperationError(f"expected an empty JSON object, got {short_repr(resource)}")


def _read_operation(name: str, resource: dict[str, Any]) -> Operation:
    """Read an operation that was asked for by name."""
    operation = Operation.from_api(resource)
    if operation.name != name:
        raise InvalidOperationError(f"expected the operation {name}, got {short_repr(operation.name)}")
    return operation


def _read_started(resource: dict[str, Any]) -> Operation:
    """Read a new operation, whose name has to be one that can be cancelled."""
    try:
        operation = Operation.from_api(resource)
    except InvalidOperationError:
        # A start needs only the name: whatever else is wrong with the operation, it runs and has to be guarded.
        operation = Operation.from_api({"name": resource.get("name")})
    try:
        check_operation_name(operation.name)
    except ValueError as error:
        raise InvalidOperationError(str(error)) from error
    return operation


def _read_creative(creative: dict[str, Any]) -> dict[str, Any]:
    try:
        return storable_object(creative)
    except ValueError as error:
        raise InvalidOperationError(str(error)) from error


def _decode(body: bytes) -> object:
    """Decode JSON; an empty body counts as an empty object."""
    if len(body) > MAX_RESPONSE_BYTES:
        raise InvalidOperationError(f"larger than {MAX_RESPONSE_BYTES} bytes")
    try:
        return json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidOperationError(f"expected JSON, got {short_repr(body)}") from error


def _read(request: Request[T], body: bytes) -> T:
    """Read the body of a successful response."""
    decoded = _decode(body)
    if not isinstance(decoded, dict):
        raise InvalidOperationError(f"expected a JSON object, got {short_repr(decoded)}")
    if not body.strip() and request.read is not _nothing:
        raise InvalidOperationError("expected a JSON object, got an empty body")
    return request.read(decoded)


def _error(request: Request[Any], response: Response, now: datetime) -> ServiceError:
    """Read a response that is not a success: ``error.status`` decides first, the HTTP status second.

    An error can come under the status of a success; then ``error.code`` takes the place of the HTTP status.
    """
    headers = response.headers
    retry_after = read_retry_after(headers.get("retry-after"), now, headers.get("date"))
    error = _error_object(response)
    from_front_end = error is None or 300 <= response.status < 400
    if error is None or from_front_end:
        code, text = _code_without_json(response)
    else:
        code, text = code_of_error(error, response.status), _text(error.get("message") or "no message")
    # Another server may have responded than was meant, or another account may have asked.
    if response.server and (from_front_end or code in PERMANENT):
        text = f"{text.removesuffix('.')} ({response.server})"
    message = f"{request} returned {response.status} {code}: {text}"
    return ServiceError(message, code, retry_after=retry_after, from_front_end=from_front_end)


def code_of_error(error: Mapping[str, Any], http_status: int) -> Code:
    """Return the rpc code of Google's JSON object of an error: its own, or that of the HTTP status."""
    status, number = error.get("status"), error.get("code")
    if isinstance(status, str) and status in set(Code):
        code = Code(status)
    elif http_status >= 400:
        code = code_of_http_status(http_status)
    else:
        code = code_of_number(number) if type(number) is int else Code.UNKNOWN
    if code is Code.PERMISSION_DENIED and any(map(_LIMIT.search, _reasons(error))):
        return Code.RESOURCE_EXHAUSTED
    return code


def _reasons(error: Mapping[str, Any]) -> Iterator[str]:
    """Yield the reasons in an error: of the older form ``errors[].reason``, and of ``google.rpc.ErrorInfo``."""
    for field_name in ("errors", "details"):
        items = error.get(field_name)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and isinstance(item.get("reason"), str):
                yield item["reason"]
            elif isinstance(item, dict) and str(item.get("@type")).endswith("google.rpc.QuotaFailure"):
                yield "quotaExceeded"


def _text(value: object) -> str:
    return redact_urls(value if isinstance(value, str) else short_repr(value))[:500]


def _error_object(response: Response) -> dict[str, Any] | None:
    """Return the error in a response: its field ``error``, that of a list's only item, or a bare status; else None.

    A transcoder in front of the API sends a bare ``google.rpc.Status``. Its code has to fit the HTTP status, since
    other servers have objects of the same form. In a successful response, an operation has an error of its own.
    """
    try:
        decoded = _decode(response.body)
    except InvalidOperationError:
        return None
    is_success = 200 <= response.status < 300
    if isinstance(decoded, list) and len(decoded) == 1 and isinstance(decoded[0], dict):
        (decoded,) = decoded
    if not isinstance(decoded, dict) or (is_success and decoded.keys() & {"name", "done"}):
        return None
    error = decoded.get("error")
    if is_success and error:
        return error if isinstance(error, dict) else {"message": error}
    if isinstance(error, dict):
        return None if is_success else error
    number = decoded.get("code")
    if error is not None or type(number) is not int or not isinstance(decoded.get("message"), str):
        return None
    if not 1 <= number <= len(Code):
        return None
    code = code_of_number(number)
    return {"status": code, **decoded} if is_success or response.status in http_statuses(code) else None


def _code_without_json(response: Response) -> tuple[Code, str]:
    """Judge an error of a front end or a proxy; its text is not for the user."""
    if response.status == 404:
        # An unknown route, not a missing operation: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
        return (
            Code.UNIMPLEMENTED,
            "the server does not know this address (no JSON error); is the endpoint right?",
        )
    if 300 <= response.status < 400:
        return (
            Code.FAILED_PRECONDITION,
            "a redirect, which is not followed with credentials; is the endpoint right?",
        )
    return code_of_http_status(response.status), "a response without a JSON error, from a front end or a proxy"
