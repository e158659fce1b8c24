"""A proxy whose tunnels all end at one emulator, for clients that insist on Google's own addresses."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from airflow_dai_provider.emulator import DaiEmulator


class _Exchange(socketserver.StreamRequestHandler):
    server: "_TunnelServer"

    def handle(self) -> None:
        self.server.addresses.append(self.rfile.readline().decode().split()[1])
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with socket.create_connection(self.server.target) as other:
            self.server.open.append(self.connection)
            back = threading.Thread(target=_pump, args=(other, self.connection))
            back.start()
            _pump(self.connection, other)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(65536):
            target.sendall(content)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class _TunnelServer(socketserver.ThreadingTCPServer):
    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        self.target = target
        self.addresses: list[str] = []
        self.open: list[socket.socket] = []


@contextmanager
def tunnel_to(emulator: DaiEmulator) -> Iterator[tuple[str, list[str]]]:
    """Start the proxy; gives its URL, and the addresses that clients have asked it for."""
    host, _, port = emulator.host.partition(":")
    with _TunnelServer((host, int(port))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", server.addresses
        finally:
            server.shutdown()
            thread.join()
            for connection in server.open:  # a client may keep its own end for later
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
