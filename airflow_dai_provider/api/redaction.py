"""Redaction: a media URL or a proxy URL can hold a signature or a password, which must not be shown. Pure."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

# Starts at the slashes: a pattern for the scheme would take quadratic time on a long word.
_URL = re.compile(r"://(?:(?P<user>[^\s/?#]*)@)?(?P<rest>[^\s?#]*)(?:[?#](?P<query>\S*))?")

# A query whose URL has no scheme, or white space before or in it. The mark that is left shows that it was there.
_QUERY = re.compile(r"(?P<mark>[?&#])(?P<query>[^\s=?&#]*=\S*)")


def redact_urls(text: str) -> str:
    """Return a text with user, query and fragment removed from every URL."""
    return _QUERY.sub(r"\g<mark>...", _URL.sub(r"://\g<rest>", text))


def redact_json(value: Any) -> Any:
    """Return a JSON value after :func:`redact_urls` was applied to every string in it."""
    if isinstance(value, str):
        return redact_urls(value)
    if isinstance(value, Mapping):
        return {redact_urls(key) if isinstance(key, str) else key: redact_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_json(item) for item in value]
    return value


def url_secrets(value: object) -> Iterator[str]:
    """Yield the parts that :func:`redact_urls` removes from the URLs in a JSON value."""
    if isinstance(value, str):
        for url in _URL.finditer(value):
            yield from filter(None, (url["user"], url["query"]))
        for untidy in _QUERY.finditer(_URL.sub(r"://\g<rest>", value)):
            yield untidy["query"]
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from url_secrets(item)


class _Short(reprlib.Repr):
    """Redact a text before it is cut: the cut can remove the mark before a secret."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = 80

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(redact_urls(x), level)

    def repr_bytes(self, x: bytes, level: int) -> str:
        return f"b{self.repr_str(x.decode(errors='backslashreplace'), level)}"

    def repr_instance(self, x: object, level: int) -> str:  # noqa: ARG002
        text = redact_urls(repr(x))
        return text if len(text) <= self.maxother else f"{text[:38]}...{text[-39:]}"


def short_repr(value: object) -> str:
    """Return a repr of bounded length without the secrets of URLs, fit for an error message."""
    return _Short().repr(value)
