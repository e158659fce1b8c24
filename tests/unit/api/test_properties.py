"""What holds for every name, every answer and every text, looked for with generated ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from google.api_core.exceptions import NotFound
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.creative import InvalidCreativeError, check_creative
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.names import InvalidNameError, check_operation_name
from airflow_dai_provider.api.operation import InvalidOperationError, Operation, OperationState
from airflow_dai_provider.api.parameters import MAX_SECONDS
from airflow_dai_provider.api.redaction import redact_urls, short_repr, url_secrets
from airflow_dai_provider.api.retry import read_retry_after
from airflow_dai_provider.emulator import DaiEmulator

# The machines that run this are slow at times; a deadline would be a timed test.
settings.register_profile("here", deadline=None, derandomize=True, database=None, max_examples=200)
settings.load_profile("here")

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "s1gn4ture"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
#: Objects that look like operations, with what may stand in each field.
operations = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("operations/a") | json_values,
        "done": st.booleans() | json_values,
        "error": st.fixed_dictionaries({}, optional={"code": st.integers(0, 16) | json_values, "message": json_values}),
        "response": json_values,
        "metadata": st.fixed_dictionaries(
            {},
            optional={
                "@type": st.just("x/google.ads.dai.v1.CreateCreativeOperationMetadata") | json_values,
                "creativeUrl": st.just(f"https://h/ad.mp4?sig={SECRET}") | json_values,
                "createTime": st.just("2026-11-22T12:00:00.5Z") | json_values,
                "youtubeStatus": json_values,
            },
        )
        | json_values,
    },
)
#: Names out of the characters that matter, besides any text.
names = st.text(alphabet="operations/.:%?#\\ab \n\0é+=~@", max_size=30).map("operations/{}".format) | st.text()


def attempt(call: Callable[[], Any], kind: type[Exception]) -> tuple[Any, Any]:
    """Return what a call returns, and the error of this kind that it raises instead."""
    try:
        return call(), None
    except kind as error:
        return None, error


@given(names)
def test_a_name_is_refused_or_stays_where_it_belongs(name: str) -> None:
    _, refusal = attempt(lambda: check_operation_name(name), InvalidNameError)
    if refusal:
        assert len(str(refusal)) < 1000
        return
    for request, suffix in ((rest.get_operation(name), ""), (rest.cancel_operation(name), ":cancel")):
        parts = urlsplit(f"https://host{request.path}")
        assert (parts.netloc, parts.query, parts.fragment) == ("host", "", "")
        assert unquote(parts.path) == f"/v1/{name}{suffix}"
        assert parts.path.startswith("/v1/operations/")
        assert not {"", ".", ".."} & set(parts.path.split("/")[1:])
        assert request.path.isascii()
        assert request.path.isprintable()


@pytest.fixture(scope="module")
def server() -> Iterator[DaiEmulator]:
    with DaiEmulator() as emulator:
        yield emulator


@given(name=names)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_server_sees_the_name_that_was_given(name: str, server: DaiEmulator, monkeypatch: Any) -> None:
    from airflow_dai_provider.hooks.dai import DaiHook

    monkeypatch.setenv("DAI_EMULATOR_HOST", server.host)
    server.forget_requests()
    with DaiHook() as hook:
        try:
            hook.get_operation(name)
        except InvalidNameError:
            assert server.requests == []
            return
        except NotFound:
            pass
    (request,) = server.requests
    assert (request.method, request.name) == ("operations.get", name)


@given(operations | json_values)
def test_a_response_is_an_operation_or_an_error(answer: Any) -> None:
    operation, refusal = attempt(lambda: Operation.from_api(answer), InvalidOperationError)
    if refusal:
        assert SECRET not in str(refusal)
        assert len(str(refusal)) < 1000
        return
    as_json = operation.to_dict()
    assert json.loads(json.dumps(as_json)) == as_json
    assert Operation.from_dict(as_json).to_dict() == as_json
    assert SECRET not in json.dumps(as_json) + str(operation) + repr(operation)
    error, done = answer.get("error"), answer.get("done") is True
    assert operation.done is done
    assert (operation.state is OperationState.CANCELLED) == (done and error is not None and error.get("code") == 1)
    assert (operation.state is OperationState.SUCCEEDED) == (done and error is None)


bodies = st.binary(max_size=200) | (operations | json_values).map(lambda value: json.dumps(value).encode())
error_bodies = st.fixed_dictionaries(
    {},
    optional={
        "code": json_values,
        "message": st.just(f"see https://h/ad.mp4?sig={SECRET}") | json_values,
        "status": st.sampled_from(sorted(Code)) | json_values,
        "details": json_values,
    },
).map(lambda error: json.dumps({"error": error}).encode())


@given(st.integers(200, 599), bodies | error_bodies, st.dictionaries(st.just("retry-after"), st.text(), max_size=1))
def test_every_response_is_read_or_refused(status: int, body: bytes, headers: dict[str, str]) -> None:
    for request in (rest.get_operation("operations/a"), rest.cancel_operation("operations/a"), rest.list_operations()):
        answer = rest.Response(status, headers, body)
        _, refusal = attempt(partial(rest.read_response, request, answer, NOW), ServiceError)
        if refusal:
            assert refusal.rpc_code in set(Code)
            assert len(str(refusal)) < 1500
            assert SECRET not in str(refusal)
            assert refusal.retry_after is None or 0 <= refusal.retry_after <= MAX_SECONDS
        else:
            assert 200 <= status < 300


@given(error_bodies, st.integers(400, 599))
def test_the_status_of_the_error_decides_and_never_its_text(body: bytes, status: int) -> None:
    told = json.loads(body)["error"].get("status")
    with pytest.raises(ServiceError) as caught:
        rest.read_response(rest.get_operation("operations/a"), rest.Response(status, {}, body), NOW)
    if isinstance(told, str) and told in set(Code):
        assert caught.value.rpc_code == told


@given(st.text() | st.integers().map(str))
def test_retry_after_is_never_negative(value: str) -> None:
    seconds = read_retry_after(value, NOW)
    assert seconds is None or seconds >= 0


@given(st.text(), st.text(alphabet=st.characters(exclude_characters=" /?#@\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0")))
def test_the_secrets_of_urls_are_not_shown(text: str, host: str) -> None:
    for url in (f"https://{host}/ad.mp4?sig={SECRET}", f"https://user:{SECRET}@h/x", f"https://h/#{SECRET}"):
        shown = f"{text} {url}"
        assert SECRET not in redact_urls(shown)
        assert SECRET not in short_repr(shown)
        assert any(SECRET in secret for secret in url_secrets({"a": [shown]}))


@given(json_values, json_values)
def test_a_creative_is_refused_or_can_be_sent(creative: Any, info: Any) -> None:
    _, refusal = attempt(lambda: check_creative(creative, info), InvalidCreativeError)
    if refusal:
        assert str(refusal).startswith("Invalid creative: ")
    else:
        assert json.dumps(rest.create_creative(creative, info).body)
