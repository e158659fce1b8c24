"""The emulator as a whole: :class:`DaiEmulator`, everything that a user can do from code."""

import os
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from aiohttp import web

from airflow_dai_provider.emulator.accounts import DEFAULT_EMAIL, write_key_file
from airflow_dai_provider.emulator.api import Api, RecordedRequest, Recorder
from airflow_dai_provider.emulator.authentication import CLOUD_PLATFORM, Authentication
from airflow_dai_provider.emulator.control import CONTROL_PREFIX, Control
from airflow_dai_provider.emulator.errors import wrong_value
from airflow_dai_provider.emulator.faults import Fault, FaultQueue
from airflow_dai_provider.emulator.http_server import HttpServer, SelfSigned
from airflow_dai_provider.emulator.ingest import Plan, State
from airflow_dai_provider.emulator.routes import is_operation_name
from airflow_dai_provider.emulator.store import Store


class DaiEmulator(HttpServer):
    """A local DAI service, for use as a context manager or with :meth:`start` and :meth:`stop`.

    Its state and its record of requests stay readable when it is stopped; started again, it serves the same
    operations on the same port.

    :param ingest_seconds: how long an ingest takes, unless its media URL says otherwise.
    :param cancel_seconds: seconds from a cancel request until the ingest is cancelled, unless its media URL says
        otherwise.
    :param unimplemented: methods that return UNIMPLEMENTED, such as ``operations.list``.
    :param finished_cancel: response to a cancel request for a finished operation: ``ok``,
        ``failed_precondition`` or ``not_found``; DAI's own is undocumented.
    :param authentication: whether requests need a token; the emulator then has endpoints that issue tokens.
    :param token_lifetime: seconds for which a token is valid; google-auth renews one 225 s before it expires, and so
        one with a shorter life at every request.
    :param scopes: scopes of which a token needs one; the scope that DAI needs is undocumented.
    :param private_key: RSA key (PEM) of the first service account that is asked for, None for a fresh one.
    :param tls: True for TLS with a new self-signed certificate (:attr:`certificate`), a :class:`SelfSigned`
        certificate of your own, or the server's ``ssl.SSLContext``.
    :param seed: the seed for the choice of the requests that a fault with a ``rate`` hits, None for a random one.
    :param control: which clients may use the control address: those on this machine (``loopback``), ``any`` that
        reaches the port, or none (``off``).
    :param clock: epoch seconds; tests inject their own. google-auth signs with the real time, which the clock
        must be near for a token to be issued.
    :param host: address to listen on; without authentication, any address but a loopback address lets others in.
    :param port: port to listen on, 0 for a free one.
    :param max_recorded_requests: how many requests to keep in :attr:`requests`, dropping the oldest first;
        None keeps all.
    :raises ValueError: for an invalid value.
    """

    def __init__(
        self,
        *,
        ingest_seconds: float = 5.0,
        cancel_seconds: float = 0.0,
        unimplemented: Iterable[str] = (),
        finished_cancel: str = "ok",
        authentication: bool = False,
        token_lifetime: int = 3600,
        scopes: Iterable[str] = (CLOUD_PLATFORM,),
        private_key: str | None = None,
        tls: bool | SelfSigned | ssl.SSLContext = False,
        seed: int | None = None,
        control: str = "loopback",
        clock: Callable[[], float] = time.time,
        host: str = "127.0.0.1",
        port: int = 0,
        max_recorded_requests: int | None = None,
    ) -> None:
        self._certificate = SelfSigned() if tls is True else tls if isinstance(tls, SelfSigned) else None
        given = tls if isinstance(tls, ssl.SSLContext) else None
        super().__init__(self._handle, host, port, given if self._certificate is None else self._certificate.context())
        auth = Authentication(clock, lambda: self.endpoint, token_lifetime, scopes, private_key)
        self._authentication = auth if authentication else None
        self._recorder = Recorder(max_recorded_requests)
        self._store = Store(clock, Plan(ingest_seconds, cancel_seconds=cancel_seconds), finished_cancel)
        self._fault_queue = FaultQueue(seed)
        self._api = Api(self._store, clock, unimplemented, self._recorder, self._fault_queue, self._authentication)
        self._control = Control(self, control)

    @property
    def authentication(self) -> bool:
        """True if requests need a token."""
        return self._authentication is not None

    @property
    def certificate(self) -> str | None:
        """The certificate (PEM) that a client must trust to accept the emulator; None unless the emulator made it."""
        return None if self._certificate is None else self._certificate.pem

    @property
    def control_endpoint(self) -> str:
        """Base URL of the control address."""
        return f"{self.endpoint}{CONTROL_PREFIX}"

    # Ingests

    def start_ingest(
        self,
        name: str | None = None,
        *,
        seconds: float | None = None,
        outcome: str | None = None,
        code: int | None = None,
        cancel: str | None = None,
        cancel_seconds: float | None = None,
        creative_url: str = "https://media.example/ad.mp4",
    ) -> str:
        """Start an ingest, as ``creatives.create`` does.

        Values not given follow the query of ``creative_url``, then the emulator's own options.

        :param name: name of its operation, None for a new one.
        :param seconds: how long it takes; ``math.inf`` for one that never finishes by itself.
        :param outcome: ``success``, ``DOWNLOAD_ERROR``, ``INVALID_MEDIA`` or ``INTERNAL_ERROR``.
        :param code: HTTP status of the failed download, with ``DOWNLOAD_ERROR`` only.
        :param cancel: ``honoured``, or ``ignored`` to complete in spite of a cancel request.
        :param cancel_seconds: from the cancel request until the ingest is cancelled, unless it finishes before.
        :param creative_url: the media URL.
        :return: the name of its operation.
        :raises ValueError: for a name that is taken or cannot be in a path, and an invalid value.
        """
        if name is not None and not is_operation_name(name):
            raise wrong_value("name", name, "operations/ and one or more segments, none of them empty, . or ..")
        plan = self._store.defaults.with_url(
            creative_url, seconds=seconds, outcome=outcome, code=code, cancel=cancel, cancel_seconds=cancel_seconds
        )
        media = {"uri": creative_url, "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
        creative: dict[str, object] = {"adSystem": "emulator", "mezzanines": [media]}
        return str(self._store.start(name, creative, creative_url, plan)["name"])

    def state(self, name: str) -> State:
        """Return the state of an ingest, also when its operation has been deleted.

        :param name: name of its operation.
        :return: a string: ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``CANCELLED``.
        :raises UnknownOperationError: a KeyError, if there was never such an ingest.
        """
        return self._store.state(name)

    def states(self) -> dict[str, State]:
        """Return the state of every ingest ever started, by the name of its operation."""
        return self._store.states()

    def creatives(self) -> list[str]:
        """Return the names of the creatives that exist: of ingests that have succeeded, and not deleted since."""
        return self._store.creatives()

    def cancel_requested(self, name: str) -> int:
        """Return how many cancel requests have reached the service for an operation.

        Those that a fault has intercepted, and those refused for a body or as UNIMPLEMENTED, are not counted.

        :param name: name of the operation.
        :raises UnknownOperationError: a KeyError, if there was never such an operation.
        """
        return self._store.cancel_requests(name)

    # Requests

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests that arrived, in their order."""
        return self._recorder.requests()

    @property
    def connections(self) -> int:
        """The number of TCP connections on which the recorded requests came."""
        return len({request.connection for request in self._recorder.requests()})

    def forget_requests(self) -> None:
        """Clear the record of requests and connections; operations stay."""
        self._recorder.clear()

    # Misbehaviour

    def unimplement(self, *methods: str) -> None:
        """Make methods return UNIMPLEMENTED.

        :param methods: names such as ``operations.cancel``.
        :raises ValueError: for a method that the API does not have.
        """
        self._api.set_implemented(methods, implemented=False)

    def implement(self, *methods: str) -> None:
        """Make methods work again.

        :param methods: names such as ``operations.cancel``.
        :raises ValueError: for a method that the API does not have.
        """
        self._api.set_implemented(methods, implemented=True)

    def inject(self, fault: Fault) -> None:
        """Inject a fault; faults are used in the order in which they were injected.

        :param fault: what goes wrong, with which requests, and how often.
        """
        self._fault_queue.add(fault)

    def clear_faults(self) -> None:
        """Drop the faults to come; the counts stay."""
        self._fault_queue.clear()

    @property
    def faults_injected(self) -> dict[str, int]:
        """How many requests have been hit, by :attr:`Fault.kind`, such as ``{"503": 2, "reset-after": 1}``."""
        return self._fault_queue.injected

    @property
    def faults_waiting(self) -> list[tuple[Fault, int | None]]:
        """The faults to come, and how many requests each has left; None for every one."""
        return self._fault_queue.waiting

    @property
    def seed(self) -> int:
        """The seed for the choice of the requests that a fault with a rate hits."""
        return self._fault_queue.seed

    def reset(self) -> None:
        """Start over: no operations, requests and faults, and the methods as at first; accounts and tokens stay."""
        self._store.reset()
        self._fault_queue.reset()
        self._api.reset()
        self._recorder.clear()

    # Accounts and tokens; all but tokens_issued raise RuntimeError without authentication.

    def service_account_key(self, email: str = DEFAULT_EMAIL) -> dict[str, str]:
        """Return the content of a service account's JSON key file; google-auth and Airflow accept it.

        The account exists from then on, and has the same key until :meth:`replace_key`. ``token_uri`` is the
        emulator's, so it must listen, or have been told its port.

        :param email: name of the account.
        :raises ValueError: if it is no e-mail address.
        :raises RuntimeError: without authentication, and before the emulator has a port.
        """
        return self._auth.accounts.get(email).key_file(self._auth.token_uri)

    def write_key_file(self, path: str | os.PathLike[str], email: str = DEFAULT_EMAIL) -> None:
        """Write the key file of a service account, readable by its owner only.

        :param path: the file; one that another emulator has written is replaced.
        :param email: name of the account.
        :raises ValueError: if another file is there, or ``email`` is no e-mail address.
        :raises OSError: if it cannot be written.
        :raises RuntimeError: as :meth:`service_account_key`.
        """
        write_key_file(Path(path), {**self.service_account_key(email), "emulator": self.endpoint})

    def replace_key(self, email: str = DEFAULT_EMAIL) -> dict[str, str]:
        """Give a service account another key, and refuse assertions that the old one has signed from now on.

        Tokens that it has got stay valid: see :meth:`revoke_tokens`.

        :param email: name of the account.
        :return: the content of the new key's JSON file, as :meth:`service_account_key` and :meth:`write_key_file` give
            it from now on.
        :raises ValueError: if it is no e-mail address.
        :raises RuntimeError: as :meth:`service_account_key`.
        """
        return self._auth.accounts.replace_key(email).key_file(self._auth.token_uri)

    @property
    def metadata_environment(self) -> dict[str, str]:
        """The environment variables that make google-auth use the emulator as the metadata server of its machine.

        A process must have them before it imports google-auth. The server issues tokens of the account
        ``robot@emulator.iam.gserviceaccount.com``; faults with the method ``metadata`` hit it.

        :raises RuntimeError: without authentication, and before the emulator has a port.
        """
        _ = self._auth
        return {"GCE_METADATA_HOST": self.host, "GCE_METADATA_IP": self.host, "NO_GCE_CHECK": "false"}

    def allow_impersonation(self, *chain: str) -> None:
        """Let a service account act as another, as the role Service Account Token Creator does.

        :param chain: e-mail addresses: the caller, delegates if any, and the target.
        :raises ValueError: for a chain of less than two, or an invalid e-mail address.
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
        return self._auth.external_account_config(f"{self.control_endpoint}/tokens/subject", impersonate)

    def issue_subject_token(self) -> str:
        """Return a token that proves a workload's identity, valid for ten minutes.

        :raises RuntimeError: without authentication.
        """
        return self._auth.issue_subject_token()

    def revoke_tokens(self) -> None:
        """Refuse every token issued so far with 401 from now on; new ones can be had.

        :raises RuntimeError: without authentication.
        """
        self._auth.tokens.revoke_all()

    @property
    def tokens_issued(self) -> int:
        """How many access tokens have been issued, by all endpoints; 0 without authentication."""
        return 0 if self._authentication is None else self._authentication.tokens.issued

    @property
    def _auth(self) -> Authentication:
        if self._authentication is None:
            raise RuntimeError("The emulator has no accounts: it was made without authentication=True")
        return self._authentication

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await request.content.read()
        except ConnectionError:
            return web.Response(status=400)  # the client has disconnected in the middle of its request
        responsible = self._control if self._control.handles(request) else self._api
        return await responsible.handle(request, body)
