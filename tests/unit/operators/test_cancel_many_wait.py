"""DaiCancelOperationOperator with a list: what is told when the wait ends before each operation has finished."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_dai_provider.api.batched_polls import MIN_POLLS
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.operators.dai import cancel_many
from tests.support.emulators import MakeEmulator, count
from tests.unit.operators.test_cancel_many import CANCEL, GET, A, B, C, both, execute, pushed

D = "operations/d"
LIST = "operations.list"


@pytest.fixture
def four(make_emulator: MakeEmulator) -> DaiEmulator:
    """Give an emulator with four ingests: A is cancelled, B succeeds, C cannot be cancelled, D runs on."""
    emulator = make_emulator(cancel_seconds=3)
    emulator.start_ingest(A)
    emulator.start_ingest(B, seconds=20, cancel="ignored")
    emulator.start_ingest(C)
    emulator.start_ingest(D, cancel="ignored")
    emulator.inject(Fault(method=CANCEL, name=C, rpc_status="PERMISSION_DENIED", times=None))
    return emulator


@both
def test_a_timeout_tells_all_that_is_known(four: DaiEmulator, context: Any, deferrable: bool) -> None:
    with pytest.raises(AirflowException) as caught:
        execute(
            context,
            [A, B, C, D],
            wait_for_completion=True,
            deferrable=deferrable,
            timeout=90,
            expected_states="CANCELLED",
        )
    assert not isinstance(caught.value, AirflowFailException), "A retry can wait for the last."
    message = str(caught.value)
    assert f"1 of 3 operations have not finished within 90 s: {D}" in message
    assert (
        f"1 of 4 operations have finished unexpectedly (1 SUCCEEDED; this task accepts only CANCELLED): {B}" in message
    )
    assert f"1 of 4 operations could not be cancelled or polled (1 PERMISSION_DENIED): {C}" in message
    assert message.endswith("They may still run.")
    assert A not in message
    assert [one and one["state"] for one in pushed(context)] == ["CANCELLED", "SUCCEEDED", None, "RUNNING"]


@both
def test_the_wait_for_many_reads_the_list(make_emulator: MakeEmulator, context: Any, deferrable: bool) -> None:
    emulator = make_emulator(cancel_seconds=40)
    names = [emulator.start_ingest() for _ in range(2 * MIN_POLLS)]
    assert execute(context, names, wait_for_completion=True, deferrable=deferrable) == names
    assert count(emulator, LIST) >= 3
    assert count(emulator, GET) < 4 * len(names)


@both
def test_an_outage_tells_all_that_is_known(four: DaiEmulator, context: Any, deferrable: bool) -> None:
    four.inject(Fault(method=GET, headers={"X-Fine": "yes"}, times=40))
    four.inject(Fault(method=GET, status=503, times=None))
    with pytest.raises(AirflowException) as caught:
        execute(context, [A, B, C, D], wait_for_completion=True, deferrable=deferrable)
    assert not isinstance(caught.value, AirflowFailException)
    message = str(caught.value)
    assert "503" in message
    assert f"(1 PERMISSION_DENIED): {C}" in message
    assert message.endswith(f"2 operations may still run: {C}; {D}.")
    assert [one and one["state"] for one in pushed(context)] == ["CANCELLED", "SUCCEEDED", None, "RUNNING"]


@both
def test_a_page_of_a_front_end_is_an_outage_since_the_cancels_were_accepted(
    emulator: DaiEmulator, context: Any, deferrable: bool
) -> None:
    names = [emulator.start_ingest(name) for name in (A, B)]
    emulator.inject(Fault(method=GET, status=403, html=True, times=10))
    assert execute(context, names, wait_for_completion=True, deferrable=deferrable) == names
    assert [one["state"] for one in pushed(context)] == ["CANCELLED", "CANCELLED"]


@both
def test_each_cancellation_of_a_list_is_timed(
    make_emulator: MakeEmulator, context: Any, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    emulator = make_emulator(finished_cancel="failed_precondition")
    for name, seconds in ((A, 3), (B, 30)):
        emulator.start_ingest(name, cancel_seconds=seconds)
    emulator.start_ingest(C, seconds=0)
    timed: list[float] = []
    monkeypatch.setattr(cancel_many, "time_cancel", timed.append)
    execute(context, [A, B, C], wait_for_completion=True, deferrable=deferrable)
    assert len(timed) == 2
    assert 3 <= timed[0] <= timed[1]
    assert 30 <= timed[1] < 60


@both
@pytest.mark.parametrize("names", [A, [A]], ids=["one", "a list"])
def test_a_value_error_of_airflow_is_raised_as_it_is(
    emulator: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch, deferrable: bool, names: Any
) -> None:
    """Then a retry of the task may help."""
    emulator.start_ingest(A)

    def broken(*_: object) -> None:
        raise ValueError("The XCom backend cannot encode this.")

    monkeypatch.setattr(context["ti"], "xcom_push", broken, raising=False)
    with pytest.raises(ValueError, match="XCom backend"):
        execute(context, names, wait_for_completion=True, deferrable=deferrable)
