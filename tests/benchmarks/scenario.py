"""Run one scenario in this process: ``scenario.py RESULT '{"scenario": NAME, ...}'`` writes its result to a file."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

#: The module of each scenario's function; a process imports only what it measures.
MODULES = {"load": "load", "finish": "ends", "sensor": "pokes", "many": "many"}


def main(result: Path, scenario: str, **arguments: object) -> None:
    value = getattr(import_module(MODULES[scenario]), scenario)(**arguments)
    result.write_text(json.dumps(value))


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
