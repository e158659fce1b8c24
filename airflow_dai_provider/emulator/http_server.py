"""An HTTP server in its own thread, and the self-signed certificates for one that speaks TLS."""

import asyncio
import ssl
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

from aiohttp import web

from airflow_dai_provider.emulator.accounts import generate_private_key, load_private_key
from airflow_dai_provider.emulator.errors import wrong_value

if TYPE_CHECKING:
    from cryptography import x509

# The port and the function that stops the server, once it listens.
_Ready: TypeAlias = Future[tuple[int, Callable[[], object]]]

# How long a stop waits for requests under way; it does not wait for a fault's delay.
_STOP_SECONDS = 0.05


class HttpServer:
    """A server, for use as a context manager or with :meth:`start` and :meth:`stop`.

    :param port: port to listen on, 0 for a free one, which it keeps.
    :param tls: the server's SSL context; None for plain HTTP.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if not 0 <= port <= 65535:
            raise wrong_value("port", port, "a number from 0 to 65535")
        self._handler = handler
        self._bind_host = host
        self._port = port
        self._tls = tls
        self._thread: threading.Thread | None = None
        self._stop_serving: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
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
        """``host:port``, the value for ``DAI_EMULATOR_HOST``; known once the emulator has been started."""
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
        except Exception as error:  # start() must not wait forever, whatever the error is
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


class SelfSigned:
    """A certificate that is its own authority, with a fresh key.

    Clients refuse it, unless :attr:`pem` is written to a file that they are told to trust.

    :param hosts: the host names and addresses that it is for; under another one, clients that trust it refuse it too.
    :param expired: whether it has expired.
    """

    def __init__(self, hosts: Sequence[str] = ("127.0.0.1", "::1", "localhost"), *, expired: bool = False) -> None:
        self._hosts = tuple(hosts)
        self._expired = expired

    @property
    def pem(self) -> str:
        """The certificate, without its key."""
        return self._made[0]

    @property
    def private_key_pem(self) -> str:
        """The key, for a server in another process."""
        return self._made[1]

    def context(self) -> ssl.SSLContext:
        """Return an SSL context for a server with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # The ssl module reads a key from a file only: one that only its owner can read, deleted at once.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "server.pem")
            file.touch(mode=0o600)
            file.write_text("".join(self._made), encoding="ascii")
            context.load_cert_chain(file)
        return context

    @cached_property
    def _made(self) -> tuple[str, str]:
        from cryptography import x509
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import Encoding

        private_key = generate_private_key()
        key = load_private_key(private_key)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "DAI emulator")])
        end = datetime.now(UTC) + timedelta(days=-1 if self._expired else 30)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - timedelta(days=60))
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in self._hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, SHA256())
        )
        return certificate.public_bytes(Encoding.PEM).decode("ascii"), private_key


def _general_name(host: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
