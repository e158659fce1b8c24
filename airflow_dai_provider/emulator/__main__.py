"""The emulator on the command line: ``python -m airflow_dai_provider.emulator``."""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from airflow_dai_provider.emulator.plan import URL_HELP, check_seconds
from airflow_dai_provider.emulator.routes import METHODS
from airflow_dai_provider.emulator.server import DaiEmulator
from airflow_dai_provider.emulator.service import FINISHED_CANCEL

_DEFAULT_PORT = 8085
# Nobody reads the record here; without a bound, a client that polls for days would fill the memory.
_RECORDED_REQUESTS = 1000

_GREETING = """\
export DAI_EMULATOR_HOST={host}

A local DAI service listens there, in memory only. Set the variable above where Airflow runs, and DAGs talk
to it instead of Google: no credentials, no connection. To start an ingest by hand:

  curl -H 'Content-Type: application/json' {endpoint}/v1/creatives -d '
    {{"creative": {{"adSystem": "me", "mezzanines": [{{"uri": "https://media.example/ad.mp4?seconds=60",
     "mimeType": "video/mp4", "delivery": "DELIVERY_PROGRESSIVE"}}]}}}}'

{url_help}

Ctrl+C stops it.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with one line; the usage of a wrong call is in --help."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM.

    :param arguments: the command line, without the program's name; None for the process's own.
    :return: the exit code.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    told_to_stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told_to_stop.set())
    emulator = DaiEmulator(
        ingest_seconds=options.ingest_seconds,
        cancel_seconds=options.cancel_seconds,
        unimplemented=options.unimplemented,
        finished_cancel=options.finished_cancel,
        host=options.host,
        port=options.port,
        max_recorded_requests=_RECORDED_REQUESTS,
    )
    try:
        for name in options.start:
            emulator.start_ingest(name)
        emulator.start()
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except OSError as error:
        reason = error.strerror or str(error)
        sys.stderr.write(f"error: cannot listen on {options.host}:{options.port}: {reason}\n")
        return 1
    _greet(emulator)
    told_to_stop.wait()
    emulator.stop()
    return 0


def _greet(emulator: DaiEmulator) -> None:
    sys.stdout.write(_GREETING.format(host=emulator.host, endpoint=emulator.endpoint, url_help=URL_HELP))
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m airflow_dai_provider.emulator",
        description="A local DAI service, for trying a DAG without credentials.",
        epilog=URL_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=_DEFAULT_PORT, help="port, 0 for a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="NAME",
        help="an operation that runs from the start, such as operations/my-ingest, repeatable",
    )
    parser.add_argument(
        "--ingest-seconds",
        type=_seconds,
        default=20.0,
        metavar="SECONDS",
        help="how long an ingest takes (default: %(default)s)",
    )
    parser.add_argument(
        "--cancel-seconds",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="from a cancel request to the end of the ingest (default: %(default)s)",
    )
    parser.add_argument(
        "--unimplemented",
        action="append",
        default=[],
        choices=METHODS,
        metavar="METHOD",
        help=f"a method that answers UNIMPLEMENTED, repeatable: {', '.join(METHODS)}",
    )
    parser.add_argument(
        "--finished-cancel",
        choices=FINISHED_CANCEL,
        default="ok",
        help="answer to a cancel request for a finished operation (default: %(default)s)",
    )
    return parser


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0 to 65535")
    return port


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
        check_seconds("seconds", seconds)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of seconds, 0 or more") from None
    return seconds


if __name__ == "__main__":
    sys.exit(main())
