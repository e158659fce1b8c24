"""Run each measurement in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import running

HERE = Path(__file__).parent


class ScenarioError(Exception):
    """A measuring process has failed or timed out."""


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without variables that could change a measurement."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("AIRFLOW", "GOOGLE_", "DAI_", "SSL_", "PYTHONDONTWRITE", "PYTHONPYCACHE"))
        and not key.lower().endswith(("_proxy", "_ca_bundle"))
    }


@contextmanager
def running_script(name: str, *arguments: str, **kwargs: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a script of this folder until the end of the block."""
    with running([sys.executable, "-W", "ignore", HERE / name, *arguments], text=True, **kwargs) as process:
        yield process


def run_scenario(work: Path, env: Mapping[str, str], arguments: Mapping[str, Any], seconds: float = 240.0) -> Any:
    """
    Run ``scenario.py`` in a new process and return its result.

    :param work: the folder for its result and its output.
    :param arguments: the name of the scenario, and its arguments.
    :param seconds: its time limit.
    """
    result, output = work / "result.json", work / "output.txt"
    result.unlink(missing_ok=True)
    with output.open("w") as file:
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        with running_script("scenario.py", str(result), json.dumps(arguments), env=env, **streams) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise ScenarioError(f"{arguments} has not finished within {seconds:g} s\n{_tail(output)}") from None
    if process.returncode or not result.exists():
        raise ScenarioError(f"{arguments} has exited with {process.returncode}\n{_tail(output)}")
    return json.loads(result.read_text())


@dataclass(frozen=True)
class Bench:
    """
    Run scenarios, each in a process of its own.

    :param work: a folder for files.
    :param env: the environment of the processes, with the address of the server.
    :param say: prints progress.
    :param small: whether campaigns have a tenth of their operations, to see that they run.
    """

    work: Path
    env: Mapping[str, str]
    say: Callable[[str], None]
    small: bool = False

    def reduced(self, number: int) -> int:
        """Return a number of operations, or a tenth of it."""
        return number // 10 if self.small else number

    def run(self, scenario: str, *, limit: float = 240.0, **arguments: Any) -> Any:
        """Run a scenario in a new process, which may take so many seconds, and return its result."""
        words = ", ".join(f"{key} {value}" for key, value in arguments.items())
        self.say(f"{scenario}: {words}")
        return run_scenario(self.work, self.env, {"scenario": scenario, **arguments}, limit)


def _tail(output: Path) -> str:
    return output.read_text()[-3000:]
