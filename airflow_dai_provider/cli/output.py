"""The output of a command: rows on stdout, through Airflow's console, and messages on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from airflow.cli.simple_table import AirflowConsole
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

#: A row: texts by column, None where there is none.
Row = dict[str, str | None]


class OutputError(Exception):
    """The rows could not be printed."""


class Rows:
    """Rows, which are printed page by page: the first ones come early, and none is kept.

    In the format ``table``, each page is a table of its own; in the others, all pages form one document.

    :param output: ``table``, ``json``, ``yaml`` or ``plain``.
    :param columns: of each row.
    """

    def __init__(self, output: str, columns: Sequence[str]) -> None:
        self._output = output
        self._columns = columns
        self._console = AirflowConsole()
        self._widths = dict.fromkeys(columns, 0)
        #: How many have been printed.
        self.number = 0

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
            self._add_plain(page)
        else:
            # A cell is not markup.
            self._console.print_as([{key: escape(value or "") for key, value in row.items()} for row in page], "table")
        # There is no sys.stdout where the caller has closed it.
        self._console.file.flush()

    def _add_plain(self, page: Sequence[Row]) -> None:
        rows = [[row[column] or "" for column in self._columns] for row in page]
        if not self.number:
            rows.insert(0, [*self._columns])
        self._widths = {
            column: max(width, *(len(row[index]) for row in rows))
            for index, (column, width) in enumerate(self._widths.items())
        }
        for row in rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, self._widths.values(), strict=True))
            self._print(f"{line.rstrip()}\n")

    def _print(self, text: str) -> None:
        self._console.print(text, end="", soft_wrap=True, markup=False, highlight=False, emoji=False)


@contextmanager
def _printing() -> Iterator[None]:
    """Tell what keeps rows from being printed, such as a full disk.

    :raises OutputError: with the reason.
    """
    try:
        yield
    except OSError as error:
        # Otherwise Python tries again when it ends, fails, and gives the process an exit code of its own.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"Could not print the rows: {error.strerror or error}.") from error


class Notes:
    """Messages on stderr. It also serves as the log of hooks, of which it prints warnings and errors."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, emoji=False)

    def say(self, message: str, *, end: str = "\n") -> None:
        """Print a message; if that fails, for example on a full disk, the command continues without it."""
        with suppress(OSError):
            self._console.print(message, end=end, soft_wrap=True, markup=False)

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
