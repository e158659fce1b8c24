"""Cancel the ingest of a task whose worker was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class LostWorkerCallback(DaiCancelOperationNotifier):
    """Cancel what a task has started, unless the operator itself handles its ingest in this process."""

    def notify(self, context: Context) -> None:
        """Cancel, unless ``cancels_own_ingest`` of the executed task is true."""
        # The task of the task instance is the one that was executed; on Airflow 3.0 the context has another copy.
        if not getattr(getattr(context.get("ti"), "task", None), "cancels_own_ingest", False):
            super().notify(context)
