"""One account acts as another: the IAM credentials API and the security token service, as google-auth uses them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from emulator_testing import CLOUD_PLATFORM, OTHER_SCOPE, ROBOT, Clock, assert_error, bearer, get, private_key, token_of
from google.auth import identity_pool, impersonated_credentials, load_credentials_from_file
from google.auth.exceptions import OAuthError, RefreshError
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import service_account

from airflow_dai_provider.emulator import DaiEmulator, Fault, SelfSigned
from tests.support.tunnel import tunnel_to

IAM = "https://www.googleapis.com/auth/iam"
FIRST, SECOND = "first@p.iam.gserviceaccount.com", "second@p.iam.gserviceaccount.com"
TARGET = "target@p.iam.gserviceaccount.com"
WORKLOAD = "principal://iam.googleapis.com/locations/global/workloadIdentityPools/emulator/subject/workload"


def generate(emulator: DaiEmulator, token: str | None, body: Any, target: str = TARGET) -> requests.Response:
    return requests.post(
        f"{emulator.endpoint}/v1/projects/-/serviceAccounts/{target}:generateAccessToken",
        headers={} if token is None else bearer(token),
        json=body,
        timeout=5,
    )


def lists(emulator: DaiEmulator, token: str) -> int:
    return get(emulator, headers=bearer(token)).status_code


def as_target(emulator: DaiEmulator, *delegates: str, **arguments: Any) -> impersonated_credentials.Credentials:
    return impersonated_credentials.Credentials(
        source_credentials=service_account.Credentials.from_service_account_info(emulator.service_account_key()),
        target_principal=TARGET,
        target_scopes=[CLOUD_PLATFORM],
        delegates=list(delegates) or None,
        **arguments,
    )


@pytest.mark.parametrize("delegates", [(), (FIRST,), (FIRST, SECOND)])
def test_google_auth_impersonates_at_an_overridden_endpoint(guarded: DaiEmulator, delegates: tuple[str, ...]) -> None:
    guarded.allow_impersonation(ROBOT, *delegates, TARGET)
    url = f"{guarded.endpoint}/v1/projects/-/serviceAccounts/{TARGET}:generateAccessToken"
    with AuthorizedSession(as_target(guarded, *delegates, iam_endpoint_override=url)) as session:
        assert session.get(f"{guarded.endpoint}/v1/operations").status_code == 200
    assert [(request.method, request.account) for request in guarded.requests] == [
        ("token", None),
        ("generateAccessToken", ROBOT),
        ("operations.list", TARGET),
    ]
    assert guarded.requests[1].name == f"projects/-/serviceAccounts/{TARGET}"
    assert guarded.tokens_issued == 2


def test_google_auth_impersonates_at_its_own_address_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, real_clock: Clock
) -> None:
    """Nothing of google-auth is changed here: proxy and authorities come from the environment."""
    certificate = SelfSigned(hosts=("127.0.0.1", "iamcredentials.googleapis.com"))
    with DaiEmulator(authentication=True, tls=certificate, private_key=private_key(), clock=real_clock) as emulator:
        emulator.allow_impersonation(ROBOT, FIRST, TARGET)
        authority = tmp_path / "authority.pem"
        authority.write_text(certificate.pem)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with tunnel_to(emulator) as (proxy, asked):
            monkeypatch.setenv("HTTPS_PROXY", proxy)
            with AuthorizedSession(as_target(emulator, FIRST)) as session:
                assert session.get(f"{emulator.endpoint}/v1/operations").status_code == 200
        assert asked == ["iamcredentials.googleapis.com:443"]
        assert emulator.requests[1].headers["host"] == "iamcredentials.googleapis.com"
        assert emulator.requests[-1].account == TARGET


@pytest.mark.parametrize("seconds", [1, 300])
def test_targets_token_lives_as_long_as_requested(guarded: DaiEmulator, real_clock: Clock, seconds: int) -> None:
    guarded.allow_impersonation(ROBOT, TARGET)
    answer = generate(guarded, token_of(guarded), {"scope": [CLOUD_PLATFORM], "lifetime": f"{seconds}s"}).json()
    assert set(answer) == {"accessToken", "expireTime"}
    assert answer["expireTime"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(real_clock.now + seconds))
    real_clock.advance(seconds - 0.1)
    assert lists(guarded, answer["accessToken"]) == 200
    real_clock.advance(0.1)
    assert lists(guarded, answer["accessToken"]) == 401


def test_targets_token_lives_no_longer_than_others(guarded: DaiEmulator, real_clock: Clock) -> None:
    guarded.allow_impersonation(ROBOT, TARGET)
    answer = generate(guarded, token_of(guarded), {"scope": [CLOUD_PLATFORM]}).json()
    assert answer["expireTime"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(real_clock.now + 900))
    real_clock.advance(900)
    assert lists(guarded, answer["accessToken"]) == 401


def test_targets_token_has_the_scopes_asked_for(guarded: DaiEmulator) -> None:
    guarded.allow_impersonation(ROBOT, TARGET)
    token = generate(guarded, token_of(guarded), {"scope": [OTHER_SCOPE]}).json()["accessToken"]
    assert lists(guarded, token) == 403
    token = generate(guarded, token_of(guarded, CLOUD_PLATFORM), {"scope": [CLOUD_PLATFORM]}).json()["accessToken"]
    assert lists(guarded, token) == 200


@pytest.mark.parametrize(
    ("allowed", "delegates"),
    [
        ([], []),
        ([(TARGET, ROBOT)], []),
        ([(ROBOT, FIRST), (FIRST, TARGET)], []),
        ([(ROBOT, FIRST), (SECOND, TARGET)], [FIRST, SECOND]),
        ([(ROBOT, FIRST), (FIRST, SECOND), (SECOND, TARGET)], [SECOND, FIRST]),
        ([(ROBOT, TARGET)], [FIRST]),
    ],
)
def test_forbidden_chain_is_refused(guarded: DaiEmulator, allowed: list[tuple[str, str]], delegates: list[str]) -> None:
    for pair in allowed:
        guarded.allow_impersonation(*pair)
    response = generate(guarded, token_of(guarded), {"scope": [CLOUD_PLATFORM], "delegates": delegates})
    words = "'iam.serviceAccounts.getAccessToken' denied"
    assert_error(response, 403, "PERMISSION_DENIED", words, "IAM_PERMISSION_DENIED")
    assert guarded.tokens_issued == 1


def test_delegates_can_be_resource_names(guarded: DaiEmulator) -> None:
    guarded.allow_impersonation(ROBOT, FIRST, TARGET)
    body = {"scope": CLOUD_PLATFORM, "delegates": [f"projects/-/serviceAccounts/{FIRST}"]}
    assert generate(guarded, token_of(guarded), body, TARGET.replace("@", "%40")).status_code == 200


def test_caller_needs_a_token_and_a_scope(guarded: DaiEmulator) -> None:
    guarded.allow_impersonation(ROBOT, TARGET)
    body = {"scope": [CLOUD_PLATFORM]}
    assert_error(generate(guarded, None, body), 401, "UNAUTHENTICATED", reason="CREDENTIALS_MISSING")
    assert generate(guarded, "ya29.foreign", body).status_code == 401
    response = generate(guarded, token_of(guarded, OTHER_SCOPE), body)
    assert_error(response, 403, "PERMISSION_DENIED", reason="ACCESS_TOKEN_SCOPE_INSUFFICIENT")
    info = response.json()["error"]["details"][0]
    assert info["metadata"] == {"service": "iamcredentials.googleapis.com"}
    assert IAM in response.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (["scope"], "Invalid JSON"),
        ({}, "'scope': at least one"),
        ({"scope": [1]}, "'scope': must be a list of strings"),
        ({"scope": [CLOUD_PLATFORM], "delegates": {"a": 1}}, "'delegates': must be a list"),
        ({"scope": [CLOUD_PLATFORM], "delegates": ["robot"]}, "'delegates': account: got 'robot'"),
        ({"scope": [CLOUD_PLATFORM], "lifetime": "3601s"}, "'lifetime': must be from 1s to 3600s"),
        ({"scope": [CLOUD_PLATFORM], "lifetime": "0s"}, "'lifetime'"),
        ({"scope": [CLOUD_PLATFORM], "lifetime": "60"}, "'lifetime'"),
        ({"scope": [CLOUD_PLATFORM], "lifetime": 60}, "'lifetime'"),
    ],
)
def test_invalid_request_is_refused(guarded: DaiEmulator, body: Any, words: str) -> None:
    guarded.allow_impersonation(ROBOT, TARGET)
    assert_error(generate(guarded, token_of(guarded), body), 400, "INVALID_ARGUMENT", words)


def test_body_that_is_not_json_is_refused(guarded: DaiEmulator) -> None:
    url = f"{guarded.endpoint}/v1/projects/-/serviceAccounts/{TARGET}:generateAccessToken"
    response = requests.post(url, b"{", headers=bearer(token_of(guarded)), timeout=5)
    assert_error(response, 400, "INVALID_ARGUMENT", "Invalid JSON")


@pytest.mark.parametrize("chain", [(), (ROBOT,), (ROBOT, "nobody")])
def test_invalid_chain_is_refused(guarded: DaiEmulator, chain: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        guarded.allow_impersonation(*chain)


def test_google_auth_reports_the_refusal(guarded: DaiEmulator) -> None:
    url = f"{guarded.endpoint}/v1/projects/-/serviceAccounts/{TARGET}:generateAccessToken"
    with pytest.raises(RefreshError, match="Unable to acquire impersonated credentials"):
        as_target(guarded, iam_endpoint_override=url).refresh(Request())


def test_fault_hits_the_endpoint(guarded: DaiEmulator) -> None:
    guarded.allow_impersonation(ROBOT, TARGET)
    guarded.inject(Fault(method="generateAccessToken", status=503))
    token = token_of(guarded)
    assert generate(guarded, token, {"scope": [CLOUD_PLATFORM]}).status_code == 503
    assert generate(guarded, token, {"scope": [CLOUD_PLATFORM]}).status_code == 200


# Workload identity federation: the one configuration of google-auth that says where to impersonate.


@pytest.mark.parametrize(("target", "account"), [(None, WORKLOAD), (TARGET, TARGET)])
def test_external_account_gets_a_token(guarded: DaiEmulator, tmp_path: Path, target: str | None, account: str) -> None:
    file = tmp_path / "external.json"
    file.write_text(json.dumps(guarded.external_account_config(impersonate=target)))
    credentials, _ = load_credentials_from_file(str(file), scopes=[CLOUD_PLATFORM])
    assert isinstance(credentials, identity_pool.Credentials)
    with AuthorizedSession(credentials) as session:
        assert session.get(f"{guarded.endpoint}/v1/operations").status_code == 200
    between = [("generateAccessToken", WORKLOAD)] if target else []
    assert [(request.method, request.account) for request in guarded.requests] == [
        ("exchangeToken", None),
        *between,
        ("operations.list", account),
    ]
    assert guarded.tokens_issued == 1 + len(between)


def exchange(emulator: DaiEmulator, **changes: str) -> requests.Response:
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "audience": "//iam.googleapis.com/locations/global/workloadIdentityPools/emulator/providers/emulator",
        "scope": CLOUD_PLATFORM,
        "subject_token": emulator.issue_subject_token(),
        **changes,
    }
    return requests.post(f"{emulator.endpoint}/v1/token", data=form, timeout=5)


def test_subject_token_is_exchanged(guarded: DaiEmulator) -> None:
    answer = exchange(guarded).json()
    assert answer["issued_token_type"] == "urn:ietf:params:oauth:token-type:access_token"
    assert (answer["expires_in"], answer["token_type"]) == (900, "Bearer")
    assert lists(guarded, answer["access_token"]) == 200


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"audience": "//iam.googleapis.com/other"}, "invalid_grant"),
        ({"audience": ""}, "invalid_grant"),
        ({"scope": " "}, "invalid_scope"),
        ({"subject_token": "ya29.foreign"}, "invalid_grant"),
        ({"subject_token": ""}, "invalid_request"),
    ],
)
def test_invalid_exchange_is_refused(guarded: DaiEmulator, changes: dict[str, str], error: str) -> None:
    response = exchange(guarded, **changes)
    assert (response.status_code, response.json()["error"]) == (400, error)
    assert guarded.tokens_issued == 0


def test_subject_token_expires_and_is_no_access_token(guarded: DaiEmulator, real_clock: Clock) -> None:
    token = guarded.issue_subject_token()
    assert lists(guarded, token) == 401
    assert exchange(guarded, subject_token=token_of(guarded)).status_code == 400
    real_clock.advance(600)
    assert exchange(guarded, subject_token=token).status_code == 400


def test_google_auth_reports_that_the_exchange_failed(guarded: DaiEmulator) -> None:
    config = {**guarded.external_account_config(), "audience": "//iam.googleapis.com/other"}
    credentials = identity_pool.Credentials.from_info(config, scopes=[CLOUD_PLATFORM])
    with pytest.raises(OAuthError, match="audience is not the provider"):
        credentials.refresh(Request())
