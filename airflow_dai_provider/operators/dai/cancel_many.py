"""The cancellation of a list of operations by one task."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import ManyWait, some_of
from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.api.operation_list import errors_from_json, errors_to_json, to_dicts
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.api.retry import PERMANENT
from airflow_dai_provider.metrics import count_finished, time_cancel
from airflow_dai_provider.tasks.cancel_requests import request_cancellations
from airflow_dai_provider.tasks.deferral import defer_wait
from airflow_dai_provider.tasks.events import ManyResult, describe_names, read_many_result
from airflow_dai_provider.tasks.failures import (
    check_expected_states,
    check_many,
    decisive_code,
    task_errors,
)
from airflow_dai_provider.tasks.task_state import TaskState
from airflow_dai_provider.tasks.xcom import XCOM_OPERATION

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_dai_provider.api.operation import Operation
    from airflow_dai_provider.hooks.dai import DaiHook
    from airflow_dai_provider.operators.dai.cancel import DaiCancelOperationOperator
    from airflow_dai_provider.transport.threads import Workers

#: The key in the task state store.
KEY = "dai_cancel"

#: Seconds after the acceptance of a cancellation within which a poll shows what was before it.
SAME_MOMENT = 2.0


class CancelMany:
    """Request the cancellation of each of many operations, wait if told to, and report all of it.

    Every operation is attempted before anything is reported. A permanent error of some does not end the wait for the
    others. After a transient one the task fails at once, if Airflow is going to retry it: what still runs is to be
    cancelled soon. The task state store keeps what needs no other request: the retry asks for the others only.

    :param task: the operator.
    :param names: the operations, valid names in the order in which they were given.
    """

    def __init__(self, task: DaiCancelOperationOperator, context: Context, names: Collection[str]) -> None:
        self._task = task
        self._context = context
        self._given = list(names)
        self._names = list(dict.fromkeys(names))
        self._expected = check_expected_states(task.expected_states)
        self._state = TaskState(context, KEY, task.log, lambda: self._hook.endpoint.url)
        #: The cancellations that the service has accepted, in this try or an earlier one.
        self._requested: set[str] = set()
        #: When the service has accepted those of this try.
        self._accepted_at: dict[str, float] = {}
        #: Those whose cancellation is timed.
        self._timed: set[str] = set()
        #: What had finished before its cancellation was requested, and what may have.
        self._already: set[str] = set()
        self._unclear: set[str] = set()
        self._contradicted: set[str] = set()
        #: The cancellations that the service has refused for good.
        self._refused: dict[str, ServiceError] = {}

    @cached_property
    def _hook(self) -> DaiHook:
        from airflow_dai_provider.hooks.dai import DaiHook

        return DaiHook(self._task.gcp_conn_id, self._task.impersonation_chain, self._task.api_endpoint)

    @property
    def waited_for(self) -> list[str]:
        """The operations that a deferred task has waited for, as far as the task state store tells."""
        self._load()
        return [name for name in self._names if name not in self._refused]

    def execute(self) -> None:
        """Request the cancellations, and wait if told to."""
        task = self._task
        if not self._names:
            task.log.info("The list of operations is empty: there is nothing to cancel.")
        result = ManyResult({}, {}, {}, None)
        if self._names:
            with task_errors(f"{describe_names(self._names)} may still run"), self._hook as hook:
                hook.stopped = task._stopped
                finished, errors = self._request(hook)
                self._fail_early(errors)
                result = ManyResult(finished, errors, {}, None)
                if task.wait_for_completion:
                    result = self._wait(hook, finished, errors)
        self._conclude(result)

    def complete(
        self,
        event: Any,
        already: Collection[str] = (),
        errors: dict[str, list[str]] | None = None,
        unclear: Collection[str] = (),
        timed: Collection[str] = (),
        requested: float | None = None,
    ) -> list[str]:
        """Finish the task when the wait in the triggerer is over; return the names."""
        if errors is None:
            # Airflow has ended the deferral, and has not kept these arguments.
            self._load()
        else:
            self._already, self._unclear, self._refused = set(already), set(unclear), errors_from_json(errors)
        names = [name for name in self._names if name not in self._refused]
        result = read_many_result(event, names, f"{describe_names(names)} may still run")
        if requested is not None:
            self._accepted_at = dict.fromkeys(names, requested)
            for name in result.finished.keys() - set(timed):
                self._time(result.finished[name])
        self._conclude(result._replace(errors=self._refused | result.errors))
        return self._given

    def _request(self, hook: DaiHook) -> tuple[dict[str, Operation], dict[str, ServiceError]]:
        """Request each cancellation that no earlier try has settled."""
        task = self._task
        # Its retries cover the endpoint too, without which no state can be read.
        hook.connect()
        self._load()
        left = [name for name in self._names if name not in self._refused and name not in self._requested]
        if len(left) < len(self._names):
            message = "An earlier try has settled %s of %s cancellations; requesting the others."
            task.log.info(message, f"{len(self._names) - len(left):,}", f"{len(self._names):,}")
        with hook.workers(len(left)) as workers:
            finished, errors = request_cancellations(
                workers,
                left,
                retry_timeout=hook.retry_timeout,
                unimplemented_ends=True,
                waits=task.wait_for_completion,
                on_settled=self._note,
                clock=task._clock,
                sleep=task._sleep,
                log=task.log,
            )
        self._refused |= {name: error for name, error in errors.items() if error.rpc_code in PERMANENT}
        self._requested |= set(left).difference(errors, self._contradicted)
        self._unclear |= self._contradicted
        if in_doubt(self._context, self._state):
            self._unclear |= set(finished)
        else:
            self._already |= set(finished)
        if errors:
            self._save()
        return finished, self._refused | errors

    def _note(self, name: str, operation: Operation | None) -> None:
        if operation is None:
            self._accepted_at[name] = self._task._clock()
        elif not operation.done:
            self._contradicted.add(name)

    def _time(self, operation: Operation) -> None:
        """Time a cancellation that a poll has shown."""
        if operation.state is OperationState.CANCELLED and operation.name in self._accepted_at:
            self._timed.add(operation.name)
            time_cancel(self._task._clock() - self._accepted_at[operation.name])

    def _load(self) -> None:
        settled = self._state.load() or {}
        self._requested = set(settled.get("requested", ()))
        self._already = set(settled.get("already", ()))
        self._unclear = set(settled.get("unclear", ()))
        self._refused = errors_from_json(settled.get("refused", {}))

    def _save(self) -> None:
        names = {"requested": self._requested, "already": self._already, "unclear": self._unclear}
        kept = {key: sorted(value) for key, value in names.items()}
        self._state.save({**kept, "refused": errors_to_json(self._refused)})

    def _fail_early(self, errors: dict[str, ServiceError]) -> None:
        """Fail at once when the task was killed, or where a retry is going to cancel what still runs."""
        ti = self._context["ti"]
        codes = {error.rpc_code for error in errors.values()}
        retried = codes and decisive_code(codes) not in PERMANENT and ti.try_number <= ti.max_tries
        if errors and (retried or self._task._stopped()):
            self._check(ManyResult({}, errors, {}, None))

    def _wait(self, hook: DaiHook, finished: dict[str, Operation], errors: dict[str, ServiceError]) -> ManyResult:
        """Wait until the operations without an error have finished, in this process or in the triggerer."""
        task = self._task
        names = [name for name in self._names if name not in errors]
        wait = hook.make_wait(describe_names(names), timeout=task.timeout, poll_interval=task.poll_interval)
        many = ManyWait(names, wait, self._expected, on_finish=self._time)
        for operation in finished.values():
            many.finish(operation)
        ended: WaitTimeoutError | ServiceError | None = None
        try:
            with hook.workers(len(names)) as workers:
                self._poll_first(hook, workers, many)
                if many.left and task.deferrable:
                    # Imported here, since DAG files are parsed often and few of their tasks defer.
                    from airflow_dai_provider.triggers.dai import DaiOperationTrigger

                    defer_wait(
                        task,
                        hook,
                        DaiOperationTrigger,
                        names,
                        poll_interval=task.poll_interval,
                        expected_states=self._expected,
                        resume_with={
                            "already": sorted(self._already),
                            "unclear": sorted(self._unclear),
                            "timed": sorted(self._timed),
                            "errors": errors_to_json(errors),
                            "requested": min(self._accepted_at.values(), default=None),
                        },
                    )
                hook.wait_for_many(workers, many)
        except (WaitTimeoutError, ServiceError) as error:
            # What has finished by now is known, and so is what was refused.
            ended = error
        return ManyResult(many.finished, errors | many.failed, many.running, ended)

    def _poll_first(self, hook: DaiHook, workers: Workers[DaiHook], many: ManyWait) -> None:
        """Poll once: an operation that is done, but not CANCELLED, had finished before the request or just then.

        This is unknown for an operation that is polled long after its request was accepted, or whose poll fails.
        """
        # Saved also when this poll fails.
        self._unclear |= self._accepted_at.keys()
        self._save()
        hook.poll_many(workers, many, patient=False)
        self._unclear -= self._accepted_at.keys()
        now = self._task._clock()
        otherwise = {one.name for one in many.finished.values() if one.state is not OperationState.CANCELLED}
        late = {
            name
            for name, accepted_at in self._accepted_at.items()
            if now > accepted_at + SAME_MOMENT or in_doubt(self._context, self._state)
        }
        self._already |= (otherwise & self._accepted_at.keys()) - late - self._unclear
        self._unclear |= self._accepted_at.keys() & ((otherwise & late) | many.errors.keys()) - self._already
        if many.left:
            self._save()

    def _conclude(self, result: ManyResult) -> None:
        """Report how the operations have finished, and check it."""
        task = self._task
        if task.wait_for_completion:
            for operation in result.finished.values():
                count_finished(operation.state)
            found = result.running | result.finished
            dicts = to_dicts([found.get(name) for name in self._given])
            for one in dicts:
                if one:
                    unclear = one["name"] in self._unclear
                    one["already_finished"] = None if unclear else one["name"] in self._already
            self._context["ti"].xcom_push(XCOM_OPERATION, dicts)
        self._check(result)
        self._state.delete()

    def _check(self, result: ManyResult) -> None:
        task, finished, errors, ended = self._task, result.finished, result.errors, result.ended
        if task.missing_ok:
            missing = [name for name, error in errors.items() if error.rpc_code is Code.NOT_FOUND]
            if missing:
                message = "The service does not know %s of %s operations. Nothing is left to cancel there, and %s"
                task.log.info(message, f"{len(missing):,}", f"{len(self._names):,}", "missing_ok is set.")
            errors = {name: error for name, error in errors.items() if error.rpc_code is not Code.NOT_FOUND}
        left = [name for name in self._names if name in errors or (ended and name not in {**finished, **result.errors})]
        with task._accept_missing(), task_errors():
            check_many(
                finished.values(),
                self._expected if task.wait_for_completion else None,
                errors,
                total=len(self._names),
                failed=f"operations could not be {'cancelled or polled' if task.wait_for_completion else 'cancelled'}",
                consequence=_consequence(left, ended),
                ended=ended,
            )


def in_doubt(context: Context, state: TaskState) -> bool:
    """Return whether an earlier try may have requested the cancellation of an operation that has finished."""
    return not state.available and context["ti"].try_number > 1


def _consequence(left: list[str], ended: Exception | None) -> str:
    """Return the sentence on what may still run; names only what the message has not named."""
    if not isinstance(ended, ServiceError):
        return "They may still run" if left else ""
    named = f": {some_of(left)}" if len(left) > 1 else ""
    return f"{describe_names(left)} may still run{named}"
