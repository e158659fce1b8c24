"""The emulator as a whole: the service behind an HTTP server in a thread of its own."""

import ssl
import time
from collections.abc import Callable, Iterable

from aiohttp import web

from airflow_dai_provider.emulator.api import Api
from airflow_dai_provider.emulator.auth import CLOUD_PLATFORM, Authentication
from airflow_dai_provider.emulator.control import CONTROL_PREFIX, Control
from airflow_dai_provider.emulator.errors import wrong_value
from airflow_dai_provider.emulator.fault_queue import FaultQueue
from airflow_dai_provider.emulator.faults import Fault
from airflow_dai_provider.emulator.identity import Identity
from airflow_dai_provider.emulator.ingest import State
from airflow_dai_provider.emulator.plan import Plan, plan_from_url
from airflow_dai_provider.emulator.records import RecordedRequest, Recorder
from airflow_dai_provider.emulator.routes import is_operation_name
from airflow_dai_provider.emulator.service import Service
from airflow_dai_provider.emulator.tls import SelfSigned


class DaiEmulator(Identity):
    """A local DAI service, for use as a context manager or with :meth:`start` and :meth:`stop`.

    Its state and its record of requests stay readable when it is stopped; started again, it serves the same
    operations on the same port.

    :param ingest_seconds: how long an ingest takes that says nothing else.
    :param cancel_seconds: seconds from a cancel request to the end of such an ingest.
    :param unimplemented: methods that answer UNIMPLEMENTED, such as ``operations.list``.
    :param finished_cancel: answer to a cancel request for a finished operation: ``ok``,
        ``failed_precondition`` or ``not_found``; what DAI does is undocumented.
    :param authentication: whether requests need a token, and there are endpoints that issue them.
    :param token_lifetime: seconds for which a token is good; google-auth renews one 225 s before its end, and so
        one with a shorter life at every request.
    :param scopes: scopes of which a token needs one; which DAI wants is undocumented.
    :param private_key: RSA key (PEM) of the first service account that is asked for, None for a fresh one.
    :param tls: True to speak TLS with a certificate that does not verify (:attr:`certificate`), a certificate of
        your own making, or all that TLS needs.
    :param seed: what decides which requests a fault with a ``rate`` hits, None for a choice of its own.
    :param control: who may use the control address, and get in by it: clients on this machine (``loopback``),
        ``any`` that reaches the port, or nobody (``off``).
    :param clock: epoch seconds; tests inject their own. google-auth signs with the real time, which the clock
        must be near for a token to be had.
    :param host: address to listen on; without authentication, anything but a loopback address lets others in.
    :param port: port to listen on, 0 for a free one.
    :param max_recorded_requests: how many requests to keep in :attr:`requests`, the oldest going first; None
        for all.
    :raises ValueError: for a value that none of these can have.
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
        """Prepare an emulator that does not listen yet."""
        self._certificate = SelfSigned() if tls is True else tls if isinstance(tls, SelfSigned) else None
        given = tls if isinstance(tls, ssl.SSLContext) else None
        super().__init__(self._handle, host, port, given if self._certificate is None else self._certificate.context())
        auth = Authentication(clock, lambda: self.endpoint, token_lifetime, scopes, private_key)
        self._authentication = auth if authentication else None
        self._recorder = Recorder(max_recorded_requests)
        self._service = Service(clock, Plan(ingest_seconds, cancel_seconds=cancel_seconds), finished_cancel)
        self._fault_queue = FaultQueue(seed)
        self._api = Api(self._service, clock, unimplemented, self._recorder, self._fault_queue, self._authentication)
        self._control = Control(self, control)

    @property
    def authentication(self) -> bool:
        """Whether requests need a token."""
        return self._authentication is not None

    @property
    def certificate(self) -> str | None:
        """The certificate (PEM) to be trusted by a client that shall accept it; None unless the emulator made it."""
        return None if self._certificate is None else self._certificate.pem

    @property
    def control_endpoint(self) -> str:
        """Base URL of the control address."""
        return f"{self.endpoint}{CONTROL_PREFIX}"

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

        What is not given follows the query of ``creative_url``, then the emulator's own options.

        :param name: name of its operation, None for a new one.
        :param seconds: how long it takes; ``math.inf`` for one that never ends by itself.
        :param outcome: ``success``, ``DOWNLOAD_ERROR``, ``INVALID_MEDIA`` or ``INTERNAL_ERROR``.
        :param code: HTTP status of the failed download, with ``DOWNLOAD_ERROR`` only.
        :param cancel: ``honoured``, or ``ignored`` to complete in spite of a cancel request.
        :param cancel_seconds: from the cancel request to the end; an ingest that ends before then ends its
            own way.
        :param creative_url: the media URL.
        :return: the name of its operation.
        :raises ValueError: for a name that is taken or cannot be in a path, and an impossible value.
        """
        if name is not None and not is_operation_name(name):
            raise wrong_value("name", name, "operations/ and one or more segments, none of them empty, . or ..")
        plan = plan_from_url(
            creative_url,
            self._service.defaults,
            seconds=seconds,
            outcome=outcome,
            code=code,
            cancel=cancel,
            cancel_seconds=cancel_seconds,
        )
        media = {"uri": creative_url, "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
        creative: dict[str, object] = {"adSystem": "emulator", "mezzanines": [media]}
        return str(self._service.start(name, creative, creative_url, plan)["name"])

    def state(self, name: str) -> State:
        """Return what has become of an ingest, also when its operation has been deleted.

        :param name: name of its operation.
        :return: a string: ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``CANCELLED``.
        :raises UnknownOperationError: a KeyError, if there was never such an ingest.
        """
        return self._service.state(name)

    def states(self) -> dict[str, State]:
        """Return what has become of every ingest ever started, by the name of its operation."""
        return self._service.states()

    def cancel_requested(self, name: str) -> int:
        """Return how many cancel requests have reached the service for an operation.

        Those that a fault swallowed, and those refused for a body or as UNIMPLEMENTED, are not among them.

        :param name: name of the operation.
        :raises UnknownOperationError: a KeyError, if there was never such an operation.
        """
        return self._service.cancel_requests(name)

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
        self._recorder.forget()

    def unimplement(self, *methods: str) -> None:
        """Have methods answer UNIMPLEMENTED.

        :param methods: names such as ``operations.cancel``.
        :raises ValueError: for a method that the API does not have.
        """
        self._api.set_implemented(methods, implemented=False)

    def implement(self, *methods: str) -> None:
        """Have methods work again.

        :param methods: names such as ``operations.cancel``.
        :raises ValueError: for a method that the API does not have.
        """
        self._api.set_implemented(methods, implemented=True)

    def inject(self, fault: Fault) -> None:
        """Have something go wrong; faults are used in the order of their injection.

        :param fault: what goes wrong, with which requests, and how often.
        """
        self._fault_queue.add(fault)

    def clear_faults(self) -> None:
        """Have nothing go wrong any more; the counts stay."""
        self._fault_queue.clear()

    @property
    def faults_injected(self) -> dict[str, int]:
        """How many requests have been hit, by :attr:`Fault.kind`, such as ``{"503": 2, "reset-after": 1}``."""
        return self._fault_queue.injected

    @property
    def faults_waiting(self) -> list[tuple[Fault, int | None]]:
        """The faults still to come, and how many requests each has left; None for every one."""
        return self._fault_queue.waiting

    @property
    def seed(self) -> int:
        """What decides which requests a fault with a rate hits."""
        return self._fault_queue.seed

    def reset(self) -> None:
        """Start anew: no operations, requests and faults, and the methods as at first; accounts and tokens stay."""
        self._service.reset()
        self._fault_queue.reset()
        self._api.reset()
        self._recorder.forget()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        responsible = self._control if self._control.is_meant_by(request) else self._api
        return await responsible.handle(request)
