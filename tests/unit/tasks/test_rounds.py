"""Cancellations of many operations in rounds: what is attempted again, and when."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.many_wait import MANY_PAGES
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.tasks.cancel_requests import request_cancellations
from tests.support.clock import Clock
from tests.support.emulators import count

LOGGER = logging.getLogger("airflow_dai_provider.test_rounds")
GET, CANCEL = "operations.get", "operations.cancel"
A, B, C = "operations/a", "operations/b", "operations/c"


def cancel(clock: Clock, names: Any = (A, B, C), **options: Any) -> dict[str, Code]:
    """Request the cancellations; return the codes of the errors."""
    with DaiHook() as hook, hook.workers(len(names)) as workers:
        options = {"sleep": clock.sleep, "log": LOGGER, **options}
        _, errors = request_cancellations(workers, names, clock=clock, **options)
    return {name: error.rpc_code for name, error in errors.items()}


def test_an_unknown_name_is_asked_for_again_after_one_and_ten_seconds(emulator: DaiEmulator, fake_time: Clock) -> None:
    assert cancel(fake_time) == dict.fromkeys((A, B, C), Code.NOT_FOUND)
    assert count(emulator, CANCEL) == count(emulator, GET) == 9
    assert sum(fake_time.slept) == 10


def test_a_long_first_round_does_not_make_an_unknown_name_believed(emulator: DaiEmulator, fake_time: Clock) -> None:
    emulator.start_ingest(A)
    emulator.inject(Fault(method=CANCEL, name=A, rpc_status="NOT_FOUND", times=1))
    emulator.inject(Fault(method=GET, name=A, rpc_status="NOT_FOUND", times=1))
    readings = iter([fake_time.now])

    def clock() -> float:
        # The first round takes a minute.
        return next(readings, fake_time.now + 60)

    with DaiHook() as hook, hook.workers(1) as workers:
        _, errors = request_cancellations(workers, [A], clock=clock, sleep=fake_time.sleep, log=LOGGER)
    assert errors == {}
    assert emulator.state(A) == "CANCELLED"


def test_within_a_limit_an_unknown_name_is_asked_for_again_near_its_end(
    emulator: DaiEmulator, fake_time: Clock
) -> None:
    began = fake_time.now
    assert cancel(fake_time, timeout=10) == dict.fromkeys((A, B, C), Code.NOT_FOUND)
    assert count(emulator, CANCEL) == 9
    assert fake_time.now - began == 9


def test_one_that_cancel_does_not_know_for_a_moment_is_cancelled(emulator: DaiEmulator, fake_time: Clock) -> None:
    emulator.start_ingest(A)
    emulator.inject(Fault(method=CANCEL, name=A, rpc_status="NOT_FOUND", times=1))
    assert cancel(fake_time, [A]) == {}
    assert emulator.state(A) == "CANCELLED"
    assert fake_time.slept == [1]


def test_an_unimplemented_get_does_not_keep_others_from_being_cancelled(
    emulator: DaiEmulator, fake_time: Clock
) -> None:
    names = [emulator.start_ingest() for _ in range(100)]
    emulator.inject(Fault(method=CANCEL, name=names[0], rpc_status="FAILED_PRECONDITION", times=None))
    emulator.unimplement(GET)
    assert cancel(fake_time, names, unimplemented_ends=True) == {names[0]: Code.UNIMPLEMENTED}
    assert count(emulator, CANCEL) == 100


def test_an_unimplemented_cancel_is_raised_where_the_caller_says_so(emulator: DaiEmulator, fake_time: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(3)]
    emulator.unimplement(CANCEL)
    assert cancel(fake_time, names) == dict.fromkeys(names, Code.UNIMPLEMENTED)
    with pytest.raises(ServiceError, match="UNIMPLEMENTED"):
        cancel(fake_time, names, unimplemented_ends=True)


#: The page of a front end: no JSON error of the API.
PAGE = {"body": b"<html>Not here</html>", "content_type": "text/html"}


@pytest.mark.parametrize("status", [404, 403, 501])
@pytest.mark.parametrize("position", [0, 199], ids=["the first", "the last"])
def test_one_page_of_a_front_end_ends_no_list_that_the_api_responds_to(
    emulator: DaiEmulator, fake_time: Clock, status: int, position: int
) -> None:
    names = [emulator.start_ingest() for _ in range(200)]
    emulator.inject(Fault(method=CANCEL, name=names[position], status=status, times=1, **PAGE))
    assert cancel(fake_time, names, unimplemented_ends=True, retry_timeout=60) == {}
    assert {emulator.cancel_requested(name) for name in names} == {1}


def test_nothing_but_pages_of_a_front_end_ends_a_list_soon(emulator: DaiEmulator, fake_time: Clock) -> None:
    names = [emulator.start_ingest() for _ in range(500)]
    emulator.inject(Fault(method=CANCEL, status=404, times=None, **PAGE))
    with pytest.raises(ServiceError) as caught:
        cancel(fake_time, names, unimplemented_ends=True)
    assert caught.value.rpc_code is Code.UNIMPLEMENTED
    assert count(emulator, CANCEL) < 200
    assert count(emulator, GET) == 0


def test_a_page_of_a_front_end_that_lasts_is_an_outage(emulator: DaiEmulator, fake_time: Clock) -> None:
    for name in (A, B, C):
        emulator.start_ingest(name)
    emulator.inject(Fault(method=CANCEL, name=B, status=404, times=None, **PAGE))
    assert cancel(fake_time, unimplemented_ends=True, retry_timeout=60) == {B: Code.UNAVAILABLE}
    assert emulator.states() == {A: "CANCELLED", B: "RUNNING", C: "CANCELLED"}


def test_the_page_of_a_front_end_in_place_of_an_unknown_name_ends_no_later_than_the_grace(
    emulator: DaiEmulator, fake_time: Clock
) -> None:
    """Each of so many pages settles its name; none is asked for without an end."""
    names = [f"operations/{number}" for number in range(MANY_PAGES + 10)]
    page = {"error": {"code": 404, "status": "NOT_FOUND", "message": "It is gone."}}
    emulator.inject(Fault(method=CANCEL, status=302, times=None, body=json.dumps(page).encode()))
    assert set(cancel(fake_time, names)) == set(names)
    assert count(emulator, CANCEL) <= 3 * len(names)


@pytest.mark.parametrize("page", [404, 403])
def test_a_page_after_a_response_of_the_api_settles_an_unknown_name(
    emulator: DaiEmulator, fake_time: Clock, page: int
) -> None:
    emulator.inject(Fault(method=CANCEL, rpc_status="NOT_FOUND", times=1))
    emulator.inject(Fault(method=CANCEL, status=page, times=None, **PAGE))
    assert set(cancel(fake_time, [A])) == {A}
    assert count(emulator, CANCEL) <= 4


def test_a_contradiction_does_not_use_up_the_time_of_an_unknown_name(emulator: DaiEmulator, fake_time: Clock) -> None:
    """With a limit: unknown, then get says that it runs, then both do not know it for three more seconds."""
    emulator.start_ingest(A)
    emulator.inject(Fault(method=CANCEL, name=A, rpc_status="NOT_FOUND", lasts=5))
    emulator.inject(Fault(method=GET, name=A, rpc_status="NOT_FOUND", times=1))
    emulator.inject(Fault(method=GET, name=A, headers={"X-Fine": "yes"}, times=1))
    emulator.inject(Fault(method=GET, name=A, rpc_status="NOT_FOUND", lasts=3))
    assert cancel(fake_time, [A], timeout=60) == {}
    assert emulator.state(A) == "CANCELLED"


def test_a_name_that_was_unknown_once_when_the_time_is_up_is_in_doubt(emulator: DaiEmulator, fake_time: Clock) -> None:
    readings = iter([fake_time.now])

    def clock() -> float:
        # The first round takes a minute, which is all the time there is.
        return next(readings, fake_time.now + 60)

    with DaiHook() as hook, hook.workers(1) as workers:
        _, errors = request_cancellations(workers, [A], timeout=60, clock=clock, sleep=fake_time.sleep, log=LOGGER)
    assert errors[A].rpc_code is Code.CANCELLED
    assert "The request was not retried: the time was up" in str(errors[A])
