"""The JSON form of operations and of their errors, as XComs, events and the task state store hold it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.operation import INGEST_FIELDS, Operation
from airflow_dai_provider.api.storable import LEFT_OUT, storable_text

#: The most characters of JSON that a list may have; a longer one holds no more than :func:`_without_raw_fields` keeps.
MAX_CHARACTERS = 4_000_000
#: The most characters of an error message in a longer list.
MAX_MESSAGE = 300


def to_dicts(operations: Sequence[Operation | dict[str, Any] | None]) -> list[dict[str, Any] | None]:
    """Return the JSON forms of operations, None for None.

    A list of more than :data:`MAX_CHARACTERS` is shortened: of ``response`` and ``metadata`` it keeps only the
    creative's name and the fields of the ingest, and error messages are cut.

    :param operations: one that was not started, or still runs, can be given in its JSON form, without ``response`` and
        ``metadata``.
    """
    dicts = [one.to_dict() if isinstance(one, Operation) else one for one in operations]
    if sum(len(json.dumps(one)) for one in dicts) <= MAX_CHARACTERS:
        return dicts
    return [_shortened(one) for one in operations]


def from_dicts(dicts: Sequence[object]) -> list[Operation | None]:
    """Return the operations of a list that :func:`to_dicts` has made.

    :raises InvalidOperationError: for anything else.
    """
    return [None if one is None else Operation.from_dict(one) for one in dicts]


def errors_to_json(errors: Mapping[str, ServiceError]) -> dict[str, list[str]]:
    """Return by name the rpc code and the message of each error."""
    return {name: [error.rpc_code.value, str(error)] for name, error in errors.items()}


def errors_from_json(errors: Mapping[str, Sequence[str]]) -> dict[str, ServiceError]:
    """Return the errors that :func:`errors_to_json` has taken.

    :raises ValueError, TypeError, AttributeError: for anything else.
    """
    return {name: ServiceError(message, Code(code)) for name, (code, message) in errors.items()}


def _shortened(one: Operation | dict[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(one, Operation):
        return _without_raw_fields(one).to_dict()
    if one and (message := one.get("error_message")):
        return one | {"error_message": storable_text(message, MAX_MESSAGE)}
    return one


def _without_raw_fields(operation: Operation) -> Operation:
    note = {LEFT_OUT: "the list of operations is too long for it; operations.get returns it"}
    message, response, metadata = operation.error_message, operation.response, operation.metadata
    if response is not None:
        response = {"name": operation.creative_name, **note}
    if metadata is not None:
        metadata = {field: metadata[field] for field in INGEST_FIELDS if field in metadata and operation.ingest} | note
    return replace(
        operation,
        error_message=message and storable_text(message, MAX_MESSAGE),
        response=response,
        metadata=metadata,
    )
