"""The HTTP of the service: from a request to its record, its response, and the effect of a fault on it."""

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl

from aiohttp import web

from airflow_dai_provider.emulator.authentication import Authentication
from airflow_dai_provider.emulator.errors import ApiError, read_json, wrong_value
from airflow_dai_provider.emulator.faults import Fault, FaultQueue
from airflow_dai_provider.emulator.responses import (
    Response,
    error_response,
    hang_up,
    html_response,
    json_response,
    pause,
    send,
)
from airflow_dai_provider.emulator.routes import METHODS, TOKEN_METHODS, Route, find_route
from airflow_dai_provider.emulator.store import Store

logger = logging.getLogger("airflow_dai_provider.emulator")


@dataclass(frozen=True)
class RecordedRequest:
    """One request that reached the emulator.

    :param time: epoch seconds of the emulator's clock.
    :param method: method of the API, such as ``operations.cancel``; None if the request matches none.
    :param http_method: ``GET``, ``POST`` or ``DELETE``.
    :param raw_path: the path as in the request line, without the query.
    :param name: the decoded resource name, None where the path holds none.
    :param query: the decoded query parameters; of a repeated one the last.
    :param headers: the headers, with lower-case keys; of a repeated one the last.
    :param body: the body.
    :param connection: number of the TCP connection, 1 for the first.
    :param status: the HTTP status sent, None before it is sent and where the connection was dropped.
    :param account: the account whose token it carries; None without a valid one, and without authentication.
    :param fault: the kind of the fault that has hit it, None without a fault.
    """

    time: float
    method: str | None
    http_method: str
    raw_path: str
    name: str | None
    query: Mapping[str, str]
    # Neither headers nor bodies show in a failing test's output: they can hold tokens and signed URLs.
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    connection: int
    status: int | None = None
    account: str | None = None
    fault: str | None = None


class Recorder:
    """The record of requests, in the order of their arrival. Safe to use from several threads.

    :param limit: how many to keep, dropping the oldest first; None keeps all.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._keys = itertools.count()
        self._requests: dict[int, RecordedRequest] = {}

    def add(self, request: RecordedRequest) -> int:
        """Record a request that has no response yet, and return its key for :meth:`set_status`."""
        with self._lock:
            key = next(self._keys)
            self._requests[key] = request
            if self._limit is not None and len(self._requests) > self._limit:
                del self._requests[next(iter(self._requests))]
            return key

    def set_status(self, key: int, status: int) -> None:
        """Record the HTTP status of a response, unless its request has been cleared."""
        with self._lock:
            if key in self._requests:
                self._requests[key] = replace(self._requests[key], status=status)

    def requests(self) -> list[RecordedRequest]:
        """Return the requests recorded."""
        with self._lock:
            return list(self._requests.values())

    def clear(self) -> None:
        """Remove all requests."""
        with self._lock:
            self._requests.clear()


class Api:
    """The HTTP of one emulator.

    :param unimplemented: names of the methods that return UNIMPLEMENTED.
    :param authentication: the check of tokens, None to let every request in.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        unimplemented: Iterable[str],
        recorder: Recorder,
        faults: FaultQueue,
        authentication: Authentication | None,
    ) -> None:
        self._clock = clock
        self._recorder = recorder
        self._faults = faults
        self._authentication = authentication
        self._lock = threading.Lock()
        self._unimplemented: frozenset[str] = frozenset()
        self.set_implemented(unimplemented, implemented=False)
        self._unimplemented_at_first = self._unimplemented
        self._connections: dict[web.RequestHandler, int] = {}
        self._connection_numbers = itertools.count(1)
        self._calls: dict[str, Callable[[RecordedRequest], dict[str, object]]] = {
            "operations.get": lambda request: store.get_operation(request.name or ""),
            "operations.list": lambda request: store.list_operations(request.query),
            "operations.cancel": lambda request: store.cancel_operation(_without_body(request)),
            "operations.delete": lambda request: store.delete_operation(request.name or ""),
            "creatives.create": lambda request: store.create_creative(read_json(request.body)),
            "creatives.get": lambda request: store.get_creative(request.name or ""),
            "creatives.delete": lambda request: store.delete_creative(request.name or ""),
        }

    def set_implemented(self, methods: Iterable[str], *, implemented: bool) -> None:
        """Switch methods on, or off so that they return UNIMPLEMENTED.

        :raises ValueError: for a method that the API does not have; none is switched then.
        """
        methods = frozenset(methods)
        for method in sorted(methods - set(METHODS)):
            raise wrong_value("unimplemented", method, f"one of {', '.join(METHODS)}")
        with self._lock:
            others = self._unimplemented - methods
            self._unimplemented = others if implemented else others | methods

    def reset(self) -> None:
        """Restore the methods to their initial state."""
        with self._lock:
            self._unimplemented = self._unimplemented_at_first

    async def handle(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        """Handle a request of the aiohttp server."""
        raw_path, _, query = request.raw_path.partition("?")
        authentication = self._authentication
        route = find_route(raw_path, tokens=authentication is not None)
        method = route.methods.get(request.method)
        now = self._clock()
        fault = self._faults.take(method, route.name, now)
        recorded = RecordedRequest(
            time=now,
            method=method,
            http_method=request.method,
            raw_path=raw_path,
            name=route.name,
            query=dict(parse_qsl(query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
            connection=self._connection_number(request.protocol),
            account=None if authentication is None else authentication.caller(request.headers.get("Authorization")),
            fault=None if fault is None else fault.kind,
        )
        key = self._recorder.add(recorded)
        if fault is None:
            response = self._process(recorded, route)
            self._record(key, recorded, response.status)
            return await send(request, response)
        return await self._fail(request, recorded, route, fault, key)

    async def _fail(
        self, request: web.BaseRequest, recorded: RecordedRequest, route: Route, fault: Fault, key: int
    ) -> web.StreamResponse:
        real = self._process(recorded, route) if fault.lets_through else None
        if fault.hangs:
            self._record(key, recorded, None, "left without a response")
            await pause(request, fault.delay)
            return web.Response()
        await pause(request, fault.delay)
        if fault.drop is not None:
            self._record(key, recorded, None, "connection dropped")
            return hang_up(request, reset=fault.reset)
        response = fault.change(fault.response() if real is None or fault.replaces else real, self._clock())
        self._record(key, recorded, response.status)
        return await send(request, response, fault)

    def _process(self, request: RecordedRequest, route: Route) -> Response:
        if not route.methods:
            return html_response(404, f"The requested URL {request.raw_path} was not found on this server.")
        if request.method is None:
            explanation = f"The request method {request.http_method} is inappropriate for this URL."
            return html_response(405, explanation, {"Allow": ", ".join(route.methods)})
        if self._authentication is not None and request.method in TOKEN_METHODS:
            return self._authentication.respond(request)
        try:
            self._admit(request)
            return json_response(self._calls[request.method](request))
        except ApiError as error:
            return error_response(error)

    def _admit(self, request: RecordedRequest) -> None:
        if self._authentication is not None:
            self._authentication.check(request.headers.get("authorization"))
        if request.method in self._unimplemented:
            raise ApiError("UNIMPLEMENTED", "Operation is not implemented, or supported, or enabled.")

    def _record(self, key: int, request: RecordedRequest, status: int | None, outcome: str = "") -> None:
        # Before the response is sent: a client that has received it finds its status in the record.
        if status is not None:
            self._recorder.set_status(key, status)
        # Neither headers nor queries: they can hold tokens, which must not be logged.
        logger.info("%s %s %s", request.http_method, request.raw_path, outcome if status is None else status)

    def _connection_number(self, protocol: web.RequestHandler) -> int:
        if protocol not in self._connections:
            alive = {other: number for other, number in self._connections.items() if other.transport is not None}
            self._connections = {**alive, protocol: next(self._connection_numbers)}
        return self._connections[protocol]


def _without_body(request: RecordedRequest) -> str:
    if request.body:
        raise ApiError("INVALID_ARGUMENT", f"The request body must be empty, got {len(request.body)} bytes.")
    return request.name or ""
