"""Which faults can be, and what to call them."""

import math
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

from airflow_dai_provider.emulator.errors import HTTP_STATUSES, RPC_STATUS_OF_HTTP, wrong_value
from airflow_dai_provider.emulator.routes import METHODS, TOKEN_METHODS

if TYPE_CHECKING:
    from airflow_dai_provider.emulator.faults import Fault

DROPS = ("before", "after")
#: Seconds; a date that is further away does not fit into the header.
_CENTURY = 3.15e9
REDIRECTS = (301, 302, 303, 307, 308)
_FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "content-type"})
# What does not change the answer, and so makes sense where there is none.
_SILENT = frozenset({"method", "name", "times", "rate", "delay", "drop", "reset"})


def check_fault(fault: "Fault") -> None:
    """Refuse a fault that could not do what it says.

    :param fault: the fault.
    :raises ValueError: saying what was given and what was expected.
    """
    _check_hits(fault)
    _check_headers(fault)
    _check_answer(fault)
    _check_redirect(fault)
    _check_sending(fault)
    changes = [name for name in said(fault) if name not in _SILENT]
    silent = {"drop": fault.drop} if fault.drop is not None else {"delay": fault.delay} if fault.hangs else {}
    for name, value in silent.items():
        if changes:
            raise wrong_value(name, value, f"no {' or '.join(changes)} beside it: nothing is answered")
    if not (silent or changes or fault.delay):
        raise wrong_value("Fault", "nothing that goes wrong", "a status, body, delay, drop or truncate")


def said(fault: "Fault") -> list[str]:
    """Return the names of the fields that say something else than they do by themselves.

    :param fault: the fault.
    """
    defaults = {field.name: {} if field.default is MISSING else field.default for field in fields(fault)}
    return [name for name, default in defaults.items() if getattr(fault, name) != default]


def check_method(field_name: str, method: str, *, tokens: bool = False) -> None:
    """Refuse the name of a method that the API does not have.

    :param field_name: what the value is called.
    :param method: the name.
    :param tokens: whether the methods that issue tokens are meant too.
    :raises ValueError: listing the names it could be.
    """
    methods = (*METHODS, *TOKEN_METHODS) if tokens else METHODS
    if method not in methods:
        raise wrong_value(field_name, method, f"one of {', '.join(methods)}")


def describe(fault: "Fault") -> str:
    """Say in a few words what goes wrong, such as ``503 retry-after`` or ``reset-before``.

    :param fault: the fault.
    """
    words = {
        _describe_answer(fault): fault.replaces,
        "processed": fault.processed,
        "retry-after": fault.retry_after is not None,
        "retry-after-date": fault.retry_after_date is not None,
        "content-type": fault.content_type is not None,
        "headers": bool(fault.headers),
        "padding": bool(fault.padding),
        "hang": fault.hangs,
        "delay": bool(fault.delay) and not fault.hangs,
        "body-hang": fault.body_delay == math.inf,
        "body-delay": 0 < fault.body_delay < math.inf,
        f"{'reset' if fault.reset else 'drop'}-{fault.drop}": fault.drop is not None,
        "truncate-reset" if fault.reset else "truncate": fault.truncate is not None,
    }
    return " ".join(word for word, holds in words.items() if holds)


def _describe_answer(fault: "Fault") -> str:
    if fault.redirect is not None:
        return f"{fault.status or 302} redirect"
    status = fault.status or HTTP_STATUSES.get(fault.rpc_status or "", 0)
    if fault.rpc_status is not None:
        return f"{status} {fault.rpc_status}"
    if fault.body is not None:
        return f"{status} body"
    return f"{status} html" if fault.html or status not in RPC_STATUS_OF_HTTP else str(status)


def _check_hits(fault: "Fault") -> None:
    if fault.method is not None:
        check_method("method", fault.method, tokens=True)
    if fault.times is not None and fault.times < 1:
        raise wrong_value("times", fault.times, "1 or more, or None for every request from now on")
    if fault.rate is not None and not 0 < fault.rate <= 1:
        raise wrong_value("rate", fault.rate, "a share of the requests, more than 0 and at most 1")


def _check_headers(fault: "Fault") -> None:
    names = {header.lower() for header in fault.headers}
    if framing := sorted(_FRAMING_HEADERS & names):
        raise wrong_value("headers", framing[0], "content_type or truncate for it, the rest is the emulator's")
    texts = [text for pair in fault.headers.items() for text in pair]
    for text in (*texts, fault.redirect or "", fault.content_type or ""):
        if not (text.isascii() and (text.isprintable() or not text)):
            raise wrong_value("headers", text, "printable ASCII")
    both = [fault.retry_after is not None, fault.retry_after_date is not None, "retry-after" in names]
    if sum(both) > 1:
        raise wrong_value("retry_after", "several", "one of retry_after, retry_after_date and the header itself")
    if fault.retry_after is not None and fault.retry_after < 0:
        raise wrong_value("retry_after", fault.retry_after, "a number of seconds, 0 or more")
    if fault.retry_after_date is not None and not abs(fault.retry_after_date) <= _CENTURY:
        raise wrong_value("retry_after_date", fault.retry_after_date, "a number of seconds, less than a century")


def _check_answer(fault: "Fault") -> None:
    status = fault.status
    if fault.rpc_status is not None and fault.rpc_status not in HTTP_STATUSES:
        raise wrong_value("rpc_status", fault.rpc_status, f"one of {', '.join(HTTP_STATUSES)}")
    if status is not None and not 200 <= status <= 599:
        raise wrong_value("status", status, "an HTTP status from 200 to 599")
    if fault.body is not None and (status is None or fault.rpc_status is not None):
        raise wrong_value("body", fault.body, "a status and no rpc_status beside it")
    if fault.html and (status is None or fault.rpc_status is not None or fault.body is not None):
        raise wrong_value("html", True, "a status beside it, and neither rpc_status nor body")
    has_body = fault.body is not None or fault.html or fault.redirect is not None
    if status is not None and status < 400 and not has_body:
        raise wrong_value("status", status, "an error status where there is no body")
    if fault.processed and not fault.replaces:
        raise wrong_value("processed", True, "a status beside it: without one, the request is processed anyway")


def _check_redirect(fault: "Fault") -> None:
    if fault.redirect is None:
        return
    if fault.status not in (None, *REDIRECTS):
        raise wrong_value("status", fault.status, f"one of {', '.join(map(str, REDIRECTS))} with a redirect")
    if fault.html or fault.body is not None or fault.rpc_status is not None:
        raise wrong_value("redirect", fault.redirect, "neither html nor body nor rpc_status beside it")


def _check_sending(fault: "Fault") -> None:
    if fault.drop not in (None, *DROPS):
        raise wrong_value("drop", fault.drop, f"None or one of {', '.join(DROPS)}")
    for name in ("delay", "body_delay"):
        if not getattr(fault, name) >= 0:  # NaN neither
            raise wrong_value(name, getattr(fault, name), "a number of seconds, 0 or more, or math.inf")
    if fault.padding < 0:
        raise wrong_value("padding", fault.padding, "a number of bytes, 0 or more")
    if fault.reset and fault.drop is None and fault.truncate is None:
        raise wrong_value("reset", True, "drop or truncate beside it")
    if fault.truncate is None:
        return
    if fault.truncate < 0:
        raise wrong_value("truncate", fault.truncate, "a number of bytes, 0 or more")
    if fault.body is not None and fault.truncate >= len(fault.body) + fault.padding:
        size = len(fault.body) + fault.padding
        raise wrong_value("truncate", fault.truncate, f"less than the {size} bytes of the body")
