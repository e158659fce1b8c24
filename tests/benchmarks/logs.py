"""Count the lines that the measured code logs, in the format and at the level of Airflow's triggerer."""

from __future__ import annotations

import io
import logging
import os


class Sink(io.RawIOBase):
    """Count lines and discard them, with one system call per line, as for a socket."""

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
    """Send every line of Airflow's loggers, at Airflow's own level (INFO), to the sink that is returned."""
    sink = Sink()
    try:
        from airflow.sdk.log import configure_logging, reset_logging
    except ImportError:
        _redirect_root_handlers(sink)
    else:
        # As airflow.sdk.execution_time.supervisor does in the process that runs the triggers.
        reset_logging()
        configure_logging(json_output=True, output=sink, sending_to_supervisor=True)
    return sink


def _redirect_root_handlers(sink: Sink) -> None:
    """Redirect the root logger's handlers of Airflow 2, with their levels and formats."""
    import airflow.settings  # noqa: F401 - configures logging

    for handler in logging.root.handlers[:]:
        redirected = logging.StreamHandler(io.TextIOWrapper(sink, write_through=True))
        redirected.setFormatter(handler.formatter)
        redirected.setLevel(handler.level)
        logging.root.removeHandler(handler)
        logging.root.addHandler(redirected)
