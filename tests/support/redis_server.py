"""A Redis server of its own for a test, from the packages of the system: the broker of Celery."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.processes import free_port
from tests.support.servers import Server, temporary_folder


@contextmanager
def redis_server() -> Iterator[Server]:
    """Run an empty server on loopback, which keeps what it holds when it is stopped and started again."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("Redis is not installed; `make e2e EXECUTOR=celery` installs Debian's package.")
    port = str(free_port())
    with temporary_folder("redis") as folder:
        settings = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
        with Server(
            url=f"redis://127.0.0.1:{port}/0",
            command=[program, *(part for key, value in settings.items() for part in (f"--{key}", value))],
            ready=["redis-cli", "-e", "-p", port, "ping"],
            folder=folder,
        ) as server:
            yield server
