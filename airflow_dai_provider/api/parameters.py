"""The parameters of a user: flags, durations and texts, checked before anything is sent. Pure.

Messages say what was given and what was expected, and guess at the template that has gone wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import timedelta

from airflow_dai_provider.api.names import is_missing_name, missing_hint
from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.api.storable import is_storable_text

#: The longest duration, about 31 years: neither a date nor a sleep holds much more.
MAX_SECONDS = 1e9
#: The longest time for one request: a socket holds 24 days.
MAX_REQUEST_SECONDS = 86_400.0


#: A duration as a user gives it: a number of seconds, or a text such as ``"90s"``, ``"6h"`` or ``"1h 30m"``.
Duration = float | timedelta | str

_NUMBER = r"\d{1,12}(?:\.\d{1,9})?"
_PARTS = re.compile("".join(rf"(?:({_NUMBER})\s*{unit}\s*)?" for unit in "dhms"), re.ASCII)
_SECONDS = (86400.0, 3600.0, 60.0, 1.0)


def read_duration(text: str) -> float | None:
    """Return the seconds of a duration that is a text: days, hours, minutes and seconds; None for any other text."""
    parts = _PARTS.fullmatch(text.strip())
    if not parts or not any(parts.groups()):
        return None
    return sum(float(number) * seconds for number, seconds in zip(parts.groups(), _SECONDS, strict=True) if number)


def check_seconds(parameter: str, value: object, *, zero: bool = False, most: float = MAX_SECONDS) -> float:
    """Return a duration in seconds.

    :param value: a number of seconds, a timedelta, or a text as :func:`read_duration` takes it.
    :param zero: whether 0 is accepted.
    :param most: the longest one, in seconds.
    :raises ValueError: when it is not a positive duration, or too long.
    """
    seconds = value
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str):
        seconds = read_duration(value)
    if (
        isinstance(seconds, int | float)
        and not isinstance(seconds, bool)
        and 0 <= seconds <= sys.float_info.max
        and (seconds or zero)
    ):
        if seconds <= most:
            return float(seconds)
        raise ValueError(f"Invalid {parameter} {short_repr(value)}: expected a number of seconds, at most {most:,.0f}.")
    meant = f"{value}s" if isinstance(value, str) else ""
    hint = f" Did you mean {meant!r}?" if read_duration(meant) else ""
    raise ValueError(
        f"Invalid {parameter} {short_repr(value)}: expected a {'non-negative' if zero else 'positive'} number of "
        f"seconds, a timedelta, or a text such as '90s' or '6h'.{hint}"
    )


def check_flag(parameter: str, value: object) -> bool:
    """Return a flag; nothing else is one, since the text ``"False"`` would count as true.

    :raises ValueError: when it is not True or False.
    """
    if isinstance(value, bool):
        return value
    raise ValueError(f"Invalid {parameter} {short_repr(value)}: expected True or False.")


def check_text(parameter: str, value: object, expected: str) -> str:
    """Return a text, unless a template has rendered it to nothing, or it cannot be stored.

    :param expected: what the text should be.
    :raises ValueError: when it is something else.
    """
    if isinstance(value, str) and is_storable_text(value) and not is_missing_name(value):
        return value
    raise ValueError(f"Invalid {parameter} {short_repr(value)}: expected {expected}.{template_hint(value)}")


def check_optional_text(parameter: str, value: object, expected: str) -> str | None:
    """Return a text as :func:`check_text` does, or None.

    :raises ValueError: when it is something else.
    """
    return None if value is None else check_text(parameter, value, f"{expected}, or None")


def check_connection(gcp_conn_id: object, impersonation_chain: object, api_endpoint: object) -> None:
    """Check the three parameters that say how the service is reached.

    :raises ValueError: for the first invalid one.
    """
    check_text("gcp_conn_id", gcp_conn_id, "the id of a connection")
    accounts = impersonation_chain
    if accounts is None:
        accounts = []
    elif not isinstance(accounts, Sequence) or isinstance(accounts, str | bytes):
        accounts = [accounts]
    for account in accounts:
        check_text("impersonation_chain", account, "an account, or a list of them, or None")
    check_optional_text("api_endpoint", api_endpoint, "'host', 'host:port' or 'https://host:port'")


def template_hint(value: object) -> str:
    """Return a sentence, after a space, on the template that has probably rendered to a value; else an empty text."""
    if is_missing_name(value):
        return missing_hint("value")
    if isinstance(value, int | float):
        return (
            " With render_template_as_native_obj=True a template that renders to a number becomes one; quotes keep the "
            "text: \"'{{ ... }}'\"."
        )
    return ""
