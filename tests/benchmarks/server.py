"""The service that the benchmarks poll: TLS on loopback, in a process of its own; every ingest runs."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from counters import Counters

LOOPBACK = "127.0.0.1"
#: An operation with such a name finishes when it has been polled this often: ``operations/finishes-after/20/...``.
FINISHES_AFTER = "operations/finishes-after/"
#: Operations on a page of the list, at most.
PAGE_SIZE = 100
#: Where a scenario says what the list holds, and which operations finish now.
CONTROL = "/control"
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
    ``operations.get``, ``operations.list`` and the token endpoint.

    The list holds finished operations, and behind them those that run and have been polled, in the order of their first
    polls. Until a scenario has said how many have finished, there is no list.

    :param counters: count the requests.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._polls: Counter[str] = Counter()
        self._finished: set[str] = set()
        self._listed: list[str] | None = None

    async def handle(self, request: web.BaseRequest) -> web.Response:
        if request.path == CONTROL:
            self._control(await request.json())
            return web.json_response({})
        name = request.path.removeprefix("/v1/")
        is_list = name == "operations" and self._listed is not None
        if request.method != "GET" or not (name.startswith("operations/") or is_list):
            return web.json_response({"error": {"status": "UNIMPLEMENTED"}}, status=501)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": {"status": "UNAUTHENTICATED"}}, status=401)
        if is_list:
            self._counters.add("pages")
            return web.Response(body=self._page(request.query), headers=_HEADERS)
        self._counters.add("polls")
        self._polls[name] += 1
        if self._polls[name] == 1:
            self._counters.add("operations")
            if self._listed is not None:
                self._listed.append(name)
        return web.Response(body=self._operation(name), headers=_HEADERS)

    def _control(self, told: dict[str, Any]) -> None:
        """Begin another scenario, whose list begins with so many finished operations, or let some finish."""
        self._finished.update(told.get("finish", []))
        if "listed" in told:
            self._listed = None
            if told["listed"] is not None:
                self._listed = [f"operations/finished-{number}" for number in range(told["listed"])]
                self._finished = set(self._listed)

    def _page(self, query: Mapping[str, str]) -> bytes:
        """Return a page of the list, in the same form."""
        listed, first = self._listed or [], int(query.get("pageToken") or 0)
        size = min(int(query.get("pageSize") or PAGE_SIZE), PAGE_SIZE)
        items = b",\n".join(self._operation(name) for name in listed[first : first + size])
        token = f"{first + size}" if first + size < len(listed) else ""
        return b'{"operations": [%s], "nextPageToken": "%s"}' % (items, token.encode())

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
        if name in self._finished or (prefix and self._polls[name] >= int(rest.split("/")[0])):
            operation |= {"done": True, "error": {"code": 1, "message": "The operation was cancelled."}}
        return json.dumps(operation, indent=2).encode()


async def serve(certificate: Path, counters: Counters) -> None:
    """Serve until standard input is closed, as it is when the parent exits."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    service = Service(counters)
    runners = []
    for handler, counter in ((service.handle, "connections"), (service.token, "token_connections")):
        runner = web.ServerRunner(CountingServer(handler, counters, counter))
        await runner.setup()
        await web.TCPSite(runner, LOOPBACK, 0, ssl_context=context, backlog=BACKLOG).start()
        runners.append(runner)
    print(*(runner.addresses[0][1] for runner in runners), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Counters(Path(sys.argv[2]))))
