"""The HTTP of the service: from a request to its method, its answer, and what a fault makes of that."""

import itertools
import json
import logging
import threading
from collections.abc import Callable, Iterable
from urllib.parse import parse_qsl

from aiohttp import web

from airflow_dai_provider.emulator.answers import Answer, error_answer, html_answer, json_answer
from airflow_dai_provider.emulator.auth import Authentication
from airflow_dai_provider.emulator.errors import ApiError
from airflow_dai_provider.emulator.fault_queue import FaultQueue
from airflow_dai_provider.emulator.fault_rules import check_method
from airflow_dai_provider.emulator.faults import Fault
from airflow_dai_provider.emulator.records import RecordedRequest, Recorder
from airflow_dai_provider.emulator.routes import TOKEN_METHODS, Route, find_route
from airflow_dai_provider.emulator.service import Service
from airflow_dai_provider.emulator.token_service import TokenService
from airflow_dai_provider.emulator.transmit import hang_up, pause, send

logger = logging.getLogger("airflow_dai_provider.emulator")


class Api:
    """The HTTP of one emulator.

    :param service: the state behind it.
    :param clock: epoch seconds.
    :param unimplemented: names of the methods that answer UNIMPLEMENTED.
    :param recorder: where requests are recorded.
    :param faults: what goes wrong.
    :param authentication: who may come in, None for everybody.
    :raises ValueError: if ``unimplemented`` names a method that the API does not have.
    """

    def __init__(
        self,
        service: Service,
        clock: Callable[[], float],
        unimplemented: Iterable[str],
        recorder: Recorder,
        faults: FaultQueue,
        authentication: Authentication | None,
    ) -> None:
        """Keep what is behind it."""
        self._faults = faults
        self._authentication = authentication
        self._token_service = None if authentication is None else TokenService(authentication)
        self._service = service
        self._clock = clock
        self._recorder = recorder
        self._lock = threading.Lock()
        self._unimplemented: frozenset[str] = frozenset()
        self.set_implemented(unimplemented, implemented=False)
        self._unimplemented_at_first = self._unimplemented
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

    def reset(self) -> None:
        """Switch the methods as they were at first."""
        with self._lock:
            self._unimplemented = self._unimplemented_at_first

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
        authentication = self._authentication
        route = find_route(raw_path, tokens=authentication is not None)
        method = route.methods.get(request.method)
        fault = self._faults.take(method, route.name)
        recorded = RecordedRequest(
            time=self._clock(),
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
        key = self._recorder.arrived(recorded)
        if fault is None:
            answer = self._process(recorded, route)
            self._note(key, recorded, answer.status)
            return await send(request, answer, None)
        return await self._fail(request, recorded, route, fault, key)

    async def _fail(
        self, request: web.BaseRequest, recorded: RecordedRequest, route: Route, fault: Fault, key: int
    ) -> web.StreamResponse:
        real = self._process(recorded, route) if fault.lets_through else None
        if fault.hangs:
            self._note(key, recorded, None, "left without an answer")
            await pause(request, fault.delay)
            return web.Response()
        await pause(request, fault.delay)
        if fault.drop is not None:
            self._note(key, recorded, None, "connection dropped")
            return hang_up(request, reset=fault.reset)
        answer = fault.change(fault.answer() if real is None or fault.replaces else real, self._clock())
        self._note(key, recorded, answer.status)
        return await send(request, answer, fault)

    def _process(self, request: RecordedRequest, route: Route) -> Answer:
        if not route.methods:
            return html_answer(404, f"The requested URL {request.raw_path} was not found on this server.")
        if request.method is None:
            explanation = f"The request method {request.http_method} is inappropriate for this URL."
            return html_answer(405, explanation, {"Allow": ", ".join(route.methods)})
        if self._token_service is not None and request.method in TOKEN_METHODS:
            return self._token_service.answer(request)
        try:
            self._admit(request)
            return json_answer(self._call(request.method, request.name or "", request))
        except ApiError as error:
            return error_answer(error.rpc_status, error.message, details=error.details, headers=error.headers)

    def _admit(self, request: RecordedRequest) -> None:
        if self._authentication is not None:
            self._authentication.check(request.headers.get("authorization"))
        if request.method in self._unimplemented:
            raise ApiError("UNIMPLEMENTED", "Operation is not implemented, or supported, or enabled.")

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

    def _note(self, key: int, request: RecordedRequest, status: int | None, instead: str = "") -> None:
        # Before it is sent: whoever holds the answer finds it in the record.
        if status is not None:
            self._recorder.answered(key, status)
        # Neither headers nor queries: a log is no place for tokens.
        logger.info("%s %s %s", request.http_method, request.raw_path, instead if status is None else status)

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
    except (ValueError, RecursionError):  # the former covers what is no JSON and what is no UTF-8
        raise ApiError("INVALID_ARGUMENT", "Invalid JSON payload received.") from None
