"""The log messages of the provider that the end-to-end tests wait for; a unit test checks that they exist."""

from __future__ import annotations

NOT_FINISHED = "not finished within"
LEFT_TO_NEXT_TRY = "to the next try"
LEFT_ALONE = "alone: "
STILL_DEFERRED = "its task is still deferred"
RECOVERED = "by its media URL and create time"
NAME_UNKNOWN = "may run under an unknown name"
REQUESTED = "Requested the cancellation of"
OTHER_CREATIVE = "with another creative"
TASK_KILLED = "its task was killed"
NOTHING_TO_CANCEL = "No operation to cancel"
MAY_STILL_RUN = "may still run"
