"""The trigger's connection: hard to look up at the start, and never shown."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.triggers import dai
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.support.clock import Clock
from tests.support.connections import Connect, LookUpFails
from tests.support.event_loop import run
from tests.support.log import Log
from tests.support.tiny_server import Serve

MakeTrigger = Callable[..., DaiOperationTrigger]
NAME = "operations/a"
PASSWORD = "pr0xy-passw0rd"


def payload(trigger: DaiOperationTrigger) -> Any:
    """Run a trigger; return its event."""

    async def main() -> list[Any]:
        return [event.payload async for event in trigger.run()]

    (event,) = run(main())
    return event


@pytest.mark.parametrize("cancel_on_kill", [False, True])
@pytest.mark.parametrize("error", [AirflowNotFoundException("isn't defined"), OSError("vault is sealed")], ids=repr)
@pytest.mark.parametrize("seconds", [2, 250, 400])
def test_a_secrets_backend_that_is_away_is_borne_as_long_as_the_service(
    make_trigger: MakeTrigger,
    connect: Connect,
    clock: Clock,
    look_up_fails: LookUpFails,
    error: Any,
    seconds: float,
    cancel_on_kill: Any,
) -> None:
    with DaiEmulator(clock=clock, ingest_seconds=10) as emulator:
        connect(is_anonymous=True, dai_api_endpoint=emulator.endpoint)
        emulator.start_ingest(NAME)
        look_up_fails(error, seconds)
        event = payload(make_trigger(NAME, cancel_on_kill=cancel_on_kill))
        assert emulator.cancel_requested(NAME) == 0
    if seconds < 300:
        assert event["operation"]["state"] == "SUCCEEDED"
    else:
        assert (event["status"], event["code"]) == ("error", "UNAVAILABLE")
        assert "google_cloud_default" in event["message"]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Away\r\n\r\n", b"HTTP/1.1 407 No\r\n\r\n", b""])
def test_a_kill_through_a_proxy_that_refuses_shows_no_password(
    make_trigger: MakeTrigger,
    connect: Connect,
    tiny_server: Serve,
    monkeypatch: pytest.MonkeyPatch,
    log: Log,
    caplog: pytest.LogCaptureFixture,
    answer: bytes,
) -> None:
    caplog.set_level("DEBUG")
    proxy = tiny_server(lambda exchange: exchange.raw(answer))
    monkeypatch.setenv("HTTPS_PROXY", f"http://robot:{PASSWORD}@{proxy.host}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    connect(is_anonymous=True, num_retries=1, dai_api_endpoint="https://dai.invalid")

    async def state(*_: object) -> str:
        return "failed"

    monkeypatch.setattr(dai, "task_instance_state", state)
    monkeypatch.setattr(DaiHook, "_sleep", staticmethod(lambda _: None))
    event = payload(make_trigger(NAME, max_outage=1))

    async def kill() -> None:
        trigger = make_trigger(NAME, cancel_on_kill=True)
        await trigger.on_kill()
        await asyncio.sleep(0)

    run(kill())
    assert "may still run: its task was killed" in log.text
    shown = f"{log.text} {caplog.text} {event}"
    secrets = (PASSWORD, base64.b64encode(f"robot:{PASSWORD}".encode()).decode())
    assert [secret for secret in secrets if secret in shown] == []
