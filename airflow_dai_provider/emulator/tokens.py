"""The bearer tokens issued: opaque strings that only the emulator can tell the meaning of."""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

# Expired ones are known for a while, so that they are told from foreign ones.
_REMEMBERED_SECONDS = 3600


@dataclass(frozen=True)
class Token:
    """What a token is good for; its own text is nowhere in here.

    :param account: who it was issued to.
    :param scopes: what it may be used for.
    :param expires: epoch seconds.
    """

    account: str
    scopes: frozenset[str]
    expires: float


class Tokens:
    """The tokens of one emulator. Safe to use from several threads.

    :param clock: epoch seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start without any token."""
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
        """Issue a token.

        :param account: who it is for.
        :param scopes: what it may be used for.
        :param lifetime: seconds from now to its end.
        :return: the token.
        """
        value = f"ya29.emulator-{secrets.token_urlsafe(32)}"
        now = self._clock()
        with self._lock:
            self._issued += 1
            self._tokens[value] = Token(account, scopes, now + lifetime)
            self._forget_old(now)
        return value

    def find(self, value: str) -> Token | None:
        """Return what a token is good for, expired or not; None for a revoked and a foreign one.

        :param value: the token.
        """
        with self._lock:
            return self._tokens.get(value)

    def is_live(self, token: Token) -> bool:
        """Whether a token has not expired.

        :param token: what :meth:`find` has found.
        """
        return self._clock() < token.expires

    def revoke_all(self) -> None:
        """Have every token issued so far refused from now on."""
        with self._lock:
            self._tokens.clear()

    def _forget_old(self, now: float) -> None:
        # In the order of issue, which is nearly that of expiry.
        for value, token in list(islice(self._tokens.items(), 2)):
            if token.expires + _REMEMBERED_SECONDS < now:
                del self._tokens[value]
