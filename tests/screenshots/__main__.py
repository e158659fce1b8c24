"""``make screenshots``: run the examples on a real Airflow, and take the pictures of the README in a browser."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from importlib.metadata import version
from pathlib import Path

from pages import Pages, browsing
from playwright.sync_api import Error as BrowserError
from runs import OPERATION, ROOT, StackError, play, playing

from tests.support.interruption import raise_on_signals


def main() -> int:
    parser = argparse.ArgumentParser(prog="make screenshots", description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images", help="folder for the pictures")
    folder = parser.parse_args().into
    raise_on_signals()
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    logging.getLogger("airflow_dai_provider.emulator").setLevel(logging.WARNING)
    say("Starting a local DAI service and Airflow")
    with playing() as (emulator, stack):
        say("Running the examples")
        runs, commands = play(emulator, stack)
        say("Taking pictures")
        with browsing(f"http://127.0.0.1:{stack.port}", folder) as pages:
            pictures = take_all(pages, runs, commands)
    for picture in pictures:
        say(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB")
    return 0


def take_all(pages: Pages, runs: dict[str, str], commands: str) -> list[Path]:
    """Take each picture; fail if a page lacks one of the texts that are named.

    :param commands: what a terminal shows after the commands of who is on call.
    """
    cancel, ingest, refused = runs["cancel_ingest"], runs["ingest"], runs["cancel_and_wait"]
    return [
        pages.graph("graph", "cancel_ingest", cancel, "start_ingest", "cancel", "wait"),
        pages.log("log", "cancel_ingest", cancel, "wait", "is RUNNING", "is CANCELLED"),
        pages.xcom("xcom", "cancel_ingest", cancel, "wait", '"state": "CANCELLED"'),
        pages.log("killed", "ingest", ingest, "ingest", "in the triggerer", "Requested the cancellation"),
        pages.log("unimplemented", "cancel_and_wait", refused, "cancel", "UNIMPLEMENTED", f"{OPERATION} may still run"),
        pages.terminal("on-call", commands, "deferred", "CANCELLED"),
        pages.provider("provider", "airflow-dai-provider", "Video Creative Ingest", version("airflow-dai-provider")),
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StackError, BrowserError, AssertionError) as error:
        sys.exit(f"The pictures could not be taken: {error}")
    except KeyboardInterrupt as signal_name:
        sys.exit(f"Stopped by {signal_name}")
