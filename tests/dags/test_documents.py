"""Every snippet and every command of the README and of the documentation does what it says."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider import emulator as emulator_package
from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks import dai as hooks
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.notifications import dai as notifications
from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.operators import dai as operators
from airflow_dai_provider.operators.dai import (
    DaiCancelOperationOperator,
    DaiCancelStrayOperationsOperator,
    DaiCreateCreativeOperator,
    DaiDeleteCreativeOperator,
)
from airflow_dai_provider.sensors import dai as sensors
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from airflow_dai_provider.triggers import dai as triggers
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.support.airflow_versions import deadline_names
from tests.support.dag_runs import RunDag
from tests.support.documents import (
    BLOCKS,
    DOCS,
    PAGES,
    README,
    ROOT,
    SHELL,
    SNIPPETS,
    Block,
    anchors,
    blocks_of,
    prose,
    table,
)
from tests.support.emulators import methods
from tests.support.source_strings import provider_strings

TASKS = (
    DaiCancelOperationOperator,
    DaiOperationSensor,
    DaiCreateCreativeOperator,
    DaiDeleteCreativeOperator,
    DaiCancelStrayOperationsOperator,
)
#: The page with the table of its parameters.
TABLES = dict.fromkeys(TASKS, DOCS / "reference" / "operators.md") | {
    DaiOperationSensor: DOCS / "reference" / "sensor.md",
    DaiCancelOperationNotifier: DOCS / "reference" / "notifier.md",
    DaiHook: DOCS / "reference" / "hooks.md",
}
FIRST_DAG = blocks_of(README)[1].code
EMULATOR = "python -m airflow_dai_provider.emulator"


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


class TestSnippets:
    @pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: block.id)
    def test_it_runs(
        self, block: Block, emulator: DaiEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if "DeadlineAlert" in block.code and "DeadlineAlert" not in names():
            pytest.skip("This Airflow has no Deadline alerts")
        emulator.start_ingest("operations/my-ingest")
        (tmp_path / "cancel_dai_ingest.py").write_text(FIRST_DAG)
        monkeypatch.syspath_prepend(tmp_path)
        with DAG("a_page", schedule=None):
            exec(block.code, names())  # noqa: S102 - the page's own code

    def test_the_first_dag(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        """The pytest example itself runs in an environment of its own, with the wheel: see tests/e2e."""
        name = emulator.start_ingest()
        run = run_dag(dag_of(FIRST_DAG), {"operation": name})
        assert run.tasks == {"cancel": "success", "wait": "success"}
        assert emulator.state(name) == "CANCELLED"

    def test_the_first_dag_is_the_same_on_each_page(self) -> None:
        readme, own_test, tutorial = [block.code for block in SNIPPETS if '"cancel_dai_ingest"' in block.code]
        assert readme == own_test == tutorial.replace(", poke_interval=5", "")

    def test_the_test_is_the_same_on_each_page(self) -> None:
        readme, own_test = ["".join(block.code.split()) for block in SNIPPETS if "def test_it_cancels" in block.code]
        assert readme == own_test

    @pytest.mark.usefixtures("emulator")
    def test_the_results_of_a_mapped_task_are_joined_with_their_inputs(self, run_dag: RunDag) -> None:
        (code,) = [block.code for block in SNIPPETS if '"ingest_mapped"' in block.code]
        media = [f"https://media.example.com/ad-{number}.mp4?seconds={number}" for number in (1, "refused", 3)]
        run = run_dag(dag_of(code), {"media_urls": media})
        assert [run.tasks[f"ingest[{index}]"] for index in range(3)] == ["success", "failed", "success"]
        assert run.xcom("summary") == dict(zip(media, ["SUCCEEDED", "not submitted", "SUCCEEDED"], strict=True))

    def test_a_task_of_one_s_own_pushes_what_callbacks_read(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        (code,) = [block.code for block in SNIPPETS if '"operation_started"' in block.code]
        scope = names()
        exec(code, scope)  # noqa: S102 - the page's own code
        with DAG("own_task", schedule=None, params={"media_url": "https://media.example.com/ad.mp4"}) as dag:
            scope["ingest"]()
        run = run_dag(dag)
        (name,) = emulator.states()
        assert run.xcom("ingest", "operation_name") == name
        started = run.xcom("ingest", "operation_started")
        assert (started["endpoint"], list(started["pushed_at"])) == (emulator.endpoint, [name])
        assert started["try_number"] == 1


def dag_of(code: str) -> Any:
    scope: dict[str, Any] = {}
    exec(code, scope)  # noqa: S102 - the page's own code
    return scope["dag"]


class TestXComs:
    """The JSON on the pages is what a task pushes."""

    def test_the_readme_shows_the_same_as_the_reference(self) -> None:
        shown, reference = examples(README), examples(DOCS / "reference" / "xcoms.md")
        assert [one["state"] for one in shown] == ["SUCCEEDED", "CANCELLED", "FAILED"]
        assert shown == reference

    def test_they_are_what_the_service_reports(self, emulator: DaiEmulator) -> None:
        url = "https://media.example.com/ad.mp4"
        emulator.start_ingest("operations/ad-1", creative_url=url, seconds=0)
        emulator.start_ingest("operations/ad-2", creative_url=url)
        emulator.start_ingest("operations/ad-3", creative_url=url, seconds=0, outcome="DOWNLOAD_ERROR", code=404)
        with DaiHook() as hook:
            hook.cancel_operation("operations/ad-2")
            for shown in examples(README):
                assert generalized(shown) == generalized(hook.get_operation(shown["name"]).to_dict())


def examples(page: Path) -> list[dict[str, Any]]:
    shown = [json.loads(block.code) for block in blocks_of(page) if block.language == "json"]
    return [one for value in shown for one in (value if isinstance(value, list) else [value])]


def generalized(value: Any, key: str = "") -> Any:
    """Return a value without times, the numbers of ads, and what the pages leave out."""
    if key in ("response", "metadata"):
        return bool(value)
    if isinstance(value, dict):
        return {name: generalized(field, name) for name, field in value.items()}
    if isinstance(value, str):
        return re.sub(r"gv-\d+-[0-9a-f]+", "gv-1", "a time" if key == "create_time" else value)
    return value


class TestReference:
    @pytest.mark.parametrize("kind", TABLES)
    def test_every_parameter_is_in_a_table(self, kind: Any) -> None:
        rows = table(TABLES[kind], f"| `{kind.__name__}` | default |")
        for parameter in parameters(kind) - {"context"}:
            assert f"`{parameter}`" in rows

    @pytest.mark.parametrize("kind", [*TABLES, DaiOperationTrigger, DaiAsyncHook])
    def test_every_parameter_is_in_the_docstring_which_the_site_shows(self, kind: Any) -> None:
        documented = set(re.findall(r":param (\w+):", inspect.getdoc(kind) or ""))
        assert parameters(kind) - {"quota_project_id"} <= documented

    def test_every_public_class_is_there(self) -> None:
        shown = set(re.findall(r"autoapi(?:class|exception):: (\S+)", "".join(map(Path.read_text, PAGES))))
        for module in (operators, hooks, emulator_package, sensors, triggers, notifications):
            for name in public_classes(module):
                assert f"{module.__name__}.{name}" in shown

    def test_every_public_name_is_in_the_policy(self) -> None:
        page = (DOCS / "reference" / "public-api.md").read_text()
        for module in (operators, hooks, emulator_package, sensors, triggers, notifications):
            assert f"`{module.__name__}`" in page

    def test_every_message_is_one_of_ours(self) -> None:
        rows = table(DOCS / "reference" / "messages.md", "| the message says |").splitlines()[2:]
        messages = [cell for row in rows for cell in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
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

    def test_every_test_named_in_the_field_reports_exists(self) -> None:
        named = re.findall(r"`(tests/\S+\.py)::(\S+)`", (DOCS / "field-reports.md").read_text())
        assert len(named) > 50
        for file, test in named:
            name = test.rpartition("::")[2]
            assert re.search(rf"def {name}\(", (ROOT / file).read_text()), f"{file}::{test}"

    def test_every_example_is_listed(self) -> None:
        listed = re.findall(r"\(\.\./dags_examples/(\w+\.py)\)", (DOCS / "examples.md").read_text())
        assert sorted(listed) == sorted(path.name for path in (ROOT / "dags_examples").glob("*.py"))


#: Messages of Airflow's and requests' own, and one that is put together of single words.
NOT_OURS = (
    "Could not find a suitable TLS",
    "Sensor has timed out",
    "The conn_id",
    "isn't defined",
    "failed: ",
)


def parameters(kind: Any) -> set[str]:
    """Return the parameters of a constructor, without those that it passes on."""
    code = kind.__init__.__wrapped__ if hasattr(kind.__init__, "__wrapped__") else kind.__init__
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = {name for name, one in inspect.signature(code).parameters.items() if one.kind in kinds} - {"self"}
    assert len(found) >= 5
    return found


def public_classes(module: Any) -> list[str]:
    """Return the classes in ``__all__``, or those that a module defines."""
    listed = getattr(module, "__all__", None) or [name for name in vars(module) if name.startswith("Dai")]
    return [name for name in listed if inspect.isclass(getattr(module, name))]


class TestAuthentication:
    @pytest.mark.parametrize("page", [README, DOCS / "howto" / "authenticate.md"], ids=lambda page: page.stem)
    def test_the_connection(self, page: Path, tmp_path: Path) -> None:
        """The shell reads it as it stands there, and Airflow makes a connection of it."""
        (block,) = [block.code for block in blocks_of(page) if "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT" in block.code]
        echo = f'{block}\nprintf %s "$AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT"'
        shown = subprocess.run(["bash", "-ec", echo], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        from airflow.models import Connection

        connection = Connection.from_json(shown)
        assert (connection.conn_type, connection.extra_dejson["num_retries"]) == ("google_cloud_platform", 5)

    def test_every_way_is_one_that_the_google_provider_knows(self) -> None:
        from airflow.providers.google.common.hooks.base_google import GoogleBaseHook

        rows = table(DOCS / "howto" / "authenticate.md", "| way | `extra`")
        extras = [json.loads(extra) for extra in re.findall(r"`(\{.*?\})`(?=[ ,|])", rows)]
        assert len(extras) >= 8
        source = inspect.getsource(GoogleBaseHook)
        for key in {key for extra in extras for key in extra}:
            assert f'"{key}"' in source

    def test_the_test_of_a_connection(self, emulator: DaiEmulator) -> None:
        (command,) = [line for block in SHELL for line in block.commands if line.startswith('python -c "')]
        done = subprocess.run(
            [sys.executable, *shlex.split(command)[1:]], capture_output=True, text=True, check=True, env=os.environ
        )
        assert f"(True, '{emulator.endpoint} responded to operations.list.')" in done.stdout
        assert methods(emulator) == ["operations.list"]

    def test_an_endpoint_of_the_task_beside_the_emulator_s_needs_a_connection(self, emulator: DaiEmulator) -> None:
        with DaiHook() as hook:
            assert hook.test_connection()[0]
        with DaiHook(api_endpoint=emulator.endpoint, gcp_conn_id="no_such_connection") as hook:
            accepted, message = hook.test_connection()
        assert not accepted
        assert "no_such_connection" in message


#: Pages whose commands are run one after the other: by tests/dags/test_tutorial.py, and by tests/e2e/test_wheel.py.
RUN_AS_A_WHOLE = (DOCS / "tutorial.md", DOCS / "howto" / "test-your-dags.md")
#: How the commands begin that tests here run, or tests/e2e/test_wheel.py (pip).
RUN_HERE = (
    EMULATOR,
    "make ",
    "curl 127.0.0.1:8085",
    'python -c "',
    "export DAI_EMULATOR_HOST=127.0.0.1:8085",
    "pip install .",
)


class TestCommands:
    def test_each_is_run_by_a_test(self) -> None:
        commands = [
            command
            for block in SHELL
            if block.page not in RUN_AS_A_WHOLE and "AIRFLOW_CONN" not in block.code
            for command in block.commands
        ]
        assert len(commands) > 8
        assert [command for command in commands if not command.startswith(RUN_HERE)] == []

    def test_no_code_hides_from_the_tests(self) -> None:
        languages = {block.language for block in BLOCKS if not block.language.startswith("{")}
        assert languages == {"python", "shell", "json", "text"}
        texts = [line for block in BLOCKS if block.language == "text" for line in block.code.splitlines()]
        assert [line for line in texts if line.startswith((*RUN_HERE, "airflow ", "python ", "pip ", "import "))] == []
        assert [page for page in PAGES if re.search(r"^[ \t]+```|^~~~", page.read_text(), re.MULTILINE)] == []

    def test_every_make_target_that_is_named_exists(self) -> None:
        targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        for page in PAGES:
            assert set(re.findall(r"(?:`|^)make ([a-z0-9]+)", page.read_text(), re.MULTILINE)) <= targets

    def test_the_local_service(self, tmp_path: Path) -> None:
        blocks = blocks_of(DOCS / "howto" / "local-service.md")
        commands = [line for block in blocks if block.language == "shell" for line in block.commands]
        starts = [line for line in commands if line.startswith(EMULATOR)]
        curls = [line for line in commands if line.startswith("curl")]
        assert (len(starts), len(curls)) == (2, 2)
        for line in starts:
            with serving(line, tmp_path) as address:
                assert requests.get(f"http://{address}/emulator/v1", timeout=5).ok
                for command in curls if "--start" in line else ():
                    curl(command, address)


@contextmanager
def serving(line: str, folder: Path) -> Iterator[str]:
    """Run the command that starts the local service, on a free port; give its address."""
    arguments = shlex.split(line.removesuffix(" &"))[1:]
    port = arguments.index("--port") + 1 if "--port" in arguments else None
    arguments = [*arguments[:port], "0", *arguments[port + 1 :]] if port else [*arguments, "--port", "0"]
    # Not killed by -W error, nor found by another test's proxy.
    server = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert server.stdout is not None
        said = ""
        while "127.0.0.1:" not in said:
            said += server.stdout.readline()
            assert server.poll() is None
        (address,) = set(re.findall(r"127\.0\.0\.1:\d+", said))
        yield address
    finally:
        server.kill()
        server.communicate()


def curl(command: str, address: str) -> None:
    """Do what a page does with curl."""
    _, url, *options = shlex.split(command)
    url = f"http://{url.replace('127.0.0.1:8085', address)}"
    body = options[1] if options else None
    answer = requests.post(url, body, timeout=5) if body else requests.get(url, timeout=5)
    assert answer.ok, answer.text


class TestPages:
    def test_the_readme_is_short(self) -> None:
        text = README.read_text()
        assert len(text.splitlines()) <= 200
        assert text.count("](docs/images/") <= 2
        first_screen = text.splitlines()[:25]
        assert [line.split()[1] for line in first_screen if line.startswith("make ")] == ["demo", "test"]

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
    def test_every_link_within_the_project_leads_somewhere(self, page: Path) -> None:
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            if anchor:
                assert anchor in anchors(target), link

    def test_every_page_is_in_the_contents(self) -> None:
        contents = {entry for block in blocks_of(DOCS / "index.md") for entry in block.code.splitlines()}
        pages = {str(path.relative_to(DOCS).with_suffix("")) for path in PAGES if path.is_relative_to(DOCS)}
        assert pages - contents == {"index"}
