"""Access to the API: tokens that are missing, expired, revoked, foreign, or issued for another scope."""

import logging
import subprocess
import sys
from typing import Any

import pytest
import requests
from emulator_testing import (
    CALLS,
    CLOUD_PLATFORM,
    OTHER_SCOPE,
    ROBOT,
    Clock,
    assert_error,
    credentials_of,
    get,
    private_key,
    token_of,
)
from google.auth.transport.requests import AuthorizedSession

from airflow_dai_provider.emulator import METHODS, DaiEmulator, Fault

REALM = 'Bearer realm="https://accounts.google.com/"'


def send(emulator: DaiEmulator, authorization: str | None, method: str = "operations.list") -> requests.Response:
    http_method, path = CALLS[method]
    headers = {} if authorization is None else {"Authorization": authorization}
    return requests.request(http_method, f"{emulator.endpoint}/v1/{path}", headers=headers, timeout=5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_needs_a_token(guarded: DaiEmulator, method: str) -> None:
    guarded.start_ingest("operations/a")
    response = send(guarded, None, method)
    assert_error(response, 401, "UNAUTHENTICATED", "missing required authentication credential", "CREDENTIALS_MISSING")
    assert response.headers["WWW-Authenticate"] == REALM
    assert (guarded.requests[-1].method, guarded.requests[-1].status) == (method, 401)
    assert guarded.requests[-1].account is None
    assert guarded.cancel_requested("operations/a") == 0
    assert guarded.states() == {"operations/a": "RUNNING"}
    assert send(guarded, f"Bearer {token_of(guarded)}", method).status_code not in (401, 403)


@pytest.mark.parametrize("authorization", ["Bearer ya29.foreign", "Bearer", "Bearer ", "Basic {token}", "{token}"])
def test_foreign_token_is_refused(guarded: DaiEmulator, authorization: str) -> None:
    response = send(guarded, authorization.format(token=token_of(guarded)))
    reason = "ACCESS_TOKEN_TYPE_UNSUPPORTED"
    assert_error(response, 401, "UNAUTHENTICATED", "invalid authentication credentials", reason)
    assert response.headers["WWW-Authenticate"] == f'{REALM}, error="invalid_token"'


def test_token_of_another_emulator_is_refused(guarded: DaiEmulator, real_clock: Clock) -> None:
    with DaiEmulator(authentication=True, private_key=private_key(), clock=real_clock) as other:
        assert send(guarded, f"Bearer {token_of(other)}").status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_token_expires(guarded: DaiEmulator, real_clock: Clock, scheme: str) -> None:
    authorization = f"{scheme} {token_of(guarded)}"
    real_clock.advance(899.9)
    assert send(guarded, authorization).status_code == 200
    real_clock.advance(0.1)
    response = send(guarded, authorization)
    assert_error(response, 401, "UNAUTHENTICATED", "invalid authentication credentials", reason="ACCESS_TOKEN_EXPIRED")
    assert [request.account is None for request in guarded.requests] == [True, False, True]


def test_tokens_long_expired_are_forgotten(guarded: DaiEmulator, real_clock: Clock) -> None:
    tokens = guarded._auth.tokens
    for _ in range(50):
        tokens.issue("a@b", frozenset(("scope",)), 10)
        real_clock.advance(600)
    assert len(tokens._tokens) < 10
    assert guarded.tokens_issued == 50


def test_revoked_tokens_are_refused(guarded: DaiEmulator) -> None:
    authorization = f"Bearer {token_of(guarded)}"
    assert send(guarded, authorization).status_code == 200
    guarded.revoke_tokens()
    assert_error(send(guarded, authorization), 401, "UNAUTHENTICATED", reason="ACCESS_TOKEN_TYPE_UNSUPPORTED")
    assert send(guarded, f"Bearer {token_of(guarded)}").status_code == 200
    assert guarded.tokens_issued == 2


def test_token_without_the_scope_is_refused(guarded: DaiEmulator) -> None:
    response = send(guarded, f"Bearer {token_of(guarded, OTHER_SCOPE)}")
    words = "insufficient authentication scopes"
    assert_error(response, 403, "PERMISSION_DENIED", words, "ACCESS_TOKEN_SCOPE_INSUFFICIENT")
    assert 'error="insufficient_scope"' in response.headers["WWW-Authenticate"]
    assert CLOUD_PLATFORM in response.headers["WWW-Authenticate"]
    assert send(guarded, f"Bearer {token_of(guarded, OTHER_SCOPE, CLOUD_PLATFORM)}").status_code == 200


@pytest.mark.parametrize("scopes", ["https://scope.example/dai", ("https://scope.example/dai", CLOUD_PLATFORM)])
def test_one_of_the_scopes_is_required(real_clock: Clock, scopes: Any) -> None:
    with DaiEmulator(authentication=True, scopes=scopes, private_key=private_key(), clock=real_clock) as emulator:
        assert send(emulator, f"Bearer {token_of(emulator, 'https://scope.example/dai')}").status_code == 200
        status = 200 if CLOUD_PLATFORM in scopes else 403
        assert send(emulator, f"Bearer {token_of(emulator)}").status_code == status
        assert send(emulator, f"Bearer {token_of(emulator, OTHER_SCOPE)}").status_code == 403


def test_fault_and_route_come_before_the_token_and_unimplemented_after_it(guarded: DaiEmulator) -> None:
    guarded.unimplement("operations.list")
    guarded.inject(Fault(status=503))
    assert send(guarded, None).status_code == 503
    assert send(guarded, None).status_code == 401
    assert send(guarded, f"Bearer {token_of(guarded)}").status_code == 501
    assert get(guarded, "nowhere").status_code == 404


def test_session_of_google_auth_renews_a_revoked_token(guarded: DaiEmulator) -> None:
    name = guarded.start_ingest()
    credentials = credentials_of(guarded).with_quota_project("my-quota")
    with AuthorizedSession(credentials) as session:
        assert session.post(f"{guarded.endpoint}/v1/{name}:cancel").json() == {}
        assert session.get(f"{guarded.endpoint}/v1/{name}").json()["error"]["code"] == 1
        guarded.revoke_tokens()
        assert session.get(f"{guarded.endpoint}/v1/{name}").status_code == 200
    methods = ["token", "operations.cancel", "operations.get", "operations.get", "token", "operations.get"]
    assert [request.method for request in guarded.requests] == methods
    assert [request.status for request in guarded.requests] == [200, 200, 200, 401, 200, 200]
    assert guarded.requests[1].headers["x-goog-user-project"] == "my-quota"
    assert guarded.requests[1].account == ROBOT
    assert guarded.tokens_issued == 2


def test_google_auth_renews_a_short_token_at_every_request(real_clock: Clock) -> None:
    with DaiEmulator(authentication=True, token_lifetime=60, private_key=private_key(), clock=real_clock) as emulator:
        credentials = credentials_of(emulator)
        with AuthorizedSession(credentials) as session:
            for _ in range(3):
                assert session.get(f"{emulator.endpoint}/v1/operations").status_code == 200
        # It renews a token 225 s before it expires: this one at every request.
        assert emulator.tokens_issued == 3


def test_nothing_secret_is_logged_or_shown(guarded: DaiEmulator, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="airflow_dai_provider")
    key = guarded.service_account_key()
    token = token_of(guarded)
    send(guarded, f"Bearer {token}")
    send(guarded, "Bearer ya29.foreign")
    shown = [repr(guarded), *map(repr, guarded.requests), repr(guarded._auth), repr(guarded._auth.tokens)]
    shown += [repr(guarded._auth.tokens.find(token)), repr(guarded._auth.accounts.get(key["client_email"]))]
    own = [record.getMessage() for record in caplog.records if record.name.startswith("airflow_dai_provider")]
    assert own == ["POST /token 200", "GET /v1/operations 200", "GET /v1/operations 401"]
    everything = "\n".join([*shown, *own])
    secrets = [token, "ya29", *key["private_key"].splitlines()[1:-1]]
    assert [secret[:12] for secret in secrets if secret in everything] == []


def test_without_authentication_no_cryptography_is_loaded() -> None:
    code = (
        "import sys; from airflow_dai_provider.emulator import DaiEmulator; import airflow_dai_provider.emulator."
        "__main__\nwith DaiEmulator() as emulator: emulator.start_ingest()\n"
        "print(sorted(m for m in ('cryptography', 'jwt', 'google.auth', 'requests', 'airflow') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
