"""Each way to authenticate, impersonation, and refused credentials."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions

from airflow_dai_provider.emulator import DaiEmulator, Fault
from tests.support.authentication import Form, Shown, accounts, live_on, refused
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.credentials import (
    _FOREIGN,
    FIRST,
    LIFETIME,
    OTHER_SCOPE,
    ROBOT,
    SECOND,
    TARGET,
    federation_text,
    key_json,
    key_of_google,
)
from tests.support.emulators import MakeEmulator, methods
from tests.support.payloads import NAME

WORKLOAD = "principal://iam.googleapis.com/locations/global/workloadIdentityPools/emulator/subject/workload"


@pytest.fixture(autouse=True)
def _one_time(monkeypatch: pytest.MonkeyPatch, few_authorities: None, fake_time: Clock) -> None:
    live_on(monkeypatch, fake_time)


def key_file(emulator: DaiEmulator, folder: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    emulator.write_key_file(folder / "key.json")
    return {"key_path": str(folder / "key.json")}


def key_text(emulator: DaiEmulator, _: Path, __: pytest.MonkeyPatch) -> dict[str, Any]:
    """As the form of Airflow's user interface saves it."""
    return {"keyfile_dict": json.dumps(emulator.service_account_key())}


def key_secret(emulator: DaiEmulator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Google's Secret Manager speaks gRPC only, so that it is not there: the secret is, and all that comes after."""
    application_default(emulator, folder, monkeypatch)
    client = "airflow.providers.google.cloud.utils.credentials_provider._SecretManagerClient.get_secret"
    secret = json.dumps(emulator.service_account_key())
    monkeypatch.setattr(
        client, lambda _, secret_id, project_id: {("dai-key", "emulator"): secret}[secret_id, project_id]
    )
    return {"key_secret_name": "dai-key"}


def application_default(emulator: DaiEmulator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    emulator.write_key_file(folder / "adc.json")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "adc.json"))
    return {}


def federation(emulator: DaiEmulator, _: Path, __: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"credential_config_file": emulator.external_account_config()}


def federation_file(emulator: DaiEmulator, folder: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    path = folder / "federation.json"
    path.write_text(json.dumps(emulator.external_account_config(impersonate=TARGET)))
    return {"credential_config_file": str(path)}


def federation_as_default(emulator: DaiEmulator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    path = federation_file(emulator, folder, monkeypatch)["credential_config_file"]
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", path)
    return {}


BY_KEY = (ROBOT, ["token"])
BY_FEDERATION = (TARGET, ["exchangeToken", "generateAccessToken"])


@pytest.mark.parametrize(
    ("way", "account", "fetched"),
    [
        (key_file, *BY_KEY),
        (key_json, *BY_KEY),
        (key_text, *BY_KEY),
        (key_secret, *BY_KEY),
        (application_default, *BY_KEY),
        (federation, WORKLOAD, ["exchangeToken"]),
        (federation_text, *BY_FEDERATION),
        (federation_file, *BY_FEDERATION),
        (federation_as_default, *BY_FEDERATION),
    ],
)
def test_a_connection_authorises_every_call_with_one_token(
    drive: Form,
    guarded: DaiEmulator,
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[..., dict[str, Any]],
    account: str,
    fetched: list[str],
) -> None:
    connect(dai_api_endpoint=guarded.endpoint, **way(guarded, tmp_path, monkeypatch))
    guarded.start_ingest(NAME)

    *_, ended = drive(("get_operation", NAME), ("cancel_operation", NAME), ("wait_for_operation", NAME))

    assert ended.state == guarded.state(NAME) == "CANCELLED"
    assert methods(guarded) == [*fetched, "operations.get", "operations.cancel", "operations.get"]
    assert accounts(guarded) == {account}
    assert guarded.tokens_issued == len(fetched)
    assert refused(guarded) == []


@pytest.mark.parametrize("where", ["connection", "variable"])
def test_missing_credentials_are_named_in_the_error(
    drive: Form,
    guarded: DaiEmulator,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    shown: Shown,
    slept: list[float],
    where: str,
) -> None:
    """By ``DAI_EMULATOR_HOST`` too: the emulator is asked for no token, whatever the connection holds."""
    if where == "connection":
        connect(is_anonymous=True, dai_api_endpoint=guarded.endpoint)
    else:
        connect(keyfile_dict=guarded.service_account_key())
        monkeypatch.setenv("DAI_EMULATOR_HOST", guarded.host)
    guarded.start_ingest(NAME)

    with shown.fails(exceptions.Unauthenticated, f"{NAME} returned 401 UNAUTHENTICATED: Request is missing required"):
        drive(("get_operation", NAME))

    assert methods(guarded) == ["operations.get"]
    assert "authorization" not in guarded.requests[0].headers
    assert guarded.tokens_issued == 0
    assert slept == []


@pytest.mark.parametrize("by", ["connection", "argument"])
@pytest.mark.parametrize("way", [key_json, federation_text])
def test_the_quota_project_is_in_every_request_to_dai(
    drive: Form,
    guarded: DaiEmulator,
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[..., dict[str, Any]],
    by: str,
) -> None:
    given = {"quota_project_id": "billed-project"}
    extra = given if by == "connection" else {}
    connect(dai_api_endpoint=guarded.endpoint, **extra, **way(guarded, tmp_path, monkeypatch))
    guarded.start_ingest(NAME)

    drive(
        ("get_operation", NAME),
        lambda: guarded.inject(Fault(status=401)),
        ("get_operation", NAME),
        ("cancel_operation", NAME),
        **(given if by == "argument" else {}),
    )

    to_dai = [request for request in guarded.requests if str(request.method).startswith("operations.")]
    assert [request.status for request in to_dai] == [200, 401, 200, 200]
    assert {request.headers.get("x-goog-user-project") for request in to_dai} == {"billed-project"}


def test_without_a_quota_project_none_is_billed(drive: Form, robot: DaiEmulator) -> None:
    robot.start_ingest(NAME)
    drive(("get_operation", NAME))
    assert ["x-goog-user-project" in request.headers for request in robot.requests] == [False, False]


def test_the_scope_of_the_connection_is_requested(drive: Form, start: MakeEmulator, connect: Connect) -> None:
    emulator = start(scopes=["https://s.example/dai"])
    key = emulator.service_account_key()
    connect(keyfile_dict=key, dai_api_endpoint=emulator.endpoint, scope=f"https://s.example/dai, {OTHER_SCOPE}")
    emulator.start_ingest(NAME)

    assert drive(("get_operation", NAME))[0].name == NAME


def hosts_of(emulator: DaiEmulator) -> list[tuple[str | None, str]]:
    return [(request.method, request.headers["host"]) for request in emulator.requests]


@pytest.mark.parametrize("by", ["argument", "connection"])
@pytest.mark.parametrize("delegates", [(), (FIRST,), (FIRST, SECOND)], ids=["none", "one", "two"])
def test_an_impersonation_chain_works_at_googles_addresses(
    drive: Form, google: tuple[DaiEmulator, list[str]], connect: Connect, delegates: tuple[str, ...], by: str
) -> None:
    """The hook is given a key and a chain, and nothing else: even DAI is where Google has it."""
    emulator, asked = google
    emulator.allow_impersonation(ROBOT, *delegates, TARGET)
    chain = [*delegates, TARGET]
    extra = {"impersonation_chain": ",".join(chain), "quota_project_id": "billed-project"}
    connect(keyfile_dict=key_of_google(emulator), **(extra if by == "connection" else {}))
    arguments = {"impersonation_chain": chain if delegates else TARGET, "quota_project_id": "billed-project"}
    emulator.start_ingest(NAME)

    *_, ended = drive(
        ("get_operation", NAME),
        ("cancel_operation", NAME),
        ("wait_for_operation", NAME),
        **(arguments if by == "argument" else {}),
    )

    assert ended.state == "CANCELLED"
    assert hosts_of(emulator) == [
        ("token", "oauth2.googleapis.com"),
        ("generateAccessToken", "iamcredentials.googleapis.com"),
        ("operations.get", "dai.googleapis.com"),
        ("operations.cancel", "dai.googleapis.com"),
        ("operations.get", "dai.googleapis.com"),
    ]
    assert set(asked) == {f"{host}:443" for _, host in hosts_of(emulator)}
    assert accounts(emulator) == {TARGET}
    generated = emulator.requests[1]
    assert generated.account == ROBOT
    assert generated.name == f"projects/-/serviceAccounts/{TARGET}"
    assert json.loads(generated.body)["delegates"] == (list(delegates) or None)
    assert {request.headers["x-goog-user-project"] for request in emulator.requests[2:]} == {"billed-project"}
    assert refused(emulator) == []


def test_federation_with_impersonation_works_at_googles_addresses(
    drive: Form, google: tuple[DaiEmulator, list[str]], connect: Connect
) -> None:
    emulator, asked = google
    config = emulator.external_account_config(impersonate=TARGET)
    impersonation = str(config["service_account_impersonation_url"])
    config["token_url"] = "https://sts.googleapis.com/v1/token"
    config["service_account_impersonation_url"] = impersonation.replace(
        emulator.endpoint, "https://iamcredentials.googleapis.com"
    )
    connect(credential_config_file=config)
    emulator.start_ingest(NAME)

    drive(("cancel_operation", NAME))

    assert asked == [f"{service}.googleapis.com:443" for service in ("sts", "iamcredentials", "dai")]
    assert emulator.requests[-1].account == TARGET
    assert emulator.cancel_requested(NAME) == 1


@pytest.mark.parametrize(
    ("allowed", "chain"),
    [([], TARGET), ([(ROBOT, FIRST)], [FIRST, TARGET]), ([(ROBOT, FIRST), (FIRST, TARGET)], TARGET)],
    ids=["nobody", "a link is missing", "not without the delegate"],
)
def test_a_refused_impersonation_sends_nothing_to_dai(
    drive: Form,
    google: tuple[DaiEmulator, list[str]],
    connect: Connect,
    shown: Shown,
    slept: list[float],
    allowed: list[tuple[str, str]],
    chain: Any,
) -> None:
    emulator, _ = google
    for pair in allowed:
        emulator.allow_impersonation(*pair)
    connect(keyfile_dict=key_of_google(emulator))

    with shown.fails(exceptions.Unauthenticated, "was not sent: no access token: Unable to acquire impersonated"):
        drive(("get_operation", NAME), impersonation_chain=chain)

    assert refused(emulator) == [("generateAccessToken", 403)]
    assert methods(emulator) == ["token", "generateAccessToken"]
    assert slept == []


def test_a_refused_impersonation_names_the_reason(
    drive: Form, google: tuple[DaiEmulator, list[str]], connect: Connect, shown: Shown
) -> None:
    emulator, _ = google
    connect(keyfile_dict=key_of_google(emulator))
    with shown.fails(exceptions.Unauthenticated, "'iam.serviceAccounts.getAccessToken' denied"):
        drive(("get_operation", NAME), impersonation_chain=TARGET)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"private_key": _FOREIGN}, "invalid_grant: Invalid JWT Signature."),
        ({"private_key_id": "of-another-key"}, "invalid_grant: Invalid JWT Signature."),
        (
            {"client_email": "nobody@emulator.iam.gserviceaccount.com"},
            "invalid_grant: Invalid grant: account not found",
        ),
    ],
    ids=["another key", "key that was deleted", "account that is unknown or was deleted"],
)
@pytest.mark.parametrize("call", ["get_operation", "cancel_operation", "wait_for_operation"])
def test_a_refused_key_is_an_error(
    drive: Form,
    guarded: DaiEmulator,
    connect: Connect,
    shown: Shown,
    slept: list[float],
    changes: dict[str, str],
    words: str,
    call: str,
) -> None:
    connect(keyfile_dict={**guarded.service_account_key(), **changes}, dai_api_endpoint=guarded.endpoint)

    with shown.fails(exceptions.Unauthenticated, f"of {NAME} was not sent: no access token: {words}"):
        drive((call, NAME))

    assert methods(guarded) == ["token"]
    assert guarded.tokens_issued == 0
    assert slept == []


def test_an_account_disabled_during_a_wait_ends_the_wait(
    which: str, drive: Form, robot: DaiEmulator, shown: Shown, slept: list[float]
) -> None:
    """Google answers this to the renewal; the tokens of such an account are refused, too."""
    robot.start_ingest(NAME)
    answer = {"error": "invalid_grant", "error_description": "Invalid grant: account is disabled"}

    def disable() -> None:
        robot.inject(Fault("token", status=400, body=json.dumps(answer).encode(), times=None))
        robot.revoke_tokens()

    with shown.fails(exceptions.Unauthenticated, "no access token: invalid_grant: Invalid grant: account is dis"):
        drive(("get_operation", NAME), disable, ("wait_for_operation", NAME))

    assert refused(robot) == [("operations.get", 401), ("token", 400)]
    assert slept == []


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_wrong_clock_of_the_worker_is_an_error(
    drive: Form, start: MakeEmulator, clock: Clock, connect: Connect, shown: Shown, hours: int
) -> None:
    emulator = start(clock=lambda: clock.now + hours * 3600)
    connect(keyfile_dict=emulator.service_account_key(), dai_api_endpoint=emulator.endpoint)
    with shown.fails(exceptions.Unauthenticated, "invalid_grant: Invalid JWT: .* in a reasonable timeframe"):
        drive(("get_operation", NAME))
    assert methods(emulator) == ["token"]


def test_an_unknown_workload_is_an_error(drive: Form, guarded: DaiEmulator, connect: Connect, shown: Shown) -> None:
    config = {**guarded.external_account_config(), "audience": "//iam.googleapis.com/other"}
    connect(credential_config_file=config, dai_api_endpoint=guarded.endpoint)
    with shown.fails(exceptions.Unauthenticated, "Error code invalid_grant: The audience is not the provider"):
        drive(("get_operation", NAME))
    assert methods(guarded) == ["exchangeToken"]


@pytest.mark.parametrize("call", ["get_operation", "cancel_operation", "wait_for_operation"])
def test_an_insufficient_scope_is_an_error(
    drive: Form, guarded: DaiEmulator, connect: Connect, shown: Shown, slept: list[float], call: str
) -> None:
    connect(keyfile_dict=guarded.service_account_key(), dai_api_endpoint=guarded.endpoint, scope=OTHER_SCOPE)
    guarded.start_ingest(NAME)

    words = f"of {NAME} returned 403 PERMISSION_DENIED: Request had insufficient authentication scopes."
    with shown.fails(exceptions.PermissionDenied, words):
        drive((call, NAME))

    assert len(refused(guarded)) == 1
    assert (len(guarded.requests), guarded.tokens_issued) == (2, 1)
    assert slept == []


def key_for_token_service(emulator: DaiEmulator) -> tuple[dict[str, Any], str]:
    return {"keyfile_dict": emulator.service_account_key()}, "token"


def federation_for_exchange(emulator: DaiEmulator) -> tuple[dict[str, Any], str]:
    return {"credential_config_file": emulator.external_account_config()}, "exchangeToken"


def federation_for_impersonation(emulator: DaiEmulator) -> tuple[dict[str, Any], str]:
    return {"credential_config_file": emulator.external_account_config(impersonate=TARGET)}, "generateAccessToken"


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize("way", [key_for_token_service, federation_for_exchange, federation_for_impersonation])
def test_a_short_outage_of_the_token_server_is_retried(
    drive: Form, guarded: DaiEmulator, connect: Connect, way: Callable[..., Any], status: int
) -> None:
    extra, method = way(guarded)
    connect(dai_api_endpoint=guarded.endpoint, **extra)
    guarded.start_ingest(NAME)
    guarded.inject(Fault(method, status=status))

    assert drive(("get_operation", NAME))[0].name == NAME
    assert refused(guarded) == [(method, status)]


PAGES: dict[str, dict[str, Any]] = {
    "400": {"status": 400, "html": True},
    "401": {"status": 401, "html": True},
    "403": {"status": 403, "html": True},
    "404": {"status": 404, "html": True},
    "407": {"status": 407, "html": True},
    "429": {"status": 429, "html": True},
    "an empty 403": {"status": 403, "body": b""},
    "JSON without an error": {"status": 403, "body": b'{"message": "Forbidden"}'},
    "JSON that is no object": {"status": 401, "body": b'["error"]'},
    "a redirect": {"status": 302, "body": b'{"error": "login"}'},
    "a login page": {"status": 200, "body": b"<html>Sign in</html>"},
    "a success without a token": {"status": 200, "body": b"{}"},
    "an OAuth error that passes": {"status": 400, "body": b'{"error": "temporarily_unavailable"}'},
    "an error of Google's that passes": {"status": 409, "rpc_status": "ABORTED"},
    "one that passes by its name": {"status": 400, "body": b'{"error": {"code": 400, "status": "UNAVAILABLE"}}'},
}


ONE_OF_EACH = [(key_for_token_service, page) for page in PAGES] + [
    (way, page) for way in (federation_for_exchange, federation_for_impersonation) for page in ("403", "a login page")
]


@pytest.mark.parametrize(("way", "page"), ONE_OF_EACH)
def test_a_response_of_a_front_end_in_place_of_the_token_service_is_an_outage(
    drive: Form, guarded: DaiEmulator, connect: Connect, clock: Clock, way: Callable[..., Any], page: str
) -> None:
    """Before the first token as in the middle of a wait: it refuses nothing."""
    extra, method = way(guarded)
    connect(dai_api_endpoint=guarded.endpoint, **extra)
    guarded.start_ingest(NAME, seconds=LIFETIME + 200)

    def away() -> None:
        clock.advance(LIFETIME)  # the token has expired
        guarded.inject(Fault(method, lasts=100, **PAGES[page]))

    guarded.inject(Fault(method, **PAGES[page]))
    *_, ended = drive(("get_operation", NAME), away, ("wait_for_operation", NAME))
    assert ended.state == "SUCCEEDED"
    assert sum(guarded.faults_injected.values()) > 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"<html>Sign in</html>", exceptions.ServiceUnavailable), (b'{"error": "x"}', exceptions.Unauthenticated)],
    ids=["page", "refusal"],
)
def test_the_page_is_an_outage_also_when_google_auth_asks_for_the_project_of_a_workload(
    drive: Form,
    guarded: DaiEmulator,
    connect: Connect,
    shown: Shown,
    answer: bytes,
    error: type[exceptions.GoogleAPICallError],
) -> None:
    """It fetches a token for that as soon as it makes the credentials."""
    audience = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/provider"
    config = {**guarded.external_account_config(), "audience": audience}
    connect(credential_config_file=config, dai_api_endpoint=guarded.endpoint, num_retries=0)
    guarded.inject(Fault("exchangeToken", status=403, body=answer, times=None))
    with shown.fails(error, "gives no usable credentials"):
        drive(("get_operation", NAME))


def test_the_page_of_a_front_end_is_named_in_the_error(
    drive: Form, robot: DaiEmulator, shown: Shown, clock: Clock
) -> None:
    robot.inject(Fault("token", status=403, body=b"", times=None))
    words = "no access token: the request for it returned 403 without a JSON error, from a front end or a proxy"
    with shown.fails(exceptions.ServiceUnavailable, words):
        drive(("wait_for_operation", NAME))


@pytest.mark.parametrize(
    "answer", [{"error": "unauthorized_client"}, {"error": {"code": 404, "message": "no such account"}}], ids=str
)
@pytest.mark.parametrize(
    ("way", "status"),
    [(key_for_token_service, 400), (federation_for_exchange, 401), (federation_for_impersonation, 404)],
)
def test_a_refusal_of_the_token_service_itself_ends_a_wait(
    drive: Form,
    guarded: DaiEmulator,
    connect: Connect,
    shown: Shown,
    slept: list[float],
    way: Callable[..., Any],
    status: int,
    answer: object,
) -> None:
    extra, method = way(guarded)
    connect(dai_api_endpoint=guarded.endpoint, **extra)
    guarded.inject(Fault(method, status=status, body=json.dumps(answer).encode(), times=None))
    with shown.fails(exceptions.Unauthenticated, "no access token"):
        drive(("wait_for_operation", NAME))
    assert slept == []


@pytest.mark.parametrize(
    "answer",
    [
        {"accessToken": "ya29.emulator-unreadable", "expireTime": "2025-06-15T15:06:40.5Z"},
        {"accessToken": "ya29.emulator-unreadable"},
    ],
    ids=["fraction", "no time"],
)
def test_a_token_with_an_invalid_expiry_is_not_shown(
    drive: Form, guarded: DaiEmulator, connect: Connect, shown: Shown, answer: dict[str, str]
) -> None:
    """google-auth puts the whole answer into its error, and that stands in the traceback as the cause."""
    config = guarded.external_account_config(impersonate=TARGET)
    connect(credential_config_file=config, dai_api_endpoint=guarded.endpoint, num_retries=0)
    guarded.inject(Fault("generateAccessToken", status=200, body=json.dumps(answer).encode(), times=None))
    with pytest.raises(exceptions.GoogleAPICallError, match="no access token") as caught:
        drive(("get_operation", NAME))
    shown.add_error(caught.value)
