"""The connection of a hook: its endpoint, its credentials, and one authorised session."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook
from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
from google.auth._cloud_sdk import get_application_default_credentials_path
from google.auth.credentials import Credentials
from google.auth.environment_vars import CREDENTIALS
from google.auth.transport.requests import AuthorizedSession

from airflow_dai_provider.api.endpoint import EXTRA_KEY, Endpoint, emulator_endpoint, service_endpoint
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.parameters import MAX_REQUEST_SECONDS, Duration, check_connection, check_seconds
from airflow_dai_provider.api.redaction import redact_urls
from airflow_dai_provider.api.retry import ServiceState
from airflow_dai_provider.transport.google_errors import class_of, typed
from airflow_dai_provider.transport.requests_session import RequestsTransport
from airflow_dai_provider.transport.shared_token import Token
from airflow_dai_provider.transport.unsent import credentials_error, public_cause, unusable

#: The fields of a connection that give credentials, of which one is used; without one, the environment gives them.
_SOURCES = ("key_path", "keyfile_dict", "credential_config_file", "key_secret_name")
_DEFAULT_SOURCE = "application default credentials"
#: The fields by which a connection of another type can be used nevertheless.
_FIELDS = (*_SOURCES, "is_anonymous", "impersonation_chain", "project", "num_retries", EXTRA_KEY)
_PREFIX = "extra__google_cloud_platform__"


class UndefinedConnectionError(class_of(Code.UNAVAILABLE), AirflowNotFoundException):  # type: ignore[misc]
    """The connection is not defined, or a secrets backend or the API server that knows it did not respond.

    Airflow tells the two apart only in its log. So a wait asks again, as long as for a service that is unavailable.
    """


def _is_whole(value: object) -> bool:
    """Return whether the Google provider can read a value as a whole number."""
    try:
        return value in (None, "") or isinstance(int(value), int)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return False


def _default_file() -> str | None:
    """Return the file of application default credentials: the variable's, or else the one of gcloud if it exists."""
    if variable := os.environ.get(CREDENTIALS):
        return variable
    path = get_application_default_credentials_path()
    return path if Path(path).is_file() else None


class DaiBaseHook(GoogleBaseHook):
    """Find the endpoint and the credentials of a Google Cloud connection, and keep one session with them.

    The connection is looked up when it is needed first, so that a failure to do so is retried like a request.

    The parameters are those of :class:`airflow_dai_provider.hooks.dai.DaiHook`.
    """

    def __init__(
        self,
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
        timeout: Duration = 10.0,
        *,
        retry_timeout: Duration = 60.0,
        quota_project_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_connection(gcp_conn_id, impersonation_chain, api_endpoint)
        # Not GoogleBaseHook.__init__, which looks up the connection.
        BaseHook.__init__(self, **kwargs)
        self.api_endpoint = api_endpoint
        self.timeout = check_seconds("timeout", timeout, most=MAX_REQUEST_SECONDS)
        self.retry_timeout = check_seconds("retry_timeout", retry_timeout, zero=True)
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        if quota_project_id is not None:
            self._validate_quota_project(quota_project_id)
        self.quota_project_id = quota_project_id
        self._given_chain = impersonation_chain
        self._cached_credentials: Credentials | None = None
        self._cached_project_id: str | None = None
        self._content: str | None = None
        self._emulator = emulator_endpoint(api_endpoint, os.environ)
        self._extras: dict[str, Any] | None = None
        self._token: Token | None = None
        self._transport: RequestsTransport | None = None
        #: What this hook and its siblings know of the service.
        self.service = ServiceState()
        if self._emulator:
            self.impersonation_chain = self.quota_project_id = None
            self._extras = {"is_anonymous": True}

    @property
    def account(self) -> str:
        """What stands for the account that sends the requests: the connection id and the given impersonation chain."""
        chain = () if self._emulator else self._given_chain or ()
        return ",".join([self.gcp_conn_id, *([chain] if isinstance(chain, str) else chain)])

    @property
    def looked_up(self) -> bool:
        """Whether the connection has been looked up."""
        return self._extras is not None

    @property
    def extras(self) -> dict[str, Any]:
        """The extra of the connection, which is looked up the first time.

        :raises ServiceError: UNAVAILABLE when it could not be looked up, FAILED_PRECONDITION when it cannot be used.
        """
        if self._extras is None:
            self._extras = self._look_up()
        return self._extras

    @extras.setter
    def extras(self, extras: dict[str, Any]) -> None:
        self._extras = extras

    def _look_up(self) -> dict[str, Any]:
        """Look up the connection; return its extra."""
        what = f"The connection {self.gcp_conn_id!r}"
        try:
            connection = self.get_connection(self.gcp_conn_id)
            kind, extras = connection.conn_type, connection.extra_dejson
        except AirflowNotFoundException as error:
            raise UndefinedConnectionError(f"{what} could not be looked up: {error}", None, None, False) from error
        except Exception as error:
            reason, cause = redact_urls(str(error) or type(error).__name__), public_cause(error)
        else:
            return self._checked(kind, extras)
        # Raised here, so that no error with a secret is the context of this one.
        raise typed(ServiceError(f"{what} could not be looked up: {reason}", Code.UNAVAILABLE, sent=False)) from cause

    def _checked(self, kind: str | None, extras: object) -> dict[str, Any]:
        """Return the extra of a connection of this type, if it can be used."""
        if not isinstance(extras, Mapping):
            raise self._unusable(f"expected its extra to be a JSON object, got {type(extras).__name__}")
        known = {name.removeprefix(_PREFIX) for name in extras}
        if kind and "google" not in kind and not kind.startswith("gcp") and not known.intersection(_FIELDS):
            raise self._unusable(f"expected the type 'google_cloud_platform', got {kind!r}")
        if not _is_whole(retries := extras.get("num_retries", extras.get(f"{_PREFIX}num_retries"))):
            raise self._unusable(f"expected its num_retries to be a whole number, got {retries!r}")
        return dict(extras)

    def _unusable(self, reason: str) -> ServiceError:
        return unusable(f"The connection {self.gcp_conn_id!r} gives no usable credentials: {reason}.")

    @cached_property
    def endpoint(self) -> Endpoint:
        """The endpoint in use.

        :raises ValueError: when the configured value is not an endpoint.
        """
        if self._emulator:
            return self._emulator
        universe = os.environ.get("GOOGLE_CLOUD_UNIVERSE_DOMAIN") or "googleapis.com"
        # The argument needs no connection.
        endpoint = service_endpoint(self.api_endpoint, {} if self.api_endpoint else self.extras, universe)
        return replace(endpoint, connection=self.gcp_conn_id)

    @property
    def fixed_endpoint(self) -> str | None:
        """The ``api_endpoint`` for a hook in another process, to use the same endpoint; None to look it up there."""
        return self.api_endpoint if self._emulator or not self.looked_up else self.endpoint.url

    @cached_property
    def sharing_key(self) -> Hashable:
        """Equal for two hooks that can share a session and a token: endpoint, connection and account."""
        identity = [self.extras, self.impersonation_chain, self.quota_project_id]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        return self.endpoint, digest, self.timeout

    @property
    def given(self) -> Hashable:
        """Equal for two hooks whose arguments choose the same connection, account and service."""
        chain = self._given_chain if isinstance(self._given_chain, str | None) else tuple(self._given_chain)
        return type(self), self.gcp_conn_id, chain, self.quota_project_id, self.api_endpoint, self.timeout

    def adopt(self, other: Self) -> None:
        """Use the connection that another hook with the same arguments has looked up."""
        self._extras, self.sharing_key = other.extras, other.sharing_key

    def get_conn(self) -> AuthorizedSession:
        """Return the authorised ``requests`` session, which is made once and kept for the hook's life.

        :raises ValueError: when a token would leave this machine over plain HTTP.
        :raises google.api_core.exceptions.Unauthenticated: when the connection gives no credentials.
        :raises google.api_core.exceptions.ServiceUnavailable: when the connection could not be looked up.
        """
        return self._get_transport().session

    def sibling(self, token: Token | None = None) -> Self:
        """Return a hook with the same connection, looked up already, and a session of its own: one for another thread.

        Both share what either learns about the service.

        :param token: the token to share, with its credentials; by default that of this hook.
        """
        sibling = copy(self)
        sibling._token = token or self.shared_token()
        sibling._transport = None
        return sibling

    def shared_token(self) -> Token:
        """Return the token that this hook shares with its siblings, which is fetched when a request needs it.

        :raises ServiceError: as :meth:`load_credentials`.
        """
        if self._token is None:
            self._token = Token(self.load_credentials(), self.timeout, self.reload_credentials)
        return self._token

    def load_credentials(self) -> Credentials:
        """Return the credentials of the connection.

        :raises ServiceError: Unauthenticated when the connection gives none, UNAVAILABLE when it could not be looked
            up, or a service that makes them did not respond.
        """
        if self._cached_credentials is None:
            source, self._content = self._source()
            try:
                self._cached_credentials = self.get_credentials()
            except Exception as error:
                failure, cause = credentials_error(self.gcp_conn_id, source, error), public_cause(error)
            else:
                return self._cached_credentials
            # Raised here, so that no error with a secret is the context of this one.
            raise failure from cause
        return self._cached_credentials

    def reload_credentials(self) -> Credentials | None:
        """Look the connection up again, after its credentials were refused: its key may have been replaced.

        :return: the new credentials; None if they have not changed.
        :raises ServiceError: as :meth:`load_credentials`.
        """
        if self._emulator:
            return None
        fresh = copy(self)
        fresh._extras = fresh._cached_credentials = None
        fresh.impersonation_chain = self._given_chain
        _, content = fresh._source()
        if content is not None and content == self._content:
            return None
        credentials = fresh.load_credentials()
        self._extras, self._content, self._cached_credentials = fresh._extras, fresh._content, credentials
        self.log.info("The credentials of the connection %r were refused, and have been read again.", self.gcp_conn_id)
        return credentials

    def _source(self) -> tuple[str, str | None]:
        """Return the source of the credentials, and a digest of its content, or None if the content is not known."""
        extras = self.extras
        given = {name: self._get_field(name, None) for name in _SOURCES}
        source = next((name for name in _SOURCES if given[name]), _DEFAULT_SOURCE)
        path = given[source] if source in given else _default_file()
        content = json.dumps(extras, sort_keys=True, default=str).encode()
        if source in ("key_path", "credential_config_file", _DEFAULT_SOURCE) and isinstance(path, str):
            try:
                content += Path(path).read_bytes()
                source = f"{source} {path}"
            except (OSError, ValueError):
                # The same error, or none, is met where the credentials are made.
                source = f"{source} {path}" if source != "credential_config_file" else source
        return source, None if source == "key_secret_name" else hashlib.sha256(content).hexdigest()

    def close(self) -> None:
        """Close the session; the next call opens another."""
        if self._transport:
            self._transport.close()
            self._transport = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _get_transport(self) -> RequestsTransport:
        if self._transport is None:
            self._transport = RequestsTransport(self.endpoint, self.shared_token(), self.timeout)
        return self._transport
