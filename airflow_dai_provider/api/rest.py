"""
The REST binding: requests to build and answers to read.

Pure: no I/O and no clock of its own. Both hooks carry what is built here, so that they cannot
differ. Source: https://developers.google.com/video-creative-ingest/reference/rest
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

from airflow_dai_provider.api.errors import Code, ServiceError, code_of_http_status
from airflow_dai_provider.api.names import check_creative_name, check_operation_name
from airflow_dai_provider.api.operation import InvalidOperationError, Operation
from airflow_dai_provider.api.redaction import redact_urls, short_repr
from airflow_dai_provider.api.retry import THROTTLED, THROTTLED_OR_UNAVAILABLE, TRANSIENT, read_retry_after

T = TypeVar("T")

#: An answer that is larger is not read to its end.
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
#: How many operations a page of operations.list has where all are listed. The answer stays well below the limit above.
LIST_PAGE_SIZE = 100


@dataclass(frozen=True, slots=True)
class Response:
    """
    What came back over HTTP.

    :param status: the HTTP status.
    :param headers: with lower-case names, or such as do not mind the case.
    :param body: the decoded bytes, at most ``MAX_RESPONSE_BYTES + 1`` of them.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """
    One call of an API method.

    :param method: the name of the API method, such as ``operations.cancel``.
    :param http_method: ``GET``, ``POST`` or ``DELETE``.
    :param subject: the resource it is about, for messages.
    :param path: from ``/v1`` on, already percent-encoded, with the query.
    :param read: makes the result from the decoded JSON object of a good answer.
    :param retryable_codes: the codes after which the same request may be sent again.
    :param body: the JSON object to send, or None for an empty body.
    """

    method: str
    http_method: str
    subject: str
    path: str
    read: Callable[[dict[str, Any]], T]
    retryable_codes: frozenset[Code]
    body: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.method} of {self.subject}"


@dataclass(frozen=True, slots=True)
class OperationPage:
    """One page of operations.list: its operations, and the token of the next page (None on the last)."""

    operations: tuple[Operation, ...]
    next_page_token: str | None


def get_operation(name: object) -> Request[Operation]:
    """Build operations.get; raises InvalidNameError."""
    checked = check_operation_name(name)
    return Request("operations.get", "GET", checked, _path(checked), Operation.from_api, TRANSIENT)


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
    """Build operations.list for one page; raises ValueError for a page size that is no positive number."""
    if page_size is not None and (type(page_size) is not int or page_size < 1):
        raise ValueError(f"Invalid page_size {short_repr(page_size)}: expected a whole number from 1 on.")
    query = {"filter": filter_, "pageSize": page_size, "pageToken": page_token}
    path = _path("operations", {key: value for key, value in query.items() if value is not None})
    return Request("operations.list", "GET", "operations", path, _read_page, THROTTLED_OR_UNAVAILABLE)


def create_creative(
    creative: Mapping[str, Any], dynamic_creative_info: Mapping[str, Any] | None = None
) -> Request[Operation]:
    """
    Build creatives.create, which starts an ingest.

    It has no request id, so it is repeated only where the service has certainly not acted.
    """
    for field_name, value in (("creative", creative), ("dynamic_creative_info", dynamic_creative_info)):
        if not isinstance(value, Mapping) and not (value is None and field_name != "creative"):
            raise TypeError(f"Invalid {field_name} {short_repr(value)}: expected a JSON object (a dict).")
    body: dict[str, Any] = {"creative": dict(creative)}
    if dynamic_creative_info is not None:
        body["dynamicCreativeInfo"] = dict(dynamic_creative_info)
    return Request("creatives.create", "POST", "a creative", _path("creatives"), Operation.from_api, THROTTLED, body)


def get_creative(name: object) -> Request[dict[str, Any]]:
    """Build creatives.get; raises InvalidNameError."""
    checked = check_creative_name(name)
    return Request("creatives.get", "GET", checked, _path(checked), dict, TRANSIENT)


def delete_creative(name: object) -> Request[None]:
    """Build creatives.delete; raises InvalidNameError."""
    checked = check_creative_name(name)
    return Request("creatives.delete", "DELETE", checked, _path(checked), _nothing, THROTTLED_OR_UNAVAILABLE)


def read_response(request: Request[T], answer: Response, now: datetime) -> T:
    """
    Make the result of a request from its answer.

    JSON is recognised by reading it, since Google's servers have been seen to label it ``text/plain``.

    :param now: the time to count an absolute ``Retry-After`` from, aware.
    :return: what ``request.read`` makes of it.
    :raises ServiceError: for an error, and for an answer that is not what the method promises.
    """
    if not 200 <= answer.status < 300:
        raise _error(request, answer, now)
    try:
        return request.read(_decode_object(answer.body))
    except InvalidOperationError as error:
        message = f"{request} answered HTTP {answer.status}, but not as it should: {error}"
        raise ServiceError(message, Code.UNKNOWN) from error


def _path(name: str, query: Mapping[str, Any] | None = None) -> str:
    """Percent-encode as ``google.api.http`` says for ``{name=operations/**}``: all but unreserved and '/'."""
    return f"/v1/{quote(name, safe='/')}" + (f"?{urlencode(query)}" if query else "")


def _nothing(_: dict[str, Any]) -> None:
    """Read an answer whose content does not matter."""


def _read_page(answer: dict[str, Any]) -> OperationPage:
    operations, token = answer.get("operations") or [], answer.get("nextPageToken") or None
    if not isinstance(operations, list) or not isinstance(token, str | None):
        raise InvalidOperationError(f"expected a page of operations, got {short_repr(answer)}")
    return OperationPage(tuple(Operation.from_api(item) for item in operations), token)


def _decode(body: bytes) -> object:
    """Decode JSON; an empty body counts as an empty object."""
    if len(body) > MAX_RESPONSE_BYTES:
        raise InvalidOperationError(f"larger than {MAX_RESPONSE_BYTES} bytes")
    try:
        return json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidOperationError(f"expected JSON, got {short_repr(body)}") from error


def _decode_object(body: bytes) -> dict[str, Any]:
    decoded = _decode(body)
    if not isinstance(decoded, dict):
        raise InvalidOperationError(f"expected a JSON object, got {short_repr(decoded)}")
    return decoded


def _error(request: Request[Any], answer: Response, now: datetime) -> ServiceError:
    """Read an answer that is no success; ``error.status`` decides first, the HTTP status second."""
    retry_after = read_retry_after(answer.headers.get("retry-after"), now)
    error = _error_object(answer.body)
    if error is None or answer.status < 400:
        code, words = _code_without_json(answer)
    else:
        status = error.get("status")
        code = Code(status) if isinstance(status, str) and status in set(Code) else code_of_http_status(answer.status)
        words = redact_urls(str(error.get("message") or "no message"))[:500]
    message = f"{request} answered {answer.status} {code}: {words}"
    return ServiceError(message, code, retry_after=retry_after)


def _error_object(body: bytes) -> dict[str, Any] | None:
    try:
        error = _decode_object(body).get("error")
    except InvalidOperationError:
        return None
    return error if isinstance(error, dict) else None


def _code_without_json(answer: Response) -> tuple[Code, str]:
    """Judge an error that a front end or a proxy sent; its text is not for the user."""
    if answer.status == 404:
        # An unknown route, not a missing operation: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
        return (
            Code.UNIMPLEMENTED,
            "the server does not know this address (no JSON error); is the endpoint right?",
        )
    if 300 <= answer.status < 400:
        return (
            Code.FAILED_PRECONDITION,
            "a redirect, which is not followed with credentials; is the endpoint right?",
        )
    return code_of_http_status(answer.status), "an answer without a JSON error, from a front end or a proxy"
