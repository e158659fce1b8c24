"""The emulator as a whole: the service behind an HTTP server in a thread of its own."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeAlias

from aiohttp import web

from airflow_dai_provider.emulator.api import Api
from airflow_dai_provider.emulator.errors import wrong_value
from airflow_dai_provider.emulator.faults import Fault
from airflow_dai_provider.emulator.ingest import State
from airflow_dai_provider.emulator.plan import Plan, plan_from_url
from airflow_dai_provider.emulator.records import RecordedRequest, Recorder
from airflow_dai_provider.emulator.routes import is_operation_name
from airflow_dai_provider.emulator.service import Service

# The port and the function that ends the server, once it listens.
_Ready: TypeAlias = Future[tuple[int, Callable[[], object]]]

# How long a stop waits for requests under way; a fault's delay is not worth waiting for.
_STOP_SECONDS = 0.05


class DaiEmulator:
    """A local DAI service, for use as a context manager or with :meth:`start` and :meth:`stop`.

    Its state and its record of requests stay readable when it is stopped; started again, it serves the same
    operations on the same port.

    :param ingest_seconds: how long an ingest takes that says nothing else.
    :param cancel_seconds: seconds from a cancel request to the end of such an ingest.
    :param unimplemented: methods that answer UNIMPLEMENTED, such as ``operations.list``.
    :param finished_cancel: answer to a cancel request for a finished operation: ``ok``,
        ``failed_precondition`` or ``not_found``; what DAI does is undocumented.
    :param clock: epoch seconds; tests inject their own.
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
        clock: Callable[[], float] = time.time,
        host: str = "127.0.0.1",
        port: int = 0,
        max_recorded_requests: int | None = None,
    ) -> None:
        """Prepare an emulator that does not listen yet."""
        if not 0 <= port <= 65535:
            raise wrong_value("port", port, "a number from 0 to 65535")
        self._recorder = Recorder(max_recorded_requests)
        self._service = Service(clock, Plan(ingest_seconds, cancel_seconds=cancel_seconds), finished_cancel)
        self._api = Api(self._service, clock, unimplemented, self._recorder)
        self._bind_host = host
        self._port = port
        self._thread: threading.Thread | None = None
        self._stop_serving: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Listen. Returns when requests can be sent.

        :raises OSError: if the address cannot be listened on, for example because the port is busy.
        :raises RuntimeError: if it listens already.
        """
        if self._thread is not None:
            raise RuntimeError(f"The emulator already listens on {self.host}")
        ready: _Ready = Future()
        thread = threading.Thread(target=self._run, args=(ready,), name="dai-emulator", daemon=True)
        thread.start()
        try:
            self._port, self._stop_serving = ready.result()
        except Exception:
            thread.join()
            raise
        self._thread = thread

    def stop(self) -> None:
        """Close the socket and all connections and end the thread. Does nothing if it does not listen."""
        if self._thread is not None and self._stop_serving is not None:
            self._stop_serving()
            self._thread.join()
            self._thread = self._stop_serving = None

    @property
    def host(self) -> str:
        """``host:port``, what ``DAI_EMULATOR_HOST`` wants; known once the emulator has been started."""
        if not self._port:
            raise RuntimeError("The emulator has no port before it is started")
        host = f"[{self._bind_host}]" if ":" in self._bind_host else self._bind_host
        return f"{host}:{self._port}"

    @property
    def endpoint(self) -> str:
        """Base URL, such as ``http://127.0.0.1:41234``."""
        return f"http://{self.host}"

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
        self._api.faults.add(fault)

    def _run(self, ready: _Ready) -> None:
        try:
            asyncio.run(self._serve(ready))
        except Exception as error:  # whatever it is, start() must learn of it and not wait for ever
            if ready.done():
                raise
            ready.set_exception(error)

    async def _serve(self, ready: _Ready) -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        # The access log of aiohttp would show queries.
        server = web.Server(self._api.handle, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=_STOP_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._bind_host, self._port).start()
            ready.set_result((runner.addresses[0][1], lambda: loop.call_soon_threadsafe(stopping.set)))
            await stopping.wait()
        finally:
            await runner.cleanup()
