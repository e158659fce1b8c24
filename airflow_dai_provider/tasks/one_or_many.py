"""Read fields that take one value or a list, also where a template has rendered the list to a text."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from airflow_dai_provider.api.many_wait import MAX_NAMED
from airflow_dai_provider.api.names import InvalidNameError, check_operation_name
from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.tasks.xcom import is_several

T = TypeVar("T")

#: The most values of one list.
MAX_MANY = 10_000


def one_or_many(field: str, value: Any, *, in_order: bool = True) -> tuple[list[Any], bool]:
    """Return the values of a field, and whether a list was given.

    The output of a mapped task is a lazy sequence, which is read by one slice: read item by item, each would cost a
    request to Airflow. A text that begins with ``[`` is a list too, as JSON or as Python writes it: a template that is
    not rendered natively gives that.

    :param in_order: whether the order means something, as that of a result does. A set is refused then: its order
        differs from process to process.
    :raises ValueError: for a text that is not a list, a list within a list, a set, and more than 10,000 values.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _read_text(field, value)
    if not is_several(value):
        return [value], False
    if in_order and isinstance(value, set | frozenset):
        raise ValueError(f"Invalid {field}: expected one value or a list, which has an order, got {short_repr(value)}.")
    values = list(_slice(value))
    if len(values) > MAX_MANY:
        raise ValueError(f"Invalid {field}: expected at most {MAX_MANY:,} values, got {len(values):,}.")
    for index, one in enumerate(values):
        if is_several(one):
            raise ValueError(
                f"Invalid {field}: expected one value or a flat list, got a list within the list at index {index}: "
                f"{short_repr(one)}."
            )
    return values, True


def check_operation_names(
    value: Any, field: str = "operation_name", *, in_order: bool = True
) -> tuple[list[str], bool]:
    """Return the names of operations of a field, and whether a list was given.

    :param in_order: as :func:`one_or_many`.
    :raises ValueError: as :func:`one_or_many`, and InvalidNameError for invalid names.
    """
    return check_each(field, value, check_operation_name, InvalidNameError, in_order=in_order)


def check_each(
    field: str,
    value: Any,
    check: Callable[[Any], T],
    error_type: type[ValueError] = ValueError,
    *,
    in_order: bool = True,
) -> tuple[list[T], bool]:
    """Check each value of a field; return what the check returns for each, and whether a list was given.

    :param error_type: of the error that the check raises, and of the one that this raises.
    :param in_order: as :func:`one_or_many`.
    :raises ValueError: as :func:`one_or_many`; for a list, one error of this type for all that is invalid, which names
        the indexes.
    """
    values, several = one_or_many(field, value, in_order=in_order)
    if not several:
        return [check(values[0])], False
    checked: list[T] = []
    problems: list[str] = []
    for index, one in enumerate(values):
        try:
            checked.append(check(one))
        except error_type as error:
            problems.append(f"{field}[{index}]: {error}")
    if problems:
        more = f" And {len(problems) - MAX_NAMED:,} more." if len(problems) > MAX_NAMED else ""
        invalid = f"{len(problems):,} of {len(values):,} values of {field} are invalid."
        raise error_type(f"{invalid} {' '.join(problems[:MAX_NAMED])}{more}")
    return checked, True


def given_form(values: Sequence[T], *, several: bool) -> T | list[T]:
    """Return the values in the form in which they were given: one, or a list."""
    return list(values) if several else values[0]


def _slice(values: Any) -> Any:
    """Return all values with one request to Airflow, instead of one request per value."""
    try:
        return values[:]
    except (TypeError, KeyError):
        return values


def _read_text(field: str, text: str) -> list[Any]:
    for read in (json.loads, ast.literal_eval):
        try:
            values = read(text.strip())
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(values, list):
            return values
    raise ValueError(
        f"Invalid {field} {short_repr(text)}: expected one value, or a list as JSON or as Python writes it."
    )
