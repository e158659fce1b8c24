"""The JSON form of a list of operations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_dai_provider.api.operation import InvalidOperationError, Operation
from airflow_dai_provider.api.operation_list import MAX_CHARACTERS, MAX_MESSAGE, from_dicts, to_dicts
from airflow_dai_provider.api.storable import LEFT_OUT
from tests.support.payloads import METADATA_TYPE

LONG = "x" * 50_000


def operation(number: int, **fields: Any) -> Operation:
    return Operation.from_api({"name": f"operations/{number}", **fields})


def long(number: int) -> Operation:
    """Return an ingest that has succeeded, with a lot that this package does not read."""
    ingest = {"@type": METADATA_TYPE, "creativeUrl": "https://media.example/ad.mp4", "googleVideoRegistryId": "gv-1"}
    return operation(
        number, done=True, response={"name": "creatives/gv-1", "more": LONG}, metadata={**ingest, "more": LONG}
    )


def failed(number: int) -> Operation:
    return operation(number, done=True, error={"code": 13, "message": "y" * 4_000})


def test_a_short_list_is_kept_whole_in_its_order() -> None:
    operations = [operation(2), None, long(1), failed(3)]
    dicts = to_dicts(operations)
    assert dicts == [one.to_dict() if one else None for one in operations]
    assert from_dicts(json.loads(json.dumps(dicts))) == operations


def test_a_long_list_also_cuts_the_messages_of_what_was_not_started() -> None:
    refused = {"name": None, "done": False, "error_message": "y" * 4_000}
    assert to_dicts([refused, long(1), None]) == [refused, long(1).to_dict(), None]
    rows = to_dicts([*[refused] * 2_000, {"name": "operations/1", "error_message": None}, None])
    assert len(json.dumps(rows)) < MAX_CHARACTERS / 4
    assert [len(str(row["error_message"])) for row in rows[:2] if row] == [MAX_MESSAGE] * 2
    assert rows[-2:] == [{"name": "operations/1", "error_message": None}, None]


def test_an_empty_list_is_one() -> None:
    assert to_dicts([]) == from_dicts([]) == []


def test_a_long_list_keeps_what_this_package_reads() -> None:
    operations = [*map(long, range(50)), None, *map(failed, range(50, 60))]
    dicts = to_dicts(operations)
    assert len(json.dumps(dicts)) < MAX_CHARACTERS / 10
    for before, after in zip(operations, from_dicts(dicts), strict=True):
        if before is None:
            assert after is None
            continue
        assert after is not None
        kept = ("name", "state", "error_code", "done", "creative_name", "ingest")
        assert [getattr(after, field) for field in kept] == [getattr(before, field) for field in kept]
    first, last = dicts[0], dicts[-1]
    assert first is not None
    assert last is not None
    assert LEFT_OUT in first["response"]
    assert LEFT_OUT in first["metadata"]
    assert len(last["error_message"]) <= MAX_MESSAGE
    assert LONG[:1_000] not in json.dumps(dicts)


@pytest.mark.parametrize("maker", [long, failed, operation])
def test_ten_thousand_operations_have_a_bound(maker: Any) -> None:
    """What PostgreSQL, MySQL (1 GB) and the wire between Airflow's processes take."""
    same = maker(1)
    assert len(json.dumps(to_dicts([same] * 10_000))) < 20_000_000


def test_metadata_of_another_kind_is_left_out_of_a_long_list() -> None:
    other = operation(1, done=True, response={}, metadata={"@type": "type.googleapis.com/other", "more": LONG})
    (first, *_) = to_dicts([other] * 100)
    assert first is not None
    assert set(first["metadata"]) == {LEFT_OUT}


@pytest.mark.parametrize("other", ["text", 7, {}, {"name": "operations/a"}, []])
def test_anything_else_cannot_be_read(other: Any) -> None:
    with pytest.raises(InvalidOperationError):
        from_dicts([other])
