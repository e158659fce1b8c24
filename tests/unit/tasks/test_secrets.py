"""No secret of a proxy is logged by what cancels: the operators, the notifier and the kill of a trigger."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable

import pytest

from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.operators.dai import (
    DaiCancelOperationOperator,
    DaiCancelStrayOperationsOperator,
    DaiDeleteCreativeOperator,
)
from airflow_dai_provider.tasks.failures import log_failure
from airflow_dai_provider.triggers import dai
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.support.connections import define_connection
from tests.support.event_loop import run, until
from tests.support.log import Log
from tests.support.task_instance import Ti
from tests.support.tiny_server import Exchange, Serve

NAME = "operations/a"
ENDPOINT = "https://dai.invalid"


def cancel(ti: Ti) -> None:
    operator = DaiCancelOperationOperator(task_id="cancel", operation_name=NAME, api_endpoint=ENDPOINT)
    operator.execute({"ti": ti})  # type: ignore[typeddict-item]


def delete(ti: Ti) -> None:
    names = ["creatives/a", "creatives/b"]
    operator = DaiDeleteCreativeOperator(task_id="delete", creative_name=names, api_endpoint=ENDPOINT)
    operator.execute({"ti": ti})  # type: ignore[typeddict-item]


def sweep(ti: Ti) -> None:
    operator = DaiCancelStrayOperationsOperator(task_id="sweep", older_than=1, api_endpoint=ENDPOINT)
    operator.execute({"ti": ti})  # type: ignore[typeddict-item]


def notify(_: Ti) -> None:
    DaiCancelOperationNotifier(NAME, api_endpoint=ENDPOINT, timeout=1.0).notify({})


def kill(_: Ti) -> None:
    async def main() -> None:
        await DaiOperationTrigger(NAME, api_endpoint=ENDPOINT, cancel_on_kill=True).on_kill()  # type: ignore[misc]
        await until(lambda: not dai._KILLS)

    run(main())


@pytest.mark.parametrize("act", [cancel, delete, sweep, notify, kill])
@pytest.mark.usefixtures("fake_time", "few_authorities", "records")
@pytest.mark.parametrize("fault", ["503", "closed"])
def test_the_password_of_a_proxy_is_never_logged(
    monkeypatch: pytest.MonkeyPatch, tiny_server: Serve, ti: Ti, log: Log, act: Callable[[Ti], None], fault: str
) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.answer(503) if fault == "503" else exchange.raw(b"")

    async def failed(*_: object) -> str:
        await asyncio.sleep(0)
        return "failed"

    monkeypatch.setattr(dai, "task_instance_state", failed)
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:s3cret@{tiny_server(answer).host}")
    define_connection(monkeypatch, is_anonymous=True)
    told = ""
    try:
        act(ti)
    except Exception as error:
        told = "".join(traceback.format_exception(error))
    # Airflow prints a traceback with the local variables of its frames, among which are the settings of the proxy.
    assert log.tracebacks == []
    everything = told + log.text
    assert "dai.invalid" in everything
    assert "s3cret" not in everything
    assert "dXNlcjpzM2NyZXQ" not in everything  # the same in a header


def test_an_error_that_may_be_a_mistake_is_logged_with_its_frames_but_without_its_cause(log: Log) -> None:
    def connect() -> None:
        raise OSError("http://user:s3cret@proxy")

    def look_up() -> None:
        try:
            connect()
        except OSError as error:
            raise KeyError("private_key") from error

    try:
        look_up()
    except KeyError as error:
        log_failure(logging.getLogger("airflow_dai_provider.test_secrets"), "The request has failed", error)
    (line,) = log.errors
    assert line.startswith("The request has failed: KeyError('private_key')\n")
    assert "in look_up" in line
    assert "s3cret" not in line
    assert log.tracebacks == []
