"""``make soak``: cancel and wait under random faults, poll together by a wrong list, and wait across a restart."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile

from tests.support.interruption import raise_on_signals

FAULTS = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=1000, help="rounds under faults, 0 for none (default: %(default)s)"
    )
    parser.add_argument("--waits", type=int, default=300, help="deferred waits, 0 for none (default: %(default)s)")
    parser.add_argument(
        "--polls", type=int, default=300, help="waits that poll together, 0 for none (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, help="seed of the faults (default: a new one)")
    options = parser.parse_args()
    raise_on_signals()

    with tempfile.TemporaryDirectory(prefix="airflow-dai-provider-soak-") as home:
        # Airflow reads these when it is imported.
        os.environ.update(AIRFLOW_HOME=home, AIRFLOW__LOGGING__LOGGING_LEVEL="CRITICAL")
        logging.disable(logging.CRITICAL)
        from rounds import play_rounds

        wrong = play_rounds(options.rounds, FAULTS, options.seed) if options.rounds else 0
        if options.polls:
            from polls import play_polls

            wrong += play_polls(options.polls, FAULTS, options.seed)
    if options.waits:
        from waits import play_waits

        wrong += play_waits(options.waits, FAULTS, options.seed)
    print(f"\nProblems: {wrong}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt as signal_name:
        sys.exit(f"Stopped by {signal_name}")
