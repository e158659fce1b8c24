"""Every snippet and every command of the README does what it says."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from airflow.providers.common.compat.sdk import DAG, task

import airflow_dai_provider
from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.operators.dai import (
    DaiCancelOperationOperator,
    DaiCancelStrayOperationsOperator,
    DaiCreateCreativeOperator,
    DaiDeleteCreativeOperator,
)
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from tests.support.airflow_versions import deadline_names
from tests.support.dag_runs import RunDag
from tests.support.emulators import methods
from tests.support.source_strings import provider_strings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
SNIPPETS = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line for language, code in BLOCKS if not language for line in code.splitlines() if line.strip()]
TASKS = (
    DaiCancelOperationOperator,
    DaiOperationSensor,
    DaiCreateCreativeOperator,
    DaiDeleteCreativeOperator,
    DaiCancelStrayOperationsOperator,
)


def names() -> dict[str, Any]:
    """Return what a snippet may use without importing it."""
    known: dict[str, Any] = {kind.__name__: kind for kind in TASKS}
    known |= {
        "task": task,
        "DAG": DAG,
        "DaiCancelOperationNotifier": DaiCancelOperationNotifier,
        "timedelta": timedelta,
    }
    return known | deadline_names()


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("code", SNIPPETS, ids=[f"snippet {number}" for number in range(1, len(SNIPPETS) + 1)])
def test_a_snippet_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "DeadlineAlert" in code and "DeadlineAlert" not in names():
        pytest.skip("This Airflow has no Deadline alerts")
    (tmp_path / "cancel_dai_ingest.py").write_text(SNIPPETS[0])
    monkeypatch.syspath_prepend(tmp_path)
    with DAG("readme", schedule=None):
        exec(code, names())  # noqa: S102 - the README's own code


def test_the_first_dag_and_its_test(emulator: DaiEmulator, run_dag: RunDag) -> None:
    """The pytest example itself runs in an environment of its own, with the wheel: see tests/e2e."""
    scope: dict[str, Any] = {}
    exec(SNIPPETS[0], scope)  # noqa: S102 - the README's own code
    name = emulator.start_ingest()
    run = run_dag(scope["dag"], {"operation": name})
    assert run.tasks == {"cancel": "success", "wait": "success"}
    assert emulator.state(name) == "CANCELLED"


@pytest.mark.parametrize("kind", TASKS)
def test_every_parameter_is_in_a_table(kind: Any) -> None:
    table = README[README.index(f"| `{kind.__name__}` | default |") :].split("\n\n")[0]
    code = kind.__init__.__wrapped__ if hasattr(kind.__init__, "__wrapped__") else kind.__init__
    for parameter in code.__kwdefaults__ or {}:
        assert f"`{parameter}`" in table


def test_the_notifiers_parameters_are_in_a_table() -> None:
    table = README[README.index("| `DaiCancelOperationNotifier` | default |") :].split("\n\n")[0]
    for parameter in ("operation_name", "ingest_task_ids", "timeout", "gcp_conn_id", "api_endpoint"):
        assert f"`{parameter}`" in table


def test_the_connection(tmp_path: Path) -> None:
    """The shell reads it as it stands there, and Airflow makes a connection of it."""
    (block,) = [code for _, code in BLOCKS if "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT" in code]
    echo = f'{block}\nprintf %s "$AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT"'
    shown = subprocess.run(["bash", "-ec", echo], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    from airflow.models import Connection

    connection = Connection.from_json(shown)
    assert (connection.conn_type, connection.extra_dejson["num_retries"]) == ("google_cloud_platform", 5)


def test_every_way_to_authenticate_is_one_that_the_google_provider_knows() -> None:
    from airflow.providers.google.common.hooks.base_google import GoogleBaseHook

    table = README[README.index("| way | `extra`") :].split("\n\n")[0]
    extras = [json.loads(extra) for extra in re.findall(r"`(\{.*?\})`(?=[ ,|])", table)]
    assert len(extras) >= 8
    source = inspect.getsource(GoogleBaseHook)
    for key in {key for extra in extras for key in extra}:
        assert f'"{key}"' in source


def test_the_check_of_a_connection(emulator: DaiEmulator) -> None:
    (command,) = [line for line in COMMANDS if line.startswith('python -c "')]
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], capture_output=True, text=True, check=True, env=os.environ
    )
    assert f"(True, '{emulator.endpoint} responded to operations.list.')" in done.stdout
    assert methods(emulator) == ["operations.list"]


def test_the_commands_of_the_local_service(tmp_path: Path) -> None:
    starts = [line for line in COMMANDS if line.startswith("python -m airflow_dai_provider.emulator")]
    assert len(starts) == 2
    for line in starts:
        arguments = shlex.split(line.removesuffix(" &"))[1:]
        port = arguments.index("--port") + 1 if "--port" in arguments else None
        arguments = [*arguments[:port], "0", *arguments[port + 1 :]] if port else [*arguments, "--port", "0"]
        # Not killed by -W error, nor found by another test's proxy.
        server = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        try:
            assert server.stdout is not None
            said = ""
            while "127.0.0.1:" not in said:
                said += server.stdout.readline()
                assert server.poll() is None
            (address,) = set(re.findall(r"127\.0\.0\.1:\d+", said))
            assert requests.get(f"http://{address}/emulator/v1", timeout=5).ok
            if "--start" in arguments:
                curl(address)
        finally:
            server.kill()
            server.communicate()


def curl(address: str) -> None:
    """Do what the README does with curl."""
    lines = [shlex.split(line) for line in COMMANDS if line.startswith("curl")]
    assert len(lines) == 2
    for _, url, *options in lines:
        url = f"http://{url.replace('127.0.0.1:8085', address)}"
        body = options[1] if options else None
        answer = requests.post(url, body, timeout=5) if body else requests.get(url, timeout=5)
        assert answer.ok, answer.text


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        assert set(re.findall(r"(?:`|^)make ([a-z0-9]+)", text, re.MULTILINE)) <= targets


def test_every_link_within_the_project_leads_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)", README, re.M)
    }
    for link in re.findall(r"\]\(([^)\s]+)\)", README):
        if link.startswith("#"):
            assert link[1:] in anchors
        elif "://" not in link:
            # The package can be installed elsewhere, as it is where the wheel is tested.
            assert any((folder / link).exists() for folder in (ROOT, Path(airflow_dai_provider.__file__).parents[1]))


def test_every_test_named_in_the_field_reports_exists() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\S+)`", (ROOT / "docs" / "field-reports.md").read_text())
    assert len(named) > 50
    for file, test in named:
        name = test.rpartition("::")[2]
        assert re.search(rf"def {name}\(", (ROOT / file).read_text()), f"{file}::{test}"


#: Messages of Airflow's and requests' own, and one that is put together of single words.
NOT_OURS = (
    "Could not find a suitable TLS",
    "Sensor has timed out",
    "The conn_id",
    "isn't defined",
    "failed: ",
)


def test_every_message_of_the_troubleshooting_is_one_of_ours() -> None:
    table = README[README.index("| the message says |") :].split("\n\n")[0]
    messages = [cell for row in table.splitlines()[2:] for cell in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    ours = provider_strings()
    assert len(messages) > 50
    for message in messages:
        for part in filter(None, (part.strip() for part in message.split("..."))):
            if code := re.fullmatch(r"returned \S+ ([A-Z_]+)(?:: (.*))?", part):
                assert code[1] in set(Code)
                assert (code[2] or "") in ours
            elif not part.startswith(NOT_OURS):
                words = re.sub(r"^Invalid (\w+).*", r"\1", part)
                assert words.strip("'") in ours, part
