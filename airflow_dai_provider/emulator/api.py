"""The HTTP of the service: from a request to its method, its answer, and what a fault makes of that."""

import asyncio
import itertools
import json
import logging
import threading
from collections.abc import Callable, Iterable
from urllib.parse import parse_qsl

from aiohttp import web

from airflow_dai_provider.emulator.answers import (
    Answer,
    error_answer,
    html_answer,
    json_answer,
    reason_phrase,
)
from airflow_dai_provider.emulator.errors import ApiError
from airflow_dai_provider.emulator.faults import Fault, FaultQueue, check_method
from airflow_dai_provider.emulator.records import RecordedRequest, Recorder
from airflow_dai_provider.emulator.routes import Route, find_route
from airflow_dai_provider.emulator.service import Service

logger = logging.getLogger("airflow_dai_provider.emulator")


class Api:
    """The HTTP of one emulator.

    :param service: the state behind it.
    :param clock: epoch seconds.
    :param unimplemented: names of the methods that answer UNIMPLEMENTED.
    :param recorder: where requests are recorded.
    :raises ValueError: if ``unimplemented`` names a method that the API does not have.
    """

    def __init__(
        self, service: Service, clock: Callable[[], float], unimplemented: Iterable[str], recorder: Recorder
    ) -> None:
        """Start without faults."""
        self.faults = FaultQueue()
        self._service = service
        self._clock = clock
        self._recorder = recorder
        self._lock = threading.Lock()
        self._unimplemented: frozenset[str] = frozenset()
        self.set_implemented(unimplemented, implemented=False)
        self._connections: dict[web.RequestHandler, int] = {}
        self._connection_numbers = itertools.count(1)

    def set_implemented(self, methods: Iterable[str], *, implemented: bool) -> None:
        """Switch methods on or off.

        :param methods: methods of the API.
        :param implemented: False to have them answer UNIMPLEMENTED.
        :raises ValueError: for a method that the API does not have; none is switched then.
        """
        methods = frozenset(methods)
        for method in methods:
            check_method("unimplemented", method)
        with self._lock:
            others = self._unimplemented - methods
            self._unimplemented = others if implemented else others | methods

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request; this is the handler that the aiohttp server calls.

        :param request: the request.
        :return: the response, which goes nowhere where a fault has closed the connection.
        """
        try:
            body = await request.content.read()
        except ConnectionError:
            return web.Response(status=400)  # the client has gone in the middle of its request
        raw_path, _, query = request.raw_path.partition("?")
        route = find_route(raw_path)
        recorded = RecordedRequest(
            time=self._clock(),
            method=route.methods.get(request.method),
            http_method=request.method,
            raw_path=raw_path,
            name=route.name,
            query=dict(parse_qsl(query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
            connection=self._connection_number(request.protocol),
        )
        key = self._recorder.arrived(recorded)
        fault = self.faults.take(recorded.method, recorded.name)
        answer = self._answer(recorded, route, fault)
        if fault is not None:
            await asyncio.sleep(fault.delay)
        # Noted before it is sent: whoever holds the answer finds it in the record.
        self._note(key, recorded, answer)
        return _send(request, answer, None if fault is None else fault.truncate)

    def _answer(self, request: RecordedRequest, route: Route, fault: Fault | None) -> Answer | None:
        if fault is None:
            return self._process(request, route)
        if fault.drop == "before":
            return None
        answer = self._process(request, route) if fault.lets_through else fault.answer()
        return None if fault.drop == "after" else fault.change(answer)

    def _process(self, request: RecordedRequest, route: Route) -> Answer:
        if not route.methods:
            return html_answer(404, f"The requested URL {request.raw_path} was not found on this server.")
        if request.method is None:
            explanation = f"The request method {request.http_method} is inappropriate for this URL."
            return html_answer(405, explanation, {"Allow": ", ".join(route.methods)})
        if request.method in self._unimplemented:
            return error_answer("UNIMPLEMENTED", "Operation is not implemented, or supported, or enabled.")
        try:
            return json_answer(self._call(request.method, request.name or "", request))
        except ApiError as error:
            return error_answer(error.rpc_status, error.message)

    def _call(self, method: str, name: str, request: RecordedRequest) -> dict[str, object]:
        match method:
            case "operations.list":
                return self._service.list_operations(request.query)
            case "operations.cancel":
                _require_empty(request.body)
                return self._service.cancel_operation(name)
            case "creatives.create":
                return self._service.create_creative(_parse(request.body))
        by_name = {
            "operations.get": self._service.get_operation,
            "operations.delete": self._service.delete_operation,
            "creatives.get": self._service.get_creative,
            "creatives.delete": self._service.delete_creative,
        }
        return by_name[method](name)

    def _note(self, key: int, request: RecordedRequest, answer: Answer | None) -> None:
        if answer is not None:
            self._recorder.answered(key, answer.status)
        # Neither headers nor queries: a log is no place for tokens.
        outcome = "connection dropped" if answer is None else answer.status
        logger.info("%s %s %s", request.http_method, request.raw_path, outcome)

    def _connection_number(self, protocol: web.RequestHandler) -> int:
        if protocol not in self._connections:
            alive = {other: number for other, number in self._connections.items() if other.transport is not None}
            self._connections = {**alive, protocol: next(self._connection_numbers)}
        return self._connections[protocol]


def _require_empty(body: bytes) -> None:
    if body:
        raise ApiError("INVALID_ARGUMENT", f"The request body must be empty, got {len(body)} bytes.")


def _parse(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:  # covers what is no JSON and what is no UTF-8
        raise ApiError("INVALID_ARGUMENT", "Invalid JSON payload received.") from None


def _send(request: web.BaseRequest, answer: Answer | None, truncate: int | None) -> web.StreamResponse:
    if answer is None:
        return _hang_up(request, b"")
    headers = {"Content-Type": answer.content_type, **answer.headers}
    if truncate is None:
        return web.Response(status=answer.status, body=answer.body, headers=headers)
    headers["Content-Length"] = str(len(answer.body))
    lines = [f"HTTP/1.1 {answer.status} {reason_phrase(answer.status)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "", ""])
    return _hang_up(request, head.encode("latin-1") + answer.body[:truncate])


def _hang_up(request: web.BaseRequest, last_bytes: bytes) -> web.StreamResponse:
    # Past aiohttp, which would not send less than it has announced. Closing sends what is written first, and
    # aiohttp takes the failure to write its own response for a client that has gone.
    if request.transport is not None:
        request.transport.write(last_bytes)
        request.transport.close()
    return web.Response()
