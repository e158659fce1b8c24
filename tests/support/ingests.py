"""What tests of the create operator and of its ingests share: a task store, an emulator, a task run to its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests
from airflow.providers.common.compat.sdk import AirflowTaskTimeout, TaskDeferred

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator
from tests.support.event_loop import fire
from tests.support.payloads import creative
from tests.support.task_instance import Store, Ti

CREATE, GET, CANCEL, LIST = "creatives.create", "operations.get", "operations.cancel", "operations.list"
SECRET = "sig=dGhlLXNpZ25hdHVyZQ"
URL = f"https://media.example.com/ad.mp4?{SECRET}"
JSON = {"content_type": "application/json"}


@pytest.fixture(autouse=True)
def _time(few_authorities: None, fake_time: Clock) -> None:
    """Let tasks, hooks and triggers live on the test's clock."""


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def context(ti: Ti, store: Store, records: Store) -> dict[str, Any]:
    """Give the context of a task of Airflow 3.3."""
    ti.task_id = "ingest"
    return {"ti": ti, "task_state_store": store}


@pytest.fixture
def context_before_3_3(context: dict[str, Any]) -> dict[str, Any]:
    del context["task_state_store"]
    return context


@pytest.fixture
def slow(make_emulator: MakeEmulator) -> DaiEmulator:
    """Give an emulator whose ingests take a minute, and a cancel 3 s."""
    return make_emulator(ingest_seconds=60, cancel_seconds=3)


def url(number: int, **plan: Any) -> str:
    """Return the signed URL of one media file of many, with a plan for the emulator."""
    return f"https://media.example.com/{number}.mp4?{SECRET}" + "".join(
        f"&{key}={value}" for key, value in plan.items()
    )


def make(url: str = URL, **options: Any) -> DaiCreateCreativeOperator:
    return DaiCreateCreativeOperator(task_id="ingest", **{"creative": creative(url), **options})


def execute(context: Any, **options: Any) -> Any:
    """Execute a task from its start to its end, in another process after a deferral."""
    try:
        return make(**options).execute(context)
    except TaskDeferred as deferred:
        return resume(deferred, context, **options)


def kill_in_each_call(operator: DaiCreateCreativeOperator, ti: Ti, store: Store) -> None:
    """Kill the task in the middle of each call of Airflow's; fail when the handler of the kill makes one itself."""
    calls: list[str] = []

    def killed_in(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def during(*args: Any) -> Any:
            if what in calls:
                pytest.fail(f"{what} again, from the handler")
            calls.append(what)
            operator.on_kill()
            calls.remove(what)
            return call(*args)

        return during

    ti.xcom_push = killed_in("push", ti.xcom_push)
    store.set = killed_in("set", store.set)  # type: ignore[method-assign]


def resume(deferred: TaskDeferred, context: Any, *, to_the_end: bool = True, **options: Any) -> Any:
    """Resume a deferred task in another process; if told to, also when it defers again."""
    while True:
        event = {**(deferred.kwargs or {}), "event": fire(deferred)}
        try:
            return make(**{"deferrable": True, **options}).resume_execution(deferred.method_name, event, context)
        except TaskDeferred as again:
            if not to_the_end:
                raise
            deferred = again


def cancel(emulator: DaiEmulator) -> None:
    """Cancel the newest ingest, as another client would."""
    name = list(emulator.states())[-1]
    assert requests.post(f"{emulator.endpoint}/v1/{name}:cancel", timeout=10).ok


@pytest.fixture
def between_polls(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Callable[[Callable[[], Any]], None]:
    """Have something happen once, while the task sleeps before its second poll."""

    def arrange(happen: Callable[[], Any]) -> None:
        from airflow_dai_provider.hooks.dai import DaiHook

        pending = [happen]

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            if pending:
                pending.pop()()

        monkeypatch.setattr(DaiHook, "_sleep", staticmethod(sleep))

    return arrange


def the(emulator: DaiEmulator) -> str:
    """Return the only ingest there is."""
    (name,) = emulator.states()
    return name


both = pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferrable"])


def interrupt_create(patches: pytest.MonkeyPatch) -> None:
    """Raise a time limit in each start, after the service has started the ingest."""
    create = DaiHook.create_creative

    def interrupted(hook: DaiHook, *args: Any) -> None:
        create(hook, *args)
        raise AirflowTaskTimeout("Timeout, PID: 1")

    patches.setattr(DaiHook, "create_creative", interrupted)


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("something is broken")
