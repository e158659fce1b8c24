"""What the service demands of a creative, checked before anything is sent. Pure.

Source: https://developers.google.com/video-creative-ingest/reference/rest/v1/creatives
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_dai_provider.api.redaction import short_repr

DELIVERIES = ("DELIVERY_PROGRESSIVE", "DELIVERY_STREAMING")
#: The longest ``activeDuration`` of a dynamic creative, in seconds: 180 days.
MAX_ACTIVE_SECONDS = 180 * 24 * 3600

_MEDIA_FIELDS = ("mezzanines", "mediaFiles")
_DURATION = re.compile(r"(\d+(?:\.\d{1,9})?)s", re.ASCII)


class InvalidCreativeError(ValueError):
    """The service would refuse the creative; the message names every invalid field."""


def check_creative(creative: object, dynamic_creative_info: object = None) -> None:
    """Check a creative before it is submitted; fields that are not known here pass.

    :param creative: ``{"adSystem": str, "mediaFiles": [{"uri": str, "delivery": str, "mimeType": str}], ...}``, with
        ``mezzanines`` beside or instead of ``mediaFiles``; a dynamic one also has ``"networkCode"``.
    :param dynamic_creative_info: ``{"dynamicGroupId": str, "activeDuration": "3.5s"}``, or None.
    :raises InvalidCreativeError: with what was given and what was expected.
    """
    problems = [*_creative_problems(creative), *_dynamic_problems(creative, dynamic_creative_info)]
    if not problems:
        try:
            json.dumps([creative, dynamic_creative_info], allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            problems.append(f"expected JSON: {error}")
    if problems:
        raise InvalidCreativeError(f"Invalid creative: {'; '.join(problems)}.")


def media_urls(creative: Mapping[str, Any]) -> frozenset[str]:
    """Return the URLs of a checked creative's media files, of which the service ingests one."""
    return frozenset(file["uri"] for field in _MEDIA_FIELDS for file in creative.get(field) or ())


def creative_digest(creative: Mapping[str, Any], dynamic_creative_info: Mapping[str, Any] | None) -> str:
    """Return a digest that is equal for equal submissions only."""
    submitted = json.dumps([creative, dynamic_creative_info], sort_keys=True)
    return hashlib.sha256(submitted.encode()).hexdigest()


def _creative_problems(creative: object) -> Iterator[str]:
    if not isinstance(creative, Mapping):
        hint = ""
        if isinstance(creative, str):
            hint = "; a template renders to a string unless the DAG has render_template_as_native_obj=True"
        yield f"expected a JSON object (a dict), got {short_repr(creative)}{hint}"
        return
    yield from _text_problems(creative, "", "adSystem")
    files = [(field, creative.get(field)) for field in _MEDIA_FIELDS]
    if not any(value for _, value in files):
        yield "expected at least one entry in mediaFiles or mezzanines, got none"
    for field, value in files:
        if value is not None and not isinstance(value, list | tuple):
            yield f"{field}: expected a list of media files, got {short_repr(value)}"
            continue
        for index, file in enumerate(value or ()):
            yield from _media_problems(file, f"{field}[{index}]")


def _media_problems(file: object, path: str) -> Iterator[str]:
    if not isinstance(file, Mapping):
        yield f"{path}: expected an object with uri, delivery and mimeType, got {short_repr(file)}"
        return
    yield from _text_problems(file, f"{path}.", "uri")
    yield from _text_problems(file, f"{path}.", "mimeType")
    delivery = file.get("delivery")
    if delivery not in DELIVERIES:
        yield f"{path}.delivery: expected {' or '.join(DELIVERIES)}, got {short_repr(delivery)}"


def _dynamic_problems(creative: object, info: object) -> Iterator[str]:
    if info is None:
        return
    if not isinstance(info, Mapping):
        yield f"dynamic_creative_info: expected a JSON object (a dict) or None, got {short_repr(info)}"
        return
    if isinstance(creative, Mapping):
        yield from _text_problems(creative, "", "networkCode", why=", which a dynamic creative needs")
    duration = info.get("activeDuration")
    if duration is None:
        return
    match = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if match is None:
        yield f"activeDuration: expected seconds such as '3.5s', got {short_repr(duration)}"
    elif not 0 < float(match[1]) <= MAX_ACTIVE_SECONDS:
        yield f"activeDuration: expected more than 0 s and at most 180 days ('{MAX_ACTIVE_SECONDS}s'), got {duration!r}"


def _text_problems(parent: Mapping[str, Any], path: str, field: str, why: str = "") -> Iterator[str]:
    value = parent.get(field)
    if not isinstance(value, str) or not value.strip():
        yield f"{path}{field}: expected a string{why}, got {short_repr(value)}"
