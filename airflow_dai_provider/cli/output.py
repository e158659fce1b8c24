"""The output of a command: rows on stdout, through Airflow's console, and messages on stderr."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Self, TextIO, cast

from airflow.cli.simple_table import AirflowConsole, SimpleTable
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

#: A row: texts by column, None where there is none.
Row = dict[str, str | None]
#: The columns with names that are searched for and copied, so that a table does not fold them.
NAMES = ("name", "creative_name")


class OutputError(Exception):
    """The rows could not be printed."""


class Rows:
    """Rows, which are printed page by page: the first ones come early, and none is kept.

    In the format ``table``, each page is a table of its own; in the others, all pages form one document. As a context
    manager, it also ends a document that an error has broken off.

    :param output: ``table``, ``json``, ``yaml`` or ``plain``.
    :param columns: of each row.
    :param upright: whether a table of one row has a line for each column.
    """

    def __init__(self, output: str, columns: Sequence[str], *, upright: bool = False) -> None:
        self._output = output
        self._columns = columns
        self._upright = upright
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Not every encoding has each character of a URL.
            sys.stdout.reconfigure(errors="backslashreplace")
        self._console = AirflowConsole()
        self._widths = dict.fromkeys(columns, 0)
        #: How many have been printed.
        self.number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        # An error before the first row leaves no document, since an empty one would tell that there is nothing.
        if self.number or error_type is None:
            self.close()

    def add(self, page: Sequence[Row]) -> None:
        """Print a page."""
        if page:
            with _printing():
                self._print_page(page)
            self.number += len(page)

    def close(self) -> None:
        """Print the end."""
        with _printing():
            if self._output == "json":
                self._print("]\n" if self.number else "[]\n")
            elif self._output == "yaml" and not self.number:
                self._print("[]\n")

    def _print_page(self, page: Sequence[Row]) -> None:
        if self._output == "json":
            text = ", ".join(map(json.dumps, page))
            self._print(f"{', ' if self.number else '['}{text}")
        elif self._output == "yaml":
            self._console.print_as(page, "yaml")
        elif self._output == "plain":
            self._add_plain([[printable(row[column] or "") for column in self._columns] for row in page])
        else:
            self._add_table([{column: printable(row[column] or "") for column in self._columns} for row in page])
        # There is no sys.stdout where the caller has closed it.
        self._console.file.flush()

    def _add_plain(self, rows: list[list[str]]) -> None:
        if not self.number:
            rows.insert(0, [*self._columns])
        self._widths = {
            column: max(width, *(len(row[index]) for row in rows))
            for index, (column, width) in enumerate(self._widths.items())
        }
        for row in rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, self._widths.values(), strict=True))
            self._print(f"{line.rstrip()}\n")

    def _add_table(self, page: list[dict[str, str]]) -> None:
        names = max(cell_len(row.get(column, "")) for row in page for column in NAMES)
        if self._upright and len(page) == 1:
            page = [{"field": column, "value": cell} for column, cell in page[0].items()]
            others = max(map(len, self._columns)) + _GAP
        else:
            if _width_of(page) > self._console.width:
                filled = {column for row in page for column, cell in row.items() if cell}
                page = [{column: cell for column, cell in row.items() if column in filled} for row in page]
            # At least one character of each.
            others = (len(page[0]) - 1) * (1 + _GAP)
        # Too wide a table is better than a name that is cut off.
        self._console.width = max(self._console.width, names + others)
        table = SimpleTable(show_header=True)
        for column in page[0]:
            table.add_column(column, no_wrap=column in NAMES)
        for row in page:
            # Not as markup.
            table.add_row(*map(Text, row.values()))
        self._console.print(table)

    def _print(self, text: str) -> None:
        self._console.print(text, end="", soft_wrap=True, markup=False, highlight=False, emoji=False)


#: The width of what separates two columns of a table.
_GAP = 3


def _width_of(page: Sequence[dict[str, str]]) -> int:
    """Return the width of a table without folded cells."""
    widths = [max(cell_len(column), *(cell_len(row[column]) for row in page)) for column in page[0]]
    return sum(widths) + (len(widths) - 1) * _GAP


def printable(text: str) -> str:
    """Return a text on one line and without control characters, which a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else " " if one.isspace() else "\N{REPLACEMENT CHARACTER}" for one in text)


@contextmanager
def _printing() -> Iterator[None]:
    """Tell what keeps rows from being printed, such as a full disk.

    :raises OutputError: with the reason.
    """
    try:
        yield
    except OSError as error:
        _discard(sys.stdout)
        raise OutputError(f"Could not print the rows: {error.strerror or error}.") from error


def _discard(file: TextIO) -> None:
    """Let a file drop all that is written to it from now on, and what it could not write.

    Otherwise Python tries again when it ends, fails, and gives the process an exit code of its own.
    """
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class _Stderr:
    """The file stderr; once it cannot be written, because the disk is full or the terminal is gone, it drops all."""

    def __init__(self) -> None:
        self._file: TextIO | None = sys.stderr
        self.encoding = getattr(sys.stderr, "encoding", None)

    def write(self, text: str) -> int:
        if self._file:
            try:
                self._file.write(text)
                self._file.flush()
            except OSError:
                _discard(self._file)
                self._file = None
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self._file is not None and self._file.isatty()


class Notes:
    """Messages on stderr. It also serves as the log of hooks, of which it prints warnings and errors.

    If they cannot be printed, the command continues without them.
    """

    def __init__(self) -> None:
        self._console = Console(file=cast("TextIO", _Stderr()), highlight=False, emoji=False)

    def say(self, message: str, *, end: str = "\n") -> None:
        """Print a message."""
        text = "\n".join(map(printable, message.split("\n")))
        self._console.print(text, end=end, soft_wrap=True, markup=False)

    def debug(self, message: str, *args: object) -> None:
        """Ignore a debug message; ``--verbose`` shows it."""

    info = debug

    def warning(self, message: str, *args: object) -> None:
        """Print a warning."""
        self.say(message % args if args else message)

    error = warning

    def log(self, level: int, message: str, *args: object) -> None:
        """Print a message with the level WARNING or higher."""
        if level >= 30:
            self.warning(message, *args)

    def ask(self, question: str) -> bool:
        """Return whether the answer is yes. On a closed terminal, and at the end of the input, it is no."""
        self.say(f"{question} [y/N] ", end="")
        try:
            answer = sys.stdin.readline() if sys.stdin else ""
        except (OSError, ValueError):
            answer = ""
        if not answer:
            self.say("")
        return answer.strip().lower() in ("y", "yes")

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[object], None]]:
        """Show a progress bar, on a terminal only; yield a function to call for each item that has finished."""
        if not self._console.is_terminal:
            yield lambda _: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            bar = progress.add_task(description, total=total)
            yield lambda _: progress.advance(bar)
