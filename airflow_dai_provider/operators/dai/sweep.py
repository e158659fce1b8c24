"""Operator that cancels the operations of tasks that are over."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseOperator

from airflow_dai_provider.api.many_wait import some_of
from airflow_dai_provider.api.parameters import Duration, check_flag, check_seconds
from airflow_dai_provider.ingest.ownership import ASSET, Owner
from airflow_dai_provider.metrics import gauge_strays
from airflow_dai_provider.sweep.owners import NO_ASSET, NO_OWNERS, Owners, find_owners
from airflow_dai_provider.sweep.report import SweepReport
from airflow_dai_provider.sweep.requests import cancel_found, wait_for_requested
from airflow_dai_provider.sweep.search import find_strays, unreadable_owners
from airflow_dai_provider.sweep.selection import Selection, check_count, check_duration
from airflow_dai_provider.tasks.arguments import check_literals, explained_names, has_template, shows_literals
from airflow_dai_provider.tasks.cancel_requests import KILLED
from airflow_dai_provider.tasks.failures import (
    log_failure,
    refused_parameters,
    sentences,
    task_error,
    task_errors,
)
from airflow_dai_provider.tasks.templates import check_rendered_fields, given_fields
from airflow_dai_provider.tasks.xcom import XCOM_REPORT
from airflow_dai_provider.version_compat import HAS_ASSET_STATE_STORE, is_unknown_asset

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.hooks.dai import DaiHook

#: The most requests of one sweep that are under way at a time.
MAX_CONCURRENCY = 50


class DaiCancelStrayOperationsOperator(BaseOperator):
    """Cancel every operation whose task is over: the sweep behind all other guards, one for a whole installation.

    It lists the operations of the service, and finds the owner of each running one: the task instance that has started
    it. A stray is an operation whose owner has failed, was skipped or removed, or whose run was deleted, unless the
    owner meant it to run on (``cancel_on_kill=False``, ``cancel_on_failure=False``, ``wait_for_completion=False``). The
    state of the owner is read twice, ``orphaned_for`` apart, so that a task that is cleared meanwhile keeps its
    operation. An operation whose owner is not over is never cancelled, however old it is. Every stray is attempted
    before the task fails because of one.

    On Airflow 3.3 and later, each ``DaiCreateCreativeOperator`` records itself as the owner, as soon as Airflow has
    parsed a DAG with a sweep. On 2.11 the owner is found in the XComs, as long as they exist. On 3.0 to 3.2 only the
    age of an operation is known.

    Follows https://developers.google.com/video-creative-ingest/reference/rest/v1/operations/list

    :param older_than: a timedelta, seconds, or a text such as ``"6h"``, or None: the age from which an operation
        without an owner is a stray too, by its ``createTime`` and this worker's clock (templated). Other systems may
        have started it, so it must exceed the longest legitimate ingest of all users of the account. Required on
        Airflow 3.0 to 3.2.
    :param orphaned_for: such a duration: how long an owner has to be over (templated).
    :param url_prefix: selects only operations whose media URL, including its query, begins with this text. To select
        one host, give ``https://host/``, with the slash (templated).
    :param url_pattern: selects only operations whose media URL, including its query, contains a match of this regular
        expression; ``^`` and ``$`` match the ends of the URL (templated).
    :param spare: the name(s) of operations to leave alone (templated).
    :param include_undated: whether to select operations without a create time too; operations of other kinds than
        ingests are among them.
    :param max_cancellations: when more operations without an owner than this are selected, none of these is cancelled,
        and the task fails. Those of tasks that are over are cancelled, however many they are.
    :param max_concurrency: how many requests are under way at a time, at most 50.
    :param wait_for_completion: whether to wait until the operations have finished.
    :param poll_interval: the most seconds between two polls of each operation; the first ones are quicker.
    :param timeout: the longest wait, in seconds, or another duration as for ``older_than``.
    :param dry_run: only list, and report what would be cancelled.
    :param gcp_conn_id: the Google Cloud connection (templated).
    :param impersonation_chain: service account(s) to impersonate (templated).
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own (templated).
    :return: the report, which is also the XCom ``report``, even when the task fails after it has listed::

            {"dry_run": bool,
             "listed": int,                            # how many operations the service has listed
             "unreadable": int,                        # how many listed items were no operation with a valid name
             "passed_over": {"finished": int, "spared": int, "other_url": int, "owned": int, "unowned": int,
                             "undated": int, "younger": int},
             "owned": [{"name": str, **owner}],        # the first hundred that are still needed
             "found": [{"name": str, "create_time": str | None, "age": int | None, "creative_url": str | None,
                        "owner": owner | None}],
             "requested": [name],                      # cancellation requested, final state not waited for
             "cancelled": [name],                      # a poll has shown it
             "finished": {name: "SUCCEEDED" | "FAILED"},  # meanwhile, or in spite of the cancellation
             "refused": {name: reason},                # a permanent error of its cancellation or of a poll
             "left": {name: reason}}                   # may still run; the next sweep finds it again

        Each operation found is in exactly one of the last five, and in none of them after a dry run, or when
        ``max_cancellations`` has kept it from being cancelled. ``age`` is in seconds; URLs come without user, query and
        fragment. An owner is ``{"dag_id": str, "run_id": str, "task_id": str, "map_index": int, "try_number": int,
        "reason": str}``, whose reason says why the operation is a stray, or is not.
    :raises AirflowFailException: for a permanent error: a wrong parameter, more than ``max_cancellations``, a server
        without list or cancel, no permission, and when all that may still run was refused.
    :raises AirflowException: when something is left: the service stays unavailable, or an operation has not finished
        in time.
    """

    template_fields: Sequence[str] = (
        "older_than",
        "orphaned_for",
        "url_prefix",
        "url_pattern",
        "spare",
        "gcp_conn_id",
        "impersonation_chain",
        "api_endpoint",
    )
    ui_color = "#fce8e6"

    #: Replaced in tests. The clock is the epoch's, as the service's create times are.
    _sleep: Callable[[float], None] = staticmethod(time.sleep)
    _clock: Callable[[], float] = staticmethod(time.time)

    _killed = False

    def __init__(
        self,
        *,
        older_than: Duration | None = None,
        orphaned_for: Duration = timedelta(minutes=2),
        url_prefix: str | None = None,
        url_pattern: str | None = None,
        spare: Collection[str] | str | None = None,
        include_undated: bool = False,
        max_cancellations: int = 20,
        max_concurrency: int = 8,
        wait_for_completion: bool = False,
        poll_interval: Duration = 30.0,
        timeout: Duration = 3600.0,
        dry_run: bool = False,
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
        **kwargs: Any,
    ) -> None:
        with explained_names(type(self), kwargs):
            super().__init__(**kwargs)
        self.older_than = older_than
        self.orphaned_for = orphaned_for
        self.url_prefix = url_prefix
        self.url_pattern = url_pattern
        self.spare = spare
        with refused_parameters():
            self.include_undated = check_flag("include_undated", include_undated)
            self.max_cancellations = check_count("max_cancellations", max_cancellations)
            self.max_concurrency = check_count("max_concurrency", max_concurrency, MAX_CONCURRENCY)
            self.wait_for_completion = check_flag("wait_for_completion", wait_for_completion)
            self.poll_interval = check_seconds("poll_interval", poll_interval)
            self.timeout = check_seconds("timeout", timeout)
            self.is_dry_run = check_flag("dry_run", dry_run)  # dry_run is a method of every operator
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint
        self._given = given_fields(self)
        with refused_parameters():
            check_literals(self, {"orphaned_for": partial(check_duration, "orphaned_for")})
            if shows_literals(self):
                self._selection(lambda value: None if has_template(value) else value)
        if HAS_ASSET_STATE_STORE:
            from airflow.sdk import Asset

            # Airflow knows an asset only while a DAG has it, and the create tasks must not depend on it.
            if Asset(ASSET) not in self.inlets:
                self.inlets = [*self.inlets, Asset(ASSET)]

    def execute(self, context: Context) -> dict[str, Any]:
        """List, select, request the cancellations, wait if told to; return the report."""
        with task_errors():
            selection = self._check_parameters()
            orphaned_for = check_duration("orphaned_for", self.orphaned_for)
        from airflow_dai_provider.hooks.dai import DaiHook

        with ExitStack() as closing:
            with task_errors("No cancellation was requested"):
                hook = DaiHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint)
                hook.stopped = self._stopped
                closing.enter_context(hook)
                owners = self._find_owners(hook, selection, Owner.of(context["ti"]))
                report = find_strays(
                    hook,
                    selection,
                    owners,
                    orphaned_for=orphaned_for,
                    limit=self.max_cancellations,
                    max_concurrency=self.max_concurrency,
                    dry_run=self.is_dry_run,
                    clock=self._clock,
                    sleep=self._sleep,
                    log=self.log,
                )
                gauge_strays(len(report.found))
            try:
                if self.is_dry_run:
                    would = f"request {len(report.to_cancel)} cancellations"
                    fail = f", and fail: {self._too_many(report)}" if report.held_back else ""
                    self.log.info("This is a dry run. A real one would %s%s.", would, fail)
                else:
                    if owners and selection.takes_every_url and not (report.held_back or report.unreadable):
                        self._note_complete(owners, hook.account, report)
                    self._cancel(hook, report)
            finally:
                context["ti"].xcom_push(XCOM_REPORT, report.to_dict())
        if owners:
            self._remove_leftovers(owners, report)
        self._conclude(report)
        return report.to_dict()

    def on_kill(self) -> None:
        """Make no further request."""
        self._killed = True

    def _stopped(self) -> str | None:
        return KILLED if self._killed else None

    def _check_parameters(self) -> Selection:
        # Without a filter, a name to spare or an endpoint that was given, it would cancel more, or elsewhere.
        check_rendered_fields(self, self._given)
        return self._selection(lambda value: value)

    def _selection(self, known: Callable[[Any], Any]) -> Selection:
        """Return the selection; ``known`` maps each filter, and returns None for one that is still a template."""
        return Selection.read(
            older_than=known(self.older_than),
            url_prefix=known(self.url_prefix),
            url_pattern=known(self.url_pattern),
            spare=known(self.spare),
            # While older_than is still a template, it is unknown whether it will have a value.
            include_undated=self.include_undated and (self.older_than is None or known(self.older_than) is not None),
        )

    def _find_owners(self, hook: DaiHook, selection: Selection, sweep: Owner) -> Owners | None:
        """Return the owners of operations; None where only the ages of these are known."""
        owners = find_owners(hook.endpoint.url, sweep)
        if owners is None and selection.older_than is None:
            raise ValueError(NO_OWNERS)
        if owners:
            try:
                owners.begin(self._clock())
            except Exception as error:
                if not is_unknown_asset(error, ASSET):
                    raise unreadable_owners(error) from error
                if selection.older_than is None:
                    raise AirflowException(sentences(NO_ASSET, "No cancellation was requested")) from error
                self.log.warning("%s The operations are judged by their age.", NO_ASSET)
                return None
        return owners

    def _too_many(self, report: SweepReport) -> str:
        return f"{len(report.held_back)} stray operations are more than max_cancellations={self.max_cancellations}"

    def _note_complete(self, owners: Owners, account: str, report: SweepReport) -> None:
        try:
            owners.note_complete(account, report.listed_at)
        except Exception as error:
            log_failure(self.log, "Could not note this sweep for the create tasks", error)

    def _cancel(self, hook: DaiHook, report: SweepReport) -> None:
        """Request every cancellation, and wait until the operations have finished if told to."""
        report.begin()
        if not report.left:
            return
        with hook.workers(len(report.left), self.max_concurrency) as workers:
            cancel_found(workers, report, hook.retry_timeout, clock=self._clock, sleep=self._sleep, log=self.log)
            if self.wait_for_completion:
                wait_for_requested(hook, workers, report, poll_interval=self.poll_interval, timeout=self.timeout)

    def _remove_leftovers(self, owners: Owners, report: SweepReport) -> None:
        """Remove the records of finished ingests, unless part of the list was unreadable and may need a record."""
        if self.is_dry_run or report.unreadable:
            return
        try:
            owners.remove_leftovers(report.done, report.listed_at)
        except Exception as error:
            log_failure(self.log, "Could not remove the records of finished ingests", error)

    def _conclude(self, report: SweepReport) -> None:
        """Log the result, and fail the task if an operation may still run."""
        failures = report.failures
        for name, failure in failures.items():
            self.log.error("%s may still run: %s.", name, failure.reason)
        self.log.info("%s.", report.result)
        parts = []
        if report.held_back and not self.is_dry_run:
            parts = [
                f"{self._too_many(report)}, so those without an owner were not cancelled: {some_of(report.held_back)}",
                "Narrow the selection, or raise max_cancellations",
            ]
        if failures:
            reasons = some_of([f"{name}: {failure.reason}" for name, failure in failures.items()])
            parts.append(f"{len(failures)} of {len(report.found)} stray operations may still run: {reasons}")
            raise task_error(report.rpc_code, sentences(*parts, f"The XCom '{XCOM_REPORT}' has all of it"))
        if parts:
            raise AirflowFailException(sentences(*parts))
