"""The emulator as a process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Process = subprocess.Popen[str]
Launch = Callable[..., Process]
Serve = Callable[..., tuple[Process, str]]
COMMAND = [sys.executable, "-W", "error", "-m", "airflow_dai_provider.emulator"]
ROOT = Path(__file__).parents[2]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run the command until it ends by itself."""
    return subprocess.run([*COMMAND, *flags], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def first_line(process: Process) -> str:
    """Wait for the first line that the command prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def greeting_of(process: Process) -> str:
    """Return the lines that the command prints after the first."""
    assert process.stdout is not None
    return "".join(iter(process.stdout.readline, "Ctrl+C stops it.\n"))
