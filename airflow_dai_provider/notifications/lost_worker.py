"""Cancel the ingest of a task whose worker was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class LostWorkerCallback(DaiCancelOperationNotifier):
    """Cancel what a task has started, unless the operator itself handles its ingest in this process.

    The operator adds this callback to its own callbacks. When the worker is lost, the dag processor calls it with a
    task that was never executed. When the task has failed in its worker, it is called there too, after the operator.
    """

    def notify(self, context: Context) -> None:
        """Cancel, unless the property ``cancels_own_ingest`` of the executed task is true."""
        # On Airflow 3.0 the task of the context is another copy. The task of the task instance is the executed one.
        if not getattr(getattr(context.get("ti"), "task", None), "cancels_own_ingest", False):
            super().notify(context)
