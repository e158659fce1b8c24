"""Where the scenarios of a topic run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import run_scenario


@dataclass(frozen=True)
class Bench:
    """
    Where scenarios run.

    :param work: a folder for files.
    :param env: the environment of the processes, in which they find the server.
    :param say: shows progress.
    """

    work: Path
    env: Mapping[str, str]
    say: Callable[[str], None]

    def run(self, scenario: str, **arguments: Any) -> Any:
        """Run a scenario in a fresh process and return its result."""
        words = ", ".join(f"{key} {value}" for key, value in arguments.items())
        self.say(f"{scenario}: {words}")
        return run_scenario(self.work, self.env, {"scenario": scenario, **arguments})
