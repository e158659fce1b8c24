"""The faults of the soak: everything that a client has to get over by itself, in equal shares."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_dai_provider.emulator import DaiEmulator, Fault

#: What may go wrong with any request.
KINDS = (
    {"status": 503},
    {"status": 503, "retry_after": 1},
    {"status": 429, "retry_after_date": 1.0},
    {"rpc_status": "INTERNAL"},
    {"rpc_status": "ABORTED"},
    {"status": 504},
    {"status": 502, "html": True},
    {"status": 200, "body": b"<html>Welcome</html>", "content_type": "text/html"},
    {"drop": "before"},
    {"drop": "before", "reset": True},
    {"drop": "after"},
    {"drop": "after", "reset": True},
    {"truncate": 3},
    {"truncate": 0, "reset": True},
    {"status": 500, "processed": True},
    {"padding": 5_000_000},
    {"delay": 2.0},
)
METHODS = ("operations.cancel", "operations.get", "operations.list", "creatives.create")


def inject(emulator: DaiEmulator, share: float, methods: Sequence[str] = METHODS) -> None:
    """Let this share of the requests of these methods fail, each in one of the ways."""
    if not share:
        return
    left = 1.0
    each = share / len(KINDS)
    for kind in KINDS:
        # A request is tried with one fault after the other, so later ones see only what is left.
        for method in methods:
            emulator.inject(Fault(method, rate=each / left, **kind))  # type: ignore[arg-type]
        left -= each
