"""Operations of the DAI service: their states, and their ingests. Pure; the only place that reads their JSON.

Source:
``google/longrunning/operations.proto`` and
https://developers.google.com/video-creative-ingest/reference/rest/v1/operations
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NoReturn, Self

from airflow_dai_provider.api.names import InvalidNameError, check_creative_name
from airflow_dai_provider.api.redaction import redact_json, redact_urls, short_repr
from airflow_dai_provider.api.storable import MAX_MESSAGE, is_storable_number, storable_object, storable_text

#: The fields of the metadata of an ingest.
INGEST_FIELDS = ("@type", "creativeUrl", "gvRegistryId", "createTime", "youtubeStatus")
#: ``google.rpc.Code`` of an operation that was cancelled.
CANCELLED_CODE = 1

#: The most characters of a name; a request line is no longer than 8 KiB on most servers.
_MAX_NAME = 2_000
#: Why an ingest can fail. A failure without a reason has the first one.
FAILURE_REASONS = ("REASON_UNSPECIFIED", "DOWNLOAD_ERROR", "INTERNAL_ERROR", "INVALID_MEDIA")
#: The most characters of a word such as a state or a reason.
_MAX_WORD = 100
#: The most characters of a media file's URL in a message.
_MAX_FILE = 300
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


class _NoXCom:
    """A value that fails the task that returns it: Airflow would store it, but could not read it in the next task."""

    __slots__ = ()

    def serialize(self) -> NoReturn:
        """Refuse to be stored; Airflow calls this when a task returns or pushes the object.

        :raises TypeError: always.
        """
        kind = type(self).__name__
        raise TypeError(f"{kind} cannot be an XCom, since Airflow cannot read it back: return its to_dict() instead.")


@dataclass(frozen=True, slots=True)
class Ingest(_NoXCom):
    """The ingest of an operation, from its metadata (``CreateCreativeOperationMetadata``).

    A field is None when the service has not set it, or has set it to a value of another type.

    :param creative_url: the media URL that Google chose; the attribute has it without user, query and fragment.
    :param gv_registry_id: set on success; the creative is then ``creatives/{gv_registry_id}``.
    :param create_time: when the operation was created, an aware time.
    :param youtube_state: ``PROCESSING``, ``SUCCESS``, ``FAILURE``, or a newer state.
    :param failure_reason: ``DOWNLOAD_ERROR``, ``INTERNAL_ERROR``, ``INVALID_MEDIA``, or a newer reason.
    :param failure_code: the HTTP status of the download, after ``DOWNLOAD_ERROR``.
    :param signed_creative_url: the media URL as the service has sent it.
        It can hold a signature, so do not print or log it.
    """

    creative_url: str | None = None
    gv_registry_id: str | None = None
    create_time: datetime | None = None
    youtube_state: str | None = None
    failure_reason: str | None = None
    failure_code: int | None = None
    signed_creative_url: str | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "signed_creative_url", self.creative_url)
        if self.creative_url is not None:
            object.__setattr__(self, "creative_url", redact_urls(self.creative_url))

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
            youtube_state=_word(status.get("state")),
            failure_reason=_word(failure.get("reason")),
            failure_code=_typed(failure.get("code"), int),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; the URL has no user, query and fragment."""
        return {
            "creative_url": self.creative_url,
            "gv_registry_id": self.gv_registry_id,
            "create_time": self.create_time.isoformat() if self.create_time else None,
            "youtube_state": self.youtube_state,
            "failure_reason": self.failure_reason,
            "failure_code": self.failure_code,
        }

    @property
    def reason(self) -> str:
        """The reason of the failure, such as ``DOWNLOAD_ERROR 404``; empty where there is none."""
        if self.failure_reason and self.failure_code:
            return f"{self.failure_reason} {self.failure_code}"
        return self.failure_reason or ""

    def __str__(self) -> str:
        return "ingest " + ", ".join(filter(None, (self.youtube_state or "of unknown state", self.reason)))


@dataclass(frozen=True, slots=True)
class Operation(_NoXCom):
    """One long-running operation, as the service last returned it.

    Texts, numbers and keys that Airflow cannot store are replaced, and what is too large is cut: see
    :mod:`airflow_dai_provider.api.storable`. ``response`` and ``metadata`` can hold signed URLs: log :meth:`to_dict`.

    :param name: ``operations/...``, with as many segments as the service likes.
    :param state: the state.
    :param error_code: ``google.rpc.Code`` (1 to 16) of a failed or cancelled operation; 0 for an error without a code,
        which counts as failed; None without an error.
    :param error_message: the message of that error, without the secrets of URLs.
    :param response: the JSON object that a successful operation returns (a Creative), or None.
    :param metadata: the JSON object ``metadata``, or None.
    """

    name: str
    state: OperationState
    error_code: int | None = None
    error_message: str | None = None
    response: dict[str, Any] | None = field(default=None, repr=False)
    metadata: dict[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.error_message is not None:
            message = storable_text(redact_urls(self.error_message), MAX_MESSAGE)
            object.__setattr__(self, "error_message", message)
        for name in ("response", "metadata"):
            value = getattr(self, name)
            if value is not None:
                try:
                    object.__setattr__(self, name, storable_object(value))
                except ValueError as error:
                    raise InvalidOperationError(f"{name} of {short_repr(self.name)}: {error}") from error

    @property
    def done(self) -> bool:
        """Whether the operation is in any final state."""
        return self.state in FINAL_STATES

    @property
    def ingest(self) -> Ingest | None:
        """The ingest, from the metadata; None where there is no such metadata."""
        return Ingest.from_metadata(self.metadata)

    @property
    def creative_name(self) -> str | None:
        """The name of the creative that the ingest has made, ``creatives/...``; None where there is none yet."""
        ingest = self.ingest
        registered = f"creatives/{ingest.gv_registry_id}" if ingest and ingest.gv_registry_id else None
        for name in ((self.response or {}).get("name"), registered):
            with suppress(InvalidNameError):
                return check_creative_name(name)
        return None

    @classmethod
    def from_api(cls, resource: object) -> Self:
        """Read the resource ``google.longrunning.Operation``; unknown fields are ignored.

        :param resource: the decoded JSON.
        :return: the operation.
        :raises InvalidOperationError: when it is not an object, has no name, is done with both an error and a
            response, has a field of the wrong type, is nested too deep, or has a name that cannot be shown.
        """
        if not isinstance(resource, dict):
            raise InvalidOperationError(f"expected an operation, a JSON object, got {short_repr(resource)}")
        name = _field(resource, "name", str)
        if not name:
            raise InvalidOperationError(f"expected an operation with a name, got {short_repr(resource)}")
        if len(name) > _MAX_NAME or not name.isprintable():
            # It could be neither requested nor shown. Its syntax is checked when a request for it is built.
            raise InvalidOperationError(
                f"expected a name of at most {_MAX_NAME} printable characters, got {short_repr(name)}"
            )
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
        code = _read_code(error)
        state = OperationState.CANCELLED if code == CANCELLED_CODE else OperationState.FAILED
        return cls(name, state, code, _field(error, "message", str), None, metadata)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, for XCom, trigger events and logs.

        A media URL can be signed, so URLs have no user, query and fragment.

        :return: ``{"name": str, "state": str, "done": bool, "error_code": int | None,
            "error_message": str | None, "creative_name": str | None, "ingest": {...} | None,
            "response": {...} | None, "metadata": {...} | None}``; ``ingest`` has the fields of :class:`Ingest`.
        """
        ingest = self.ingest
        return {
            "name": self.name,
            "state": self.state.value,
            "done": self.done,
            "error_code": self.error_code,
            "error_message": self.error_message,
            "creative_name": self.creative_name,
            "ingest": ingest.to_dict() if ingest else None,
            "response": redact_json(self.response),
            "metadata": redact_json(self.metadata),
        }

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read the JSON form that :meth:`to_dict` returns.

        :param data: that JSON object; ``done``, ``creative_name`` and ``ingest`` are derived and not read.
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
        """Return the name and the state for a log; for a failed ingest, also its file and the reason of the failure."""
        ingest = self.ingest
        if self.state is OperationState.FAILED:
            reason = ingest.reason if ingest else ""
            code = self.error_code or "without a code"
            error = f"error {code}: {(self.error_message or 'no message').rstrip('.')}"
            return f"{self._subject(ingest)} failed: " + (f"{reason} ({error})" if reason else error)
        words = f"{self.name} is {self.state}"
        if ingest is None:
            return words
        # The metadata of a cancelled operation shows what the ingest did before.
        return f"{words} (last: {ingest})" if self.state is OperationState.CANCELLED else f"{words} ({ingest})"

    def _subject(self, ingest: Ingest | None) -> str:
        if ingest is None:
            return self.name
        if not ingest.creative_url:
            return f"Ingest {self.name}"
        file = ingest.creative_url.partition("://")[2] or ingest.creative_url
        return f"Ingest of {storable_text(file, _MAX_FILE)} ({self.name})"


def _field(data: Mapping[str, Any], key: str, kind: type[Any]) -> Any:
    """Return a field that may be absent or null, and must otherwise be of this type."""
    value = data.get(key)
    if value is not None and _typed(value, kind) is None:
        raise InvalidOperationError(f"expected {key!r} to be of type {kind.__name__}, got {short_repr(value)}")
    return value


def _read_code(error: Mapping[str, Any]) -> int:
    """Return the code of an error, 0 where it has none. JSON of protocol buffers may hold a number as a text."""
    code = error.get("code")
    if isinstance(code, str) and re.fullmatch("[0-9]{1,9}", code):
        return int(code)
    return _field(error, "code", int) or 0


def _typed(value: object, kind: type[Any]) -> Any:
    """Return the value if it is of this type, else None; a bool is not an int, nor is a number of more than 64 bits."""
    if not isinstance(value, kind):
        return None
    if kind is int and (isinstance(value, bool) or not is_storable_number(value)):
        return None
    return value


def _word(value: object) -> str | None:
    return storable_text(value, _MAX_WORD) if isinstance(value, str) else None


def _read_time(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)
