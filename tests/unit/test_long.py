"""``make long`` with quick commands in place of the long kinds; each runs in a process of its own."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.support.processes import signal_group

SCRIPT = """
import signal
import sys
from pathlib import Path
from tests import long

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests ignore it, and so would this
long.GRACE = 0.2
groups, number = [], 0
for commands in sys.argv[2:]:
    groups.append([])
    for command in commands.split(" || "):
        groups[-1].append(long.Kind(f"kind{number}", "1.0", ["sh", "-c", command]))
        number += 1
sys.exit(long.run_all(groups, Path(sys.argv[1]), "abc"))
"""
ROOT = Path(__file__).parents[2]


#: Seconds that everything has; the kinds themselves take none.
PATIENCE = 60.0

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts groups of commands; those of a group are separated by ``||``."""
    with ExitStack() as stack:

        def start(*commands: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, tmp_path, *commands],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            stack.callback(end, process)
            return process

        yield start


def end(process: subprocess.Popen[str]) -> None:
    """End what a failing test has left; it ends its kinds."""
    process.terminate()
    try:
        process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        signal_group(process, signal.SIGKILL)
        process.communicate()


def results(folder: Path) -> list[list[str]]:
    """Return the cells of the table but for the seconds."""
    heading, *lines = (folder / "long.md").read_text().splitlines()
    assert re.fullmatch(r"# Long tests of abc, \d{4}-\d\d-\d\d \d\d:\d\d UTC", heading)
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| kind") and "seconds" not in line]
    return [row[:3] for row in rows]


def test_all_kinds_pass(tmp_path: Path, start: Start) -> None:
    long = start("true", "true")
    output, _ = long.communicate(timeout=PATIENCE)
    assert long.returncode == 0
    assert results(tmp_path) == [["kind0", "1.0", "passed"], ["kind1", "1.0", "passed"]]
    assert (tmp_path / "long.md").read_text() in output
    assert re.search(r"\| kind0 \| 1.0 \| passed \| \d+ \|\n", output)


def test_a_failure_is_recorded_and_the_other_kinds_run(tmp_path: Path, start: Start) -> None:
    long = start("echo the reason; exit 3", "true")
    long.communicate(timeout=PATIENCE)
    assert long.returncode == 1
    log = tmp_path / "long-kind0-1.0.log"
    failed = f"failed with exit code 3, see {os.path.relpath(log, ROOT)}"
    assert results(tmp_path) == [["kind0", "1.0", failed], ["kind1", "1.0", "passed"]]
    assert log.read_text() == "the reason\n"


def test_a_second_run_runs_what_has_not_passed(tmp_path: Path, start: Start) -> None:
    count = f"echo run >> {tmp_path}/"
    commands = count + "one", f"{count}two; test -e {tmp_path}/mended"
    start(*commands).communicate(timeout=PATIENCE)
    (tmp_path / "mended").touch()
    table = (tmp_path / "long.md").read_text()
    long = start(*commands)
    long.communicate(timeout=PATIENCE)
    assert long.returncode == 0
    assert [(tmp_path / name).read_text().count("run") for name in ("one", "two")] == [1, 2]
    heading, _, _, _, kept, again = (tmp_path / "long.md").read_text().splitlines()
    assert [heading, kept] == [table.splitlines()[0], table.splitlines()[4]]
    assert again.startswith("| kind1 | 1.0 | passed | ")


def test_the_results_of_another_commit_are_not_kept(tmp_path: Path, start: Start) -> None:
    (tmp_path / "long.md").write_text("# Long tests of abcd, 2026-01-01 00:00 UTC\n\n| kind0 | 1.0 | passed | 5 |\n")
    start("exit 3").communicate(timeout=PATIENCE)
    assert results(tmp_path)[0][2].startswith("failed with exit code 3")


def test_the_kinds_of_a_group_run_side_by_side(tmp_path: Path, start: Start) -> None:
    """Each waits for the other; a group begins when the one before has ended."""
    one, other = tmp_path / "one", tmp_path / "other"
    os.mkfifo(one)
    os.mkfifo(other)
    pair = f"echo > {one}; cat {other} || cat {one}; echo > {other}; exit 3"
    long = start(pair, f"grep -c passed {tmp_path}/long.md")
    long.communicate(timeout=PATIENCE)
    assert [row[2].partition(",")[0] for row in results(tmp_path)] == ["passed", "failed with exit code 3", "passed"]
    assert (tmp_path / "long-kind2-1.0.log").read_text() == "1\n"


#: Below the command: a child in its group, one in a session of its own, and an orphan; the last ones ignore SIGTERM.
CHILDREN = "trap '' TERM; setsid sleep 60 & (sleep 60 &) ; echo started >&3"


@contextmanager
def reading(fifo: Path) -> Iterator[IO[bytes]]:
    """Read what a kind writes, without waiting forever for one that does not begin; at first, that it has started."""
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:  # noqa: PTH123
        assert select.select([reader], [], [], PATIENCE)[0], "No kind has started."
        assert reader.readline() == b"started\n"
        yield reader


def assert_closed(reader: IO[bytes]) -> None:
    """Read the end of the file: no process holds the other end open. One that was just killed needs a moment."""
    assert select.select([reader], [], [], 10.0)[0], "A process is left behind."
    assert os.read(reader.fileno(), 1) == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "process"])
def test_a_signal_ends_every_process_of_a_kind(
    tmp_path: Path, start: Start, number: signal.Signals, whole_group: bool
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    long = start(f"exec 3> {fifo}; sleep 60 & {CHILDREN}; wait", "true")
    with reading(fifo) as reader:
        (os.killpg if whole_group else os.kill)(long.pid, number)
        long.communicate(timeout=PATIENCE)
        assert_closed(reader)
    assert long.returncode not in (0, -signal.SIGKILL)
    assert results(tmp_path) == [["kind0", "1.0", "stopped"], ["kind1", "1.0", "not run"]]


def test_what_a_kind_leaves_behind_is_killed(tmp_path: Path, start: Start) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    long = start(f"exec 3> {fifo}; {CHILDREN}", "true")
    with reading(fifo) as reader:
        long.communicate(timeout=PATIENCE)
        assert_closed(reader)
    assert long.returncode == 0
