"""The report of a sweep: the outcome of each operation that it has selected. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.sweep.selection import PassedOver, Selection, Stray

if TYPE_CHECKING:
    from airflow_dai_provider.sweep.verdicts import Verdict

#: The most operations still needed by a task that the report names.
MAX_OWNED = 100


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed request for one operation: its rpc code, and the reason in words."""

    rpc_code: Code
    reason: str


class SweepReport:
    """The operations that a sweep has found, and the outcome of each.

    Once the sweep begins, each operation found is in exactly one of ``left``, where it starts, ``requested``,
    ``cancelled``, ``finished`` and ``refused``; unless it is held back.

    :param operations: as the service lists them. An operation that comes twice, because it moved between two pages
        while they were read, counts once, as it came last.
    :param selection: which operations are selected.
    :param now: seconds since the epoch.
    :param owners: by name, the verdicts on operations that have an owner.
    :param limit: the most operations without an owner to cancel. With more, something else is wrong, for example
        another system uses the account: none of them is cancelled then.
    :param dry_run: whether nothing will be cancelled.
    """

    def __init__(
        self,
        operations: Iterable[Operation],
        selection: Selection,
        now: float,
        owners: Mapping[str, Verdict] = MappingProxyType({}),
        *,
        limit: float = inf,
        dry_run: bool = False,
    ) -> None:
        listed = {one.name: one for one in operations}
        verdicts = {name: selection.judge(one, now, owners.get(name)) for name, one in listed.items()}
        self.listed_at = now
        #: By name, whether an operation had finished by then.
        self.done = {name: one.done for name, one in listed.items()}
        #: Those whose owner is not over, or has meant them to run on.
        self.owned = {name: owner for name, owner in owners.items() if verdicts.get(name) is PassedOver.OWNED}
        reasons = Counter(verdict for verdict in verdicts.values() if isinstance(verdict, PassedOver))
        self.dry_run = dry_run
        self.listed = len(verdicts)
        #: How many listed items were no operations with a valid name; the sweep can do nothing about them.
        self.unreadable = 0
        self.passed_over = {reason.value: reasons[reason] for reason in PassedOver}
        self.found = [verdict for verdict in verdicts.values() if isinstance(verdict, Stray)]
        unowned = [stray for stray in self.found if stray.owner is None]
        #: Those that are not cancelled, since they are more than the limit.
        self.held_back = unowned if len(unowned) > limit else []
        #: By name: each operation whose cancellation is requested and that has not been seen in a final state.
        self.requested: dict[str, Failure] = {}
        self.cancelled: list[str] = []
        self.finished: dict[str, str] = {}
        self.refused: dict[str, Failure] = {}
        self.left: dict[str, Failure] = {}

    def begin(self) -> None:
        """Note that from now on each operation without an outcome is left."""
        untouched = Failure(Code.UNKNOWN, "the sweep broke off before its cancellation was requested")
        self.left = {stray.name: untouched for stray in self.to_cancel}

    def request_accepted(self, name: str) -> None:
        """Note that the service has accepted a cancel request, which says nothing yet about the final state."""
        del self.left[name]
        self.requested[name] = Failure(Code.UNKNOWN, "its cancellation is requested, and it has not been polled")

    def seen(self, name: str, operation: Operation) -> None:
        """Note the operation that a poll has returned."""
        if not operation.done:
            self.requested[name] = Failure(Code.UNKNOWN, f"its cancellation is requested, but {operation}")
            return
        self._take_out(name)
        if operation.state is OperationState.CANCELLED:
            self.cancelled.append(name)
        else:
            self.finished[name] = operation.state.value

    def poll_failed(self, name: str, failure: Failure) -> None:
        """Note a failed poll, which will be retried."""
        self.requested[name] = Failure(failure.rpc_code, f"its cancellation is requested, but {failure.reason}")

    def failed(self, name: str, failure: Failure) -> None:
        """Note that a request for an operation failed.

        NOT_FOUND does not mean that the operation has finished: the service has listed it as running, and the ingest of
        a deleted operation goes on. The next sweep's list tells.
        """
        reason = f"its cancellation is requested, but {failure.reason}" if name in self.requested else failure.reason
        if failure.rpc_code in PERMANENT and failure.rpc_code is not Code.NOT_FOUND:
            settled = self.refused
        elif name in self.requested and failure.rpc_code is not Code.NOT_FOUND:
            settled = self.requested
        else:
            settled = self.left
        self._take_out(name)
        settled[name] = Failure(failure.rpc_code, reason)

    def leave_requested(self, why: str) -> None:
        """Give up waiting: each requested operation that has not finished is left."""
        for name, failure in self.requested.items():
            self.left[name] = Failure(failure.rpc_code, f"{failure.reason}; {why}")
        self.requested.clear()

    @property
    def to_cancel(self) -> list[Stray]:
        """Those that are to be cancelled."""
        return [stray for stray in self.found if not self.held_back or stray.owner]

    @property
    def failures(self) -> dict[str, Failure]:
        """The operations that may still run, by name."""
        return self.refused | self.left

    @property
    def rpc_code(self) -> Code:
        """The rpc code that decides whether a retry of the sweep can help.

        UNIMPLEMENTED holds for all operations; otherwise a retry helps when one of the errors is transient.
        """
        codes = [failure.rpc_code for failure in self.failures.values()]
        if Code.UNIMPLEMENTED in codes:
            return Code.UNIMPLEMENTED
        return Code.UNAVAILABLE if self.left else codes[0]

    @property
    def selected(self) -> str:
        """The summary of the list, for the log."""
        count = self.passed_over
        return (
            f"{self.listed} operations listed: {count['finished']} finished, {count['spared']} spared, "
            f"{count['other_url']} with another URL, {count['owned']} still needed by a task, "
            f"{count['unowned']} without an owner, {count['undated']} without a create time, "
            f"{count['younger']} younger than older_than; {len(self.found)} stray"
            + (f"; {self.unreadable} more could not be read" if self.unreadable else "")
        )

    @property
    def result(self) -> str:
        """The summary of the outcomes, for the log."""
        return (
            f"{len(self.found)} stray: {len(self.requested)} requested, {len(self.cancelled)} cancelled, "
            f"{len(self.finished)} finished meanwhile, {len(self.refused)} refused, {len(self.left)} left"
            + (f", {len(self.held_back)} held back" if self.held_back else "")
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, see ``DaiCancelStrayOperationsOperator``."""
        names = [stray.name for stray in self.found]
        return {
            "dry_run": self.dry_run,
            "listed": self.listed,
            "unreadable": self.unreadable,
            "passed_over": dict(self.passed_over),
            "owned": [{"name": name} | owner.to_dict() for name, owner in list(self.owned.items())[:MAX_OWNED]],
            "found": [stray.to_dict() for stray in self.found],
            "requested": [name for name in names if name in self.requested],
            "cancelled": [name for name in names if name in self.cancelled],
            "finished": {name: self.finished[name] for name in names if name in self.finished},
            "refused": {name: self.refused[name].reason for name in names if name in self.refused},
            "left": {name: self.left[name].reason for name in names if name in self.left},
        }

    def _take_out(self, name: str) -> None:
        self.left.pop(name, None)
        self.requested.pop(name, None)
