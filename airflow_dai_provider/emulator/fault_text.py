"""Faults as text and as JSON, for the command line and the control address."""

import inspect
import json
import math

from airflow_dai_provider.emulator.errors import check_object, wrong_value
from airflow_dai_provider.emulator.faults import Fault

FAULT_HELP = """\
A fault is written as comma-separated fields, the method first if it is meant for one, or as JSON:
  operations.get,status=503,times=2             the next two gets return 503
  status=429,retry_after=2,rate=0.1             every tenth request or so, from now on
  operations.cancel,drop=after,reset=true       processed, and the connection reset
  operations.list,delay=inf,times=always        every list request hangs
  operations.get,rpc_status=NOT_FOUND,times=3   an operation is unknown to the next three gets, as after a create
  operations.get,status=404,lasts=10            the same for ten seconds from the first of them on
  status=503,lasts=290                          an outage
  operations.get,status=403,html=true           a front end's page in place of the API, once
  operations.cancel,rpc_status=NOT_FOUND        cancel contradicts get, which finds the operation
  operations.cancel,status=403,reason=rateLimitExceeded
                                                a refusal with a reason; "details": [{...}] needs JSON
  operations.list,omitted=operations/a          a list without one of the operations
  {"method": "operations.list", "listed": [null, {"done": true}, 5], "times": null}
                                                a list with items that are no operations, beside the others
  redirect=https://other.example/               sent elsewhere
  {"status": 200, "html": true, "times": null}  a front end's page, from now on
These are the fields; seconds may be inf, which is forever:
  which requests     method, name=operations/a; times=2 or always (null in JSON), 1 if not given; rate=0.1, then always;
                     lasts=SECONDS from the first request that it hits, then always
  the response       status, rpc_status, reason, details, html=true for a front end's page, body, redirect=URL,
                     listed, omitted, header.NAME=VALUE (headers in JSON), content_type, retry_after=SECONDS,
                     retry_after_date=SECONDS from now as a date, padding=BYTES, merge (only in JSON: fields to put
                     into the response); processed=true has the request processed although a failure is sent
  how it is sent     delay=SECONDS, body_delay=SECONDS in the middle of the body, drop=before or after processing,
                     truncate=BYTES, reset=true to reset the connection where it is dropped or the body cut
Without a method, a fault is meant for every request except those for tokens (token, generateAccessToken,
exchangeToken)."""


def parse_fault(text: str) -> Fault:
    """Read a fault from the command line.

    :param text: comma-separated fields, or a JSON object.
    :raises ValueError: with the given and the expected value.
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
            raise wrong_value("fault", part, "field=value; a value with a comma needs JSON")
        fields, key = (headers, key.removeprefix("header.")) if key.startswith("header.") else (given, key)
        if key in fields:
            raise wrong_value("fault", part, f"{key} only once")
        fields[key] = value
    return read_fault({**given, "headers": headers} if headers else given)


def read_fault(value: object) -> Fault:
    """Read a fault from JSON.

    :param value: an object with the fields of :class:`Fault`; ``body`` is text. Null means "not given", except
        for ``times``, where it means every request from now on.
    :raises ValueError: with the given and the expected value.
    """
    given = check_object("fault", value, inspect.signature(Fault).parameters)
    return Fault(**{name: item for name, item in given.items() if item is not None or name == "times"})


def fault_json(fault: Fault) -> dict[str, object]:
    """Write a fault in the form that :func:`read_fault` reads, without the fields that have their defaults."""
    written: dict[str, object] = {"times": fault.times}
    for name in fault.changed_fields:
        value = getattr(fault, name)
        written[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if value == math.inf:
            written[name] = "inf"  # which is not a number in JSON
    return written
