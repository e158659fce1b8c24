"""Fields that take one value or a list: how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from airflow_dai_provider.api.names import InvalidNameError
from airflow_dai_provider.tasks.one_or_many import MAX_MANY, check_operation_names, given_form, one_or_many

A, B, C = "operations/a", "operations/b", "operations/c"


class Lazy(Sequence[Any]):
    """The output of a mapped task, as Airflow gives it: each index and each length costs a request."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values
        self.requests: list[str] = []

    def __getitem__(self, key: Any) -> Any:
        self.requests.append("slice" if isinstance(key, slice) else f"index {key}")
        return self.values[key]

    def __len__(self) -> int:
        self.requests.append("length")
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        self.requests.append("iteration")
        return iter(self.values)

    def __repr__(self) -> str:
        return f"LazyXComSequence([{len(self.values)} items])"


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ([A, B], [A, B]),
        ((A, B), [A, B]),
        ([A], [A]),
        ([], []),
        ((), []),
        ([B, A, B], [B, A, B]),
        ({A: 1, B: 2}.keys(), [A, B]),
        ([A, None], [A, None]),
        ('["operations/a", "operations/b"]', [A, B]),
        ("['operations/a', 'operations/b']", [A, B]),
        (" \n['operations/a',]\n", [A]),
        ("[None, 'operations/a']", [None, A]),
        ("[null]", [None]),
        ("[]", []),
        (f'["{A}", {{"name": true}}]', [A, {"name": True}]),
    ],
)
def test_a_list_is_read_in_its_order(given: Any, values: list[Any]) -> None:
    assert one_or_many("field", given) == (values, True)


@pytest.mark.parametrize("given", [{A}, frozenset({A}), set()], ids=repr)
def test_a_set_is_refused_where_the_order_means_something(given: Any) -> None:
    with pytest.raises(ValueError, match="Invalid field: expected one value or a list, which has an order, got "):
        check_operation_names(given, "field")
    assert check_operation_names(given, "field", in_order=False) == (list(given), True)


@pytest.mark.parametrize("given", [A, "", " ", None, 7, {"a": 1}, b"[1]", "operations/[a]", "{'a'}", "('a', 'b')"])
def test_anything_else_is_one_value(given: Any) -> None:
    assert one_or_many("field", given) == ([given], False)


@pytest.mark.parametrize(
    "text",
    [
        "[operations/a]",
        "['a'",
        "[",
        "[1] + [2]",
        "[x for x in y]",
        "[__import__('os')]",
        "['a'] trailing",
        "['a'], 'b'",
        "[{[]: 1}]",
        "[" * 100_000,
        "['a\0']",
        '["\\ud800"] []',
    ],
)
def test_a_text_that_begins_like_a_list_and_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Invalid field .*expected one value, or a list as JSON or as Python writes"):
        one_or_many("field", text)


@pytest.mark.parametrize("nested", [[A, [B]], [A, (B,)], [A, {B}], f'["{A}", ["{B}"]]', [A, Lazy([B])]])
def test_a_list_within_a_list_is_refused_with_its_index(nested: Any) -> None:
    with pytest.raises(ValueError, match="flat list, got a list within the list at index 1"):
        one_or_many("field", nested)


def test_ten_thousand_values_are_read_and_no_more() -> None:
    assert len(one_or_many("field", [A] * MAX_MANY)[0]) == MAX_MANY == 10_000
    with pytest.raises(ValueError, match="at most 10,000 values, got 10,001"):
        one_or_many("field", [A] * 10_001)


@pytest.mark.parametrize("values", [[A, B], []])
def test_a_lazy_sequence_is_read_by_exactly_one_slice(values: list[str]) -> None:
    lazy = Lazy(values)
    assert check_operation_names(lazy) == (values, True)
    assert lazy.requests == ["slice"]


def test_every_invalid_name_is_told_with_its_index() -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_operation_names([A, None, B, "", 7, "creatives/x"], "field")
    message = str(caught.value)
    assert message.startswith("4 of 6 values of field are invalid.")
    assert [f"field[{index}]" in message for index in range(6)] == [False, True, False, True, True, True]


def test_of_many_invalid_names_the_first_ten_are_told() -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_operation_names([""] * 1234)
    message = str(caught.value)
    assert message.startswith("1,234 of 1,234 values")
    assert message.endswith("And 1,224 more.")
    assert "operation_name[9]" in message
    assert "operation_name[10]" not in message


def test_one_invalid_name_is_told_without_an_index() -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_operation_names("")
    assert "[0]" not in str(caught.value)


@pytest.mark.parametrize("given", [A, [A], [A, B, A], []])
def test_values_have_the_form_in_which_they_were_given(given: Any) -> None:
    values, several = check_operation_names(given)
    assert given_form(values, several=several) == given
