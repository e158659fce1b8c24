"""The commands as processes: their output to a pipe, to a pipe that closes, and to a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from airflow_dai_provider.emulator import DaiEmulator
from tests.support.emulators import MakeEmulator, count

pytestmark = pytest.mark.usefixtures("metadata_database")

COMMAND = [sys.executable, "-m", "airflow_dai_provider"]


def read_all(descriptor: int) -> str:
    """Return what a terminal was sent, until its other end is closed."""
    parts: list[bytes] = []
    with suppress(OSError):
        while part := os.read(descriptor, 65536):
            parts.append(part)
    return b"".join(parts).decode()


def test_a_pipe_gets_no_colours_and_no_progress_bar(make_emulator: MakeEmulator) -> None:
    emulator = make_emulator()
    name = emulator.start_ingest(seconds=0)
    for arguments in (["list", "--all"], ["wait", name]):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=True)
        assert name in done.stdout
        assert "\x1b" not in done.stdout + done.stderr
        assert done.stderr == ""


def test_verbose_shows_the_log_beside_the_rows(make_emulator: MakeEmulator) -> None:
    emulator = make_emulator()
    name = emulator.start_ingest(seconds=0)
    arguments = [*COMMAND, "wait", name, "--verbose", "-o", "json"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert [row["result"] for row in json.loads(done.stdout)] == ["SUCCEEDED"]
    assert f"{name} is SUCCEEDED" in done.stderr


def test_a_pipe_that_closes_ends_a_list(make_emulator: MakeEmulator) -> None:
    emulator = make_emulator()
    for _ in range(2_000):
        emulator.start_ingest()
    with subprocess.Popen([*COMMAND, "list", "-o", "plain"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"name ")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
    # 20 pages make the whole list.
    assert count(emulator, "operations.list") < 20


def test_a_closed_output_is_no_failure(emulator: DaiEmulator) -> None:
    emulator.start_ingest()
    arguments = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "list", "-o", "plain"]
    done = subprocess.run(arguments, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_messages_that_nobody_reads_end_no_command_and_cost_no_row(emulator: DaiEmulator) -> None:
    names = [emulator.start_ingest() for _ in range(2)]
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [*COMMAND, "cancel", *names, "-o", "json"]
    done = subprocess.run(arguments, input="y\n", stdout=subprocess.PIPE, stderr=writer, text=True, check=False)
    os.close(writer)
    assert [row["result"] for row in json.loads(done.stdout)] == ["requested"] * 2
    assert done.returncode == 0


@pytest.mark.parametrize("output", ["plain", "table", "yaml"])
def test_what_the_encoding_does_not_know_is_escaped(emulator: DaiEmulator, output: str) -> None:
    name = emulator.start_ingest(creative_url="https://media.example/\u00fc.mp4")
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*COMMAND, "list", "-o", output], env=env, capture_output=True, encoding="ascii", check=True)
    assert name in done.stdout
    assert "\\xfc.mp4" in done.stdout.replace("\\xFC", "\\xfc")


FULL_DISK = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no device that is always full")


@needs_full_disk
@pytest.mark.parametrize("output", ["json", "table"])
def test_a_full_disk_is_told(emulator: DaiEmulator, output: str) -> None:
    name = emulator.start_ingest()
    with FULL_DISK.open("w") as full:
        arguments = [*COMMAND, "cancel", name, "--yes", "-o", output]
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Could not print the rows: No space left on device.\n")
    assert emulator.cancel_requested(name) == 1


@needs_full_disk
def test_words_for_which_there_is_no_space_keep_nothing_from_being_cancelled(emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    with FULL_DISK.open("w") as full:
        arguments = [*COMMAND, "cancel", name, "-o", "json"]
        done = subprocess.run(arguments, input="y\n", stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert [row["result"] for row in json.loads(done.stdout)] == ["requested"]


def test_a_terminal_that_closes_during_a_wait_loses_no_row(emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "wait", name, "-o", "json"], stdin=slave, stdout=subprocess.PIPE, stderr=slave, text=True
    )
    os.close(slave)
    while not count(emulator, "operations.get"):
        assert os.read(master, 65536)
    os.close(master)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate()
    assert (process.returncode, [row["result"] for row in json.loads(out)]) == (130, ["may still run"])


def test_a_terminal_sees_the_progress_of_a_wait(make_emulator: MakeEmulator) -> None:
    emulator = make_emulator()
    name = emulator.start_ingest(seconds=0)
    master, slave = pty.openpty()
    process = subprocess.Popen([*COMMAND, "wait", name], stdin=slave, stdout=subprocess.PIPE, stderr=slave, text=True)
    os.close(slave)
    shown = read_all(master)
    os.close(master)
    assert process.stdout is not None
    assert name in process.stdout.read()
    assert process.wait() == 0
    process.stdout.close()
    assert f"Waiting for {name}" in shown


def test_a_terminal_that_closes_at_the_question_cancels_nothing(emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "cancel", name], stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.close(slave)
    os.close(master)
    _, err = process.communicate()
    assert process.returncode == 1
    assert "Nothing was done. Without a terminal to ask, give --yes." in err
    assert count(emulator, "operations.cancel") == 0
