"""Faults as text and as JSON, for the command line and the control address."""

import json
import math
from collections.abc import Callable, Mapping

from airflow_dai_provider.emulator.errors import wrong_value
from airflow_dai_provider.emulator.fault_rules import said
from airflow_dai_provider.emulator.faults import Fault
from airflow_dai_provider.emulator.readers import read_flag, read_number, read_text, read_whole

FAULT_HELP = """\
A fault is written as comma-separated fields, the method first if it is meant for one, or as JSON:
  operations.get,status=503,times=2             the next two gets answer 503
  status=429,retry_after=2,rate=0.1             every tenth request or so, from now on
  operations.cancel,drop=after,reset=true       processed, and the connection reset
  operations.list,delay=inf,times=always        a list request hangs for ever
  redirect=https://other.example/               sent elsewhere
  {"status": 200, "html": true, "times": null}  a front end's page, from now on
These are the fields; seconds may be inf, which is for ever:
  which requests     method, name=operations/a; times=2 or always (null in JSON), 1 if not given; rate=0.1, then always
  what is answered   status, rpc_status, html=true for a front end's page, body, redirect=URL, header.NAME=VALUE
                     (headers in JSON), content_type, retry_after=SECONDS, retry_after_date=SECONDS from now as a
                     date, padding=BYTES; processed=true has the request processed although a failure is answered
  how it is sent     delay=SECONDS, body_delay=SECONDS in the middle of the body, drop=before or after processing,
                     truncate=BYTES, reset=true to reset the connection where it is dropped or the body cut
Without a method, every request is meant but those for tokens (token, generateAccessToken, exchangeToken)."""

_ALWAYS = "always"


def parse_fault(text: str) -> Fault:
    """Read a fault as the command line has it.

    :param text: comma-separated fields, or a JSON object.
    :raises ValueError: saying what was given and what was expected.
    """
    if text.lstrip().startswith("{"):
        try:
            return read_fault(json.loads(text))
        except json.JSONDecodeError as error:
            raise wrong_value("fault", text, f"JSON ({error})") from None
    given: dict[str, object] = {}
    headers: dict[str, object] = {}
    for number, part in enumerate(text.split(",")):
        key, equals, value = part.partition("=")
        key = key.strip()
        if number == 0 and not equals:
            key, value = "method", key
        elif not equals:
            raise wrong_value("fault", part, "field=value; what holds a comma goes into JSON")
        where, key = (headers, key.removeprefix("header.")) if key.startswith("header.") else (given, key)
        if key in where:
            raise wrong_value("fault", part, f"{key} only once")
        where[key] = value
    return read_fault({**given, "headers": headers} if headers else given)


def read_fault(value: object) -> Fault:
    """Read a fault as JSON has it.

    :param value: an object with the fields of :class:`Fault`; ``body`` is text, and null is a field not given, but
        for ``times``, where it is every request from now on.
    :raises ValueError: saying what was given and what was expected.
    """
    if not isinstance(value, dict):
        raise wrong_value("fault", value, "an object with the fields of a fault")
    unknown = [name for name in value if name not in _READERS]
    if unknown:
        raise wrong_value("fault", unknown[0], f"some of the fields {', '.join(_READERS)}")
    given = {name: item for name, item in value.items() if item is not None}
    arguments = {name: _READERS[name](name, item) for name, item in given.items()}
    if "times" in value and value["times"] in (None, _ALWAYS):
        arguments["times"] = None
    return Fault(**arguments)  # type: ignore[arg-type]


def fault_json(fault: Fault) -> dict[str, object]:
    """Write a fault as :func:`read_fault` reads it, without what it does not say.

    :param fault: the fault.
    """
    written: dict[str, object] = {"times": fault.times}
    for name in said(fault):
        value = getattr(fault, name)
        written[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if value == math.inf:
            written[name] = "inf"  # which is no number in JSON
    return written


def _bytes(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise wrong_value(name, value, "a text")
    return value.encode("utf-8", "surrogateescape")


def _times(name: str, value: object) -> int | None:
    try:
        return None if value == _ALWAYS else read_whole(name, value)
    except ValueError:
        raise wrong_value(name, value, f"a whole number, or {_ALWAYS}") from None


def _headers(name: str, value: object) -> Mapping[str, str]:
    if not (isinstance(value, dict) and all(isinstance(item, str) for item in value.values())):
        raise wrong_value(name, value, "an object with a text for each header")
    return value


_READERS: dict[str, Callable[[str, object], object]] = {
    "method": read_text,
    "name": read_text,
    "times": _times,
    "rate": read_number,
    "status": read_whole,
    "rpc_status": read_text,
    "html": read_flag,
    "redirect": read_text,
    "body": _bytes,
    "processed": read_flag,
    "headers": _headers,
    "content_type": read_text,
    "retry_after": read_whole,
    "retry_after_date": read_number,
    "padding": read_whole,
    "delay": read_number,
    "body_delay": read_number,
    "drop": read_text,
    "truncate": read_whole,
    "reset": read_flag,
}
