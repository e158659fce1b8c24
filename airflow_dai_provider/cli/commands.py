"""The commands of ``airflow dai`` that read, and those that cancel, await and delete what the user names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.many_wait import MAX_LISTED, ManyWait
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.rest import LIST_PAGE_SIZE
from airflow_dai_provider.cli import rows
from airflow_dai_provider.cli.output import Row
from airflow_dai_provider.cli.owner_search import check_database
from airflow_dai_provider.cli.session import Session, advice, command
from airflow_dai_provider.cli.strays import purge, sweep
from airflow_dai_provider.tasks.cancel_requests import request_cancellations
from airflow_dai_provider.tasks.events import describe_names
from airflow_dai_provider.tasks.failures import sentences
from airflow_dai_provider.tasks.rounds import request_in_rounds

__all__ = ["cancel", "check", "delete_creative", "get", "list", "purge", "sweep", "wait", "whose"]


@command
def list(session: Session) -> bool:  # noqa: A001 - the name of the command
    """List operations, page by page."""
    args = session.args
    undated = 0

    def is_wanted(one: Operation) -> bool:
        nonlocal undated
        if one.done and not args.all:
            return False
        url = (one.ingest.signed_creative_url if one.ingest else None) or ""
        if args.url_prefix is not None and not url.startswith(args.url_prefix):
            return False
        if args.older_than is None:
            return True
        age = rows.age_of(one, session.now())
        undated += age is None
        return age is not None and age.total_seconds() > args.older_than

    # The hook tells how many items of the list are no operations.
    unreadable = set[str]()
    listed = session.hook.list_operations(page_size=LIST_PAGE_SIZE, on_unreadable=unreadable.add)
    with session.rows(rows.LISTED) as printed:
        for page in _pages(_once(listed)):
            wanted = [one for one in page if is_wanted(one)]
            owners = session.owners.of(wanted)
            printed.add([rows.listed_row(one, session.now(), owners.get(one.name, ())) for one in wanted])
    if undated:
        session.notes.say(f"Not shown, because they have no create time: {undated:,}.")
    if not printed.number:
        narrowed = args.all or args.url_prefix or args.older_than
        session.notes.say("No operations were found." if narrowed else "No operations are running.")
    return not unreadable and session.owners.complete


def _once(operations: Iterator[Operation]) -> Iterator[Operation]:
    """Yield each operation once: one that moves between two pages while they are read comes twice."""
    names = set[str]()
    for one in operations:
        if one.name not in names:
            names.add(one.name)
            yield one


def _pages(operations: Iterator[Operation]) -> Iterator[tuple[Operation, ...]]:
    while page := tuple(islice(operations, LIST_PAGE_SIZE)):
        yield page


@command
def get(session: Session) -> bool:
    """Show an operation."""
    operation = session.hook.get_operation(session.args.name)
    owners = session.owners.of([operation]).get(operation.name, ())
    session.show([rows.shown_row(operation, session.now(), owners)], rows.SHOWN, upright=True)
    return session.owners.complete


@command
def whose(session: Session) -> bool:
    """Tell the owner of an operation."""
    name = session.args.name
    unpolled: ServiceError | None = None
    try:
        # It tells whether the operation has finished, when it was created, and of which media it is.
        operation = session.hook.get_operation(name)
    except ServiceError as error:
        unpolled = error
        session.notes.say(advice(error))
        operation = Operation(name, OperationState.RUNNING)
    owners = session.owners.of([operation]).get(name, ())
    session.show([rows.whose_row(name, one, unpolled) for one in owners], rows.WHOSE, upright=True)
    if not owners and not session.owners.unavailable:
        other = "another system, or one of these tasks," if session.owners.incomplete else "another system"
        session.notes.say(f"No task is known to have started {name}: {other} may have started it.")
    return bool(owners)


@command
def cancel(session: Session) -> bool:
    """Cancel operations."""
    session.check_wait()
    names = [*dict.fromkeys(session.args.names)]
    if not session.args.yes:
        _describe(session, names)
    if not session.confirmed(f"Cancel {describe_names(names)}?"):
        return False
    settled: dict[str, Operation | None] = {}
    errors: dict[str, ServiceError] = {}
    with session.interruptible(), session.hook.workers(len(names)) as workers:
        _, errors = request_cancellations(
            workers,
            names,
            retry_timeout=session.hook.retry_timeout,
            waits=session.args.wait,
            on_settled=settled.__setitem__,
            clock=session.clock,
            sleep=session.sleep,
            log=session.log if session.args.verbose else _Silent(),
        )
    finished = {name: operation for name, operation in settled.items() if operation and operation.done}
    requested = [name for name in settled if name not in finished]
    many = session.wait(requested) if session.args.wait and requested and not session.interrupted else None

    def row(name: str) -> Row:
        if name in finished:
            return rows.result_row(name, finished[name].state.value, "had already finished")
        if name in errors:
            return rows.failed_row(name, errors[name], "may still run")
        if name not in settled:
            return rows.result_row(name, "may still run", "the command was interrupted")
        return (
            _waited(name, many)
            if many
            else rows.result_row(name, "requested", "the service may take a while to cancel it")
        )

    session.show(map(row, names), rows.RESULT)
    session.tell(errors)
    return not (session.interrupted or errors) and (many is None or not (many.left or many.failed))


class _Silent:
    """A log that drops its lines, since the rows say the same."""

    def _ignore(self, message: str, *args: object) -> None:
        pass

    debug = info = warning = error = _ignore


def _describe(session: Session, names: Sequence[str]) -> None:
    """Say what is about to be cancelled and which task owns it, unless there are too many operations."""
    if len(names) > MAX_LISTED:
        return
    found, errors = session.poll(names)
    owners = session.owners.of([*found.values()])
    for name in names:
        of = "; or to ".join(f"{one.record.owner}, which {one.reason}" for one in owners.get(name, ()))
        session.notes.say(sentences(found.get(name) or errors[name], of and f"It belongs to {of}"))


@command
def wait(session: Session) -> bool:
    """Wait until operations have finished."""
    names = [*dict.fromkeys(session.args.names)]
    many = session.wait(names)
    session.show((_waited(name, many) for name in names), rows.RESULT)
    session.tell(many.failed)
    return not (many.left or many.failed)


def _waited(name: str, many: ManyWait) -> Row:
    """Return what a wait has found."""
    if name in many.finished:
        operation = many.finished[name]
        return rows.result_row(name, operation.state.value, operation if operation.state == "FAILED" else None)
    if name in many.failed:
        return rows.failed_row(name, many.failed[name], "may still run")
    return rows.result_row(name, "may still run", many.errors.get(name) or many.running.get(name))


@command
def delete_creative(session: Session) -> bool:
    """Delete ads."""
    names = [*dict.fromkeys(session.args.names)]
    if not session.confirmed(f"Delete {names[0] if len(names) == 1 else f'{len(names):,} ads'} for good?"):
        return False
    deleted: set[str] = set()
    errors: dict[str, ServiceError] = {}
    with session.interruptible(), session.hook.workers(len(names)) as workers:
        _, errors = request_in_rounds(
            workers,
            names,
            lambda hook, name: hook.delete_creative(name),
            retry_timeout=session.hook.retry_timeout,
            on_done=lambda name, _: deleted.add(name),
            clock=session.clock,
            sleep=session.sleep,
            log=session.log if session.args.verbose else _Silent(),
        )

    def row(name: str) -> Row:
        if name in deleted:
            return rows.result_row(name, "deleted")
        if name in errors:
            return rows.failed_row(name, errors[name], "may still exist")
        return rows.result_row(name, "may still exist", "the command was interrupted")

    session.show(map(row, names), rows.RESULT)
    session.tell(errors)
    return not (session.interrupted or errors)


@command
def check(session: Session) -> bool:
    """Check the connection."""
    checks = {"service": session.hook.test_connection(), "owners": check_database()}
    session.show(
        [rows.result_row(what, "ok" if ok else "failed", reason) for what, (ok, reason) in checks.items()], rows.RESULT
    )
    return all(ok for ok, _ in checks.values())
