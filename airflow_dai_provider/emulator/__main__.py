"""The emulator on the command line: ``python -m airflow_dai_provider.emulator``."""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from airflow_dai_provider.emulator.control import CONTROL_ACCESS, CONTROL_PREFIX
from airflow_dai_provider.emulator.fault_reader import FAULT_HELP, parse_fault
from airflow_dai_provider.emulator.faults import Fault
from airflow_dai_provider.emulator.greeting import greeting
from airflow_dai_provider.emulator.plan import URL_HELP, check_seconds
from airflow_dai_provider.emulator.routes import METHODS
from airflow_dai_provider.emulator.server import DaiEmulator
from airflow_dai_provider.emulator.service import FINISHED_CANCEL

_DEFAULT_PORT = 8085
# Nobody reads the record here; without a bound, a client that polls for days would fill the memory.
_RECORDED_REQUESTS = 1000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with one line; the usage of a wrong call is in --help."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM.

    :param arguments: the command line, without the program's name; None for the process's own.
    :return: the exit code.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.authentication != (options.key_file is not None):
        parser.error("--authentication and --key-file belong together: the key is what gives access")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    told_to_stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told_to_stop.set())
    try:
        emulator = _start(options)
    except (ValueError, _CannotServeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(
        greeting(
            emulator,
            key_file=options.key_file,
            token_lifetime=options.token_lifetime,
            control=options.control != "off",
            seed=any(fault.rate is not None for fault in options.fault),
        )
    )
    sys.stdout.flush()
    told_to_stop.wait()
    emulator.stop()
    return 0


class _CannotServeError(Exception):
    """The system does not let the emulator do what it shall."""


def _start(options: argparse.Namespace) -> DaiEmulator:
    emulator = DaiEmulator(
        ingest_seconds=options.ingest_seconds,
        cancel_seconds=options.cancel_seconds,
        unimplemented=options.unimplemented,
        finished_cancel=options.finished_cancel,
        authentication=options.authentication,
        token_lifetime=options.token_lifetime,
        seed=options.seed,
        control=options.control,
        host=options.host,
        port=options.port,
        max_recorded_requests=_RECORDED_REQUESTS,
    )
    for fault in options.fault:
        emulator.inject(fault)
    for name in options.start:
        emulator.start_ingest(name)
    try:
        emulator.start()
    except OSError as error:
        reason = error.strerror or str(error)
        raise _CannotServeError(f"cannot listen on {options.host}:{options.port}: {reason}") from error
    if options.key_file is not None:
        try:
            emulator.write_key_file(options.key_file)
        except OSError as error:
            emulator.stop()
            raise _CannotServeError(f"cannot write {options.key_file}: {error.strerror or error}") from error
        except ValueError:
            emulator.stop()
            raise
    return emulator


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m airflow_dai_provider.emulator",
        description="A local DAI service, for trying a DAG without an account at Google.",
        epilog=f"{URL_HELP}\n\n{FAULT_HELP}",
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
    access = parser.add_argument_group("authentication")
    access.add_argument(
        "--authentication",
        action="store_true",
        help="answer only those who bring a token, and issue tokens to who has the key in --key-file",
    )
    access.add_argument(
        "--key-file",
        type=_path,
        metavar="PATH",
        help="where to write the key of a service account, for the owner only; replaces an emulator's key, and "
        "nothing else",
    )
    access.add_argument(
        "--token-lifetime",
        type=_token_lifetime,
        default=3600,
        metavar="SECONDS",
        help="how long a token is good; google-auth renews one 225 s before (default: %(default)s)",
    )
    trouble = parser.add_argument_group("faults and control")
    trouble.add_argument(
        "--fault",
        action="append",
        type=_fault,
        default=[],
        metavar="FAULT",
        help="what goes wrong, such as operations.get,status=503,times=2, repeatable; see below",
    )
    trouble.add_argument(
        "--seed",
        type=int,
        metavar="NUMBER",
        help="decides which requests a fault with a rate hits (default: a new one each time, which is printed)",
    )
    trouble.add_argument(
        "--control",
        choices=CONTROL_ACCESS,
        default="loopback",
        help=f"who may use the control address, {CONTROL_PREFIX}, and get in by it (default: %(default)s)",
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


def _token_lifetime(text: str) -> int:
    seconds = int(text) if text.isdecimal() else 0
    if seconds < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of seconds, 1 or more")
    return seconds


def _path(text: str) -> Path:
    return Path(text).absolute()


def _fault(text: str) -> Fault:
    try:
        return parse_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
