"""The emulator on the command line: ``python -m airflow_dai_provider.emulator``."""

import argparse
import json
import logging
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from airflow_dai_provider.emulator.control import CONTROL_ACCESS, CONTROL_PREFIX
from airflow_dai_provider.emulator.fault_text import FAULT_HELP, parse_fault
from airflow_dai_provider.emulator.faults import Fault
from airflow_dai_provider.emulator.ingest import URL_HELP
from airflow_dai_provider.emulator.routes import METHODS
from airflow_dai_provider.emulator.server import DaiEmulator
from airflow_dai_provider.emulator.store import FINISHED_CANCEL

_DEFAULT_PORT = 8085
# Without a bound, the record of a client that polls for days would fill the memory.
_RECORDED_REQUESTS = 1000
#: Seconds after a signal until it is noticed, at most.
_SIGNAL_INTERVAL = 0.1

_OPEN = """\
export DAI_EMULATOR_HOST={host}

A local DAI service listens there, in memory only. Set the variable above where Airflow runs, and DAGs talk
to it instead of Google: no credentials, no connection. To start an ingest by hand:

  curl -H 'Content-Type: application/json' {endpoint}/v1/creatives -d '
    {{"creative": {{"adSystem": "me", "mezzanines": [{{"uri": "https://media.example/ad.mp4?seconds=60",
     "mimeType": "video/mp4", "delivery": "DELIVERY_PROGRESSIVE"}}]}}}}'
"""
_AUTHENTICATED = """\
export AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT={connection}

A local DAI service listens at {endpoint}, in memory only, and requires a token from every client.
Set the variable above where Airflow runs, and leave DAI_EMULATOR_HOST unset: DAGs get their tokens there with
the key in {key_file} (good for {token_lifetime} s each), and talk to it instead of Google.
"""
_METADATA = """\
export {variables}
export AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT={connection}

A local DAI service listens at {endpoint}, in memory only, and requires a token from every client.
Set the variables above where Airflow runs, and leave DAI_EMULATOR_HOST and GOOGLE_APPLICATION_CREDENTIALS unset: DAGs
get their tokens there, as from the metadata server of a virtual machine (good for {token_lifetime} s each).
"""
_CONTROL = """
From another shell, without a token and without being recorded:

  curl {control}/ingests       # the state of each
  curl {control}/ingests -d '{{"name": "operations/another", "seconds": 60}}'
  curl {control}/requests      # the requests that have arrived
  curl {control}/faults -d '{{"method": "operations.get", "status": 503, "times": 2}}'
  curl {control}               # everything else
"""

_Value = TypeVar("_Value", int, float)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with one line; the usage is in --help."""
        self.exit(2, f"{self.prog}: error: {message}\n")


class _CannotServeError(Exception):
    """The system refuses the port or the key file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM.

    :param arguments: the command line, without the program's name; None for the process's own.
    :return: the exit code.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.authentication != (options.key_file is not None or options.metadata_server):
        parser.error("--authentication needs --key-file or --metadata-server, and each of these needs --authentication")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: signals.append(received))
    try:
        emulator = _start(options)
    except (ValueError, _CannotServeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(_greeting(emulator, options))
    sys.stdout.flush()
    # No Event: its lock deadlocks with a handler that runs while it is taken, and a signal that comes just before an
    # unlimited wait does not end it.
    while not signals:
        time.sleep(_SIGNAL_INTERVAL)
    emulator.stop()
    return 0


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


def _greeting(emulator: DaiEmulator, options: argparse.Namespace) -> str:
    endpoint = emulator.endpoint
    if not options.authentication:
        parts = [_OPEN.format(host=emulator.host, endpoint=endpoint)]
    else:
        extra = {"key_path": str(options.key_file), "dai_api_endpoint": endpoint}
        if options.metadata_server:
            del extra["key_path"]
        connection = shlex.quote(json.dumps({"conn_type": "google_cloud_platform", "extra": extra}))
        text = _METADATA if options.metadata_server else _AUTHENTICATED
        variables = " ".join(f"{name}={value}" for name, value in emulator.metadata_environment.items())
        parts = [text.format(variables=variables, connection=connection, endpoint=endpoint, **vars(options))]
    if options.control != "off":
        parts.append(_CONTROL.format(control=emulator.control_endpoint))
    if any(fault.rate is not None for fault in options.fault):
        parts.append(f"\nFaults by rate follow the seed {emulator.seed}.\n")
    return "".join([*parts, f"\n{URL_HELP}\n\nCtrl+C stops it.\n"])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m airflow_dai_provider.emulator",
        description="A local DAI service, for trying a DAG without an account at Google.",
        epilog=f"{URL_HELP}\n\n{FAULT_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    port = _number(int, lambda value: 0 <= value <= 65535, "a number from 0 to 65535")
    add("--port", type=port, default=_DEFAULT_PORT, help="port, 0 for a free one (default: %(default)s)")
    several: dict[str, Any] = {"action": "append", "default": []}
    words = "an operation to start with, such as operations/my-ingest (repeatable)"
    add("--start", **several, metavar="NAME", help=words)
    seconds: dict[str, Any] = {
        "type": _number(float, lambda value: value >= 0, "a number of seconds, 0 or more"),
        "metavar": "SECONDS",
    }
    add("--ingest-seconds", **seconds, default=20.0, help="how long an ingest takes (default: %(default)s)")
    words = "from a cancel request until the ingest is cancelled (default: %(default)s)"
    add("--cancel-seconds", **seconds, default=1.0, help=words)
    words = f"a method that returns UNIMPLEMENTED (repeatable): {', '.join(METHODS)}"
    add("--unimplemented", **several, choices=METHODS, metavar="METHOD", help=words)
    words = "response to a cancel request for a finished operation (default: %(default)s)"
    add("--finished-cancel", choices=FINISHED_CANCEL, default="ok", help=words)
    add = parser.add_argument_group("authentication").add_argument
    words = "refuse requests without a token, and issue tokens to clients with the key in --key-file"
    add("--authentication", action="store_true", help=words)
    words = "where to write the key of a service account, for the owner only; replaces only a key of an emulator"
    add("--key-file", type=lambda text: Path(text).absolute(), metavar="PATH", help=words)
    words = "also act as a machine's metadata server, for clients with application default credentials"
    add("--metadata-server", action="store_true", help=words)
    lifetime = _number(int, lambda value: value >= 1, "a whole number of seconds, 1 or more")
    words = "how long a token is valid; google-auth renews one 225 s before it expires (default: %(default)s)"
    add("--token-lifetime", type=lifetime, default=3600, metavar="SECONDS", help=words)
    add = parser.add_argument_group("faults and control").add_argument
    words = "a fault to inject, such as operations.get,status=503,times=2 (repeatable); see below"
    add("--fault", **several, type=_fault, metavar="FAULT", help=words)
    words = "decides which requests a fault with a rate hits (default: a new one each time, which is printed)"
    add("--seed", type=int, metavar="NUMBER", help=words)
    words = f"which clients may use the control address, {CONTROL_PREFIX} (default: %(default)s)"
    add("--control", choices=CONTROL_ACCESS, default="loopback", help=words)
    return parser


def _number(read: Callable[[str], _Value], fits: Callable[[_Value], bool], expected: str) -> Callable[[str], _Value]:
    def convert(text: str) -> _Value:
        with suppress(ValueError):
            if fits(value := read(text)):
                return value
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")

    return convert


def _fault(text: str) -> Fault:
    try:
        return parse_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
