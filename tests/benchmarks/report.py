"""The results of a topic, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limit:
    """
    An upper limit of a measurement.

    :param what: the measured quantity, ratios as ``a / b``.
    :param measured: its value.
    :param most: the limit.
    """

    what: str
    measured: float
    most: float

    @property
    def holds(self) -> bool:
        return 0 <= self.measured <= self.most


@dataclass
class Topic:
    """
    One table.

    :param title: a description of the measurement.
    :param columns: the headings.
    :param rows: the cells, as text.
    :param limits: the limits, which the results must keep.
    :param notes: explanations of the figures.
    :param data: the raw measurements, for the JSON file.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: Any = None

    def __str__(self) -> str:
        lines = [self.title, "", *_table([self.columns, *self.rows]), ""]
        lines += [f"  {note}" for note in self.notes]
        if self.limits:
            rows = [
                (limit.what, f"{limit.measured:.3g}", f"<= {limit.most:.3g}", _verdict(limit)) for limit in self.limits
            ]
            lines += ["", *_table([("limit", "measured", "at most", ""), *rows])]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        limits = [
            {"what": limit.what, "measured": limit.measured, "at_most": limit.most, "holds": limit.holds}
            for limit in self.limits
        ]
        return {"title": self.title, "limits": limits, "notes": self.notes, "data": self.data}


def ratio(measured: float, base: float) -> float:
    """Return the one as a share of the other; infinite, which no limit allows, where one of them was not measured.

    What is left of a figure, less what an idle Airflow or a run of one operation uses, can be zero or negative.
    """
    return measured / base if measured > 0 and base > 0 else float("inf")


def micro(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us"


def milli(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def times(ratio: float) -> str:
    return f"{ratio:.2f} x"


def _verdict(limit: Limit) -> str:
    return "PASS" if limit.holds else "MISS"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"  {row[0].ljust(len(first))}  {'  '.join(others)}".rstrip())
    lines.insert(1, "  " + "-" * (len(max(lines, key=len)) - 2))
    return lines
