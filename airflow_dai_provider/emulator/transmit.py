"""Sending an answer, whole or as a fault says."""

import asyncio
import math
import socket
import struct

from aiohttp import web

from airflow_dai_provider.emulator.answers import Answer, reason_phrase
from airflow_dai_provider.emulator.faults import Fault

# Sooner than a stop of the server gives up waiting.
_LOOK_SECONDS = 0.02
_CHUNK = b" " * 65536


async def pause(request: web.BaseRequest, seconds: float) -> None:
    """Wait, for ever only as long as the client does.

    :param request: the client's request.
    :param seconds: how long.
    """
    if seconds < math.inf:
        await asyncio.sleep(seconds)
    else:
        while request.transport is not None:
            await asyncio.sleep(_LOOK_SECONDS)


async def send(request: web.BaseRequest, answer: Answer, fault: Fault | None) -> web.StreamResponse:
    """Send an answer.

    :param request: the request.
    :param answer: its answer.
    :param fault: what goes wrong on the way.
    :return: the response for aiohttp, which goes nowhere where the fault has closed the connection.
    """
    headers = {"Content-Type": answer.content_type, **answer.headers}
    if fault is not None and fault.truncate is not None:
        return await _send_cut(request, answer, headers, fault)
    if fault is not None and (fault.padding or fault.body_delay) and request.method != "HEAD":
        return await _send_piecemeal(request, answer, headers, fault)
    return web.Response(status=answer.status, body=answer.body, headers=headers)


def hang_up(request: web.BaseRequest, last_bytes: bytes = b"", *, reset: bool) -> web.StreamResponse:
    """Close a connection.

    :param request: the request that came on it.
    :param last_bytes: what is still sent.
    :param reset: whether to reset it (RST), which a client sees as an error, not as an end.
    :return: the response for aiohttp, which takes the failure to send it for a client that has gone.
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


async def _send_cut(
    request: web.BaseRequest, answer: Answer, headers: dict[str, str], fault: Fault
) -> web.StreamResponse:
    # Past aiohttp, which would not send less than it has announced.
    headers["Content-Length"] = str(len(answer.body) + fault.padding)
    lines = [f"HTTP/1.1 {answer.status} {reason_phrase(answer.status)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    limit = fault.truncate or 0
    sent = answer.body[:limit] + b" " * min(fault.padding, max(0, limit - len(answer.body)))
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    if fault.body_delay and request.transport is not None:
        request.transport.write(head + sent)
        head = sent = b""
        await pause(request, fault.body_delay)
    return hang_up(request, head + sent, reset=fault.reset)


async def _send_piecemeal(
    request: web.BaseRequest, answer: Answer, headers: dict[str, str], fault: Fault
) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.content_length = len(answer.body) + fault.padding
    half = (len(answer.body) + 1) // 2
    try:
        await response.prepare(request)
        await response.write(answer.body[:half])
        await pause(request, fault.body_delay)
        await response.write(answer.body[half:])
        for start in range(0, fault.padding, len(_CHUNK)):
            await response.write(_CHUNK[: fault.padding - start])
        await response.write_eof()
    except ConnectionError:
        pass  # the client has gone, or had enough
    return response
