"""The tutorial, command by command, as a new user types it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.airflow_versions import VERSION
from tests.support.documents import DOCS, blocks_of
from tests.support.processes import free_port, running

PAGE = DOCS / "tutorial.md"
#: What sets up the environment in which the tests already run.
SET_UP = ("make demo", "source .venvs/")
#: Seconds that the tutorial may take.
PATIENCE = 240.0


@pytest.mark.skipif(VERSION == (3, 0), reason="dag.test() of Airflow 3.0 fails at any sensor's second poke")
def test_it_cancels_the_ingest(tmp_path: Path) -> None:
    with running(
        ["bash", "-eu", "-c", f"trap 'kill $(jobs -p)' EXIT\n{script()}"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as shell:
        output, _ = shell.communicate(timeout=PATIENCE)
    assert shell.returncode == 0, output
    (expected,) = [block.code.splitlines() for block in blocks_of(PAGE) if block.language == "text"]
    assert [line for line in expected if line not in output] == []
    (ingest,) = json.loads(output[output.rindex('{\n  "ingests"') :])["ingests"]
    assert (ingest["name"], ingest["state"]) == ("operations/my-ingest", "CANCELLED")


def script() -> str:
    """Return the tutorial as one script; its DAG is saved where the line before it says."""
    text = PAGE.read_text()
    lines: list[str] = []
    for block in blocks_of(PAGE):
        if block.language == "shell":
            lines += [command for command in block.commands if not command.startswith(SET_UP)]
        elif block.language == "python":
            (path,) = re.findall(r"^Save this as `(.*)`:$", text[: text.index(block.code)], re.MULTILINE)
            lines.append(f"cat > {path} <<'END'\n{block.code}END")
        if lines and lines[-1].startswith("export DAI_EMULATOR_HOST"):
            asks = "curl --silent --output /dev/null $DAI_EMULATOR_HOST/emulator/v1"
            # The script ends with the emulator.
            lines.append(f"until {asks}; do kill -0 $!; sleep 0.2; done")
    return "\n".join(lines).replace("8085", str(free_port()))


def environment() -> dict[str, str]:
    """Return the environment of a shell in which the virtual environment is active, and nothing of Airflow is set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "DAI_"))}
    root = str(Path(__file__).parents[2])
    # The columns keep the log lines whole; the package can be a checkout.
    found = os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH"))))
    return kept | {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "COLUMNS": "300", "PYTHONPATH": found}
