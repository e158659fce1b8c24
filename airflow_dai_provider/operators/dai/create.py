"""Operator that starts an ingest, waits until it has finished, and leaves none running by mistake."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, conf, mask_secret

from airflow_dai_provider.api.creative import InvalidCreativeError, check_creative
from airflow_dai_provider.api.parameters import Duration, check_flag, check_seconds
from airflow_dai_provider.api.redaction import redact_json, url_secrets
from airflow_dai_provider.ingest.campaign import without_finished
from airflow_dai_provider.ingest.guard import IngestGuard
from airflow_dai_provider.ingest.outcome import check_retry_on, fail_for_good_where
from airflow_dai_provider.ingest.own_record import OwnRecord
from airflow_dai_provider.notifications.lost_worker import LostWorkerCallback
from airflow_dai_provider.operators.dai.create_many import CreateMany
from airflow_dai_provider.operators.dai.create_one import CreateOne
from airflow_dai_provider.tasks.arguments import (
    check_creative_literals,
    check_literals,
    explained_names,
    shows_literals,
)
from airflow_dai_provider.tasks.deferral import resumption
from airflow_dai_provider.tasks.failures import refused_parameters, task_errors
from airflow_dai_provider.tasks.one_or_many import check_each, one_or_many
from airflow_dai_provider.tasks.templates import check_rendered_fields, given_fields
from airflow_dai_provider.version_compat import HAS_TASK_STATE_STORE, is_resumed

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_dai_provider.hooks.dai import DaiHook


class DaiCreateCreativeOperator(BaseOperator):
    """Start the ingest of a creative, wait until it has finished, and cancel it when the task fails before that.

    As soon as the service has responded, the name of the operation is pushed to the XCom ``operation_name``. Beside it,
    ``operation_started`` tells the callbacks where and when it was started. When the response is lost, the operator
    searches the service's list for its ingest. It starts another one only if none is listed, and the sweep would know
    the first as a stray.

    It cancels the ingest when the task is killed (``cancel_on_kill``), and when the task fails and is not retried, also
    when its worker is lost (``cancel_on_failure``; then by a failure callback that the operator adds to its own. For a
    *mapped* task Airflow does not call that one: give ``DaiCancelOperationNotifier()`` to ``.partial()`` or to the
    DAG). The README's table of guards lists the cases in which a task cannot cancel by itself.

    On Airflow 3.3 or later, the next try, also after a clear, reattaches to the ingest that an earlier one has started,
    if the creative is the same and the ingest still runs; an ingest of another creative is cancelled first. What has
    succeeded between two tries is the result of the retry; after a clear, a new ingest is started. Before 3.3,
    a failing try cancels, and the next one starts a new ingest.

    Follows https://developers.google.com/video-creative-ingest/reference/rest/v1/creatives/create

    :param creative: the JSON object ``Creative`` (templated): ``{"adSystem": str, "mediaFiles": [{"uri": str,
        "delivery": "DELIVERY_PROGRESSIVE", "mimeType": str}], ...}``; or a list of up to 10,000. All are checked before
        the first is sent. They are started side by side; one that is refused cancels none of the others.
    :param dynamic_creative_info: ``{"dynamicGroupId": str, "activeDuration": "3.5s"}``, or None (templated).
    :param wait_for_completion: whether to wait until the ingest has finished; any final state but SUCCEEDED fails the
        task.
    :param cancel_on_kill: whether the ingest is cancelled when a user marks or clears the task, or a time limit ends
        it.
    :param cancel_on_failure: whether the ingest is cancelled when the task fails and is not retried.
    :param cancel_with_run: whether the sweep cancels the ingest of a task that has not waited, when its run fails. A
        later task that is cleared may still need it, so this is off by default.
    :param retry_on: reasons of a failed ingest (``INTERNAL_ERROR``, ``DOWNLOAD_ERROR``, ``INVALID_MEDIA``,
        ``REASON_UNSPECIFIED``) after which Airflow's retries of the task start it again; without them, a failed ingest
        fails the task for good.
    :param poll_interval: the most seconds between two polls; the first ones are quicker. A duration is a number of
        seconds, a timedelta, or a text such as ``"90s"`` or ``"6h"``.
    :param timeout: the longest wait, a duration too; then the task fails.
    :param deferrable: whether to wait in the triggerer, which holds no worker slot.
    :param gcp_conn_id: the Google Cloud connection (templated).
    :param impersonation_chain: service account(s) to impersonate (templated).
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own (templated).
    :return: the operation's name. If the task has waited, the XCom ``operation`` has ``Operation.to_dict()``. For a
        list, both are lists in its order, and each dict also has ``media_files``: the media URLs without signatures. An
        ingest that was not started has ``"name": None``, ``"state": None``, and its error.
    :raises AirflowFailException: for a permanent error: a creative that the service would refuse, an ingest that fails
        or is cancelled by something else, a lost response, UNIMPLEMENTED, PERMISSION_DENIED.
    :raises AirflowException: when the service stays unavailable, or the ingest has not finished in time.
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

    def __init__(
        self,
        *,
        creative: Mapping[str, Any] | Sequence[Mapping[str, Any]] | XComArg,
        dynamic_creative_info: Mapping[str, Any] | XComArg | None = None,
        wait_for_completion: bool = True,
        cancel_on_kill: bool = True,
        cancel_on_failure: bool = True,
        cancel_with_run: bool = False,
        retry_on: str | Collection[str] | None = None,
        poll_interval: Duration = 30.0,
        timeout: Duration = 3600.0,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
        **kwargs: Any,
    ) -> None:
        with explained_names(type(self), kwargs):
            super().__init__(**kwargs)
        self.creative: Any = creative  # a JSON object or a list of them, once it is rendered
        self.dynamic_creative_info: Any = dynamic_creative_info
        with refused_parameters():
            self.wait_for_completion = check_flag("wait_for_completion", wait_for_completion)
            self.cancel_on_kill = check_flag("cancel_on_kill", cancel_on_kill)
            self.cancel_on_failure = check_flag("cancel_on_failure", cancel_on_failure)
            self.cancel_with_run = check_flag("cancel_with_run", cancel_with_run)
            self.retry_on = check_retry_on(retry_on)
            self.poll_interval = check_seconds("poll_interval", poll_interval)
            self.timeout = check_seconds("timeout", timeout)
            self.deferrable = check_flag("deferrable", deferrable)
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint
        self._given = given_fields(self)
        with refused_parameters():
            check_literals(self, {})
            if shows_literals(self):
                check_creative_literals(creative, dynamic_creative_info)
        if cancel_on_failure:
            callback = LostWorkerCallback(self)
            # New lists, made after the base's constructor: those that it has set can be the ones in default_args.
            self.on_failure_callback = [callback, *_callbacks(self.on_failure_callback)]
            if not HAS_TASK_STATE_STORE:
                self.on_retry_callback = [callback, *_callbacks(self.on_retry_callback)]

    #: For a list: the creatives as submitted. The template field, which the UI shows, has them without signatures.
    #: Also set for a value that execute will refuse.
    _signed: Any = None
    _shown: object = None
    _many: CreateMany | None = None

    @cached_property
    def _guard(self) -> IngestGuard:
        """The guard of the process that runs the task; a process that only parses the DAG makes none."""
        return IngestGuard(on_kill=self.cancel_on_kill, on_failure=self.cancel_on_failure, log=self.log)

    @property
    def cancels_own_ingest(self) -> bool:
        """Whether this process runs the task and leaves nothing for a callback to cancel."""
        return "_guard" in vars(self) and self._guard.running and not self._guard.should_cancel

    def _do_render_template_fields(
        self, parent: Any, template_fields: Any, context: Context, *args: Any, **kwargs: Any
    ) -> None:
        """Render, and mask the signature of a media URL in the log and in the rendered fields that the UI shows.

        It is the one rendering method that Airflow also calls for a mapped task.
        """
        if parent is self and "ti" in context:
            # A task whose template fails has started nothing either.
            self._guard.begin(context, resumed=is_resumed(context["ti"]))
        super()._do_render_template_fields(parent, template_fields, context, *args, **kwargs)
        if parent is not self:  # but a part of a field
            return
        try:
            creatives, several = one_or_many("creative", self.creative)
        except ValueError:  # which execute raises again
            creatives, several = self.creative, True
        if several:
            # Masked value by value, a thousand signatures take a minute. Airflow stores what the field holds now.
            self._signed, self.creative = creatives, redact_json(creatives)
            self._shown = self.creative
            return
        for secret in url_secrets(self.creative):
            mask_secret(secret)

    def execute(self, context: Context) -> str | list[str]:
        """Start the ingests, or reattach to those of an earlier try; wait if told to; return the name, or the list."""
        self._guard.begin(context)
        with fail_for_good_where(self._retry_resubmits), self._guard.cancel_on_error(context, self._make_hook):
            with task_errors():
                # Guarded, since an earlier try can have left its ingests to this one.
                creatives, several = self._checked_creatives()
                check_rendered_fields(self, self._given)
            if several:
                self._many = CreateMany(self, context, creatives)
                return self._many.execute()
            return CreateOne(self, context).execute()

    def execute_complete(
        self,
        context: Context,
        event: Any = None,
        adopted: float | None = None,
        operation_name: str | None = None,
        adopted_indexes: Sequence[int] = (),
    ) -> str | list[str]:
        """Finish the task when the wait in the triggerer is over; return the operation's name, or the list of names."""
        if self._many:
            return self._many.complete(event, adopted_indexes)
        return CreateOne(self, context).complete(event, operation_name, adopted)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume the task after a deferral, under the same guard as ``execute``."""
        self._guard.begin(context, resumed=True)
        with (
            fail_for_good_where(self._retry_resubmits),
            self._guard.cancel_on_error(context, self._make_hook),
            resumption(self, next_method, next_kwargs, partial(self._started, context)) as resumed,
        ):
            with task_errors():
                creatives, several = self._checked_creatives()
            self._many = CreateMany(self, context, creatives, resumed=True) if several else None
            return super().resume_execution(*resumed, context)

    def on_kill(self) -> None:
        """Request the cancellation when the task is killed; Airflow calls this from a signal handler.

        A kill before ``execute`` has begun counts too: ``execute`` then starts nothing.
        """
        self._guard.kill_or_time_out(self._make_hook)

    def _retry_resubmits(self) -> bool:
        return bool(self._many and self._many.retry_resubmits)

    def _started(self, context: Context) -> str | list[str] | None:
        """Return the operations that the resumed task waits for."""
        names = self._guard.started_here(context, self._make_hook)
        if one_or_many("creative", self.creative)[1]:
            return without_finished(context, names)
        return next(iter(names), None)

    def _checked_creatives(self) -> tuple[list[Mapping[str, Any]], bool]:
        """Return what to submit, and whether a list was given; every invalid creative is named with its index."""
        submitted = self._signed if self.creative is self._shown else self.creative

        def checked(creative: Mapping[str, Any]) -> Mapping[str, Any]:
            check_creative(creative, self.dynamic_creative_info)
            return creative

        return check_each("creative", submitted, checked, InvalidCreativeError)

    @property
    def _flags(self) -> dict[str, bool]:
        """The parameters that decide whether the sweep cancels an ingest of this task."""
        return {
            "waits": self.wait_for_completion,
            "cancel_on_kill": self.cancel_on_kill,
            "cancel_on_failure": self.cancel_on_failure,
            "cancel_with_run": self.cancel_with_run,
        }

    def _own_record(self, context: Context) -> OwnRecord:
        """Return the record of this task, by which the sweep knows the owner of its ingests."""
        return OwnRecord(context, self._flags, clock=self._clock, log=self.log)

    def _make_hook(self) -> DaiHook:
        from airflow_dai_provider.hooks.dai import DaiHook

        with task_errors():
            return DaiHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint)


def _callbacks(given: Any) -> Sequence[Any]:
    return [given] if callable(given) else given or ()
