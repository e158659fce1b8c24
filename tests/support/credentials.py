"""Ways to authenticate, for both hooks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from airflow_dai_provider.emulator import DaiEmulator, SelfSigned
from tests.support.authentication import FORMS, Form, Shown, guarded_emulator
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.emulators import MakeEmulator
from tests.support.log import Log
from tests.support.tunnel import tunnel_to

NAME = "operations/ingest"
ROBOT = "robot@emulator.iam.gserviceaccount.com"
FIRST, SECOND = "first@p.iam.gserviceaccount.com", "second@p.iam.gserviceaccount.com"
TARGET = "target@p.iam.gserviceaccount.com"
OTHER_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
#: Seconds that a token lives; hooks renew it in the last tenth, google-auth itself 225 s before the end.
LIFETIME = 900


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
def guarded(start: MakeEmulator) -> DaiEmulator:
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
def robot(guarded: DaiEmulator, connect: Connect) -> DaiEmulator:
    """Give the emulator that the connection leads to, with the key of an account."""
    connect(keyfile_dict=guarded.service_account_key(), dai_api_endpoint=guarded.endpoint)
    return guarded


def key_json(emulator: DaiEmulator, _: Path, __: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"keyfile_dict": emulator.service_account_key()}


def federation_text(emulator: DaiEmulator, _: Path, __: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"credential_config_file": json.dumps(emulator.external_account_config(impersonate=TARGET))}


@pytest.fixture
def google(
    start: MakeEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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


_FOREIGN = (
    rsa.generate_private_key(public_exponent=65537, key_size=2048)
    .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    .decode()
)
