"""A PostgreSQL server of its own for a test, from the packages of the system."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.processes import free_port, running

#: Where Debian's package keeps the programs; other systems have them on the path.
DEBIAN = "/usr/lib/postgresql/*/bin/initdb"
#: Seconds that the server has to start.
PATIENCE = 60.0
#: Seconds that the server has to stop before it is killed.
STOP_SECONDS = 20.0


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a server on loopback with an empty database, and yield its URL for SQLAlchemy.

    The server refuses to run as root, so it runs as the user of the package then.
    """
    programs = _programs()
    user: Mapping[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if not os.getuid() else {}
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="airflow-dai-provider-postgresql-"))
    try:
        if user:
            shutil.chown(folder, "postgres", "postgres")
        data = folder / "data"
        create = [
            programs / "initdb",
            "--pgdata",
            data,
            "--username",
            "airflow",
            "--auth",
            "trust",
            "--encoding",
            "UTF8",
        ]
        subprocess.run([*create, "--no-sync"], check=True, capture_output=True, cwd=folder, **user)
        settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}"]
        settings += ["fsync=off", "max_connections=300"]
        command = [programs / "postgres", "-D", data, *(part for one in settings for part in ("-c", one))]
        with (
            (folder / "log").open("wb") as log,
            running(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **user) as server,
        ):
            try:
                _wait_until_ready(programs, port, server, folder / "log")
                yield f"postgresql+psycopg2://airflow@127.0.0.1:{port}/postgres"
            finally:
                server.send_signal(signal.SIGINT)  # a fast shutdown, which gives the shared memory back
                with suppress(subprocess.TimeoutExpired):
                    server.wait(STOP_SECONDS)
    finally:
        shutil.rmtree(folder)


def _programs() -> Path:
    found = sorted(Path("/").glob(DEBIAN.lstrip("/"))) or [Path(path) for path in [shutil.which("initdb")] if path]
    if not found:
        raise RuntimeError("PostgreSQL is not installed; `make e2e` installs Debian's package.")
    return found[-1].parent


def _wait_until_ready(programs: Path, port: int, server: subprocess.Popen[Any], log: Path) -> None:
    ready = [programs / "pg_isready", "--quiet", "--host", "127.0.0.1", "--port", str(port)]
    deadline = time.monotonic() + PATIENCE
    while subprocess.run(ready, check=False).returncode:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL has not started: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)
