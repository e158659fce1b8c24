"""The wheel, installed into an environment of its own, is a provider that Airflow knows."""

from __future__ import annotations

import os
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = ROOT / ".venvs" / "uv" / "bin" / "uv"
MAJOR_MINOR = ".".join(version("apache-airflow").split(".")[:2])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of a fresh environment with the wheel and its pinned dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([UV, "venv", "--quiet", folder / "env"], check=True)
    pins = ROOT / "constraints" / f"airflow-{MAJOR_MINOR}.txt"
    install = [UV, "pip", "install", "--quiet", "--compile-bytecode", "--python", folder / "env" / "bin" / "python"]
    subprocess.run([*install, "-r", pins, wheel], check=True)
    return folder / "env" / "bin"


def environment(home: Path, dags: Path) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "PYTHON"))} | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "COLUMNS": "300",
    }


def test_a_users_own_project(installed: Path, tmp_path: Path) -> None:
    """The README's first DAG and its test, copied; and what mypy says of a typed DAG, in strict mode."""
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (test,) = [snippet for snippet in snippets if "def test_it_cancels" in snippet]
    project = tmp_path / "project"
    project.mkdir()
    (project / "cancel_dai_ingest.py").write_text(snippets[0])
    (project / "test_cancel_dai_ingest.py").write_text(test)
    env = environment(tmp_path, project)

    def run(*command: str) -> str:
        done = subprocess.run(
            [installed / command[0], *command[1:]], env=env, cwd=project, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("airflow", "db", "migrate")
    assert "1 passed" in run("pytest", "-p", "no:cacheprovider")
    assert "Success" in run("mypy", "--strict", "cancel_dai_ingest.py")


def test_airflow_knows_the_provider_and_its_examples_import(installed: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, ROOT / "dags_examples")

    def airflow(*arguments: str) -> str:
        done = subprocess.run(
            [installed / "airflow", *arguments], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "airflow-dai-provider" in airflow("providers", "list")
    assert "Cancel ingests" in airflow("providers", "get", "airflow-dai-provider", "--full")
    airflow("db", "migrate")
    airflow("dags", "reserialize")
    assert "No data found" in airflow("dags", "list-import-errors")
    listed = airflow("dags", "list", "--output", "plain")
    examples = [path.stem for path in (ROOT / "dags_examples").glob("*.py")]
    assert [name for name in examples if name not in listed] == []
