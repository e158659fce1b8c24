"""Both hooks through Debian's nginx as a reverse proxy, with TLS and keep-alive."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions

from airflow_dai_provider.emulator import DaiEmulator, Fault, SelfSigned
from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
from tests.support.interruption import raise_on_signals
from tests.support.processes import free_port, running
from tests.support.threads import wait_until

NAMES = (
    "operations/plain",
    "operations/a/b/c",
    "operations/YWJj+ZGVm/Z2g=",
    "operations/a:b~c@d,e",
    "operations/a%2Fb",
)
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CONFIGURATION = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
    log_format connections "$connection $request_uri";
    access_log {folder}/access.log connections;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream dai {{ server {upstream}; keepalive 16; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/certificate.pem; ssl_certificate_key {folder}/key.pem;
        proxy_http_version 1.1; proxy_set_header Connection "";
        location / {{ proxy_pass http://dai; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def emulator() -> Iterator[DaiEmulator]:
    with DaiEmulator(ingest_seconds=600) as emulator:
        yield emulator


@dataclass(frozen=True)
class Proxy:
    """
    A running nginx.

    :param endpoint: its address.
    :param folder: the folder with its certificate and its log.
    """

    endpoint: str
    folder: Path

    def connections(self, name: str) -> list[str]:
        """Return the number of the connection of each request for an operation, once nginx has logged it."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return [line.partition(" ")[0] for line in lines if line.endswith(f"/{name}")]


@pytest.fixture(scope="module")
def proxy(emulator: DaiEmulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Run nginx in front of the emulator."""
    assert NGINX, "nginx is not installed; make peers installs it"
    folder = tmp_path_factory.mktemp("nginx")
    certificate = SelfSigned()
    (folder / "certificate.pem").write_text(certificate.pem)
    (folder / "key.pem").write_text(certificate.private_key_pem)
    port = free_port()
    settings = CONFIGURATION.format(folder=folder, upstream=emulator.host, port=port)
    (folder / "nginx.conf").write_text(settings)
    raise_on_signals()
    with running([NGINX, "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf"]) as server:
        wait_for(port, server)
        yield Proxy(f"https://127.0.0.1:{port}", folder)


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert server.poll() is None, "nginx did not start"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("nginx does not listen")


@pytest.fixture(autouse=True)
def _connection(proxy: Proxy, emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(proxy.folder / "certificate.pem"))
    extra = {"is_anonymous": True, "num_retries": 2, "dai_api_endpoint": proxy.endpoint}
    connection = {"conn_type": "google_cloud_platform", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(connection))
    emulator.forget_requests()


def sync(work: Callable[[DaiHook], Any]) -> Any:
    with DaiHook() as hook:
        return work(hook)


def on_a_loop(work: Callable[[DaiAsyncHook], Any]) -> Any:
    async def main() -> Any:
        async with DaiAsyncHook() as hook:
            return await work(hook)

    return asyncio.run(main())


both = pytest.mark.parametrize("carry", [sync, on_a_loop], ids=["requests", "aiohttp"])


@both
@pytest.mark.parametrize("name", NAMES)
def test_names_reach_the_service_unchanged(emulator: DaiEmulator, carry: Any, name: str) -> None:
    name = emulator.start_ingest(f"{name}/{carry.__name__}")
    carry(lambda hook: hook.cancel_operation(name))
    assert carry(lambda hook: hook.get_operation(name)).state == "CANCELLED"
    assert [(r.method, r.name) for r in emulator.requests] == [("operations.cancel", name), ("operations.get", name)]


@both
def test_one_connection_serves_all_requests_of_a_hook(emulator: DaiEmulator, proxy: Proxy, carry: Any) -> None:
    name = emulator.start_ingest()

    def work(hook: Any) -> Any:
        if carry is sync:
            return [hook.get_operation(name) for _ in range(20)]

        async def polls() -> Any:
            return [await hook.get_operation(name) for _ in range(20)]

        return polls()

    assert len(carry(work)) == 20
    # nginx logs a request after it has passed on the response.
    wait_until(lambda: len(proxy.connections(name)) >= 20)
    ours = proxy.connections(name)
    assert (len(ours), len(set(ours))) == (20, 1)
    assert len(emulator.requests) == 20


@both
def test_an_error_of_the_proxy_is_retried(emulator: DaiEmulator, carry: Any) -> None:
    """The proxy turns a connection that the service drops into a 502 in HTML."""
    name = emulator.start_ingest()
    emulator.inject(Fault("operations.cancel", name, drop="before"))
    carry(lambda hook: hook.cancel_operation(name))
    assert emulator.cancel_requested(name) == 1


@both
def test_errors_of_the_service_raise_googles_exceptions(emulator: DaiEmulator, carry: Any) -> None:
    emulator.inject(Fault("operations.cancel", rpc_status="UNIMPLEMENTED"))
    with pytest.raises(exceptions.MethodNotImplemented, match="501 UNIMPLEMENTED"):
        carry(lambda hook: hook.cancel_operation("operations/x"))
    with pytest.raises(exceptions.NotFound):
        carry(lambda hook: hook.get_operation("operations/x"))


def test_a_created_ingest_is_listed_until_it_is_deleted(emulator: DaiEmulator) -> None:
    media = {"uri": "https://media.example.com/ad.mp4", "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
    with DaiHook() as hook:
        name = hook.create_creative({"adSystem": "example", "mediaFiles": [media]}).name
        assert name in [operation.name for operation in hook.list_operations(page_size=2)]
        hook.delete_operation(name)
        assert name not in [operation.name for operation in hook.list_operations(page_size=2)]
    assert name in emulator.states()


@both
def test_a_certificate_that_is_not_trusted_is_refused(carry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(exceptions.FailedPrecondition, match="certificate is not trusted"):
        carry(lambda hook: hook.get_operation("operations/x"))
