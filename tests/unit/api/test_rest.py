"""Requests as they go out, answers as they come in, and which errors allow a repeat."""

import json
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
import requests
from google.api_core import path_template
from yarl import URL

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.names import InvalidNameError
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.retry import may_retry
from tests.support.payloads import creative
from tests.support.rpc_codes import RPC_CODES

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOST = "https://dai.googleapis.com"
SIGNED = "https://user:pw@cdn.example/v.mp4?X-Goog-Signature=5ec7e7"
HTML = b"<!DOCTYPE html><html><title>Error 404 (Not Found)!!1</title></html>"

GET = rest.get_operation("operations/a")
CANCEL = rest.cancel_operation("operations/a")
DELETE = rest.delete_operation("operations/a")
LIST = rest.list_operations()
CREATE = rest.create_creative({"adSystem": "x"})
GET_CREATIVE = rest.get_creative("creatives/c")
DELETE_CREATIVE = rest.delete_creative("creatives/c")

# Requests


@pytest.mark.parametrize(
    ("request_", "method", "http_method", "path"),
    [
        (GET, "operations.get", "GET", "/v1/operations/a"),
        (CANCEL, "operations.cancel", "POST", "/v1/operations/a:cancel"),
        (DELETE, "operations.delete", "DELETE", "/v1/operations/a"),
        (LIST, "operations.list", "GET", "/v1/operations"),
        (CREATE, "creatives.create", "POST", "/v1/creatives"),
        (GET_CREATIVE, "creatives.get", "GET", "/v1/creatives/c"),
        (DELETE_CREATIVE, "creatives.delete", "DELETE", "/v1/creatives/c"),
    ],
    ids=str,
)
def test_each_method_has_its_address(request_: rest.Request[Any], method: str, http_method: str, path: str) -> None:
    assert (request_.method, request_.http_method, request_.path) == (method, http_method, path)


@pytest.mark.parametrize("request_", [GET, CANCEL, DELETE, LIST, GET_CREATIVE, DELETE_CREATIVE], ids=str)
def test_only_create_has_a_body(request_: rest.Request[Any]) -> None:
    assert request_.body is None
    assert requests.Request(request_.http_method, HOST + request_.path, json=request_.body).prepare().body is None


def test_a_request_says_in_words_what_it_is() -> None:
    assert str(CANCEL) == "operations.cancel of operations/a"
    assert str(LIST) == "operations.list of operations"
    assert str(CREATE) == "creatives.create of a creative"


NAMES = {
    "operations/a": "operations/a",
    "operations/a/b/c": "operations/a/b/c",
    "operations/a-b_c.d~e": "operations/a-b_c.d~e",
    "operations/...": "operations/...",
    "operations/YWI+Yw==": "operations/YWI%2BYw%3D%3D",
    "operations/a:cancel": "operations/a%3Acancel",
    "operations/a@b": "operations/a%40b",
    "operations/100%": "operations/100%25",
    "operations/a%2Fb": "operations/a%252Fb",
    "operations/%2e%2E/x": "operations/%252e%252E/x",
    "operations/a%0d%0ab": "operations/a%250d%250ab",
    "operations/\u00fc/\u65e5": "operations/%C3%BC/%E6%97%A5",
    "operations/\U0001f3ac": "operations/%F0%9F%8E%AC",
    "operations/a&b;c,d$e": "operations/a%26b%3Bc%2Cd%24e",
    "operations/!*'()": "operations/%21%2A%27%28%29",
    'operations/[]|^`{}"<>': "operations/%5B%5D%7C%5E%60%7B%7D%22%3C%3E",
}


@pytest.mark.parametrize(("name", "encoded"), NAMES.items())
def test_the_path_holds_the_name_percent_encoded(name: str, encoded: str) -> None:
    assert rest.get_operation(name).path == rest.delete_operation(name).path == f"/v1/{encoded}"
    assert rest.cancel_operation(name).path == f"/v1/{encoded}:cancel"
    assert rest.cancel_operation(name).subject == name


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_decodes_each_segment_finds_the_name(name: str) -> None:
    path = rest.cancel_operation(name).path
    assert path.isascii()
    assert path.count(":") == 1
    segments = path.removeprefix("/v1/").removesuffix(":cancel").split("/")
    assert "/".join(unquote(segment, errors="strict") for segment in segments) == name


@pytest.mark.parametrize("name", NAMES)
def test_the_path_is_what_googles_own_template_makes(name: str) -> None:
    for template, path in (
        ("/v1/{name=operations/**}", rest.get_operation(name).path),
        ("/v1/{name=operations/**}", rest.delete_operation(name).path),
        ("/v1/{name=operations/**}:cancel", rest.cancel_operation(name).path),
    ):
        assert path_template.validate(template, path)
        assert path_template.expand(template, name=name) == unquote(path)


LISTS = [
    rest.list_operations("done = false AND x:*&y #?%+/\u00fc", 5, "t+/=&%20"),
    rest.list_operations(page_token="\u65e5"),
]


@pytest.mark.parametrize(
    "request_",
    [*(build(name) for name in NAMES for build in (rest.get_operation, rest.cancel_operation)), *LISTS],
    ids=str,
)
def test_no_http_library_changes_the_address(request_: rest.Request[Any]) -> None:
    url = HOST + request_.path
    assert requests.Request(request_.http_method, url).prepare().url == url
    assert str(URL(url, encoded=True)) == url
    assert URL(url, encoded=True).raw_path_qs == request_.path


@pytest.mark.parametrize("build", [rest.get_operation, rest.cancel_operation, rest.delete_operation])
@pytest.mark.parametrize(
    "name", [None, "", "operations/../x", "https://evil/operations/x", "creatives/c", b"operations/a"]
)
def test_a_bad_operation_name_makes_no_request(build: Any, name: object) -> None:
    with pytest.raises(InvalidNameError, match="Invalid operation name"):
        build(name)


@pytest.mark.parametrize("build", [rest.get_creative, rest.delete_creative])
@pytest.mark.parametrize("name", [None, "", "creatives/a/b", "creatives/..", "operations/a"])
def test_a_bad_creative_name_makes_no_request(build: Any, name: object) -> None:
    with pytest.raises(InvalidNameError, match="Invalid creative name"):
        build(name)


def test_the_name_of_a_creative_is_encoded() -> None:
    assert (
        rest.get_creative("creatives/a+b=").path
        == rest.delete_creative("creatives/a+b=").path
        == "/v1/creatives/a%2Bb%3D"
    )


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        ((), []),
        ((None, None, None), []),
        (("done = true",), [("filter", "done = true")]),
        (("", 1), [("filter", ""), ("pageSize", "1")]),
        ((None, 500), [("pageSize", "500")]),
        ((None, None, "t+/="), [("pageToken", "t+/=")]),
        (("a&b=c#d?e\u00fc", 2, "&x=1"), [("filter", "a&b=c#d?e\u00fc"), ("pageSize", "2"), ("pageToken", "&x=1")]),
    ],
)
def test_the_query_of_a_list(arguments: Any, query: list[tuple[str, str]]) -> None:
    parts = urlsplit(rest.list_operations(*arguments).path)
    assert parts.path == "/v1/operations"
    assert parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(query)) == query
    assert not parts.fragment


@pytest.mark.parametrize("page_size", [0, -1, True, False, 1.0, "5", [5]])
def test_a_page_size_is_a_whole_number_from_one_on(page_size: Any) -> None:
    with pytest.raises(ValueError, match="Invalid page_size .*: expected a whole number, 1 or more"):
        rest.list_operations(page_size=page_size)


CREATIVE = creative(SIGNED)


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        ((CREATIVE,), {"creative": CREATIVE}),
        ((CREATIVE, None), {"creative": CREATIVE}),
        ((MappingProxyType(CREATIVE),), {"creative": CREATIVE}),
        ((CREATIVE, {}), {"creative": CREATIVE, "dynamicCreativeInfo": {}}),
        (
            (CREATIVE, MappingProxyType({"dynamicGroupId": "g"})),
            {"creative": CREATIVE, "dynamicCreativeInfo": {"dynamicGroupId": "g"}},
        ),
    ],
)
def test_the_body_of_create(arguments: Any, body: dict[str, Any]) -> None:
    sent = rest.create_creative(*arguments).body
    assert sent == body
    assert json.loads(json.dumps(sent)) == body


@pytest.mark.parametrize("value", [None, "x", "", b"{}", 0, 3, False, [], [("adSystem", "x")], ()], ids=repr)
def test_a_creative_is_a_dict(value: Any) -> None:
    with pytest.raises(TypeError, match="Invalid creative .*: expected a JSON object"):
        rest.create_creative(value)


@pytest.mark.parametrize("value", ["x", "", b"", 0, 3, False, [], [("a", "x")], ()], ids=repr)
def test_dynamic_creative_info_is_a_dict_or_none(value: Any) -> None:
    with pytest.raises(TypeError, match="Invalid dynamic_creative_info .*: expected a JSON object"):
        rest.create_creative({}, value)


# Good answers


def read(request: rest.Request[Any], status: int, body: object = b"", **headers: str) -> Any:
    """Read an answer whose body is bytes, or a value to send as JSON."""
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = rest.Response(status, {key.replace("_", "-"): value for key, value in headers.items()}, sent)
    return rest.read_response(request, answer, NOW)


def read_error(request: rest.Request[Any], status: int, body: object = b"", **headers: str) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        read(request, status, body, **headers)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "RUNNING"),
        ({"done": False, "metadata": None}, "RUNNING"),
        ({"done": True}, "SUCCEEDED"),
        ({"done": True, "response": {}}, "SUCCEEDED"),
        ({"done": True, "error": {"code": 1}}, "CANCELLED"),
        ({"done": True, "error": {"code": 5}}, "FAILED"),
    ],
)
@pytest.mark.parametrize("request_", [GET, CREATE], ids=str)
def test_get_and_create_return_an_operation(request_: rest.Request[Any], fields: dict[str, Any], state: str) -> None:
    operation = read(request_, 200, {"name": "operations/a", **fields})
    assert isinstance(operation, Operation)
    assert operation.state == state


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"name": "operations/a", "metadata": {"x": "\xc3\xbc"}}', id="UTF-8"),
        pytest.param(b'\xef\xbb\xbf{"name": "operations/a", "metadata": {"x": "\\u00fc"}}', id="byte order mark"),
        pytest.param(b'\r\n {"name": "operations/a", "metadata": {"x": "\xc3\xbc"}}\n', id="white space around"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/html", ""])
def test_json_is_read_whatever_it_is_called(body: bytes, content_type: str) -> None:
    operation = read(GET, 200, body, content_type=content_type)
    assert operation == Operation("operations/a", OperationState.RUNNING, metadata={"x": "\u00fc"})


@pytest.mark.parametrize("request_", [CANCEL, DELETE, DELETE_CREATIVE], ids=str)
@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"{}"), (200, b" {}\n"), (200, b""), (204, b""), (202, b"\n"), (200, b'{"done": "x"}'), (299, b"{}")],
)
def test_a_response_without_content_is_good_where_none_is_promised(
    request_: rest.Request[Any], status: int, body: bytes
) -> None:
    assert read(request_, status, body) is None


def test_a_creative_is_returned_as_it_is() -> None:
    assert read(GET_CREATIVE, 200, CREATIVE) == CREATIVE


@pytest.mark.parametrize(
    ("body", "names", "token"),
    [
        ({}, [], None),
        ({"operations": None, "nextPageToken": None}, [], None),
        ({"operations": [], "nextPageToken": ""}, [], None),
        ({"operations": [], "nextPageToken": "t"}, [], "t"),
        ({"operations": [{"name": "operations/a"}, {"name": "operations/b", "done": True}]}, ["a", "b"], None),
        ({"operations": [{"name": "operations/a"}], "nextPageToken": "t", "unreachable": []}, ["a"], "t"),
    ],
)
def test_a_page_of_operations(body: object, names: list[str], token: str | None) -> None:
    page = read(LIST, 200, body)
    assert [operation.name for operation in page.operations] == [f"operations/{name}" for name in names]
    assert page.next_page_token == token


@pytest.mark.parametrize("body", [b"", b" ", {"status": "ok"}, {"operations": {}}, {"unreachable": "x"}], ids=repr)
@pytest.mark.parametrize("request_", [LIST, rest.poll_operations({})], ids=["list", "polls"])
def test_what_is_no_page_is_no_empty_page(request_: rest.Request[Any], body: object) -> None:
    assert read_error(request_, 200, body).rpc_code is Code.UNKNOWN


def test_a_place_that_the_service_cannot_reach_leaves_the_list_incomplete() -> None:
    page = read(LIST, 200, {"operations": [{"name": "operations/a"}], "unreachable": ["locations/x"]})
    assert page.unreadable == ("the service cannot reach 'locations/x'",)


@pytest.mark.parametrize("request_", [CANCEL, DELETE, DELETE_CREATIVE], ids=str)
@pytest.mark.parametrize("body", [{"status": "maintenance"}, {"code": 0}, {"message": "OK"}], ids=repr)
def test_another_object_in_place_of_an_empty_one_is_an_error(request_: rest.Request[Any], body: object) -> None:
    error = read_error(request_, 200, body)
    assert error.rpc_code is Code.UNKNOWN
    assert "expected an empty JSON object, got {" in str(error)


@pytest.mark.parametrize("item", [None, {}, [], 5, {"name": ""}, {"name": "operations/../x"}, {"name": 5}], ids=repr)
def test_an_item_that_is_no_operation_is_passed_over(item: object) -> None:
    page = read(LIST, 200, {"operations": [item, {"name": "operations/a"}, item]})
    assert [operation.name for operation in page.operations] == ["operations/a"]
    assert len(page.unreadable) == 2


# Answers that are not what the method promises

DEEP = b"[" * 100_000
NO_OBJECTS = [
    pytest.param(b"[]", id="list"),
    pytest.param(b"null", id="null"),
    pytest.param(b"3", id="number"),
    pytest.param(b'"x"', id="text"),
    pytest.param(b'{"name": "operations/a", "met', id="cut"),
    pytest.param(b'{"name": "operations/a"} x', id="more after the end"),
    pytest.param(HTML, id="HTML"),
    pytest.param(b" " * 5_000_000, id="5 MB of spaces"),
    pytest.param(b'{"name": "operations/' + b"a" * 5_000_000 + b'"}', id="5 MB"),
    pytest.param(DEEP, id="deep list"),
    pytest.param(b'{"a":' * 100_000, id="deep object"),
    pytest.param(b'{"name": "operations/\xff"}', id="no UTF-8"),
    pytest.param(b"\x1f\x8b\x08\x00", id="gzip"),
    pytest.param(b"\0", id="NUL"),
    pytest.param(b'{"a": ' + b"9" * 10_000 + b"}", id="number of 10,000 digits"),
]


@pytest.mark.parametrize(
    "request_", [GET, CANCEL, DELETE, LIST, CREATE, GET_CREATIVE, DELETE_CREATIVE], ids=lambda request_: request_.method
)
@pytest.mark.parametrize("body", NO_OBJECTS)
def test_a_response_that_is_no_json_object_is_an_error(request_: rest.Request[Any], body: bytes) -> None:
    if request_ is LIST and len(body) > rest.MAX_RESPONSE_BYTES:
        assert read(LIST, 200, body).too_large
        request_ = rest.list_operations(page_size=1)
    error = read_error(request_, 200, body)
    assert str(error).startswith(f"{request_} returned HTTP 200 with an invalid body: ")
    assert len(str(error)) < 500
    assert (error.rpc_code, error.sent, error.retry_after) == (Code.UNKNOWN, True, None)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"code": 403}, Code.PERMISSION_DENIED),
        ({"code": 7}, Code.PERMISSION_DENIED),
        ({"code": 16}, Code.UNAUTHENTICATED),
        ({"code": 1}, Code.CANCELLED),
        ({"code": 17}, Code.UNKNOWN),
        ({"code": 503}, Code.UNAVAILABLE),
        ({"code": 400, "status": "FAILED_PRECONDITION"}, Code.FAILED_PRECONDITION),
        ({"code": 403, "errors": [{"reason": "rateLimitExceeded"}]}, Code.RESOURCE_EXHAUSTED),
        ({"code": True}, Code.UNKNOWN),
        ({"code": "403"}, Code.UNKNOWN),
        ({"message": [[[[]]]]}, Code.UNKNOWN),
        ("invalid_grant", Code.UNKNOWN),
    ],
)
@pytest.mark.parametrize(
    "request_", [GET, CANCEL, DELETE, LIST, CREATE, GET_CREATIVE, DELETE_CREATIVE], ids=lambda request_: request_.method
)
def test_an_error_under_the_status_of_a_success_is_that_error(
    request_: rest.Request[Any], error: object, code: Code
) -> None:
    assert read_error(request_, 200, {"error": error}).rpc_code is code


@pytest.mark.parametrize(
    "details",
    [
        *(
            {"errors": [{"domain": "usageLimits", "reason": f"{reason}Exceeded"}]}
            for reason in ("rateLimit", "userRateLimit", "quota", "dailyLimit", "concurrentLimit")
        ),
        {"details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED"}]},
        {"details": [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": []}]},
        {"errors": "x", "details": [None, {"reason": 3}, {"reason": "RATE_LIMIT_EXCEEDED"}]},
    ],
    ids=str,
)
@pytest.mark.parametrize("status", [{}, {"status": "PERMISSION_DENIED"}], ids=str)
def test_a_forbidden_request_over_a_limit_is_an_exhausted_resource(details: Any, status: Any) -> None:
    body = {"error": {"code": 403, "message": "slow down", **status, **details}}
    assert read_error(CANCEL, 403, body).rpc_code is Code.RESOURCE_EXHAUSTED
    # Only a 403 is ambiguous.
    assert read_error(CANCEL, 404, {"error": {**body["error"], "status": "NOT_FOUND"}}).rpc_code is Code.NOT_FOUND


@pytest.mark.parametrize("reason", ["forbidden", "SERVICE_DISABLED", "accessNotConfigured", ""])
def test_any_other_forbidden_request_is_forbidden(reason: str) -> None:
    body = {"error": {"code": 403, "errors": [{"reason": reason}], "details": [{"reason": reason}]}}
    assert read_error(CANCEL, 403, body).rpc_code is Code.PERMISSION_DENIED


@pytest.mark.parametrize("token", ["\ud83d", "a\0", "x" * 10**5], ids=["surrogate", "NUL", "long"])
def test_a_page_token_that_cannot_be_sent_back_cannot_be_read(token: str) -> None:
    error = read_error(LIST, 200, {"operations": [], "nextPageToken": token})
    assert "expected a page of operations" in str(error)
    assert (error.rpc_code, len(str(error)) < 1000) == (Code.UNKNOWN, True)


def test_what_an_error_says_can_be_stored() -> None:
    error = read_error(GET, 403, {"error": {"code": 403, "message": "nul \0 cut \ud83d"}})
    assert str(error).endswith("nul \ufffd cut \ufffd")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "expected an operation with a name"),
        (b"", "expected a JSON object, got an empty body"),
        ({"done": True, "error": {"code": 5}}, "expected an operation with a name"),
        ({"name": 3}, "expected 'name' to be of type str"),
    ],
)
@pytest.mark.parametrize("request_", [GET, CREATE], ids=str)
def test_a_response_that_is_no_operation_is_an_error(request_: rest.Request[Any], body: object, words: str) -> None:
    error = read_error(request_, 200, body)
    assert words in str(error)
    assert error.rpc_code is Code.UNKNOWN


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"name": "operations/a", "done": "yes"}, "expected 'done' to be of type bool"),
        ({"name": "operations/a", "done": True, "error": {"code": 1}, "response": {}}, "got both"),
    ],
)
def test_a_contradiction_is_an_error_of_a_poll(body: object, words: str) -> None:
    error = read_error(GET, 200, body)
    assert words in str(error)
    assert error.rpc_code is Code.UNKNOWN


@pytest.mark.parametrize(
    "body",
    [
        {"operations": "x"},
        {"operations": {"a": 1}},
        {"operations": 3},
        {"operations": [], "nextPageToken": 3},
        {"nextPageToken": ["t"]},
    ],
    ids=json.dumps,
)
def test_a_response_that_is_no_page_is_an_error(body: object) -> None:
    assert read_error(LIST, 200, body).rpc_code is Code.UNKNOWN


def test_a_response_of_the_greatest_size_is_read() -> None:
    body = b'{"name": "operations/a"}'.ljust(rest.MAX_RESPONSE_BYTES)
    assert read(GET, 200, body).name == "operations/a"
    assert "larger than" in str(read_error(GET, 200, body + b" "))


def test_no_secret_of_a_cut_response_is_shown() -> None:
    body = json.dumps({"name": "operations/a", "metadata": {"creativeUrl": SIGNED + "5ec7e7" * 20}}).encode()
    shown = [str(read_error(GET, 200, b" " * length + body[:-8])) for length in range(0, 120, 3)]
    assert not [text for text in shown if "5ec7e7" in text]


# Errors


def json_error(status: object = None, message: object = "words", **fields: Any) -> dict[str, Any]:
    return {"error": {"code": 400, "message": message, **({"status": status} if status is not None else {}), **fields}}


@pytest.mark.parametrize("code", RPC_CODES)
def test_the_status_of_the_error_decides_and_the_message_says_everything(code: str) -> None:
    http_status = RPC_CODES[code].http_status
    error = read_error(CANCEL, http_status, json_error(code))
    assert error.rpc_code == code
    assert str(error) == f"operations.cancel of operations/a returned {http_status} {code}: words"
    assert error.sent


@pytest.mark.parametrize(
    ("http_status", "body", "code"),
    [
        pytest.param(500, json_error("NOT_FOUND"), "NOT_FOUND", id="status against HTTP"),
        pytest.param(404, json_error("UNIMPLEMENTED"), "UNIMPLEMENTED", id="unimplemented as 404"),
        pytest.param(404, json_error("NOT_FOUND"), "NOT_FOUND", id="not found"),
        pytest.param(404, json_error(), "NOT_FOUND", id="JSON error without a status"),
        pytest.param(404, {"error": {}}, "NOT_FOUND", id="empty JSON error"),
        pytest.param(400, json_error(message="NOT_FOUND"), "INVALID_ARGUMENT", id="the words decide nothing"),
        pytest.param(503, json_error("BRAND_NEW"), "UNAVAILABLE", id="unknown status"),
        pytest.param(400, json_error("not_found"), "INVALID_ARGUMENT", id="lower case is unknown"),
        pytest.param(500, json_error("OK"), "INTERNAL", id="OK is no error"),
        pytest.param(403, json_error(""), "PERMISSION_DENIED", id="empty status"),
        pytest.param(403, json_error(7), "PERMISSION_DENIED", id="numeric status"),
        pytest.param(403, json_error(["NOT_FOUND"]), "PERMISSION_DENIED", id="status in a list"),
        pytest.param(403, json_error({"a": 1}), "PERMISSION_DENIED", id="status that is an object"),
        pytest.param(418, json_error(), "FAILED_PRECONDITION", id="418 with JSON"),
        pytest.param(404, HTML, "UNIMPLEMENTED", id="404 HTML"),
        pytest.param(404, b"", "UNIMPLEMENTED", id="404 empty"),
        pytest.param(404, {"code": 5, "message": "Not Found"}, "NOT_FOUND", id="404 bare status"),
        pytest.param(404, {"message": "Not Found"}, "UNIMPLEMENTED", id="404 JSON without error"),
        pytest.param(404, {"error": "not found"}, "UNIMPLEMENTED", id="404 JSON with a text for error"),
        pytest.param(404, [json_error("NOT_FOUND")], "NOT_FOUND", id="404 error in a list"),
        pytest.param(404, b"null", "UNIMPLEMENTED", id="404 null"),
        pytest.param(302, b"", "FAILED_PRECONDITION", id="302"),
        pytest.param(300, HTML, "FAILED_PRECONDITION", id="300"),
        pytest.param(308, HTML, "FAILED_PRECONDITION", id="308"),
        pytest.param(399, HTML, "FAILED_PRECONDITION", id="399"),
        pytest.param(400, HTML, "INVALID_ARGUMENT", id="400 HTML"),
        pytest.param(401, HTML, "UNAUTHENTICATED", id="401 HTML"),
        pytest.param(403, HTML, "PERMISSION_DENIED", id="403 HTML"),
        pytest.param(405, HTML, "FAILED_PRECONDITION", id="405 HTML"),
        pytest.param(407, HTML, "FAILED_PRECONDITION", id="407 HTML"),
        pytest.param(418, HTML, "FAILED_PRECONDITION", id="418 HTML"),
        pytest.param(429, HTML, "RESOURCE_EXHAUSTED", id="429 HTML"),
        pytest.param(499, b"", "CANCELLED", id="499"),
        pytest.param(500, b"", "INTERNAL", id="500"),
        pytest.param(501, b"", "UNIMPLEMENTED", id="501"),
        pytest.param(502, HTML, "UNAVAILABLE", id="502"),
        pytest.param(503, HTML, "UNAVAILABLE", id="503"),
        pytest.param(504, HTML, "DEADLINE_EXCEEDED", id="504"),
        pytest.param(599, b"", "INTERNAL", id="599"),
        pytest.param(199, b"", "UNKNOWN", id="199"),
        *(pytest.param(503, *body.values, "UNAVAILABLE", id=f"503 {body.id}") for body in NO_OBJECTS),
    ],
)
def test_which_code_an_error_has(http_status: int, body: object, code: str) -> None:
    error = read_error(GET, http_status, body)
    assert error.rpc_code == code
    assert str(error).startswith(f"operations.get of operations/a returned {http_status} {code}: ")
    assert len(str(error)) < 1000


@pytest.mark.parametrize(
    ("http_status", "body", "words"),
    [
        (404, HTML, "the server does not know this address (no JSON error); is the endpoint right?"),
        (302, b"", "a redirect, which is not followed with credentials; is the endpoint right?"),
        (503, HTML, "a response without a JSON error, from a front end or a proxy"),
        (403, {"error": {"status": "PERMISSION_DENIED"}}, "no message"),
        (403, json_error("PERMISSION_DENIED", ""), "no message"),
        (403, json_error("PERMISSION_DENIED", {"a": 1}), "{'a': 1}"),
        (
            403,
            json_error("PERMISSION_DENIED", f"cannot read {SIGNED} now"),
            "cannot read https://cdn.example/v.mp4 now",
        ),
    ],
)
def test_what_an_error_says(http_status: int, body: object, words: str) -> None:
    assert str(read_error(GET, http_status, body)).endswith(f": {words}")


def test_a_redirect_does_not_show_where_to() -> None:
    assert "cdn.example" not in str(read_error(GET, 302, b"", location=SIGNED))


def test_a_long_message_is_cut_after_its_secrets_are_taken_out() -> None:
    message = str(read_error(GET, 400, json_error("INVALID_ARGUMENT", "x" * 480 + " " + SIGNED + "y" * 10_000)))
    assert len(message) < 600
    assert "x" * 480 in message
    assert "pw" not in message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("7", 7.0),
        ("1.5", None),
        ("-5", None),
        ("Wed, 99 Foo", None),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Wed, 31 Dec 2025 23:00:00 GMT", 0.0),
        ("Thu, 01 Jan 99999999999999 00:00:00 GMT", None),
    ],
)
@pytest.mark.parametrize("body", [b"", HTML, json_error("UNAVAILABLE")], ids=["empty", "HTML", "JSON"])
def test_the_error_carries_what_the_server_asked_to_wait(
    header: str | None, seconds: float | None, body: object
) -> None:
    headers = {} if header is None else {"retry_after": header}
    error = read_error(GET, 503, body, **headers)
    assert (error.rpc_code, error.retry_after) == (Code.UNAVAILABLE, seconds)


# Retry

READS_AND_CANCEL = {"UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNAVAILABLE"}
REPEATED: list[tuple[rest.Request[Any], set[str]]] = [
    (GET, READS_AND_CANCEL),
    (CANCEL, READS_AND_CANCEL),
    (GET_CREATIVE, READS_AND_CANCEL),
    (LIST, READS_AND_CANCEL),
    (DELETE, {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}),
    (DELETE_CREATIVE, {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}),
    (CREATE, {"RESOURCE_EXHAUSTED"}),
]


@pytest.mark.parametrize("code", RPC_CODES)
@pytest.mark.parametrize(
    ("request_", "codes"), [pytest.param(request_, codes, id=request_.method) for request_, codes in REPEATED]
)
def test_which_requests_may_be_retried_after_which_error(
    request_: rest.Request[Any], codes: set[str], code: str
) -> None:
    error = read_error(request_, RPC_CODES[code].http_status, json_error(code))
    assert may_retry(request_.retryable_codes, error) is (code in codes)


@pytest.mark.parametrize("request_", [pytest.param(request_, id=request_.method) for request_, _ in REPEATED])
def test_a_request_that_never_left_may_be_retried(request_: rest.Request[Any]) -> None:
    for code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
        assert may_retry(request_.retryable_codes, ServiceError("no connection", code, sent=False))
