"""The definition of the commands: how Airflow loads it, what it costs, and what wrong usage gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from airflow.cli.cli_config import Arg

from airflow_dai_provider.cli import commands, definition, session, strays
from airflow_dai_provider.cli.definition import ARG_TIMEOUT, DAI_COMMANDS, EXIT_CODES, dai_commands
from airflow_dai_provider.get_provider_info import get_provider_info
from airflow_dai_provider.sweep.owners import KEPT
from tests.support.airflow_versions import VERSION
from tests.unit.cli.conftest import Dai

NAMES = ["list", "get", "whose", "cancel", "wait", "sweep", "delete-creative", "check", "purge"]


def test_the_commands() -> None:
    assert [command.name for command in DAI_COMMANDS] == NAMES
    assert [name.replace("_", "-") for name in sorted(commands.__all__)] == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_its_help(dai: Dai, name: str) -> None:
    (command,) = (one for one in DAI_COMMANDS if one.name == name)
    result = dai(name, "--help")
    words = " ".join(result.out.split())
    assert result.code == 0
    assert words.startswith(f"usage: python -m airflow_dai_provider {name}")
    assert command.description in words
    assert EXIT_CODES in words
    for option in ("--conn-id", "--impersonation-chain", "--api-endpoint", "--output", "--verbose"):
        assert option in words


@pytest.mark.skipif(VERSION < (3, 2), reason="Airflow before 3.2 asks providers for no commands")
class TestAirflow:
    def test_it_loads_the_group(self) -> None:
        from airflow.providers_manager import ProvidersManager

        manager = ProvidersManager()
        manager._cleanup()
        assert dai_commands in manager.cli_command_functions

    @pytest.mark.parametrize("name", NAMES)
    def test_its_parser_takes_each_command(self, name: str) -> None:
        from airflow.cli.cli_parser import get_parser

        given = {"get": ["operations/a"], "whose": ["operations/a"], "delete-creative": ["creatives/a", "creatives/b"]}
        given |= dict.fromkeys(("cancel", "wait"), ["operations/a", "operations/b"])
        parsed = get_parser().parse_args(["dai", name, *given.get(name, [])])
        assert parsed.func.__name__ == name.replace("-", "_")
        assert parsed.conn_id == "google_cloud_default"


def test_the_definition_loads_nothing_beyond_what_airflow_has_loaded() -> None:
    (path,) = get_provider_info()["cli"]
    module, _, function = path.rpartition(".")
    code = f"""
import json, sys
import airflow.cli.cli_config
import argparse
before = set(sys.modules)
from {module} import {function}
{function}()
print("NEW", json.dumps(sorted(set(sys.modules) - before)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("NEW "))
    package = "airflow_dai_provider"
    new = set(json.loads(line.removeprefix("NEW ")))
    assert new | {package} == {package, f"{package}.cli", f"{package}.cli.definition"}


@pytest.mark.parametrize(("text", "seconds"), [("600", 600.0), ("0.5", 0.5), ("10m", 600.0)])
def test_a_plain_number_is_one_of_seconds(text: str, seconds: float) -> None:
    assert ARG_TIMEOUT.kwargs["type"](text) == seconds


@pytest.mark.parametrize(
    ("argument", "seconds"),
    [
        (definition.ARG_TIMEOUT, session.TIMEOUT),
        (definition.ARG_POLL_INTERVAL, session.POLL_INTERVAL),
        (definition.ARG_ORPHANED_FOR, strays.ORPHANED_FOR),
        (definition.ARG_KEPT, KEPT),
    ],
    ids=lambda value: getattr(value, "flags", None),
)
def test_the_help_of_a_duration_tells_its_default(argument: Arg, seconds: float) -> None:
    (default,) = re.findall(r"\(default: (\w+)", argument.kwargs["help"])
    assert "default" not in argument.kwargs
    assert argument.kwargs["type"](default) == seconds


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["abort"], "invalid choice: 'abort'"),
        (["get"], "required: NAME"),
        (["get", "ingest-1"], "Invalid operation name 'ingest-1': expected a string 'operations/'"),
        (["get", "ingest-1"], "Did you mean 'operations/ingest-1'"),
        (["whose", "https://dai.googleapis.com/v1/operations/a/b"], "Did you mean 'operations/a/b'"),
        (["wait", "v1/operations/a"], "Did you mean 'operations/a'"),
        (["delete-creative", "/v1/creatives/a"], "Did you mean 'creatives/a'"),
        (["list", "--url-prefix", ""], "argument --url-prefix: expected a part of a URL, not ''"),
        (["sweep", "--url-prefix", ""], "argument --url-prefix: expected a part of a URL, not ''"),
        (["sweep", "--url-pattern", ""], "argument --url-pattern: expected a part of a URL, not ''"),
        (["cancel", "operations/a", "operations/../b"], "Invalid operation name 'operations/../b'"),
        (["delete-creative", "operations/a"], "Invalid creative name 'operations/a'"),
        (["list", "--older-than", "soon"], "Invalid duration 'soon': expected .* a text such as '90s' or '6h'"),
        (["wait", "operations/a", "--timeout", "0"], "Invalid duration '0s': expected a positive number of seconds"),
        (["list", "--output", "xml"], "invalid choice: 'xml'"),
        (["sweep", "--max-cancellations", "0"], "invalid positive int value: '0'"),
        (["list", "--api-endpoint", "https://host/path"], "Invalid --api-endpoint 'https://host/path': expected"),
        (["list", "--conn-id", ""], "Invalid gcp_conn_id '': expected the id of a connection"),
        (["sweep", "--url-pattern", "("], r"Invalid url_pattern '\(': expected a regular expression"),
        (
            ["sweep", "--include-undated"],
            "--include-undated needs --older-than: without it, operations without an owner",
        ),
        (
            ["cancel", "operations/a", "--timeout", "1h"],
            "--timeout needs --wait: without it, the command does not wait",
        ),
        (["cancel", "operations/a", "-y", "--poll-interval", "10"], "--poll-interval needs --wait: without it"),
        (["sweep", "-y", "-w"], "--yes and --wait need --no-dry-run: without it, nothing is cancelled"),
        (["sweep", "--dry-run", "--orphaned-for", "2m"], "--orphaned-for needs --no-dry-run: without it"),
        (["sweep", "--timeout", "1h", "--poll-interval", "10s"], "--timeout and --poll-interval need --no-dry-run"),
        (["sweep", "--no-dry-run", "--yes", "--timeout", "1h"], "--timeout needs --wait: without it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(dai: Dai, arguments: list[str], words: str) -> None:
    result = dai(*arguments)
    assert result.code == 2
    assert re.search(words, " ".join(result.err.split()))
