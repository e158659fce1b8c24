"""The emulator's responses: JSON, JSON errors, Google's HTML pages; sent whole, or as a fault says."""

import asyncio
import html
import json
import math
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from airflow_dai_provider.emulator.errors import ApiError

if TYPE_CHECKING:
    from airflow_dai_provider.emulator.faults import Fault

# Shorter than a stop of the server waits for requests under way.
_CHECK_SECONDS = 0.02
_CHUNK = b" " * 65536


@dataclass(frozen=True)
class Response:
    """An HTTP response that has not been sent yet."""

    status: int
    body: bytes
    content_type: str = "application/json; charset=UTF-8"
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers with the content type."""
        return {"Content-Type": self.content_type, **self.headers}


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Build a response with a JSON body, indented as Google's servers do."""
    # ASCII only: a creative may hold lone surrogates, which UTF-8 cannot carry but JSON's escapes can.
    return Response(status, (json.dumps(value, indent=2) + "\n").encode("ascii"), headers=headers or {})


def error_response(error: ApiError) -> Response:
    """Build an error of Google's APIs: ``{"error": {"code": <HTTP status>, "message": ..., "status": ...}}``."""
    content: dict[str, object] = {"code": error.status, "message": error.message, "status": error.rpc_status}
    if error.reason is not None:
        content["errors"] = [{"message": error.message, "domain": "global", "reason": error.reason}]
    if error.details:
        content["details"] = list(error.details)
    return json_response({"error": content}, error.status, error.headers)


def html_response(status: int, explanation: str, headers: Mapping[str, str] | None = None) -> Response:
    """Build the page of Google's front end for a request that never reached an API."""
    page = (
        "<!DOCTYPE html>\n<html lang=en>\n"
        f"  <meta charset=utf-8>\n  <title>Error {status} ({_reason_phrase(status)})!!1</title>\n"
        f"  <p><b>{status}.</b> <ins>That’s an error.</ins>\n"
        f"  <p>{html.escape(explanation)}  <ins>That’s all we know.</ins>\n"
    )
    return Response(status, page.encode("utf-8", "replace"), "text/html; charset=UTF-8", headers or {})


async def pause(request: web.BaseRequest, seconds: float) -> None:
    """Wait; an infinite wait lasts until the client disconnects."""
    if seconds < math.inf:
        await asyncio.sleep(seconds)
    else:
        while request.transport is not None:
            await asyncio.sleep(_CHECK_SECONDS)


def merged_body(body: bytes, fields: Mapping[str, object]) -> bytes:
    """Return the body of a response with these fields in its JSON object; a body of another kind stays as it is."""
    try:
        given = json.loads(body)
    except ValueError:
        return body
    return json.dumps(_merged(given, fields)).encode() if isinstance(given, dict) else body


def _merged(given: object, fields: object) -> object:
    if not (isinstance(given, dict) and isinstance(fields, Mapping)):
        return fields
    return {**given, **{name: _merged(given.get(name), value) for name, value in fields.items()}}


async def send(request: web.BaseRequest, response: Response, fault: "Fault | None" = None) -> web.StreamResponse:
    """Send a response, changed on its way by a fault.

    :return: the response for aiohttp, which goes nowhere where the fault has closed the connection.
    """
    if fault is not None and fault.truncate is not None:
        return await _send_cut(request, response, fault)
    if fault is not None and (fault.padding or fault.body_delay) and request.method != "HEAD":
        return await _send_in_pieces(request, response, fault)
    return web.Response(status=response.status, body=response.body, headers=response.all_headers)


def hang_up(request: web.BaseRequest, last_bytes: bytes = b"", *, reset: bool) -> web.StreamResponse:
    """Close the connection of a request.

    :param last_bytes: bytes that are still sent.
    :param reset: reset it (RST), which a client sees as an error instead of an end.
    :return: a response for aiohttp, which treats the failure to send it as a client that has disconnected.
    """
    transport = request.transport
    if transport is not None:
        transport.write(last_bytes)
        if reset:
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()
    return web.Response()


async def _send_cut(request: web.BaseRequest, response: Response, fault: "Fault") -> web.StreamResponse:
    # Not through aiohttp, which would not send less than it has announced.
    headers = {**response.all_headers, "Content-Length": str(len(response.body) + fault.padding)}
    lines = [f"HTTP/1.1 {response.status} {_reason_phrase(response.status)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    limit = fault.truncate or 0
    sent = response.body[:limit] + b" " * min(fault.padding, max(0, limit - len(response.body)))
    content = "\r\n".join([*lines, "", ""]).encode("latin-1") + sent
    if fault.body_delay and request.transport is not None:
        request.transport.write(content)
        content = b""
        await pause(request, fault.body_delay)
    return hang_up(request, content, reset=fault.reset)


async def _send_in_pieces(request: web.BaseRequest, response: Response, fault: "Fault") -> web.StreamResponse:
    stream = web.StreamResponse(status=response.status, headers=response.all_headers)
    stream.content_length = len(response.body) + fault.padding
    half = (len(response.body) + 1) // 2
    try:
        await stream.prepare(request)
        await stream.write(response.body[:half])
        await pause(request, fault.body_delay)
        await stream.write(response.body[half:])
        for start in range(0, fault.padding, len(_CHUNK)):
            await stream.write(_CHUNK[: fault.padding - start])
        await stream.write_eof()
    except ConnectionError:
        pass  # the client has disconnected
    return stream


def _reason_phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
