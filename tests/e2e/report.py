"""The table of the measured rows, in the form that docs/guards.md has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import pytest
from outcomes import Outcome
from rows import FORMS, LEAK, UNHARMED

#: The outcomes, kept for the end of the session.
PLAYED = pytest.StashKey[Mapping[tuple[str, str], Outcome]]()

HEAD = (
    "| row | what happens | the operator alone | with a sweep by owner | with the rings | and a sweep by age |",
    "|---|---|---|---|---|---|",
)


def table(played: Mapping[tuple[str, str], Outcome]) -> str:
    """Return the table in Markdown, one line per row, and below it the number of strays."""
    ids = dict.fromkeys(row for row, _ in played)
    lines = [_line(played[row, "own"], played.get((row, "swept")), played[row, "rings"]) for row in ids]
    return "\n".join([*HEAD, *lines, "", *_summary(played.values())])


def guards_of(markdown: str) -> dict[str, list[str]]:
    """Return the guards, or the leak, of each row in the first table of a text, without seconds and requests."""
    _, _, below = markdown.partition("\n".join(HEAD))
    rows = [line.strip("|").split("|") for line in below.strip().partition("\n\n")[0].splitlines()]
    return {cells[0].strip(): [_words(cell) for cell in cells[-4:]] for cells in rows if len(cells) == 6}


def _line(own: Outcome, swept: Outcome | None, rings: Outcome) -> str:
    return f"| {own.row.id} | {own.row.what} | {_cell(own)} | {_cell(swept)} | {_cell(rings)} | {_swept(rings)} |"


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if outcome.problem:
        return "not played"
    if outcome.leaks:
        return f"**{LEAK}**"
    if not outcome.play.strays:
        return UNHARMED
    plural = "" if outcome.requests == 1 else "s"
    return f"{outcome.guard}, {outcome.seconds:.0f} s, {outcome.requests} request{plural}"


def _swept(outcome: Outcome) -> str:
    if outcome.problem or not outcome.after_sweep:
        return "not played" if outcome.problem or outcome.play.strays else ""
    if "RUNNING" in outcome.after_sweep.values():
        return f"**{LEAK}**"
    if not outcome.leaks:
        return ""
    return "sweep" if set(outcome.after_sweep.values()) == {"CANCELLED"} else "finished by itself"


def _summary(outcomes: Iterable[Outcome]) -> list[str]:
    own, owners, rings = ([outcome for outcome in outcomes if outcome.play.guards == guards] for guards in FORMS)
    left = [outcome for outcome in rings if "RUNNING" in outcome.after_sweep.values()]
    return [
        f"Strays, the operator alone: {_named([outcome for outcome in own if outcome.leaks])}.",
        f"Strays, with a sweep by owner: {_named([outcome for outcome in owners if outcome.leaks])}.",
        f"Strays, with the rings: {_named([outcome for outcome in rings if outcome.leaks])}.",
        f"Strays, and a sweep by age: {_named(left)}.",
    ]


def _named(leaking: list[Outcome]) -> str:
    return f"{len(leaking)}" + (f" ({', '.join(outcome.row.id for outcome in leaking)})" if leaking else "")


def _words(cell: str) -> str:
    return re.sub(r", -?\d+ s, \d+ requests?", "", cell).strip(" *|")
