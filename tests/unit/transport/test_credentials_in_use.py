"""Credentials in use: tasks, renewals, many waits, kills."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred
from google.api_core import exceptions

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.ingest.outcome import IngestFailedError
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator, DaiCreateCreativeOperator
from airflow_dai_provider.transport import shared_polls
from airflow_dai_provider.transport.google_errors import Unauthenticated
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.support.authentication import (
    TOKEN_METHODS,
    Form,
    SharedTime,
    Shown,
    accounts,
    happen_after,
    in_worker,
    live_on,
    refused,
)
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.credentials import (
    _FOREIGN,
    FIRST,
    LIFETIME,
    OTHER_SCOPE,
    ROBOT,
    TARGET,
    federation_text,
    key_json,
    key_of_google,
)
from tests.support.emulators import MakeEmulator, methods
from tests.support.event_loop import run
from tests.support.ingests import both
from tests.support.log import Log
from tests.support.payloads import NAME, creative
from tests.support.task_instance import Ti
from tests.support.token_server import private_key_pem

WAITS = 200
RENEWED_AT = 810


@pytest.fixture(autouse=True)
def _one_time(monkeypatch: pytest.MonkeyPatch, few_authorities: None, fake_time: Clock) -> None:
    live_on(monkeypatch, fake_time)


@pytest.fixture
def context(ti: Ti, shown: Shown) -> Iterator[dict[str, Any]]:
    yield {"ti": ti}
    shown.add(repr(ti.pushed))


def cancel_task(shown: Shown, *, deferrable: bool, context: Any, between: Callable[[], object] = bool) -> Any:
    """Execute a task from its start to its end, in the triggerer meanwhile if it defers; ``between`` comes before."""
    arguments = {"task_id": "cancel", "operation_name": NAME, "wait_for_completion": True, "timeout": 5000.0}
    task = DaiCancelOperationOperator(**arguments, deferrable=deferrable)
    try:
        return task.execute(context)
    except TaskDeferred as deferred:
        shown.add(serialized := deferred.trigger.serialize())
        shown.add(deferred.kwargs)
        between()

        async def main() -> list[Any]:
            trigger = DaiOperationTrigger(**json.loads(json.dumps(serialized[1])))
            return [event.payload async for event in trigger.run()]

        (event,) = run(main())
        shown.add(event)
        resumed = DaiCancelOperationOperator(**arguments, deferrable=True)
        arguments = {**(deferred.kwargs or {}), "event": json.loads(json.dumps(event))}
        return resumed.resume_execution(deferred.method_name, arguments, context)


@both
def test_a_task_uses_the_key_of_its_connection(
    start: MakeEmulator, connect: Connect, context: Any, shown: Shown, deferrable: bool
) -> None:
    emulator = start(cancel_seconds=1000.0, token_lifetime=LIFETIME)
    connect(keyfile_dict=emulator.service_account_key(), dai_api_endpoint=emulator.endpoint)
    emulator.start_ingest(NAME)

    assert cancel_task(shown, deferrable=deferrable, context=context) == NAME

    assert emulator.state(NAME) == "CANCELLED"
    assert accounts(emulator) == {ROBOT}
    assert emulator.tokens_issued == 2 + deferrable  # the worker's, the triggerer's, and a renewal
    assert refused(emulator) == []
    assert context["ti"].pushed["start_ingest", -1, "operation"]["state"] == "CANCELLED"


NOT_PROCESSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "scope": (
        {"scope": OTHER_SCOPE},
        "403 PERMISSION_DENIED: Request had insufficient authentication scopes",
        "The account of the connection has no access: Google must have allow-listed it for DAI.",
    ),
    "key": (
        {"private_key": _FOREIGN},
        "invalid_grant: Invalid JWT Signature.",
        "The service, or the token service, refused the credentials of the connection.",
    ),
    "anonymous": (
        {"is_anonymous": True},
        "401 UNAUTHENTICATED: Request is missing required authentication credential.",
        "The service, or the token service, refused the credentials of the connection.",
    ),
}


def connect_badly(connect: Connect, emulator: DaiEmulator, changes: dict[str, Any]) -> None:
    key = emulator.service_account_key()
    extra = {name: value for name, value in changes.items() if name not in key}
    key |= {name: value for name, value in changes.items() if name in key}
    connect(dai_api_endpoint=emulator.endpoint, **({} if "is_anonymous" in extra else {"keyfile_dict": key}), **extra)


@pytest.mark.parametrize("refusal", NOT_PROCESSED)
def test_a_task_that_is_refused_fails_with_advice(
    guarded: DaiEmulator, connect: Connect, context: Any, shown: Shown, slept: list[float], refusal: str
) -> None:
    changes, words, advice = NOT_PROCESSED[refusal]
    connect_badly(connect, guarded, changes)
    guarded.start_ingest(NAME)

    with shown.fails(AirflowFailException) as caught:
        cancel_task(shown, deferrable=False, context=context)

    assert words in str(caught.value)
    assert str(caught.value).endswith(f"{advice} {NAME} may still run.")
    assert guarded.state(NAME) == "RUNNING"
    assert context["ti"].pushed == {}
    assert slept == []


@pytest.mark.parametrize("refusal", NOT_PROCESSED)
def test_a_deferred_task_that_is_refused_fails_with_the_same_advice(
    start: MakeEmulator, connect: Connect, context: Any, shown: Shown, slept: list[float], refusal: str
) -> None:
    """Somebody has changed the connection while the task went from the worker to the triggerer."""
    changes, words, advice = NOT_PROCESSED[refusal]
    emulator = start(cancel_seconds=1000.0)
    connect_badly(connect, emulator, {})
    emulator.start_ingest(NAME)

    with shown.fails(AirflowFailException) as caught:
        cancel_task(
            shown,
            deferrable=True,
            context=context,
            between=lambda: connect_badly(connect, emulator, changes),
        )

    assert words in str(caught.value)
    assert str(caught.value).endswith(f"{advice} {NAME} may still run.")
    assert slept == []


def test_a_long_outage_of_the_token_server_may_be_retried_by_airflow(
    robot: DaiEmulator, context: Any, shown: Shown
) -> None:
    robot.inject(Fault("token", status=503, times=None))
    with shown.fails(AirflowException, f"no access token.* {NAME} may still run."):
        cancel_task(shown, deferrable=False, context=context)
    assert set(methods(robot)) == {"token"}


@pytest.mark.parametrize("call", ["get_operation", "cancel_operation"])
def test_a_token_that_is_revoked_is_renewed_once(
    drive: Form, robot: DaiEmulator, slept: list[float], call: str
) -> None:
    robot.start_ingest(NAME)
    drive(("get_operation", NAME), robot.revoke_tokens, (call, NAME), ("get_operation", NAME), ("get_operation", NAME))
    method = call.replace("_operation", "")
    assert methods(robot) == [
        *["token", "operations.get"],
        *[f"operations.{method}", "token", f"operations.{method}"],
        *["operations.get"] * 2,
    ]
    assert [request.status for request in robot.requests] == [200, 200, 401, 200, 200, 200, 200]
    assert robot.cancel_requested(NAME) == (call == "cancel_operation")
    assert robot.tokens_issued == 2
    assert slept == []


def test_a_second_401_is_an_error(drive: Form, robot: DaiEmulator, shown: Shown, slept: list[float]) -> None:
    robot.inject(Fault(status=401, times=None))
    with shown.fails(exceptions.Unauthenticated, "returned 401 UNAUTHENTICATED"):
        drive(("wait_for_operation", NAME))
    assert methods(robot) == ["token", "operations.get"] * 2
    assert slept == []


def test_a_token_that_is_refused_is_renewed_with_the_source_that_still_holds(
    drive: Form, google: tuple[DaiEmulator, list[str]], connect: Connect
) -> None:
    emulator, _ = google
    emulator.allow_impersonation(ROBOT, FIRST, TARGET)
    connect(keyfile_dict=key_of_google(emulator))
    emulator.start_ingest(NAME)
    drive(
        ("get_operation", NAME),
        lambda: emulator.inject(Fault(status=401)),
        ("get_operation", NAME),
        impersonation_chain=[FIRST, TARGET],
    )
    assert methods(emulator) == [
        *["token", "generateAccessToken", "operations.get"],
        *["operations.get", "generateAccessToken", "operations.get"],
    ]
    assert emulator.requests[-1].account == TARGET


def test_a_wait_outlives_its_token(drive: Form, robot: DaiEmulator, clock: Clock) -> None:
    robot.start_ingest(NAME, seconds=1200)
    begun = clock.now

    (ended,) = drive(("wait_for_operation", NAME))

    assert ended.state == "SUCCEEDED"
    assert robot.tokens_issued == 2
    assert refused(robot) == []
    renewed = robot.requests[methods(robot).index("token", 1)].time - begun
    assert RENEWED_AT <= renewed < RENEWED_AT + 30


def test_a_wait_outlives_a_revocation(
    drive: Form, robot: DaiEmulator, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook believes in a token that is dead: one look is made twice, and none fails."""
    robot.start_ingest(NAME, seconds=600)
    happen_after(300, robot.revoke_tokens, clock, monkeypatch)

    (ended,) = drive(("wait_for_operation", NAME))

    assert ended.state == "SUCCEEDED"
    assert refused(robot) == [("operations.get", 401)]
    assert robot.tokens_issued == 2


def test_a_short_failure_of_a_renewal_does_not_end_the_wait(
    drive: Form, robot: DaiEmulator, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the repeats of one look: the next look comes an interval later."""
    robot.start_ingest(NAME, seconds=1200)
    happen_after(600, lambda: robot.inject(Fault("token", status=503, times=30)), clock, monkeypatch)

    (ended,) = drive(("wait_for_operation", NAME))

    assert ended.state == "SUCCEEDED"
    assert refused(robot) == [("token", 503)] * 30
    assert robot.tokens_issued == 2


def wait_for_all(
    names: list[str], time: SharedTime, monkeypatch: pytest.MonkeyPatch, shown: Shown, seed: int | None = None
) -> list[Any]:
    """Wait for each in a hook of its own, as the triggers of one triggerer do; return operations and errors."""
    chance = random.Random(seed)  # noqa: S311 - for jitter
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(time.sleep))
    monkeypatch.setattr(shared_polls, "MIN_POLLS", len(names) + 1)  # each polls by itself
    monkeypatch.setattr(DaiAsyncHook, "_random", staticmethod((lambda: 0.0) if seed is None else chance.random))

    async def wait(name: str) -> Any:
        async with DaiAsyncHook() as hook:
            return await hook.wait_for_operation(name, poll_interval=120)

    async def main() -> list[Any]:
        return await asyncio.gather(*(time.outlast(wait(name)) for name in names), return_exceptions=True)

    operations = run(main())
    shown.add(operations)
    return operations


spread = pytest.mark.parametrize("seed", [None, 1], ids=["all at once", "spread out"])


@spread
@pytest.mark.parametrize("way", [key_json, federation_text])
def test_two_hundred_waits_outlive_their_token(
    start: MakeEmulator,
    connect: Connect,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    shown: Shown,
    tmp_path: Path,
    way: Callable[..., dict[str, Any]],
    seed: int | None,
) -> None:
    guarded = start(token_lifetime=400)
    connect(dai_api_endpoint=guarded.endpoint, **way(guarded, tmp_path, monkeypatch))
    names = [guarded.start_ingest(seconds=500) for _ in range(WAITS)]
    begun = clock.now

    operations = wait_for_all(names, SharedTime(clock, WAITS), monkeypatch, shown, seed)

    assert [(operation.name, operation.state) for operation in operations] == [(name, "SUCCEEDED") for name in names]
    assert refused(guarded) == []
    fetches = [request for request in guarded.requests if request.method in TOKEN_METHODS]
    by_one = 1 if way is key_json else 2
    assert len(fetches) == guarded.tokens_issued == 2 * by_one
    renewed = fetches[by_one].time - begun
    assert 360 <= renewed < 400
    looks = [request for request in guarded.requests if request.method == "operations.get"]
    assert len(looks) > 10 * WAITS
    assert {look.headers["authorization"] for look in looks if look.time - begun < renewed} != {
        look.headers["authorization"] for look in looks if look.time - begun > renewed
    }
    assert len({look.headers["authorization"] for look in looks}) == 2


@spread
def test_two_hundred_waits_outlive_a_revocation(
    robot: DaiEmulator, clock: Clock, monkeypatch: pytest.MonkeyPatch, shown: Shown, seed: int | None
) -> None:
    """All believe in a token that is dead, and all that look before the renewal are refused: still it is one."""
    names = [robot.start_ingest(seconds=200) for _ in range(WAITS)]
    time = SharedTime(clock, WAITS, {100: robot.revoke_tokens})

    operations = wait_for_all(names, time, monkeypatch, shown, seed)

    assert {operation.state for operation in operations} == {"SUCCEEDED"}
    assert robot.tokens_issued == methods(robot).count("token") == 2
    assert set(refused(robot)) == {("operations.get", 401)}
    assert len(refused(robot)) <= WAITS
    # Who was refused has looked again with the new token, and has not slept for it.
    assert methods(robot).count("operations.get") == time.slept + WAITS + len(refused(robot))


@pytest.mark.parametrize(
    ("way", "method", "status", "answer"),
    [
        (key_json, "token", 400, {"error": "invalid_grant", "error_description": "Invalid grant: account not found"}),
        (federation_text, "generateAccessToken", 403, {"error": {"code": 403, "message": "account not found"}}),
    ],
)
def test_two_hundred_waits_learn_together_that_the_account_is_gone(
    guarded: DaiEmulator,
    connect: Connect,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    shown: Shown,
    tmp_path: Path,
    way: Callable[..., dict[str, Any]],
    method: str,
    status: int,
    answer: object,
) -> None:
    connect(dai_api_endpoint=guarded.endpoint, **way(guarded, tmp_path, monkeypatch))
    names = [guarded.start_ingest() for _ in range(WAITS)]

    def delete() -> None:
        guarded.inject(Fault(method, status=status, body=json.dumps(answer).encode(), times=None))
        guarded.inject(Fault("operations.get", status=401, times=None))

    errors = wait_for_all(names, SharedTime(clock, WAITS, {100: delete}), monkeypatch, shown)

    for error in errors:
        shown.add_error(error)
    assert {type(error) for error in errors} == {Unauthenticated}
    assert [str(error) for error in errors if "no access token" not in str(error)] == []
    assert [str(error) for error in errors if "account not found" not in str(error)] == []
    assert guarded.tokens_issued == (1 if way is key_json else 2)
    assert set(guarded.states().values()) == {"RUNNING"}


def last_of(emulator: DaiEmulator) -> Any:
    return emulator.requests[-1]


def test_a_prepared_cancellation_takes_the_token_that_is_held_when_it_is_sent(robot: DaiEmulator, clock: Clock) -> None:
    robot.start_ingest(NAME)

    with DaiHook(quota_project_id="billed-project") as hook:
        hook.get_operation(NAME)
        cancel = partial(hook.prepare_cancellation(), NAME, 2)
        clock.advance(LIFETIME - 50)
        hook.get_operation(NAME)
        clock.advance(500)  # the first token is dead by now
        before = robot.tokens_issued
        cancel()

    assert robot.cancel_requested(NAME) == 1
    assert (before, robot.tokens_issued) == (2, 2)
    assert (last_of(robot).method, last_of(robot).account) == ("operations.cancel", ROBOT)
    assert last_of(robot).headers["x-goog-user-project"] == "billed-project"
    assert refused(robot) == []


@pytest.mark.parametrize("by", ["expiry", "revocation"])
def test_a_prepared_cancellation_whose_token_is_dead_fetches_none(
    robot: DaiEmulator, clock: Clock, shown: Shown, slept: list[float], by: str
) -> None:
    """The hook looks at least each interval, so that its token is dead only when somebody has seen to that."""
    robot.start_ingest(NAME)
    with DaiHook() as hook:
        hook.get_operation(NAME)
        cancel = partial(hook.prepare_cancellation(), NAME, 2)
        if by == "expiry":
            clock.advance(LIFETIME)
        else:
            robot.revoke_tokens()
        with shown.fails(exceptions.Unauthenticated, "there is no time to fetch another"):
            cancel()
    assert methods(robot) == ["token", "operations.get", "operations.cancel"]
    assert robot.cancel_requested(NAME) == 0
    assert slept == []


def test_a_prepared_cancellation_impersonates(google: tuple[DaiEmulator, list[str]], connect: Connect) -> None:
    emulator, _ = google
    emulator.allow_impersonation(ROBOT, FIRST, TARGET)
    connect(keyfile_dict=key_of_google(emulator))
    emulator.start_ingest(NAME)

    with DaiHook(impersonation_chain=[FIRST, TARGET]) as hook:
        hook.get_operation(NAME)
        hook.prepare_cancellation()(NAME, 2)

    assert (last_of(emulator).method, last_of(emulator).account) == ("operations.cancel", TARGET)
    assert emulator.tokens_issued == 2


def test_a_cancellation_that_is_prepared_before_the_first_request_has_a_token(robot: DaiEmulator) -> None:
    """A second try takes the first one's ingest before it has asked for anything, and can be killed right then."""
    robot.start_ingest(NAME)
    with DaiHook() as hook:
        hook.prepare_cancellation()(NAME, 2)
    assert robot.cancel_requested(NAME) == 1
    assert last_of(robot).account == ROBOT


def test_a_task_that_is_killed_while_it_waits_cancels_as_its_account(
    robot: DaiEmulator, clock: Clock, context: Any, monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    """As Airflow does it: from a signal handler, in the middle of a sleep, after a renewal."""
    task = DaiCreateCreativeOperator(task_id="start_ingest", creative=creative())
    happen_after(1000, task.on_kill, clock, monkeypatch)

    with shown.fails(IngestFailedError, "CANCELLED"):
        task.execute(context)

    (name,) = robot.states()
    assert robot.state(name) == "CANCELLED"
    assert robot.cancel_requested(name) == 1
    assert accounts(robot) == {ROBOT}
    assert robot.tokens_issued == 2
    assert refused(robot) == []


def test_the_sweep_sees_debug_lines_and_tracebacks(robot: DaiEmulator, shown: Shown, log: Log) -> None:
    """Guards the guard: what the other tests look through is not empty."""
    robot.start_ingest(NAME)
    robot.inject(Fault("operations.get", status=503))
    in_worker(("get_operation", NAME))
    with shown.fails(exceptions.NotFound, "unknown"):
        in_worker(("get_operation", "operations/unknown"))

    levels = {level for _, level, _ in log.everything}
    assert {"debug", "warning"} <= levels
    assert '"POST /token HTTP/1.1" 200' in shown.all()
    assert "Traceback (most recent call last)" in shown.all()
    assert len(shown.secrets()) > 20
    for secret in (f"Bearer {last_of(robot).headers['authorization']}", private_key_pem().decode(), "eyJhbGciOi"):
        leaking = Shown(shown.log, shown.caplog, shown.emulators, [secret])
        with pytest.raises(AssertionError):
            leaking.assert_nothing_secret()
