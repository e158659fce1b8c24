"""
The benchmarks: ``python tests/benchmarks [--only TOPIC] [--small] [--out FILE]``.

Every limit is on a ratio to something measured in the same run. The exit code is 1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from peer import server
from processes import Bench, ScenarioError
from topics import TOPICS

from tests.support.interruption import raise_on_signals


def main() -> int:
    """Run the topics, print their tables, and write all results to a file."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure, and compare the results with limits.")
    parser.add_argument("--only", choices=TOPICS, action="append", help="one topic; may be repeated")
    parser.add_argument("--out", type=Path, default=Path(".airflow/benchmarks.json"), help="the JSON file to write")
    parser.add_argument("--small", action="store_true", help="fewer operations and waits, to see that it runs")
    options = parser.parse_args()
    raise_on_signals()
    started = time.monotonic()
    topics = {}
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as env:
        bench = Bench(
            Path(folder),
            env,
            lambda text: print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True),
            options.small,
        )
        for name in options.only or TOPICS:
            topics[name] = TOPICS[name](bench)
            print(f"\n{topics[name]}\n", flush=True)
    missed = [limit.what for topic in topics.values() for limit in topic.limits if not limit.holds]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    versions = {name: version(name) for name in ("apache-airflow", "aiohttp", "requests")}
    report = {
        "python": platform.python_version(),
        "versions": versions,
        "seconds": time.monotonic() - started,
        "topics": {name: topic.to_dict() for name, topic in topics.items()},
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Written to {options.out}. " + (f"Missed: {'; '.join(missed)}." if missed else "Every limit holds."))
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ScenarioError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as signal_name:
        sys.exit(f"Stopped by {signal_name}")
