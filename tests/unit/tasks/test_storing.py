"""Whatever a server sends, Airflow can store and carry what this provider makes of it, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, BaseOperator

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.support.clock import Clock
from tests.support.connections import define_connection
from tests.support.dag_runs import RunDag
from tests.support.event_loop import run
from tests.support.hostile import carry, store_all_that_a_server_can_send
from tests.support.payloads import NAME
from tests.support.tiny_server import Exchange, Serve

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GET = rest.get_operation(NAME)


class Nothing(BaseOperator):
    def execute(self, context: Any) -> None:
        """Do nothing."""


def test_whatever_a_server_sends_can_be_stored(run_dag: RunDag) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with DAG("storing", schedule=None) as dag:
        Nothing(task_id="nothing")
    run = run_dag(dag)
    with create_session() as session:
        ti = session.query(TaskInstance).filter_by(dag_id=run.dag_id, run_id=run.run_id).one()
        store_all_that_a_server_can_send(session, ti, examples=50)


@pytest.mark.parametrize(
    "value",
    ["a\0", "\ud83d", float("nan"), float("inf"), 2**63, 1e22, json.loads("[" * 46 + "]" * 46), {1: 2}],
    ids=repr,
)
def test_the_check_notices_what_cannot_be_carried(value: Any) -> None:
    with pytest.raises((ValueError, AssertionError)):  # of an encoder, or of the check itself
        carry({"a": [value]})


HOSTILE = {
    "NUL in an error": b'{"name": "operations/bad", "done": true, "error": {"code": 13, "message": "nul \\u0000 x"}}',
    "lone surrogate": b'{"name": "operations/bad", "done": true, "response": {"adTitle": "cut \\ud83d"}}',
    "600 levels": b'{"name": "operations/bad", "metadata": ' + b'{"a": ' * 600 + b"1" + b"}" * 601,
    "100,000 levels": b'{"name": "operations/bad", "metadata": ' + b"[" * 100_000,
    "odd name": b'{"name": "operations/bad\\u0000", "done": true}',
    "numbers": b'{"name": "operations/bad", "done": true, "metadata": {"a": [NaN, 1e400, 9999999999999999999]}}',
    "5,000 digits": b'{"name": "operations/bad", "metadata": {"a": ' + b"9" * 5000 + b"}}",
    "marks of Airflow": b'{"name": "operations/bad", "done": true, "metadata": {"__classname__": "os.system"}}',
}


@pytest.mark.usefixtures("fake_time", "few_authorities")
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_one_hostile_response_does_not_touch_another_wait(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tiny_server: Serve, hostile: bytes
) -> None:
    define_connection(monkeypatch, is_anonymous=True, num_retries=0)
    polls = iter([{}, {}, {"done": True, "response": {"name": "creatives/x"}}])

    def respond(exchange: Exchange) -> None:
        bad = exchange.path.endswith("bad")
        exchange.answer(200, hostile if bad else {"name": "operations/good", **next(polls)})

    endpoint = tiny_server(respond).endpoint

    async def wait(name: str) -> list[Any]:
        trigger = DaiOperationTrigger(name, api_endpoint=endpoint, started=clock.now)
        return [event.payload async for event in trigger.run()]

    async def both() -> list[list[Any]]:
        return await asyncio.gather(wait("operations/bad"), wait("operations/good"))

    ((bad,), (good,)) = run(both())
    for event in (bad, good):
        carry(event)
    assert (good["status"], good["operation"]["state"]) == ("finished", "SUCCEEDED")
    readable = b'"done": true' in hostile and b"bad\\u0000" not in hostile
    assert bad["status"] == ("finished" if readable else "error")


@pytest.mark.parametrize(
    "error", [RecursionError("x\0"), MemoryError(), KeyError("\ud83d"), UnicodeError("\0"), OverflowError()]
)
@pytest.mark.usefixtures("fake_time")
def test_an_unforeseen_error_of_one_wait_is_an_event_of_that_wait(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(self: DaiOperationTrigger) -> None:
        raise error

    monkeypatch.setattr(DaiOperationTrigger, "_make_hook", fail)

    async def wait() -> list[Any]:
        return [event.payload async for event in DaiOperationTrigger("operations/\0").run()]

    (event,) = run(wait())
    carry(event)
    assert (event["status"], event["operation_name"]) == ("error", "operations/\ufffd")


MAKERS: dict[str, Callable[[Operation], Any]] = {
    "the operation": lambda operation: operation,
    "its ingest": lambda operation: operation.ingest,
    "several": lambda operation: [operation],
    "inside": lambda operation: {"found": operation},
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_task_that_returns_an_operation_fails_itself(run_dag: RunDag, log: Any, make: Any) -> None:
    class Returning(BaseOperator):
        def execute(self, context: Any) -> Any:  # noqa: ARG002
            return make(Operation.from_api({"name": NAME, "metadata": {"creativeUrl": "https://h/x"}}))

    with DAG(f"returning_{len(log.text)}_{list(MAKERS.values()).index(make)}", schedule=None) as dag:
        Returning(task_id="returning") >> Nothing(task_id="next")
    run = run_dag(dag)
    assert run.tasks == {"returning": "failed", "next": "upstream_failed"}
