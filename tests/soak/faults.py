"""The faults of the soak: all that a client must survive by itself, in equal shares."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_dai_provider.emulator import DaiEmulator, Fault

#: The faults that any request can meet.
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
TOKEN = "token"
#: Faults of one method each, and the share of its requests that they hit.
OF_METHODS = (
    ("operations.get", 0.02, {"rpc_status": "NOT_FOUND"}),
    ("operations.list", 0.2, {"listed": [None, {"done": True}, "x", {"name": "operations/../x"}]}),
)


#: The least part of the share of requests asked for that must have met a fault: chance never leaves so few.
LEAST = 0.25


def inject(emulator: DaiEmulator, share: float, methods: Sequence[str] = METHODS) -> None:
    """Let this share of the requests of these methods fail, each with one of the faults."""
    if not share:
        return
    left = 1.0
    each = share / len(KINDS)
    for kind in KINDS:
        # The emulator tries one fault after the other, so a later one applies to the remaining requests only.
        for method in methods:
            emulator.inject(Fault(method, rate=each / left, **kind))  # type: ignore[arg-type]
        left -= each
    for method, rate, kind in OF_METHODS:
        if method in methods:
            emulator.inject(Fault(method, rate=rate, **kind))  # type: ignore[arg-type]


def too_few(emulator: DaiEmulator, share: float, methods: Sequence[str] = METHODS) -> list[str]:
    """Return the problem when far fewer requests of these methods than this share have met one of the faults."""
    met = sum(emulator.faults_injected.get(Fault(**kind).kind, 0) for kind in KINDS)  # type: ignore[arg-type]
    sent = sum(request.method in methods for request in emulator.requests)
    return [] if met >= int(LEAST * share * sent) else [f"{met} faults in {sent} requests, with {share:.0%} asked for"]
