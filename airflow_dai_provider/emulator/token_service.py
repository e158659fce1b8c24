"""Where tokens come from: Google's token endpoint, its IAM credentials API and its security token service."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from airflow_dai_provider.emulator.accounts import check_email
from airflow_dai_provider.emulator.answers import Answer, error_answer, json_answer
from airflow_dai_provider.emulator.assertion import OAuthError, read_assertion
from airflow_dai_provider.emulator.auth import CLOUD_PLATFORM, IAM, Authentication, error_info
from airflow_dai_provider.emulator.errors import ApiError
from airflow_dai_provider.emulator.records import RecordedRequest

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 (the name of a grant)
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 (the name of a type)

_GOOGLES_TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105 (an address)
_LONGEST_IMPERSONATION = 3600
_NO_STORE = {"Cache-Control": "no-store"}


class TokenService:
    """The methods that issue tokens; ``routes.TOKEN_METHODS`` names them.

    :param authentication: the accounts and tokens behind them.
    """

    def __init__(self, authentication: Authentication) -> None:
        """Keep what is behind them."""
        self._auth = authentication

    def answer(self, request: RecordedRequest) -> Answer:
        """Answer a request for a token.

        :param request: a request whose method is one of ``routes.TOKEN_METHODS``.
        """
        if request.method == "generateAccessToken":
            try:
                return json_answer(self._generate_access_token(request))
            except ApiError as error:
                return error_answer(error.rpc_status, error.message, details=error.details, headers=error.headers)
        try:
            form = dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
            grant = self._grant if request.method == "token" else self._exchange
            return json_answer(grant(form), headers=_NO_STORE)
        except OAuthError as error:
            refusal = {"error": error.error, "error_description": error.description}
            return json_answer(refusal, 400, _NO_STORE)

    def _grant(self, form: Mapping[str, str]) -> dict[str, object]:
        _require_grant_type(form, JWT_BEARER)
        assertion = _require(form, "assertion")
        auth = self._auth
        # Whatever the key file says, google-auth signs for Google's own address.
        audiences = (auth.token_uri, _GOOGLES_TOKEN_URI)
        grant = read_assertion(assertion, auth.accounts.find, audiences, auth.clock())
        return self._issue(grant.account, grant.scopes)

    def _exchange(self, form: Mapping[str, str]) -> dict[str, object]:
        _require_grant_type(form, TOKEN_EXCHANGE)
        subject = self._auth.subject_tokens.find(_require(form, "subject_token"))
        if subject is None or not self._auth.subject_tokens.is_live(subject):
            raise OAuthError("invalid_grant", "The subject token is not one of this emulator, or is stale.")
        if form.get("audience") not in subject.scopes:
            raise OAuthError("invalid_grant", "The audience is not the provider that issued the subject token.")
        scopes = frozenset(form.get("scope", "").split())
        if not scopes:
            raise OAuthError("invalid_scope", "The scope parameter is missing.")
        return {**self._issue(subject.account, scopes), "issued_token_type": ACCESS_TOKEN}

    def _issue(self, account: str, scopes: frozenset[str]) -> dict[str, object]:
        lifetime = self._auth.lifetime
        token = self._auth.tokens.issue(account, scopes, lifetime)
        return {"access_token": token, "expires_in": lifetime, "token_type": "Bearer"}

    def _generate_access_token(self, request: RecordedRequest) -> dict[str, object]:
        scopes = frozenset((IAM, CLOUD_PLATFORM))
        caller = self._auth.check(request.headers.get("authorization"), "iamcredentials", scopes).account
        wanted = _read_json(request.body)
        target = (request.name or "").rpartition("/")[2]
        chain = [caller, *map(_email, _texts(wanted, "delegates")), target]
        scope = frozenset(_texts(wanted, "scope"))
        if not scope:
            raise ApiError("INVALID_ARGUMENT", "Invalid value of 'scope': at least one is required.")
        if not self._auth.accounts.may_act_as(chain):
            permission = {"permission": "iam.serviceAccounts.getAccessToken"}
            raise ApiError(
                "PERMISSION_DENIED",
                "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).",
                [error_info("IAM_PERMISSION_DENIED", "iam.googleapis.com", permission)],
            )
        lifetime = min(_read_lifetime(wanted), self._auth.lifetime)
        token = self._auth.tokens.issue(target, scope, lifetime)
        # Whole seconds, rounded down: the client shall not believe in the token for longer than it lives.
        expires = datetime.fromtimestamp(int(self._auth.clock() + lifetime), UTC)
        return {"accessToken": token, "expireTime": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}


def _require_grant_type(form: Mapping[str, str], expected: str) -> None:
    given = form.get("grant_type", "")
    if given != expected:
        raise OAuthError("unsupported_grant_type", f"Invalid grant_type: {given}")


def _require(form: Mapping[str, str], field: str) -> str:
    if not form.get(field):
        raise OAuthError("invalid_request", f"Missing required parameter: {field}")
    return form[field]


def _read_json(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ApiError("INVALID_ARGUMENT", "Invalid JSON payload received.")
    return value


def _texts(wanted: Mapping[str, object], field: str) -> list[str]:
    value = wanted.get(field)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise ApiError("INVALID_ARGUMENT", f"Invalid value of '{field}': must be a list of strings.")
    return texts


def _email(delegate: str) -> str:
    # The API's reference wants the resource name; google-auth sends the bare address of Airflow's chain.
    email = delegate.removeprefix("projects/-/serviceAccounts/")
    try:
        check_email(email)
    except ValueError as error:
        raise ApiError("INVALID_ARGUMENT", f"Invalid value of 'delegates': {error}.") from error
    return email


def _read_lifetime(wanted: Mapping[str, object]) -> int:
    text = wanted.get("lifetime", f"{_LONGEST_IMPERSONATION}s")
    seconds = text[:-1] if isinstance(text, str) and text.endswith("s") else ""
    if not (seconds.isascii() and seconds.isdecimal() and 0 < int(seconds) <= _LONGEST_IMPERSONATION):
        raise ApiError("INVALID_ARGUMENT", "Invalid value of 'lifetime': must be from 1s to 3600s.")
    return int(seconds)
