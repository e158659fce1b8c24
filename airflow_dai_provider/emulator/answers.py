"""What the service answers: JSON, JSON errors, and the HTML pages of Google's front end."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from airflow_dai_provider.emulator.errors import HTTP_STATUSES

JSON_TYPE = "application/json; charset=UTF-8"
HTML_TYPE = "text/html; charset=UTF-8"


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, not sent yet."""

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)


def reason_phrase(status: int) -> str:
    """Return the reason phrase of an HTTP status, or an empty one for a status that has none.

    :param status: the HTTP status.
    """
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer with a JSON body.

    :param value: what ``json`` can write.
    :param status: HTTP status.
    :param headers: headers beside the content type.
    :return: the answer, indented as Google's servers do.
    """
    return Answer(status, _to_json(value), headers=headers or {})


def error_answer(
    rpc_status: str,
    message: str,
    status: int | None = None,
    *,
    details: Sequence[Mapping[str, object]] = (),
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Answer an error as Google's APIs do.

    :param rpc_status: name of the rpc code.
    :param message: what a developer reads.
    :param status: HTTP status, where it is not the one that belongs to the rpc code.
    :param details: the objects of ``error.details``, which is absent without any.
    :param headers: headers beside the content type.
    :return: the answer; its body is ``{"error": {"code": <HTTP status>, "message": ..., "status": ...}}``.
    """
    status = status or HTTP_STATUSES[rpc_status]
    error: dict[str, object] = {"code": status, "message": message, "status": rpc_status}
    if details:
        error["details"] = list(details)
    return json_answer({"error": error}, status, headers)


def html_answer(status: int, explanation: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer as Google's front end does when a request never reached an API.

    :param status: HTTP status.
    :param explanation: one sentence, plain text.
    :param headers: headers beside the content type.
    :return: the answer, an HTML page.
    """
    page = (
        "<!DOCTYPE html>\n<html lang=en>\n"
        f"  <meta charset=utf-8>\n  <title>Error {status} ({reason_phrase(status)})!!1</title>\n"
        f"  <p><b>{status}.</b> <ins>That’s an error.</ins>\n"
        f"  <p>{html.escape(explanation)}  <ins>That’s all we know.</ins>\n"
    )
    return Answer(status, page.encode("utf-8", "replace"), HTML_TYPE, headers or {})


def _to_json(value: object) -> bytes:
    # ASCII only: a creative may hold lone surrogates, which UTF-8 cannot carry but JSON's escapes can.
    return (json.dumps(value, indent=2) + "\n").encode("ascii")
