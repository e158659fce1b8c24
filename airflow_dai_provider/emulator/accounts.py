"""Service accounts: their RSA keys, and who may act as whom."""

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from airflow_dai_provider.emulator.errors import wrong_value

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

DEFAULT_EMAIL = "robot@emulator.iam.gserviceaccount.com"
"""The service account that there is when nobody names another."""
_KEY_BITS = 2048


@dataclass(frozen=True)
class Account:
    """A service account with a key.

    :param email: its name.
    :param key_id: what the header of a JWT can name the key by.
    :param private_key: the RSA key, as PEM (PKCS #8).
    """

    email: str
    key_id: str
    private_key: str = field(repr=False)

    def key_file(self, token_uri: str) -> dict[str, str]:
        """Return what the JSON file of the key holds.

        :param token_uri: URL of the token endpoint.
        """
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

    def has_signed(self, content: bytes, signature: bytes) -> bool:
        """Whether a signature (RS256) is this account's.

        :param content: what is signed.
        :param signature: the signature.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        try:
            self._key.public_key().verify(signature, content, PKCS1v15(), SHA256())
        except InvalidSignature:
            return False
        return True

    @cached_property
    def _key(self) -> "RSAPrivateKey":
        return _load(self.private_key)


class Accounts:
    """The service accounts of one emulator. Safe to use from several threads.

    :param private_key: PEM of the RSA key of the first account that is asked for, None for a fresh one.
    :raises ValueError: if it is no RSA key; what was given does not show.
    """

    def __init__(self, private_key: str | None = None) -> None:
        """Start without any account."""
        if private_key is not None:
            _load(private_key)
        self._given_key = private_key
        self._lock = threading.Lock()
        self._by_email: dict[str, Account] = {}
        self._may_act_as: set[tuple[str, str]] = set()

    def get(self, email: str) -> Account:
        """Return an account, with a fresh key when it is asked for the first time.

        :param email: its name.
        :raises ValueError: if it is no e-mail address.
        """
        check_email(email)
        with self._lock:
            if email not in self._by_email:
                key, self._given_key = self._given_key or _generate(), None
                self._by_email[email] = Account(email, secrets.token_hex(20), key)
            return self._by_email[email]

    def find(self, email: object) -> Account | None:
        """Return an account that has been asked for before, None if there is none.

        :param email: what a stranger says is its name.
        """
        with self._lock:
            return self._by_email.get(email) if isinstance(email, str) else None

    def allow(self, chain: Sequence[str]) -> None:
        """Let each account of a chain act as the one behind it.

        :param chain: names, the caller first and the target last.
        :raises ValueError: for a chain of less than two, or what is no e-mail address.
        """
        if len(chain) < 2:
            raise wrong_value("impersonation chain", list(chain), "the caller, delegates if any, and the target")
        for email in chain:
            if not email.startswith("principal://"):
                check_email(email)
        with self._lock:
            self._may_act_as.update(zip(chain, chain[1:], strict=False))

    def may_act_as(self, chain: Sequence[str]) -> bool:
        """Whether each account of a chain may act as the one behind it.

        :param chain: names, the caller first and the target last.
        """
        with self._lock:
            return all(pair in self._may_act_as for pair in zip(chain, chain[1:], strict=False))


def check_email(email: str) -> None:
    """Refuse what cannot be the name of a service account.

    :param email: the name.
    :raises ValueError: if it has no ``@`` inside, or holds whitespace or a character with a meaning in a URL.
    """
    name, _, domain = email.partition("@")
    if not (name and domain) or set(email) & set(" \t\r\n/:?#%,"):
        raise wrong_value("account", email, "an e-mail address, such as robot@my-project.iam.gserviceaccount.com")


def _generate() -> str:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def _load(private_key: str) -> "RSAPrivateKey":
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        # Whether its numbers fit together takes long to find out, and harms nobody here.
        key = load_pem_private_key(private_key.encode(), password=None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError):  # the latter for one that a password protects
        key = None
    if isinstance(key, RSAPrivateKey):
        return key
    # What was given does not show: it may be a key all the same.
    raise ValueError("private_key: expected the PEM of an RSA key without a password")
