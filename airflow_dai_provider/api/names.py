"""The names of operations and creatives that the service accepts. Pure.

A bad name is refused before a request is made, so it can neither leave ``/v1/operations/`` nor reach another host.
Source: https://developers.google.com/video-creative-ingest/reference/rest/v1/operations/get
"""

from __future__ import annotations

from collections.abc import Mapping

from airflow_dai_provider.api.redaction import short_repr

_FORBIDDEN = frozenset("?#\\ ")


class InvalidNameError(ValueError):
    """The value is not the name of an operation (or of a creative)."""


def check_operation_name(name: object) -> str:
    """Return the name of an operation when it is valid.

    :param name: the value of a user, a template or an XCom.
    :return: the same, when it is ``operations/`` followed by one or more segments.
    :raises InvalidNameError: otherwise; the message says what was given and what was expected.
    """
    return _check_name(name, "operation", "operations", multi_segment=True)


def check_creative_name(name: object) -> str:
    """Return the name of a creative when it is valid.

    :param name: ``creatives/`` followed by one segment.
    :raises InvalidNameError: when it is something else.
    """
    return _check_name(name, "creative", "creatives", multi_segment=False)


def is_operation_name(name: object) -> bool:
    """Return whether a value is the valid name of an operation."""
    try:
        check_operation_name(name)
    except InvalidNameError:
        return False
    return True


def is_missing_name(name: object) -> bool:
    """Return whether a value is the result of a template whose upstream task has pushed no name."""
    return name is None or (isinstance(name, str) and name.strip() in ("", "None"))


def missing_hint(what: str) -> str:
    """Return a sentence, after a space, on the template that has probably rendered to nothing.

    :param what: what the upstream task should have pushed.
    """
    return f" Most likely the upstream task has pushed no {what}: has it run, and does it return or push one?"


def _check_name(name: object, kind: str, collection: str, *, multi_segment: bool) -> str:
    if isinstance(name, str) and _is_name(name, collection, multi_segment=multi_segment):
        return name
    expected = (
        f"expected a string '{collection}/' followed by {'one or more segments' if multi_segment else 'one segment'}"
        r" (none of them empty, '.' or '..'; no whitespace, control character, '?', '#', '\' or scheme)"
    )
    raise InvalidNameError(f"Invalid {kind} name {short_repr(name)}: {expected}.{_hint(name, kind)}")


def _is_name(name: str, collection: str, *, multi_segment: bool) -> bool:
    head, *segments = name.split("/")
    return (
        head == collection
        and (bool(segments) if multi_segment else len(segments) == 1)
        and not any(segment in ("", ".", "..") for segment in segments)
        and name.isprintable()
        and not _FORBIDDEN & set(name)
    )


def _hint(name: object, kind: str) -> str:
    if is_missing_name(name):
        unmade = " An ingest that has not succeeded has no creative: leave it out." if kind == "creative" else ""
        return f"{missing_hint('name')}{unmade}"
    if isinstance(name, Mapping) and "name" in name:
        return f" An operation's dict was given: pass its '{'creative_name' if kind == 'creative' else 'name'}'."
    if isinstance(name, list | tuple):
        return " One name is expected here; the operators, the sensor and the trigger take a list too."
    if isinstance(name, str) and name.startswith(("LazyXComSequence(", "LazySelectSequence(")):
        return " The output of a mapped task was rendered to a text: pass task.output, or add '| list' to the template."
    collection = f"{kind}s"
    meant = _meant(name, collection) if isinstance(name, str) else ""
    return f" Did you mean {meant!r}?" if _is_name(meant, collection, multi_segment=kind == "operation") else ""


def _meant(name: str, collection: str) -> str:
    """Return the name at the end of a URL, or of an id; else a text that is no name."""
    text = name.strip()
    _, found, segments = f"/{text}".partition(f"/{collection}/")
    if found:
        return f"{collection}/{segments}"
    return f"{collection}/{text}" if text != collection and "/" not in text else ""
