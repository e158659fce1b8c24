"""What an emulator offers about service accounts and their tokens."""

import json
import os
import tempfile
from pathlib import Path

from airflow_dai_provider.emulator.accounts import DEFAULT_EMAIL
from airflow_dai_provider.emulator.auth import Authentication
from airflow_dai_provider.emulator.control import CONTROL_PREFIX
from airflow_dai_provider.emulator.errors import wrong_value
from airflow_dai_provider.emulator.local_server import LocalServer

# Without a project, whose number google-auth would ask Google's resource manager about.
_POOL = "//iam.googleapis.com/locations/global/workloadIdentityPools/emulator"
PROVIDER = f"{_POOL}/providers/emulator"
"""The workload identity provider that the emulator plays."""
WORKLOAD = f"principal:{_POOL}/subject/workload"
"""Who a workload is that has come through :data:`PROVIDER`."""
_SUBJECT_TOKEN_SECONDS = 600


class Identity(LocalServer):
    """The part of :class:`DaiEmulator` that is about accounts and tokens; it needs ``authentication=True``."""

    _authentication: Authentication | None

    def service_account_key(self, email: str = DEFAULT_EMAIL) -> dict[str, str]:
        """Return what the JSON key file of a service account holds; google-auth and Airflow accept it.

        The account exists from then on, and has the same key for the emulator's life. ``token_uri`` is the
        emulator's, so it must listen, or have been told its port.

        :param email: name of the account.
        :raises ValueError: if it is no e-mail address.
        :raises RuntimeError: without authentication, and before the emulator has a port.
        """
        auth = self._auth
        return auth.accounts.get(email).key_file(auth.token_uri)

    def write_key_file(self, path: str | os.PathLike[str], email: str = DEFAULT_EMAIL) -> None:
        """Write the key file of a service account, readable by its owner only.

        :param path: where to write it; what another emulator has written there is replaced.
        :param email: name of the account.
        :raises ValueError: if a file is there that is no emulator's key, or ``email`` is no e-mail address.
        :raises OSError: if it cannot be written.
        :raises RuntimeError: as :meth:`service_account_key`.
        """
        target = Path(path)
        if not _may_replace(target):
            raise wrong_value("key file", str(target), "a path where nothing is, or the key of an emulator")
        key = {**self.service_account_key(email), "emulator": self.endpoint}
        # Made for its owner only, and moved to its place when it is whole.
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(key, file, indent=2)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def allow_impersonation(self, *chain: str) -> None:
        """Let a service account act as another, as the role Service Account Token Creator does.

        :param chain: e-mail addresses: the caller, delegates if any, and the target.
        :raises ValueError: for a chain of less than two, or what is no e-mail address.
        :raises RuntimeError: without authentication.
        """
        self._auth.accounts.allow(chain)

    def external_account_config(self, impersonate: str | None = None) -> dict[str, object]:
        """Return a credential configuration of workload identity federation (``"type": "external_account"``).

        The workload gets its subject token from the control address, which must not be ``off``.

        :param impersonate: the service account to act as, which is allowed thereby; None for the workload itself.
        :raises ValueError: if it is no e-mail address.
        :raises RuntimeError: as :meth:`service_account_key`.
        """
        accounts = self._auth.accounts
        config: dict[str, object] = {
            "type": "external_account",
            "audience": PROVIDER,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"{self.endpoint}/v1/token",
            "credential_source": {
                "url": f"{self.endpoint}{CONTROL_PREFIX}/tokens/subject",
                "format": {"type": "json", "subject_token_field_name": "subject_token"},
            },
        }
        if impersonate is not None:
            accounts.allow((WORKLOAD, impersonate))
            path = f"/v1/projects/-/serviceAccounts/{impersonate}:generateAccessToken"
            config["service_account_impersonation_url"] = f"{self.endpoint}{path}"
        return config

    def issue_subject_token(self) -> str:
        """Return a token with which a workload shows who it is, good for ten minutes.

        :raises RuntimeError: without authentication.
        """
        return self._auth.subject_tokens.issue(WORKLOAD, frozenset((PROVIDER,)), _SUBJECT_TOKEN_SECONDS)

    def revoke_tokens(self) -> None:
        """Have every token issued so far refused with 401 from now on; new ones can be had.

        :raises RuntimeError: without authentication.
        """
        self._auth.tokens.revoke_all()

    @property
    def tokens_issued(self) -> int:
        """How many access tokens have been issued, by whichever endpoint; 0 without authentication."""
        return 0 if self._authentication is None else self._authentication.tokens.issued

    @property
    def _auth(self) -> Authentication:
        if self._authentication is None:
            raise RuntimeError("The emulator has no accounts: it was made without authentication=True")
        return self._authentication


def _may_replace(path: Path) -> bool:
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return isinstance(there, dict) and "emulator" in there
