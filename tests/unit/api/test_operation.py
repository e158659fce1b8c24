"""Operations and ingests as the service sends them, as XCom keeps them, and as a log shows them."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_dai_provider.api.operation import Ingest, InvalidOperationError, Operation, OperationState
from tests.support.payloads import METADATA_TYPE, SIGNATURE, SIGNED_URL, metadata

NAME = "operations/a/b"
SIGNED = "https://user:pw@cdn.example/v.mp4?X-Goog-Signature=5ec7e7#t"
PLAIN = "https://cdn.example/v.mp4"

RUNNING, SUCCEEDED = OperationState.RUNNING, OperationState.SUCCEEDED
FAILED, CANCELLED = OperationState.FAILED, OperationState.CANCELLED


FULL_METADATA = metadata(
    creativeUrl=SIGNED,
    gvRegistryId="gv1",
    createTime="2026-01-02T03:04:05.123456789Z",
    youtubeStatus={
        "state": "FAILURE",
        "failureReason": {"reason": "DOWNLOAD_ERROR", "code": 403},
        "updateTime": "2026-01-02T03:05:00Z",
    },
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, Operation(NAME, RUNNING), id="done absent"),
        pytest.param({"done": False}, Operation(NAME, RUNNING), id="done false"),
        pytest.param({"done": None}, Operation(NAME, RUNNING), id="done null"),
        pytest.param({"metadata": None}, Operation(NAME, RUNNING), id="metadata null"),
        pytest.param({"metadata": {}}, Operation(NAME, RUNNING, metadata={}), id="metadata empty"),
        pytest.param({"metadata": {"a": 1}}, Operation(NAME, RUNNING, metadata={"a": 1}), id="running with metadata"),
        pytest.param({"done": True}, Operation(NAME, SUCCEEDED), id="done with neither"),
        pytest.param({"done": True, "error": None, "response": None}, Operation(NAME, SUCCEEDED), id="both null"),
        pytest.param({"done": True, "response": {}}, Operation(NAME, SUCCEEDED, response={}), id="empty response"),
        pytest.param(
            {"done": True, "response": {"name": "creatives/c"}, "metadata": {"a": 1}},
            Operation(NAME, SUCCEEDED, response={"name": "creatives/c"}, metadata={"a": 1}),
            id="response",
        ),
        pytest.param(
            {"done": True, "error": {"code": 1, "message": "by user"}, "metadata": {"a": 1}},
            Operation(NAME, CANCELLED, 1, "by user", metadata={"a": 1}),
            id="cancelled",
        ),
        pytest.param({"done": True, "error": {"code": 1}}, Operation(NAME, CANCELLED, 1), id="cancelled, no message"),
        pytest.param(
            {"done": True, "error": {"code": 1}, "response": None}, Operation(NAME, CANCELLED, 1), id="response null"
        ),
        *(
            pytest.param(
                {"done": True, "error": {"code": code, "message": "m"}},
                Operation(NAME, FAILED, code, "m"),
                id=str(code),
            )
            for code in (0, *range(2, 18), -1, 499)
        ),
        pytest.param({"done": True, "error": {}}, Operation(NAME, FAILED, 0), id="empty error"),
        pytest.param({"done": True, "error": {"code": 0}}, Operation(NAME, FAILED, 0), id="the code of no error"),
        pytest.param({"done": True, "error": {"code": "0"}}, Operation(NAME, FAILED, 0), id="the same as a text"),
        pytest.param({"done": True, "error": {"code": "1"}}, Operation(NAME, CANCELLED, 1), id="cancelled, as a text"),
        pytest.param({"done": True, "error": {"code": "13"}}, Operation(NAME, FAILED, 13), id="failed, as a text"),
        pytest.param(
            {"done": True, "error": {"code": None, "message": None}}, Operation(NAME, FAILED, 0), id="error of nulls"
        ),
        pytest.param(
            {"done": True, "error": {"message": "CANCELLED", "status": "CANCELLED"}},
            Operation(NAME, FAILED, 0, "CANCELLED"),
            id="the words of a message decide nothing",
        ),
        pytest.param({"error": {"code": 1}}, Operation(NAME, RUNNING), id="error before the end"),
        pytest.param({"done": True, "kind": "x", "selfLink": 1}, Operation(NAME, SUCCEEDED), id="unknown fields"),
    ],
)
def test_a_response_becomes_an_operation(fields: dict[str, Any], expected: Operation) -> None:
    assert Operation.from_api({"name": NAME, **fields}) == expected


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "expected an operation, a JSON object, got None"),
        ([], r"expected an operation, a JSON object, got \[\]"),
        ([{"name": NAME}], r"expected an operation, a JSON object, got \["),
        ("operations/a", "expected an operation, a JSON object, got 'operations/a'"),
        (3, "expected an operation, a JSON object, got 3"),
        ({}, r"expected an operation with a name, got \{\}"),
        ({"done": True}, "expected an operation with a name"),
        ({"name": None}, "expected an operation with a name"),
        ({"name": ""}, "expected an operation with a name"),
        ({"name": 3}, "expected 'name' to be of type str, got 3"),
        ({"name": ["operations/a"]}, "expected 'name' to be of type str"),
        ({"name": NAME, "done": "true"}, "expected 'done' to be of type bool, got 'true'"),
        ({"name": NAME, "done": 1}, "expected 'done' to be of type bool, got 1"),
        ({"name": NAME, "error": "x"}, "expected 'error' to be of type dict, got 'x'"),
        ({"name": NAME, "done": True, "error": []}, "expected 'error' to be of type dict"),
        ({"name": NAME, "done": True, "error": {"code": "1.0"}}, "expected 'code' to be of type int, got '1.0'"),
        ({"name": NAME, "done": True, "error": {"code": ""}}, "expected 'code' to be of type int, got ''"),
        ({"name": NAME, "done": True, "error": {"code": "CANCELLED"}}, "expected 'code' to be of type int"),
        ({"name": NAME, "done": True, "error": {"code": 1.0}}, "expected 'code' to be of type int, got 1.0"),
        ({"name": NAME, "done": True, "error": {"code": True}}, "expected 'code' to be of type int, got True"),
        ({"name": NAME, "done": True, "error": {"code": 3, "message": 3}}, "expected 'message' to be of type str"),
        ({"name": NAME, "done": True, "response": "x"}, "expected 'response' to be of type dict"),
        ({"name": NAME, "metadata": ["x"]}, "expected 'metadata' to be of type dict"),
        ({"name": NAME, "done": True, "error": {"code": 1}, "response": {}}, "either an error or a response .* both"),
        ({"name": NAME, "done": True, "error": {}, "response": {}}, "expected either an error or a response"),
    ],
)
def test_what_is_no_operation_is_refused(answer: object, message: str) -> None:
    with pytest.raises(InvalidOperationError, match=message):
        Operation.from_api(answer)


def test_a_refused_response_is_not_shown_with_its_secrets() -> None:
    with pytest.raises(InvalidOperationError) as caught:
        Operation.from_api({"metadata": {"creativeUrl": SIGNED}, "error": "x" * 10_000})
    assert "5ec7e7" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("state", "done"), [(RUNNING, False), (SUCCEEDED, True), (FAILED, True), (CANCELLED, True)], ids=str
)
def test_done_is_every_state_but_running(state: OperationState, done: bool) -> None:
    assert Operation(NAME, state).done is done


def test_there_are_four_states_and_each_is_a_string() -> None:
    assert [state.value for state in OperationState] == ["RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"]
    assert CANCELLED == "CANCELLED"
    assert f"{CANCELLED}" == "CANCELLED"


def test_an_operation_cannot_be_changed() -> None:
    operation = Operation(NAME, RUNNING)
    with pytest.raises(dataclasses.FrozenInstanceError):
        operation.state = SUCCEEDED  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(metadata(), Ingest(), id="type only"),
        pytest.param({"@type": "CreateCreativeOperationMetadata"}, Ingest(), id="type without a prefix"),
        pytest.param({"creativeUrl": PLAIN}, Ingest(creative_url=PLAIN), id="no type, but the URL"),
        pytest.param({"gvRegistryId": "g"}, Ingest(gv_registry_id="g"), id="no type, but the id"),
        pytest.param({"youtubeStatus": {"state": "X"}}, Ingest(youtube_state="X"), id="no type, but the state"),
        pytest.param({"@type": None, "gvRegistryId": "g"}, Ingest(gv_registry_id="g"), id="type null"),
        pytest.param(metadata(creativeUrl=None, youtubeStatus=None, createTime=None), Ingest(), id="nulls"),
        pytest.param(metadata(creativeUrl=3, gvRegistryId=[], createTime=1.5), Ingest(), id="wrong types"),
        pytest.param(metadata(youtubeStatus="FAILURE"), Ingest(), id="status of the wrong type"),
        pytest.param(metadata(youtubeStatus=[]), Ingest(), id="status that is a list"),
        pytest.param(metadata(youtubeStatus={"state": 1, "failureReason": "X"}), Ingest(), id="wrong types inside"),
        pytest.param(
            metadata(youtubeStatus={"failureReason": {"reason": 1, "code": "403"}}), Ingest(), id="wrong types deeper"
        ),
        pytest.param(metadata(youtubeStatus={"failureReason": {"code": True}}), Ingest(), id="a bool is no code"),
        pytest.param(
            metadata(youtubeStatus={"state": "NEWER", "failureReason": {"reason": "NEW_REASON"}}),
            Ingest(youtube_state="NEWER", failure_reason="NEW_REASON"),
            id="newer words",
        ),
        pytest.param(
            FULL_METADATA,
            Ingest(SIGNED, "gv1", datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC), "FAILURE", "DOWNLOAD_ERROR", 403),
            id="everything",
        ),
    ],
)
def test_metadata_becomes_an_ingest(given: dict[str, Any], expected: Ingest) -> None:
    assert Ingest.from_metadata(given) == expected
    assert Operation(NAME, RUNNING, metadata=given).ingest == expected


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"createTime": "2026-01-02T03:04:05Z"},
        {"@type": "type.googleapis.com/google.cloud.OtherMetadata", "creativeUrl": PLAIN},
        {"@type": "type.googleapis.com/google.ads.dai.v1.NotACreateCreativeOperationMetadata"},
        {"@type": "CreateCreativeOperationMetadata2"},
        {"@type": "", "creativeUrl": PLAIN},
        {"@type": 3, "creativeUrl": PLAIN},
        {"@type": ["CreateCreativeOperationMetadata"]},
    ],
)
def test_metadata_of_another_kind_is_no_ingest(given: dict[str, Any] | None) -> None:
    assert Ingest.from_metadata(given) is None
    assert Operation(NAME, RUNNING, metadata=given).ingest is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.5Z", datetime(2026, 1, 2, 3, 4, 5, 500000, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)),
        ("2026-01-02T05:04:05+02:00", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_with_its_zone(text: str, expected: datetime) -> None:
    ingest = Ingest.from_metadata(metadata(createTime=text))
    assert ingest is not None
    assert ingest.create_time is not None
    assert ingest.create_time - expected == timedelta(0)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-02T03:04:60Z", "1767323045", "10000-01-01T00:00:00Z"]
)
def test_what_is_no_time_is_none(text: str) -> None:
    assert Ingest.from_metadata(metadata(createTime=text)) == Ingest()


OPERATIONS = [
    pytest.param(Operation(NAME, RUNNING), id="running"),
    pytest.param(Operation(NAME, RUNNING, metadata={}), id="empty metadata"),
    pytest.param(Operation(NAME, SUCCEEDED), id="succeeded"),
    pytest.param(
        Operation(NAME, SUCCEEDED, response={"name": "creatives/c", "n": [1, 2.5, None, True]}), id="response"
    ),
    pytest.param(Operation(NAME, FAILED, 13, "boom", metadata=metadata(creativeUrl=PLAIN)), id="failed"),
    pytest.param(Operation(NAME, FAILED, 0), id="failed without a code"),
    pytest.param(Operation(NAME, CANCELLED, 1, ""), id="cancelled"),
    pytest.param(Operation("operations/\u00fc", RUNNING, metadata=metadata(gvRegistryId="\u65e5")), id="non-ASCII"),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_survives_xcom(operation: Operation) -> None:
    data = operation.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert Operation.from_dict(json.loads(json.dumps(data))) == operation


def test_the_json_form_in_full() -> None:
    operation = Operation(NAME, FAILED, 9, f"cannot read {SIGNED} now", None, FULL_METADATA)
    assert operation.to_dict() == {
        "name": NAME,
        "state": "FAILED",
        "done": True,
        "error_code": 9,
        "error_message": f"cannot read {PLAIN} now",
        "creative_name": "creatives/gv1",
        "ingest": {
            "creative_url": PLAIN,
            "gv_registry_id": "gv1",
            "create_time": "2026-01-02T03:04:05.123456+00:00",
            "youtube_state": "FAILURE",
            "failure_reason": "DOWNLOAD_ERROR",
            "failure_code": 403,
        },
        "response": None,
        "metadata": {**FULL_METADATA, "creativeUrl": PLAIN},
    }


def test_the_json_form_of_what_the_service_has_not_said() -> None:
    assert Operation(NAME, RUNNING, metadata=metadata()).to_dict() == {
        "name": NAME,
        "state": "RUNNING",
        "done": False,
        "error_code": None,
        "error_message": None,
        "creative_name": None,
        "ingest": dict.fromkeys(
            ["creative_url", "gv_registry_id", "create_time", "youtube_state", "failure_reason", "failure_code"]
        ),
        "response": None,
        "metadata": {"@type": METADATA_TYPE},
    }
    assert Operation(NAME, RUNNING).to_dict()["ingest"] is None


def test_the_json_form_holds_plain_types_only() -> None:
    data = Operation(NAME, RUNNING, metadata=FULL_METADATA).to_dict()
    assert type(data["state"]) is str
    assert type(data["ingest"]["create_time"]) is str


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"uri": SIGNED}, id="field"),
        pytest.param({"note": f"took {SIGNED}, then {SIGNED}"}, id="inside a text"),
        pytest.param({"mediaFiles": [{"uri": SIGNED}, [SIGNED]]}, id="in lists"),
        pytest.param({"a": {"b": {"c": {"d": SIGNED}}}}, id="deep"),
        pytest.param({"files": {SIGNED: 1}}, id="key"),
    ],
)
def test_no_secret_of_a_url_is_in_the_json_form(value: dict[str, Any]) -> None:
    for operation in (
        Operation(NAME, SUCCEEDED, response=value, metadata=value),
        Operation(NAME, FAILED, 3, f"cannot read {SIGNED}", metadata=metadata(creativeUrl=SIGNED, **value)),
    ):
        text = json.dumps(operation.to_dict())
        assert PLAIN in text
        assert "5ec7e7" not in text
        assert "pw@" not in text


def test_the_operation_itself_keeps_the_url_as_it_is() -> None:
    operation = Operation(NAME, RUNNING, metadata=FULL_METADATA)
    operation.to_dict()
    assert operation.metadata is not None
    assert operation.metadata["creativeUrl"] == SIGNED


def test_the_message_of_an_error_has_no_signature() -> None:
    operation = Operation("operations/x", OperationState.FAILED, 13, f"download of {SIGNED_URL} failed")
    for shown in (repr(operation), str(operation), operation.error_message, str(operation.to_dict())):
        assert SIGNATURE not in str(shown)


def test_the_url_to_print_has_no_signature() -> None:
    ingest = Operation(NAME, RUNNING, metadata=FULL_METADATA).ingest
    assert ingest is not None
    assert ingest.creative_url == PLAIN
    assert ingest.signed_creative_url == SIGNED
    assert SIGNED not in repr(ingest)


def test_metadata_as_deep_as_google_allows_survives() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"x": [deep]}
    operation = Operation(NAME, RUNNING, metadata=deep)
    assert Operation.from_dict(operation.to_dict()) == operation


def test_what_is_derived_is_not_read() -> None:
    data = {"name": NAME, "state": "RUNNING", "done": True, "ingest": {"youtube_state": "X"}, "more": 1}
    assert Operation.from_dict(data) == Operation(NAME, RUNNING)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected an operation's dict, got None"),
        ("operations/a", "expected an operation's dict, got 'operations/a'"),
        ([], "expected an operation's dict"),
        ({}, "expected an operation's dict with name and state"),
        ({"name": NAME}, "expected an operation's dict with name and state"),
        ({"name": NAME, "done": True}, "expected an operation's dict with name and state"),
        ({"state": "RUNNING"}, "expected an operation's dict with name and state"),
        ({"name": "", "state": "RUNNING"}, "expected an operation's dict with name and state"),
        ({"name": NAME, "state": None}, "expected an operation's dict with name and state"),
        ({"name": NAME, "state": "DONE"}, "expected an operation's dict with name and state"),
        ({"name": NAME, "state": "running"}, "expected an operation's dict with name and state"),
        ({"name": NAME, "state": ["RUNNING"]}, "expected 'state' to be of type str"),
        ({"name": 3, "state": "RUNNING"}, "expected 'name' to be of type str"),
        ({"name": NAME, "state": "FAILED", "error_code": "3"}, "expected 'error_code' to be of type int"),
        ({"name": NAME, "state": "FAILED", "error_message": 3}, "expected 'error_message' to be of type str"),
        ({"name": NAME, "state": "SUCCEEDED", "response": []}, "expected 'response' to be of type dict"),
        ({"name": NAME, "state": "RUNNING", "metadata": "x"}, "expected 'metadata' to be of type dict"),
    ],
)
def test_what_is_no_operations_dict_is_refused(data: object, message: str) -> None:
    with pytest.raises(InvalidOperationError, match=message):
        Operation.from_dict(data)


def status(**fields: Any) -> dict[str, Any]:
    return metadata(youtubeStatus=fields)


@pytest.mark.parametrize(
    ("operation", "line"),
    [
        (Operation(NAME, RUNNING), f"{NAME} is RUNNING"),
        (Operation(NAME, RUNNING, metadata={"@type": "x/Other"}), f"{NAME} is RUNNING"),
        (Operation(NAME, RUNNING, metadata=metadata()), f"{NAME} is RUNNING (ingest of unknown state)"),
        (
            Operation(NAME, RUNNING, metadata=status(state="PROCESSING")),
            f"{NAME} is RUNNING (ingest PROCESSING)",
        ),
        (Operation(NAME, SUCCEEDED, metadata=status(state="SUCCESS")), f"{NAME} is SUCCEEDED (ingest SUCCESS)"),
        (Operation(NAME, CANCELLED, 1, "by user"), f"{NAME} is CANCELLED"),
        (Operation(NAME, FAILED, 13, "boom."), f"{NAME} failed: error 13: boom"),
        (Operation(NAME, FAILED, 13), f"{NAME} failed: error 13: no message"),
        (Operation(NAME, FAILED, 0, "m"), f"{NAME} failed: error without a code: m"),
        (Operation(NAME, FAILED, 13, metadata=metadata()), f"Ingest {NAME} failed: error 13: no message"),
        (
            Operation(NAME, FAILED, 3, f"cannot read {SIGNED}", metadata=FULL_METADATA),
            f"Ingest of cdn.example/v.mp4 ({NAME}) failed: DOWNLOAD_ERROR 403 (error 3: cannot read {PLAIN})",
        ),
        (
            Operation(
                NAME, FAILED, 3, "x", metadata=status(state="FAILURE", failureReason={"reason": "INVALID_MEDIA"})
            ),
            f"Ingest {NAME} failed: INVALID_MEDIA (error 3: x)",
        ),
        (
            Operation(NAME, FAILED, 3, "x", metadata=status(failureReason={"reason": "INTERNAL_ERROR", "code": 0})),
            f"Ingest {NAME} failed: INTERNAL_ERROR (error 3: x)",
        ),
    ],
)
def test_the_words_for_a_log(operation: Operation, line: str) -> None:
    assert str(operation) == line
