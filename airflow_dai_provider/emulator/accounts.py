"""Service accounts with their RSA keys, which account may act as which, and the tokens issued to them."""

import json
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_dai_provider.emulator.errors import wrong_value

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

DEFAULT_EMAIL = "robot@emulator.iam.gserviceaccount.com"
"""The service account where no other is named."""
_KEY_BITS = 2048
# Expired tokens are remembered for a while, so that they are told from foreign ones.
_REMEMBERED_SECONDS = 3600


@dataclass(frozen=True)
class Account:
    """A service account with an RSA key, whose id the header of a JWT can hold."""

    email: str
    key_id: str
    private_key: str = field(repr=False)  # PEM (PKCS #8)

    def key_file(self, token_uri: str) -> dict[str, str]:
        """Return the content of the key's JSON file."""
        return {
            "type": "service_account",
            "project_id": self.email.partition("@")[2].partition(".")[0],
            "private_key_id": self.key_id,
            "private_key": self.private_key,
            "client_email": self.email,
            "client_id": str(int(self.key_id[:16], 16)),
            "token_uri": token_uri,
            "universe_domain": "googleapis.com",
        }

    @cached_property
    def public_key(self) -> "RSAPublicKey":
        """The key that checks the account's signatures."""
        return load_private_key(self.private_key).public_key()


class Accounts:
    """The service accounts of one emulator. Safe to use from several threads.

    :param private_key: PEM of the RSA key of the first account that is asked for, None for a fresh one.
    """

    def __init__(self, private_key: str | None = None) -> None:
        if private_key is not None:
            load_private_key(private_key)
        self._given_key = private_key
        self._lock = threading.Lock()
        self._by_email: dict[str, Account] = {}
        self._may_act_as: set[tuple[str, str]] = set()

    def get(self, email: str) -> Account:
        """Return an account, with a fresh key when it is asked for the first time."""
        check_email(email)
        with self._lock:
            if email not in self._by_email:
                key, self._given_key = self._given_key or generate_private_key(), None
                self._by_email[email] = Account(email, secrets.token_hex(20), key)
            return self._by_email[email]

    def replace_key(self, email: str) -> Account:
        """Give an account a fresh key, and refuse its old one from now on."""
        check_email(email)
        account = Account(email, secrets.token_hex(20), generate_private_key())
        with self._lock:
            self._by_email[email] = account
        return account

    def find(self, email: object) -> Account | None:
        """Return an account that has been asked for before, if ``email`` (any JSON value) names one."""
        with self._lock:
            return self._by_email.get(email) if isinstance(email, str) else None

    def allow(self, chain: Sequence[str]) -> None:
        """Let each account of a chain act as the next one; the caller is the first, the target the last."""
        if len(chain) < 2:
            raise wrong_value("impersonation chain", list(chain), "the caller, delegates if any, and the target")
        for email in chain:
            if not email.startswith("principal://"):
                check_email(email)
        with self._lock:
            self._may_act_as.update(zip(chain, chain[1:], strict=False))

    def may_act_as(self, chain: Sequence[str]) -> bool:
        """Return whether each account of a chain may act as the next one."""
        with self._lock:
            return all(pair in self._may_act_as for pair in zip(chain, chain[1:], strict=False))


def check_email(email: str) -> None:
    """Raise ValueError if a text cannot be the name of a service account."""
    name, _, domain = email.partition("@")
    # No whitespace, and no character with a meaning in a URL.
    if not (name and domain) or set(email) & set(" \t\r\n/:?#%,"):
        raise wrong_value("account", email, "an e-mail address, such as robot@my-project.iam.gserviceaccount.com")


def write_key_file(path: Path, key: dict[str, str]) -> None:
    """Write a key file that only its owner can read.

    :param key: the content; its member ``emulator`` marks the file as one that another emulator may replace.
    :raises ValueError: if another file is there.
    """
    if not _may_replace(path):
        raise wrong_value("key file", str(path), "a path where nothing is, or the key of an emulator")
    # mkstemp makes it for its owner only; it is moved to its place when it is complete.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(key, file, indent=2)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Token:
    """The rights of a token, without its text."""

    account: str
    scopes: frozenset[str]
    expires: float  # epoch seconds


class Tokens:
    """The bearer tokens of one emulator, opaque strings. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[str, Token] = {}
        self._issued = 0

    @property
    def issued(self) -> int:
        """How many have been issued."""
        with self._lock:
            return self._issued

    def issue(self, account: str, scopes: frozenset[str], lifetime: int) -> str:
        """Issue a token that is valid for ``lifetime`` seconds."""
        value = f"ya29.emulator-{secrets.token_urlsafe(32)}"
        now = self._clock()
        with self._lock:
            self._issued += 1
            self._tokens[value] = Token(account, scopes, now + lifetime)
            # The order of issue is nearly that of expiry: two at a time keep up with the new ones.
            for old, token in list(islice(self._tokens.items(), 2)):
                if token.expires + _REMEMBERED_SECONDS < now:
                    del self._tokens[old]
        return value

    def find(self, value: str) -> Token | None:
        """Return the rights of a token, expired or not; None for a revoked and a foreign one."""
        with self._lock:
            return self._tokens.get(value)

    def is_live(self, token: Token) -> bool:
        """Return whether a token has not expired."""
        return self._clock() < token.expires

    def revoke_all(self) -> None:
        """Refuse every token issued so far from now on."""
        with self._lock:
            self._tokens.clear()


def _may_replace(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "emulator" in content


def generate_private_key() -> str:
    """Return a fresh RSA key as PEM (PKCS #8)."""
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def load_private_key(private_key: str) -> "RSAPrivateKey":
    """Read an RSA key from its PEM; the error does not show what was given."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        # The check that the key's numbers fit together takes long, and is not needed here.
        key = load_pem_private_key(private_key.encode(), password=None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError):  # TypeError: the key is protected by a password
        key = None
    if isinstance(key, RSAPrivateKey):
        return key
    # The value is not shown: it may be a key all the same.
    raise ValueError("private_key: expected the PEM of an RSA key without a password")
