"""The JSON of the control address."""

import json
from collections.abc import Callable

from airflow_dai_provider.emulator.errors import wrong_value
from airflow_dai_provider.emulator.readers import read_number, read_text, read_whole
from airflow_dai_provider.emulator.records import RecordedRequest
from airflow_dai_provider.emulator.routes import TOKEN_METHODS

_INGEST: dict[str, Callable[[str, object], object]] = {
    "name": read_text,
    "seconds": read_number,
    "outcome": read_text,
    "code": read_whole,
    "cancel": read_text,
    "cancel_seconds": read_number,
    "creative_url": read_text,
}


def read_json(body: bytes) -> object:
    """Read the body of a request.

    :param body: the body.
    :raises ValueError: if it is no JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"body: got {len(body)} bytes, expected JSON ({error})") from error


def read_ingest(value: object) -> dict[str, object]:
    """Read what an ingest to start shall be like.

    :param value: an object with the parameters of ``DaiEmulator.start_ingest``; null is one not given.
    :return: the parameters.
    :raises ValueError: saying what was given and what was expected.
    """
    if not isinstance(value, dict):
        raise wrong_value("ingest", value, "an object with the parameters of an ingest")
    unknown = [name for name in value if name not in _INGEST]
    if unknown:
        raise wrong_value("ingest", unknown[0], f"some of the fields {', '.join(_INGEST)}")
    return {name: _INGEST[name](name, item) for name, item in value.items() if item is not None}


def request_json(request: RecordedRequest) -> dict[str, object]:
    """Write a recorded request, without what could be used as a credential.

    :param request: the request.
    """
    headers = dict(request.headers)
    for name in ("authorization", "proxy-authorization", "cookie"):
        if name in headers:
            scheme, space, _ = headers[name].partition(" ")
            headers[name] = f"{scheme} ..." if space else "..."
    # What asks for a token holds one itself, or a signature that is as good.
    body = None if request.method in TOKEN_METHODS else request.body.decode("utf-8", "replace")
    return {
        "time": request.time,
        "method": request.method,
        "http_method": request.http_method,
        "path": request.raw_path,
        "name": request.name,
        "query": dict(request.query),
        "headers": headers,
        "body": body,
        "connection": request.connection,
        "status": request.status,
        "account": request.account,
    }
