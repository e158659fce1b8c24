"""A PostgreSQL server of its own for a test, from the packages of the system."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.processes import free_port
from tests.support.servers import Server, temporary_folder

#: Where Debian's package keeps the programs; other systems have them on the path.
DEBIAN = "/usr/lib/postgresql/*/bin/initdb"


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a server on loopback with an empty database, and yield its URL for SQLAlchemy."""
    with postgresql_server() as server:
        yield server.url


@contextmanager
def postgresql_server() -> Iterator[Server]:
    """Run a server on loopback with an empty database.

    The server refuses to run as root, so it runs as the user of the package then.
    """
    programs = _programs()
    user: Mapping[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if not os.getuid() else {}
    port = free_port()
    with temporary_folder("postgresql") as folder:
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
        with Server(
            url=f"postgresql+psycopg2://airflow@127.0.0.1:{port}/postgres",
            command=[programs / "postgres", "-D", data, *(part for one in settings for part in ("-c", one))],
            ready=[programs / "pg_isready", "--quiet", "--host", "127.0.0.1", "--port", str(port)],
            folder=folder,
            stopping=signal.SIGINT,  # a fast shutdown, which gives the shared memory back
            user=user,
        ) as server:
            yield server


def _programs() -> Path:
    found = sorted(Path("/").glob(DEBIAN.lstrip("/"))) or [Path(path) for path in [shutil.which("initdb")] if path]
    if not found:
        raise RuntimeError("PostgreSQL is not installed; `make e2e` installs Debian's package.")
    return found[-1].parent
