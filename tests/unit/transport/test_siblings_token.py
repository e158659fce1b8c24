"""The token that the siblings of a hook share, each on a thread of its own."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseHook
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials, Credentials

from airflow_dai_provider.api.errors import Code
from airflow_dai_provider.api.many_wait import ManyWait
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.transport.shared_token import REFUSAL_LASTS, HeldToken, Token
from airflow_dai_provider.transport.unsent import NoTokenError
from tests.support.authentication import Shown, live_on
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.credentials import LIFETIME, ROBOT
from tests.support.emulators import count
from tests.support.event_loop import Gate, run
from tests.support.payloads import NAME
from tests.support.threads import untraced, wait_until
from tests.support.tiny_server import Exchange, TinyServer
from tests.support.token_server import TokenServer

SIBLINGS = 50
OTHER = "other@emulator.iam.gserviceaccount.com"


@pytest.fixture
def on_clock(monkeypatch: pytest.MonkeyPatch, few_authorities: None, fake_time: Clock) -> Clock:
    live_on(monkeypatch, fake_time)
    return fake_time


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each connection is looked up."""
    real, seen = BaseHook.get_connection, Counter[str]()

    def get_connection(conn_id: str) -> Any:
        seen[conn_id] += 1
        return real(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(get_connection))
    return seen


def by_siblings(hook: DaiHook, call: Callable[[DaiHook], Any], meanwhile: Callable[[], object] = bool) -> list[Any]:
    """Make a call with each of fifty siblings at once; return the results and the errors."""
    siblings = [hook.sibling() for _ in range(SIBLINGS)]
    together = threading.Barrier(SIBLINGS)

    def attempt(sibling: DaiHook) -> Any:
        with sibling:
            together.wait(10)
            try:
                return call(sibling)
            except Exception as error:
                return error

    with ThreadPoolExecutor(SIBLINGS) as threads:
        outcomes = threads.map(attempt, siblings)
        meanwhile()
        return list(outcomes)


def get(hook: DaiHook) -> str:
    return str(hook.get_operation(NAME).state)


def get_as_a_user(hook: DaiHook) -> str:
    response = hook.get_conn().get(f"{hook.endpoint.url}/v1/{NAME}")
    assert response.status_code == 200, response.text
    return "RUNNING"


def waiting_threads() -> int:
    """Return how many threads wait for one that fetches a token."""
    frames = sys._current_frames().values()
    return sum(frame.f_code is Token.get.__code__ for frame in frames)


@pytest.mark.parametrize("call", [get, get_as_a_user])
@pytest.mark.parametrize("seconds", [LIFETIME, LIFETIME - 10], ids=["expired", "soon expires"])
def test_fifty_siblings_whose_token_expires_fetch_one(
    robot: DaiEmulator, on_clock: Clock, call: Callable[[DaiHook], str], seconds: float
) -> None:
    robot.start_ingest(NAME, seconds=1e9)
    with DaiHook() as hook:
        get(hook)
        on_clock.advance(seconds)

        assert by_siblings(hook, call) == ["RUNNING"] * SIBLINGS
        assert get(hook) == "RUNNING"

    assert (robot.tokens_issued, count(robot, "token")) == (2, 2)
    assert {request.status for request in robot.requests} == {200}


def test_fifty_siblings_without_a_token_fetch_one(robot: DaiEmulator, on_clock: Clock) -> None:
    robot.start_ingest(NAME, seconds=1e9)
    with DaiHook() as hook:
        assert by_siblings(hook, get) == ["RUNNING"] * SIBLINGS
    assert count(robot, "token") == 1


def test_fifty_siblings_whose_token_is_refused_fetch_one(robot: DaiEmulator, on_clock: Clock) -> None:
    robot.start_ingest(NAME, seconds=1e9)
    with DaiHook() as hook:
        get(hook)
        robot.revoke_tokens()

        assert by_siblings(hook, get) == ["RUNNING"] * SIBLINGS

    assert (robot.tokens_issued, count(robot, "token")) == (2, 2)
    assert on_clock.slept == []


@pytest.mark.parametrize("revoked", [False, True], ids=["the token expires", "the token is revoked"])
def test_one_look_up_after_a_rotation_serves_all_siblings(
    robot: DaiEmulator, on_clock: Clock, connect: Connect, look_ups: Counter[str], revoked: bool
) -> None:
    robot.start_ingest(NAME, seconds=1e9)
    with DaiHook() as hook, hook.sibling() as idle:
        session = idle.get_conn()
        get(hook)
        look_ups.clear()
        robot.replace_key()
        connect(keyfile_dict=robot.service_account_key(OTHER), dai_api_endpoint=robot.endpoint)
        if revoked:
            robot.revoke_tokens()
        else:
            on_clock.advance(LIFETIME)

        assert by_siblings(hook, get) == ["RUNNING"] * SIBLINGS
        assert get(hook) == get_as_a_user(idle) == "RUNNING"
        assert session.credentials.service_account_email == OTHER

    assert look_ups == {"google_cloud_default": 1}
    assert [request.status for request in robot.requests if request.method == "token"] == [200, 400, 200]
    assert {request.account for request in robot.requests[-SIBLINGS:]} == {OTHER}


def test_one_look_up_serves_all_siblings_whose_fresh_token_is_refused_too(
    tokens: TokenServer, connect: Connect, on_clock: Clock, look_ups: Counter[str]
) -> None:
    """The key is the same as before, so all of them fail."""
    together = threading.Barrier(SIBLINGS)

    def respond(exchange: Exchange) -> None:
        if exchange.headers["Authorization"] == f"Bearer {tokens.issued[0]}":
            together.wait(10)
        exchange.answer(401, {"error": {"code": 401, "status": "UNAUTHENTICATED", "message": "no"}})

    with TinyServer(respond) as server:
        connect(keyfile_dict=tokens.key, dai_api_endpoint=server.endpoint)
        with DaiHook() as hook:
            hook.connect()
            look_ups.clear()
            errors = by_siblings(hook, get)

    assert {type(error).__name__ for error in errors} == {"Unauthenticated"}
    assert (tokens.asked, look_ups) == (2, {"google_cloud_default": 1})


def test_siblings_that_wait_for_a_token_share_its_refusal(
    tokens: TokenServer, connect: Connect, emulator: DaiEmulator, on_clock: Clock
) -> None:
    """They do not queue to ask one after the other; each error names its own request and no secret."""
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    tokens.refusal = (400, {"error": "invalid_grant", "error_description": "Account disabled."})
    tokens.gate = Gate()

    def answer() -> None:
        wait_until(lambda: waiting_threads() == SIBLINGS - 1)
        assert tokens.gate
        tokens.gate.open()

    with DaiHook() as hook:
        errors = by_siblings(hook, get, meanwhile=answer)
        assert {type(error).__name__ for error in errors} == {"Unauthenticated"}
        assert {str(error).split(" (")[0] for error in errors} == {
            f"operations.get of {NAME} was not sent: no access token: invalid_grant: Account disabled."
        }
        assert (tokens.asked, tokens.gate.blocked) == (1, False)
        for error in errors:
            with tokens.fails(exceptions.Unauthenticated, "Account disabled"):
                raise error

        tokens.refusal = None
        emulator.start_ingest(NAME)
        assert get(hook) == "RUNNING"
    assert tokens.asked == 2


def in_threads(names: list[str]) -> tuple[set[Any], Callable[[], Any]]:
    """Poll operations with the workers of a hook; return the codes, and what polls again."""
    hook = DaiHook()
    with hook.workers(4) as workers:
        outcomes = list(workers.call(names, lambda one, name: one.get_operation(name)))
    return {error and error.rpc_code for _, _, error in outcomes}, lambda: hook.get_operation(NAME)


def on_a_loop(names: list[str]) -> tuple[set[Any], Callable[[], Any]]:
    """Poll operations with an asynchronous hook; return the codes, and what polls again."""
    hook = DaiAsyncHook()
    many = ManyWait(names, hook.make_wait("the operations"))
    run(hook.wait_for_many(many))
    return {error.rpc_code for error in many.failed.values()}, lambda: run(hook.get_operation(NAME))


@pytest.mark.parametrize("call", [in_threads, on_a_loop])
def test_one_refusal_of_the_credentials_serves_a_long_list(
    tokens: TokenServer,
    connect: Connect,
    emulator: DaiEmulator,
    on_clock: Clock,
    look_ups: Counter[str],
    call: Callable[[list[str]], tuple[set[Any], Callable[[], Any]]],
) -> None:
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    tokens.refusal = (400, {"error": "invalid_grant"})
    codes, call_again = call([f"operations/{number}" for number in range(200)])
    assert codes == {Code.UNAUTHENTICATED}
    assert (tokens.asked, look_ups) == (1, {"google_cloud_default": 2}), "The second: was the key replaced?"

    tokens.refusal = None
    emulator.start_ingest(NAME)
    on_clock.advance(REFUSAL_LASTS)
    assert call_again().state == "RUNNING"


def test_a_token_that_lives_shortly_is_not_fetched_for_every_request(
    start: Callable[..., DaiEmulator], connect: Connect, on_clock: Clock
) -> None:
    emulator = start(token_lifetime=100)
    connect(keyfile_dict=emulator.service_account_key(), dai_api_endpoint=emulator.endpoint)
    emulator.start_ingest(NAME, seconds=1e9)
    with DaiHook() as hook:
        for _ in range(10):
            get(hook)
            on_clock.advance(20)
    assert count(emulator, "token") == 2


def test_a_token_that_a_user_has_renewed_is_used(robot: DaiEmulator, on_clock: Clock, shown: Shown) -> None:
    """The session of ``get_conn`` is google-auth's, which renews the token by rules of its own."""
    robot.start_ingest(NAME, seconds=1e9)
    with DaiHook() as hook:
        get(hook)
        on_clock.advance(LIFETIME - 200)
        get_as_a_user(hook)
        assert count(robot, "token") == 2
        get(hook)
    used = [request.headers["authorization"] for request in robot.requests if request.method == "operations.get"]
    assert used[1] == used[2] != used[0]
    assert count(robot, "token") == 2
    assert robot.requests[-1].account == ROBOT


@pytest.mark.parametrize("holder", ["another thread", "the interrupted thread"])
def test_a_prepared_cancellation_does_not_wait_for_a_fetch(
    tokens: TokenServer, connect: Connect, emulator: DaiEmulator, on_clock: Clock, holder: str
) -> None:
    """A signal handler sends it, and the token service does not respond to the thread that fetches a token."""
    connect(keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
    emulator.start_ingest(NAME)
    with DaiHook() as hook:
        get(hook)
        cancel = partial(hook.prepare_cancellation(), NAME, 2)
        tokens.gate = gate = Gate()
        emulator.inject(Fault("operations.get", status=401))
        locked: list[bool] = []

        def handle(*_: object) -> None:
            locked.append(hook.shared_token()._lock.locked())
            cancel()
            gate.open()

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            with untraced(), ThreadPoolExecutor(1) as other, hook.sibling() as sibling:
                if holder == "another thread":
                    fetching = other.submit(get, sibling)
                    wait_until(lambda: gate.entered)
                    signal.raise_signal(signal.SIGUSR1)
                    fetching.result()
                else:
                    main = threading.get_ident()
                    other.submit(lambda: (wait_until(lambda: gate.entered), signal.pthread_kill(main, signal.SIGUSR1)))
                    get(hook)
        finally:
            signal.signal(signal.SIGUSR1, before)

    assert locked == [True]
    assert emulator.cancel_requested(NAME) == 1
    assert not gate.blocked
    assert (tokens.asked, len(tokens.issued)) == (2, 2)


class Numbered(Credentials):  # type: ignore[misc]
    """Credentials that get the token 1, then 2, and so on, of which none expires."""

    def refresh(self, _: Any) -> None:
        self.token = str(int(self.token or 0) + 1)


def test_a_token_that_another_call_has_fetched_meanwhile_replaces_a_refused_one() -> None:
    token = Token(Numbered(), 1.0)
    first = token.get()
    second = token.get(first)
    assert second.headers == {"authorization": "Bearer 2"}
    assert token.get(first) is token.get() is second


def test_a_token_of_refused_credentials_does_not_replace_those() -> None:
    """Another call has fetched it, after its own first refusal."""
    other = Numbered()
    token = Token(Numbered(), 1.0, lambda: other)
    first = token.get()
    refused_twice = token.get(first)
    token.get(refused_twice)
    assert token.get(refused_twice, read_again=True).credentials is other
    assert token.get(refused_twice, read_again=True).headers == {"authorization": "Bearer 1"}


@pytest.mark.parametrize("credentials", [Numbered(), AnonymousCredentials()], ids=["a key", "anonymous"])
def test_refused_credentials_that_are_not_replaced_are_the_last(credentials: Credentials) -> None:
    token = Token(credentials, 1.0)
    refused = token.get()
    assert token.get(refused, read_again=True) is refused


def test_a_token_is_read_anew_only_after_it_was_refused_by_the_token_service_or_twice() -> None:
    looked_up: list[str] = []
    token = Token(Numbered(), 1.0, lambda: looked_up.append("once"))  # type: ignore[func-returns-value]
    refused = token.get(token.get())
    assert looked_up == []
    for _ in range(3):
        token.get(refused, read_again=True)
    assert looked_up == ["once"]


def test_a_held_token_is_that_of_the_moment() -> None:
    other: list[Token] = []
    held = HeldToken(lambda: other[0] if other else None)
    with pytest.raises(NoTokenError, match="no token at hand"):
        held.get()
    other.append(token := Token(Numbered(), 1.0))
    with pytest.raises(NoTokenError, match="no token at hand"):
        held.get()
    first = token.get()
    assert held.get() is first
    second = token.get(first)
    assert held.get() is second
    with pytest.raises(NoTokenError, match="no time to fetch another"):
        held.get(second)
