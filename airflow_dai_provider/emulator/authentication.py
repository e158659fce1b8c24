"""Authentication: the check of a request's token, and the endpoints that issue tokens.

These are Google's token endpoint (OAuth2), its IAM credentials API, its security token service and the metadata server.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeGuard
from urllib.parse import parse_qsl

from airflow_dai_provider.emulator import metadata
from airflow_dai_provider.emulator.accounts import Accounts, Token, Tokens, check_email
from airflow_dai_provider.emulator.errors import ApiError, invalid_argument, read_json, wrong_value
from airflow_dai_provider.emulator.responses import Response, error_response, json_response

if TYPE_CHECKING:
    from airflow_dai_provider.emulator.api import RecordedRequest

CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
"""The scope of all of Google Cloud. The scope that DAI needs is undocumented."""
_IAM = "https://www.googleapis.com/auth/iam"
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 (the name of a grant)
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 (the name of a type)
_GOOGLES_TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105 (an address)
# Without a project, whose number google-auth would ask Google's resource manager for.
_POOL = "//iam.googleapis.com/locations/global/workloadIdentityPools/emulator"
_PROVIDER = f"{_POOL}/providers/emulator"
_WORKLOAD = f"principal:{_POOL}/subject/workload"

_LONGEST_LIFETIME = 3600  # of an assertion, and of the token of an impersonated account
_CLOCK_SKEW = 60  # seconds by which the signing clock may be fast
_SUBJECT_TOKEN_SECONDS = 600

_REALM = 'Bearer realm="https://accounts.google.com/"'
_EXPECTED = "Expected OAuth 2 access token, login cookie or other valid authentication credential."
_INVALID_TIMES = (
    "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
    "Check your iat and exp values in the JWT claim."
)
# PyJWT ignores characters that are not base64.
_JWT = re.compile(r"[\w=-]*(?:\.[\w=-]*){2}", re.ASCII)


class OAuthError(Exception):
    """A refusal of a token endpoint, in the words of RFC 6749, section 5.2, such as ``invalid_grant``."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description


class Authentication:
    """The accounts and tokens of one emulator; the parameters are those of :class:`DaiEmulator`.

    :param endpoint: returns the emulator's base URL; called once it listens.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        endpoint: Callable[[], str],
        lifetime: int,
        scopes: Iterable[str],
        private_key: str | None = None,
    ) -> None:
        if isinstance(lifetime, bool) or not isinstance(lifetime, int) or lifetime < 1:
            raise wrong_value("token_lifetime", lifetime, "a whole number of seconds, 1 or more")
        self.scopes = frozenset((scopes,) if isinstance(scopes, str) else scopes)
        if not self.scopes:
            raise wrong_value("scopes", [], "at least one scope")
        self.accounts = Accounts(private_key)
        self.tokens = Tokens(clock)
        self._subject_tokens = Tokens(clock)
        self._clock = clock
        self._lifetime = lifetime
        self._endpoint = endpoint

    @property
    def token_uri(self) -> str:
        """URL of the token endpoint."""
        return f"{self._endpoint()}/token"

    def caller(self, authorization: str | None) -> str | None:
        """Return the account whose valid token is in a request's Authorization header, None without one."""
        token = self._find(authorization)
        return token.account if token is not None and self.tokens.is_live(token) else None

    def check(self, authorization: str | None, service: str = "dai", scopes: frozenset[str] | None = None) -> Token:
        """Return the rights of a request's token, if it may be used for the request.

        :param authorization: the header of that name.
        :param service: first label of the API's host name.
        :param scopes: scopes of which the token needs one, None for those of DAI.
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

    def issue_subject_token(self) -> str:
        """Return a token that proves a workload's identity, valid for ten minutes."""
        return self._subject_tokens.issue(_WORKLOAD, frozenset((_PROVIDER,)), _SUBJECT_TOKEN_SECONDS)

    def external_account_config(self, subject_token_url: str, impersonate: str | None) -> dict[str, object]:
        """Return a credential configuration of workload identity federation, and allow its impersonation."""
        config: dict[str, object] = {
            "type": "external_account",
            "audience": _PROVIDER,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"{self._endpoint()}/v1/token",
            "credential_source": {
                "url": subject_token_url,
                "format": {"type": "json", "subject_token_field_name": "subject_token"},
            },
        }
        if impersonate is not None:
            self.accounts.allow((_WORKLOAD, impersonate))
            path = f"/v1/projects/-/serviceAccounts/{impersonate}:generateAccessToken"
            config["service_account_impersonation_url"] = f"{self._endpoint()}{path}"
        return config

    def respond(self, request: "RecordedRequest") -> Response:
        """Answer a request for a token; its method is one of ``routes.TOKEN_METHODS``."""
        if request.method == "metadata":
            return metadata.respond(request, self.scopes, self._issue)
        if request.method == "generateAccessToken":
            try:
                return json_response(self._generate_access_token(request))
            except ApiError as error:
                return error_response(error)
        no_store = {"Cache-Control": "no-store"}
        try:
            form = dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
            grant = self._grant if request.method == "token" else self._exchange
            return json_response(grant(form), headers=no_store)
        except OAuthError as error:
            return json_response({"error": error.error, "error_description": error.description}, 400, no_store)

    def _grant(self, form: Mapping[str, str]) -> dict[str, object]:
        assertion = _read_form(form, _JWT_BEARER, "assertion")
        # Whatever the key file says, google-auth signs for Google's own address.
        audiences = (self.token_uri, _GOOGLES_TOKEN_URI)
        return self._issue(*read_assertion(assertion, self.accounts, audiences, self._clock()))

    def _exchange(self, form: Mapping[str, str]) -> dict[str, object]:
        subject = self._subject_tokens.find(_read_form(form, _TOKEN_EXCHANGE, "subject_token"))
        if subject is None or not self._subject_tokens.is_live(subject):
            raise OAuthError("invalid_grant", "The subject token is not one of this emulator, or has expired.")
        if form.get("audience") not in subject.scopes:
            raise OAuthError("invalid_grant", "The audience is not the provider that issued the subject token.")
        scopes = frozenset(form.get("scope", "").split())
        if not scopes:
            raise OAuthError("invalid_scope", "The scope parameter is missing.")
        return {**self._issue(subject.account, scopes), "issued_token_type": _ACCESS_TOKEN}

    def _issue(self, account: str, scopes: frozenset[str]) -> dict[str, object]:
        token = self.tokens.issue(account, scopes, self._lifetime)
        return {"access_token": token, "expires_in": self._lifetime, "token_type": "Bearer"}

    def _generate_access_token(self, request: "RecordedRequest") -> dict[str, object]:
        caller = self.check(request.headers.get("authorization"), "iamcredentials", frozenset((_IAM, CLOUD_PLATFORM)))
        wanted = read_json(request.body)
        if not isinstance(wanted, dict):
            raise ApiError("INVALID_ARGUMENT", "Invalid JSON payload received.")
        target = (request.name or "").rpartition("/")[2]
        chain = [caller.account, *map(_read_delegate, _read_texts(wanted, "delegates")), target]
        scopes = frozenset(_read_texts(wanted, "scope"))
        if not scopes:
            raise invalid_argument("scope", "at least one is required")
        if not self.accounts.may_act_as(chain):
            permission = "iam.serviceAccounts.getAccessToken"
            raise ApiError(
                "PERMISSION_DENIED",
                f"Permission '{permission}' denied on resource (or it may not exist).",
                [_error_info("IAM_PERMISSION_DENIED", "iam.googleapis.com", {"permission": permission})],
            )
        lifetime = min(_read_lifetime(wanted), self._lifetime)
        token = self.tokens.issue(target, scopes, lifetime)
        # Whole seconds, rounded down: the client must not use the token for longer than it lives.
        expires = datetime.fromtimestamp(int(self._clock() + lifetime), UTC)
        return {"accessToken": token, "expireTime": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def _find(self, authorization: str | None) -> Token | None:
        scheme, _, value = (authorization or "").partition(" ")
        return self.tokens.find(value.strip()) if scheme.lower() == "bearer" else None


def read_assertion(
    assertion: str, accounts: Accounts, audiences: tuple[str, ...], now: float
) -> tuple[str, frozenset[str]]:
    """Check the signed JWT with which a service account asks for a token (RFC 7523), as Google's endpoint does.

    PyJWT checks everything but the times: it has no clock to inject.

    :param audiences: the URLs by which the token endpoint is known, the right one first.
    :param now: epoch seconds.
    :return: the account, and the scopes of the token.
    :raises OAuthError: ``invalid_grant``, ``invalid_scope`` or ``unauthorized_client``.
    """
    import jwt  # loads cryptography, which an emulator without authentication does not need

    no_jwt = _invalid_grant("Bad Request: the assertion is no JWT of three parts.")
    if not _JWT.fullmatch(assertion):
        raise no_jwt
    try:
        unverified = jwt.decode_complete(assertion, options={"verify_signature": False})
    except (jwt.DecodeError, RecursionError):
        raise no_jwt from None
    account = accounts.find(unverified["payload"].get("iss"))
    if account is None:
        raise _invalid_grant("Invalid grant: account not found")
    try:
        claims = jwt.decode(
            assertion,
            account.public_key,
            # Never the header's choice: "none", and HS256 with the public key for a secret, are attacks.
            algorithms=["RS256"],
            audience=audiences,
            options={"verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_sub": False},
        )
    except jwt.InvalidAlgorithmError:
        raise _invalid_grant("Invalid JWT: only the algorithm RS256 is supported.") from None
    except (jwt.InvalidAudienceError, jwt.MissingRequiredClaimError):
        words = f"Invalid JWT: Failed audience check. The right audience is {audiences[0]}"
        raise _invalid_grant(words) from None
    except jwt.InvalidTokenError:
        raise _invalid_grant("Invalid JWT Signature.") from None
    if unverified["header"].get("kid") not in (None, account.key_id):
        raise _invalid_grant("Invalid JWT Signature.")
    issued, expires, scope = claims.get("iat"), claims.get("exp"), claims.get("scope")
    if not (
        (_is_number(issued) and _is_number(expires))
        and (issued - _CLOCK_SKEW <= now < expires and 0 < expires - issued <= _LONGEST_LIFETIME)
    ):
        raise _invalid_grant(_INVALID_TIMES)
    if claims.get("sub") not in (None, account.email):
        raise OAuthError(
            "unauthorized_client",
            "Client is unauthorized to retrieve access tokens using this method, "
            "or client not authorized for any of the scopes requested.",
        )
    scopes = frozenset(scope.split()) if isinstance(scope, str) else frozenset()
    if not scopes:
        raise OAuthError("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
    return account.email, scopes


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _invalid_grant(description: str) -> OAuthError:
    return OAuthError("invalid_grant", description)


def _read_form(form: Mapping[str, str], grant_type: str, field: str) -> str:
    if (given := form.get("grant_type", "")) != grant_type:
        raise OAuthError("unsupported_grant_type", f"Invalid grant_type: {given}")
    if not form.get(field):
        raise OAuthError("invalid_request", f"Missing required parameter: {field}")
    return form[field]


def _read_texts(wanted: Mapping[str, object], field: str) -> list[str]:
    value = wanted.get(field)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise invalid_argument(field, "must be a list of strings")
    return texts


def _read_delegate(delegate: str) -> str:
    # The API's reference wants the resource name; google-auth sends the bare address of Airflow's chain.
    email = delegate.removeprefix("projects/-/serviceAccounts/")
    try:
        check_email(email)
    except ValueError as error:
        raise invalid_argument("delegates", str(error)) from error
    return email


def _read_lifetime(wanted: Mapping[str, object]) -> int:
    text = wanted.get("lifetime", f"{_LONGEST_LIFETIME}s")
    seconds = text[:-1] if isinstance(text, str) and text.endswith("s") else ""
    if not (seconds.isascii() and seconds.isdecimal() and 0 < int(seconds) <= _LONGEST_LIFETIME):
        raise invalid_argument("lifetime", "must be from 1s to 3600s")
    return int(seconds)


def _refusal(rpc_status: str, message: str, reason: str, service: str, challenge: str) -> ApiError:
    info = _error_info(reason, "googleapis.com", {"service": f"{service}.googleapis.com"})
    return ApiError(rpc_status, message, [info], {"WWW-Authenticate": challenge})


def _error_info(reason: str, domain: str, metadata: dict[str, str]) -> dict[str, object]:
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    return {"@type": kind, "reason": reason, "domain": domain, "metadata": metadata}
