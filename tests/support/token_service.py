"""A Google token service on a tiny server, for the requests session."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import pytest

from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.hooks.dai import DaiHook
from tests.support.event_loop import private_key_pem

if TYPE_CHECKING:
    from conftest import Log

    from tests.support.tiny_server import Exchange, TinyServer


NAME = "operations/ingest"
EMAIL = "robot@project.iam.gserviceaccount.com"
URL = "https://media.example/ad.mp4"
MEDIA = {"uri": f"{URL}?X-Goog-Signature=s1gn4ture", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
CREATIVE = {"adSystem": "tests", "mezzanines": [MEDIA]}
PROXY_PASSWORD = "pr0xy-passw0rd"


@dataclass
class Google:
    """A service-account key, the token server that it names, and all that must stay secret about them."""

    key: dict[str, str]
    tokens: list[str] = field(default_factory=list)
    assertions: list[str] = field(default_factory=list)
    #: What the token server answers instead of a token.
    refusal: tuple[int, object] | None = None
    #: Cleared, it lets the token server take its time: a few seconds.
    may_answer: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_answer.set()

    def respond(self, exchange: Exchange) -> None:
        self.may_answer.wait(5)
        self.assertions += parse_qs(exchange.server.requests[-1].body.decode())["assertion"]
        if self.refusal:
            exchange.answer(*self.refusal)
            return
        self.tokens.append(f"t0ken-{len(self.tokens) + 1}-of-the-robot")
        exchange.answer(200, {"access_token": self.tokens[-1], "expires_in": 3600, "token_type": "Bearer"})

    @property
    def secrets(self) -> list[str]:
        lines = self.key["private_key"].splitlines()[1:-1]
        return [*lines, *self.assertions, *self.tokens, "s1gn4ture", PROXY_PASSWORD, "Bearer "]

    def assert_not_in(self, text: str) -> None:
        shown = [secret[:30] for secret in self.secrets if secret in text]
        assert shown == []

    @contextmanager
    def fails(self, error: type[Exception], words: str) -> Iterator[None]:
        """Expect an error of this class whose traceback, causes included, shows no secret."""
        with pytest.raises(error, match=words) as caught:
            yield
        self.assert_not_in("".join(traceback.format_exception(caught.value)))


@pytest.fixture(scope="module")
def key_and_server(one_tiny_server: TinyServer) -> tuple[dict[str, str], TinyServer]:
    """
    Give a key and the token server that it names.

    They are the same for all tests: Airflow remembers every key it has seen, to mask it, and slows down with each.
    """
    key = {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "k1",
        "private_key": private_key_pem().decode(),
        "client_email": EMAIL,
        "client_id": "1",
        "token_uri": f"{one_tiny_server.endpoint}/token",
    }
    return key, one_tiny_server


@pytest.fixture
def google(
    key_and_server: tuple[dict[str, str], TinyServer], log: Log, caplog: pytest.LogCaptureFixture
) -> Iterator[Google]:
    """Give a key and its token server; after the test, nothing secret of them is in the log, debug lines included."""
    key, server = key_and_server
    google = Google(dict(key))
    server.respond = google.respond
    caplog.set_level("DEBUG")
    yield google
    with_tracebacks = map(logging.Formatter().format, caplog.get_records("call"))
    google.assert_not_in("\n".join([log.text, *with_tracebacks]))


@pytest.fixture
def robot(
    google: Google, emulator: DaiEmulator, connect: Callable[..., None], make_hook: Callable[..., DaiHook]
) -> DaiHook:
    """Give a hook that talks to the emulator with the key."""
    connect(keyfile_dict=json.dumps(google.key), dai_api_endpoint=emulator.endpoint)
    return make_hook()


def bearers(emulator: DaiEmulator) -> list[str | None]:
    return [request.headers.get("authorization") for request in emulator.requests]
