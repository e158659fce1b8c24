"""Operations of the DAI service: their states, and their ingests. Pure; the only place that reads their JSON.

Source:
``google/longrunning/operations.proto`` and
https://developers.google.com/video-creative-ingest/reference/rest/v1/operations
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from airflow_dai_provider.api.redaction import redact_urls, short_repr

#: ``google.rpc.Code`` of an operation that was cancelled.
CANCELLED_CODE = 1

_INGEST_METADATA_TYPE = "CreateCreativeOperationMetadata"
_INGEST_METADATA_KEYS = frozenset({"creativeUrl", "gvRegistryId", "youtubeStatus"})


class InvalidOperationError(ValueError):
    """The response does not hold the operation that it should."""


class OperationState(StrEnum):
    """The state of an operation.

    ``CANCELLED`` is done with error code 1 and nothing else; every other error is ``FAILED``; done without
    an error is ``SUCCEEDED``, with or without a response.
    """

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


#: The states of an operation that is done.
FINAL_STATES = frozenset({OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Ingest:
    """The ingest of an operation, from its metadata (``CreateCreativeOperationMetadata``).

    A field is None when the service has not set it, or has set it to a value of another type.

    :param creative_url: the media URL that Google chose. It can be signed, so it is kept out of logs.
    :param gv_registry_id: set on success; the creative is then ``creatives/{gv_registry_id}``.
    :param create_time: when the operation was created, an aware time.
    :param youtube_state: ``PROCESSING``, ``SUCCESS``, ``FAILURE``, or a newer state.
    :param failure_reason: ``DOWNLOAD_ERROR``, ``INTERNAL_ERROR``, ``INVALID_MEDIA``, or a newer reason.
    :param failure_code: the HTTP status of the download, after ``DOWNLOAD_ERROR``.
    """

    creative_url: str | None = field(default=None, repr=False)
    gv_registry_id: str | None = None
    create_time: datetime | None = None
    youtube_state: str | None = None
    failure_reason: str | None = None
    failure_code: int | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any] | None) -> Self | None:
        """Read the metadata of an operation.

        :param metadata: the JSON object ``metadata``, or None.
        :return: the ingest, or None where the metadata is of another kind or absent.
        """
        if metadata is None:
            return None
        type_url = metadata.get("@type")
        if type_url is None:
            if not _INGEST_METADATA_KEYS & metadata.keys():
                return None
        elif str(type_url).replace("/", ".").rpartition(".")[2] != _INGEST_METADATA_TYPE:
            return None
        status = _typed(metadata.get("youtubeStatus"), dict) or {}
        failure = _typed(status.get("failureReason"), dict) or {}
        return cls(
            creative_url=_typed(metadata.get("creativeUrl"), str),
            gv_registry_id=_typed(metadata.get("gvRegistryId"), str),
            create_time=_read_time(metadata.get("createTime")),
            youtube_state=_typed(status.get("state"), str),
            failure_reason=_typed(failure.get("reason"), str),
            failure_code=_typed(failure.get("code"), int),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; the URL has no user, query and fragment."""
        return {
            "creative_url": redact_urls(self.creative_url) if self.creative_url else None,
            "gv_registry_id": self.gv_registry_id,
            "create_time": self.create_time.isoformat() if self.create_time else None,
            "youtube_state": self.youtube_state,
            "failure_reason": self.failure_reason,
            "failure_code": self.failure_code,
        }

    def __str__(self) -> str:
        parts = [self.youtube_state or "of unknown state"]
        if self.failure_reason:
            parts.append(f"{self.failure_reason} {self.failure_code}" if self.failure_code else self.failure_reason)
        return "ingest " + ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Operation:
    """One long-running operation, as the service last returned it.

    :param name: ``operations/...``, with as many segments as the service likes.
    :param state: the state.
    :param error_code: ``google.rpc.Code`` (1 to 16) of an operation that failed or was cancelled, else None.
    :param error_message: the message of that error.
    :param response: the JSON object that a successful operation returns (a Creative), or None.
    :param metadata: the JSON object ``metadata``, or None.
    """

    name: str
    state: OperationState
    error_code: int | None = None
    error_message: str | None = None
    response: dict[str, Any] | None = field(default=None, repr=False)
    metadata: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def done(self) -> bool:
        """Whether the operation is in any final state."""
        return self.state in FINAL_STATES

    @property
    def ingest(self) -> Ingest | None:
        """The ingest, from the metadata; None where there is no such metadata."""
        return Ingest.from_metadata(self.metadata)

    @classmethod
    def from_api(cls, resource: object) -> Self:
        """Read the resource ``google.longrunning.Operation``; unknown fields are ignored.

        :param resource: the decoded JSON.
        :return: the operation.
        :raises InvalidOperationError: when it is not an object, has no name, is done with both an error and a
            response, or has a field of the wrong type.
        """
        if not isinstance(resource, dict):
            raise InvalidOperationError(f"expected an operation, a JSON object, got {short_repr(resource)}")
        name = _field(resource, "name", str)
        if not name:
            raise InvalidOperationError(f"expected an operation with a name, got {short_repr(resource)}")
        done = _field(resource, "done", bool) or False
        error = _field(resource, "error", dict)
        response = _field(resource, "response", dict)
        metadata = _field(resource, "metadata", dict)
        if not done:
            return cls(name, OperationState.RUNNING, metadata=metadata)
        if error is None:
            return cls(name, OperationState.SUCCEEDED, response=response, metadata=metadata)
        if response is not None:
            raise InvalidOperationError(f"expected either an error or a response in {name!r}, got both")
        code = _field(error, "code", int) or 0
        state = OperationState.CANCELLED if code == CANCELLED_CODE else OperationState.FAILED
        return cls(name, state, code, _field(error, "message", str), None, metadata)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, for XCom, trigger events and logs.

        A media URL can be signed, so URLs have no user, query and fragment.

        :return: ``{"name": str, "state": str, "done": bool, "error_code": int | None,
            "error_message": str | None, "ingest": {...} | None, "response": {...} | None,
            "metadata": {...} | None}``; ``ingest`` has the fields of :class:`Ingest`.
        """
        ingest = self.ingest
        return {
            "name": self.name,
            "state": self.state.value,
            "done": self.done,
            "error_code": self.error_code,
            "error_message": _redacted(self.error_message),
            "ingest": ingest.to_dict() if ingest else None,
            "response": _redacted(self.response),
            "metadata": _redacted(self.metadata),
        }

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read the JSON form that :meth:`to_dict` returns.

        :param data: that JSON object; ``done`` and ``ingest`` are derived and not read.
        :return: the operation.
        :raises InvalidOperationError: when it is something else.
        """
        if not isinstance(data, dict):
            raise InvalidOperationError(f"expected an operation's dict, got {short_repr(data)}")
        name, state = _field(data, "name", str), _field(data, "state", str)
        if not name or state not in set(OperationState):
            raise InvalidOperationError(f"expected an operation's dict with name and state, got {short_repr(data)}")
        return cls(
            name,
            OperationState(state),
            _field(data, "error_code", int),
            _field(data, "error_message", str),
            _field(data, "response", dict),
            _field(data, "metadata", dict),
        )

    def __str__(self) -> str:
        """Return the name and the state, and the reason of a failure, for a log."""
        words = f"{self.name} is {self.state}"
        if self.state is OperationState.FAILED:
            words += f" with error {self.error_code}: {redact_urls(self.error_message or 'no message')}"
        ingest = self.ingest
        if ingest is None:
            return words
        # The metadata of a cancelled operation shows what the ingest did before.
        return f"{words} (last: {ingest})" if self.state is OperationState.CANCELLED else f"{words} ({ingest})"


def _field(data: Mapping[str, Any], key: str, kind: type[Any]) -> Any:
    """Return a field that may be absent or null, and must otherwise be of this type."""
    value = data.get(key)
    if value is not None and _typed(value, kind) is None:
        raise InvalidOperationError(f"expected {key!r} to be of type {kind.__name__}, got {short_repr(value)}")
    return value


def _typed(value: object, kind: type[Any]) -> Any:
    """Return the value if it is of this type (a bool is no int), else None."""
    return value if isinstance(value, kind) and not (kind is int and isinstance(value, bool)) else None


def _read_time(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)


def _redacted(value: Any) -> Any:
    """Return a JSON value after :func:`redact_urls` was applied to every string in it."""
    if isinstance(value, str):
        return redact_urls(value)
    if isinstance(value, dict):
        return {redact_urls(key): _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return value
