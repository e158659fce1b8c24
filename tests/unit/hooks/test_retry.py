"""The retries of DaiHook."""

from __future__ import annotations

from functools import partial

import pytest
from google.api_core import exceptions

from airflow_dai_provider.api.errors import ServiceError
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from tests.support.authentication import FORMS, Form
from tests.support.connections import Connect
from tests.support.emulators import methods
from tests.support.event_loop import run
from tests.support.hooks import CALLS, MakeHook
from tests.support.log import Log
from tests.support.payloads import NAME, creative


def test_a_503_is_retried_and_logged(hook: DaiHook, emulator: DaiEmulator, slept: list[float], log: Log) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=503, times=2))

    hook.cancel_operation(name)

    assert methods(emulator) == ["operations.cancel"] * 3
    assert emulator.cancel_requested(name) == 1
    assert slept == [0.5, 1.0]
    assert [line.split(": ")[0] for line in log.lines("; attempt")] == [
        f"operations.cancel of {name} returned 503 UNAVAILABLE"
    ] * 2
    assert [line.split("; ")[-1] for line in log.lines("; attempt")] == [
        "attempt 1, next in 0.5 s",
        "attempt 2, next in 1.0 s",
    ]


def test_a_501_is_not_retried(hook: DaiHook, emulator: DaiEmulator, slept: list[float], log: Log) -> None:
    emulator.unimplement("operations.cancel")

    with pytest.raises(exceptions.MethodNotImplemented, match="operations.cancel of operations/ingest returned 501"):
        hook.cancel_operation(NAME)
    assert len(emulator.requests) == 1
    assert slept == []
    assert log.lines("attempt") == []


@pytest.mark.parametrize(
    ("fault", "requests", "started"),
    [
        pytest.param(Fault(status=503), 1, 0, id="503"),
        pytest.param(Fault(status=500), 1, 0, id="500"),
        pytest.param(Fault(status=504), 1, 0, id="504"),
        pytest.param(Fault(status=502), 1, 0, id="502 of a front end"),
        pytest.param(Fault(rpc_status="ABORTED"), 1, 0, id="ABORTED"),
        pytest.param(Fault(drop="before"), 1, 0, id="dropped before"),
        pytest.param(Fault(drop="after"), 1, 1, id="dropped after"),
        pytest.param(Fault(truncate=10), 1, 1, id="cut off"),
        pytest.param(Fault(status=429), 2, 1, id="429"),
        pytest.param(Fault(status=429, headers={"Retry-After": "3"}), 2, 1, id="429 Retry-After"),
    ],
)
def test_a_create_is_retried_only_where_nothing_can_have_started(
    hook: DaiHook, emulator: DaiEmulator, fault: Fault, requests: int, started: int
) -> None:
    emulator.inject(fault)

    if requests == 1:
        with pytest.raises(exceptions.GoogleAPICallError):
            hook.create_creative(creative())
    else:
        hook.create_creative(creative())

    assert len(emulator.requests) == requests
    assert len(emulator.states()) == started


@pytest.mark.parametrize("method", CALLS)
def test_a_refused_connection_is_retried(hook: DaiHook, emulator: DaiEmulator, slept: list[float], method: str) -> None:
    """Whatever the method: a request that nobody took can have done nothing."""
    emulator.start_ingest(NAME)
    emulator.stop()
    sleep = hook._sleep

    def start_in_the_second_pause(seconds: float) -> None:
        sleep(seconds)
        if len(slept) == 2:
            emulator.start()

    hook._sleep = start_in_the_second_pause
    if method in ("creatives.get", "creatives.delete"):
        with pytest.raises(exceptions.NotFound):
            CALLS[method][0](hook)
    else:
        CALLS[method][0](hook)

    assert slept == [0.5, 1.0]
    assert methods(emulator) == [method]


def test_a_dropped_connection_is_retried_where_that_is_safe(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(drop="before"))
    emulator.inject(Fault(drop="after"))

    hook.cancel_operation(name)

    assert emulator.cancel_requested(name) == 2
    assert len(emulator.requests) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 501])
@pytest.mark.parametrize("method", ["operations.cancel", "operations.list", "operations.get", "operations.delete"])
def test_a_page_of_a_front_end_is_an_outage_once_the_api_has_responded(
    hook: DaiHook, emulator: DaiEmulator, method: str, status: int
) -> None:
    emulator.start_ingest(NAME)
    hook.get_operation(NAME)
    emulator.forget_requests()
    emulator.inject(Fault(method, status=status, html=True, times=2))

    CALLS[method][0](hook)

    assert methods(emulator) == [method] * 3


@pytest.mark.usefixtures("fake_time")
@pytest.mark.parametrize("form", FORMS)
class TestFrontEndInBothHooks:
    """Get and cancel, of the synchronous and of the asynchronous hook."""

    @pytest.fixture
    def drive(self, emulator: DaiEmulator, connect: Connect, form: str) -> Form:
        connect(is_anonymous=True, num_retries=2)
        emulator.start_ingest(NAME)
        return partial(FORMS[form], api_endpoint=emulator.endpoint)

    @pytest.mark.parametrize("status", [302, 401, 403, 404, 405, 501])
    @pytest.mark.parametrize("call", ["get_operation", "cancel_operation"])
    @pytest.mark.parametrize("before", ["get_operation", "cancel_operation"])
    def test_a_page_is_an_outage_once_the_api_has_responded(
        self, drive: Form, emulator: DaiEmulator, before: str, call: str, status: int
    ) -> None:
        def stumble() -> None:
            emulator.forget_requests()
            emulator.inject(Fault(status=status, html=True, times=2))

        drive((before, NAME), stumble, (call, NAME))

        assert methods(emulator) == [f"operations.{call.partition('_')[0]}"] * 3

    @pytest.mark.parametrize("call", ["get_operation", "cancel_operation"])
    def test_pages_that_do_not_end_are_an_outage_too(self, drive: Form, emulator: DaiEmulator, call: str) -> None:
        def break_down() -> None:
            emulator.inject(Fault(status=403, html=True, times=None))

        with pytest.raises(exceptions.ServiceUnavailable, match="from a front end or a proxy") as caught:
            drive(("get_operation", NAME), break_down, (call, NAME))

        assert isinstance(caught.value, ServiceError)
        assert caught.value.from_front_end
        assert len(emulator.requests) == 4

    @pytest.mark.parametrize("call", ["get_operation", "cancel_operation"])
    def test_a_page_counts_as_it_is_before_the_api_has_responded(
        self, drive: Form, emulator: DaiEmulator, call: str
    ) -> None:
        emulator.inject(Fault(status=403, html=True, times=None))

        with pytest.raises(exceptions.PermissionDenied, match="from a front end or a proxy"):
            drive((call, NAME))

        assert len(emulator.requests) == 1

    def test_a_wait_knows_of_the_response_to_an_earlier_call(self, drive: Form, emulator: DaiEmulator) -> None:
        def stumble() -> None:
            emulator.inject(Fault("operations.get", status=403, html=True, times=3))

        *_, ended = drive(("cancel_operation", NAME), stumble, ("wait_for_operation", NAME))

        assert ended.state == "CANCELLED"


def test_the_hook_for_a_thread_knows_that_the_api_has_responded(emulator: DaiEmulator, connect: Connect) -> None:
    connect(is_anonymous=True)
    emulator.start_ingest(NAME)

    async def main() -> None:
        async with DaiAsyncHook(api_endpoint=emulator.endpoint) as hook:
            assert not (await hook.synchronous_hook()).responded
            await hook.get_operation(NAME)
            assert (await hook.synchronous_hook()).responded

    run(main())


def test_a_page_of_a_front_end_is_no_reason_to_send_a_start_again(hook: DaiHook, emulator: DaiEmulator) -> None:
    hook.list_operations()
    emulator.inject(Fault("creatives.create", status=403, html=True))

    with pytest.raises(exceptions.PermissionDenied, match=rf"from a front end or a proxy \({emulator.endpoint}, "):
        hook.create_creative(creative())

    assert methods(emulator).count("creatives.create") == 1


def test_an_unreadable_num_retries_of_the_connection_is_named(connect: Connect, make_hook: MakeHook) -> None:
    connect(is_anonymous=True, num_retries="many")
    with pytest.raises(exceptions.Unauthenticated, match="'google_cloud_default' .* num_retries .* 'many'"):
        make_hook(api_endpoint="https://127.0.0.1:1").get_operation(NAME)


@pytest.mark.parametrize(
    ("setting", "requests"),
    [
        ({"num_retries": 0}, 1),
        ({"num_retries": 1}, 2),
        ({"num_retries": "2"}, 3),
        ({"num_retries": -1}, 1),
        ({"num_retries": ""}, 6),
        ({}, 6),
    ],
    ids=str,
)
def test_the_num_retries_of_the_connection_counts(
    emulator: DaiEmulator,
    connect: Connect,
    make_hook: MakeHook,
    slept: list[float],
    setting: dict[str, object],
    requests: int,
) -> None:
    connect(is_anonymous=True, **setting)
    emulator.inject(Fault(status=503, times=None))

    with pytest.raises(exceptions.ServiceUnavailable):
        make_hook(api_endpoint=emulator.endpoint).get_operation(NAME)

    assert len(emulator.requests) == requests
    assert slept == [0.5, 1.0, 2.0, 4.0, 8.0][: requests - 1]


def test_each_call_has_its_own_retries(emulator: DaiEmulator, connect: Connect, make_hook: MakeHook) -> None:
    connect(is_anonymous=True, num_retries=1)
    hook = make_hook(api_endpoint=emulator.endpoint)
    for _ in range(3):
        emulator.inject(Fault(status=503))
        assert list(hook.list_operations()) == []
    assert len(emulator.requests) == 6


def test_jitter_takes_away_half_at_most(hook: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    hook._random = lambda: 1.0
    emulator.inject(Fault(status=503, times=None))

    with pytest.raises(exceptions.ServiceUnavailable):
        hook.get_operation(NAME)
    assert slept == [0.25, 0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_in_seconds_is_obeyed(
    hook: DaiHook, emulator: DaiEmulator, slept: list[float], status: int
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=status, headers={"Retry-After": "7"}))
    emulator.inject(Fault(status=status))

    hook.get_operation(name)

    assert slept == [7.0, 1.0]


def test_retry_after_as_a_date_is_obeyed(hook: DaiHook, emulator: DaiEmulator, slept: list[float]) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=503, retry_after_date=30))

    hook.get_operation(name)

    assert slept == [30.0]


@pytest.mark.parametrize(
    "value",
    ["0", "", "soon", "-5", "1.5", "1, 2", "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 9999999999 23:59:59 GMT"],
)
def test_an_invalid_retry_after_is_ignored(
    hook: DaiHook, emulator: DaiEmulator, slept: list[float], value: str
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=503, headers={"Retry-After": value}))

    hook.get_operation(name)

    assert slept == [0.5]


@pytest.mark.parametrize("value", ["60", "86400", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_retry_after_is_bounded(hook: DaiHook, emulator: DaiEmulator, slept: list[float], log: Log, value: str) -> None:
    emulator.inject(Fault(status=429, headers={"Retry-After": value}, times=None))

    with pytest.raises(exceptions.ResourceExhausted):
        hook.get_operation(NAME)
    assert len(emulator.requests) == 1
    assert slept == []
    assert log.lines("attempt") == []


def test_retry_after_does_not_make_a_call_retryable(hook: DaiHook, emulator: DaiEmulator) -> None:
    emulator.inject(Fault(rpc_status="FAILED_PRECONDITION", headers={"Retry-After": "1"}, times=None))

    with pytest.raises(exceptions.FailedPrecondition):
        hook.get_operation(NAME)
    assert len(emulator.requests) == 1


def test_the_retries_of_a_call_end_with_its_retry_timeout(
    emulator: DaiEmulator, connect: Connect, make_hook: MakeHook, slept: list[float]
) -> None:
    connect(is_anonymous=True, num_retries=1000)
    hook = make_hook(api_endpoint=emulator.endpoint, retry_timeout=30)
    emulator.inject(Fault(status=503, times=None))

    with pytest.raises(exceptions.ServiceUnavailable):
        hook.get_operation(NAME)
    assert slept == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]


def test_no_retry_without_retry_timeout(
    emulator: DaiEmulator, connect: Connect, make_hook: MakeHook, slept: list[float], log: Log
) -> None:
    connect(is_anonymous=True)
    hook = make_hook(api_endpoint=emulator.endpoint, retry_timeout=0)
    emulator.inject(Fault(status=503, times=None))

    with pytest.raises(exceptions.ServiceUnavailable):
        hook.get_operation(NAME)
    assert len(emulator.requests) == 1
    assert slept == []
    assert log.lines("attempt") == []
