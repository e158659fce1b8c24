"""Pages of operations.list: which operations they show. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_dai_provider.api.names import check_operation_name
from airflow_dai_provider.api.operation import InvalidOperationError, Operation
from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.api.storable import MAX_CHARACTERS, is_storable_text

#: The fields of a page, by ``google/longrunning/operations.proto``.
_FIELDS = frozenset({"operations", "nextPageToken", "unreachable"})


@dataclass(frozen=True, slots=True)
class OperationPage:
    """One page of operations.list.

    :param operations: those that can be read, each with a valid name.
    :param next_page_token: the token of the next page, None on the last.
    :param unreadable: for each of the other items, and for each place that the service could not reach, what is wrong.
    :param too_large: whether the response was too large to be read: a smaller page is to be asked for instead.
    """

    operations: tuple[Operation, ...]
    next_page_token: str | None
    unreadable: tuple[str, ...] = ()
    too_large: bool = False


@dataclass(frozen=True, slots=True)
class PolledPage:
    """The polled operations on one page of operations.list.

    :param running: by name, those that run.
    :param others: the names of those that are done or cannot be read, and are polled by get.
    :param next_page_token: the token of the next page, None on the last.
    :param too_large: whether the response was too large to be read: a smaller page is to be asked for instead.
    """

    running: dict[str, Operation]
    others: frozenset[str]
    next_page_token: str | None
    too_large: bool = False


def read_page(page: dict[str, Any]) -> OperationPage:
    """Read a page. One item that cannot be read does not hide the others: nothing else tells which operations run."""
    items, token = _items_and_token(page)
    operations = []
    unreadable = [f"the service cannot reach {short_repr(place)}" for place in page.get("unreachable") or ()]
    for item in items:
        try:
            operation = Operation.from_api(item)
            check_operation_name(operation.name)
        except ValueError as error:
            unreadable.append(str(error))
        else:
            operations.append(operation)
    return OperationPage(tuple(operations), token, tuple(unreadable))


def read_polled(seen: Mapping[str, Operation | None], page: dict[str, Any]) -> PolledPage:
    """Read only the polled operations of a page, and parse only those that have changed."""
    items, token = _items_and_token(page)
    running: dict[str, Operation] = {}
    others = set()
    for item in items:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in seen:
            continue
        operation = _read_running(item, seen[name])
        if operation:
            running[name] = operation
        else:
            others.add(name)
    # An operation that is listed twice, as running and as done, is done.
    return PolledPage({name: running[name] for name in running if name not in others}, frozenset(others), token)


def _read_running(item: dict[str, Any], last: Operation | None) -> Operation | None:
    """Read a listed operation; return None when it does not run, or cannot be read."""
    done = item.get("done")
    if done is not None and done is not False:
        return None
    if last and not last.done and item.get("metadata") == last.metadata:
        # Most have not changed, and making metadata storable is slow.
        return last
    try:
        return Operation.from_api(item)
    except InvalidOperationError:
        return None


def _items_and_token(page: dict[str, Any]) -> tuple[list[Any], str | None]:
    token = page.get("nextPageToken") or None
    items, unreachable = ([] if page.get(name) is None else page[name] for name in ("operations", "unreachable"))
    # A field without a value is left out, so an empty page is {}. Any other object must not count as an empty page.
    is_page = not page or bool(page.keys() & _FIELDS)
    are_lists = isinstance(items, list) and isinstance(unreachable, list)
    if not (is_page and are_lists and (token is None or _is_token(token))):
        raise InvalidOperationError(f"expected a page of operations, got {short_repr(page)}")
    return items, token


def _is_token(token: object) -> bool:
    """Return whether the token of a page can be sent back."""
    return isinstance(token, str) and len(token) <= MAX_CHARACTERS and is_storable_text(token)
