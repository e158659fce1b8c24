"""The definition of ``airflow dai``: its commands and their options.

Airflow 3.2 and later import it for every command line, also ``airflow --help``. So it imports nothing but Airflow's own
classes, which are loaded by then; a command is imported when it runs.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable
from typing import TypeVar

from airflow.cli.cli_config import (
    ARG_OUTPUT,
    ARG_VERBOSE,
    ARG_YES,
    ActionCommand,
    Arg,
    GroupCommand,
    lazy_load_command,
    positive_int,
    string_list_type,
)

T = TypeVar("T")


def dai_commands() -> list[GroupCommand]:
    """Return the commands; Airflow calls this."""
    return [GroupCommand("dai", "List, find, cancel and await ingests of Google's DAI service", DAI_COMMANDS)]


def _operation(text: str) -> str:
    from airflow_dai_provider.api.names import check_operation_name

    return _checked(check_operation_name, text)


def _creative(text: str) -> str:
    from airflow_dai_provider.api.names import check_creative_name

    return _checked(check_creative_name, text)


def _duration(text: str) -> float:
    from airflow_dai_provider.api.parameters import check_seconds

    # A number is one of seconds.
    text = f"{text}s" if text.replace(".", "", 1).isdecimal() else text
    return _checked(lambda value: check_seconds("duration", value), text)


def _url_part(text: str) -> str:
    from airflow_dai_provider.api.names import is_missing_name

    # A template or a variable of the shell that was empty, and would select everything.
    if is_missing_name(text):
        raise ArgumentTypeError(f"expected a part of a URL, not {text!r}")
    return text


def _checked(check: Callable[[str], T], text: str) -> T:
    try:
        return check(text)
    except ValueError as error:
        # The only error whose text argparse shows.
        raise ArgumentTypeError(str(error)) from error


ARG_OPERATION = Arg(("name",), metavar="NAME", type=_operation, help="The operation, such as operations/abc")
ARG_OPERATIONS = Arg(("names",), metavar="NAME", type=_operation, nargs="+", help="The operations")
ARG_CREATIVES = Arg(("names",), metavar="NAME", type=_creative, nargs="+", help="The ads, such as creatives/abc")
ARG_CONN_ID = Arg(("--conn-id",), default="google_cloud_default", help="The Google Cloud connection")
ARG_CHAIN = Arg(
    ("--impersonation-chain",), type=string_list_type, help="Service account(s) to impersonate, separated by commas"
)
ARG_ENDPOINT = Arg(("--api-endpoint",), help="host, host:port or https://host:port instead of Google's own")
CONNECTION = (ARG_CONN_ID, ARG_CHAIN, ARG_ENDPOINT, ARG_OUTPUT, ARG_VERBOSE)

ARG_ALL = Arg(("-a", "--all"), action="store_true", help="Finished operations too")
ARG_OLDER_THAN = Arg(
    ("--older-than",), type=_duration, metavar="DURATION", help="Only operations that are older, such as 90s, 6h or 2d"
)
ARG_URL_PREFIX = Arg(("--url-prefix",), type=_url_part, help="Only operations whose media URL begins with this")
ARG_WAIT = Arg(("-w", "--wait"), action="store_true", help="Wait until the operations have finished")
ARG_TIMEOUT = Arg(("--timeout",), type=_duration, metavar="DURATION", help="The longest wait (default: 1h)")
ARG_POLL_INTERVAL = Arg(
    ("--poll-interval",),
    type=_duration,
    metavar="DURATION",
    help="The longest time between two polls (default: 10s)",
)
# Without a default, so that it is known whether they were given; :mod:`session` has it.
WAITING = (ARG_TIMEOUT, ARG_POLL_INTERVAL)

ARG_DRY_RUN = Arg(
    ("--dry-run",), action=BooleanOptionalAction, default=True, help="Only show what would be cancelled (default)"
)
ARG_STRAY_AGE = Arg(
    ("--older-than",),
    type=_duration,
    metavar="DURATION",
    help="The age from which an operation without an owner is a stray too; without it, these are left alone",
)
ARG_ORPHANED_FOR = Arg(
    ("--orphaned-for",),
    type=_duration,
    metavar="DURATION",
    help="How long an owner has to be over (default: 2m)",
)
ARG_URL_PATTERN = Arg(
    ("--url-pattern",), type=_url_part, help="Only operations whose media URL contains a match of this regex"
)
ARG_SPARE = Arg(("--spare",), metavar="NAME", type=_operation, nargs="+", help="Operations to leave alone")
ARG_UNDATED = Arg(
    ("--include-undated",), action="store_true", help="Operations without a create time too; needs --older-than"
)
ARG_MOST = Arg(
    ("--max-cancellations",),
    type=positive_int(allow_zero=False),
    default=20,
    help="If more strays without an owner are found, none of these is cancelled (default: 20)",
)
ARG_KEPT = Arg(
    ("--older-than",),
    type=_duration,
    metavar="DURATION",
    help="The age from which records of operations that are no longer listed are deleted (default: 7d; 15m at least)",
)

EXIT_CODES = (
    "Exit codes: 0 done; 1 something was refused, was not found, could not be read or may still run, or the prompt was "
    "answered with no; 2 wrong usage; 130 ended by Ctrl+C, SIGTERM or SIGHUP."
)


def _command(name: str, help_: str, description: str, *args: Arg) -> ActionCommand:
    function = lazy_load_command(f"airflow_dai_provider.cli.commands.{name.replace('-', '_')}")
    return ActionCommand(name, help_, function, args, description, EXIT_CODES)


DAI_COMMANDS = (
    _command(
        "list",
        "List operations and the tasks that started them",
        "List the running operations and the task that started each, according to the records of owners and the XComs "
        "in the metadata database.",
        *(ARG_ALL, ARG_OLDER_THAN, ARG_URL_PREFIX, *CONNECTION),
    ),
    _command("get", "Show an operation", "Show an operation and its owner.", ARG_OPERATION, *CONNECTION),
    _command(
        "whose",
        "Show which task started an operation",
        "Show which task started an operation, the state of that task, and whether the operation is a stray. If the "
        "service does not respond, the task is found only if Airflow knows the name of the operation.",
        *(ARG_OPERATION, *CONNECTION),
    ),
    _command(
        "cancel",
        "Cancel operations",
        "Request the cancellation of operations, after a prompt.",
        *(ARG_OPERATIONS, ARG_YES, ARG_WAIT, *WAITING, *CONNECTION),
    ),
    _command(
        "wait",
        "Wait until operations have finished",
        "Wait until operations have finished, in any final state. Ctrl+C ends the wait, and nothing else.",
        *(ARG_OPERATIONS, *WAITING, *CONNECTION),
    ),
    _command(
        "sweep",
        "Cancel operations whose task is over",
        "Find the operations whose task is over. With --no-dry-run, cancel them after a prompt.",
        *(ARG_DRY_RUN, ARG_YES, ARG_STRAY_AGE, ARG_ORPHANED_FOR, ARG_URL_PREFIX, ARG_URL_PATTERN, ARG_SPARE),
        *(ARG_UNDATED, ARG_MOST, ARG_WAIT, *WAITING, *CONNECTION),
    ),
    _command(
        "delete-creative",
        "Delete ads",
        "Delete ads, after a prompt: for ingests whose cancellation came too late.",
        *(ARG_CREATIVES, ARG_YES, *CONNECTION),
    ),
    _command(
        "check",
        "Check the connection",
        "Authenticate, and read from the service and from the metadata database. Nothing is changed.",
        *CONNECTION,
    ),
    _command(
        "purge",
        "Delete records of owners that nothing needs",
        "Delete the records of owners (Airflow 3.3 and later) whose task is over and whose operations are gone.",
        *(ARG_KEPT, *CONNECTION),
    ),
)
