"""The asynchronous hook over real HTTP: the same answers as the synchronous one, and the wait."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.api_core import exceptions

from airflow_dai_provider.api.names import InvalidNameError
from airflow_dai_provider.api.operation import Operation, OperationState
from airflow_dai_provider.api.polling import MAX_OUTAGE, WaitTimeoutError
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.event_loop import run
from tests.support.log import Log
from tests.support.tiny_server import Exchange, TinyServer, refusing_port

pytestmark = pytest.mark.usefixtures("few_authorities", "fake_time")

NAME = "operations/ingest"


@pytest.fixture
def emulator(clock: Clock) -> Iterator[DaiEmulator]:
    with DaiEmulator(ingest_seconds=1e9, clock=clock) as running:
        yield running


def look(kind: str, method: str, name: str, **arguments: Any) -> Operation | None:
    """Call a method of one of the two hooks, from opening to closing."""
    if kind == "sync":
        with DaiHook(**arguments) as hook:
            result: Operation | None = getattr(hook, method)(name)
            return result

    async def main() -> Operation | None:
        result: Operation | None = await getattr(DaiAsyncHook(**arguments), method)(name)
        return result

    return run(main())


both_hooks = pytest.mark.parametrize("kind", ["sync", "async"])


# Answers: one table for both hooks


@dataclass(frozen=True)
class Row:
    """
    What goes wrong, and what both hooks are to make of it.

    :param raises: the class, exactly; None for a good end.
    :param requests: how many requests the service sees where one repeat is allowed.
    :param slept: what is waited between them.
    :param cancels: how many cancel requests the service has acted upon.
    """

    fault: dict[str, Any]
    raises: type[Exception] | None
    requests: int
    slept: list[float] = field(default_factory=list)
    cancels: int = 0
    words: str | None = None
    #: aiohttp itself sends a GET again, once, when the connection breaks before any answer, and cannot be told not to.
    aiohttp_gets: int = 1


ONCE: dict[str, Any] = {"requests": 1}
TWICE: dict[str, Any] = {"requests": 2, "slept": [0.5]}

TABLE = {
    "400": Row({"status": 400}, exceptions.InvalidArgument, **ONCE),
    "401": Row({"status": 401}, exceptions.Unauthenticated, **ONCE),
    "403": Row({"status": 403}, exceptions.PermissionDenied, **ONCE),
    "404 of the API": Row({"status": 404}, exceptions.NotFound, **ONCE),
    "404 of a front end": Row({"status": 404, "body": b"<html>404</html>"}, exceptions.MethodNotImplemented, **ONCE),
    "405 of a front end": Row({"status": 405}, exceptions.FailedPrecondition, **ONCE),
    "408": Row({"status": 408}, exceptions.DeadlineExceeded, **TWICE),
    "409": Row({"status": 409, "rpc_status": "ABORTED"}, exceptions.Aborted, **TWICE),
    "412": Row({"status": 412}, exceptions.FailedPrecondition, **ONCE),
    "429": Row({"status": 429}, exceptions.ResourceExhausted, **TWICE),
    "429 without JSON": Row({"status": 429, "body": b"slow down"}, exceptions.ResourceExhausted, **TWICE),
    "500": Row({"status": 500, "rpc_status": "INTERNAL"}, exceptions.InternalServerError, **TWICE),
    "500 with data loss": Row({"status": 500, "rpc_status": "DATA_LOSS"}, exceptions.DataLoss, **ONCE),
    "501": Row({"status": 501}, exceptions.MethodNotImplemented, **ONCE),
    "502 without JSON": Row({"status": 502}, exceptions.ServiceUnavailable, **TWICE),
    "503": Row({"status": 503}, exceptions.ServiceUnavailable, **TWICE),
    "504": Row({"status": 504}, exceptions.DeadlineExceeded, **TWICE),
    "rpc code over status": Row(
        {"status": 503, "rpc_status": "UNIMPLEMENTED"}, exceptions.MethodNotImplemented, **ONCE
    ),
    "failed precondition": Row({"rpc_status": "FAILED_PRECONDITION"}, exceptions.FailedPrecondition, **ONCE),
    "retry after": Row({"status": 503, "headers": {"Retry-After": "7"}, "times": 1}, None, 2, [7.0], 1),
    "retry after too long": Row({"status": 503, "headers": {"Retry-After": "60"}}, exceptions.ServiceUnavailable, 1),
    "one hiccup": Row({"status": 503, "times": 1}, None, 2, [0.5], 1),
    "204": Row({"status": 204, "body": b""}, None, 1),
    "not JSON": Row({"status": 200, "body": b"<html>OK</html>"}, exceptions.Unknown, **TWICE),
    "another object": Row({"status": 200, "body": b'{"a": 1}'}, exceptions.Unknown, **TWICE),
    "no object": Row({"status": 200, "body": b"[]"}, exceptions.Unknown, **TWICE),
    "5 MB": Row(
        {"status": 200, "body": b"{" + b" " * 5_000_000 + b"}"}, exceptions.Unknown, **TWICE, words="larger than"
    ),
    "5 MB of an error": Row({"status": 503, "body": b" " * 5_000_000}, exceptions.ServiceUnavailable, **TWICE),
    "JSON as text/plain": Row({"content_type": "text/plain"}, None, 1, cancels=1),
    "broken off": Row({"truncate": 1}, exceptions.ServiceUnavailable, **TWICE, cancels=2),
    "broken off at the body": Row({"truncate": 0}, exceptions.ServiceUnavailable, **TWICE, cancels=2),
    "an error broken off": Row({"status": 403, "truncate": 5}, exceptions.ServiceUnavailable, **TWICE),
    "dropped before": Row({"drop": "before"}, exceptions.ServiceUnavailable, **TWICE, aiohttp_gets=2),
    "dropped after": Row({"drop": "after"}, exceptions.ServiceUnavailable, **TWICE, cancels=2, aiohttp_gets=2),
    "too slow": Row({"delay": 1.5}, exceptions.DeadlineExceeded, **TWICE, cancels=2),
}
#: What means something else for get, which expects an operation, than for cancel, whose answer does not matter.
OF_GET = {
    "empty 200": Row({"status": 200, "body": b""}, exceptions.Unknown, **TWICE),
}
OF_CANCEL = {
    "empty 200": Row({"status": 200, "body": b""}, None, 1),
}
ROWS = [
    pytest.param(method, row, id=f"{method.partition('_')[0]}-{label}")
    for method, rows in {"get_operation": {**TABLE, **OF_GET}, "cancel_operation": {**TABLE, **OF_CANCEL}}.items()
    for label, row in rows.items()
    if not (method == "get_operation" and label == "204")
]


@both_hooks
@pytest.mark.parametrize(("method", "row"), ROWS)
def test_both_hooks_make_the_same_of_an_response(
    emulator: DaiEmulator, connect: Connect, slept: list[float], kind: str, method: str, row: Row
) -> None:
    connect(is_anonymous=True, num_retries=1)
    name = emulator.start_ingest()
    emulator.inject(Fault(**{"times": None, **row.fault}))
    timeout = 0.6 if "delay" in row.fault else 5.0
    arguments = {"api_endpoint": emulator.endpoint, "timeout": timeout}

    if row.raises:
        with pytest.raises(row.raises, match=row.words):
            look(kind, method, name, **arguments)
    else:
        look(kind, method, name, **arguments)

    each = row.aiohttp_gets if (kind, method) == ("async", "get_operation") else 1
    assert len(emulator.requests) == each * row.requests
    assert slept == row.slept
    assert emulator.cancel_requested(name) == (row.cancels if method == "cancel_operation" else 0)


@both_hooks
@pytest.mark.parametrize("method", ["get_operation", "cancel_operation"])
@pytest.mark.parametrize("status", [302, 308])
def test_a_redirect_is_not_followed(
    emulator: DaiEmulator, connect: Connect, kind: str, method: str, status: int
) -> None:
    connect(is_anonymous=True)
    with TinyServer(lambda exchange: exchange.answer(200, {"name": NAME})) as elsewhere:
        location = {"Location": f"{elsewhere.endpoint}/v1/{NAME}"}
        emulator.inject(Fault(status=status, body=b"", headers=location, times=None))

        with pytest.raises(exceptions.FailedPrecondition, match="a redirect, which is not followed"):
            look(kind, method, NAME, api_endpoint=emulator.endpoint)

    assert elsewhere.requests == []
    assert len(emulator.requests) == 1


@both_hooks
def test_a_refused_connection_is_retried(connect: Connect, slept: list[float], kind: str) -> None:
    connect(is_anonymous=True, num_retries=3)
    with refusing_port() as port, pytest.raises(exceptions.ServiceUnavailable, match="got no response") as caught:
        look(kind, "get_operation", NAME, api_endpoint=f"http://127.0.0.1:{port}")
    assert f"operations.get of {NAME}" in str(caught.value)
    assert slept == [0.5, 1.0, 2.0]


@both_hooks
@pytest.mark.parametrize(("num_retries", "requests"), [(0, 1), (-1, 1), (2, 3), (None, 6)])
def test_the_connection_says_how_often_a_call_is_retried(
    emulator: DaiEmulator, connect: Connect, kind: str, num_retries: int | None, requests: int
) -> None:
    connect(is_anonymous=True, **({} if num_retries is None else {"num_retries": num_retries}))
    emulator.inject(Fault(status=503, times=None))
    with pytest.raises(exceptions.ServiceUnavailable):
        look(kind, "get_operation", NAME, api_endpoint=emulator.endpoint)
    assert len(emulator.requests) == requests


@both_hooks
@pytest.mark.parametrize(("retry_timeout", "requests"), [(0, 1), (4, 4), (60, 6)])
def test_a_call_is_not_retried_forever(
    emulator: DaiEmulator, connect: Connect, kind: str, retry_timeout: float, requests: int
) -> None:
    connect(is_anonymous=True)
    emulator.inject(Fault(status=503, times=None))
    with pytest.raises(exceptions.ServiceUnavailable):
        look(kind, "get_operation", NAME, api_endpoint=emulator.endpoint, retry_timeout=retry_timeout)
    assert len(emulator.requests) == requests


# Requests


@both_hooks
@pytest.mark.parametrize(
    "name",
    [
        "operations/a/b/c",
        "operations/YWJj+ZGVm/Z2g=",
        "operations/a+b=c~d:e@f%g!$&'()*,;[]",
        "operations/a%2Fb/100%25/%2e%2e/a",
        "operations/a:cancel",
        "operations/рекламаé/広告-😀",
        "operations/<a>\"'{}|^`",
    ],
)
def test_a_name_reaches_the_service_unchanged(emulator: DaiEmulator, connect: Connect, kind: str, name: str) -> None:
    connect(is_anonymous=True)
    emulator.start_ingest(name)

    operation = look(kind, "get_operation", name, api_endpoint=emulator.endpoint)
    look(kind, "cancel_operation", name, api_endpoint=emulator.endpoint)

    assert operation is not None
    assert operation.name == name
    assert emulator.cancel_requested(name) == 1
    assert [request.name for request in emulator.requests] == [name, name]


def test_both_hooks_send_the_same_path(emulator: DaiEmulator, connect: Connect) -> None:
    connect(is_anonymous=True)
    name = emulator.start_ingest("operations/a+b=c~d:e@f%g/é!$&'()*,;[]|")
    for kind in ("sync", "async"):
        look(kind, "get_operation", name, api_endpoint=emulator.endpoint)
        look(kind, "cancel_operation", name, api_endpoint=emulator.endpoint)

    get, cancel, async_get, async_cancel = [request.raw_path for request in emulator.requests]
    assert (async_get, async_cancel) == (get, cancel)
    assert get == "/v1/operations/a%2Bb%3Dc~d%3Ae%40f%25g/%C3%A9%21%24%26%27%28%29%2A%2C%3B%5B%5D%7C"


@pytest.mark.parametrize("name", ["", "None", "a", "operations/", "operations/../a", "operations/a?b", None, 7])
@pytest.mark.parametrize("method", ["get_operation", "cancel_operation", "wait_for_operation"])
def test_a_bad_name_is_refused_unsent(emulator: DaiEmulator, connect: Connect, method: str, name: Any) -> None:
    connect(is_anonymous=True)
    with pytest.raises(InvalidNameError, match="Invalid operation name"):
        look("async", method, name, api_endpoint=emulator.endpoint)
    assert emulator.requests == []


def test_the_headers_name_the_client_as_those_of_the_synchronous_hook(emulator: DaiEmulator, connect: Connect) -> None:
    connect(is_anonymous=True)
    name = emulator.start_ingest()
    for kind in ("sync", "async"):
        look(kind, "get_operation", name, api_endpoint=emulator.endpoint)

    of_sync, of_async = [request.headers for request in emulator.requests]
    library = re.compile(r"(requests|aiohttp)/[\d.]+$|rest/[\d.]+")
    for header in ("user-agent", "x-goog-api-client"):
        assert library.sub("", of_async[header]) == library.sub("", of_sync[header])
    assert re.search(r"airflow-dai-provider/\S+ apache-airflow/\S+ aiohttp/[\d.]+$", of_async["user-agent"])
    assert "authorization" not in of_async
    assert "cookie" not in of_async


def test_cancel_has_an_empty_body_and_no_content_type(emulator: DaiEmulator, connect: Connect) -> None:
    connect(is_anonymous=True)
    name = emulator.start_ingest()
    for kind in ("sync", "async"):
        look(kind, "cancel_operation", name, api_endpoint=emulator.endpoint)

    for request in emulator.requests:
        assert (request.http_method, request.raw_path, request.body) == ("POST", f"/v1/{name}:cancel", b"")
        assert request.headers.get("content-length") == "0"
        assert "transfer-encoding" not in request.headers
        assert "content-type" not in request.headers


def test_cookies_are_not_kept(emulator: DaiEmulator, connect: Connect) -> None:
    connect(is_anonymous=True)
    name = emulator.start_ingest()
    emulator.inject(Fault(headers={"Set-Cookie": "a=b; Path=/"}))

    async def main() -> None:
        # By name, since no jar keeps cookies of a bare address.
        async with DaiAsyncHook(api_endpoint=emulator.endpoint.replace("127.0.0.1", "localhost")) as hook:
            await hook.get_operation(name)
            await hook.get_operation(name)

    run(main())
    assert [request.headers.get("cookie") for request in emulator.requests] == [None, None]


@both_hooks
def test_a_response_without_an_end_is_not_read_to_its_end(connect: Connect, kind: str) -> None:
    connect(is_anonymous=True, num_retries=0)
    read = threading.Event()

    def respond(exchange: Exchange) -> None:
        exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + b" " * 5_000_000)
        read.wait(5)

    with TinyServer(respond) as server:
        with pytest.raises(exceptions.Unknown, match="larger than"):
            look(kind, "get_operation", NAME, api_endpoint=server.endpoint)
        read.set()


@pytest.mark.parametrize("source", ["argument", "variable", "extra"])
def test_the_endpoint_is_the_one_that_the_synchronous_hook_finds(
    emulator: DaiEmulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    name = emulator.start_ingest()
    arguments = {}
    if source == "variable":
        monkeypatch.setenv("DAI_EMULATOR_HOST", emulator.host)
        monkeypatch.delenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", raising=False)
    elif source == "extra":
        connect(is_anonymous=True, dai_api_endpoint=emulator.endpoint)
    else:
        connect(is_anonymous=True, dai_api_endpoint="http://127.0.0.1:1")
        arguments = {"api_endpoint": emulator.endpoint}

    assert look("async", "get_operation", name, **arguments) is not None
    assert len(emulator.requests) == 1


@pytest.mark.parametrize("arguments", [{"timeout": 0}, {"retry_timeout": -1}, {"api_endpoint": "http://a/b"}])
def test_bad_arguments_are_refused(connect: Connect, arguments: dict[str, Any]) -> None:
    connect(is_anonymous=True)
    with pytest.raises(ValueError, match="Invalid"):
        look("async", "get_operation", NAME, **arguments)


# The session of one hook


def test_a_hook_that_is_held_open_uses_one_connection(emulator: DaiEmulator, connect: Connect) -> None:
    connect(is_anonymous=True)
    name = emulator.start_ingest()

    async def main() -> None:
        async with DaiAsyncHook(api_endpoint=emulator.endpoint) as hook:
            for _ in range(10):
                await hook.get_operation(name)
            await hook.cancel_operation(name)
            assert (await hook.get_operation(name)).state is OperationState.CANCELLED

    run(main())
    assert emulator.connections == 1


def test_a_hook_that_is_not_held_open_leaves_nothing_open(emulator: DaiEmulator, connect: Connect) -> None:
    connect(is_anonymous=True)
    name = emulator.start_ingest()

    async def main() -> None:
        hook = DaiAsyncHook(api_endpoint=emulator.endpoint)
        await hook.get_operation(name)
        await hook.get_operation(name)
        async with hook:
            await hook.get_operation(name)
        await hook.get_operation(name)

    run(main())
    assert emulator.connections == 4


def test_the_connection_is_looked_up_once(
    emulator: DaiEmulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(is_anonymous=True)
    name = emulator.start_ingest()

    async def main() -> None:
        hook = DaiAsyncHook(api_endpoint=emulator.endpoint)
        await hook.get_operation(name)
        monkeypatch.delenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT")
        await hook.get_operation(name)
        with await hook.synchronous_hook() as synchronous:
            synchronous.get_operation(name)

    run(main())
    assert len(emulator.requests) == 3


# The wait


async def wait(emulator: DaiEmulator, name: str, **arguments: Any) -> Operation:
    return await DaiAsyncHook(api_endpoint=emulator.endpoint).wait_for_operation(name, **arguments)


def test_polls_are_quick_at_first(
    emulator: DaiEmulator, connect: Connect, clock: Clock, slept: list[float], log: Log
) -> None:
    connect(is_anonymous=True)
    started = clock.now
    name = emulator.start_ingest(seconds=160)

    operation = run(wait(emulator, name))

    assert operation.state is OperationState.SUCCEEDED
    looks = [request.time - started for request in emulator.requests]
    assert looks == pytest.approx([0, 1, 2.5, 4.75, 8.125, 13.1875, 20.78125, 32.171875, 49.2578125, 74.88671875,
                                   104.88671875, 134.88671875, 164.88671875])  # fmt: skip
    assert [later - earlier for earlier, later in zip(looks, looks[1:], strict=False)] == pytest.approx(slept)
    # A triggerer writes for thousands of waits: what all of these looks say alike is said once.
    assert sum("next poll in" in line for line in log.ours) == 1
    assert emulator.connections == 1


def test_polls_never_come_later_than_the_interval_asked_for(
    emulator: DaiEmulator, connect: Connect, slept: list[float]
) -> None:
    connect(is_anonymous=True)
    run(wait(emulator, emulator.start_ingest(seconds=20), poll_interval=2))
    assert slept == pytest.approx([1, 1.5] + [2] * 9)


def test_both_hooks_poll_at_the_same_times(emulator: DaiEmulator, connect: Connect, slept: list[float]) -> None:
    connect(is_anonymous=True)
    run(wait(emulator, emulator.start_ingest(seconds=500)))
    of_async = list(slept)
    slept.clear()
    with DaiHook(api_endpoint=emulator.endpoint) as hook:
        hook.wait_for_operation(emulator.start_ingest(seconds=500))
    assert slept == pytest.approx(of_async)


def test_a_wait_times_out(emulator: DaiEmulator, connect: Connect, slept: list[float]) -> None:
    connect(is_anonymous=True)
    name = emulator.start_ingest()
    with pytest.raises(WaitTimeoutError, match="has not finished within 10 s; the last poll found: .* RUNNING"):
        run(wait(emulator, name, timeout=10))
    assert sum(slept) == pytest.approx(10)
    assert emulator.cancel_requested(name) == 0


def test_the_timeout_counts_from_the_start_of_the_wait(
    emulator: DaiEmulator, connect: Connect, slept: list[float], clock: Clock
) -> None:
    connect(is_anonymous=True)
    with pytest.raises(WaitTimeoutError, match="within 100 s"):
        run(wait(emulator, emulator.start_ingest(), timeout=100, started=clock.now - 90))
    assert slept == pytest.approx([10])
    slept.clear()
    with pytest.raises(WaitTimeoutError):
        run(wait(emulator, emulator.start_ingest(), timeout=100, started=clock.now - 200))
    assert slept == []
    assert len(emulator.requests) == 3, "One last look is made when the time is up."


def test_the_timeout_counts_from_now_without_a_start(
    emulator: DaiEmulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(is_anonymous=True)
    name = emulator.start_ingest(seconds=0)
    monkeypatch.undo()
    assert abs(DaiAsyncHook._clock() - time.time()) < 5
    monkeypatch.setenv("DAI_EMULATOR_HOST", emulator.host)
    assert run(DaiAsyncHook().wait_for_operation(name, timeout=5)).done


def test_a_short_outage_does_not_end_the_wait(
    emulator: DaiEmulator, connect: Connect, slept: list[float], log: Log
) -> None:
    connect(is_anonymous=True, num_retries=0)
    name = emulator.start_ingest(seconds=200)
    for fault in ({"status": 503}, {"truncate": 1}, {"status": 200, "body": b"<html>"}, {"status": 500}):
        emulator.inject(Fault(**fault, times=2))  # type: ignore[arg-type]

    assert run(wait(emulator, name)).state is OperationState.SUCCEEDED
    assert emulator.cancel_requested(name) == 0
    codes = ("UNAVAILABLE", "HTTP 200", "INTERNAL")
    assert [code for line in log.lines("Could not poll") for code in codes if code in line][0] == codes[0]
    assert len(log.lines("Could not poll")) == len(codes)
    assert len(log.lines(f"The service responded again for {name} after ")) == 1
    assert all(seconds >= 1 for seconds in slept), "A look that failed is followed by a wait."


def test_a_long_outage_ends_the_wait(emulator: DaiEmulator, connect: Connect, clock: Clock) -> None:
    connect(is_anonymous=True, num_retries=0)
    name, began = emulator.start_ingest(), clock.now
    emulator.inject(Fault(status=503, times=None))
    with pytest.raises(exceptions.ServiceUnavailable):
        run(wait(emulator, name))
    assert MAX_OUTAGE <= clock.now - began < MAX_OUTAGE + 31
    assert emulator.cancel_requested(name) == 0


def test_an_outage_without_a_limit_is_waited_out(emulator: DaiEmulator, connect: Connect, clock: Clock) -> None:
    connect(is_anonymous=True, num_retries=0)
    name, began = emulator.start_ingest(seconds=10), clock.now
    emulator.inject(Fault(status=503, times=100))
    assert run(wait(emulator, name, max_outage=None)).done
    assert clock.now - began > 2 * MAX_OUTAGE


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"status": 403}, exceptions.PermissionDenied),
        ({"rpc_status": "UNIMPLEMENTED"}, exceptions.MethodNotImplemented),
        ({"status": 404, "body": b"<html>"}, exceptions.MethodNotImplemented),
    ],
)
def test_a_permanent_error_ends_it_at_once(
    emulator: DaiEmulator, connect: Connect, slept: list[float], fault: Any, error: type[Exception]
) -> None:
    connect(is_anonymous=True)
    emulator.inject(Fault(**fault, times=None))
    with pytest.raises(error):
        run(wait(emulator, NAME))
    assert (len(emulator.requests), slept) == (1, [])


def test_the_service_says_when_to_poll_again(emulator: DaiEmulator, connect: Connect, slept: list[float]) -> None:
    connect(is_anonymous=True)
    name = emulator.start_ingest(seconds=100)
    emulator.inject(Fault(status=503, headers={"Retry-After": "120"}))
    assert run(wait(emulator, name)).done
    assert slept == [120]


@pytest.mark.parametrize("arguments", [{"poll_interval": 0}, {"timeout": -1}, {"max_outage": 0}])
def test_invalid_durations_are_refused(emulator: DaiEmulator, connect: Connect, arguments: dict[str, float]) -> None:
    connect(is_anonymous=True)
    with pytest.raises(ValueError, match=f"Invalid {next(iter(arguments))}"):
        run(wait(emulator, NAME, **arguments))
    assert emulator.requests == []


@pytest.mark.parametrize("fault", [None, Fault(delay=0.3)], ids=["sleeping", "asking"])
def test_a_cancelled_wait_leaves_nothing_open(
    emulator: DaiEmulator, connect: Connect, monkeypatch: pytest.MonkeyPatch, fault: Fault | None
) -> None:
    connect(is_anonymous=True)
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(asyncio.sleep))
    name = emulator.start_ingest()
    if fault:
        emulator.inject(fault)

    async def main() -> None:
        waiting = asyncio.create_task(wait(emulator, name))
        while not emulator.requests:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(main())
    assert emulator.cancel_requested(name) == 0


def test_an_error_of_get_names_the_request_and_hides_the_secrets_of_urls(connect: Connect) -> None:
    connect(is_anonymous=True, num_retries=0)
    words = {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "no: https://a.b/c?sig=s1gn4ture"}}
    with (
        TinyServer(lambda exchange: exchange.answer(403, json.dumps(words).encode())) as server,
        pytest.raises(exceptions.PermissionDenied, match=f"operations.get of {NAME} returned 403") as caught,
    ):
        look("async", "get_operation", NAME, api_endpoint=server.endpoint)
    assert "s1gn4ture" not in str(caught.value)
