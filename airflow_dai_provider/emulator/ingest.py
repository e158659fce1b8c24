"""One ingest: the request that starts it, the plan that it follows, and the JSON of its operation.

No timers: the state is derived from the times whenever it is asked for.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import parse_qsl, urlsplit

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass as validated_dataclass

from airflow_dai_provider.emulator.errors import (
    RPC_NUMBERS,
    ApiError,
    choice,
    explained,
    number_from_text,
    whole_from_text,
    wrong_value,
)

URL_HELP = """\
The query parameters of its media URL (of the first mezzanine, else of the first media file) decide what an
ingest does, for example https://media.example/ad.mp4?seconds=30&outcome=DOWNLOAD_ERROR&code=403
  seconds=30         how long the ingest takes (inf: it never finishes by itself)
  outcome=success    or DOWNLOAD_ERROR, INVALID_MEDIA, INTERNAL_ERROR
  code=404           HTTP status of the download, with outcome=DOWNLOAD_ERROR only
  cancel=honoured    or ignored: the ingest completes in spite of a cancel request
  cancel_seconds=2   from the cancel request until the ingest is cancelled, unless it finishes before
Other parameters are ignored; those not given follow the emulator's options."""

# Only the error of a cancellation is documented; these are the nearest meanings for the failures.
_FAILURES = {
    "DOWNLOAD_ERROR": ("FAILED_PRECONDITION", "The media file could not be downloaded."),
    "INVALID_MEDIA": ("INVALID_ARGUMENT", "The media file is not a valid video."),
    "INTERNAL_ERROR": ("INTERNAL", "The ingest failed by an internal error."),
}
_TYPE = "type.googleapis.com/google.ads.dai.v1."
_SECONDS = "a number of seconds, 0 or more"
_DELIVERIES = ("DELIVERY_PROGRESSIVE", "DELIVERY_STREAMING")
_DURATION = re.compile(r"(\d+(?:\.\d{1,9})?)s", re.ASCII)
_LONGEST_ACTIVE_SECONDS = 180 * 24 * 3600


@explained
@validated_dataclass(frozen=True, config=ConfigDict(strict=True))
class Plan:
    """The course of an ingest: its duration, its outcome, and the effect of a cancel request.

    :param seconds: how long it takes; ``math.inf`` for one that never finishes by itself.
    :param outcome: ``success``, or the reason of its failure.
    :param code: HTTP status of the failed download, for ``DOWNLOAD_ERROR`` only; default 404.
    :param cancel: ``honoured``, or ``ignored`` for an ingest that completes in spite of a cancel request.
    :param cancel_seconds: from the cancel request until the ingest is cancelled, unless it finishes before.
    :raises ValueError: for an invalid value.
    """

    seconds: float = Field(default=5.0, ge=0, description=_SECONDS)
    outcome: str = choice("success", ("success", *_FAILURES))
    code: int | None = Field(default=None, ge=100, le=599, description="an HTTP status from 100 to 599")
    cancel: str = choice("honoured", ("honoured", "ignored"))
    cancel_seconds: float = Field(default=0.0, ge=0, description=_SECONDS)

    _number = field_validator("seconds", "cancel_seconds", mode="before")(number_from_text)
    _whole = field_validator("code", mode="before")(whole_from_text)

    def __post_init__(self) -> None:
        if self.code is not None and self.outcome != "DOWNLOAD_ERROR":
            raise wrong_value("code", self.code, f"none with outcome={self.outcome}, only with DOWNLOAD_ERROR")

    def with_url(self, url: str, **given: float | str | None) -> "Plan":
        """Return the plan of an ingest: the arguments first, then the URL's query, then this plan.

        :param url: the media URL; see :data:`URL_HELP`.
        :param given: fields of the plan; None means "not given".
        :raises ValueError: for a malformed URL, and an invalid value.
        """
        query = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
        changes: dict[str, object] = {name: query[name] for name in vars(self) if name in query}
        changes.update({name: value for name, value in given.items() if value is not None})
        return replace(self, **changes)  # type: ignore[arg-type]


class State(StrEnum):
    """State of an ingest."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass
class Ingest:
    """One ingest and its operation. Times are epoch seconds of the service's clock."""

    name: str
    registry_id: str
    creative: dict[str, object] = field(repr=False)
    creative_url: str = field(repr=False)
    plan: Plan
    created: float
    serial: int
    cancelled_at: float | None = None
    cancel_requests: int = 0
    deleted: bool = False
    creative_deleted: bool = False

    @property
    def creative_name(self) -> str:
        """Resource name of the creative that exists once the ingest has succeeded."""
        return f"creatives/{self.registry_id}"

    def state(self, now: float) -> State:
        """Return the state at a time."""
        finished, state = self._finish()
        return state if now >= finished else State.RUNNING

    def has_creative(self, now: float) -> bool:
        """Return whether the creative exists at a time: the ingest has succeeded, and it was not deleted."""
        return self.state(now) is State.SUCCEEDED and not self.creative_deleted

    def request_cancel(self, now: float) -> None:
        """Record a cancel request; only the first one has an effect, and only while the ingest runs."""
        if self.cancelled_at is None and self.state(now) is State.RUNNING:
            self.cancelled_at = now

    def creative_json(self) -> dict[str, object]:
        """Return the Creative resource: the submitted one, under the name that the service gave it."""
        return {**self.creative, "name": self.creative_name}

    def to_json(self, now: float) -> dict[str, object]:
        """Return the Operation resource at a time."""
        state = self.state(now)
        operation: dict[str, object] = {"name": self.name, "metadata": self._metadata(state)}
        if state is State.RUNNING:
            return operation
        operation["done"] = True
        if state is State.SUCCEEDED:
            operation["response"] = {"@type": f"{_TYPE}Creative", **self.creative_json()}
        else:
            rpc_status, message = "CANCELLED", "The operation was cancelled."
            if state is State.FAILED:
                rpc_status, message = _FAILURES[self.plan.outcome]
            operation["error"] = {"code": RPC_NUMBERS[rpc_status], "message": message}
        return operation

    def _finish(self) -> tuple[float, State]:
        own_time = self.created + self.plan.seconds
        own_state = State.SUCCEEDED if self.plan.outcome == "success" else State.FAILED
        if self.cancelled_at is None or self.plan.cancel == "ignored":
            return own_time, own_state
        cancel_time = self.cancelled_at + self.plan.cancel_seconds
        return (own_time, own_state) if own_time < cancel_time else (cancel_time, State.CANCELLED)

    def _metadata(self, state: State) -> dict[str, object]:
        updated = self.created if state is State.RUNNING else self._finish()[0]
        # The state of a cancelled ingest is undocumented: none says "cancelled", and neither SUCCESS nor
        # FAILURE is true of it, so it keeps the PROCESSING that it had when it was cancelled.
        status: dict[str, object] = {"state": "PROCESSING", "updateTime": _rfc3339(updated)}
        metadata: dict[str, object] = {
            "@type": f"{_TYPE}CreateCreativeOperationMetadata",
            "creativeUrl": self.creative_url,
            "createTime": _rfc3339(self.created),
            "youtubeStatus": status,
        }
        if state is State.SUCCEEDED:
            status["state"] = "SUCCESS"
            metadata["gvRegistryId"] = self.registry_id
        elif state is State.FAILED:
            status["state"] = "FAILURE"
            code = {"code": self.plan.code or 404} if self.plan.outcome == "DOWNLOAD_ERROR" else {}
            status["failureReason"] = {"reason": self.plan.outcome, **code}
        return metadata


def read_creative(body: object) -> tuple[dict[str, object], str]:
    """Check the body of ``creatives.create`` and choose the media file to ingest.

    MIME types outside the documented list are accepted: the service only says that it can reject them.

    :param body: the parsed JSON.
    :return: the creative as submitted, and the URL of its first mezzanine, else of its first media file.
    :raises ApiError: INVALID_ARGUMENT, naming the field.
    """
    if not isinstance(body, dict):
        raise _invalid("body", "must be a JSON object")
    creative = body.get("creative")
    if not isinstance(creative, dict):
        raise _invalid("creative", "is required and must be an object")
    _require_text(creative, "creative", "adSystem")
    urls = [*_media_urls(creative, "mezzanines"), *_media_urls(creative, "mediaFiles")]
    if not urls:
        raise _invalid("creative", "needs at least one entry in mezzanines or mediaFiles")
    if body.get("dynamicCreativeInfo") is not None:
        _check_dynamic(creative, body["dynamicCreativeInfo"])
    return creative, urls[0]


def _media_urls(creative: dict[str, object], files_field: str) -> Iterator[str]:
    files = creative.get(files_field)
    if files is None:
        return
    if not isinstance(files, list):
        raise _invalid(f"creative.{files_field}", "must be a list")
    for index, file in enumerate(files):
        path = f"creative.{files_field}[{index}]"
        if not isinstance(file, dict):
            raise _invalid(path, "must be an object")
        if file.get("delivery") not in _DELIVERIES:
            raise _invalid(f"{path}.delivery", f"is required and must be one of {', '.join(_DELIVERIES)}")
        _require_text(file, path, "mimeType")
        yield _require_text(file, path, "uri")


def _check_dynamic(creative: dict[str, object], info: object) -> None:
    if not isinstance(info, dict):
        raise _invalid("dynamicCreativeInfo", "must be an object")
    if not creative.get("networkCode"):
        raise _invalid("creative.networkCode", "is required for a dynamic creative")
    duration = info.get("activeDuration")
    if duration is None:
        return
    match = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if match is None:
        raise _invalid("dynamicCreativeInfo.activeDuration", 'must be seconds with the suffix s, such as "3.5s"')
    if float(match[1]) > _LONGEST_ACTIVE_SECONDS:
        raise _invalid("dynamicCreativeInfo.activeDuration", "must not exceed 180 days")


def _require_text(parent: dict[str, object], path: str, text_field: str) -> str:
    value = parent.get(text_field)
    if not isinstance(value, str) or not value:
        raise _invalid(f"{path}.{text_field}", "is required and must be a string")
    return value


def _invalid(path: str, problem: str) -> ApiError:
    return ApiError("INVALID_ARGUMENT", f"Invalid value at '{path}': {problem}.")


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
