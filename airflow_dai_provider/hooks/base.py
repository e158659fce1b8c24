"""The connection of a hook: its endpoint, its credentials, and one authorised session."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Sequence
from copy import copy
from functools import cached_property
from typing import Any, Self

from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession

from airflow_dai_provider.api.endpoint import Endpoint, emulator_endpoint, service_endpoint
from airflow_dai_provider.api.parameters import MAX_REQUEST_SECONDS, check_connection, check_seconds
from airflow_dai_provider.transport.credentials import credentials_error
from airflow_dai_provider.transport.requests_session import RequestsTransport


class DaiBaseHook(GoogleBaseHook):
    """Find the endpoint and the credentials of a Google Cloud connection, and keep one session with them.

    The parameters are those of :class:`airflow_dai_provider.hooks.dai.DaiHook`.
    """

    def __init__(
        self,
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        api_endpoint: str | None = None,
        timeout: float = 10.0,
        *,
        retry_timeout: float = 60.0,
        **kwargs: Any,
    ) -> None:
        check_connection(gcp_conn_id, impersonation_chain, api_endpoint)
        self.api_endpoint = api_endpoint
        self.timeout = check_seconds("timeout", timeout, most=MAX_REQUEST_SECONDS)
        self.retry_timeout = check_seconds("retry_timeout", retry_timeout, zero=True)
        self._emulator = emulator_endpoint(api_endpoint, os.environ)
        self._transport: RequestsTransport | None = None
        if self._emulator is None:
            super().__init__(gcp_conn_id=gcp_conn_id, impersonation_chain=impersonation_chain, **kwargs)
        else:
            self._init_for_emulator(gcp_conn_id)

    def _init_for_emulator(self, gcp_conn_id: str) -> None:
        """Stand in for ``GoogleBaseHook.__init__``, which fails where the connection does not exist."""
        BaseHook.__init__(self)
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = None
        self.quota_project_id = None
        self.extras = {"is_anonymous": True}
        self._cached_credentials = None
        self._cached_project_id = None

    @cached_property
    def endpoint(self) -> Endpoint:
        """The endpoint in use.

        :raises ValueError: when the configured value is no endpoint.
        """
        if self._emulator:
            return self._emulator
        universe = os.environ.get("GOOGLE_CLOUD_UNIVERSE_DOMAIN") or "googleapis.com"
        return service_endpoint(self.api_endpoint, self.extras, universe)

    @cached_property
    def sharing_key(self) -> Hashable:
        """Equal for two hooks that can share a session and a token: endpoint, connection and account."""
        identity = [self.extras, self.impersonation_chain, self.quota_project_id]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        return self.endpoint, digest, self.timeout

    def get_conn(self) -> AuthorizedSession:
        """Return the authorised ``requests`` session, which is made once and kept for the hook's life.

        :raises ValueError: when a token would leave this machine over plain HTTP.
        :raises google.api_core.exceptions.Unauthenticated: when the connection gives no credentials.
        """
        return self._get_transport().session

    def sibling(self, credentials: Credentials | None = None) -> Self:
        """Return a hook with the same connection, looked up already, and a session of its own: one for another thread.

        :param credentials: what it shares, and with them the token; by default the credentials of this hook.
        """
        sibling = copy(self)
        sibling._cached_credentials = credentials or self.load_credentials()
        sibling._transport = None
        return sibling

    def load_credentials(self) -> Credentials:
        """Return the credentials of the connection.

        :raises ServiceError: UNAUTHENTICATED when the connection gives none, UNAVAILABLE when a service that makes them
            did not respond.
        """
        try:
            return self.get_credentials()
        except (GoogleAuthError, OSError) as error:
            raise credentials_error(error) from error

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
            self._transport = RequestsTransport(self.endpoint, self.load_credentials(), self.timeout)
        return self._transport
