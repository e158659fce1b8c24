"""Operator that deletes creatives."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import MAX_LISTED
from airflow_dai_provider.api.names import InvalidNameError, check_creative_name
from airflow_dai_provider.api.parameters import check_flag
from airflow_dai_provider.tasks.arguments import check_literals, explained_names
from airflow_dai_provider.tasks.cancel_requests import KILLED
from airflow_dai_provider.tasks.failures import accept_missing, check_many, refused_parameters, task_errors
from airflow_dai_provider.tasks.one_or_many import check_each, given_form
from airflow_dai_provider.tasks.rounds import request_in_rounds
from airflow_dai_provider.tasks.task_state import TaskState
from airflow_dai_provider.tasks.templates import check_rendered_fields, given_fields

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_dai_provider.hooks.dai import DaiHook

#: The key of the names that an earlier try has deleted, in the task state store.
STATE_DELETED = "dai_deleted"


class DaiDeleteCreativeOperator(BaseOperator):
    """Delete creatives: for ingests whose cancellation came too late, so that the ad exists and must not be served.

    ``Operation.creative_name``, which is also a field of the XComs with an operation, is the name of the creative that
    an ingest has made. Of a list, every creative is attempted before the task fails because of one, except after
    UNIMPLEMENTED, which holds for all. On Airflow 3.3 or later, a retry leaves out those that an earlier try has
    deleted.

    Follows https://developers.google.com/video-creative-ingest/reference/rest/v1/creatives/delete

    :param creative_name: ``creatives/...``, or a list of up to 10,000 (templated). One gives one name, a list gives a
        list in its order. An empty list is not an error.
    :param missing_ok: whether to accept a creative that the service does not know, as one that cannot be served. That
        is believed when the service says so twice, ten seconds apart. Without it, a request whose response was lost,
        and before Airflow 3.3 a retry of the task, can fail because of a creative that the task itself has deleted.
    :param gcp_conn_id: the Google Cloud connection (templated).
    :param impersonation_chain: service account(s) to impersonate (templated).
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own (templated).
    :return: the name(s) as given: of creatives that no longer exist. With ``missing_ok``, those that the service
        did not know are among them, since an earlier try can have deleted them; the log tells them apart.
    :raises AirflowFailException: for a permanent error: UNIMPLEMENTED, PERMISSION_DENIED, an invalid name, an unknown
        creative without ``missing_ok``.
    :raises AirflowException: when the service stays unavailable.
    """

    template_fields: Sequence[str] = ("creative_name", "gcp_conn_id", "impersonation_chain", "api_endpoint")
    ui_color = "#fce8e6"

    #: Replaced in tests.
    _clock: Callable[[], float] = staticmethod(time.monotonic)
    _sleep: Callable[[float], None] = staticmethod(time.sleep)

    _killed = False

    def __init__(
        self,
        *,
        creative_name: str | Sequence[str] | XComArg,
        missing_ok: bool = True,
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
        **kwargs: Any,
    ) -> None:
        with explained_names(type(self), kwargs):
            super().__init__(**kwargs)
        self.creative_name: Any = creative_name  # a string or a list, once it is rendered
        with refused_parameters():
            self.missing_ok = check_flag("missing_ok", missing_ok)
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.api_endpoint = api_endpoint
        self._given = given_fields(self)
        with refused_parameters():
            check_literals(self, {"creative_name": _check_names})

    def execute(self, context: Context) -> str | list[str]:
        """Delete the creatives; return the name, or the list of names."""
        with task_errors():
            names, several = _check_names(self.creative_name)
            self.creative_name = given_form(names, several=several)
            check_rendered_fields(self, self._given)
        if not names:
            self.log.info("The list of creatives is empty: there is nothing to delete.")
            return []
        from airflow_dai_provider.hooks.dai import DaiHook

        left = list(dict.fromkeys(names))
        with (
            task_errors(f"{_describe(left)} may still exist"),
            DaiHook(self.gcp_conn_id, self.impersonation_chain, self.api_endpoint) as hook,
        ):
            hook.stopped = lambda: KILLED if self._killed else None
            # Its retries cover the endpoint too, without which no state can be read.
            hook.connect()
            earlier = TaskState(context, STATE_DELETED, self.log, lambda: hook.endpoint.url)
            deleted_before = frozenset(earlier.load() or ())
            left = [name for name in left if name not in deleted_before]
            deleted, errors = self._delete(hook, left)
        missing = _unknown(errors)
        self._report(left, deleted, missing)
        gone = {*deleted, *missing} if self.missing_ok else deleted
        if len(gone) < len(left):
            earlier.save(sorted({*deleted_before, *deleted}))
            self._fail([name for name in left if name not in gone], errors, len(set(names)), several=several)
        if deleted_before:
            earlier.delete()
        return given_form(names, several=several)

    def on_kill(self) -> None:
        """Make no further request."""
        self._killed = True

    def _delete(self, hook: DaiHook, names: list[str]) -> tuple[set[str], dict[str, ServiceError]]:
        """Delete creatives; return what was deleted, and the last error of each of the others."""
        with hook.workers(len(names)) as workers:
            deleted, errors = request_in_rounds(
                workers,
                names,
                _delete_one,
                retry_timeout=hook.retry_timeout,
                is_fatal=lambda error: error.rpc_code is Code.UNIMPLEMENTED,
                clock=self._clock,
                sleep=self._sleep,
                log=self.log,
            )
        return set(deleted), errors

    def _report(self, names: list[str], deleted: set[str], missing: list[str]) -> None:
        """Log what was deleted, and what the service does not know."""
        if len(names) <= MAX_LISTED:
            for name in names:
                if name in deleted:
                    self.log.info("Deleted %s.", name)
                elif name in missing and self.missing_ok:
                    self.log.info("%s does not exist. Nothing is left to delete, and missing_ok is set.", name)
            return
        failed = len(names) - len(deleted) - len(missing)
        numbers = (len(deleted), len(names), len(missing), failed)
        message = "Deleted %s of %s creatives; %s did not exist, %s failed."
        self.log.info(message, *(f"{number:,}" for number in numbers))

    def _fail(self, left: list[str], errors: dict[str, ServiceError], total: int, *, several: bool) -> None:
        """Fail the task for the creatives that were not deleted."""
        consequence = f"{_describe(left)} may still exist"
        with accept_missing(self.log, "", missing_ok=False), task_errors(consequence):
            if not several:
                raise errors[left[0]]
            told = {name: errors[name] for name in left}
            check_many((), None, told, total=total, failed="creatives could not be deleted", consequence=consequence)


def _check_names(value: Any) -> tuple[list[str], bool]:
    return check_each("creative_name", value, check_creative_name, InvalidNameError)


def _delete_one(hook: DaiHook, name: str) -> None:
    hook.delete_creative(name)


def _unknown(errors: dict[str, ServiceError]) -> list[str]:
    """Return the creatives that the service does not know."""
    return [name for name, error in errors.items() if error.rpc_code is Code.NOT_FOUND]


def _describe(names: list[str]) -> str:
    return f"{len(names):,} creatives" if len(names) != 1 else names[0]
