"""The guard of an ingest uses the token that its task holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.ingest.cancel_on_kill import PreparedCancels
from tests.support.authentication import guarded_emulator, live_on
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.emulators import count
from tests.support.ingests import GET, make, the
from tests.support.log import Log

TROUBLES: dict[str, dict[str, Any]] = {
    "away": {"drop": "before"},
    "503": {"status": 503},
    "refuses": {"status": 400, "body": b'{"error": "invalid_grant"}'},
}


@pytest.mark.usefixtures("_time")
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_a_failing_task_cancels_with_the_token_at_hand(
    connect: Connect,
    context: Any,
    between_polls: Callable[[Callable[[], Any]], None],
    clock: Clock,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    trouble: dict[str, Any],
) -> None:
    live_on(monkeypatch, clock)
    monkeypatch.delenv("DAI_EMULATOR_HOST", raising=False)
    emulator: DaiEmulator
    with guarded_emulator(clock=clock) as emulator:
        connect(keyfile_dict=emulator.service_account_key(), dai_api_endpoint=emulator.endpoint)

        def fail() -> None:
            emulator.inject(Fault("token", times=None, **trouble))
            emulator.inject(Fault(GET, status=403, times=None))

        between_polls(fail)
        with pytest.raises(AirflowException, match="403"):
            make().execute(context)
        assert emulator.cancel_requested(the(emulator)) == 1
    assert emulator.tokens_issued == 1
    assert "may still run" not in " ".join(log.ours)


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_a_guard_of_many_tries_to_fetch_a_token_once_for_all_its_sessions(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, trouble: dict[str, Any]
) -> None:
    monkeypatch.delenv("DAI_EMULATOR_HOST", raising=False)
    with guarded_emulator() as emulator:
        connect(keyfile_dict=emulator.service_account_key(), dai_api_endpoint=emulator.endpoint)
        emulator.inject(Fault("token", times=None, **trouble))
        with DaiHook() as hook:
            PreparedCancels(hook, 1).close()
            of_one = count(emulator, "token")
            PreparedCancels(hook, 200).close()
            assert count(emulator, "token") - of_one == of_one
