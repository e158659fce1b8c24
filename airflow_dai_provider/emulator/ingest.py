"""One ingest: when it started, what it is going to do, and the JSON of its operation at a given time.

Nothing ticks: the state is worked out from the times whenever somebody asks.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from airflow_dai_provider.emulator.errors import RPC_NUMBERS
from airflow_dai_provider.emulator.plan import Plan

_TYPE = "type.googleapis.com/google.ads.dai.v1."
# Which error an ingest ends with is undocumented, but for cancellation; these are the nearest meanings.
_FAILURES = {
    "DOWNLOAD_ERROR": ("FAILED_PRECONDITION", "The media file could not be downloaded."),
    "INVALID_MEDIA": ("INVALID_ARGUMENT", "The media file is not a valid video."),
    "INTERNAL_ERROR": ("INTERNAL", "The ingest failed by an internal error."),
}


class State(StrEnum):
    """What has become of an ingest."""

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
        """Resource name that the creative has once the ingest has succeeded."""
        return f"creatives/{self.registry_id}"

    def state(self, now: float) -> State:
        """Work out what has become of the ingest.

        :param now: epoch seconds.
        """
        end, state = self._end()
        return state if now >= end else State.RUNNING

    def request_cancel(self, now: float) -> None:
        """Take a cancel request; the first one counts, and only while the ingest runs.

        :param now: epoch seconds.
        """
        if self.cancelled_at is None and self.state(now) is State.RUNNING:
            self.cancelled_at = now

    def creative_json(self) -> dict[str, object]:
        """Return the Creative resource: what was submitted, under the name the service gave it."""
        return {**self.creative, "name": self.creative_name}

    def to_json(self, now: float) -> dict[str, object]:
        """Return the Operation resource.

        :param now: epoch seconds.
        """
        state = self.state(now)
        operation: dict[str, object] = {"name": self.name, "metadata": self._metadata(state)}
        if state is State.RUNNING:
            return operation
        operation["done"] = True
        if state is State.SUCCEEDED:
            operation["response"] = {"@type": f"{_TYPE}Creative", **self.creative_json()}
        else:
            operation["error"] = self._error(state)
        return operation

    def _end(self) -> tuple[float, State]:
        own_end = self.created + self.plan.seconds
        own_state = State.SUCCEEDED if self.plan.outcome == "success" else State.FAILED
        if self.cancelled_at is None or self.plan.cancel == "ignored":
            return own_end, own_state
        cancel_end = self.cancelled_at + self.plan.cancel_seconds
        return (own_end, own_state) if own_end < cancel_end else (cancel_end, State.CANCELLED)

    def _metadata(self, state: State) -> dict[str, object]:
        metadata: dict[str, object] = {
            "@type": f"{_TYPE}CreateCreativeOperationMetadata",
            "creativeUrl": self.creative_url,
            "createTime": _rfc3339(self.created),
            "youtubeStatus": self._youtube_status(state),
        }
        if state is State.SUCCEEDED:
            metadata["gvRegistryId"] = self.registry_id
        return metadata

    def _youtube_status(self, state: State) -> dict[str, object]:
        updated = self.created if state is State.RUNNING else self._end()[0]
        status: dict[str, object] = {"state": "PROCESSING", "updateTime": _rfc3339(updated)}
        # What a cancelled ingest shows here is undocumented: no state says "cancelled", and neither SUCCESS
        # nor FAILURE is true of it, so it stays at PROCESSING, where the cancellation met it.
        if state is State.SUCCEEDED:
            status["state"] = "SUCCESS"
        elif state is State.FAILED:
            status["state"] = "FAILURE"
            status["failureReason"] = self._failure_reason()
        return status

    def _failure_reason(self) -> dict[str, object]:
        reason: dict[str, object] = {"reason": self.plan.outcome}
        if self.plan.download_status is not None:
            reason["code"] = self.plan.download_status
        return reason

    def _error(self, state: State) -> dict[str, object]:
        rpc_status, message = "CANCELLED", "The operation was cancelled."
        if state is State.FAILED:
            rpc_status, message = _FAILURES[self.plan.outcome]
        return {"code": RPC_NUMBERS[rpc_status], "message": message}


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
