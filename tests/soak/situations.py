"""What a service answers to one ingest, beside the faults that any request can meet."""

from __future__ import annotations

from collections.abc import Callable

from airflow_dai_provider.emulator import DaiEmulator, Fault

Situation = Callable[[DaiEmulator, str], None]

GET, CANCEL = "operations.get", "operations.cancel"
#: Text and values that no database stores, and nesting that no reader follows.
ODD = {"text": "nul \0, cut \ud83d", "number": 10**400, "share": float("nan"), "nul \0 key": [{}]}


def plain(emulator: DaiEmulator, name: str) -> None:
    """Answer as a service does."""


def odd_text(emulator: DaiEmulator, name: str) -> None:
    emulator.inject(Fault(GET, name, merge={"metadata": ODD}, times=None))


def unreadable(emulator: DaiEmulator, name: str) -> None:
    nested = b'{"name": "%s", "metadata": %s1%s}' % (name.encode(), b'{"a": ' * 600, b"}" * 600)
    emulator.inject(Fault(GET, name, status=200, body=nested, times=3))


def unknown_at_first(emulator: DaiEmulator, name: str) -> None:
    emulator.inject(Fault(GET, name, rpc_status="NOT_FOUND", times=2))


def over_a_limit(emulator: DaiEmulator, name: str) -> None:
    for method in (GET, CANCEL):
        emulator.inject(Fault(method, name, status=403, reason="rateLimitExceeded", times=2))


def error_of_a_success(emulator: DaiEmulator, name: str) -> None:
    body = b'{"error": {"code": 503, "message": "Try again."}}'
    emulator.inject(Fault(CANCEL, name, status=200, body=body, times=2))


def refused_although_cancelled(emulator: DaiEmulator, name: str) -> None:
    emulator.inject(Fault(CANCEL, name, rpc_status="FAILED_PRECONDITION", processed=True))


def aborted_although_cancelled(emulator: DaiEmulator, name: str) -> None:
    emulator.inject(Fault(CANCEL, name, rpc_status="ABORTED", processed=True, times=6))


def contradicted_once(emulator: DaiEmulator, name: str) -> None:
    """The task fails, and Airflow's retry cancels."""
    emulator.inject(Fault(CANCEL, name, rpc_status="NOT_FOUND"))


def front_end(emulator: DaiEmulator, name: str) -> None:
    """A proxy's pages in place of the API, which has responded before: to the cancel."""
    for status in (403, 404, 501):
        emulator.inject(Fault(GET, name, status=status, html=True))


#: Those of polls, and those of a cancel and the polls after it.
OF_WAITS: tuple[Situation, ...] = (plain, odd_text, unreadable, unknown_at_first)
OF_CANCELS: tuple[Situation, ...] = (
    *OF_WAITS,
    front_end,
    over_a_limit,
    error_of_a_success,
    refused_although_cancelled,
    aborted_although_cancelled,
    contradicted_once,
)
