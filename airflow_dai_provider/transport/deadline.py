"""One deadline for all that a request of ``requests`` does: connect, send, read the headers, read the body.

Only the look-up of the host's addresses is not bounded: no library can interrupt it.

The library itself gives its timeout to each address of a host, and to each piece of a response that arrives.
"""

from __future__ import annotations

import io
import os
import select
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from http.client import SWITCHING_PROTOCOLS, HTTPResponse
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

#: Seconds after which the next address of a host is tried, while the ones before may still respond (RFC 8305).
NEXT_ADDRESS = 0.25

# When the request under way has to be over, in seconds of time.monotonic; a signal handler's request has its own.
_UNTIL: ContextVar[float | None] = ContextVar("dai_deadline", default=None)

# By host, the address that responded last, which is tried first.
_ANSWERED: dict[tuple[str, int], Any] = {}


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Limit the requests in this block to this many seconds in total."""
    token = _UNTIL.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _UNTIL.reset(token)


def keep_deadlines(session: requests.Session) -> None:
    """Make a session respect :func:`deadline`."""
    for prefix in ("http://", "https://"):
        session.mount(prefix, _Adapter())


class _Pieces(io.RawIOBase):
    """A response, read piece by piece in the time that is left; what has arrived by then is read to its end."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection = connection
        self._until = until
        self._more = True
        self._raw: Any = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0 and not self._more:
            raise TimeoutError("the response did not end in time")
        self._connection.settimeout(max(left, 0.001))
        read: int | None = self._raw.readinto(buffer)
        self._more = left > 0 or read == len(buffer)
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        if (until := _UNTIL.get()) is not None:
            unread, self.fp = self.fp, io.BufferedReader(_Pieces(sock, until))
            unread.close()

    def begin(self) -> None:
        """Read the headers of the final response: of those before it, the library skips 100 only."""
        super().begin()
        while 100 < self.status < 200 and self.status != SWITCHING_PROTOCOLS:
            self.headers = None  # type: ignore[assignment]
            super().begin()


class _Race:
    """Connect to the first of several addresses that responds, each tried while the ones before still may respond."""

    def __init__(self, options: Iterable[tuple[Any, ...]]) -> None:
        self._options = list(options)
        self._pending: dict[int, tuple[socket.socket, Any]] = {}
        self._poll = select.poll()
        self.error: OSError = TimeoutError("timed out")

    def __bool__(self) -> bool:
        return bool(self._pending)

    def enter(self, family: int, kind: int, protocol: int, address: Any) -> None:
        """Begin to connect to an address."""
        runner = None
        try:
            runner = socket.socket(family, kind, protocol)
            runner.setblocking(False)
            for option in self._options:
                runner.setsockopt(*option)
            with suppress(BlockingIOError):
                runner.connect(address)
        except OSError as error:
            self.error = error
            if runner is not None:
                runner.close()
        else:
            self._pending[runner.fileno()] = runner, address
            self._poll.register(runner, select.POLLOUT)

    def winner(self, seconds: float) -> tuple[socket.socket, Any] | None:
        """Return the first connection within these seconds, and its address."""
        for number, _ in self._poll.poll(1000 * seconds):
            self._poll.unregister(number)
            runner, address = self._pending.pop(number)
            code = runner.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                return runner, address
            self.error = OSError(code, os.strerror(code))
            runner.close()
        return None

    def close(self) -> None:
        """Close the connections that are still pending."""
        for runner, _ in self._pending.values():
            runner.close()


def _connect(host: str, port: int, options: Iterable[tuple[Any, ...]], until: float) -> socket.socket:
    """Connect to a host in time: to the address that responded last, else to the next that responds."""
    left = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    left.sort(key=lambda info: info[4] != _ANSWERED.get((host, port)))
    pause = min(NEXT_ADDRESS, max(until - time.monotonic(), 0.0) / (2 * len(left)))
    race = _Race(options)
    try:
        while left or race:
            if left:
                family, kind, protocol, _, address = left.pop(0)
                race.enter(family, kind, protocol, address)
            if (wait := until - time.monotonic()) <= 0:
                raise TimeoutError("timed out")
            if race and (won := race.winner(min(wait, pause) if left else wait)):
                connection, _ANSWERED[host, port] = won
                connection.settimeout(max(until - time.monotonic(), 0.001))
                return connection
        raise race.error
    finally:
        race.close()


class _Connecting(HTTPConnection):
    response_class = _Response

    def _new_conn(self) -> socket.socket:
        until = _UNTIL.get()
        if until is None:
            return super()._new_conn()
        try:
            return _connect(self._dns_host.strip("[]"), self.port, self.socket_options or (), until)
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"Connection to {self.host} timed out.") from error
        except (OSError, UnicodeError) as error:
            raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Connecting


class _HttpsConnection(_Connecting, HTTPSConnection):
    pass


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = dict(_POOLS)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = dict(_POOLS)
        return manager


_POOLS = {"http": _HttpPool, "https": _HttpsPool}
