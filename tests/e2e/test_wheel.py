"""The sdist and the wheel built from it, installed in an environment of its own as a provider of Airflow."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from tests.support.documents import blocks_of
from tests.support.processes import running

ROOT = Path(__file__).resolve().parents[2]
UV = ROOT / ".venvs" / "uv" / "bin" / "uv"
MAJOR_MINOR = ".".join(version("apache-airflow").split(".")[:2])


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the sdist and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([UV, "build", "--quiet", "--out-dir", folder, ROOT], check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def unpacked(dist: Path) -> Path:
    """Return the folder of the unpacked sdist."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(dist, filter="data")
    return dist / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of a new environment with the wheel and its pinned dependencies."""
    env = tmp_path_factory.mktemp("wheel") / "env"
    subprocess.run([UV, "venv", "--quiet", env], check=True)
    pins = ROOT / "constraints" / f"airflow-{MAJOR_MINOR}.txt"
    install = [UV, "pip", "install", "--quiet", "--compile-bytecode", "--python", env / "bin" / "python"]
    subprocess.run([*install, "-r", pins, wheel], check=True)
    return env / "bin"


def environment(home: Path, dags: Path) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "PYTHON"))} | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "COLUMNS": "300",
    }


def test_the_archives_contain_all_files_and_valid_metadata(wheel: Path, unpacked: Path) -> None:
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "airflow_dai_provider").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == sources | {"airflow_dai_provider/py.typed"}
        (info,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        text = archive.read(f"{info}/METADATA")
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert "provider_info = airflow_dai_provider.get_provider_info:get_provider_info" in entry_points
    assert (unpacked / "PKG-INFO").read_bytes() == text
    metadata = Metadata.from_email(text, validate=True)
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description_content_type == "text/markdown"
    assert "Documentation" in (metadata.project_urls or {})
    assert "Framework :: Apache Airflow :: Provider" in (metadata.classifiers or [])
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [name for name in kept if not name.startswith(".ci/") and not (unpacked / name).is_file()] == []


@pytest.mark.skipif(MAJOR_MINOR.startswith("2."), reason="The archives are the same on each version of Airflow")
def test_all_tests_pass_on_the_wheel(installed: Path, unpacked: Path, tmp_path: Path) -> None:
    """Run the tests of the sdist, whose own copy of the package is moved away."""
    (unpacked / "airflow_dai_provider").rename(tmp_path / "sources")
    command = [installed / "python", "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "--numprocesses", "auto"]
    with (tmp_path / "output").open("w+") as output:
        env = environment(tmp_path, tmp_path)
        with running(command, cwd=unpacked, env=env, stdout=output, stderr=output) as tests:
            code = tests.wait()
        output.seek(0)
        assert code == 0, output.read()


def test_a_project_that_uses_the_wheel_passes_its_tests_and_mypy(installed: Path, tmp_path: Path) -> None:
    """Do what the documentation says of tests; check its DAG and a larger project with mypy in strict mode."""
    dag, test, commands = blocks_of(ROOT / "docs" / "howto" / "test-your-dags.md")
    project = tmp_path / "project"
    project.mkdir()
    (project / "cancel_dai_ingest.py").write_text(dag.code)
    (project / "test_cancel_dai_ingest.py").write_text(test.code)
    (project / "pytest.ini").write_text("[pytest]\n")  # otherwise a file in a folder above decides
    # Without a DAGs folder: the page has to name it.
    env = {key: value for key, value in environment(tmp_path, project).items() if not key.startswith("AIRFLOW__")}
    env["PATH"] = f"{installed}:{env['PATH']}"

    def run(*command: str) -> str:
        done = subprocess.run(command, env=env, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "1 passed" in run("bash", "-ec", commands.code)
    shutil.copy(Path(__file__).parent / "typed_project.py", project)
    # The decorators of Airflow 2 are untyped.
    options = ["--strict", *(["--allow-untyped-decorators"] if MAJOR_MINOR.startswith("2.") else [])]
    assert "no issues found in 2 source files" in run("mypy", *options, "cancel_dai_ingest.py", "typed_project.py")


def test_airflow_lists_the_provider_and_imports_its_examples(installed: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, ROOT / "dags_examples")

    def airflow(*arguments: str) -> str:
        done = subprocess.run(
            [installed / "airflow", *arguments], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "airflow-dai-provider" in airflow("providers", "list")
    assert "airflow_dai_provider.triggers.dai" in airflow("providers", "triggers")
    assert "airflow_dai_provider.notifications.dai.DaiCancelOperationNotifier" in airflow("providers", "notifications")
    # No connection type and no extra link of its own.
    assert "airflow_dai_provider" not in airflow("providers", "hooks") + airflow("providers", "links")
    assert "Cancel ingests" in airflow("providers", "get", "airflow-dai-provider", "--full")
    airflow("db", "migrate")
    airflow("dags", "reserialize")
    assert "No data found" in airflow("dags", "list-import-errors")
    listed = airflow("dags", "list", "--output", "plain")
    examples = [path.stem for path in (ROOT / "dags_examples").glob("*.py")]
    assert [name for name in examples if name not in listed] == []
