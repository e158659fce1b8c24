"""Check the recorded requests against the retry rule, and print all problems."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from airflow_dai_provider.emulator import RecordedRequest

#: The shortest time between two polls of which the first succeeded: less than the first interval with its jitter.
APART = 0.75
#: Polls of one operation that may come sooner: the triggerer's first after the worker's, or the last before a timeout.
SOONER = 1

#: Problems that are printed in full for each row of the table.
SHOWN = 20


def print_results(rows: Mapping[str, Any], problems: Mapping[str, list[str]]) -> int:
    """Print a table of figures and of how many problems there are, then the problems; return their number."""
    for label, value in {**rows, **{label: len(found) for label, found in problems.items()}}.items():
        print(f"  {label:<34} {value}", flush=True)
    for label, found in problems.items():
        for problem in found[:SHOWN]:
            print(f"  WRONG, {label}: {problem}", file=sys.stderr)
        if len(found) > SHOWN:
            print(f"  WRONG, {label}: {len(found) - SHOWN} more", file=sys.stderr)
    return sum(map(len, problems.values()))


def requests_against_the_rule(requests: Iterable[RecordedRequest], sooner: int = SOONER) -> list[str]:
    """
    Return the requests that should not have been sent.

    A request may follow another of the same method for the same ingest only if that one has failed or, for a poll,
    after the interval. A create may follow another only if that one was throttled, or its token was refused.
    """
    by_subject: dict[tuple[str | None, str], list[RecordedRequest]] = defaultdict(list)
    for request in requests:
        if request.method in ("operations.get", "operations.cancel", "creatives.create"):
            by_subject[request.method, request.name or media_url(request)].append(request)
    wrong = []
    for (method, subject), sent in by_subject.items():
        retries = [first for first, second in zip(sent, sent[1:], strict=False) if not may_follow(first, second)]
        allowed = sooner if method == "operations.get" else 0
        wrong += [f"{method} of {subject} again after {first.fault or 'a success'}" for first in retries[allowed:]]
    return wrong


def may_follow(first: RecordedRequest, second: RecordedRequest) -> bool:
    if first.status == HTTPStatus.UNAUTHORIZED:
        return True
    if first.method == "operations.get":
        return first.fault is not None or second.time - first.time > APART
    return first.fault is not None and (first.method == "operations.cancel" or first.status == 429)


def media_url(request: RecordedRequest) -> str:
    return str(json.loads(request.body)["creative"]["mediaFiles"][0]["uri"])
