"""Operator that starts an ingest, waits for its end, and leaves none running by mistake."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    BaseOperator,
    conf,
    mask_secret,
)

from airflow_dai_provider.api.creative import check_creative, creative_digest, media_urls
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.polling import WaitTimeoutError, check_seconds
from airflow_dai_provider.api.redaction import url_secrets
from airflow_dai_provider.ingest.guard import CancelWhatIsLeft, IngestGuard
from airflow_dai_provider.ingest.recovery import IngestInDoubtError, find_started, in_doubt
from airflow_dai_provider.ingest.resume import StartedIngest, TaskMemory, can_go_on_with
from airflow_dai_provider.metrics import count_ended
from airflow_dai_provider.tasks.callbacks import push_operation
from airflow_dai_provider.tasks.deferral import FAILED_DEFERRAL, ended_at_deadline, raise_task_timeout, wait_or_defer
from airflow_dai_provider.tasks.event import read_event
from airflow_dai_provider.tasks.failures import accept_end, error_message, task_errors
from airflow_dai_provider.tasks.xcom import XCOM_OPERATION
from airflow_dai_provider.version_compat import TRIES_HAVE_MEMORY

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook

#: Seconds after which an ingest that a try has gone on with, and that ends cancelled, was not cancelled by a guard of
#: an earlier try: such a guard comes within seconds, and the end of a cancel is seen within a look or two.
LATE_GUARD = 180.0


class DaiCreateCreativeOperator(BaseOperator):
    """
    Start the ingest of a creative, wait for its end, and cancel it when the task ends badly before that.

    The name of the operation is in the XCom ``operation_name`` (the number of the try beside it, in
    ``operation_try_number``) the moment the service has answered. After an answer that was lost, the operator looks
    for its ingest in the service's list, and never starts a second one.

    It cancels the ingest when the task is killed (``cancel_on_kill``), and when it fails for good, also when its worker
    is lost (``cancel_on_failure``; then from a failure callback that the operator adds to its own. Airflow does not see
    that one of a *mapped* task: give ``DaiCancelOperationNotifier()`` to ``.partial()`` or to the DAG). What a task
    itself cannot see to is in the README's table of guards.

    The next try on Airflow 3.3 or later, also after a clear, goes on with the ingest that an earlier one has started,
    if the creative is the same and it still runs; another creative's is cancelled first. Before 3.3, a failing try
    cancels, and the next starts anew.

    Follows https://developers.google.com/video-creative-ingest/reference/rest/v1/creatives/create

    :param creative: the JSON object ``Creative`` (templated): ``{"adSystem": str, "mediaFiles": [{"uri": str,
        "delivery": "DELIVERY_PROGRESSIVE", "mimeType": str}], ...}``.
    :param dynamic_creative_info: ``{"dynamicGroupId": str, "activeDuration": "3.5s"}``, or None (templated).
    :param wait_for_completion: whether to wait until the ingest has ended; any end but success fails the task.
    :param cancel_on_kill: whether the ingest is cancelled when a user marks the task or clears it, or a time limit ends
        it.
    :param cancel_on_failure: whether the ingest is cancelled when the task fails for good.
    :param poll_interval: the most seconds between two looks; the first ones are quicker.
    :param timeout: seconds to wait at most; then the task fails.
    :param deferrable: whether to wait in the triggerer, which holds no worker slot.
    :param gcp_conn_id: the Google Cloud connection (templated).
    :param impersonation_chain: service account(s) to impersonate (templated).
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own (templated).
    :return: the operation's name. When it has waited, the XCom ``operation`` has ``Operation.to_dict()``.
    :raises AirflowFailException: for what a retry cannot heal: a creative that the service would refuse, an ingest that
        fails or that somebody has cancelled, an answer that stays lost, UNIMPLEMENTED, PERMISSION_DENIED.
    :raises AirflowException: when the service stays unavailable, or the ingest has not ended in time.
    """

    template_fields: Sequence[str] = (
        "creative",
        "dynamic_creative_info",
        "gcp_conn_id",
        "impersonation_chain",
        "api_endpoint",
    )
    template_fields_renderers = {"creative": "json", "dynamic_creative_info": "json"}
    ui_color = "#e6f4ea"

    #: Replaced in tests.
    _sleep: Callable[[float], None] = staticmethod(time.sleep)
    _clock: Callable[[], float] = staticmethod(time.time)

    #: Made by the process that runs the task; there is none in one that only reads the DAG.
    _guard: IngestGuard | None = None

    def __init__(
        self,
        *,
        creative: Mapping[str, Any] | XComArg,
        dynamic_creative_info: Mapping[str, Any] | XComArg | None = None,
        wait_for_completion: bool = True,
        cancel_on_kill: bool = True,
        cancel_on_failure: bool = True,
        poll_interval: float = 30.0,
        timeout: float = 3600.0,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.creative: Any = creative  # JSON objects, once they are rendered
        self.dynamic_creative_info: Any = dynamic_creative_info
        self.wait_for_completion = wait_for_completion
        self.cancel_on_kill = cancel_on_kill
        self.cancel_on_failure = cancel_on_failure
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.deferrable = deferrable
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint
        if cancel_on_failure:
            guard = CancelWhatIsLeft(
                gcp_conn_id=gcp_conn_id, impersonation_chain=impersonation_chain, api_endpoint=api_endpoint
            )
            # New lists, and after the base's constructor: the ones it has can be those in default_args.
            self.on_failure_callback = [guard, *_callbacks(self.on_failure_callback)]
            if not TRIES_HAVE_MEMORY:
                self.on_retry_callback = [guard, *_callbacks(self.on_retry_callback)]

    def _do_render_template_fields(self, parent: Any, *args: Any, **kwargs: Any) -> None:
        """
        Render, and keep what signs a media URL out of the log and of the rendered fields that the UI shows.

        The one method that Airflow calls for a mapped task, too.
        """
        super()._do_render_template_fields(parent, *args, **kwargs)
        if parent is self:  # and not a part of a field
            for secret in url_secrets(self.creative):
                mask_secret(secret)

    def execute(self, context: Context) -> str:
        """Start the ingest, or go on with that of an earlier try; wait if told to; return the operation's name."""
        with self._guarding().watch(context, self._make_hook), task_errors():
            # Watched, too: an earlier try can have left its ingest to this one.
            check_creative(self.creative, self.dynamic_creative_info)
            check_seconds("poll_interval", self.poll_interval)
            check_seconds("timeout", self.timeout)
            with self._make_hook() as hook:
                found = self._reattach(context, hook)
                adopted = self._clock() if found else None
                name = found or self._start(context, hook)
                if self.wait_for_completion:
                    return self._conclude(context, self._wait(hook, name, adopted), adopted)
                return name

    def execute_complete(
        self, context: Context, event: Any = None, adopted: float | None = None, operation_name: str | None = None
    ) -> str:
        """Go on when the wait in the triggerer is over; return the operation's name."""
        try:
            return self._conclude(context, read_event(event, operation_name), adopted)
        except WaitTimeoutError as error:
            raise_task_timeout(self, str(error))
            raise AirflowException(f"{error}.") from error

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume; what ends the wait badly means the same as without deferring."""
        with self._guarding().watch(context, self._make_hook):
            try:
                return super().resume_execution(next_method, next_kwargs, context)
            except AirflowException as error:
                if next_method == FAILED_DEFERRAL and ended_at_deadline(next_kwargs):
                    raise_task_timeout(self, f"The ingest has not ended in time: {error}.")
                raise

    def on_kill(self) -> None:
        """
        Request the cancellation when the task is killed; Airflow calls this from a signal handler.

        Before ``execute`` has begun, too: it then starts nothing.
        """
        self._guarding().kill()

    def _make_hook(self) -> DaiHook:
        from airflow_dai_provider.hooks.dai import DaiHook

        return DaiHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint)

    def _reattach(self, context: Context, hook: DaiHook) -> str | None:
        """Return the ingest of an earlier try, if this one can go on with it."""
        earlier = TaskMemory(context).recall()
        if earlier is None:
            return None
        if earlier.endpoint != hook.endpoint.url:
            # It cannot be looked at, nor cancelled, here; and another operation can have its name here.
            message = "%s may still run at %s: an earlier try has started it there. Starting anew at %s."
            self.log.warning(message, earlier.operation_name, earlier.endpoint, hook.endpoint.url)
            return None
        # Guarded before it is looked at: if that fails, nobody else sees to it.
        self._own(context, hook, earlier.operation_name)
        if can_go_on_with(earlier, hook, self._digest(), self.log):
            return earlier.operation_name
        self._guarding().settle()
        return None

    def _start(self, context: Context, hook: DaiHook) -> str:
        """Start the ingest, and leave its name where guards and the next try find it."""
        if self._guarding().killed:
            raise AirflowException("The task is being killed; no ingest was started.")
        operation = self._create(context, hook)
        self._own(context, hook, operation.name)
        self.log.info("%s.", operation)
        try:
            TaskMemory(context).remember(StartedIngest(operation.name, hook.endpoint.url, self._digest()))
        except Exception:
            self.log.exception("The next try will not know of %s", operation.name)
        return operation.name

    def _create(self, context: Context, hook: DaiHook) -> Operation:
        """Ask the service for the ingest; after an answer that was lost, find out what it has done."""
        sent = datetime.fromtimestamp(self._clock(), UTC)
        urls = media_urls(self.creative)
        try:
            return hook.create_creative(self.creative, self.dynamic_creative_info)
        except Exception as error:
            if not in_doubt(error):
                raise
            return find_started(hook, urls, sent, error_message(error), self._sleep, self.log)
        except BaseException as interruption:
            # A time limit, or a kill before Airflow 3. What has started is taken, for the guard to cancel.
            what = f"Starting the ingest was interrupted: {interruption}."
            try:
                self._own(context, hook, find_started(hook, urls, sent, what, self._sleep, self.log).name)
            except IngestInDoubtError as doubt:
                # Instead of the interruption, whose words it has: after that one Airflow would try again.
                raise doubt from interruption
            except Exception:
                self.log.exception("The name of what has started could not be handed over")
            raise

    def _own(self, context: Context, hook: DaiHook, name: str) -> None:
        """Take an ingest for this try's own, and leave its name where guards find it."""
        # Guarded before the XComs, since a kill can come while they are pushed.
        self._guarding().take(hook, name)
        push_operation(context["ti"], name, self._clock())

    def _wait(self, hook: DaiHook, name: str, adopted: float | None = None) -> Operation:
        return wait_or_defer(
            self,
            hook,
            name,
            poll_interval=self.poll_interval,
            resume_with={"adopted": adopted, "operation_name": name},
            cancel_on_kill=self.cancel_on_kill,
        )

    def _conclude(self, context: Context, operation: Operation, adopted: float | None = None) -> str:
        """
        Say how the ingest has ended, and check that it has succeeded.

        :param adopted: when this try has gone on with the ingest of an earlier one, in seconds of the epoch.
        """
        self._guarding().settle()
        self.log.info("%s.", operation)
        cancelled = operation.state is OperationState.CANCELLED
        if cancelled and adopted is not None and self._clock() < adopted + LATE_GUARD:
            # A guard of the earlier try can have come after this one had gone on with its ingest.
            self.log.warning("An earlier try had started and cancelled it; starting anew.")
            count_ended(operation.state)
            with task_errors(), self._make_hook() as hook:
                name = self._start(context, hook)
                return self._conclude(context, self._wait(hook, name))
        context["ti"].xcom_push(XCOM_OPERATION, operation.to_dict())
        accept_end(operation, frozenset({OperationState.SUCCEEDED}))
        try:
            TaskMemory(context).forget()
        except Exception:
            self.log.exception("What was kept for a retry could not be deleted; it will not be taken for one that runs")
        return operation.name

    def _digest(self) -> str:
        return creative_digest(self.creative, self.dynamic_creative_info)

    def _guarding(self) -> IngestGuard:
        if self._guard is None:
            self._guard = IngestGuard(on_kill=self.cancel_on_kill, on_failure=self.cancel_on_failure, log=self.log)
        return self._guard


def _callbacks(given: Any) -> Sequence[Any]:
    return [given] if callable(given) else given or ()
