"""The service that the benchmarks poll: TLS on loopback, in a process of its own; every ingest runs."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections import Counter
from pathlib import Path

from aiohttp import web
from counters import Counters

LOOPBACK = "127.0.0.1"
#: An operation with such a name finishes when it has been polled this often: ``operations/finishes-after/20/...``.
FINISHES_AFTER = "operations/finishes-after/"
#: Enough for a thousand clients that connect at once.
BACKLOG = 2048
#: The length of a service account's access token.
TOKEN = "ya29.c." + "x" * 1017

_SIGNED_URL = (
    "https://storage.googleapis.com/media-campaigns/2026/spring/hero-30s-1080p.mp4"
    "?X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=uploader%40project.iam.gserviceaccount.com%2F20260401%2F"
    f"auto%2Fstorage%2Fgoog4_request&X-Goog-Expires=86400&X-Goog-SignedHeaders=host&X-Goog-Signature={'5f' * 256}"
)
_HEADERS = {
    "Content-Type": "application/json; charset=UTF-8",
    "Vary": "Origin, X-Origin, Referer",
    "Server": "ESF",
    "X-XSS-Protection": "0",
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Alt-Svc": 'h3=":443"; ma=2592000,h3-29=":443"; ma=2592000',
}


class CountingServer(web.Server):
    """An HTTP server that counts its connections after their TLS handshake."""

    def __init__(self, handler: object, counters: Counters, counter: str) -> None:
        super().__init__(handler, access_log=None)
        self._counters = counters
        self._counter = counter

    def connection_made(self, handler: object, transport: asyncio.Transport) -> None:
        self._counters.add(self._counter)
        super().connection_made(handler, transport)


class Service:
    """
    ``operations.get`` and the token endpoint.

    :param counters: count the requests.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._polls: Counter[str] = Counter()

    async def get_operation(self, request: web.BaseRequest) -> web.Response:
        name = request.path.removeprefix("/v1/")
        if request.method != "GET" or not name.startswith("operations/"):
            return web.json_response({"error": {"status": "UNIMPLEMENTED"}}, status=501)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": {"status": "UNAUTHENTICATED"}}, status=401)
        self._counters.add("polls")
        self._polls[name] += 1
        if self._polls[name] == 1:
            self._counters.add("operations")
        return web.Response(body=self._operation(name), headers=_HEADERS)

    async def token(self, request: web.BaseRequest) -> web.Response:
        if not (await request.post()).get("assertion"):
            return web.json_response({"error": "invalid_grant"}, status=400)
        self._counters.add("tokens")
        return web.json_response({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})

    def _operation(self, name: str) -> bytes:
        """Return an operation as JSON in the form of Google's servers, indented."""
        operation = {
            "name": name,
            "metadata": {
                "@type": "type.googleapis.com/google.ads.dai.v1.CreateCreativeOperationMetadata",
                "creativeUrl": _SIGNED_URL,
                "createTime": "2026-04-01T12:34:56.789012Z",
                "youtubeStatus": {"state": "PROCESSING", "updateTime": "2026-04-01T12:35:01.234567Z"},
            },
        }
        _, prefix, rest = name.partition(FINISHES_AFTER)
        if prefix and self._polls[name] >= int(rest.split("/")[0]):
            operation |= {"done": True, "error": {"code": 1, "message": "The operation was cancelled."}}
        return json.dumps(operation, indent=2).encode()


async def serve(certificate: Path, counters: Counters) -> None:
    """Serve until standard input is closed, as it is when the parent exits."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    service = Service(counters)
    runners = []
    for handler, counter in ((service.get_operation, "connections"), (service.token, "token_connections")):
        runner = web.ServerRunner(CountingServer(handler, counters, counter))
        await runner.setup()
        await web.TCPSite(runner, LOOPBACK, 0, ssl_context=context, backlog=BACKLOG).start()
        runners.append(runner)
    print(*(runner.addresses[0][1] for runner in runners), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Counters(Path(sys.argv[2]))))
