"""The control address: over HTTP what :class:`DaiEmulator` offers from code, for those in another process."""

import logging
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from aiohttp import web

from airflow_dai_provider.emulator.answers import Answer, error_answer, json_answer
from airflow_dai_provider.emulator.control_json import read_ingest, read_json, request_json
from airflow_dai_provider.emulator.errors import wrong_value
from airflow_dai_provider.emulator.fault_reader import fault_json, read_fault
from airflow_dai_provider.emulator.transmit import send

if TYPE_CHECKING:
    from airflow_dai_provider.emulator.server import DaiEmulator

CONTROL_PREFIX = "/emulator/v1"
"""Where the control address begins; the paths of DAI begin with ``/v1``."""
CONTROL_ACCESS = ("loopback", "any", "off")
"""Who may use the control address."""

logger = logging.getLogger("airflow_dai_provider.emulator")


class Control:
    """The control address of one emulator. It needs no token, and its use is not recorded as a request.

    :param emulator: the emulator.
    :param access: who may use it, of :data:`CONTROL_ACCESS`.
    :raises ValueError: for another access.
    """

    def __init__(self, emulator: "DaiEmulator", access: str) -> None:
        """Lay out the paths."""
        if access not in CONTROL_ACCESS:
            raise wrong_value("control", access, f"one of {', '.join(CONTROL_ACCESS)}")
        self._emulator = emulator
        self._access = access
        self._calls: dict[str, dict[str, Callable[[bytes, Mapping[str, str]], object]]] = {
            "": {"GET": self._summary},
            "/ingests": {"GET": self._ingests, "POST": self._start_ingest},
            "/requests": {"GET": self._requests, "DELETE": self._forget_requests},
            "/faults": {"GET": self._faults, "POST": self._inject, "DELETE": self._clear_faults},
            "/tokens": {"GET": self._tokens},
            "/tokens/revoke": {"POST": self._revoke_tokens},
            "/tokens/subject": {"GET": self._subject_token},
            "/reset": {"POST": self._reset},
        }

    def is_meant_by(self, request: web.BaseRequest) -> bool:
        """Whether a request is for the control address.

        :param request: the request.
        """
        path = request.raw_path.partition("?")[0]
        return self._access != "off" and (path == CONTROL_PREFIX or path.startswith(f"{CONTROL_PREFIX}/"))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request for which :meth:`is_meant_by` holds.

        :param request: the request.
        """
        try:
            body = await request.content.read()
        except ConnectionError:
            return web.Response(status=400)  # the client has gone in the middle of its request
        path, _, query = request.raw_path.partition("?")
        answer = self._answer(request, path.removeprefix(CONTROL_PREFIX).rstrip("/"), query, body)
        logger.info("%s %s %s", request.method, path, answer.status)
        return await send(request, answer, None)

    def _answer(self, request: web.BaseRequest, path: str, query: str, body: bytes) -> Answer:
        peer = None if request.transport is None else request.transport.get_extra_info("peername")
        if self._access == "loopback" and not is_loopback(peer):
            message = f"{CONTROL_PREFIX}: got a client on another machine, expected one on this; control=any admits it."
            return error_answer("PERMISSION_DENIED", message)
        calls = self._calls.get(path)
        if calls is None:
            known = ", ".join(CONTROL_PREFIX + known for known in self._calls)
            return error_answer("NOT_FOUND", f"path: got {CONTROL_PREFIX}{path}, expected one of {known}")
        call = calls.get(request.method)
        if call is None:
            message = f"HTTP method: got {request.method}, expected {' or '.join(calls)}"
            return error_answer("UNIMPLEMENTED", message, 405, headers={"Allow": ", ".join(calls)})
        try:
            return json_answer(call(body, dict(parse_qsl(query, keep_blank_values=True))))
        except (ValueError, RuntimeError) as error:
            return error_answer("INVALID_ARGUMENT", str(error))

    def _summary(self, _: bytes, __: object) -> object:
        emulator = self._emulator
        paths = {f"{CONTROL_PREFIX}{path}": list(calls) for path, calls in self._calls.items()}
        return {
            "endpoint": emulator.endpoint,
            "authentication": emulator.authentication,
            "tokens_issued": emulator.tokens_issued,
            "faults_injected": emulator.faults_injected,
            "seed": emulator.seed,
            "paths": paths,
        }

    def _ingests(self, _: bytes, __: object) -> object:
        emulator = self._emulator
        return {
            "ingests": [
                {"name": name, "state": state, "cancel_requested": emulator.cancel_requested(name)}
                for name, state in emulator.states().items()
            ]
        }

    def _start_ingest(self, body: bytes, _: object) -> object:
        name = self._emulator.start_ingest(**read_ingest(read_json(body)))  # type: ignore[arg-type]
        return {"name": name, "state": self._emulator.state(name), "cancel_requested": 0}

    def _requests(self, _: bytes, query: Mapping[str, str]) -> object:
        recorded = self._emulator.requests
        unknown = query.keys() - {"method"}
        if unknown:
            raise wrong_value("query", min(unknown), "method, or nothing")
        method = query.get("method")
        return {"requests": [request_json(request) for request in recorded if method in (None, request.method)]}

    def _forget_requests(self, _: bytes, __: object) -> object:
        self._emulator.forget_requests()
        return {}

    def _faults(self, _: bytes, __: object) -> object:
        emulator = self._emulator
        waiting = [{**fault_json(fault), "times": left} for fault, left in emulator.faults_waiting]
        return {"waiting": waiting, "injected": emulator.faults_injected, "seed": emulator.seed}

    def _inject(self, body: bytes, _: object) -> object:
        given = read_json(body)
        # All are read before the first is injected: of a list with a mistake, none is.
        faults = [read_fault(fault) for fault in (given if isinstance(given, list) else [given])]
        for fault in faults:
            self._emulator.inject(fault)
        return {"injected": [{**fault_json(fault), "kind": fault.kind} for fault in faults]}

    def _clear_faults(self, _: bytes, __: object) -> object:
        self._emulator.clear_faults()
        return {}

    def _tokens(self, _: bytes, __: object) -> object:
        return {"authentication": self._emulator.authentication, "tokens_issued": self._emulator.tokens_issued}

    def _revoke_tokens(self, _: bytes, __: object) -> object:
        self._emulator.revoke_tokens()
        return {}

    def _subject_token(self, _: bytes, __: object) -> object:
        return {"subject_token": self._emulator.issue_subject_token()}

    def _reset(self, _: bytes, __: object) -> object:
        self._emulator.reset()
        return {}


def is_loopback(peer: object) -> bool:
    """Whether a client is on this machine.

    :param peer: its address as the transport has it: a tuple, its first item the IP address.
    """
    try:
        address = ip_address(peer[0] if isinstance(peer, tuple) else "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
