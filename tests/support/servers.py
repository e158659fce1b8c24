"""Servers of the system's packages, which tests run in folders of their own, stop, and start again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import signal_group

#: Seconds that a server has to start.
PATIENCE = 60.0
#: Seconds that a server has to stop before it is killed.
STOP_SECONDS = 20.0


@dataclass
class Server:
    """
    A server program.

    :param url: where it is reached.
    :param ready: a command that succeeds once the server answers.
    :param folder: where it runs and writes its log.
    :param stopping: the signal that asks it to stop.
    :param user: the user it runs as, as arguments of ``subprocess.Popen``.
    """

    url: str
    command: Sequence[Any]
    ready: Sequence[Any]
    folder: Path
    stopping: signal.Signals = signal.SIGTERM
    user: Mapping[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it in a session of its own, and wait until it answers."""
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **self.user,
            )
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(self.ready, check=False, capture_output=True).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.command[0]} has not started: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it, and what it has started."""
        if self._process is None:  # The program could not be run.
            return
        self._process.send_signal(self.stopping)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        signal_group(self._process, signal.SIGKILL)
        self._process.wait()


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Create a folder for a server, which is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"airflow-dai-provider-{name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
