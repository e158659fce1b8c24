"""The end of an ingest: success, a failure for good, or one after which a retry starts the ingest again."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.ingest.outcome import IngestFailedError, may_start_again
from airflow_dai_provider.tasks.failures import InvalidParameterError, UnexpectedStateError
from tests.support.clock import Clock
from tests.support.emulators import count
from tests.support.ingests import CREATE, URL, both, cancel, execute, make
from tests.support.task_instance import Ti

pytestmark = pytest.mark.usefixtures("_time")


def failing(reason: str) -> str:
    return f"{URL}&outcome={reason}&seconds=5"


@both
@pytest.mark.parametrize(
    ("retry_on", "starts"),
    [
        (None, 1),
        ((), 1),
        ("DOWNLOAD_ERROR", 1),
        (["INVALID_MEDIA", "REASON_UNSPECIFIED"], 1),
        ("INTERNAL_ERROR", 2),
        pytest.param({"DOWNLOAD_ERROR", "INTERNAL_ERROR"}, 2, id="a set"),
    ],
    ids=str,
)
@pytest.mark.parametrize("task_store", [True, False], ids=["3.3", "before 3.3"])
def test_a_failed_ingest_is_started_again_for_the_reasons_of_retry_on(
    slow: DaiEmulator, context: Any, ti: Ti, retry_on: Any, starts: int, deferrable: bool, task_store: bool
) -> None:
    ti.max_tries = 1
    if not task_store:
        del context["task_state_store"]
    for number in range(starts):
        ti.try_number = number + 1
        expected = IngestFailedError if starts == 2 else UnexpectedStateError
        with pytest.raises(expected, match=r"ad\.mp4 \(operations/.*\) failed: INTERNAL_ERROR") as raised:
            execute(context, url=failing("INTERNAL_ERROR"), retry_on=retry_on, deferrable=deferrable)
        assert isinstance(raised.value, AirflowFailException) is (starts == 1), "Airflow does not retry one for good."
        assert count(slow, CREATE) == number + 1


@pytest.mark.parametrize(
    ("end", "retry_on", "starts"),
    [("failed", None, 1), ("failed", "INVALID_MEDIA", 2), ("failed", "DOWNLOAD_ERROR", 1), ("cancelled", None, 2)],
)
def test_what_has_failed_between_two_tries_is_started_again_for_the_reasons_of_retry_on(
    slow: DaiEmulator, context: Any, ti: Ti, clock: Clock, end: str, retry_on: Any, starts: int
) -> None:
    url = failing("INVALID_MEDIA").replace("seconds=5", "seconds=60")
    ti.max_tries = 1
    with pytest.raises(AirflowException, match="has not finished within 10 s"):
        execute(context, url=url, timeout=10)
    ti.try_number = 2
    if end == "cancelled":
        cancel(slow)
    clock.advance(100)
    with pytest.raises(AirflowException, match="INVALID_MEDIA"):
        execute(context, url=url, retry_on=retry_on)
    assert count(slow, CREATE) == starts


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, "REASON_UNSPECIFIED"),
        ({"youtubeStatus": {"state": "FAILURE"}}, "REASON_UNSPECIFIED"),
        ({"youtubeStatus": {"failureReason": {"reason": "DOWNLOAD_ERROR", "code": 503}}}, "DOWNLOAD_ERROR"),
        ({"youtubeStatus": {"failureReason": {"reason": "A_NEWER_ONE"}}}, None),
    ],
)
def test_a_failure_without_a_reason_is_unspecified(metadata: Any, reason: str | None) -> None:
    failed = {"name": "operations/a", "metadata": metadata, "done": True, "error": {"code": 13}}
    reasons = ("REASON_UNSPECIFIED", "DOWNLOAD_ERROR", "INTERNAL_ERROR", "INVALID_MEDIA")
    found = [one for one in reasons if may_start_again(Operation.from_api(failed), [one])]
    assert found == ([reason] if reason else [])
    for other in ({"done": True, "error": {"code": 1}}, {"done": True}, {}):
        assert not may_start_again(Operation.from_api({**failed, "error": None, **other}), reasons)


@pytest.mark.parametrize("value", ["NO_SUCH", ["INTERNAL_ERROR", "x"], [1], 5, True, "", {"a": 1}, "internal_error"])
def test_an_unknown_reason_is_refused_where_the_dag_is_parsed(value: Any) -> None:
    with pytest.raises(InvalidParameterError, match="^Invalid retry_on .*: expected None, or some of REASON_UNSPEC"):
        make(retry_on=value)
