"""The endpoint of the service: which setting is used, and whether a token may be sent there. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from airflow_dai_provider.api.names import is_missing_name
from airflow_dai_provider.api.redaction import short_repr

#: ``host:port`` of an emulator, by the convention of Google's emulators: plain HTTP and no credentials.
EMULATOR_VARIABLE = "DAI_EMULATOR_HOST"
#: The key in a connection's extra that names another endpoint.
EXTRA_KEY = "dai_api_endpoint"

_DEFAULT_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[^\s\x00-\x1f\x7f\\,;]+")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The root of the service.

    :param url: scheme, host and port, without a slash at the end.
    :param connection: the id of the connection whose account is used there, for messages; empty for an emulator.
    """

    url: str
    connection: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.url}, connection {self.connection!r}" if self.connection else self.url

    @property
    def is_loopback(self) -> bool:
        """Whether requests stay on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def accepts_token(self) -> bool:
        """Whether a token may be sent there: over TLS, or without leaving this machine."""
        return self.url.startswith("https://") or self.is_loopback


def parse_endpoint(value: str, source: str, default_scheme: str = "https") -> Endpoint:
    """Read an endpoint.

    :param value: ``host``, ``host:port`` or ``scheme://host:port``.
    :param source: where it was set, for the message.
    :param default_scheme: the scheme when none is given.
    :raises ValueError: when it is something else, has a path, or holds credentials.
    """
    text = value.strip().removesuffix("/")
    try:
        parts = urlsplit(text if "://" in text else f"{default_scheme}://{text}")
        valid = _HOST.fullmatch(parts.hostname or "") and parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        valid = False
    if (
        not valid
        or is_missing_name(text)
        or not text.isprintable()
        or text.endswith(":")
        or any((parts.path, parts.query, parts.fragment, "@" in parts.netloc))
    ):
        raise ValueError(
            f"Invalid {source} {short_repr(value)}: expected 'host', 'host:port' or 'https://host:port', without "
            "a path, a query or credentials."
        )
    # One endpoint has one spelling, since an ingest is known by the endpoint at which it was started.
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return Endpoint(f"{parts.scheme}://{host}{port}")


def emulator_endpoint(argument: str | None, environ: Mapping[str, str]) -> Endpoint | None:
    """Return the emulator's endpoint when it is used: the variable is set and no argument is given.

    :raises ValueError: when the variable holds no ``host:port``.
    """
    value = environ.get(EMULATOR_VARIABLE, "")
    return parse_endpoint(value, EMULATOR_VARIABLE, "http") if value and not argument else None


def service_endpoint(argument: str | None, extra: Mapping[str, object], universe_domain: str) -> Endpoint:
    """Return the endpoint without an emulator: the argument, the connection's extra, or Google's own.

    :raises ValueError: when the value that is used is not an endpoint.
    """
    if argument:
        return parse_endpoint(argument, "api_endpoint")
    if configured := extra.get(EXTRA_KEY):
        return parse_endpoint(str(configured), f"{EXTRA_KEY} in the connection's extra")
    return Endpoint(f"https://dai.{universe_domain}")
