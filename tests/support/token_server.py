"""The token server, the key that names it, and a check that nothing secret of the two is shown."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.event_loop import Gate
from tests.support.log import Log
from tests.support.payloads import SIGNATURE
from tests.support.tiny_server import Exchange, TinyServer

PROXY_PASSWORD = "pr0xy-passw0rd"


@cache
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def private_key_pem() -> bytes:
    return private_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def service_account_key(token_uri: str) -> dict[str, str]:
    """Return a key as Google issues it, with the address of a token server."""
    return {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "k1",
        "private_key": private_key_pem().decode(),
        "client_email": "robot@project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_uri,
    }


@dataclass
class TokenServer:
    """A token server, and the service-account key that names it.

    :param key: the key.
    :param expires_in: seconds that a token is good for.
    :param refusal: the response instead of a token.
    :param gate: where a request for a token stands still.
    """

    key: dict[str, str]
    expires_in: float = 3600
    refusal: tuple[int, object] | None = None
    gate: Gate | None = None
    issued: list[str] = field(default_factory=list)
    assertions: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def asked(self) -> int:
        return len(self.assertions)

    def respond(self, exchange: Exchange) -> None:
        with self._lock:
            self.assertions += parse_qs(exchange.request_body.decode())["assertion"]
            number = self.asked
        if self.gate:
            self.gate.wait()
        if self.refusal:
            exchange.answer(*self.refusal)
            return
        token = f"t0ken-{number}-of-the-robot"
        self.issued.append(token)
        exchange.answer(200, {"access_token": token, "expires_in": self.expires_in, "token_type": "Bearer"})

    def assert_nothing_secret_in(self, text: str) -> None:
        lines = self.key["private_key"].splitlines()[1:-1]
        secrets = [*lines, *self.assertions, *self.issued, SIGNATURE, PROXY_PASSWORD, "Bearer "]
        assert [secret[:12] for secret in secrets if secret in text] == []

    @contextmanager
    def fails(self, error: type[Exception], words: str) -> Iterator[None]:
        """Expect an error of this class whose traceback, causes included, shows no secret."""
        with pytest.raises(error, match=words) as caught:
            yield
        self.assert_nothing_secret_in("".join(traceback.format_exception(caught.value)))


@contextmanager
def token_server(gate: Gate | None = None) -> Iterator[TokenServer]:
    """Run a token server."""
    with TinyServer(lambda exchange: tokens.respond(exchange)) as server:
        tokens = TokenServer(service_account_key(f"{server.endpoint}/token"), gate=gate)
        yield tokens


@pytest.fixture
def tokens(one_tiny_server: TinyServer, log: Log, caplog: pytest.LogCaptureFixture) -> Iterator[TokenServer]:
    """Give a token server; after the test, nothing secret of it is in the log, debug lines included."""
    tokens = TokenServer(service_account_key(f"{one_tiny_server.endpoint}/token"))
    one_tiny_server.respond = tokens.respond
    caplog.set_level("DEBUG")
    yield tokens
    with_tracebacks = map(logging.Formatter().format, caplog.get_records("call"))
    tokens.assert_nothing_secret_in("\n".join([log.text, *with_tracebacks]))
