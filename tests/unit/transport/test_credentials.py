"""
Both hooks against an emulator that wants tokens, by every way that a Google Cloud connection offers.

google-auth is the real one, and so is each JWT that it signs. All live on one clock: hooks, google-auth and emulator.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from emulator_testing import tunnel_to
from google.api_core import exceptions

from airflow_dai_provider.emulator import DaiEmulator, Fault, SelfSigned
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator, DaiCreateCreativeOperator
from airflow_dai_provider.tasks import deferral
from airflow_dai_provider.tasks.failures import UnexpectedEndError
from airflow_dai_provider.triggers.dai import DaiOperationTrigger
from tests.support.authentication import (
    FORMS,
    TOKEN_METHODS,
    Form,
    SharedTime,
    Shown,
    accounts,
    guarded_emulator,
    in_worker,
    live_on,
    methods,
    refused,
)
from tests.support.event_loop import private_key_pem, run

if TYPE_CHECKING:
    from conftest import Clock, Log

NAME = "operations/ingest"
ROBOT = "robot@emulator.iam.gserviceaccount.com"
FIRST, SECOND = "first@p.iam.gserviceaccount.com", "second@p.iam.gserviceaccount.com"
TARGET = "target@p.iam.gserviceaccount.com"
WORKLOAD = "principal://iam.googleapis.com/locations/global/workloadIdentityPools/emulator/subject/workload"
OTHER_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
CREATIVE = {
    "adSystem": "tests",
    "mediaFiles": [
        {"uri": "https://media.example/ad.mp4", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
    ],
}
WAITS = 200
#: Seconds that a token lives, and when each hook renews it. google-auth does so 225 s before the end.
LIFETIME = 900
RENEWED_AT = {"sync": 675, "async": 810}


@pytest.fixture(autouse=True)
def _one_time(monkeypatch: pytest.MonkeyPatch, fake_time: Clock) -> None:
    live_on(monkeypatch, fake_time)
    monkeypatch.setattr(deferral, "time", SimpleNamespace(time=fake_time))


@pytest.fixture
def shown(log: Log, caplog: pytest.LogCaptureFixture) -> Iterator[Shown]:
    """Collect what a person could get to see; after the test, nothing secret is in it."""
    caplog.set_level("DEBUG")
    shown = Shown(log, caplog)
    yield shown
    shown.assert_nothing_secret()


@pytest.fixture
def start(clock: Clock, shown: Shown) -> Iterator[Callable[..., DaiEmulator]]:
    """Give a function that starts an emulator which wants tokens."""
    with ExitStack() as running:

        def make(**options: Any) -> DaiEmulator:
            emulator = running.enter_context(guarded_emulator(**{"clock": clock, **options}))
            shown.emulators.append(emulator)
            return emulator

        yield make


@pytest.fixture
def guarded(start: Callable[..., DaiEmulator]) -> DaiEmulator:
    return start(token_lifetime=LIFETIME)


@pytest.fixture(params=FORMS)
def which(request: pytest.FixtureRequest) -> str:
    """Name the hook: each test that takes this, or ``drive``, runs for both."""
    return str(request.param)


@pytest.fixture
def drive(which: str, shown: Shown) -> Form:
    """Give a function that takes steps with one hook and returns what each has brought."""

    def take(*steps: Any, **arguments: Any) -> list[Any]:
        results = FORMS[which](*steps, **arguments)
        shown.add(results)
        return results

    return take


@pytest.fixture
def robot(guarded: DaiEmulator, connect: Callable[..., None]) -> DaiEmulator:
    """Give the emulator that the connection leads to, with the key of an account."""
    connect(keyfile_dict=guarded.service_account_key(), dai_api_endpoint=guarded.endpoint)
    return guarded


# Ways to authenticate


def key_file(emulator: DaiEmulator, folder: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    emulator.write_key_file(folder / "key.json")
    return {"key_path": str(folder / "key.json")}


def key_json(emulator: DaiEmulator, _: Path, __: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"keyfile_dict": emulator.service_account_key()}


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


def federation_text(emulator: DaiEmulator, _: Path, __: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"credential_config_file": json.dumps(emulator.external_account_config(impersonate=TARGET))}


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
    connect: Callable[..., None],
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
def test_without_credentials_the_service_says_what_it_wants(
    drive: Form,
    guarded: DaiEmulator,
    connect: Callable[..., None],
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

    with shown.fails(exceptions.Unauthenticated, f"{NAME} answered 401 UNAUTHENTICATED: Request is missing required"):
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
    connect: Callable[..., None],
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


def test_without_a_quota_project_nobody_is_billed(drive: Form, robot: DaiEmulator) -> None:
    robot.start_ingest(NAME)
    drive(("get_operation", NAME))
    assert ["x-goog-user-project" in request.headers for request in robot.requests] == [False, False]


def test_the_scope_of_the_connection_is_the_one_that_counts(
    drive: Form, start: Callable[..., DaiEmulator], connect: Callable[..., None]
) -> None:
    emulator = start(scopes=["https://s.example/dai"])
    key = emulator.service_account_key()
    connect(keyfile_dict=key, dai_api_endpoint=emulator.endpoint, scope=f"https://s.example/dai, {OTHER_SCOPE}")
    emulator.start_ingest(NAME)

    assert drive(("get_operation", NAME))[0].name == NAME


# Impersonation


@pytest.fixture
def google(
    start: Callable[..., DaiEmulator], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[DaiEmulator, list[str]]]:
    """
    Give an emulator that stands behind Google's own addresses, and the list of those that have been asked for.

    Nothing of google-auth and of the hooks is changed for that: proxy and authority come from the environment.
    """
    hosts = [f"{service}.googleapis.com" for service in ("dai", "iamcredentials", "oauth2", "sts")]
    certificate = SelfSigned(hosts=("127.0.0.1", *hosts))
    emulator = start(tls=certificate, token_lifetime=LIFETIME)
    (tmp_path / "authority.pem").write_text(certificate.pem)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with tunnel_to(emulator) as (proxy, asked):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        yield emulator, asked


def key_of_google(emulator: DaiEmulator) -> dict[str, str]:
    """Return a key as Google issues it: with the address of Google's token endpoint."""
    return {**emulator.service_account_key(), "token_uri": "https://oauth2.googleapis.com/token"}


def hosts_of(emulator: DaiEmulator) -> list[tuple[str | None, str]]:
    return [(request.method, request.headers["host"]) for request in emulator.requests]


@pytest.mark.parametrize("by", ["argument", "connection"])
@pytest.mark.parametrize("delegates", [(), (FIRST,), (FIRST, SECOND)], ids=["none", "one", "two"])
def test_an_impersonation_chain_at_googles_own_addresses(
    drive: Form,
    google: tuple[DaiEmulator, list[str]],
    connect: Callable[..., None],
    delegates: tuple[str, ...],
    by: str,
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


def test_federation_with_impersonation_at_googles_own_addresses(
    drive: Form, google: tuple[DaiEmulator, list[str]], connect: Callable[..., None]
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
def test_a_chain_that_does_not_hold_reaches_nothing(
    drive: Form,
    google: tuple[DaiEmulator, list[str]],
    connect: Callable[..., None],
    shown: Shown,
    slept: list[float],
    allowed: list[tuple[str, str]],
    chain: Any,
) -> None:
    emulator, _ = google
    for pair in allowed:
        emulator.allow_impersonation(*pair)
    connect(keyfile_dict=key_of_google(emulator))

    with shown.fails(exceptions.Unauthenticated, "was not sent, for want of a token: Unable to acquire impersonated"):
        drive(("get_operation", NAME), impersonation_chain=chain)

    assert refused(emulator) == [("generateAccessToken", 403)]
    assert methods(emulator) == ["token", "generateAccessToken"]
    assert slept == []


def test_why_a_chain_does_not_hold_is_said(
    drive: Form, google: tuple[DaiEmulator, list[str]], connect: Callable[..., None], shown: Shown
) -> None:
    emulator, _ = google
    connect(keyfile_dict=key_of_google(emulator))
    with shown.fails(exceptions.Unauthenticated, "'iam.serviceAccounts.getAccessToken' denied"):
        drive(("get_operation", NAME), impersonation_chain=TARGET)


# Refusals


_FOREIGN = (
    rsa.generate_private_key(public_exponent=65537, key_size=2048)
    .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    .decode()
)


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
def test_a_key_that_is_not_accepted(
    drive: Form,
    guarded: DaiEmulator,
    connect: Callable[..., None],
    shown: Shown,
    slept: list[float],
    changes: dict[str, str],
    words: str,
    call: str,
) -> None:
    connect(keyfile_dict={**guarded.service_account_key(), **changes}, dai_api_endpoint=guarded.endpoint)

    with shown.fails(exceptions.Unauthenticated, f"of {NAME} was not sent, for want of a token: {words}"):
        drive((call, NAME))

    assert methods(guarded) == ["token"]
    assert guarded.tokens_issued == 0
    assert slept == []


def test_an_account_that_is_disabled_in_the_middle_of_a_wait(
    which: str, drive: Form, robot: DaiEmulator, shown: Shown, slept: list[float]
) -> None:
    """Google answers this to the renewal; the tokens of such an account are refused, too."""
    robot.start_ingest(NAME)
    answer = {"error": "invalid_grant", "error_description": "Invalid grant: account is disabled"}

    def disable() -> None:
        robot.inject(Fault("token", status=400, body=json.dumps(answer).encode(), times=None))
        robot.revoke_tokens()

    with shown.fails(exceptions.Unauthenticated, "for want of a token: invalid_grant: Invalid grant: account is dis"):
        drive(("get_operation", NAME), disable, ("wait_for_operation", NAME))

    assert refused(robot) == [("operations.get", 401), ("token", 400)]
    assert slept == []


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_worker_whose_clock_is_wrong(
    drive: Form, start: Callable[..., DaiEmulator], clock: Clock, connect: Callable[..., None], shown: Shown, hours: int
) -> None:
    emulator = start(clock=lambda: clock.now + hours * 3600)
    connect(keyfile_dict=emulator.service_account_key(), dai_api_endpoint=emulator.endpoint)
    with shown.fails(exceptions.Unauthenticated, "invalid_grant: Invalid JWT: .* in a reasonable timeframe"):
        drive(("get_operation", NAME))
    assert methods(emulator) == ["token"]


def test_a_workload_that_the_pool_does_not_know(
    drive: Form, guarded: DaiEmulator, connect: Callable[..., None], shown: Shown
) -> None:
    config = {**guarded.external_account_config(), "audience": "//iam.googleapis.com/other"}
    connect(credential_config_file=config, dai_api_endpoint=guarded.endpoint)
    with shown.fails(exceptions.Unauthenticated, "Error code invalid_grant: The audience is not the provider"):
        drive(("get_operation", NAME))
    assert methods(guarded) == ["exchangeToken"]


@pytest.mark.parametrize("call", ["get_operation", "cancel_operation", "wait_for_operation"])
def test_a_scope_that_is_not_enough(
    drive: Form, guarded: DaiEmulator, connect: Callable[..., None], shown: Shown, slept: list[float], call: str
) -> None:
    connect(keyfile_dict=guarded.service_account_key(), dai_api_endpoint=guarded.endpoint, scope=OTHER_SCOPE)
    guarded.start_ingest(NAME)

    words = f"of {NAME} answered 403 PERMISSION_DENIED: Request had insufficient authentication scopes."
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
def test_a_token_service_that_is_away_for_a_moment_is_asked_again(
    drive: Form, guarded: DaiEmulator, connect: Callable[..., None], way: Callable[..., Any], status: int
) -> None:
    extra, method = way(guarded)
    connect(dai_api_endpoint=guarded.endpoint, **extra)
    guarded.start_ingest(NAME)
    guarded.inject(Fault(method, status=status))

    assert drive(("get_operation", NAME))[0].name == NAME
    assert refused(guarded) == [(method, status)]


@pytest.mark.parametrize(
    "answer",
    [
        {"accessToken": "ya29.emulator-unreadable", "expireTime": "2025-06-15T15:06:40.5Z"},
        {"accessToken": "ya29.emulator-unreadable"},
    ],
    ids=["fraction", "no time"],
)
def test_a_token_whose_end_cannot_be_read_is_not_shown(
    drive: Form, guarded: DaiEmulator, connect: Callable[..., None], shown: Shown, answer: dict[str, str]
) -> None:
    """google-auth puts the whole answer into its error, and that stands in the traceback as the cause."""
    config = guarded.external_account_config(impersonate=TARGET)
    connect(credential_config_file=config, dai_api_endpoint=guarded.endpoint, num_retries=0)
    guarded.inject(Fault("generateAccessToken", status=200, body=json.dumps(answer).encode(), times=None))
    with pytest.raises(exceptions.GoogleAPICallError, match="for want of a token") as caught:
        drive(("get_operation", NAME))
    shown.add_error(caught.value)


# What the task sees


@pytest.fixture
def context(ti: Any, shown: Shown) -> Iterator[dict[str, Any]]:
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


both = pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferrable"])


@both
def test_a_task_with_a_key(
    start: Callable[..., DaiEmulator], connect: Callable[..., None], context: Any, shown: Shown, deferrable: bool
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


REFUSALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "scope": (
        {"scope": OTHER_SCOPE},
        "403 PERMISSION_DENIED: Request had insufficient authentication scopes.",
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


def connect_badly(connect: Callable[..., None], emulator: DaiEmulator, changes: dict[str, Any]) -> None:
    key = emulator.service_account_key()
    extra = {name: value for name, value in changes.items() if name not in key}
    key |= {name: value for name, value in changes.items() if name in key}
    connect(dai_api_endpoint=emulator.endpoint, **({} if "is_anonymous" in extra else {"keyfile_dict": key}), **extra)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_task_that_is_refused_fails_with_advice(
    guarded: DaiEmulator,
    connect: Callable[..., None],
    context: Any,
    shown: Shown,
    slept: list[float],
    refusal: str,
) -> None:
    changes, words, advice = REFUSALS[refusal]
    connect_badly(connect, guarded, changes)
    guarded.start_ingest(NAME)

    with shown.fails(AirflowFailException) as caught:
        cancel_task(shown, deferrable=False, context=context)

    assert words in str(caught.value)
    assert str(caught.value).endswith(f"{advice} {NAME} may still run.")
    assert guarded.state(NAME) == "RUNNING"
    assert context["ti"].pushed == {}
    assert slept == []


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_deferred_task_that_is_refused_fails_with_the_same_advice(
    start: Callable[..., DaiEmulator],
    connect: Callable[..., None],
    context: Any,
    shown: Shown,
    slept: list[float],
    refusal: str,
) -> None:
    """Somebody has changed the connection while the task went from the worker to the triggerer."""
    changes, words, advice = REFUSALS[refusal]
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


def test_a_token_service_that_stays_away_may_be_retried_by_airflow(
    robot: DaiEmulator, context: Any, shown: Shown
) -> None:
    robot.inject(Fault("token", status=503, times=None))
    with shown.fails(AirflowException, f"for want of a token.* {NAME} may still run."):
        cancel_task(shown, deferrable=False, context=context)
    assert set(methods(robot)) == {"token"}


# Renewals


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


def test_a_token_that_is_refused_again_at_once_is_an_error(
    drive: Form, robot: DaiEmulator, shown: Shown, slept: list[float]
) -> None:
    robot.inject(Fault(status=401, times=None))
    with shown.fails(exceptions.Unauthenticated, "answered 401 UNAUTHENTICATED"):
        drive(("wait_for_operation", NAME))
    assert methods(robot) == ["token", "operations.get"] * 2
    assert slept == []


def test_a_token_that_is_refused_is_renewed_with_the_source_that_still_holds(
    drive: Form, google: tuple[DaiEmulator, list[str]], connect: Callable[..., None]
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


def test_a_wait_outlives_its_token(which: str, drive: Form, robot: DaiEmulator, clock: Clock) -> None:
    robot.start_ingest(NAME, seconds=1200)
    begun = clock.now

    (ended,) = drive(("wait_for_operation", NAME))

    assert ended.state == "SUCCEEDED"
    assert robot.tokens_issued == 2
    assert refused(robot) == []
    renewed = robot.requests[methods(robot).index("token", 1)].time - begun
    assert RENEWED_AT[which] <= renewed < RENEWED_AT[which] + 30


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


def happen_after(seconds: float, happens: Callable[[], object], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen once, at the end of the sleep in which the time comes."""
    due, pending = clock.now + seconds, [happens]

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if pending and clock.now >= due:
            pending.pop()()

    async def sleep_in_loop(seconds: float) -> None:
        sleep(seconds)

    monkeypatch.setattr(DaiHook, "_sleep", staticmethod(sleep))
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(sleep_in_loop))


def test_a_renewal_that_fails_for_a_moment_ends_no_wait(
    drive: Form, robot: DaiEmulator, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the repeats of one look: the next look comes an interval later."""
    robot.start_ingest(NAME, seconds=1200)
    happen_after(600, lambda: robot.inject(Fault("token", status=503, times=30)), clock, monkeypatch)

    (ended,) = drive(("wait_for_operation", NAME))

    assert ended.state == "SUCCEEDED"
    assert refused(robot) == [("token", 503)] * 30
    assert robot.tokens_issued == 2


# Many waits on one loop


def wait_for_all(
    names: list[str], time: SharedTime, monkeypatch: pytest.MonkeyPatch, shown: Shown, seed: int | None = None
) -> list[Any]:
    """Wait for each in a hook of its own, as the triggers of one triggerer do; return operations and errors."""
    chance = random.Random(seed)  # noqa: S311 - for jitter
    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(time.sleep))
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
    start: Callable[..., DaiEmulator],
    connect: Callable[..., None],
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
    connect: Callable[..., None],
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
    assert {type(error) for error in errors} == {exceptions.Unauthenticated}
    assert [str(error) for error in errors if "for want of a token" not in str(error)] == []
    assert [str(error) for error in errors if "account not found" not in str(error)] == []
    assert guarded.tokens_issued == (1 if way is key_json else 2)
    assert set(guarded.states().values()) == {"RUNNING"}


# The kill path


def last_of(emulator: DaiEmulator) -> Any:
    return emulator.requests[-1]


def test_a_prepared_cancellation_takes_the_token_that_is_held_when_it_is_sent(robot: DaiEmulator, clock: Clock) -> None:
    robot.start_ingest(NAME)

    with DaiHook(quota_project_id="billed-project") as hook:
        hook.get_operation(NAME)
        cancel = hook.prepare_cancellation(NAME, timeout=2)
        clock.advance(LIFETIME - 100)
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
        cancel = hook.prepare_cancellation(NAME, timeout=2)
        if by == "expiry":
            clock.advance(LIFETIME)
        else:
            robot.revoke_tokens()
        with shown.fails(exceptions.Unauthenticated, "there is no time to fetch another"):
            cancel()
    assert methods(robot) == ["token", "operations.get", "operations.cancel"]
    assert robot.cancel_requested(NAME) == 0
    assert slept == []


def test_a_prepared_cancellation_as_another_account(
    google: tuple[DaiEmulator, list[str]], connect: Callable[..., None]
) -> None:
    emulator, _ = google
    emulator.allow_impersonation(ROBOT, FIRST, TARGET)
    connect(keyfile_dict=key_of_google(emulator))
    emulator.start_ingest(NAME)

    with DaiHook(impersonation_chain=[FIRST, TARGET]) as hook:
        hook.get_operation(NAME)
        hook.prepare_cancellation(NAME, timeout=2)()

    assert (last_of(emulator).method, last_of(emulator).account) == ("operations.cancel", TARGET)
    assert emulator.tokens_issued == 2


def test_a_cancellation_that_is_prepared_before_the_first_request_has_a_token(robot: DaiEmulator) -> None:
    """A second try takes the first one's ingest before it has asked for anything, and can be killed right then."""
    robot.start_ingest(NAME)
    with DaiHook() as hook:
        hook.prepare_cancellation(NAME, timeout=2)()
    assert robot.cancel_requested(NAME) == 1
    assert last_of(robot).account == ROBOT


def test_a_task_that_is_killed_while_it_waits_cancels_as_its_account(
    robot: DaiEmulator, clock: Clock, context: Any, monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    """As Airflow does it: from a signal handler, in the middle of a sleep, after a renewal."""
    task = DaiCreateCreativeOperator(task_id="start_ingest", creative=CREATIVE)
    happen_after(1000, task.on_kill, clock, monkeypatch)

    with shown.fails(UnexpectedEndError, "CANCELLED"):
        task.execute(context)

    (name,) = robot.states()
    assert robot.state(name) == "CANCELLED"
    assert robot.cancel_requested(name) == 1
    assert accounts(robot) == {ROBOT}
    assert robot.tokens_issued == 2
    assert refused(robot) == []


# What is shown


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
