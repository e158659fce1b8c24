"""The signed JWT with which a service account asks for a token (RFC 7523). Pure, but for the signature."""

import base64
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeGuard

from airflow_dai_provider.emulator.accounts import Account

LONGEST_LIFE = 3600
"""Seconds from ``iat`` to ``exp`` that Google accepts at most."""
CLOCK_SKEW = 60
"""Seconds that the clock of whoever signs may be fast."""

_TIMES = (
    "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
    "Check your iat and exp values in the JWT claim."
)


class OAuthError(Exception):
    """A refusal of a token endpoint, answered as ``{"error": ..., "error_description": ...}``.

    :param error: one of the words of RFC 6749, section 5.2, such as ``invalid_grant``.
    :param description: what a developer reads.
    """

    def __init__(self, error: str, description: str) -> None:
        """Keep both parts for the answer."""
        super().__init__(description)
        self.error = error
        self.description = description


@dataclass(frozen=True)
class Grant:
    """What a good assertion asks for.

    :param account: the service account.
    :param scopes: the scopes of the token.
    """

    account: str
    scopes: frozenset[str]


def read_assertion(
    assertion: str, find_account: Callable[[object], Account | None], audiences: Collection[str], now: float
) -> Grant:
    """Check an assertion, in the words of Google's token endpoint.

    :param assertion: the JWT.
    :param find_account: finds the account of an issuer.
    :param audiences: the URLs by which the token endpoint is known, the right one first.
    :param now: epoch seconds.
    :return: what it asks for.
    :raises OAuthError: ``invalid_grant``, ``invalid_scope`` or ``unauthorized_client``.
    """
    header, claims, signed, signature = _parse(assertion)
    # The algorithm is never the header's choice: "none", and HS256 with the public key for a secret, are attacks.
    if header.get("alg") != "RS256":
        raise _bad("Invalid JWT: only the algorithm RS256 is supported.")
    account = find_account(claims.get("iss"))
    if account is None:
        raise _bad("Invalid grant: account not found")
    if header.get("kid") not in (None, account.key_id) or not account.has_signed(signed, signature):
        raise _bad("Invalid JWT Signature.")
    _check_audience(claims.get("aud"), audiences)
    _check_times(claims.get("iat"), claims.get("exp"), now)
    if claims.get("sub") not in (None, account.email):
        raise OAuthError(
            "unauthorized_client",
            "Client is unauthorized to retrieve access tokens using this method, "
            "or client not authorized for any of the scopes requested.",
        )
    return Grant(account.email, _read_scopes(claims.get("scope")))


def _parse(assertion: str) -> tuple[dict[str, object], dict[str, object], bytes, bytes]:
    signed, _, signature = assertion.rpartition(".")
    try:
        header, claims = (json.loads(_decode(part)) for part in signed.split("."))
        decoded = _decode(signature)
    except (ValueError, RecursionError):
        header = claims = None
    if not (isinstance(header, dict) and isinstance(claims, dict)):
        raise _bad("Bad Request: the assertion is no JWT of three parts.")
    return header, claims, signed.encode(), decoded


def _decode(part: str) -> bytes:
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)


def _check_audience(audience: object, audiences: Collection[str]) -> None:
    if audience not in audiences:
        raise _bad(f"Invalid JWT: Failed audience check. The right audience is {next(iter(audiences))}")


def _check_times(issued: object, expires: object, now: float) -> None:
    if not (_is_number(issued) and _is_number(expires)):
        raise _bad(_TIMES)
    if not (issued - CLOCK_SKEW <= now < expires and 0 < expires - issued <= LONGEST_LIFE):
        raise _bad(_TIMES)


def _read_scopes(scope: object) -> frozenset[str]:
    scopes = frozenset(scope.split()) if isinstance(scope, str) else frozenset()
    if not scopes:
        raise OAuthError("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
    return scopes


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bad(description: str) -> OAuthError:
    return OAuthError("invalid_grant", description)
