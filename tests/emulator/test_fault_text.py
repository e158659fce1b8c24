"""Faults as text and as JSON."""

import dataclasses
import json
import math
from typing import Any

import pytest

from airflow_dai_provider.emulator import Fault
from airflow_dai_provider.emulator.fault_text import FAULT_HELP, fault_json, parse_fault, read_fault

INF = math.inf

TEXTS: dict[str, Fault] = {
    "operations.get,status=503,times=2": Fault(method="operations.get", status=503, times=2),
    "token,status=500": Fault(method="token", status=500),
    "method=operations.get,status=503": Fault(method="operations.get", status=503),
    "status=503, rate=0.25": Fault(status=503, rate=0.25, times=None),
    "status=503,rate=0.25,times=7": Fault(status=503, rate=0.25, times=7),
    "name=operations/a=b,delay=0.5,times=always": Fault(name="operations/a=b", delay=0.5, times=None),
    "delay=inf": Fault(delay=INF),
    "status=429,retry_after=7": Fault(status=429, retry_after=7),
    "status=429,retry_after_date=-7.5": Fault(status=429, retry_after_date=-7.5),
    "drop=after,reset=true": Fault(drop="after", reset=True),
    "truncate=0,reset=false": Fault(truncate=0),
    "status=200,html=true": Fault(status=200, html=True),
    "status=503,body=": Fault(status=503, body=b""),
    "status=503,body=ü,content_type=text/plain": Fault(status=503, body="ü".encode(), content_type="text/plain"),
    "redirect=https://other.example/?a=b": Fault(redirect="https://other.example/?a=b"),
    "status=503,header.X-One=1,header.X-Two=a=b": Fault(status=503, headers={"X-One": "1", "X-Two": "a=b"}),
    "padding=10,body_delay=inf": Fault(padding=10, body_delay=INF),
    "operations.get,status=404,lasts=10": Fault(method="operations.get", status=404, lasts=10.0, times=None),
    "status=404,lasts=10,times=2": Fault(status=404, lasts=10.0, times=2),
    "status=403,reason=rateLimitExceeded": Fault(status=403, reason="rateLimitExceeded"),
    "operations.list,omitted=operations/a": Fault(method="operations.list", omitted="operations/a"),
    '{"method": "operations.list", "listed": [null, {"a": 1}, [5]]}': Fault(
        method="operations.list", listed=(None, {"a": 1}, [5])
    ),
    '{"rpc_status": "ABORTED", "details": [{"a": 1}]}': Fault(rpc_status="ABORTED", details=[{"a": 1}]),
    "rpc_status=ABORTED,processed=true": Fault(rpc_status="ABORTED", processed=True),
    ' {"status": 503, "body": "a, b", "times": null}': Fault(status=503, body=b"a, b", times=None),
    '{"delay": 1, "status": null, "times": "always"}': Fault(delay=1, times=None),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_read(text: str) -> None:
    assert parse_fault(text) == TEXTS[text]


@pytest.mark.parametrize("text", TEXTS)
def test_written_json_is_read_as_the_same_fault(text: str) -> None:
    fault = TEXTS[text]
    written = json.loads(json.dumps(fault_json(fault), allow_nan=False))
    assert read_fault(written) == fault
    assert "times" in written
    assert "processed" not in written or written["processed"] is True


def test_every_field_can_be_read_and_is_in_the_help() -> None:
    for field in dataclasses.fields(Fault):
        assert field.name in FAULT_HELP
        with pytest.raises(ValueError) as info:
            read_fault({field.name: object()})
        assert "some of the fields" not in str(info.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "method: got ''"),
        ("operations.wait,status=503", "method: got 'operations.wait', expected one of operations.get"),
        ("operations.get", "nothing that goes wrong"),
        ("status=503,always", "fault: got 'always', expected field=value; a value with a comma needs JSON"),
        ("status=503,status=504", "fault: got 'status=504', expected status only once"),
        ("status=503,header.a=1,header.a=2", "expected a only once"),
        ("stauts=503", "fault: got 'stauts', expected some of the fields method, name"),
        ("status=soon", "status: got 'soon', expected an HTTP status from 200 to 599"),
        ("status=503.5", "status: got '503.5'"),
        ("status=503,times=none", "times: got 'none', expected a whole number, 1 or more, or always"),
        ("status=503,rate=often", "rate: got 'often', expected a share of the requests"),
        ("status=503,rate=", "rate: got ''"),
        ("status=503,html=yes", "html: got 'yes', expected true or false"),
        ("drop=", "drop: got '', expected None or one of before, after"),
        ('{"status": }', "expected JSON"),
        ('{"status": 503', "expected JSON"),
    ],
)
def test_invalid_text_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError) as info:
        parse_fault(text)
    assert words in str(info.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "fault: got [], expected an object with some of the fields method, name"),
        ("status=503", "expected an object"),
        ({"status": "503", "stauts": 1}, "fault: got 'stauts'"),
        ({"status": True}, "status: got True, expected an HTTP status"),
        ({"status": 503.0}, "status: got 503.0"),
        ({"status": 503, "times": 1.5}, "times: got 1.5"),
        ({"status": 503, "times": True}, "times: got True"),
        ({"delay": True}, "delay: got True, expected a number"),
        ({"delay": [1]}, "delay: got [1]"),
        ({"delay": 10**400}, "delay: got 1000"),
        ({"html": 1, "status": 503}, "html: got 1"),
        ({"html": [], "status": 503}, "html: got []"),
        ({"body": 1, "status": 503}, "body: got 1, expected a text"),
        ({"method": 1}, "method: got 1, expected one of operations.get"),
        ({"headers": ["a"], "status": 503}, "headers: got ['a'], expected an object"),
        ({"headers": {"a": 1}, "status": 503}, "headers: got {'a': 1}, expected an object with a text for each header"),
    ],
)
def test_invalid_json_is_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError) as info:
        read_fault(value)
    assert words in str(info.value)
