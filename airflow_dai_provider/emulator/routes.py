"""The table of routes: which method of the API a request means, read from the raw path.

The raw path matters: a name may hold an encoded ``:`` or ``/``, which is not the verb's colon or a separator.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

METHODS = (
    "operations.get",
    "operations.list",
    "operations.cancel",
    "operations.delete",
    "creatives.create",
    "creatives.get",
    "creatives.delete",
)
"""Every method that has an HTTP binding."""

TOKEN_METHODS = ("token", "generateAccessToken", "exchangeToken", "metadata")
"""The methods that issue tokens, with authentication: OAuth2, IAM credentials, token service, metadata server."""

# google.api.http: a variable of several segments keeps an encoded slash, a variable of one segment is fully decoded.
_ENCODED_SLASH = re.compile(rb"(%2F)", re.IGNORECASE)


@dataclass(frozen=True)
class Route:
    """The target of a path.

    :param name: the resource named in the path, None for a path that names none.
    :param methods: the API's method for each HTTP method; empty for an unknown path.
    """

    name: str | None = None
    methods: Mapping[str, str] = field(default_factory=dict)


def find_route(raw_path: str, *, tokens: bool = False) -> Route:
    """Find the route of a path; an unknown path has one without methods.

    :param raw_path: the path as in the request line, without the query.
    :param tokens: whether the methods that issue tokens exist.
    """
    for pattern, methods in (*_ROUTES, *(_TOKEN_ROUTES if tokens else ())):
        match = pattern.fullmatch(raw_path)
        if match is None:
            continue
        name = _decode(match[1], whole=raw_path.startswith("/v1/creatives/")) if pattern.groups else None
        return Route() if name is not None and _has_bad_segment(name) else Route(name, methods)
    return Route()


def is_operation_name(name: str) -> bool:
    """Return whether a path can lead to an operation of this (decoded) name."""
    return name.startswith("operations/") and not _has_bad_segment(name)


def _decode(raw_name: str, *, whole: bool) -> str:
    # The HTTP parser passes bytes that are not UTF-8 as surrogates.
    raw = raw_name.encode("utf-8", "surrogateescape")
    parts = [raw] if whole else _ENCODED_SLASH.split(raw)
    decoded = (part if index % 2 else unquote_to_bytes(part) for index, part in enumerate(parts))
    return b"".join(decoded).decode("utf-8", "replace")


def _has_bad_segment(name: str) -> bool:
    return any(segment in ("", ".", "..") for segment in name.split("/"))


# In this order: a verb is a literal suffix, and must be found before it is taken for a part of a name.
_ROUTES = (
    (re.compile("/v1/operations"), {"GET": "operations.list"}),
    (re.compile("/v1/(operations/.*):cancel"), {"POST": "operations.cancel"}),
    (re.compile("/v1/(operations/.*)"), {"GET": "operations.get", "DELETE": "operations.delete"}),
    (re.compile("/v1/creatives"), {"POST": "creatives.create"}),
    (re.compile("/v1/(creatives/[^/]*)"), {"GET": "creatives.get", "DELETE": "creatives.delete"}),
)
_TOKEN_ROUTES = (
    (re.compile("/token"), {"POST": "token"}),
    (
        re.compile("/v1/(projects/-/serviceAccounts/[^/]*):generateAccessToken"),
        {"POST": "generateAccessToken"},
    ),
    (re.compile("/v1/token"), {"POST": "exchangeToken"}),
    # The root is what google-auth asks to find out that there is such a server.
    (re.compile("/|/computeMetadata(?:/.*)?"), {"GET": "metadata", "POST": "metadata"}),
)
