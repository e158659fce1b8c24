"""The log recorder: every line that a test logs, by the standard library or by structlog."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Log:
    """Every line logged: the logger's name, the level, the words."""

    everything: list[tuple[str, str, str]] = field(default_factory=list)
    #: The tracebacks that are logged with a line.
    tracebacks: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(words for _, _, words in self.everything)

    @property
    def ours(self) -> list[str]:
        """The lines of this project's operators, sensors, hooks and notifiers; not those of the emulator."""
        return [words for _, words in self._ours()]

    @property
    def errors(self) -> list[str]:
        return [words for level, words in self._ours() if level == "error"]

    def lines(self, words: str) -> list[str]:
        """Return the lines of ours that hold these words."""
        return [line for line in self.ours if words in line]

    def add(self, logger: object, level: str, words: str) -> None:
        self.everything.append((str(logger), level, words))

    def add_traceback(self, exc_info: Any) -> None:
        """Add what is given as ``exc_info``: true for the error that is being handled, an error, or a tuple."""
        error = exc_info[1] if isinstance(exc_info, tuple) else sys.exception() if exc_info is True else exc_info
        if isinstance(error, BaseException):
            self.tracebacks.append("".join(traceback.format_exception(error)))

    def _ours(self) -> Iterator[tuple[str, str]]:
        for logger, level, words in self.everything:
            # Airflow grumbles where a test calls execute() by itself.
            ours = "airflow_dai_provider." in logger and "airflow_dai_provider.emulator" not in logger
            if ours and "cannot be called outside" not in words:
                yield level, words


@pytest.fixture
def log() -> Iterator[Log]:
    """Record the log: Airflow 2 writes it with the standard library, Airflow 3 with structlog."""
    record = Log()
    make_record = logging.getLogRecordFactory()

    def remember(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make_record(*args, **kwargs)
        if made.name:
            record.add(made.name, made.levelname.lower(), made.getMessage())
            record.add_traceback(made.exc_info)
        return made

    def remember_event(logger: Any, level: str, event: dict[str, Any]) -> dict[str, Any]:
        name = event.get("logger_name") or getattr(logger, "name", None)
        record.add(name, "error" if level == "exception" else level, str(event.get("event")))
        record.add_traceback(event.get("exc_info") or level == "exception")
        return event

    logging.setLogRecordFactory(remember)
    processors = _structlog_processors()
    processors.insert(0, remember_event)
    yield record
    processors.remove(remember_event)
    logging.setLogRecordFactory(make_record)


def _structlog_processors() -> list[Any]:
    from tests.support.airflow_versions import IS_AIRFLOW_2

    if IS_AIRFLOW_2:
        return []
    import airflow.settings  # noqa: F401  (configures structlog)
    import structlog

    processors: list[Any] = structlog.get_config()["processors"]
    return processors
