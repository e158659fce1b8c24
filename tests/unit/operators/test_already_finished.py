"""``already_finished`` of the cancel operator: known, known not, or not to be told."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.emulator import DaiEmulator, Fault
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator
from tests.unit.operators.test_cancel_many import GET, STRICT, A, both, execute, pushed, retry

each_form = pytest.mark.parametrize("names", [A, [A]], ids=["one", "list"])


def already(context: Any) -> Any:
    found = pushed(context)
    return (found[0] if isinstance(found, list) else found)["already_finished"]


def time_out_then_retry(
    make_emulator: MakeEmulator, context: Any, clock: Clock, names: Any, deferrable: bool, **service: Any
) -> None:
    """Have one try request the cancellation and time out, and the next one find that the ingest has completed."""
    make_emulator(**service).start_ingest(A, seconds=100, cancel="ignored")
    context["ti"].max_tries = 1
    options = {"wait_for_completion": True, "deferrable": deferrable, "timeout": 60}
    with pytest.raises(AirflowException, match="60 s"):
        execute(context, names, **options)
    clock.advance(300)
    retry(context)
    execute(context, names, **options)


@both
@each_form
def test_a_retry_knows_that_an_earlier_try_had_requested_it(
    make_emulator: MakeEmulator, context: Any, store: Any, clock: Clock, names: Any, deferrable: bool
) -> None:
    time_out_then_retry(make_emulator, context, clock, names, deferrable, **STRICT)
    assert already(context) is False
    assert store.kept == {}


@both
@each_form
@pytest.mark.parametrize("service", [STRICT, {}], ids=["refuses a second cancel", "accepts it"])
def test_without_a_store_a_retry_cannot_tell(
    make_emulator: MakeEmulator,
    context_before_3_3: Any,
    clock: Clock,
    names: Any,
    deferrable: bool,
    service: dict[str, Any],
) -> None:
    time_out_then_retry(make_emulator, context_before_3_3, clock, names, deferrable, **service)
    assert already(context_before_3_3) is None


@both
@each_form
def test_after_a_failed_poll_it_cannot_be_told(
    emulator: DaiEmulator, context: Any, names: Any, deferrable: bool
) -> None:
    emulator.start_ingest(A, seconds=0)
    emulator.inject(Fault(method=GET, status=503, times=1))
    execute(context, names, wait_for_completion=True, deferrable=deferrable)
    assert already(context) is None


def test_a_poll_long_after_the_acceptance_cannot_tell(emulator: DaiEmulator, context: Any, clock: Clock) -> None:
    emulator.start_ingest(A, seconds=0)
    clock.step = 3
    execute(context, [A], wait_for_completion=True)
    assert already(context) is None
