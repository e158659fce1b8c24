"""What must not be shown: a media URL or a proxy URL can hold a signature or a password. Pure."""

from __future__ import annotations

import re
import reprlib

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?:[^\s/?#@]*@)?(?P<rest>[^\s?#]*)(?:[?#]\S*)?", re.IGNORECASE)


def redact_urls(text: str) -> str:
    """Take user, query and fragment from every URL in a text."""
    return _URL.sub(r"\g<scheme>\g<rest>", text)


def short_repr(value: object) -> str:
    """Return a repr of bounded length without the secrets of URLs, fit for an error message."""
    limited = reprlib.Repr()
    limited.maxstring = limited.maxother = 80
    return redact_urls(limited.repr(value))
