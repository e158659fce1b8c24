"""JSON values that Airflow can store and carry between its processes. Pure.

What the service sends reaches XComs, trigger events, reports and messages. There PostgreSQL takes no NUL; no encoding
takes a lone surrogate; no JSON column takes NaN or an infinite number; MySQL takes 100 levels of nesting, of which
Airflow's own encoding uses half; the wire between Airflow's processes takes integers of 64 bits, and PostgreSQL gives a
large float back as an integer; and Airflow reads some keys of a dict as its own marks of a class.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_dai_provider.api.redaction import short_repr

#: Deeper JSON is not read at all. Google's own servers read 100 levels of messages.
MAX_LEVELS = 250
#: What lies deeper is stored as the text of its JSON.
STORED_LEVELS = 30
#: The most characters of JSON that one field of an operation may bring, and of a key.
MAX_CHARACTERS = 65_536
MAX_KEY = 1_000
#: The most characters of an error message.
MAX_MESSAGE = 4_000
#: The key beside the fields that were kept of an object with too many characters.
LEFT_OUT = "(left out)"

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_NOTE = 1_000


def storable_text(text: str, most: int | None = None) -> str:
    """Return a text in which each NUL and each lone surrogate is replaced by U+FFFD.

    :param most: the most characters; a longer text is cut, and says so.
    """
    if most is not None and len(text) > most:
        mark = f"... (cut: {len(text)} characters)"
        text = text[: most - len(mark)] + mark
    return _UNSTORABLE.sub("\ufffd", text)


def is_storable_text(text: str) -> bool:
    """Return whether a text has neither NUL nor a lone surrogate."""
    return _UNSTORABLE.search(text) is None


def is_storable_number(number: float) -> bool:
    """Return whether a number fits into 64 bits, and so is finite too."""
    return -(2**63) <= number < 2**63


def storable(value: Any, levels: int = STORED_LEVELS) -> Any:
    """Return a JSON value whose texts, numbers and keys can be stored.

    A number that does not fit into 64 bits becomes a text, as in Google's own JSON.

    :param levels: how many levels of objects and lists it may have; what lies deeper becomes a text.
    """
    if isinstance(value, str):
        return storable_text(str(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if is_storable_number(value) else _number_text(value)
    if isinstance(value, Mapping | list | tuple):
        if not levels:
            return storable_text(json.dumps(value, default=short_repr))
        if isinstance(value, Mapping):
            return {_storable_key(str(key)): storable(item, levels - 1) for key, item in value.items()}
        return [storable(item, levels - 1) for item in value]
    return storable_text(short_repr(value))


def storable_object(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object that can be stored; of a large one only the smaller fields, and a note of the others.

    :raises ValueError: when it is nested too deep.
    """
    if _is_deeper(value, MAX_LEVELS):
        raise ValueError(f"expected JSON of at most {MAX_LEVELS} levels, got more")
    # Before as well, since the other steps are slow.
    return _fit(storable(_fit(value)))


def pack(value: Any) -> str:
    """Return a JSON value as a compressed text: MySQL keeps 64 KB of the arguments of a trigger."""
    return base64.b85encode(zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 9)).decode()


def unpack(text: str) -> Any:
    """Return the JSON value of a text that :func:`pack` has made.

    :raises ValueError: for any other text.
    """
    try:
        return json.loads(zlib.decompress(base64.b85decode(text)))
    except (ValueError, zlib.error) as error:
        raise ValueError(f"expected a compressed JSON value, got {short_repr(text)}") from error


def _number_text(number: float) -> str:
    if number != number:
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "Infinity" if number > 0 else "-Infinity"
    try:
        return str(number)
    except ValueError:  # Python's limit of digits
        return hex(int(number))[:MAX_KEY]


def _storable_key(key: str) -> str:
    # Airflow's own marks begin with two underscores: __classname__, __type, __var.
    text = storable_text(key, MAX_KEY)
    return f"({text})" if text.startswith("__") else text


def _is_deeper(value: object, levels: int) -> bool:
    level: list[object] = [value]
    for _ in range(levels + 1):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return True


def _children(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _fit(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the largest fields of an object until it is small enough."""
    sizes = {key: len(json.dumps({str(key): value}, default=short_repr)) for key, value in fields.items()}
    if sum(sizes.values()) <= MAX_CHARACTERS:
        return dict(fields)
    room = MAX_CHARACTERS - _NOTE
    kept = set()
    for key in sorted(sizes, key=lambda key: sizes[key]):
        room -= sizes[key]
        if room < 0:
            break
        kept.add(key)
    left = [key for key in fields if key not in kept]
    characters = sum(sizes[key] for key in left)
    names = ", ".join(short_repr(key).encode("ascii", "backslashreplace").decode()[:120] for key in left[:3])
    note = f"{len(left)} fields with {characters} characters of JSON: {names}"
    return {key: value for key, value in fields.items() if key in kept} | {LEFT_OUT: note}
