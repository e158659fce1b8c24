"""The session of one command: its hook, the owners of operations, its output, and the exit code of an error."""

from __future__ import annotations

import logging
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property, wraps
from types import FrameType
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException
from airflow.utils.cli import suppress_logs_and_warning

from airflow_dai_provider.api.endpoint import parse_endpoint
from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.api.many_wait import ManyWait, some_of
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.polling import WaitTimeoutError
from airflow_dai_provider.cli.output import Notes, OutputError, Row, Rows
from airflow_dai_provider.cli.owner_search import KnownOwners
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.metadata_database import find_connections
from airflow_dai_provider.tasks.events import describe_names
from airflow_dai_provider.tasks.failures import describe_error, task_error

#: Seconds of ``--timeout`` and ``--poll-interval`` where they are not given, as their help tells.
TIMEOUT, POLL_INTERVAL = 3600.0, 10.0
#: The exit code of a command that Ctrl+C, SIGTERM or SIGHUP has ended.
INTERRUPTED = 130


class UsageError(Exception):
    """A value on the command line is wrong."""


class Session:
    """One command.

    :param args: of the command line.
    """

    #: Replaced in tests. The clock is the epoch's, as the service's create times are.
    _clock: Callable[[], float] = staticmethod(time.time)
    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.notes = Notes()
        #: Whether Ctrl+C, or another signal, has ended a part of it.
        self.interrupted = False
        #: The log of the hook and of cancel requests.
        self.log: Any = self.notes
        if args.verbose:
            self.log = logging.getLogger(__name__)
        with usage():
            if args.api_endpoint is not None:
                parse_endpoint(args.api_endpoint, "--api-endpoint")
            self.hook = DaiHook(args.conn_id, args.impersonation_chain, args.api_endpoint)
        # Its own logger is a structlog one on Airflow 3.3, which writes to stdout.
        self.hook._log = self.log

    @cached_property
    def owners(self) -> KnownOwners:
        """The owners of operations."""
        endpoint: str | None = None
        try:
            endpoint = self.hook.endpoint.url
        except ServiceError:
            # The first request has told why.
            self.notes.say(
                "Owners are not shown: the endpoint is not known. Give --api-endpoint, or another --conn-id."
            )
        return KnownOwners(endpoint, self.notes)

    @property
    def limits(self) -> dict[str, Any]:
        """The limits of a wait."""
        args = self.args
        return {"timeout": args.timeout or TIMEOUT, "poll_interval": args.poll_interval or POLL_INTERVAL}

    def check_given(self, needed: str, without: str, *options: str) -> None:
        """Refuse options that have no effect without another one, which was not given.

        :param needed: the other one.
        :param without: what the command does, or does not, without it.
        :raises UsageError: when some of these options were given.
        """
        values = {f"--{option.replace('_', '-')}": getattr(self.args, option) for option in options}
        given = [option for option, value in values.items() if value not in (None, False)]
        if given:
            needs = "needs" if len(given) == 1 else "need"
            raise UsageError(f"{' and '.join(given)} {needs} {needed}: without it, {without}.")

    def check_wait(self) -> None:
        """Refuse the limits of a wait without a wait.

        :raises UsageError: when one was given.
        """
        if not self.args.wait:
            self.check_given("--wait", "the command does not wait", "timeout", "poll_interval")

    def clock(self) -> float:
        """Return the seconds since the epoch."""
        return self._clock()

    def now(self) -> datetime:
        """Return the time."""
        return datetime.fromtimestamp(self._clock(), UTC)

    def rows(self, columns: Sequence[str]) -> Rows:
        """Return a printer of rows, in the format that the user has chosen."""
        return Rows(self.args.output, columns)

    def show(self, rows: Iterable[Row], columns: Sequence[str], *, upright: bool = False) -> None:
        """Print rows; if ``upright``, a table of one row has a line for each column."""
        with Rows(self.args.output, columns, upright=upright) as printed:
            printed.add(list(rows))

    def poll(self, names: Sequence[str]) -> tuple[dict[str, Operation], dict[str, ServiceError]]:
        """Return the operations by name, and the errors of those that cannot be polled."""
        found: dict[str, Operation] = {}
        errors: dict[str, ServiceError] = {}
        with self.hook.workers(len(names)) as workers:
            for name, operation, error in workers.call(
                names, lambda hook, name: hook.get_operation(name), retry_timeout=self.hook.retry_timeout
            ):
                if operation:
                    found[name] = operation
                elif error:
                    errors[name] = error
        return found, errors

    def confirmed(self, question: str) -> bool:
        """Return whether the user agrees, by ``--yes`` or at the prompt."""
        if self.args.yes or self.notes.ask(question):
            return True
        self.notes.say("Nothing was done. Without a terminal to ask, give --yes.")
        return False

    def wait(self, names: Iterable[str]) -> ManyWait:
        """Wait until operations have finished, or the user ends the wait; say what still runs, and why."""
        names = list(dict.fromkeys(names))
        wait = self.hook.make_wait(describe_names(names), **self.limits)
        with self.notes.progress(f"Waiting for {describe_names(names)}", len(names)) as advance:
            many = ManyWait(names, wait, on_finish=advance)
            try:
                with self.interruptible(), self.hook.workers(len(names), wait=wait) as workers:
                    self.hook.wait_for_many(workers, many)
            except (WaitTimeoutError, ServiceError) as error:
                self.notes.say(advice(error) if isinstance(error, ServiceError) else f"{error}.")
        if many.left:
            self.notes.say(f"Not known to have finished, and may still run: {some_of(many.left)}.")
        return many

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl+C, or another signal, end this part of the command: what follows shows what was done by then."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True
            self.notes.say("Interrupted.")

    def tell(self, errors: Mapping[str, ServiceError]) -> None:
        """Say what the errors of single operations mean, each kind once."""
        for error in {error.rpc_code: error for error in errors.values()}.values():
            self.notes.say(advice(error))


@contextmanager
def usage() -> Iterator[None]:
    """Report an invalid value as wrong usage.

    :raises UsageError: with the message.
    """
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise UsageError(str(error)) from error


def advice(error: ServiceError) -> str:
    """Return the message of an error, and what to do."""
    return str(task_error(error.rpc_code, str(error)))


def command(function: Callable[[Session], bool]) -> Callable[[Namespace], None]:
    """Make a command of a function that returns whether all was done.

    :return: takes the arguments, and raises SystemExit with the exit code, unless it is 0.
    """

    @wraps(function)
    def run(args: Namespace) -> None:
        codes: list[int] = []
        _log_to_stderr()
        find_connections()
        # Without --verbose this silences Airflow; it discards the return value of its function.
        with _signals_as_ctrl_c():
            suppress_logs_and_warning(lambda args: codes.append(_run(function, args)))(args)
        if codes[0]:
            raise SystemExit(codes[0])

    return run


@contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, and a terminal that closes, end a command as Ctrl+C does: at once, nothing would tell what was done.

    SIGHUP is left alone where it is ignored, as under nohup.
    """
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, signal.default_int_handler)}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, _hang_up)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hang_up(number: int, frame: FrameType | None) -> None:
    """Interrupt the command once: the system and the shell may each send the signal."""
    signal.signal(number, signal.SIG_IGN)
    signal.default_int_handler(number, frame)


def _run(function: Callable[[Session], bool], args: Namespace) -> int:
    """Return the exit code."""
    notes = Notes()
    try:
        session = Session(args)
        with session.hook:
            return 0 if function(session) else INTERRUPTED if session.interrupted else 1
    except UsageError as error:
        notes.say(str(error))
        return 2
    except OutputError as error:
        notes.say(str(error))
    except KeyboardInterrupt:
        notes.say("Interrupted.")
        return INTERRUPTED
    except ServiceError as error:
        notes.say(advice(error))
    except (AirflowException, ValueError) as error:
        notes.say(describe_error(error))
    return 1


def _log_to_stderr() -> None:
    """Keep the log out of the output, where Airflow does not do it by itself."""
    for handler in logging.getLogger().handlers:
        if not (isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout):
            continue
        if hasattr(handler, "_use_stderr"):
            # That of Airflow 2 looks the stream up each time.
            handler._use_stderr = True
        else:
            handler.setStream(sys.stderr)
