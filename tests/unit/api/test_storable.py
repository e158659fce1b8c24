"""JSON values become what Airflow can store; nothing else about them changes."""

import json
from typing import Any

import pytest

from airflow_dai_provider.api.operation import InvalidOperationError, Operation
from airflow_dai_provider.api.storable import (
    LEFT_OUT,
    MAX_CHARACTERS,
    MAX_LEVELS,
    MAX_MESSAGE,
    STORED_LEVELS,
    pack,
    storable,
    storable_object,
    storable_text,
    unpack,
)
from tests.support.payloads import NAME, URL, metadata


def nested(levels: int) -> Any:
    """Return an object of this many levels of objects and lists."""
    value: Any = {"inmost": 1}
    for level in range(1, levels):
        value = {"x": value} if level % 2 else [value]
    return {"x": value} if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        *((value, value) for value in (None, True, 0, -(2**63), 2**63 - 1, -0.5, "", "\u65e5 \U0001f600 \t\n\x01")),
        ("a\0b", "a\ufffdb"),
        ("cut \ud83d", "cut \ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        (2**63, str(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (1e22, "1e+22"),
        ({"a\0": {"\ud83d": [1, "\0"]}}, {"a\ufffd": {"\ufffd": [1, "\ufffd"]}}),
        (
            {"__classname__": 1, "__type": 2, "__var": 3, "_a": 4},
            {"(__classname__)": 1, "(__type)": 2, "(__var)": 3, "_a": 4},
        ),
        ((1, (2,)), [1, [2]]),
        ({1: 2}, {"1": 2}),
        ({1, 2}, "{1, 2}"),
    ],
)
def test_only_what_cannot_be_stored_is_replaced(given: Any, stored: Any) -> None:
    assert storable(given) == stored
    assert type(storable(given)) is type(stored)
    assert storable(stored) == stored


def test_a_number_of_more_digits_than_python_writes_is_cut() -> None:
    assert len(storable(10**10_000)) <= 1000


def test_a_long_text_is_cut_and_says_so() -> None:
    assert storable_text("x" * 100, 100) == "x" * 100
    cut = storable_text("x" * 101, 100)
    assert len(cut) == 100
    assert cut.endswith("... (cut: 101 characters)")


def test_what_lies_too_deep_is_kept_as_the_text_of_its_json() -> None:
    assert storable_object(nested(STORED_LEVELS)) == nested(STORED_LEVELS)
    given = nested(STORED_LEVELS + 2)
    stored: Any = storable_object(given)
    for _ in range(STORED_LEVELS):
        given, stored = (one["x"] if isinstance(one, dict) else one[0] for one in (given, stored))
    assert '"inmost": 1' in stored
    assert stored == json.dumps(given)


@pytest.mark.parametrize("levels", [MAX_LEVELS + 2, 600])
def test_deeper_json_is_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_LEVELS} levels"):
        storable_object(nested(levels))
    with pytest.raises(InvalidOperationError, match=f"metadata of '{NAME}': expected JSON of at most"):
        Operation.from_api({"name": NAME, "metadata": nested(levels)})


@pytest.mark.parametrize(
    "large",
    [
        pytest.param({"note": "x" * 10**6}, id="one text"),
        pytest.param({"list": [{"a": 1}] * 10**5}, id="one list"),
        pytest.param({"\u65e5" * 10**5: 1}, id="one key"),
    ],
)
def test_of_large_metadata_the_small_fields_are_kept(large: dict[str, Any]) -> None:
    operation = Operation.from_api({"name": NAME, "metadata": {**large, **metadata(creativeUrl=URL)}})
    assert operation.metadata is not None
    assert len(json.dumps(operation.metadata)) <= MAX_CHARACTERS
    assert "characters of JSON: " in operation.metadata[LEFT_OUT]
    assert operation.ingest is not None
    assert operation.ingest.creative_url == URL
    assert Operation.from_dict(operation.to_dict()) == operation


def test_of_too_many_small_fields_only_some_are_kept() -> None:
    stored = storable_object({str(number): number for number in range(10**5)})
    assert len(json.dumps(stored)) <= MAX_CHARACTERS
    assert storable_object(stored) == stored


def test_a_long_error_message_is_cut() -> None:
    failed = Operation.from_api({"name": NAME, "done": True, "error": {"code": 3, "message": "x" * 10**6}})
    assert failed.error_message is not None
    assert len(failed.error_message) == MAX_MESSAGE


@pytest.mark.parametrize("name", ["operations/a\0", "operations/\ud83d", "operations/a\nb", "operations/" + "a" * 3000])
def test_an_operation_with_a_name_that_cannot_be_shown_cannot_be_read(name: str) -> None:
    with pytest.raises(InvalidOperationError, match="expected a name of at most 2000 printable characters, got"):
        Operation.from_api({"name": name})


@pytest.mark.parametrize("code", [2**63, -(2**63) - 1, 10**30])
def test_a_code_of_more_than_64_bits_cannot_be_read(code: int) -> None:
    with pytest.raises(InvalidOperationError, match="expected 'code' to be of type int"):
        Operation.from_api({"name": NAME, "done": True, "error": {"code": code}})


@pytest.mark.parametrize(
    "value", [None, [], {}, 0, "", "\u65e5 \ud83d", ["operations/a"] * 3, {"a": [1, 2.5, None, True]}]
)
def test_a_packed_value_is_a_text_of_ascii_and_comes_back(value: Any) -> None:
    assert pack(value).isascii()
    assert unpack(pack(value)) == value


@pytest.mark.parametrize("text", ["", "a", "operations/a", "\u65e5", "\0", '"', pack([1])[:-1], pack([1])[1:]])
def test_a_text_that_was_not_packed_is_refused_with_what_was_given(text: str) -> None:
    with pytest.raises(ValueError, match="expected a compressed JSON value, got"):
        unpack(text)
