"""The request body of ``creatives.create``: what the service demands of it."""

import re
from collections.abc import Iterator

from airflow_dai_provider.emulator.errors import ApiError

_DELIVERIES = ("DELIVERY_PROGRESSIVE", "DELIVERY_STREAMING")
_DURATION = re.compile(r"(\d+(?:\.\d{1,9})?)s", re.ASCII)
_LONGEST_ACTIVE_SECONDS = 180 * 24 * 3600


def read_creative(body: object) -> tuple[dict[str, object], str]:
    """Check the body of ``creatives.create`` and choose the media file to ingest.

    MIME types outside the documented list are accepted: the service only says that it can reject them.

    :param body: the parsed JSON.
    :return: the creative as submitted, and the URL of its first mezzanine, else of its first media file.
    :raises ApiError: INVALID_ARGUMENT, naming the field.
    """
    if not isinstance(body, dict):
        raise _invalid("", "must be a JSON object")
    creative = body.get("creative")
    if not isinstance(creative, dict):
        raise _invalid("creative", "is required and must be an object")
    _require_text(creative, "creative", "adSystem")
    urls = [*_media_urls(creative, "mezzanines"), *_media_urls(creative, "mediaFiles")]
    if not urls:
        raise _invalid("creative", "needs at least one entry in mezzanines or mediaFiles")
    if body.get("dynamicCreativeInfo") is not None:
        _check_dynamic(creative, body["dynamicCreativeInfo"])
    return creative, urls[0]


def _media_urls(creative: dict[str, object], field: str) -> Iterator[str]:
    files = creative.get(field)
    if files is None:
        return
    if not isinstance(files, list):
        raise _invalid(f"creative.{field}", "must be a list")
    for index, file in enumerate(files):
        yield _media_url(file, f"creative.{field}[{index}]")


def _media_url(file: object, path: str) -> str:
    if not isinstance(file, dict):
        raise _invalid(path, "must be an object")
    if file.get("delivery") not in _DELIVERIES:
        raise _invalid(f"{path}.delivery", f"is required and must be one of {', '.join(_DELIVERIES)}")
    _require_text(file, path, "mimeType")
    return _require_text(file, path, "uri")


def _check_dynamic(creative: dict[str, object], info: object) -> None:
    if not isinstance(info, dict):
        raise _invalid("dynamicCreativeInfo", "must be an object")
    if not creative.get("networkCode"):
        raise _invalid("creative.networkCode", "is required for a dynamic creative")
    duration = info.get("activeDuration")
    if duration is None:
        return
    match = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if match is None:
        raise _invalid("dynamicCreativeInfo.activeDuration", 'must be seconds with the suffix s, such as "3.5s"')
    if float(match[1]) > _LONGEST_ACTIVE_SECONDS:
        raise _invalid("dynamicCreativeInfo.activeDuration", "must not exceed 180 days")


def _require_text(parent: dict[str, object], path: str, field: str) -> str:
    value = parent.get(field)
    if not isinstance(value, str) or not value:
        raise _invalid(f"{path}.{field}", "is required and must be a string")
    return value


def _invalid(path: str, problem: str) -> ApiError:
    return ApiError("INVALID_ARGUMENT", f"Invalid value at '{path or 'body'}': {problem}.")
