"""Flags, durations and texts of a user: what passes, and what the message says of the rest."""

import socket
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_dai_provider.api.parameters import (
    MAX_REQUEST_SECONDS,
    MAX_SECONDS,
    check_connection,
    check_flag,
    check_optional_text,
    check_seconds,
    check_text,
)

PUSHED_NOTHING = "Most likely the upstream task has pushed no value: has it run, and does it return or push one\\?$"


@pytest.mark.parametrize(
    "value", [None, 0, 1, "True", "False", "true", "", "None", "{{ params.x }}", [], 0.0], ids=repr
)
def test_only_true_and_false_are_flags(value: object) -> None:
    assert check_flag("x", True) is True
    assert check_flag("x", False) is False
    with pytest.raises(ValueError, match=r"^Invalid x .*: expected True or False\.$"):
        check_flag("x", value)


@pytest.mark.parametrize("value", [1e14, 1.1e9, 10**30, timedelta.max.total_seconds()], ids=repr)
def test_a_duration_that_no_clock_holds_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"^Invalid x .*: expected a number of seconds, at most 1,000,000,000\.$"):
        check_seconds("x", value)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("90s", 90),
        ("6h", 21600),
        ("15m", 900),
        ("2d", 172800),
        ("1h30m", 5400),
        ("1d 2h 3m 4.5s", 93784.5),
        (" 1.5 h ", 5400),
        (timedelta(minutes=2), 120),
        (5, 5),
    ],
    ids=repr,
)
def test_a_duration_is_a_number_a_timedelta_or_a_text(given: Any, seconds: float) -> None:
    assert check_seconds("x", given) == seconds
    assert type(check_seconds("x", given)) is float


@pytest.mark.parametrize(
    "given", ["5", "", "h", "6 hours", "30m1h", "1h1h", "-5s", "1e3s", "0s", "s", "\u0665s", "{{ x }}", "9" * 13 + "s"]
)
def test_any_other_text_is_no_duration(given: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"^Invalid x .*: expected a positive .* or a text such as '90s' or '6h'\.( Did you mean '5s'\?)?$",
    ):
        check_seconds("x", given)


def test_the_longest_durations_can_be_used() -> None:
    assert datetime.now(UTC) + timedelta(seconds=2 * MAX_SECONDS)
    assert time.gmtime(time.time() + 2 * MAX_SECONDS)
    with socket.socket() as one:
        one.settimeout(MAX_REQUEST_SECONDS)


@pytest.mark.parametrize("value", ["", " ", "None", " None ", "\t"], ids=repr)
def test_a_text_that_has_rendered_to_nothing_gets_the_hint(value: str) -> None:
    for check in (check_text, check_optional_text):
        with pytest.raises(ValueError, match=f"^Invalid x .*: expected a y.* {PUSHED_NOTHING}"):
            check("x", value, "a y")


def test_a_number_in_place_of_a_text_gets_the_hint() -> None:
    with pytest.raises(ValueError, match=r"Invalid x 7: expected a y\. With render_template_as_native_obj=True"):
        check_text("x", 7, "a y")


@pytest.mark.parametrize(
    ("given", "parameter"),
    [
        (("", None, None), "gcp_conn_id"),
        ((None, None, None), "gcp_conn_id"),
        (("None", None, None), "gcp_conn_id"),
        (("a\0", None, None), "gcp_conn_id"),
        ((3, None, None), "gcp_conn_id"),
        (("c", "None", None), "impersonation_chain"),
        (("c", ["a@b", ""], None), "impersonation_chain"),
        (("c", ["a@b", "\ud83d"], None), "impersonation_chain"),
        (("c", 3, None), "impersonation_chain"),
        (("c", [None], None), "impersonation_chain"),
        (("c", None, "None"), "api_endpoint"),
        (("c", None, ""), "api_endpoint"),
        (("c", None, "host\0"), "api_endpoint"),
        (("c", None, 8080), "api_endpoint"),
    ],
    ids=repr,
)
def test_an_invalid_connection_is_refused(given: tuple[Any, Any, Any], parameter: str) -> None:
    with pytest.raises(ValueError, match=f"^Invalid {parameter} "):
        check_connection(*given)


@pytest.mark.parametrize(
    "given", [("c", None, None), ("c", "a@b", "h:1"), ("c", ("a@b", "c@d"), None), ("c", [], " h\n")]
)
def test_a_valid_connection_passes(given: tuple[Any, Any, Any]) -> None:
    check_connection(*given)


@pytest.mark.parametrize(("given", "meant"), [("600", "600s"), ("1h 30", "1h 30s")])
def test_the_text_of_a_number_gets_the_unit_that_was_meant(given: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f" Did you mean '{meant}'\\?$"):
        check_seconds("x", given)
