"""The token endpoint: the tokens that google-auth gets from it, and each assertion that it refuses."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from datetime import UTC
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from emulator_testing import CLOUD_PLATFORM, HTML, JSON, ROBOT, Clock, bearer, credentials_of, get, private_key
from google.auth import crypt, jwt
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import Request
from google.oauth2 import service_account

from airflow_dai_provider.emulator import DaiEmulator, Fault

GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TIMES = "short-lived token (60 minutes) and in a reasonable timeframe"


def clock_of(emulator: DaiEmulator) -> Clock:
    clock = emulator._store._clock
    assert isinstance(clock, Clock)
    return clock


def claims(emulator: DaiEmulator, **changes: Any) -> dict[str, Any]:
    now = int(clock_of(emulator).now)
    good = {"iss": ROBOT, "aud": f"{emulator.endpoint}/token", "scope": CLOUD_PLATFORM, "iat": now, "exp": now + 3600}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def signed(key: dict[str, str], payload: Any, key_id: str | None = None, **header: Any) -> str:
    signer = crypt.RSASigner.from_string(key["private_key"], key_id)
    return str(jwt.encode(signer, payload, header).decode())


def unsigned(header: dict[str, Any], payload: Any) -> str:
    parts = [json.dumps(part).encode() for part in (header, payload)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def ask(emulator: DaiEmulator, assertion: str, **form: str) -> requests.Response:
    data = {"grant_type": GRANT, "assertion": assertion, **form}
    return requests.post(f"{emulator.endpoint}/token", data=data, timeout=5)


def assert_refused(response: requests.Response, error: str, words: str) -> None:
    assert response.status_code == 400
    assert response.headers["Content-Type"] == JSON
    assert set(response.json()) == {"error", "error_description"}
    assert response.json()["error"] == error
    assert words in response.json()["error_description"]


def test_google_auth_gets_a_token(guarded: DaiEmulator) -> None:
    credentials = credentials_of(guarded)
    credentials.refresh(Request())
    left = credentials.expiry.replace(tzinfo=UTC).timestamp() - time.time()
    assert 800 < left < 901
    (request,) = guarded.requests
    assert (request.method, request.raw_path, request.status) == ("token", "/token", 200)
    assert guarded.tokens_issued == 1
    assert get(guarded, headers=bearer(credentials.token)).status_code == 200
    assert guarded.requests[-1].account == ROBOT


def test_token_endpoint_returns_a_new_token_each_time(guarded: DaiEmulator) -> None:
    key = guarded.service_account_key()
    response = ask(guarded, signed(key, claims(guarded)))
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    answer = response.json()
    assert (answer["expires_in"], answer["token_type"]) == (900, "Bearer")
    again = ask(guarded, signed(key, claims(guarded))).json()
    assert again["access_token"] != answer["access_token"]
    assert set(again) == {"access_token", "expires_in", "token_type"}
    assert guarded.tokens_issued == 2


def test_each_account_has_its_own_key(guarded: DaiEmulator) -> None:
    key = guarded.service_account_key()
    assert key == guarded.service_account_key(ROBOT)
    other = guarded.service_account_key("other@my-project.iam.gserviceaccount.com")
    assert other["private_key"] != key["private_key"]
    assert other["private_key_id"] != key["private_key_id"]
    assert (other["project_id"], key["project_id"]) == ("my-project", "emulator")
    assert (key["type"], key["client_email"]) == ("service_account", ROBOT)
    assert key["token_uri"] == f"{guarded.endpoint}/token"
    for both in (key, other):
        assert ask(guarded, signed(both, claims(guarded, iss=both["client_email"]))).status_code == 200
    assert_refused(ask(guarded, signed(other, claims(guarded))), "invalid_grant", "Invalid JWT Signature.")


@pytest.mark.parametrize(("issued", "expires"), [(-3599, 1), (0, 1), (0, 3600), (60, 61), (60, 3660)])
def test_times_within_the_leeway_are_accepted(guarded: DaiEmulator, issued: int, expires: int) -> None:
    now = int(clock_of(guarded).now)
    payload = claims(guarded, iat=now + issued, exp=now + expires)
    assert ask(guarded, signed(guarded.service_account_key(), payload)).status_code == 200


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown issuer": ({"iss": "who@emulator.iam.gserviceaccount.com"}, "invalid_grant", "account not found"),
    "no issuer": ({"iss": None}, "invalid_grant", "account not found"),
    "issuer that is no text": ({"iss": [ROBOT]}, "invalid_grant", "account not found"),
    "wrong audience": ({"aud": "https://oauth2.example/token"}, "invalid_grant", "Failed audience check"),
    "no audience": ({"aud": None}, "invalid_grant", "Failed audience check"),
    "audience that is no text": ({"aud": ["a"]}, "invalid_grant", "Failed audience check"),
    "expired": ({"iat": -3601, "exp": -1}, "invalid_grant", TIMES),
    "expires now": ({"iat": -3600, "exp": 0}, "invalid_grant", TIMES),
    "issued in the future": ({"iat": 61, "exp": 3600}, "invalid_grant", TIMES),
    "lives no time": ({"iat": 30, "exp": 30}, "invalid_grant", TIMES),
    "lives too long": ({"iat": 0, "exp": 3601}, "invalid_grant", TIMES),
    "no expiry": ({"exp": None}, "invalid_grant", TIMES),
    "no time of issue": ({"iat": None}, "invalid_grant", TIMES),
    "missing scope": ({"scope": None}, "invalid_scope", "Invalid OAuth scope"),
    "blank scope": ({"scope": "  "}, "invalid_scope", "Invalid OAuth scope"),
    "scope that is no text": ({"scope": [CLOUD_PLATFORM]}, "invalid_scope", "Invalid OAuth scope"),
    "acts for a user": ({"sub": "user@example.com"}, "unauthorized_client", "unauthorized to retrieve access tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_claims_are_refused(guarded: DaiEmulator, case: str) -> None:
    changes, error, words = REFUSED[case]
    now = int(clock_of(guarded).now)
    changes = {
        name: now + value if name in ("iat", "exp") and value is not None else value for name, value in changes.items()
    }
    assertion = signed(guarded.service_account_key(), claims(guarded, **changes))
    assert_refused(ask(guarded, assertion), error, words)
    assert guarded.tokens_issued == 0


@pytest.mark.parametrize("value", ["soon", True, None])
def test_times_that_are_not_numbers_are_refused(guarded: DaiEmulator, value: object) -> None:
    payload = {**claims(guarded), "iat": value}
    assert_refused(ask(guarded, signed(guarded.service_account_key(), payload)), "invalid_grant", TIMES)


def with_public_key_as_secret(key: dict[str, str], payload: dict[str, Any]) -> str:
    loaded = serialization.load_pem_private_key(key["private_key"].encode(), None)
    public = loaded.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    content = unsigned({"alg": "HS256", "typ": "JWT"}, payload)
    signature = hmac.new(public, content.encode(), hashlib.sha256).digest()
    return f"{content}.{base64.urlsafe_b64encode(signature).decode()}"


FORGED: dict[str, tuple[Callable[[dict[str, str], dict[str, Any]], str], str]] = {
    "signed with another key": (
        lambda _, payload: signed({"private_key": private_key("another")}, payload),
        "Invalid JWT Signature.",
    ),
    "payload of another signature": (
        lambda key, payload: (
            unsigned({"alg": "RS256"}, {**payload, "scope": "more"}) + "." + signed(key, payload).split(".")[2]
        ),
        "Invalid JWT Signature.",
    ),
    "signature of nothing": (
        lambda _, payload: unsigned({"alg": "RS256"}, payload) + ".",
        "Invalid JWT Signature.",
    ),
    "another key's id": (
        lambda key, payload: signed(key, payload, key_id="0" * 40),
        "Invalid JWT Signature.",
    ),
    "alg none": (lambda _, payload: unsigned({"alg": "none"}, payload) + ".", "RS256"),
    "alg None": (lambda _, payload: unsigned({"alg": "None"}, payload) + ".", "RS256"),
    "alg none, signed": (lambda key, payload: signed(key, payload, alg="none"), "RS256"),
    "no alg": (lambda _, payload: unsigned({"typ": "JWT"}, payload) + "." + "A" * 342, "RS256"),
    "alg HS256 with the public key for a secret": (with_public_key_as_secret, "RS256"),
    "two parts": (lambda _, payload: unsigned({"alg": "RS256"}, payload), "no JWT"),
    "four parts": (lambda key, payload: signed(key, payload) + ".e30", "no JWT"),
    "no JSON": (lambda *_: "e30.e3.e30", "no JWT"),
    "no base64": (lambda *_: "%%.e30.e30", "no JWT"),
    "no ASCII": (lambda *_: "é.é.é", "no JWT"),
    "characters that are no base64": (lambda key, payload: f"{signed(key, payload)}!!!!", "no JWT"),
    "header that is no object": (lambda _, payload: unsigned([], payload) + ".", "no JWT"),
    "claims that are no object": (lambda *_: unsigned({"alg": "RS256"}, []) + ".", "no JWT"),
    "no objects": (lambda *_: unsigned([], []) + ".", "no JWT"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_assertion_is_refused(guarded: DaiEmulator, case: str) -> None:
    forge, words = FORGED[case]
    assertion = forge(guarded.service_account_key(), claims(guarded))
    assert_refused(ask(guarded, assertion), "invalid_grant", words)
    assert guarded.tokens_issued == 0


def test_key_can_be_named_by_its_id(guarded: DaiEmulator) -> None:
    key = guarded.service_account_key()
    assert ask(guarded, signed(key, claims(guarded), key_id=key["private_key_id"])).status_code == 200


@pytest.mark.parametrize("audience", ["https://oauth2.googleapis.com/token", "{endpoint}/token"])
def test_both_addresses_of_the_endpoint_are_audiences(guarded: DaiEmulator, audience: str) -> None:
    payload = claims(guarded, aud=audience.format(endpoint=guarded.endpoint), sub=ROBOT)
    assert ask(guarded, signed(guarded.service_account_key(), payload)).status_code == 200


@pytest.mark.parametrize(
    ("form", "error", "words"),
    [
        ({"grant_type": "authorization_code"}, "unsupported_grant_type", "Invalid grant_type: authorization_code"),
        ({"grant_type": ""}, "unsupported_grant_type", "Invalid grant_type: "),
        ({"assertion": ""}, "invalid_request", "Missing required parameter: assertion"),
    ],
)
def test_invalid_form_is_refused(guarded: DaiEmulator, form: dict[str, str], error: str, words: str) -> None:
    assert_refused(ask(guarded, **{"assertion": "e30.e30.e30", **form}), error, words)


def test_body_that_is_no_form_is_refused(guarded: DaiEmulator) -> None:
    response = requests.post(f"{guarded.endpoint}/token", data=b"\xff{", timeout=5)
    assert_refused(response, "unsupported_grant_type", "Invalid grant_type: ")


def test_google_auth_reports_the_endpoints_error(guarded: DaiEmulator) -> None:
    key = {**guarded.service_account_key(), "private_key": private_key("another")}
    credentials = service_account.Credentials.from_service_account_info(key, scopes=[CLOUD_PLATFORM])
    with pytest.raises(RefreshError, match=r"invalid_grant: Invalid JWT Signature\."):
        credentials.refresh(Request())


def test_fault_hits_the_token_endpoint_only_by_its_method(guarded: DaiEmulator) -> None:
    guarded.inject(Fault(status=503))
    guarded.inject(Fault(method="token", status=500, body=b'{"error": "internal_failure"}'))
    assertion = signed(guarded.service_account_key(), claims(guarded))
    assert ask(guarded, assertion).status_code == 500
    # A fault that names no method is not for tokens.
    assert ask(guarded, assertion).status_code == 200
    assert get(guarded).status_code == 503


@pytest.mark.parametrize("path", ["/token", "/v1/token", "/v1/projects/-/serviceAccounts/a@b:generateAccessToken"])
def test_without_authentication_there_are_no_token_endpoints(emulator: DaiEmulator, path: str) -> None:
    response = requests.post(f"{emulator.endpoint}{path}", timeout=5)
    assert (response.status_code, response.headers["Content-Type"]) == (404, HTML)
    assert emulator.requests[-1].method is None


def test_token_endpoint_has_no_get(guarded: DaiEmulator) -> None:
    response = requests.get(f"{guarded.endpoint}/token", timeout=5)
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"token_lifetime": 0}, "token_lifetime: got 0, expected a whole number of seconds"),
        ({"token_lifetime": 1.5}, "token_lifetime: got 1.5"),
        ({"token_lifetime": True}, "token_lifetime: got True"),
        ({"scopes": ()}, "scopes: got"),
        ({"private_key": "s3cret"}, "private_key: expected the PEM of an RSA key"),
    ],
)
def test_invalid_options_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as info:
        DaiEmulator(authentication=True, **arguments)
    assert "s3cret" not in str(info.value)
    assert DaiEmulator(authentication=True, token_lifetime=1).authentication


def test_key_of_another_kind_is_refused() -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="expected the PEM of an RSA key"):
        DaiEmulator(authentication=True, private_key=key.decode())


@pytest.mark.parametrize("email", ["robot", "@b", "a@", "a b@c", "a@b/c", "a@b:generateAccessToken"])
def test_invalid_account_is_refused(guarded: DaiEmulator, email: str) -> None:
    with pytest.raises(ValueError, match="account: got .*, expected an e-mail address"):
        guarded.service_account_key(email)


def test_key_is_fresh_where_none_is_given() -> None:
    with DaiEmulator(authentication=True) as one, DaiEmulator(authentication=True) as other:
        keys = [emulator.service_account_key()["private_key"] for emulator in (one, other)]
        assert keys[0] != keys[1]
        assertion = signed({"private_key": keys[1]}, {"iss": ROBOT})
        assert_refused(ask(one, assertion), "invalid_grant", "Invalid JWT Signature.")


def test_accounts_need_authentication(emulator: DaiEmulator) -> None:
    for call in (
        emulator.service_account_key,
        emulator.revoke_tokens,
        emulator.issue_subject_token,
        emulator.external_account_config,
        lambda: emulator.allow_impersonation("a@b", "c@d"),
    ):
        with pytest.raises(RuntimeError, match="without authentication=True"):
            call()  # type: ignore[operator]
    assert emulator.tokens_issued == 0
    assert not emulator.authentication
