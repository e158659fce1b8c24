"""Check a creative against the rules of the service before anything is sent. Pure.

Source: https://developers.google.com/video-creative-ingest/reference/rest/v1/creatives
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_dai_provider.api.names import is_missing_name
from airflow_dai_provider.api.parameters import template_hint
from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.api.storable import is_storable_number, is_storable_text

DELIVERIES = ("DELIVERY_PROGRESSIVE", "DELIVERY_STREAMING")
#: The longest ``activeDuration`` of a dynamic creative, in seconds: 180 days.
MAX_ACTIVE_SECONDS = 180 * 24 * 3600

#: The most levels of objects and lists, of which the service's own fields take four.
MAX_LEVELS = 30
#: The most problems that a message names.
MAX_NAMED = 20

_FREE_TEXTS = ("advertiser", "adTitle", "adDescription")
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
    _refuse([*_creative_problems(creative), *_dynamic_problems(creative, dynamic_creative_info)])
    check_sendable(creative, dynamic_creative_info)


def check_sendable(creative: object, dynamic_creative_info: object = None) -> None:
    """Check that a creative is JSON that every server can read and return.

    :raises InvalidCreativeError: with the path of each invalid value, what was given and what was expected.
    """
    _refuse([*_unsendable(creative, ""), *_unsendable(dynamic_creative_info, "dynamic_creative_info")])


def media_urls(creative: Mapping[str, Any]) -> frozenset[str]:
    """Return the URLs of a checked creative's media files, of which the service ingests one."""
    return frozenset(file["uri"] for field in _MEDIA_FIELDS for file in creative.get(field) or ())


def creative_digest(creative: Mapping[str, Any], dynamic_creative_info: Mapping[str, Any] | None) -> str:
    """Return a digest that is equal for equal submissions only."""
    submitted = json.dumps([creative, dynamic_creative_info], sort_keys=True)
    return hashlib.sha256(submitted.encode()).hexdigest()


def _refuse(problems: list[str]) -> None:
    if problems:
        more = [f"and {len(problems) - MAX_NAMED} more"] if len(problems) > MAX_NAMED else []
        raise InvalidCreativeError(f"Invalid creative: {'; '.join([*problems[:MAX_NAMED], *more])}.")


def _unsendable(value: object, path: str, levels: int = MAX_LEVELS) -> Iterator[str]:
    expected = ""
    if isinstance(value, str):
        if not is_storable_text(value):
            expected = "text without NUL and without lone surrogates"
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int | float):
        if not is_storable_number(value):
            expected = "a finite number of at most 64 bits"
    elif not isinstance(value, Mapping | list | tuple):
        expected = "JSON"
    elif not levels:
        expected = f"at most {MAX_LEVELS} levels"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not is_storable_text(key):
                yield f"{path or 'the creative'}: expected names that are text, got {short_repr(key)}"
            else:
                yield from _unsendable(item, f"{path}.{key}" if path else key, levels - 1)
    else:
        for index, item in enumerate(value):
            yield from _unsendable(item, f"{path}[{index}]", levels - 1)
    if expected:
        yield f"{path or 'the creative'}: expected {expected}, got {short_repr(value)}"


def _creative_problems(creative: object) -> Iterator[str]:
    if not isinstance(creative, Mapping):
        yield f"expected a JSON object (a dict), got {short_repr(creative)}{_object_hint(creative)}"
        return
    yield from _text_problems(creative, "", "adSystem")
    for name in _FREE_TEXTS:
        if not isinstance(creative.get(name), str | None):
            yield _wrong_text(name, creative[name])
    if creative.get("networkCode") is not None:
        yield from _text_problems(creative, "", "networkCode")
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
        yield f"{path}.delivery: expected {' or '.join(DELIVERIES)}, got {short_repr(delivery)}{_hint(delivery)}"


def _dynamic_problems(creative: object, info: object) -> Iterator[str]:
    if info is None:
        return
    if not isinstance(info, Mapping):
        given = f"{short_repr(info)}{_object_hint(info)}"
        yield f"dynamic_creative_info: expected a JSON object (a dict) or None, got {given}"
        return
    if isinstance(creative, Mapping) and creative.get("networkCode") is None:
        yield from _text_problems(creative, "", "networkCode", why=", which a dynamic creative needs")
    if info.get("dynamicGroupId") is not None:
        yield from _text_problems(info, "dynamic_creative_info.", "dynamicGroupId")
    duration = info.get("activeDuration")
    if duration is None:
        return
    match = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if match is None:
        yield f"activeDuration: expected seconds such as '3.5s', got {short_repr(duration)}{_hint(duration)}"
    elif not 0 < float(match[1]) <= MAX_ACTIVE_SECONDS:
        yield f"activeDuration: expected more than 0 s and at most 180 days ('{MAX_ACTIVE_SECONDS}s'), got {duration!r}"


def _text_problems(parent: Mapping[str, Any], path: str, field: str, why: str = "") -> Iterator[str]:
    value = parent.get(field)
    if not isinstance(value, str) or is_missing_name(value):
        yield _wrong_text(path + field, value, why)


def _wrong_text(path: str, value: object, why: str = "") -> str:
    return f"{path}: expected a string{why}, got {short_repr(value)}{'' if value is None else _hint(value)}"


def _hint(value: object) -> str:
    """Return the hint at the template of a value, as the end of a clause."""
    hint = template_hint(value).strip().rstrip(".")
    return f" ({hint[0].lower()}{hint[1:]})" if hint else ""


def _object_hint(value: object) -> str:
    if isinstance(value, str) and not is_missing_name(value):
        return "; a template renders to a string unless the DAG has render_template_as_native_obj=True"
    return _hint(value)
