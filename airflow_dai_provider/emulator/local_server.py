"""An HTTP server in a thread of its own."""

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeAlias

from aiohttp import web

from airflow_dai_provider.emulator.errors import wrong_value

# The port and the function that ends the server, once it listens.
_Ready: TypeAlias = Future[tuple[int, Callable[[], object]]]

# How long a stop waits for requests under way; a fault's delay is not worth waiting for.
_STOP_SECONDS = 0.05


class LocalServer:
    """A server, for use as a context manager or with :meth:`start` and :meth:`stop`.

    :param handler: answers a request.
    :param host: address to listen on.
    :param port: port to listen on, 0 for a free one, which it keeps.
    :param tls: what TLS needs, None for plain HTTP.
    :raises ValueError: for an impossible port.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare a server that does not listen yet."""
        if not 0 <= port <= 65535:
            raise wrong_value("port", port, "a number from 0 to 65535")
        self._handler = handler
        self._bind_host = host
        self._port = port
        self._tls = tls
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
        return f"{'http' if self._tls is None else 'https'}://{self.host}"

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
        server = web.Server(self._handler, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=_STOP_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._bind_host, self._port, ssl_context=self._tls).start()
            ready.set_result((runner.addresses[0][1], lambda: loop.call_soon_threadsafe(stopping.set)))
            await stopping.wait()
        finally:
            await runner.cleanup()
