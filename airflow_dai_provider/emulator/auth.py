"""Who a request comes from, and whether it may do what it asks for."""

from collections.abc import Callable, Iterable

from airflow_dai_provider.emulator.accounts import Accounts
from airflow_dai_provider.emulator.errors import ApiError, wrong_value
from airflow_dai_provider.emulator.tokens import Token, Tokens

CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
"""The scope of all of Google Cloud. Which scope DAI wants is undocumented."""
IAM = "https://www.googleapis.com/auth/iam"
"""The scope with which an account may act as another."""

_REALM = 'Bearer realm="https://accounts.google.com/"'
_EXPECTED = "Expected OAuth 2 access token, login cookie or other valid authentication credential."


class Authentication:
    """The accounts and tokens of one emulator, and what a token must be good for.

    :param clock: epoch seconds.
    :param endpoint: returns the emulator's base URL; asked when it listens.
    :param lifetime: seconds for which a token is good.
    :param scopes: scopes of which a token needs one.
    :param private_key: PEM of the first account's RSA key, None for a fresh one.
    :raises ValueError: for a lifetime or key that cannot be, and no scope.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        endpoint: Callable[[], str],
        lifetime: int,
        scopes: Iterable[str],
        private_key: str | None = None,
    ) -> None:
        """Start without accounts and tokens."""
        if isinstance(lifetime, bool) or not isinstance(lifetime, int) or lifetime < 1:
            raise wrong_value("token_lifetime", lifetime, "a whole number of seconds, 1 or more")
        self.scopes = frozenset((scopes,) if isinstance(scopes, str) else scopes)
        if not self.scopes:
            raise wrong_value("scopes", [], "at least one scope")
        self.clock = clock
        self.lifetime = lifetime
        self.accounts = Accounts(private_key)
        self.tokens = Tokens(clock)
        self.subject_tokens = Tokens(clock)
        self._endpoint = endpoint

    @property
    def token_uri(self) -> str:
        """URL of the token endpoint."""
        return f"{self._endpoint()}/token"

    def caller(self, authorization: str | None) -> str | None:
        """Return whose token a request carries, None without a good one.

        :param authorization: the header of that name.
        """
        token = self._find(authorization)
        return token.account if token is not None and self.tokens.is_live(token) else None

    def check(self, authorization: str | None, service: str = "dai", scopes: frozenset[str] | None = None) -> Token:
        """Let a request pass, or say why it may not.

        :param authorization: the header of that name.
        :param service: first label of the API's host name.
        :param scopes: scopes of which the token needs one, None for those of DAI.
        :return: what the token is good for.
        :raises ApiError: UNAUTHENTICATED or PERMISSION_DENIED, as Google's APIs answer.
        """
        if not authorization:
            message = f"Request is missing required authentication credential. {_EXPECTED}"
            raise _refusal("UNAUTHENTICATED", message, "CREDENTIALS_MISSING", service, _REALM)
        token = self._find(authorization)
        if token is None or not self.tokens.is_live(token):
            reason = "ACCESS_TOKEN_TYPE_UNSUPPORTED" if token is None else "ACCESS_TOKEN_EXPIRED"
            message = f"Request had invalid authentication credentials. {_EXPECTED}"
            raise _refusal("UNAUTHENTICATED", message, reason, service, f'{_REALM}, error="invalid_token"')
        needed = self.scopes if scopes is None else scopes
        if not token.scopes & needed:
            challenge = f'{_REALM}, error="insufficient_scope", scope="{" ".join(sorted(needed))}"'
            message = "Request had insufficient authentication scopes."
            raise _refusal("PERMISSION_DENIED", message, "ACCESS_TOKEN_SCOPE_INSUFFICIENT", service, challenge)
        return token

    def _find(self, authorization: str | None) -> Token | None:
        scheme, _, value = (authorization or "").partition(" ")
        return self.tokens.find(value.strip()) if scheme.lower() == "bearer" else None


def error_info(reason: str, domain: str, metadata: dict[str, str]) -> dict[str, object]:
    """Build the detail of an error that machines read (google.rpc.ErrorInfo).

    :param reason: the error in one word.
    :param domain: who defines the word.
    :param metadata: what the error is about.
    """
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": domain,
        "metadata": metadata,
    }


def _refusal(rpc_status: str, message: str, reason: str, service: str, challenge: str) -> ApiError:
    detail = error_info(reason, "googleapis.com", {"service": f"{service}.googleapis.com"})
    return ApiError(rpc_status, message, [detail], {"WWW-Authenticate": challenge})
