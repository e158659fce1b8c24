"""Processes of their own for what is measured, stopped by group whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.processes import running

HERE = Path(__file__).parent


class ScenarioError(Exception):
    """A process that measures has failed, or has taken too long."""


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what could change the measurement."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("AIRFLOW", "GOOGLE_", "DAI_", "SSL_", "PYTHONDONTWRITE", "PYTHONPYCACHE"))
        and not key.lower().endswith(("_proxy", "_ca_bundle"))
    }


@contextmanager
def running_script(name: str, *arguments: str, **kwargs: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a script of this folder in a process of its own, which is gone afterwards."""
    with running([sys.executable, "-W", "ignore", HERE / name, *arguments], text=True, **kwargs) as process:
        yield process


def run_scenario(work: Path, env: Mapping[str, str], arguments: Mapping[str, Any], seconds: float = 240.0) -> Any:
    """
    Run ``scenario.py`` in a fresh process and return its result.

    :param work: a folder for its result and its output.
    :param arguments: the scenario's name, and what it is called with.
    :param seconds: after these it is stopped.
    """
    result, output = work / "result.json", work / "output.txt"
    result.unlink(missing_ok=True)
    with output.open("w") as file:
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        with running_script("scenario.py", str(result), json.dumps(arguments), env=env, **streams) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise ScenarioError(f"{arguments} has not ended within {seconds:g} s\n{_tail(output)}") from None
    if process.returncode or not result.exists():
        raise ScenarioError(f"{arguments} has ended with exit code {process.returncode}\n{_tail(output)}")
    return json.loads(result.read_text())


def _tail(output: Path) -> str:
    return output.read_text()[-3000:]
