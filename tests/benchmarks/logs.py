"""What the code under measurement logs: written as Airflow's triggerer writes it, at its level, and counted."""

from __future__ import annotations

import io
import logging
import os


class Sink(io.RawIOBase):
    """Count lines, and write them to nowhere; one system call a line, as a socket takes."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = 0
        self._nowhere = os.open(os.devnull, os.O_WRONLY)

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.lines += data.count(b"\n")
        return os.write(self._nowhere, data)


def log_like_the_triggerer() -> Sink:
    """Have every line of Airflow's loggers, at Airflow's own level (INFO), counted in the sink that is returned."""
    sink = Sink()
    try:
        from airflow.sdk.log import configure_logging, reset_logging
    except ImportError:
        _redirect_root_handlers(sink)
    else:
        # As airflow.sdk.execution_time.supervisor does in the process in which the triggers run.
        reset_logging()
        configure_logging(json_output=True, output=sink, sending_to_supervisor=True)
    return sink


def _redirect_root_handlers(sink: Sink) -> None:
    """Airflow 2: keep the level and the format of the root logger's handlers."""
    import airflow.settings  # noqa: F401 - configures logging

    for handler in logging.root.handlers[:]:
        redirected = logging.StreamHandler(io.TextIOWrapper(sink, write_through=True))
        redirected.setFormatter(handler.formatter)
        redirected.setLevel(handler.level)
        logging.root.removeHandler(handler)
        logging.root.addHandler(redirected)
