"""Keys that are replaced, and connections that are hard to look up, in both hooks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowNotFoundException, TaskDeferred
from google.api_core import exceptions

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.retry import may_have_acted
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook
from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from airflow_dai_provider.transport import shared_polls
from tests.support.airflow_versions import DEFERRAL_TIMED_OUT
from tests.support.authentication import Form, SharedTime, Shown, happen_after, live_on
from tests.support.clock import Clock
from tests.support.connections import Connect, LookUpFails
from tests.support.credentials import LIFETIME
from tests.support.emulators import count
from tests.support.event_loop import fire, run
from tests.support.hooks import cases
from tests.support.ingests import make, the
from tests.support.log import Log
from tests.support.payloads import NAME
from tests.support.task_instance import Ti

WAITS = 50


@pytest.fixture(autouse=True)
def _one_time(monkeypatch: pytest.MonkeyPatch, few_authorities: None, fake_time: Clock) -> None:
    live_on(monkeypatch, fake_time)


@pytest.fixture(params=["key_path", "keyfile_dict"])
def rotate(
    request: pytest.FixtureRequest, guarded: DaiEmulator, connect: Connect, tmp_path: Path
) -> Callable[[], None]:
    """Let the connection hold a key; give a function that replaces it, there and at the token service."""
    path = tmp_path / "key.json"

    def save() -> None:
        if request.param == "key_path":
            guarded.write_key_file(path)
            connect(key_path=str(path), dai_api_endpoint=guarded.endpoint)
        else:
            connect(keyfile_dict=guarded.service_account_key(), dai_api_endpoint=guarded.endpoint)

    def replace() -> None:
        guarded.replace_key()
        save()

    save()
    return replace


@pytest.mark.parametrize("revoked", [False, True], ids=["tokens expire", "tokens are revoked"])
def test_a_wait_outlasts_the_rotation_of_its_key(
    drive: Form, guarded: DaiEmulator, clock: Clock, rotate: Callable[[], None], revoked: bool
) -> None:
    guarded.start_ingest(NAME, seconds=3 * LIFETIME)

    def happens() -> None:
        rotate()
        if revoked:
            guarded.revoke_tokens()

    *_, ended = drive(("get_operation", NAME), happens, ("wait_for_operation", NAME))

    assert ended.state == "SUCCEEDED"
    assert [r.status for r in guarded.requests if r.method == "token"].count(400) == 1


def test_fifty_waits_on_one_loop_outlast_the_rotation_of_their_key(
    guarded: DaiEmulator, clock: Clock, rotate: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that began before share one session; one more begins after the rotation."""
    names = [guarded.start_ingest(seconds=1.5 * LIFETIME) for _ in range(WAITS)]
    shared = SharedTime(clock, WAITS, {LIFETIME / 2: rotate})
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(shared.sleep))
    monkeypatch.setattr(shared_polls, "MIN_POLLS", WAITS + 1)  # each polls by itself

    async def main() -> list[Any]:
        waits = (shared.outlast(DaiAsyncHook().wait_for_operation(name, poll_interval=100)) for name in names)
        return await asyncio.gather(*waits)

    ended = run(main())
    assert {operation.state for operation in ended} == {"SUCCEEDED"}
    assert [r.status for r in guarded.requests if r.method == "token"].count(400) == 1

    async def later() -> Any:
        async with DaiAsyncHook() as hook:
            return await hook.get_operation(names[0])

    assert run(later()).state == "SUCCEEDED"


def test_credentials_that_are_refused_with_a_fresh_token_too_are_read_anew(
    drive: Form, robot: DaiEmulator, connect: Connect
) -> None:
    robot.start_ingest(NAME)

    def refuse() -> None:
        key = robot.service_account_key("other@emulator.iam.gserviceaccount.com")
        connect(keyfile_dict=key, dai_api_endpoint=robot.endpoint)
        robot.inject(Fault("operations.get", status=401, times=2))

    drive(("get_operation", NAME), refuse, ("get_operation", NAME))

    assert robot.requests[-1].account == "other@emulator.iam.gserviceaccount.com"
    assert count(robot, "operations.get") == 4


def test_a_key_that_was_withdrawn_and_not_replaced_is_permanent(
    drive: Form, robot: DaiEmulator, shown: Shown, slept: list[float]
) -> None:
    robot.start_ingest(NAME)

    def withdraw() -> None:
        robot.replace_key()
        robot.revoke_tokens()

    with shown.fails(exceptions.Unauthenticated, "Invalid JWT Signature"):
        drive(("get_operation", NAME), withdraw, ("wait_for_operation", NAME))
    assert count(robot, "token") == 2
    assert slept == []


def _with_half_a_key(content: str) -> str:
    key = json.loads(content)
    return json.dumps({**key, "private_key": key["private_key"][:200]})


def key_path(path: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"key_path": str(path)}


def variable(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    return {}


def file_of_gcloud(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(path.parent))
    return {}


UNFINISHED: dict[str, Callable[[str], str | None]] = {
    "missing": lambda _: None,
    "empty": lambda _: "",
    "half of the JSON": lambda content: content[: len(content) // 2],
    "half of the key": _with_half_a_key,
}


@pytest.mark.parametrize(
    ("source", "unfinished"),
    [(key_path, name) for name in UNFINISHED]
    + [(variable, name) for name in ("missing", "half of the JSON")]
    + [(file_of_gcloud, "half of the JSON")],
)
def test_a_wait_outlasts_a_key_file_that_is_unreadable_while_it_is_replaced(
    drive: Form,
    guarded: DaiEmulator,
    connect: Connect,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: Callable[[Path, pytest.MonkeyPatch], dict[str, Any]],
    unfinished: str,
) -> None:
    path = tmp_path / "application_default_credentials.json"
    guarded.write_key_file(path)
    connect(dai_api_endpoint=guarded.endpoint, **source(path, monkeypatch))
    guarded.start_ingest(NAME, seconds=200)

    def begin() -> None:
        guarded.replace_key()
        guarded.revoke_tokens()
        guarded.write_key_file(path)
        whole = path.read_text()
        path.unlink()
        if (content := UNFINISHED[unfinished](whole)) is not None:
            path.write_text(content)
        happen_after(100, lambda: path.write_text(whole), clock, monkeypatch)

    *_, ended = drive(("get_operation", NAME), begin, ("wait_for_operation", NAME))
    assert ended.state == "SUCCEEDED"


def test_a_key_file_that_stays_unreadable_ends_a_wait_as_unavailable(
    drive: Form, guarded: DaiEmulator, connect: Connect, clock: Clock, tmp_path: Path, shown: Shown
) -> None:
    path = tmp_path / "key.json"
    guarded.write_key_file(path)
    connect(key_path=str(path), dai_api_endpoint=guarded.endpoint)
    guarded.start_ingest(NAME)
    began = clock.now

    def lose() -> None:
        guarded.replace_key()
        guarded.revoke_tokens()
        path.unlink()

    with shown.fails(exceptions.ServiceUnavailable, "gives no usable credentials: key_path .*key.json: .*No such file"):
        drive(("get_operation", NAME), lose, ("wait_for_operation", NAME))
    assert 300 <= clock.now - began < 360


@pytest.mark.parametrize("content", [None, "", "{"], ids=["missing", "empty", "half"])
def test_a_wait_outlasts_a_file_of_the_workload_that_is_unreadable_while_it_is_replaced(
    drive: Form,
    guarded: DaiEmulator,
    connect: Connect,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
) -> None:
    """The subject token, which a workload's platform replaces."""
    path = tmp_path / "subject.json"

    def write() -> None:
        path.write_text(json.dumps({"subject_token": guarded.issue_subject_token()}))

    write()
    form = {"type": "json", "subject_token_field_name": "subject_token"}
    config = {**guarded.external_account_config(), "credential_source": {"file": str(path), "format": form}}
    connect(credential_config_file=config, dai_api_endpoint=guarded.endpoint)
    guarded.start_ingest(NAME, seconds=200)

    def begin() -> None:
        guarded.revoke_tokens()
        path.unlink()
        if content is not None:
            path.write_text(content)
        happen_after(100, write, clock, monkeypatch)

    *_, ended = drive(("get_operation", NAME), begin, ("wait_for_operation", NAME))
    assert ended.state == "SUCCEEDED"


def test_a_file_of_the_workload_that_is_missing_at_the_first_use_is_an_error(
    drive: Form, guarded: DaiEmulator, connect: Connect, shown: Shown, slept: list[float]
) -> None:
    config = {**guarded.external_account_config(), "credential_source": {"file": "/nowhere/subject"}}
    connect(credential_config_file=config, dai_api_endpoint=guarded.endpoint)
    with shown.fails(exceptions.Unauthenticated, "File '/nowhere/subject' was not found"):
        drive(("wait_for_operation", NAME))
    assert slept == []


def test_a_bad_file_of_gcloud_is_named_at_the_first_use(
    drive: Form,
    guarded: DaiEmulator,
    connect: Connect,
    shown: Shown,
    slept: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "application_default_credentials.json"
    path.write_text("{")
    connect(dai_api_endpoint=guarded.endpoint, **file_of_gcloud(path, monkeypatch))
    with shown.fails(exceptions.Unauthenticated, f"application default credentials {path}: "):
        drive(("wait_for_operation", NAME))
    assert slept == []


AWAY: dict[str, Exception] = {
    "secrets backend": ConnectionError("vault is sealed"),
    "API server": RuntimeError("API_SERVER_ERROR"),
    "undefined, says Airflow": AirflowNotFoundException("The conn_id `google_cloud_default` isn't defined"),
}


@pytest.mark.parametrize("error", **cases(AWAY))
@pytest.mark.parametrize("seconds", [2, 200])
def test_a_wait_outlasts_a_failing_look_up_of_its_connection(
    drive: Form, robot: DaiEmulator, look_up_fails: LookUpFails, error: Exception, seconds: float
) -> None:
    robot.start_ingest(NAME, seconds=300)
    look_up_fails(error, seconds)
    (ended,) = drive(("wait_for_operation", NAME))
    assert ended.state == "SUCCEEDED"


@pytest.mark.parametrize("error", **cases(AWAY))
def test_a_sensor_outlasts_a_failing_look_up_and_then_cancels_when_killed(
    robot: DaiEmulator, look_up_fails: LookUpFails, error: Exception
) -> None:
    robot.start_ingest(NAME, seconds=300)
    look_up_fails(error, 20)
    sensor = DaiOperationSensor(task_id="wait", operation_name=NAME, cancel_on_kill=True)
    sensor.poke({})
    sensor.on_kill()
    assert robot.cancel_requested(NAME) == 1


@pytest.mark.parametrize("names", [NAME, [NAME]], ids=["one", "a list"])
@pytest.mark.parametrize("error", **cases(AWAY))
def test_a_sensor_bears_a_failing_look_up_for_as_long_as_an_outage(
    robot: DaiEmulator, look_up_fails: LookUpFails, clock: Clock, error: Exception, names: Any
) -> None:
    robot.start_ingest(NAME, seconds=300)
    look_up_fails(error, 200)
    poked = DaiOperationSensor(task_id="wait", operation_name=names).poke({})
    assert not poked
    assert 200 <= sum(clock.slept) < 300
    began = sum(clock.slept)
    look_up_fails(error)
    with pytest.raises(AirflowException, match=f"'google_cloud_default' could not be looked up.* {NAME} may still run"):
        DaiOperationSensor(task_id="wait", operation_name=names).poke({})
    assert 290 <= sum(clock.slept) - began <= 300


@pytest.mark.parametrize("names", [NAME, [NAME]], ids=["one", "a list"])
def test_the_look_up_and_the_polls_share_one_outage(
    robot: DaiEmulator, look_up_fails: LookUpFails, clock: Clock, names: Any
) -> None:
    robot.start_ingest(NAME)
    look_up_fails(AWAY["secrets backend"], 200)
    robot.inject(Fault(method="operations.get", status=503, times=None))
    with pytest.raises(AirflowException, match="UNAVAILABLE"):
        DaiOperationSensor(task_id="wait", operation_name=names).poke({})
    assert sum(clock.slept) == pytest.approx(300)


@pytest.mark.parametrize("names", [NAME, [NAME]], ids=["one", "a list"])
def test_a_deferrable_sensor_leaves_a_failing_look_up_to_the_triggerer(
    robot: DaiEmulator, look_up_fails: LookUpFails, clock: Clock, log: Log, names: Any, ti: Ti
) -> None:
    robot.start_ingest(NAME, seconds=30)
    look_up_fails(AWAY["secrets backend"], 100)
    with pytest.raises(TaskDeferred) as deferred:
        DaiOperationSensor(task_id="wait", operation_name=names, deferrable=True).execute({"ti": ti})
    assert clock.slept == []
    assert any("The first poll failed: " in line and "could not be looked up" in line for line in log.ours)
    assert fire(deferred.value)["status"] == "finished"


@pytest.mark.parametrize("names", [NAME, [NAME]], ids=["one", "a list"])
def test_the_last_poll_of_a_deferral_outlasts_a_failing_look_up(
    robot: DaiEmulator, look_up_fails: LookUpFails, names: Any, ti: Ti
) -> None:
    robot.start_ingest(NAME, seconds=0)
    look_up_fails(AWAY["secrets backend"], 15)
    sensor = DaiOperationSensor(task_id="wait", operation_name=names, deferrable=True)
    assert sensor.resume_execution("__fail__", {"error": DEFERRAL_TIMED_OUT}, {"ti": ti})


@pytest.mark.parametrize("error", **cases(AWAY))
def test_a_notifier_looks_the_connection_up_again_in_its_time(
    robot: DaiEmulator, look_up_fails: LookUpFails, error: Exception
) -> None:
    names = [robot.start_ingest() for _ in range(20)]
    look_up_fails(error, 3)
    DaiCancelOperationNotifier(names).notify({})
    assert set(robot.states().values()) == {"CANCELLED"}
    assert robot.tokens_issued == 1


def test_a_notifier_gives_up_when_its_time_is_over(
    robot: DaiEmulator, look_up_fails: LookUpFails, clock: Clock
) -> None:
    look_up_fails(AWAY["secrets backend"])
    with pytest.raises(
        AirflowException, match=f"{NAME} may still run: .*'google_cloud_default' could not be looked up"
    ):
        DaiCancelOperationNotifier(NAME, timeout=7).notify({})
    assert 7 <= sum(clock.slept) < 10


@pytest.mark.parametrize("error", **cases(AWAY))
def test_a_resumed_task_that_fails_looks_the_connection_up_again_to_cancel(
    robot: DaiEmulator, look_up_fails: LookUpFails, error: Exception, ti: Ti
) -> None:
    ti.task_id = "ingest"
    context: Any = {"ti": ti}
    with pytest.raises(TaskDeferred):
        make(deferrable=True).execute(context)
    look_up_fails(error, 5)
    event = {"operation_name": the(robot), "status": "timeout", "message": "too late"}
    with pytest.raises(AirflowException, match="too late"):
        make(deferrable=True).resume_execution("execute_complete", {"event": event}, context)
    assert robot.cancel_requested(the(robot)) == 1


@pytest.mark.parametrize("error", **cases(AWAY))
def test_a_look_up_that_fails_for_too_long_ends_the_wait(
    drive: Form,
    robot: DaiEmulator,
    look_up_fails: LookUpFails,
    error: Exception,
    shown: Shown,
    clock: Clock,
) -> None:
    began = clock.now
    look_up_fails(error)
    with shown.fails(exceptions.ServiceUnavailable, "connection 'google_cloud_default' could not be looked") as caught:
        drive(("wait_for_operation", NAME))
    assert isinstance(caught.value, AirflowNotFoundException) == isinstance(error, AirflowNotFoundException)
    assert isinstance(caught.value, ServiceError)
    assert not caught.value.sent
    assert 300 <= clock.now - began < 360


def test_the_credentials_are_not_read_anew_while_the_look_up_fails(
    drive: Form, guarded: DaiEmulator, rotate: Callable[[], None], look_up_fails: LookUpFails, clock: Clock
) -> None:
    """Nothing is refused for good before the connection could be looked up again."""
    guarded.start_ingest(NAME, seconds=500)

    def happens() -> None:
        rotate()
        guarded.revoke_tokens()
        look_up_fails(ConnectionError("vault is sealed"), 100)

    *_, ended = drive(("get_operation", NAME), happens, ("wait_for_operation", NAME))
    assert ended.state == "SUCCEEDED"


def _unreadable(folder: Path) -> str:
    (folder / "key.json").write_text("{")
    return str(folder / "key.json")


UNUSABLE: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "missing file": (lambda _: {"key_path": "/nowhere/key.json"}, "key_path /nowhere/key.json: .*No such file"),
    "a folder": (lambda folder: {"key_path": f"{folder}/.json"}, "key_path .*: .*No such file"),
    "a file that is no JSON": (lambda folder: {"key_path": _unreadable(folder)}, "key_path .*key.json: "),
    "a file of another kind": (lambda _: {"key_path": "/nowhere/key.p12"}, "key_path .*: Legacy P12"),
    "no private key": (lambda _: {"keyfile_dict": {"type": "service_account"}}, "keyfile_dict: 'private_key' is miss"),
    "an odd private key": (lambda _: {"keyfile_dict": {"private_key": 1}}, "keyfile_dict: "),
    "not JSON": (lambda _: {"keyfile_dict": "{"}, "keyfile_dict: Invalid key JSON"),
    "a list": (lambda _: {"keyfile_dict": "[1]"}, "keyfile_dict: "),
    "two keys": (lambda _: {"keyfile_dict": '{"a": 1}', "key_path": "/a.json"}, "mutually exclusive"),
    "bad configuration": (lambda _: {"credential_config_file": "{"}, "credential_config_file: "),
}


@pytest.mark.parametrize(("extra", "words"), **cases(UNUSABLE))
def test_a_connection_without_usable_credentials_is_named(
    drive: Form,
    guarded: DaiEmulator,
    connect: Connect,
    tmp_path: Path,
    shown: Shown,
    slept: list[float],
    extra: Callable[[Path], dict[str, Any]],
    words: str,
) -> None:
    connect(conn_id="dai", dai_api_endpoint=guarded.endpoint, **extra(tmp_path))
    with shown.fails(exceptions.Unauthenticated, f"'dai' gives no usable credentials: .*{words}") as caught:
        drive(("wait_for_operation", NAME), gcp_conn_id="dai")
    assert isinstance(caught.value, ServiceError)
    assert caught.value.rpc_code is Code.FAILED_PRECONDITION, "No service has refused anything."
    assert not may_have_acted(caught.value)
    assert slept == []


def test_a_connection_of_another_type_is_named(
    drive: Form, monkeypatch: pytest.MonkeyPatch, shown: Shown, slept: list[float]
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_DAI", json.dumps({"conn_type": "postgres", "host": "db", "password": "s3cret"}))
    with shown.fails(exceptions.GoogleAPICallError, "'dai' gives no usable credentials: .*, got 'postgres'"):
        drive(("wait_for_operation", NAME), gcp_conn_id="dai")
    assert slept == []
