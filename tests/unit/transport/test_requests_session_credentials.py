"""Credentials of the requests session."""

from __future__ import annotations

import json
import traceback
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions
from google.auth import jwt

from airflow_dai_provider.api.names import InvalidNameError
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from tests.support.connections import Connect
from tests.support.emulators import bearers, methods
from tests.support.event_loop import Gate
from tests.support.hooks import MakeHook
from tests.support.payloads import NAME, SIGNED_URL, creative
from tests.support.token_server import TokenServer


def test_a_key_in_the_connection_authorises_every_call_with_one_token(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer
) -> None:
    name = emulator.start_ingest()
    for _ in range(19):
        keyed_hook.get_operation(name)
    keyed_hook.cancel_operation(name)

    assert len(tokens.issued) == 1
    assert bearers(emulator) == [f"Bearer {tokens.issued[0]}"] * 20
    assert emulator.connections == 1


def test_a_key_in_a_file_is_used(
    tokens: TokenServer, emulator: DaiEmulator, connect: Connect, make_hook: MakeHook, tmp_path: Path
) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(tokens.key))
    connect(key_path=str(path), dai_api_endpoint=emulator.endpoint)

    make_hook().get_operation(emulator.start_ingest())

    assert bearers(emulator) == [f"Bearer {tokens.issued[0]}"]


def test_application_default_credentials_are_used(
    tokens: TokenServer,
    emulator: DaiEmulator,
    connect: Connect,
    make_hook: MakeHook,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(tokens.key))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    connect()

    make_hook(api_endpoint=emulator.endpoint).get_operation(emulator.start_ingest())

    assert bearers(emulator) == [f"Bearer {tokens.issued[0]}"]


@pytest.mark.parametrize(
    ("extra", "scope"),
    [({}, "https://www.googleapis.com/auth/cloud-platform"), ({"scope": "https://s.example/a"}, "https://s.example/a")],
    ids=["default", "of the connection"],
)
def test_the_scopes_of_the_connection_are_requested(
    tokens: TokenServer, emulator: DaiEmulator, connect: Connect, make_hook: MakeHook, extra: dict[str, str], scope: str
) -> None:
    connect(keyfile_dict=tokens.key, **extra)

    make_hook(api_endpoint=emulator.endpoint).get_operation(emulator.start_ingest())

    assert jwt.decode(tokens.assertions[0], verify=False)["scope"] == scope


def test_a_prepared_cancellation_uses_the_current_token(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer
) -> None:
    """In a signal handler there is no time to fetch one, and the session of the task may be in use."""
    name = emulator.start_ingest()
    keyed_hook.get_operation(name)
    cancel = partial(keyed_hook.prepare_cancellation(), name, 2)
    keyed_hook.get_credentials().expiry = datetime.now(UTC).replace(tzinfo=None)  # so that the hook renews it
    keyed_hook.get_operation(name)

    cancel()

    assert emulator.cancel_requested(name) == 1
    assert methods(emulator) == 2 * ["operations.get"] + ["operations.cancel"]
    assert bearers(emulator) == [f"Bearer {tokens.issued[number]}" for number in (0, 1, 1)]
    assert len(tokens.issued) == 2
    assert emulator.requests[-1].headers["x-goog-api-client"].startswith("gl-python/")
    assert [request.connection for request in emulator.requests] == [1, 1, 2]


def test_a_prepared_cancellation_is_neither_retried_nor_given_a_new_token(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, slept: list[float]
) -> None:
    name = emulator.start_ingest()
    keyed_hook.get_operation(name)
    for status, error, words in (
        (401, exceptions.Unauthenticated, "no time to fetch another"),
        (503, exceptions.ServiceUnavailable, "503 UNAVAILABLE"),
    ):
        emulator.inject(Fault("operations.cancel", status=status))
        with tokens.fails(error, words):
            keyed_hook.prepare_cancellation()(name, 2)

    assert methods(emulator) == ["operations.get"] + 2 * ["operations.cancel"]
    assert len(tokens.issued) == 1
    assert slept == []


def test_a_prepared_cancellation_needs_no_credentials(hook: DaiHook, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest()
    hook.prepare_cancellation()(name, 2)

    assert emulator.cancel_requested(name) == 1
    assert bearers(emulator) == [None]


def test_a_prepared_cancellation_refuses_an_invalid_name(hook: DaiHook) -> None:
    with pytest.raises(InvalidNameError):
        hook.prepare_cancellation()("creatives/x", 2)


@pytest.mark.parametrize("call", ["get", "cancel", "create"])
def test_a_401_is_retried_once_with_a_new_token(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, slept: list[float], call: str
) -> None:
    name = emulator.start_ingest()
    keyed_hook.get_operation(name)
    emulator.forget_requests()
    emulator.inject(Fault(status=401))

    if call == "get":
        keyed_hook.get_operation(name)
    elif call == "cancel":
        keyed_hook.cancel_operation(name)
    else:
        keyed_hook.create_creative(creative(SIGNED_URL))

    assert len(tokens.issued) == 2
    assert bearers(emulator) == [f"Bearer {token}" for token in tokens.issued]
    assert slept == []


def test_a_second_401_is_an_error(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, slept: list[float]
) -> None:
    emulator.inject(Fault(status=401, times=None))

    with tokens.fails(exceptions.Unauthenticated, f"operations.get of {NAME} returned 401 UNAUTHENTICATED"):
        keyed_hook.get_operation(NAME)

    assert len(tokens.issued) == 2
    assert bearers(emulator) == [f"Bearer {token}" for token in tokens.issued]
    assert slept == []


def test_a_503_after_a_new_token_is_retried(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, slept: list[float]
) -> None:
    name = emulator.start_ingest()
    emulator.inject(Fault(status=401))
    emulator.inject(Fault(status=503))

    assert keyed_hook.get_operation(name).name == name
    assert len(emulator.requests) == 3
    assert len(tokens.issued) == 2
    assert slept == [0.5]


def test_a_refused_key_is_an_error_without_retries(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, slept: list[float]
) -> None:
    tokens.refusal = (400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})

    with tokens.fails(exceptions.Unauthenticated, "was not sent: no access token: invalid_grant: Invalid JWT"):
        keyed_hook.get_operation(NAME)

    assert emulator.requests == []
    assert slept == []
    assert len(tokens.assertions) == 1


def test_a_key_that_is_refused_at_the_renewal_is_an_error(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer
) -> None:
    name = emulator.start_ingest()
    keyed_hook.get_operation(name)
    tokens.refusal = (400, {"error": "invalid_grant", "error_description": "Account disabled."})
    emulator.inject(Fault(status=401))

    with tokens.fails(exceptions.Unauthenticated, "no access token: invalid_grant: Account disabled."):
        keyed_hook.get_operation(name)
    assert len(emulator.requests) == 2


def test_a_token_server_that_is_down_is_retried(
    tokens: TokenServer,
    emulator: DaiEmulator,
    connect: Connect,
    make_hook: MakeHook,
    closed_port: int,
    slept: list[float],
) -> None:
    tokens.key["token_uri"] = f"http://127.0.0.1:{closed_port}/token"
    connect(keyfile_dict=tokens.key, num_retries=2)

    with tokens.fails(exceptions.ServiceUnavailable, "creatives.create of a creative was not sent: no access token"):
        make_hook(api_endpoint=emulator.endpoint).create_creative(creative(SIGNED_URL))
    assert emulator.requests == []
    assert slept == [0.5, 1.0]


@pytest.mark.parametrize("renewal", [False, True], ids=["first token", "renewal"])
def test_a_silent_token_server_is_waited_for_until_the_timeout(
    tokens: TokenServer, emulator: DaiEmulator, connect: Connect, make_hook: MakeHook, renewal: bool
) -> None:
    connect(keyfile_dict=json.dumps(tokens.key), num_retries=0)
    hook = make_hook(api_endpoint=emulator.endpoint, timeout=1.0)
    if renewal:
        list(hook.list_operations())
        emulator.inject(Fault(status=401))
    tokens.gate = Gate()

    with tokens.fails(exceptions.ServiceUnavailable, f"operations.get of {NAME} was not sent: no access token"):
        hook.get_operation(NAME)
    tokens.gate.open()


def test_a_busy_token_server_is_retried(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library makes three attempts of its own, which the hook repeats like any other."""
    monkeypatch.setattr("google.auth._exponential_backoff.time.sleep", lambda _: None)
    tokens.refusal = (503, {"error": "internal_failure"})

    with tokens.fails(exceptions.ServiceUnavailable, "no access token: internal_failure"):
        keyed_hook.get_operation(NAME)
    assert emulator.requests == []
    assert slept == [0.5, 1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    "body", [b"<html>Sign in</html>", {}, [], {"access_token": None}, {"access_token": 5}], ids=str
)
def test_a_token_endpoint_that_returns_nonsense(
    keyed_hook: DaiHook, emulator: DaiEmulator, tokens: TokenServer, body: object
) -> None:
    """A captive portal, for example; whatever it says, the error is one of the service's classes."""
    tokens.refusal = (200, body)

    with pytest.raises(exceptions.GoogleAPICallError, match=f"operations.get of {NAME}") as caught:
        keyed_hook.get_operation(NAME)

    tokens.assert_nothing_secret_in("".join(traceback.format_exception(caught.value)))
    assert emulator.requests == []


@pytest.mark.parametrize("by", ["connection", "argument"])
def test_the_quota_project_is_sent(
    tokens: TokenServer, emulator: DaiEmulator, connect: Connect, make_hook: MakeHook, by: str
) -> None:
    given = {"quota_project_id": "billed-project"}
    connect(keyfile_dict=tokens.key, **(given if by == "connection" else {}))
    hook = make_hook(api_endpoint=emulator.endpoint, **(given if by == "argument" else {}))

    hook.get_operation(emulator.start_ingest())

    assert emulator.requests[0].headers["x-goog-user-project"] == "billed-project"


def test_no_quota_project_is_sent_by_default(keyed_hook: DaiHook, emulator: DaiEmulator) -> None:
    keyed_hook.get_operation(emulator.start_ingest())

    assert "x-goog-user-project" not in emulator.requests[0].headers


@pytest.mark.parametrize("by", ["argument", "connection"])
@pytest.mark.parametrize(
    ("chain", "target", "delegates"),
    [
        ("target@p.iam.gserviceaccount.com", "target@p.iam.gserviceaccount.com", None),
        (
            ["first@p.iam.gserviceaccount.com", "target@p.iam.gserviceaccount.com"],
            "target@p.iam.gserviceaccount.com",
            ["first@p.iam.gserviceaccount.com"],
        ),
    ],
    ids=["one", "chain"],
)
def test_the_impersonation_chain_reaches_the_credentials(
    tokens: TokenServer,
    emulator: DaiEmulator,
    connect: Connect,
    make_hook: MakeHook,
    by: str,
    chain: Any,
    target: str,
    delegates: list[str] | None,
) -> None:
    """The real end of it is Google's, which the tests do not reach: the request must not go out as the source."""
    of_connection = {"impersonation_chain": chain if isinstance(chain, str) else ",".join(chain)}
    connect(keyfile_dict=tokens.key, num_retries=0, **(of_connection if by == "connection" else {}))
    hook = make_hook(api_endpoint=emulator.endpoint, **({"impersonation_chain": chain} if by == "argument" else {}))

    credentials: Any = hook.get_conn().credentials
    assert credentials.service_account_email == target
    assert list(credentials._delegates or []) == (delegates or [])

    with tokens.fails(exceptions.ServiceUnavailable, "no access token"):
        hook.get_operation(NAME)
    assert len(tokens.issued) == 1
    assert emulator.requests == []
