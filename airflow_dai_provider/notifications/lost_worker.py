"""Cancel the ingest of a task whose worker was lost."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class LostWorkerCallback(DaiCancelOperationNotifier):
    """Cancel what a task has started, unless the operator itself handles its ingest in this process.

    The operator adds this callback to its own callbacks. When the worker is lost, the dag processor calls it with a
    task that was never executed. When the task has failed in its worker, it is called there too, after the operator.

    :param task: the operator, whose connection and endpoint are read when the callback is called: a subclass can set
        them after the operator's constructor.
    """

    def __init__(self, task: Any = None) -> None:
        super().__init__()
        self.task = task

    def __call__(self, *args: Any) -> None:
        """Call a copy with the connection and the endpoint that the operator has now."""
        current = copy(self)
        for field in ("gcp_conn_id", "impersonation_chain", "api_endpoint"):
            setattr(current, field, getattr(self.task, field, getattr(self, field)))
        super(LostWorkerCallback, current).__call__(*args)

    def notify(self, context: Context) -> None:
        """Cancel, unless the property ``cancels_own_ingest`` of the executed task is true."""
        if not getattr(self.task, "cancel_on_failure", True):
            return
        # On Airflow 3.0 the task of the context is another copy. The task of the task instance is the executed one.
        if not getattr(getattr(context.get("ti"), "task", None), "cancels_own_ingest", False):
            super().notify(context)
