"""``airflow dai sweep`` and ``airflow dai purge``: operations, and records, that no task needs any longer."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from airflow_dai_provider.api.rest import LIST_PAGE_SIZE
from airflow_dai_provider.cli import rows
from airflow_dai_provider.cli.output import Row
from airflow_dai_provider.cli.owner_search import database_errors, owners_for_sweep
from airflow_dai_provider.cli.session import Session, command, usage
from airflow_dai_provider.ingest.ownership import Owner
from airflow_dai_provider.sweep.owners import KEPT, Owners
from airflow_dai_provider.sweep.report import SweepReport
from airflow_dai_provider.sweep.requests import cancel_found, wait_for_requested
from airflow_dai_provider.sweep.search import find_strays
from airflow_dai_provider.sweep.selection import Selection, Stray
from airflow_dai_provider.tasks.events import describe_names
from airflow_dai_provider.version_compat import HAS_ASSET_STATE_STORE

#: Seconds of ``--orphaned-for`` where it is not given, as its help tells.
ORPHANED_FOR = 120.0


@command
def sweep(session: Session) -> bool:
    """Find strays; unless it is a dry run, cancel them."""
    args = session.args
    if args.dry_run:
        options = ("yes", "orphaned_for", "wait", "timeout", "poll_interval")
        session.check_given("--no-dry-run", "nothing is cancelled", *options)
    session.check_wait()
    if args.older_than is None:
        session.check_given("--older-than", "operations without an owner are left alone", "include_undated")
    with usage():
        selection = Selection.read(
            older_than=args.older_than,
            url_prefix=args.url_prefix,
            url_pattern=args.url_pattern,
            spare=args.spare,
            include_undated=args.include_undated,
        )
    owners = owners_for_sweep(session.hook.endpoint.url)
    held_back = False
    # The prompt shows the strays of one read of the owners. A second read follows the user's reply.
    if args.dry_run or not args.yes:
        report = _find(session, selection, owners, dry_run=True)
        names = [stray.name for stray in report.to_cancel]
        if args.dry_run or not names:
            return _show(session, report, owners)
        held_back = _warn_of_held_back(session, report)
        # Strays that appear meanwhile were not asked about.
        selection = replace(selection, only=frozenset(names))
        # As messages: the rows come at the end, with the outcome of each.
        for stray in report.to_cancel:
            session.notes.say(f"{stray}.")
        if not session.confirmed(f"Cancel {describe_names(names)}?"):
            return False
    report = _find(session, selection, owners, dry_run=False)
    with session.interruptible():
        _cancel(session, report)
    if session.interrupted:
        report.leave_requested("the command was interrupted")
    return _show(session, report, owners) and not (held_back or session.interrupted or report.failures)


def _find(session: Session, selection: Selection, owners: Owners, *, dry_run: bool) -> SweepReport:
    args = session.args
    orphaned_for = args.orphaned_for or ORPHANED_FOR
    if not dry_run:
        session.notes.say(f"Strays are checked again {orphaned_for:g} s after they are found, before any is cancelled.")
    return find_strays(
        session.hook,
        selection,
        owners,
        orphaned_for=orphaned_for,
        limit=args.max_cancellations,
        dry_run=dry_run,
        clock=session.clock,
        sleep=session.sleep,
        log=session.log,
    )


def _cancel(session: Session, report: SweepReport) -> None:
    """Request the cancellations, and wait if told to."""
    args, hook = session.args, session.hook
    report.begin()
    if not report.left:
        return
    with hook.workers(len(report.left)) as workers:
        cancel_found(workers, report, hook.retry_timeout, clock=session.clock, sleep=session.sleep, log=session.log)
        if args.wait and report.requested:
            with session.notes.progress("Waiting for the strays", len(report.requested)) as advance:
                wait_for_requested(hook, workers, report, advance, **session.limits)


def _show(session: Session, report: SweepReport, owners: Owners) -> bool:
    """Show what was found, and the outcome of each.

    :return: whether all could be read, and are cancelled, or were only to be shown.
    """
    session.show([_row(stray, report) for stray in report.found], rows.STRAY)
    session.notes.say(f"{report.selected if report.dry_run else report.result}.")
    if session.args.dry_run and report.found:
        cancels = " --no-dry-run cancels them." if report.to_cancel else ""
        session.notes.say(f"This was a dry run: nothing was cancelled.{cancels}")
    held_back = _warn_of_held_back(session, report)
    return not (report.unreadable or owners.unreadable) and (session.args.dry_run or not held_back)


def _warn_of_held_back(session: Session, report: SweepReport) -> bool:
    """Return whether operations are held back, which is said."""
    if report.held_back:
        most = session.args.max_cancellations
        session.notes.say(
            f"{len(report.held_back):,} strays are more than --max-cancellations {most}, so those without an owner are "
            "not cancelled. Narrow the selection, or raise the limit."
        )
    return bool(report.held_back)


def _row(stray: Stray, report: SweepReport) -> Row:
    name, outcomes = stray.name, report.failures
    older = "is older than --older-than" if stray.create_time else "has no create time"
    result: str | None
    if name in outcomes:
        result = f"may still run: {outcomes[name].reason}"
    elif name in report.cancelled:
        result = "CANCELLED"
    else:
        result = report.finished.get(name) or ("requested" if name in report.requested else None)
    return {
        "name": name,
        "age": None if stray.age is None else str(timedelta(seconds=stray.age)),
        "media_url": stray.creative_url,
        **rows.owner_cells([stray.owner] if stray.owner else []),
        "reason": stray.owner.reason if stray.owner else older,
        "result": result,
    }


@command
def purge(session: Session) -> bool:
    """Delete records of owners whose operations are gone."""
    if not HAS_ASSET_STATE_STORE:
        session.notes.say("Airflow before 3.3 has no records of owners: there is nothing to delete.")
        session.show([], rows.OWNER[:4])
        return True
    unreadable: list[str] = []
    now = session.clock()
    owners = owners_for_sweep(session.hook.endpoint.url)
    listed = session.hook.list_operations(page_size=LIST_PAGE_SIZE, on_unreadable=unreadable.append)
    done = {operation.name: operation.done for operation in listed}
    if unreadable:
        # The hook has told how many cannot be read.
        session.notes.say("No record was deleted, since an operation that cannot be read may need one.")
        return False
    kept = KEPT if session.args.older_than is None else session.args.older_than
    removed: list[Owner] = []
    try:
        with session.interruptible(), database_errors("Not every record was deleted"):
            # It reads the records.
            owners.judge(())
            owners.remove_leftovers(done, now, kept, on_removed=removed.append)
    finally:
        # Also what was deleted before an error.
        session.show(map(rows.owner_row, removed), rows.OWNER[:4])
        session.notes.say(f"Records deleted: {len(removed):,}.")
    return not session.interrupted
