"""Which method of the API a request means, read from the raw path.

The raw path matters: a name may hold an encoded ``:`` or ``/``, which is not the verb's colon or a separator.
"""

import re
from collections.abc import Callable, Mapping
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

TOKEN_METHODS = ("token", "generateAccessToken", "exchangeToken")
"""The methods that issue tokens, where authentication is on: OAuth2, IAM credentials, security token service."""

# google.api.http: a variable of several segments is decoded but for the encoded slash, a variable of one
# segment wholly.
_KEEP_ENCODED_SLASH = re.compile(rb"(%2F)", re.IGNORECASE)


@dataclass(frozen=True)
class Route:
    """Where a path leads.

    :param name: the resource named in the path, None for a path that names none.
    :param methods: the API's method for each HTTP method; empty for an unknown path.
    """

    name: str | None = None
    methods: Mapping[str, str] = field(default_factory=dict)


def find_route(raw_path: str, *, tokens: bool = False) -> Route:
    """Find where a path leads.

    :param raw_path: the path as it stands in the request line, without the query.
    :param tokens: whether the methods that issue tokens are there.
    :return: the route; one without methods for a path that the API does not have.
    """
    for pattern, methods, decode in (*_ROUTES, *(_TOKEN_ROUTES if tokens else ())):
        match = pattern.fullmatch(raw_path)
        if match is None:
            continue
        name = decode(match[1]) if match.re.groups else None
        return Route() if name is not None and _has_bad_segment(name) else Route(name, methods)
    return Route()


def is_operation_name(name: str) -> bool:
    """Whether a path can lead to an operation of this name.

    :param name: the name, decoded.
    """
    return name.startswith("operations/") and not _has_bad_segment(name)


def decode_name(raw_name: str) -> str:
    """Decode a name of several segments: everything but an encoded slash, which stays as it is.

    :param raw_name: the name as it stands in the path.
    """
    parts = _KEEP_ENCODED_SLASH.split(_to_bytes(raw_name))
    decoded = (part if index % 2 else unquote_to_bytes(part) for index, part in enumerate(parts))
    return b"".join(decoded).decode("utf-8", "replace")


def _decode_segment(raw_name: str) -> str:
    return unquote_to_bytes(_to_bytes(raw_name)).decode("utf-8", "replace")


def _to_bytes(text: str) -> bytes:
    # The HTTP parser hands on bytes that are no UTF-8 as surrogates.
    return text.encode("utf-8", "surrogateescape")


def _has_bad_segment(name: str) -> bool:
    return any(segment in ("", ".", "..") for segment in name.split("/"))


# In order: the verb is the literal suffix, so it is looked for before it could be taken for a part of a name.
_ROUTES: tuple[tuple[re.Pattern[str], dict[str, str], Callable[[str], str]], ...] = (
    (re.compile("/v1/operations"), {"GET": "operations.list"}, decode_name),
    (re.compile("/v1/(operations/.*):cancel"), {"POST": "operations.cancel"}, decode_name),
    (
        re.compile("/v1/(operations/.*)"),
        {"GET": "operations.get", "DELETE": "operations.delete"},
        decode_name,
    ),
    (re.compile("/v1/creatives"), {"POST": "creatives.create"}, decode_name),
    (
        re.compile("/v1/(creatives/[^/]*)"),
        {"GET": "creatives.get", "DELETE": "creatives.delete"},
        _decode_segment,
    ),
)
_TOKEN_ROUTES: tuple[tuple[re.Pattern[str], dict[str, str], Callable[[str], str]], ...] = (
    (re.compile("/token"), {"POST": "token"}, decode_name),
    (
        re.compile("/v1/(projects/-/serviceAccounts/[^/]*):generateAccessToken"),
        {"POST": "generateAccessToken"},
        decode_name,
    ),
    (re.compile("/v1/token"), {"POST": "exchangeToken"}, decode_name),
)
