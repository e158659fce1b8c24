"""The control address: the methods of :class:`DaiEmulator` over HTTP, for other processes."""

import json
import logging
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_dai_provider.emulator.api import RecordedRequest
from airflow_dai_provider.emulator.errors import ApiError, check_object, explain, wrong_value
from airflow_dai_provider.emulator.fault_text import fault_json, read_fault
from airflow_dai_provider.emulator.responses import Response, error_response, json_response, send
from airflow_dai_provider.emulator.routes import TOKEN_METHODS

if TYPE_CHECKING:
    from airflow_dai_provider.emulator.server import DaiEmulator

CONTROL_PREFIX = "/emulator/v1"
"""Where the control address begins; the paths of DAI begin with ``/v1``."""
CONTROL_ACCESS = ("loopback", "any", "off")
"""Which clients may use the control address."""

logger = logging.getLogger("airflow_dai_provider.emulator")


class NewIngest(BaseModel):
    """The body that starts an ingest: the parameters of ``DaiEmulator.start_ingest``; null means "not given"."""

    model_config = ConfigDict(strict=True)

    name: str | None = Field(None, min_length=1, description="a text")
    # The fields of the plan, which checks them itself.
    seconds: object = None
    outcome: object = None
    code: object = None
    cancel: object = None
    cancel_seconds: object = None
    creative_url: str | None = Field(None, min_length=1, description="a text")


class Control:
    """The control address of one emulator. It needs no token, and its use is not recorded as a request."""

    def __init__(self, emulator: "DaiEmulator", access: str) -> None:
        if access not in CONTROL_ACCESS:
            raise wrong_value("control", access, f"one of {', '.join(CONTROL_ACCESS)}")
        self._emulator = emulator
        self._access = access
        # The functions take the body and the query, and return the JSON of the response; None is an empty object.
        self._calls: dict[str, dict[str, Callable[[bytes, Mapping[str, str]], object]]] = {
            "": {"GET": self._summary},
            "/ingests": {"GET": self._ingests, "POST": self._start_ingest},
            "/creatives": {"GET": lambda *_: {"creatives": emulator.creatives()}},
            "/requests": {"GET": self._requests, "DELETE": lambda *_: emulator.forget_requests()},
            "/faults": {"GET": self._faults, "POST": self._inject, "DELETE": lambda *_: emulator.clear_faults()},
            "/tokens": {"GET": lambda *_: self._show("authentication", "tokens_issued")},
            "/tokens/revoke": {"POST": lambda *_: emulator.revoke_tokens()},
            "/keys/replace": {"POST": lambda *_: emulator.replace_key()},
            "/tokens/subject": {"GET": lambda *_: {"subject_token": emulator.issue_subject_token()}},
            "/reset": {"POST": lambda *_: emulator.reset()},
        }

    def handles(self, request: web.BaseRequest) -> bool:
        """Return whether a request is for the control address."""
        path = request.raw_path.partition("?")[0]
        return self._access != "off" and (path == CONTROL_PREFIX or path.startswith(f"{CONTROL_PREFIX}/"))

    async def handle(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        """Handle a request for which :meth:`handles` is true."""
        path, _, query = request.raw_path.partition("?")
        response = self._respond(request, path.removeprefix(CONTROL_PREFIX).rstrip("/"), query, body)
        logger.info("%s %s %s", request.method, path, response.status)
        return await send(request, response)

    def _respond(self, request: web.BaseRequest, path: str, query: str, body: bytes) -> Response:
        try:
            call = self._find_call(request, path)
            result = call(body, dict(parse_qsl(query, keep_blank_values=True)))
        except ApiError as error:
            return error_response(error)
        except (ValueError, RuntimeError) as error:
            return error_response(ApiError("INVALID_ARGUMENT", str(error)))
        return json_response({} if result is None else result)

    def _find_call(self, request: web.BaseRequest, path: str) -> Callable[[bytes, Mapping[str, str]], object]:
        peer = None if request.transport is None else request.transport.get_extra_info("peername")
        if self._access == "loopback" and not is_loopback(peer):
            expected = "expected one on this machine; control=any admits all"
            message = f"{CONTROL_PREFIX}: got a client on another machine, {expected}."
            raise ApiError("PERMISSION_DENIED", message)
        calls = self._calls.get(path)
        if calls is None:
            known = ", ".join(CONTROL_PREFIX + known for known in self._calls)
            raise ApiError("NOT_FOUND", f"path: got {CONTROL_PREFIX}{path}, expected one of {known}")
        if request.method not in calls:
            message = f"HTTP method: got {request.method}, expected {' or '.join(calls)}"
            raise ApiError("UNIMPLEMENTED", message, headers={"Allow": ", ".join(calls)}, status=405)
        return calls[request.method]

    def _summary(self, _: bytes, __: object) -> object:
        paths = {f"{CONTROL_PREFIX}{path}": list(calls) for path, calls in self._calls.items()}
        shown = self._show("endpoint", "authentication", "tokens_issued", "faults_injected", "seed")
        return {**shown, "paths": paths}

    def _show(self, *properties: str) -> dict[str, object]:
        return {name: getattr(self._emulator, name) for name in properties}

    def _ingests(self, _: bytes, __: object) -> object:
        emulator = self._emulator
        return {
            "ingests": [
                {"name": name, "state": state, "cancel_requested": emulator.cancel_requested(name)}
                for name, state in emulator.states().items()
            ]
        }

    def _start_ingest(self, body: bytes, _: object) -> object:
        given = check_object("ingest", _read_json(body), NewIngest.model_fields)
        try:
            ingest = NewIngest(**given)
        except ValidationError as error:
            raise explain(error, NewIngest.model_fields) from None
        name = self._emulator.start_ingest(**ingest.model_dump(exclude_none=True))
        return {"name": name, "state": self._emulator.state(name), "cancel_requested": 0}

    def _requests(self, _: bytes, query: Mapping[str, str]) -> object:
        recorded = self._emulator.requests
        unknown = query.keys() - {"method"}
        if unknown:
            raise wrong_value("query", min(unknown), "method, or nothing")
        method = query.get("method")
        return {"requests": [_request_json(request) for request in recorded if method in (None, request.method)]}

    def _faults(self, _: bytes, __: object) -> object:
        emulator = self._emulator
        waiting = [{**fault_json(fault), "times": left} for fault, left in emulator.faults_waiting]
        return {"waiting": waiting, "injected": emulator.faults_injected, "seed": emulator.seed}

    def _inject(self, body: bytes, _: object) -> object:
        given = _read_json(body)
        # All are read before the first is injected: of a list with a mistake, none is.
        faults = [read_fault(fault) for fault in (given if isinstance(given, list) else [given])]
        for fault in faults:
            self._emulator.inject(fault)
        return {"injected": [{**fault_json(fault), "kind": fault.kind} for fault in faults]}


def is_loopback(peer: object) -> bool:
    """Return whether a client is on this machine, by its address from the transport: (IP address, ...)."""
    try:
        address = ip_address(peer[0] if isinstance(peer, tuple) else "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _read_json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"body: got {len(body)} bytes, expected JSON ({error})") from error


def _request_json(request: RecordedRequest) -> dict[str, object]:
    """Write a recorded request, without anything that can be used as a credential."""
    headers = dict(request.headers)
    for name in ("authorization", "proxy-authorization", "cookie"):
        if name in headers:
            scheme, space, _ = headers[name].partition(" ")
            headers[name] = f"{scheme} ..." if space else "..."
    # A request for a token holds one itself, or a signature that is as good.
    body = None if request.method in TOKEN_METHODS else request.body.decode("utf-8", "replace")
    shown = {name: value for name, value in vars(request).items() if name not in ("raw_path", "fault")}
    return {**shown, "path": request.raw_path, "headers": headers, "body": body}
