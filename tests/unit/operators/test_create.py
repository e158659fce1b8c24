"""DaiCreateCreativeOperator: what it starts, what it waits for, and what it never leaves running."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import requests
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowException,
    AirflowFailException,
    AirflowTaskTimeout,
    TaskDeferred,
    timezone,
)

from airflow_dai_provider.api.polling import MAX_OUTAGE
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.ingest.recovery import PAUSES, IngestInDoubtError
from airflow_dai_provider.ingest.resume import KEY
from airflow_dai_provider.operators.dai import XCOM_OPERATION, DaiCreateCreativeOperator
from airflow_dai_provider.tasks import deferral
from airflow_dai_provider.tasks.failures import UnexpectedEndError
from airflow_dai_provider.version_compat import TRIES_HAVE_MEMORY
from tests.support.event_loop import fire, let_time_pass, trust_few

if TYPE_CHECKING:
    from conftest import Clock, Log

CREATE, GET, CANCEL, LIST = "creatives.create", "operations.get", "operations.cancel", "operations.list"
SECRET = "sig=dGhlLXNpZ25hdHVyZQ"
URL = f"https://media.example.com/ad.mp4?{SECRET}"
JSON = {"content_type": "application/json"}


def creative(url: str = URL, **more: Any) -> dict[str, Any]:
    media = {"uri": url, "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
    return {"adSystem": "example", "mediaFiles": [media], **more}


@dataclass
class Store:
    """Stands in for Airflow's task state store, as it answers in a worker of 3.3; it outlives tries and clears."""

    kept: dict[str, Any] = field(default_factory=dict)
    broken: bool = False

    def get(self, key: str) -> Any:
        self._check()
        return self.kept.get(key)

    def set(self, key: str, value: Any) -> None:
        self._check()
        self.kept[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self._check()
        self.kept.pop(key, None)

    def _check(self) -> None:
        if self.broken:
            raise RuntimeError("the API server is away")


@pytest.fixture(autouse=True)
def _time(monkeypatch: pytest.MonkeyPatch, fake_time: Clock) -> None:
    trust_few(monkeypatch)
    let_time_pass(monkeypatch, fake_time)
    monkeypatch.setattr(deferral.time, "time", fake_time)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def context(ti: Any, store: Store) -> dict[str, Any]:
    """Give the context of a task of Airflow 3.3."""
    ti.task_id = "ingest"
    return {"ti": ti, "task_state_store": store}


@pytest.fixture
def context_before_3_3(context: dict[str, Any]) -> dict[str, Any]:
    del context["task_state_store"]
    return context


@pytest.fixture
def slow(make_emulator: Any) -> DaiEmulator:
    """Give an emulator whose ingests take a minute, and a cancel 3 s."""
    emulator: DaiEmulator = make_emulator(ingest_seconds=60, cancel_seconds=3)
    return emulator


def make(url: str = URL, **options: Any) -> DaiCreateCreativeOperator:
    return DaiCreateCreativeOperator(task_id="ingest", **{"creative": creative(url), **options})


def execute(context: Any, **options: Any) -> Any:
    """Execute a task from its start to its end, in another process after a deferral."""
    try:
        return make(**options).execute(context)
    except TaskDeferred as deferred:
        return resume(deferred, context, **options)


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
    """Have somebody else cancel the newest ingest."""
    name = list(emulator.states())[-1]
    assert requests.post(f"{emulator.endpoint}/v1/{name}:cancel", timeout=10).ok


@pytest.fixture
def between_looks(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Callable[[Callable[[], Any]], None]:
    """Have something happen once, while the task sleeps before its second look."""

    def arrange(happen: Callable[[], Any]) -> None:
        from airflow_dai_provider.hooks.dai import DaiHook

        pending = [happen]

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            if pending:
                pending.pop()()

        monkeypatch.setattr(DaiHook, "_sleep", staticmethod(sleep))

    return arrange


def count(emulator: DaiEmulator, method: str) -> int:
    return [request.method for request in emulator.requests].count(method)


def the(emulator: DaiEmulator) -> str:
    """Return the only ingest there is."""
    (name,) = emulator.states()
    return name


both = pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferrable"])


class TestStart:
    @both
    def test_it_starts_waits_and_returns_the_name(
        self, slow: DaiEmulator, context: Any, ti: Any, store: Store, log: Log, clock: Clock, deferrable: bool
    ) -> None:
        began = clock.now
        name = execute(context, deferrable=deferrable)
        assert slow.states() == {name: "SUCCEEDED"}
        assert count(slow, CREATE) == 1
        assert slow.cancel_requested(name) == 0
        assert (ti.pushed["ingest", -1, "operation_name"], ti.pushed["ingest", -1, "operation_try_number"]) == (name, 1)
        assert ti.pushed["ingest", -1, "operation_pushed_at"] == {name: began}
        pushed = ti.pushed["ingest", -1, XCOM_OPERATION]
        assert (pushed["name"], pushed["state"]) == (name, "SUCCEEDED")
        assert pushed["ingest"]["gv_registry_id"]
        assert store.kept == {}
        assert SECRET not in json.dumps(list(ti.pushed.values())) + log.text

    def test_what_the_service_gets(self, slow: DaiEmulator, context: Any) -> None:
        given = creative(advertiser="A", networkCode="1234", somethingNew={"x": [1]})
        info = {"dynamicGroupId": "g", "activeDuration": "3.5s"}
        execute(context, creative=given, dynamic_creative_info=info)
        (request,) = [r for r in slow.requests if r.method == CREATE]
        assert json.loads(request.body) == {"creative": given, "dynamicCreativeInfo": info}

    @both
    def test_without_waiting_the_ingest_runs_on(
        self, slow: DaiEmulator, context: Any, ti: Any, store: Store, deferrable: bool
    ) -> None:
        operator = make(wait_for_completion=False, deferrable=deferrable)
        name = operator.execute(context)
        assert slow.states() == {name: "RUNNING"}
        assert count(slow, GET) == 0
        assert XCOM_OPERATION not in [key for _, _, key in ti.pushed]
        assert (store.kept[KEY]["operation_name"], store.kept[KEY]["endpoint"]) == (name, slow.endpoint)
        # Airflow kills a task whose success callback takes too long: that is no reason to cancel.
        operator.on_kill()
        assert slow.cancel_requested(name) == 0

    def test_the_name_is_pushed_before_anything_else_can_fail(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        slow.inject(Fault(GET, rpc_status="UNIMPLEMENTED", times=None))
        with pytest.raises(AirflowFailException, match="UNIMPLEMENTED"):
            execute(context)
        assert ti.pushed["ingest", -1, "operation_name"] == the(slow)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"creative": "{{ x }}"}, "expected a JSON object"),
            ({"creative": {"adSystem": "x"}}, "at least one entry"),
            ({"creative": creative(), "dynamic_creative_info": {}}, "networkCode"),
            ({"poll_interval": 0}, "Invalid poll_interval 0"),
            ({"timeout": -1}, "Invalid timeout -1"),
        ],
    )
    def test_bad_input_is_refused_before_anything_is_sent(
        self, slow: DaiEmulator, context: Any, options: Any, words: str
    ) -> None:
        with pytest.raises(AirflowFailException, match=words):
            execute(context, **options)
        assert slow.requests == []

    def test_it_is_mapped(self, slow: DaiEmulator, run_dag: Any) -> None:
        urls = [f"https://media.example.com/{number}.mp4?seconds={10 * number + 10}" for number in range(3)]
        with DAG("ingests", schedule=None) as dag:
            DaiCreateCreativeOperator.partial(task_id="ingest", timeout=25).expand(creative=list(map(creative, urls)))
        ran = run_dag(dag)
        assert ran.tasks == {"ingest[0]": "success", "ingest[1]": "success", "ingest[2]": "failed"}
        names = [ran.xcom("ingest", "operation_name", map_index) for map_index in range(3)]
        assert [slow.cancel_requested(name) for name in names] == [0, 0, 1]

    def test_fields_are_rendered_once(self, slow: DaiEmulator, run_dag: Any) -> None:
        """A creative comes from an XCom or a param as data: what looks like a template in it stays as it is."""
        with DAG("rendered", schedule=None, params={"title": "{{ 1 + 1 }}", "file": "a"}) as dag:
            DaiCreateCreativeOperator(
                task_id="ingest",
                creative=creative("https://media.example.com/{{ params.file }}.mp4", adTitle="{{ params.title }}"),
            )
        assert run_dag(dag).tasks == {"ingest": "success"}
        (sent,) = [json.loads(r.body)["creative"] for r in slow.requests if r.method == CREATE]
        assert sent["adTitle"] == "{{ 1 + 1 }}"
        assert sent["mediaFiles"][0]["uri"] == "https://media.example.com/a.mp4"


class TestFailure:
    """The ingest is cancelled when the task fails for good, and the failure stays what it is."""

    @both
    def test_the_time_is_up(self, slow: DaiEmulator, context: Any, deferrable: bool) -> None:
        with pytest.raises(AirflowException, match="has not ended within 20 s") as caught:
            execute(context, deferrable=deferrable, timeout=20)
        assert not isinstance(caught.value, AirflowFailException)
        assert slow.cancel_requested(the(slow)) == 1

    @both
    @pytest.mark.parametrize("outcome", ["DOWNLOAD_ERROR", "INVALID_MEDIA"])
    def test_an_ingest_that_fails_has_nothing_to_cancel(
        self, slow: DaiEmulator, context: Any, ti: Any, deferrable: bool, outcome: str
    ) -> None:
        with pytest.raises(UnexpectedEndError, match=outcome):
            execute(context, deferrable=deferrable, url=f"{URL}&outcome={outcome}&seconds=5")
        assert slow.cancel_requested(the(slow)) == 0
        assert ti.pushed["ingest", -1, XCOM_OPERATION]["state"] == "FAILED"

    def test_somebody_else_cancels_it(self, slow: DaiEmulator, context: Any, between_looks: Any) -> None:
        between_looks(lambda: cancel(slow))
        with pytest.raises(UnexpectedEndError, match="is CANCELLED.*accepts only SUCCEEDED"):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_somebody_else_cancels_it_while_deferred(self, slow: DaiEmulator, context: Any) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            make(deferrable=True).execute(context)
        cancel(slow)
        with pytest.raises(UnexpectedEndError, match="is CANCELLED.*accepts only SUCCEEDED"):
            resume(deferred.value, context)
        assert slow.cancel_requested(the(slow)) == 1

    @both
    def test_the_service_goes_away_and_stays_away(
        self, slow: DaiEmulator, context: Any, log: Log, deferrable: bool
    ) -> None:
        """Nothing can be cancelled then: the log says what runs, the error is the one of the wait."""
        slow.inject(Fault(GET, status=503, times=None))
        slow.inject(Fault(CANCEL, status=503, times=None))
        with pytest.raises(AirflowException, match=f"{GET} of .* answered 503 UNAVAILABLE") as caught:
            execute(context, deferrable=deferrable, timeout=10 * MAX_OUTAGE)
        assert not isinstance(caught.value, AirflowFailException)
        (error,) = log.errors
        assert f"{the(slow)} may still run: it could not be cancelled: {CANCEL} of" in error

    def test_a_trigger_that_breaks(self, slow: DaiEmulator, context: Any) -> None:
        with pytest.raises(TaskDeferred):
            make(deferrable=True).execute(context)
        with pytest.raises(AirflowException, match="Trigger failure"):
            make(deferrable=True).resume_execution("__fail__", {"error": "Trigger failure"}, context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_a_deferral_that_airflow_ends(self, slow: DaiEmulator, context: Any) -> None:
        with pytest.raises(TaskDeferred):
            make(deferrable=True).execute(context)
        with pytest.raises(AirflowException):
            make(deferrable=True).resume_execution("__fail__", {"error": "Trigger timeout"}, context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_a_time_limit_of_the_task(self, slow: DaiEmulator, context: Any, between_looks: Any) -> None:
        operator = make()

        def time_is_up() -> None:
            raise AirflowTaskTimeout("Timeout, PID: 1")

        between_looks(time_is_up)
        with pytest.raises(AirflowTaskTimeout):
            operator.execute(context)
        operator.on_kill()  # as Airflow 3 goes on
        assert slow.cancel_requested(the(slow)) == 1

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError("a bug")])
    def test_anything_else(self, slow: DaiEmulator, context: Any, between_looks: Any, error: Any) -> None:
        def fail() -> None:
            raise error

        between_looks(fail)
        with pytest.raises(BaseException, match="a bug" if isinstance(error, Exception) else None):
            make().execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    @both
    def test_it_is_left_alone_if_told_to(self, slow: DaiEmulator, context: Any, deferrable: bool) -> None:
        with pytest.raises(AirflowException, match="has not ended within"):
            execute(context, deferrable=deferrable, timeout=20, cancel_on_failure=False)
        assert slow.cancel_requested(the(slow)) == 0

    def test_nothing_was_started(self, slow: DaiEmulator, context: Any, log: Log) -> None:
        slow.inject(Fault(CREATE, rpc_status="PERMISSION_DENIED"))
        with pytest.raises(AirflowFailException, match="PERMISSION_DENIED.*allow-listed"):
            execute(context)
        assert slow.states() == {}
        assert count(slow, CANCEL) == count(slow, LIST) == 0
        assert log.errors == []

    def test_the_failure_of_the_cancel_does_not_hide_the_first(self, slow: DaiEmulator, context: Any, log: Log) -> None:
        slow.inject(Fault(CANCEL, rpc_status="UNIMPLEMENTED"))
        with pytest.raises(AirflowException, match="has not ended within 20 s"):
            execute(context, timeout=20)
        (error,) = log.errors
        assert "may still run" in error
        assert "UNIMPLEMENTED" in error


class TestKill:
    def test_while_it_waits(self, slow: DaiEmulator, context: Any, log: Log, between_looks: Any) -> None:
        operator = make()
        between_looks(operator.on_kill)
        with pytest.raises(UnexpectedEndError, match="is CANCELLED"):
            operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 1
        assert f"Requested the cancellation of {the(slow)}: its task was killed." in log.ours

    def test_once_only(self, slow: DaiEmulator, context: Any, between_looks: Any) -> None:
        operator = make()
        between_looks(lambda: (operator.on_kill(), operator.on_kill()))
        with pytest.raises(UnexpectedEndError):
            operator.execute(context)
        operator.on_kill()
        assert slow.cancel_requested(the(slow)) == 1

    def test_it_asks_nothing_of_airflow(self, slow: DaiEmulator, context: Any, ti: Any, store: Store) -> None:
        """A handler that interrupts a call of Airflow's must make none: the kill comes in the middle of each."""
        operator = make(wait_for_completion=False)
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
        operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_it_uses_a_connection_of_its_own(self, slow: DaiEmulator, context: Any, between_looks: Any) -> None:
        operator = make()
        between_looks(operator.on_kill)
        with pytest.raises(UnexpectedEndError):
            operator.execute(context)
        (kill,) = {r.connection for r in slow.requests if r.method == CANCEL}
        assert kill not in {r.connection for r in slow.requests if r.method != CANCEL}

    def test_while_the_service_is_asked_to_start(
        self, slow: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The name comes after the kill, and the process has seconds left: they are enough."""
        from airflow_dai_provider.hooks.dai import DaiHook

        operator = make()
        create = DaiHook.create_creative

        def killed_meanwhile(hook: DaiHook, *args: Any) -> Any:
            operator.on_kill()
            return create(hook, *args)

        monkeypatch.setattr(DaiHook, "create_creative", killed_meanwhile)
        with pytest.raises(UnexpectedEndError, match="is CANCELLED"):
            operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_before_it_starts(self, slow: DaiEmulator, context: Any, store: Store) -> None:
        store.kept[KEY] = {"operation_name": "operations/unknown", "endpoint": slow.endpoint, "digest": "x"}
        operator = make()
        get = store.get
        store.get = lambda key: (operator._guarding().kill(), get(key))[1]  # type: ignore[method-assign]
        with pytest.raises(AirflowException, match="being killed; no ingest was started"):
            operator.execute(context)
        assert slow.states() == {}

    def test_a_service_that_hangs_does_not_hold_it(
        self, slow: DaiEmulator, context: Any, log: Log, between_looks: Any
    ) -> None:
        slow.inject(Fault(CANCEL, drop="before"))
        operator = make()
        between_looks(operator.on_kill)
        execute_and_succeed = operator.execute(context)
        assert slow.states() == {execute_and_succeed: "SUCCEEDED"}
        (error,) = log.errors
        assert f"{execute_and_succeed} may still run: its task was killed, but {CANCEL} of" in error
        assert count(slow, CANCEL) == 1

    def test_it_is_left_alone_if_told_to(self, slow: DaiEmulator, context: Any, between_looks: Any) -> None:
        operator = make(cancel_on_kill=False)

        def kill_as_airflow_2_does() -> None:
            operator.on_kill()
            raise KeyboardInterrupt

        between_looks(kill_as_airflow_2_does)
        with pytest.raises(KeyboardInterrupt):
            operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 0

    @pytest.mark.parametrize("cancel_on_kill", [True, False])
    @pytest.mark.usefixtures("slow")
    def test_the_trigger_is_told(self, context: Any, cancel_on_kill: bool) -> None:
        with pytest.raises(TaskDeferred) as deferred:
            make(deferrable=True, cancel_on_kill=cancel_on_kill).execute(context)
        assert deferred.value.trigger.serialize()[1]["cancel_on_kill"] is cancel_on_kill

    def test_after_success_there_is_nothing_to_cancel(self, slow: DaiEmulator, context: Any) -> None:
        operator = make()
        name = operator.execute(context)
        operator.on_kill()
        assert slow.cancel_requested(name) == 0

    def test_before_the_task_begins(self, slow: DaiEmulator, context: Any) -> None:
        """Airflow can kill a task that is only starting; the process goes on for seconds, and must start nothing."""
        operator = make()
        operator.on_kill()
        with pytest.raises(AirflowException, match="being killed; no ingest was started"):
            operator.execute(context)
        assert slow.states() == {}


class TestLostAnswer:
    """Creating is not repeated where the service may have acted: a second ingest is never started."""

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(CREATE, drop="after"),
            Fault(CREATE, truncate=5),
            Fault(CREATE, status=200, body=b"<html>", **JSON),
        ],
        ids=["no answer", "cut off", "not JSON"],
    )
    def test_the_ingest_is_found_and_adopted(self, slow: DaiEmulator, context: Any, log: Log, fault: Fault) -> None:
        slow.inject(fault)
        if fault.status:  # this fault keeps the request from the service; somebody else's ingest plays its part
            slow.start_ingest("operations/mine", creative_url=URL)
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}
        assert count(slow, CREATE) == 1
        assert "An ingest of https://media.example.com/ad.mp4 may have started; looking for it." in log.text
        assert SECRET not in log.text

    @pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
    def test_no_error_of_a_server_is_repeated(self, slow: DaiEmulator, context: Any, clock: Clock, status: int) -> None:
        slow.inject(Fault(CREATE, status=status, times=None))
        with pytest.raises(IngestInDoubtError, match="no such operation has appeared within 17 s") as caught:
            execute(context)
        assert "https://media.example.com/ad.mp4" in str(caught.value)
        assert SECRET not in str(caught.value)
        assert count(slow, CREATE) == 1
        assert count(slow, LIST) == len(PAUSES)
        assert clock.slept == list(PAUSES)

    def test_it_can_appear_late(self, slow: DaiEmulator, context: Any) -> None:
        slow.inject(Fault(CREATE, drop="after"))
        slow.inject(Fault(LIST, status=200, body=b"{}", times=2))
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}

    def test_a_list_that_fails_is_asked_for_again(self, slow: DaiEmulator, context: Any) -> None:
        slow.inject(Fault(CREATE, drop="after"))
        slow.inject(Fault(LIST, status=500, times=len(PAUSES) - 1))
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}

    @pytest.mark.parametrize("other", ["another file", "an hour ago"])
    def test_another_ingest_is_not_adopted(self, slow: DaiEmulator, context: Any, clock: Clock, other: str) -> None:
        slow.start_ingest(
            "operations/other", creative_url=URL.replace("ad", "other") if other == "another file" else URL
        )
        clock.advance(3600 if other == "an hour ago" else 0)
        slow.inject(Fault(CREATE, drop="before"))
        with pytest.raises(IngestInDoubtError, match="no such operation"):
            execute(context)
        assert slow.cancel_requested("operations/other") == 0

    def test_two_of_them(self, slow: DaiEmulator, context: Any) -> None:
        slow.start_ingest("operations/other", creative_url=URL)
        slow.inject(Fault(CREATE, drop="after"))
        with pytest.raises(IngestInDoubtError, match="operations/other") as caught:
            execute(context)
        assert all(name in str(caught.value) for name in slow.states())
        assert all(slow.cancel_requested(name) == 0 for name in slow.states())

    @pytest.mark.parametrize("list_fault", [{"rpc_status": "UNIMPLEMENTED"}, {"status": 503, "times": None}])
    def test_a_server_that_does_not_list(self, slow: DaiEmulator, context: Any, list_fault: Any) -> None:
        slow.inject(Fault(CREATE, drop="after"))
        slow.inject(Fault(LIST, **list_fault))
        with pytest.raises(IngestInDoubtError, match="the operations cannot be listed: operations.list of"):
            execute(context)

    def test_a_busy_service_is_asked_again(self, slow: DaiEmulator, context: Any) -> None:
        slow.inject(Fault(CREATE, status=429, times=2))
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}
        assert (count(slow, CREATE), count(slow, LIST)) == (3, 0)

    def test_a_time_limit_in_the_middle(self, slow: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """What has started is found and cancelled, and the failure is the time limit's."""
        from airflow_dai_provider.hooks.dai import DaiHook

        create = DaiHook.create_creative

        def interrupted(hook: DaiHook, *args: Any) -> Any:
            create(hook, *args)
            raise AirflowTaskTimeout("Timeout, PID: 1")

        monkeypatch.setattr(DaiHook, "create_creative", interrupted)
        with pytest.raises(AirflowTaskTimeout):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1


class TestGuard:
    """What the guard does where neither a kill nor a plain failure is all that happens."""

    def test_airflow_goes_away_when_the_ingest_has_started(
        self, slow: DaiEmulator, context: Any, ti: Any, monkeypatch: pytest.MonkeyPatch, log: Log
    ) -> None:
        """Neither the name can be pushed then, nor the connection be looked up; a cancel is at hand."""
        operator = make()
        hooks = iter([operator._make_hook()])

        def away(*_: object) -> None:
            raise RuntimeError("the API server is away")

        monkeypatch.setattr(ti, "xcom_push", away, raising=False)
        monkeypatch.setattr(operator, "_make_hook", lambda: next(hooks, None) or away())
        with pytest.raises(RuntimeError, match="the API server is away"):
            operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 1
        assert f"Requested the cancellation of {the(slow)}: its task has failed." in log.ours

    def test_a_kill_after_a_deferral(self, slow: DaiEmulator, context: Any, airflow_2: bool) -> None:
        """Airflow 2 kills a process that ends slowly; on 3 it can be that the deferral was refused."""
        operator = make(deferrable=True)
        with pytest.raises(TaskDeferred):
            operator.execute(context)
        operator.on_kill()
        assert slow.cancel_requested(the(slow)) == (0 if airflow_2 else 1)

    @both
    def test_a_time_limit_cancels_as_a_kill_does(
        self, slow: DaiEmulator, context: Any, between_looks: Any, deferrable: bool
    ) -> None:
        limits = {"deferrable": deferrable, "cancel_on_failure": False, "execution_timeout": timedelta(seconds=20)}
        if deferrable:
            with pytest.raises(TaskDeferred) as deferred:
                make(**limits).execute(context)
            with pytest.raises(AirflowTaskTimeout):
                resume(deferred.value, context, **limits)
        else:
            between_looks(lambda: (_ for _ in ()).throw(AirflowTaskTimeout("time is up")))
            with pytest.raises(AirflowTaskTimeout):
                execute(context, **limits)
        assert slow.cancel_requested(the(slow)) == 1

    @pytest.mark.usefixtures("slow")
    def test_what_signs_the_url_of_a_mapped_task_is_masked(self, run_dag: Any) -> None:
        from airflow.models.renderedtifields import RenderedTaskInstanceFields
        from airflow.utils.session import create_session

        with DAG("mapped_and_signed", schedule=None) as dag:
            signed = "https://media.example.com/ad.mp4?seconds=1&sig=bWFwcGVkLXNpZ25hdHVyZQ"
            DaiCreateCreativeOperator.partial(task_id="ingest").expand(creative=[creative(signed)])
        assert run_dag(dag).tasks == {"ingest[0]": "success"}
        with create_session() as session:
            kept = session.query(RenderedTaskInstanceFields).filter_by(dag_id="mapped_and_signed").all()
            shown = [str(fields.rendered_fields) for fields in kept]
        assert len(shown) == 1
        assert "media.example.com" in shown[0]
        assert "bWFwcGVk" not in shown[0]


class TestRetry:
    """On 3.3 the next try goes on with the ingest of the one before."""

    def fail_first_try(self, context: Any, ti: Any, **options: Any) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowException, match="has not ended within 10 s"):
            execute(context, timeout=10, **options)
        ti.try_number = 2
        ti.pushed.clear()  # as Airflow does

    @both
    def test_it_goes_on_with_an_equal_one(
        self, slow: DaiEmulator, context: Any, ti: Any, store: Store, log: Log, deferrable: bool
    ) -> None:
        self.fail_first_try(context, ti, deferrable=deferrable)
        assert slow.cancel_requested(the(slow)) == 0
        assert f"Leaving {the(slow)} to the next try." in log.ours
        name = execute(context, deferrable=deferrable)
        assert slow.states() == {name: "SUCCEEDED"}
        assert slow.cancel_requested(name) == 0
        assert (ti.pushed["ingest", -1, "operation_name"], ti.pushed["ingest", -1, "operation_try_number"]) == (name, 2)
        assert store.kept == {}

    def test_it_goes_on_with_one_that_it_does_not_wait_for(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        """The first try can have failed in what comes after ``execute``."""
        ti.max_tries = 1
        name = execute(context, wait_for_completion=False)
        ti.try_number = 2
        assert execute(context, wait_for_completion=False) == name
        assert slow.states() == {name: "RUNNING"}
        assert slow.cancel_requested(name) == 0

    def test_another_creatives_that_nobody_has_waited_for_is_cancelled(self, slow: DaiEmulator, context: Any) -> None:
        """The task has succeeded, with the wrong file; the DAG is fixed, and the task cleared."""
        wrong = execute(context, wait_for_completion=False)
        right = execute(context, wait_for_completion=False, url="https://media.example.com/right.mp4")
        assert right != wrong
        assert [slow.cancel_requested(name) for name in (wrong, right)] == [1, 0]

    def test_a_cleared_one_that_has_succeeded_starts_anew(self, slow: DaiEmulator, context: Any) -> None:
        first = execute(context)
        second = execute(context)
        assert slow.states() == {first: "SUCCEEDED", second: "SUCCEEDED"}

    def test_the_last_try_cancels(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        self.fail_first_try(context, ti)
        with pytest.raises(AirflowException, match="has not ended within 10 s"):
            execute(context, timeout=10)
        assert slow.cancel_requested(the(slow)) == 1

    def test_what_a_retry_cannot_heal_is_cancelled_at_once(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        ti.max_tries = 3
        slow.inject(Fault(GET, rpc_status="PERMISSION_DENIED", times=None))
        with pytest.raises(AirflowFailException):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_before_3_3_each_failing_try_cancels(self, slow: DaiEmulator, context_before_3_3: Any, ti: Any) -> None:
        self.fail_first_try(context_before_3_3, ti)
        first = the(slow)
        assert slow.cancel_requested(first) == 1
        second = execute(context_before_3_3)
        assert slow.states()[second] == "SUCCEEDED"
        assert slow.cancel_requested(second) == 0

    @pytest.mark.parametrize(
        "other",
        [
            {"url": "https://media.example.com/right.mp4"},
            {"creative": creative(adTitle="new")},
            {"creative": creative(networkCode="1"), "dynamic_creative_info": {"dynamicGroupId": "g"}},
        ],
        ids=["another file", "another title", "dynamic"],
    )
    def test_another_creatives_is_cancelled_first(self, slow: DaiEmulator, context: Any, ti: Any, other: Any) -> None:
        self.fail_first_try(context, ti)
        wrong = the(slow)
        right = execute(context, **other)
        assert right != wrong
        assert slow.states() == {wrong: "CANCELLED", right: "SUCCEEDED"}
        methods = [r.method for r in slow.requests]
        assert methods.index(CANCEL) < [n for n, method in enumerate(methods) if method == CREATE][1]

    def test_another_creatives_that_cannot_be_cancelled(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        self.fail_first_try(context, ti)
        slow.inject(Fault(CANCEL, rpc_status="UNIMPLEMENTED", times=None))
        with pytest.raises(AirflowFailException, match="UNIMPLEMENTED"):
            execute(context, url="https://media.example.com/right.mp4")
        assert count(slow, CREATE) == 1

    @pytest.mark.parametrize("end", ["SUCCEEDED", "CANCELLED"])
    def test_one_that_has_ended_is_not_gone_on_with(
        self, slow: DaiEmulator, context: Any, ti: Any, clock: Clock, end: str
    ) -> None:
        self.fail_first_try(context, ti)
        first = the(slow)
        if end == "CANCELLED":
            cancel(slow)
        clock.advance(100)
        second = execute(context)
        assert slow.states() == {first: end, second: "SUCCEEDED"}

    def test_one_that_the_service_has_forgotten(self, slow: DaiEmulator, context: Any, store: Store) -> None:
        store.kept[KEY] = {"operation_name": "operations/unknown", "endpoint": slow.endpoint, "digest": "x"}
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}

    @pytest.mark.parametrize(
        "kept", ["x", {}, {"operation_name": "../x", "endpoint": "x", "digest": "x"}, {"operation_name": "x"}]
    )
    def test_a_record_that_cannot_be_read(self, slow: DaiEmulator, context: Any, store: Store, kept: Any) -> None:
        store.kept[KEY] = kept
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}

    @both
    def test_one_that_ends_cancelled_is_replaced_once(
        self, slow: DaiEmulator, context: Any, ti: Any, store: Store, between_looks: Any, deferrable: bool
    ) -> None:
        """The kill of an earlier try can come after this one has gone on with its ingest."""
        self.fail_first_try(context, ti)
        first = the(slow)
        if deferrable:
            with pytest.raises(TaskDeferred) as deferred:
                make(deferrable=True).execute(context)
            cancel(slow)
            name = resume(deferred.value, context)
        else:
            between_looks(lambda: cancel(slow))
            name = execute(context)
        assert slow.states() == {first: "CANCELLED", name: "SUCCEEDED"}
        assert ti.pushed["ingest", -1, "operation_name"] == name
        assert store.kept == {}

    @both
    def test_but_not_one_that_is_cancelled_long_after(
        self, slow: DaiEmulator, context: Any, ti: Any, between_looks: Any, clock: Clock, deferrable: bool
    ) -> None:
        """By a user, or at a deadline; no guard of the earlier try comes that late."""
        self.fail_first_try(context, ti)
        first = the(slow)
        if deferrable:
            with pytest.raises(TaskDeferred) as deferred:
                make(deferrable=True).execute(context)
            cancel(slow)
            clock.advance(200)
            with pytest.raises(UnexpectedEndError, match="is CANCELLED"):
                resume(deferred.value, context)
        else:
            between_looks(lambda: (cancel(slow), clock.advance(200)))
            with pytest.raises(UnexpectedEndError, match="is CANCELLED"):
                execute(context)
        assert slow.states() == {first: "CANCELLED"}

    def test_one_at_another_endpoint_is_named_and_left(self, context: Any, make_emulator: Any, log: Log) -> None:
        """There, another operation can have its name."""
        old = make_emulator()
        name = execute(context, wait_for_completion=False)
        new = make_emulator()
        new.start_ingest(name)
        execute(context, wait_for_completion=False)
        assert f"{name} may still run at {old.endpoint}: an earlier try has started it there." in log.text
        assert (old.cancel_requested(name), new.cancel_requested(name)) == (0, 0)
        assert count(new, CREATE) == 1

    def test_but_only_once(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        self.fail_first_try(context, ti)
        with pytest.raises(TaskDeferred) as deferred:
            make(deferrable=True).execute(context)
        cancel(slow)
        with pytest.raises(TaskDeferred) as again:
            resume(deferred.value, context, to_the_end=False)
        cancel(slow)
        with pytest.raises(UnexpectedEndError, match="is CANCELLED"):
            resume(again.value, context)
        assert count(slow, CREATE) == 2

    def test_not_by_a_task_that_is_being_killed(
        self, slow: DaiEmulator, context: Any, ti: Any, between_looks: Any
    ) -> None:
        self.fail_first_try(context, ti)
        operator = make()
        between_looks(operator.on_kill)
        with pytest.raises(AirflowException, match="being killed"):
            operator.execute(context)
        assert slow.states() == {the(slow): "CANCELLED"}

    def test_one_that_cannot_be_looked_at_is_cancelled_by_the_last_try(
        self, slow: DaiEmulator, context: Any, ti: Any
    ) -> None:
        self.fail_first_try(context, ti)
        slow.inject(Fault(GET, status=503, times=None))
        with pytest.raises(AirflowException, match="503 UNAVAILABLE"):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1
        assert count(slow, CREATE) == 1

    def test_a_store_that_cannot_be_read_starts_nothing(self, slow: DaiEmulator, context: Any, store: Store) -> None:
        store.broken = True
        with pytest.raises(AirflowException, match="cannot be read: the API server is away") as caught:
            execute(context)
        assert not isinstance(caught.value, AirflowFailException)
        assert slow.states() == {}

    def test_a_store_that_cannot_be_written(self, slow: DaiEmulator, context: Any, store: Store, log: Log) -> None:
        get = store.get

        def breaks_after(key: str) -> Any:
            found = get(key)
            store.broken = True
            return found

        store.get = breaks_after  # type: ignore[method-assign]
        name = execute(context)
        assert slow.states() == {name: "SUCCEEDED"}
        assert f"The next try will not know of {name}" in log.text


class TestCallback:
    """The failure callback that the operator adds to its own, for the worker that is lost."""

    def test_it_cancels_what_a_lost_worker_has_pushed(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        name = slow.start_ingest()
        ti.pushed = {("ingest", -1, "operation_name"): name, ("ingest", -1, "operation_try_number"): 1}
        task = make()  # in the dag processor: read from the DAG file, never executed
        (callback,) = task.on_failure_callback
        callback({**context, "task": task, "dag": DAG("a_dag", schedule=None)})
        assert slow.cancel_requested(name) == 1

    def test_it_leaves_the_next_tries_alone(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        name = slow.start_ingest()
        ti.pushed = {("ingest", -1, "operation_name"): name, ("ingest", -1, "operation_try_number"): 2}
        task = make()
        (callback,) = task.on_failure_callback
        callback({**context, "task": task, "dag": DAG("a_dag", schedule=None)})
        assert slow.cancel_requested(name) == 0

    def test_it_is_silent_when_the_operator_has_seen_to_it(self, slow: DaiEmulator, run_dag: Any) -> None:
        with DAG("failing", schedule=None) as dag:
            make(timeout=10)
        assert run_dag(dag).tasks == {"ingest": "failed"}
        assert slow.cancel_requested(the(slow)) == 1

    def test_it_cancels_when_the_operator_could_not(self, slow: DaiEmulator, run_dag: Any) -> None:
        slow.inject(Fault(CANCEL, rpc_status="PERMISSION_DENIED"))
        with DAG("failing_twice", schedule=None) as dag:
            make(timeout=10)
        assert run_dag(dag).tasks == {"ingest": "failed"}
        assert slow.cancel_requested(the(slow)) == 1

    @pytest.mark.parametrize("as_list", [True, False])
    @pytest.mark.usefixtures("slow")
    def test_the_users_own_and_the_default_ones_stay(self, run_dag: Any, as_list: bool) -> None:
        called: list[str] = []
        default = [lambda _: called.append("default")]
        default_args = {"on_failure_callback": default if as_list else default[0]}
        with DAG("callbacks", schedule=None, default_args=default_args) as dag:
            make(timeout=10)
            own = DaiCreateCreativeOperator(
                task_id="own",
                creative=creative(),
                timeout=10,
                on_failure_callback=lambda _: called.append("own"),
            )
        assert len(default) == 1
        assert len(own.on_failure_callback) == 2
        run_dag(dag)
        assert sorted(called) == ["default", "own"]

    def test_there_is_none_without_the_guard(self) -> None:
        task = make(cancel_on_failure=False)
        assert not task.on_failure_callback
        assert not task.on_retry_callback

    def test_a_lost_try_is_cancelled_where_the_next_cannot_go_on_with_its_ingest(self) -> None:
        default = [print]
        with DAG("retried", schedule=None, default_args={"on_retry_callback": default}):
            task = make()
        assert [type(callback).__name__ for callback in task.on_retry_callback] == [
            *([] if TRIES_HAVE_MEMORY else ["CancelWhatIsLeft"]),
            "builtin_function_or_method",
        ]
        assert default == [print]

    def test_it_reaches_the_endpoint_of_the_task(self) -> None:
        (callback,) = make(gcp_conn_id="x", impersonation_chain=["a", "b"], api_endpoint="e").on_failure_callback
        assert (callback.gcp_conn_id, callback.impersonation_chain, callback.api_endpoint) == ("x", ["a", "b"], "e")


def interrupt_create(patches: pytest.MonkeyPatch) -> None:
    """Let a time limit end each start when the service has done its part."""
    create = DaiHook.create_creative

    def interrupted(hook: DaiHook, *args: Any) -> None:
        create(hook, *args)
        raise AirflowTaskTimeout("Timeout, PID: 1")

    patches.setattr(DaiHook, "create_creative", interrupted)


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("something is broken")


class TestLeftToTheNextTry:
    """An ingest is left only to a next try that will know of it."""

    @pytest.mark.parametrize("what", ["xcom", "store", "time limit"])
    def test_not_to_one_that_does_not(
        self, slow: DaiEmulator, context: Any, ti: Any, store: Store, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        ti.max_tries = 1
        with monkeypatch.context() as patches:
            if what == "xcom":
                patches.setattr(type(ti), "xcom_push", fail)
            elif what == "store":
                patches.setattr(store, "set", fail)
            else:
                interrupt_create(patches)
            with pytest.raises((AirflowException, RuntimeError, AirflowTaskTimeout)):
                execute(context, timeout=10)
        first = the(slow)
        assert slow.cancel_requested(first) == 1
        ti.try_number = 2
        ti.pushed.clear()
        second = execute(context)
        assert slow.states()[second] == "SUCCEEDED"

    def test_not_when_the_task_was_killed(self, slow: DaiEmulator, context: Any, ti: Any, between_looks: Any) -> None:
        ti.max_tries = 1
        slow.inject(Fault(CANCEL, status=503))
        operator = make(timeout=20)
        between_looks(operator.on_kill)
        with pytest.raises(AirflowException, match="has not ended"):
            operator.execute(context)
        assert slow.cancel_requested(the(slow)) == 1

    def test_a_next_try_that_cannot_go_on_with_it_cancels_it(self, slow: DaiEmulator, context: Any, ti: Any) -> None:
        ti.max_tries = 1
        with pytest.raises(AirflowException, match="has not ended"):
            execute(context, timeout=10)
        assert slow.cancel_requested(the(slow)) == 0
        ti.try_number = 2
        ti.pushed.clear()  # as Airflow does
        with pytest.raises(AirflowFailException, match="Invalid creative"):
            execute(context, creative={"adSystem": "x"})
        assert slow.cancel_requested(the(slow)) == 1

    @pytest.mark.skipif(not TRIES_HAVE_MEMORY, reason="before Airflow 3.3 the failing try cancels")
    def test_after_a_time_limit(self, slow: DaiEmulator, run_dag: Any, between_looks: Any) -> None:
        """Airflow 3 calls on_kill after a time limit, when the ingest is left to the next try already."""

        def time_is_up() -> None:
            raise AirflowTaskTimeout("Timeout, PID: 1")

        between_looks(time_is_up)
        with DAG("timed", schedule=None, start_date=timezone.datetime(2026, 1, 1)) as dag:
            make(execution_timeout=timedelta(hours=1), retries=1, retry_delay=0)
        assert run_dag(dag).tasks == {"ingest": "success"}
        assert (slow.states()[the(slow)], slow.cancel_requested(the(slow))) == ("SUCCEEDED", 0)


class TestInterruptedInDoubt:
    """After an interruption that Airflow retries, a second ingest would be started."""

    def test_in_the_start(self, slow: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        slow.inject(Fault(LIST, rpc_status="UNIMPLEMENTED"))
        interrupt_create(monkeypatch)
        with pytest.raises(IngestInDoubtError, match="interrupted: Timeout, PID: 1"):
            execute(context)

    @pytest.mark.parametrize("error", [AirflowTaskTimeout("Timeout, PID: 1"), RuntimeError("Timeout, PID: 1")])
    def test_in_the_search(
        self,
        slow: DaiEmulator,
        context: Any,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        slow.inject(Fault(CREATE, drop="after"))
        slow.inject(Fault(LIST, status=503, times=None))

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            if seconds == 5.0:
                raise error

        monkeypatch.setattr(DaiCreateCreativeOperator, "_sleep", staticmethod(sleep))
        with pytest.raises(IngestInDoubtError, match="media.example.com/ad.mp4.*: .*Timeout, PID: 1"):
            execute(context)
        assert count(slow, CREATE) == 1

    def test_an_xcom_that_cannot_be_pushed_does_not_hide_it(
        self, slow: DaiEmulator, context: Any, ti: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        interrupt_create(monkeypatch)
        monkeypatch.setattr(type(ti), "xcom_push", fail)
        with pytest.raises(AirflowTaskTimeout):
            execute(context)
        assert slow.cancel_requested(the(slow)) == 1


def test_the_event_of_another_ingest_is_not_believed(slow: DaiEmulator, context: Any, ti: Any) -> None:
    """Airflow can mix up two triggers on SQLite."""
    ti.max_tries = 1
    with pytest.raises(TaskDeferred) as deferred:
        make(deferrable=True).execute(context)
    ended = {"name": "operations/other", "state": "SUCCEEDED"}
    event = {"operation_name": "operations/other", "status": "ended", "operation": ended}
    kwargs = {**(deferred.value.kwargs or {}), "event": event}
    with pytest.raises(AirflowException, match=f"event of operations/other .* waits for {the(slow)}"):
        make(deferrable=True).resume_execution(deferred.value.method_name, kwargs, context)
    assert slow.cancel_requested(the(slow)) == 0, "The next try goes on with it."


def test_a_failure_after_execute(slow: DaiEmulator, run_dag: Any) -> None:
    with DAG("post", schedule=None, start_date=timezone.datetime(2026, 1, 1)) as dag:
        make(wait_for_completion=False, post_execute=fail)
    assert run_dag(dag).tasks == {"ingest": "failed"}
    assert slow.cancel_requested(the(slow)) == 1


def test_a_retry_on_a_real_airflow(slow: DaiEmulator, run_dag: Any) -> None:
    """What Airflow itself keeps between two tries: on 3.3 the second goes on with the ingest of the first."""
    with DAG("retried", schedule=None, start_date=timezone.datetime(2026, 1, 1)) as dag:
        make(timeout=50, retries=1, retry_delay=0)
    slow.inject(Fault(GET, status=503, times=None))
    slow.inject(Fault(CREATE, status=429))
    assert run_dag(dag).tasks == {"ingest": "failed"}
    assert len(slow.states()) == (1 if TRIES_HAVE_MEMORY else 2)
    assert [slow.cancel_requested(name) for name in slow.states()] == [1] * len(slow.states())


def test_every_string_field_is_templated() -> None:
    assert set(DaiCreateCreativeOperator.template_fields) == {
        "creative",
        "dynamic_creative_info",
        "gcp_conn_id",
        "impersonation_chain",
        "api_endpoint",
    }
