"""Each command: its output in each format, and what all of them say of the same trouble."""

from __future__ import annotations

import pytest

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.version_compat import HAS_ASSET_STATE_STORE
from tests.support.clock import Clock
from tests.unit.cli.conftest import Dai, Start
from tests.unit.cli.test_reading import FORMATS, read

pytestmark = pytest.mark.usefixtures("metadata_database", "asset")

NAME, AD = "operations/a", "creatives/a"
COMMANDS = {
    "list": ["list", "--all"],
    "get": ["get", NAME],
    "whose": ["whose", NAME],
    "cancel": ["cancel", NAME, "--yes"],
    "wait": ["wait", NAME],
    "sweep": ["sweep", "--older-than", "1s"],
    "delete-creative": ["delete-creative", AD, "--yes"],
    "check": ["check"],
    "purge": ["purge", "--older-than", "15m"],
}
every_command = pytest.mark.parametrize("command", COMMANDS)


@every_command
@pytest.mark.parametrize("output", FORMATS)
def test_the_output_can_be_read(
    emulator: DaiEmulator, dai: Dai, start: Start, clock: Clock, command: str, output: str
) -> None:
    held = NAME
    arguments = COMMANDS[command]
    if command in ("whose", "purge"):
        held = start().name
        arguments = [held if one == NAME else one for one in arguments]
    if command == "purge":
        emulator.reset()
        held = "starts" if HAS_ASSET_STATE_STORE else ""
    elif command == "delete-creative":
        emulator.start_ingest(seconds=1)
        clock.advance(5)
        (held,) = emulator.creatives()
        arguments = [command, held, "--yes"]
    elif command == "check":
        held = "owners"
    elif command != "whose":
        emulator.start_ingest(NAME, seconds=1 if command == "wait" else 1e9)
        clock.advance(60)
    result = dai(*arguments, "-o", output)
    assert result.code == 0
    assert "\x1b" not in result.out + result.err
    rows = read(output, result.out) if result.out else []
    assert not held or held in {cell for row in rows for cell in row.values()}


@every_command
@pytest.mark.usefixtures("fake_time")
def test_the_service_is_down_and_stdin_is_closed(
    dai: Dai, closed_port: int, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("DAI_EMULATOR_HOST", f"127.0.0.1:{closed_port}")
    arguments = [one for one in COMMANDS[command] if one != "--yes"]
    result = dai(*arguments, answer=None)
    if command == "purge" and not HAS_ASSET_STATE_STORE:
        assert result.code == 0
        return
    assert result.code == 1
    expected = "Nothing was done" if command == "delete-creative" else "got no response from"
    assert expected in result.out + result.err
    assert "Traceback" not in result.err
    assert "\x1b" not in result.out + result.err


def test_the_impersonation_chain_reaches_the_hook(dai: Dai, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def check(self: DaiHook) -> tuple[bool, str]:
        seen.append(self.impersonation_chain)
        return True, ""

    monkeypatch.setattr(DaiHook, "test_connection", check)
    assert dai("check", "--impersonation-chain", "a@example.com,b@example.com").code == 0
    assert seen == [["a@example.com", "b@example.com"]]
