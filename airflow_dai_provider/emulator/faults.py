"""Faults on demand: their fields, the rules for these, and the queue of faults to come."""

import json
import math
import random
import secrets
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass as validated_dataclass

from airflow_dai_provider.emulator.errors import (
    HTTP_STATUSES,
    RPC_STATUS_OF_HTTP,
    ApiError,
    choice,
    explained,
    flag_from_text,
    number_from_text,
    whole_from_text,
    wrong_value,
)
from airflow_dai_provider.emulator.responses import (
    Response,
    error_response,
    html_response,
    json_response,
    merged_body,
)
from airflow_dai_provider.emulator.routes import METHODS, TOKEN_METHODS

_MESSAGE = "The emulator was told to fail."
#: Seconds; a date that is further away does not fit into the header.
_CENTURY = 3.15e9
_REDIRECTS = (301, 302, 303, 307, 308)
_FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "content-type"})
# The fields that leave the response alone, and so make sense where there is none.
_FIELDS_WITHOUT_RESPONSE = frozenset({"method", "name", "times", "rate", "lasts", "delay", "drop", "reset"})
_SECONDS = "a number of seconds, 0 or more, or inf"
_BYTES = "a whole number of bytes, 0 or more"
_FLAG = "true or false"


class _ByRate(int):
    """The default of ``times``, which depends on ``rate`` and ``lasts``."""

    def __repr__(self) -> str:
        return "1, or None with a rate or lasts"


_BY_RATE = _ByRate(1)


@explained
@validated_dataclass(frozen=True, config=ConfigDict(strict=True))
class Fault:
    """Something that goes wrong with matching requests.

    With ``status``, ``rpc_status`` or ``redirect`` the request is not processed, and a failure is sent.
    Otherwise it is processed and its real response is sent, changed as the other fields say.

    :param method: method that it hits, such as ``operations.get`` or ``token``; None for every request except
        those for tokens.
    :param name: resource name that it hits; None for every one.
    :param times: how many requests it hits; None for every one from now on, the default with a ``rate`` or ``lasts``.
    :param rate: share of the matching requests that it hits, from 0 to 1; by the emulator's ``seed``.
    :param lasts: seconds, by the emulator's clock, from the first request that it hits, after which it hits no other.
    :param status: HTTP status. Without a body it is sent with the JSON error that belongs to it, or, if
        no rpc code does (502, for example), with the HTML page of a front end.
    :param rpc_status: rpc code of the JSON error, such as ``FAILED_PRECONDITION``; without ``status`` it
        is sent with its own HTTP status.
    :param reason: ``errors[0].reason`` of the JSON error, such as ``rateLimitExceeded``.
    :param details: the objects of ``details`` of the JSON error.
    :param html: send the HTML page of a front end in place of JSON; needs ``status``.
    :param redirect: URL to send the client to, with 302 unless ``status`` says otherwise.
    :param body: body of the response, sent as it is; needs ``status``.
    :param merge: JSON object whose fields are put into the JSON of the response, into objects of the same name too;
        it can hold any text and number, also those that no database takes.
    :param processed: process the request although a failure is sent.
    :param listed: JSON values that ``operations.list`` returns in front of its operations; needs that method.
    :param omitted: name of an operation that ``operations.list`` leaves out; needs that method.
    :param headers: further headers of the response.
    :param content_type: content type of the response, in place of its own.
    :param retry_after: seconds in the header ``Retry-After``.
    :param retry_after_date: seconds from the response to the HTTP date in ``Retry-After``; the header ``Date``
        tells the emulator's time beside it.
    :param padding: bytes of white space behind the body, which stays valid JSON and grows too large.
    :param delay: seconds from the request to the response (or to the drop); ``math.inf`` for a server that hangs.
    :param body_delay: seconds between the first half of the body and the rest (or the cut, with
        ``truncate``); ``math.inf`` for a server that hangs there.
    :param drop: ``before``: the connection is closed and the request is not processed; ``after``: the request
        is processed, and the connection is closed without a response.
    :param truncate: number of bytes of the body to send, under the true ``Content-Length``, before the
        connection is closed.
    :param reset: with ``drop`` or ``truncate``, reset the connection (RST) instead of closing it in order.
    :raises ValueError: if a field is invalid, or fields contradict each other.
    """

    method: str | None = choice(None, (*METHODS, *TOKEN_METHODS))
    name: str | None = Field(default=None, min_length=1, description="a text")
    status: int | None = Field(default=None, ge=200, le=599, description="an HTTP status from 200 to 599")
    rpc_status: str | None = choice(None, HTTP_STATUSES)
    headers: Mapping[str, str] = Field(default_factory=dict, description="an object with a text for each header")
    body: bytes | None = Field(default=None, description="a text")
    merge: Mapping[str, object] = Field(default_factory=dict, description="an object")
    content_type: str | None = Field(default=None, min_length=1, description="a text")
    delay: float = Field(default=0.0, ge=0, description=_SECONDS)
    drop: str | None = choice(None, ("before", "after"), "None or one of")
    truncate: int | None = Field(default=None, ge=0, description=_BYTES)
    times: int | None = Field(default=_BY_RATE, ge=1, description="a whole number, 1 or more, or always (None)")
    rate: float | None = Field(default=None, gt=0, le=1, description="a share of the requests, above 0 and at most 1")
    html: bool = Field(default=False, description=_FLAG)
    redirect: str | None = Field(default=None, min_length=1, description="a text")
    processed: bool = Field(default=False, description=_FLAG)
    retry_after: int | None = Field(default=None, ge=0, description="a whole number of seconds, 0 or more")
    retry_after_date: float | None = Field(
        default=None, ge=-_CENTURY, le=_CENTURY, description="a number of seconds, less than a century"
    )
    padding: int = Field(default=0, ge=0, description=_BYTES)
    body_delay: float = Field(default=0.0, ge=0, description=_SECONDS)
    reset: bool = Field(default=False, description=_FLAG)
    lasts: float | None = Field(default=None, gt=0, description="a number of seconds, more than 0")
    reason: str | None = Field(default=None, min_length=1, description="a text")
    details: Sequence[object] = Field(default=(), description="a list of objects")
    listed: Sequence[object] = Field(default=(), description="a list")
    omitted: str | None = Field(default=None, min_length=1, description="a text")

    _whole = field_validator("status", "truncate", "retry_after", "padding", mode="before")(whole_from_text)
    _number = field_validator("delay", "rate", "retry_after_date", "body_delay", "lasts", mode="before")(
        number_from_text
    )
    _flag = field_validator("html", "processed", "reset", mode="before")(flag_from_text)

    @field_validator("times", mode="before")
    @classmethod
    def _read_times(cls, value: object) -> object:
        return None if value == "always" else whole_from_text(value)

    @field_validator("headers", mode="plain")  # pydantic's own rules for a Mapping depend on its version
    @classmethod
    def _read_headers(cls, value: object) -> Mapping[str, str]:
        if not (isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)):
            raise ValueError
        return value

    @field_validator("details", "listed", mode="plain")
    @classmethod
    def _read_list(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple(value)
        raise ValueError

    @field_validator("merge", mode="plain")
    @classmethod
    def _read_merge(cls, value: object) -> Mapping[str, object]:
        if not isinstance(value, Mapping):
            raise ValueError  # noqa: TRY004 - pydantic reports this one as an invalid field
        return value

    @field_validator("body", mode="before")
    @classmethod
    def _read_body(cls, value: object) -> object:
        return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value

    def __post_init__(self) -> None:
        if self.times is _BY_RATE:
            object.__setattr__(self, "times", 1 if self.rate is None and self.lasts is None else None)
        self._check_headers()
        status, rpc_status, html, redirect = self.status, self.rpc_status, self.html, self.redirect is not None
        body, size = self.body is not None, len(self.body or b"") + self.padding
        cut = -1 if self.truncate is None else self.truncate
        changes = [name for name in self.changed_fields if name not in _FIELDS_WITHOUT_RESPONSE]
        no_response = "drop" if self.drop else "delay" if self.hangs else None
        other_status = redirect and status not in (None, *_REDIRECTS)
        codes = ", ".join(map(str, _REDIRECTS))
        # Field, contradiction with other fields, expected value.
        rules = (
            ("body", body and (not status or rpc_status), "a status and no rpc_status beside it"),
            ("html", html and (not status or rpc_status or body), "a status and neither rpc_status nor body beside it"),
            ("status", (status or 500) < 400 and not (body or html or redirect), "an error status without a body"),
            ("processed", self.processed and not self.replaces, "a status; without one it is processed anyway"),
            ("status", other_status, f"one of {codes} with a redirect"),
            ("reason", self.reason and not self._is_json_error, "a status or an rpc_status with a JSON error"),
            ("details", self.details and not self._is_json_error, "a status or an rpc_status with a JSON error"),
            ("listed", self.listed and not self._changes_list, "method=operations.list and its real response"),
            ("omitted", self.omitted and not self._changes_list, "method=operations.list and its real response"),
            ("redirect", redirect and (html or body or rpc_status), "neither html nor body nor rpc_status beside it"),
            ("reset", self.reset and not self.drop and cut < 0, "drop or truncate beside it"),
            ("truncate", body and cut >= size, f"less than the {size} bytes of the body"),
            (no_response, changes, f"no {' or '.join(changes)} beside it: no response is sent"),
        )
        for name, contradicts, expected in rules:
            if name and contradicts:
                raise wrong_value(name, getattr(self, name), expected)
        if not (no_response or changes or self.delay):
            raise wrong_value("Fault", "nothing that goes wrong", "a status, body, delay, drop or truncate")

    @property
    def changed_fields(self) -> list[str]:
        """The names of the fields that differ from their defaults."""
        defaults = {
            name: field.get_default(call_default_factory=True)
            for name, field in self.__pydantic_fields__.items()  # type: ignore[attr-defined]
        }
        return [name for name, default in defaults.items() if getattr(self, name) != default]

    @property
    def replaces(self) -> bool:
        """True if a failure is sent in place of the real response."""
        return not (self.status is None and self.rpc_status is None and self.redirect is None)

    @property
    def lets_through(self) -> bool:
        """True if the service processes the request."""
        return self.drop != "before" and (self.processed or not self.replaces)

    @property
    def _is_json_error(self) -> bool:
        return self.replaces and self.response().content_type.startswith("application/json") and self.body is None

    @property
    def _changes_list(self) -> bool:
        return self.method == "operations.list" and not self.replaces

    @property
    def hangs(self) -> bool:
        """True if no response is ever sent, over a connection that stays open."""
        return self.delay == math.inf

    @property
    def kind(self) -> str:
        """A short description, such as ``503 retry-after`` or ``reset-before``: the key of the injected counts."""
        parts = {
            self._describe_status(): self.replaces,
            "processed": self.processed,
            "retry-after": self.retry_after is not None,
            "retry-after-date": self.retry_after_date is not None,
            f"reason={self.reason}": self.reason is not None,
            "details": self.details,
            "listed": self.listed,
            "omitted": self.omitted is not None,
            "content-type": self.content_type is not None,
            "headers": self.headers,
            "merge": self.merge,
            "padding": self.padding,
            "hang": self.hangs,
            "delay": self.delay and not self.hangs,
            "body-hang": self.body_delay == math.inf,
            "body-delay": 0 < self.body_delay < math.inf,
            f"{'reset' if self.reset else 'drop'}-{self.drop}": self.drop,
            "truncate-reset" if self.reset else "truncate": self.truncate is not None,
        }
        return " ".join(part for part, holds in parts.items() if holds)

    def matches(self, method: str | None, name: str | None) -> bool:
        """Return whether the fault is meant for a request with this method and resource name."""
        meant = method not in TOKEN_METHODS if self.method is None else self.method == method
        return meant and self.name in (None, name)

    def response(self) -> Response:
        """Return the response in place of the real one, where the fault replaces it."""
        if self.redirect is not None:
            return html_response(self.status or 302, "The document has moved.", {"Location": self.redirect})
        status = self.status or 0
        if self.body is not None:
            return Response(status, self.body)
        rpc_status = self.rpc_status or RPC_STATUS_OF_HTTP.get(status)
        if rpc_status is None or self.html:
            return html_response(status, _MESSAGE)
        return error_response(
            ApiError(rpc_status, _MESSAGE, details=self.details, status=self.status, reason=self.reason)
        )

    def change(self, response: Response, now: float) -> Response:
        """Return a response (the real one or the fault's own) with what the fault changes in it."""
        if (self.listed or self.omitted) and response.status == 200:
            page = json.loads(response.body)
            kept = [item for item in page.get("operations", ()) if item["name"] != self.omitted]
            response = json_response({**page, "operations": [*self.listed, *kept]})
        headers = {**response.headers, **self.headers}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.retry_after_date is not None:
            headers["Retry-After"] = formatdate(now + self.retry_after_date, usegmt=True)
            headers.setdefault("Date", formatdate(now, usegmt=True))
        body = merged_body(response.body, self.merge) if self.merge else response.body
        return replace(response, headers=headers, body=body, content_type=self.content_type or response.content_type)

    def _check_headers(self) -> None:
        names = {header.lower() for header in self.headers}
        if framing := sorted(_FRAMING_HEADERS & names):
            raise wrong_value("headers", framing[0], "no header that the emulator sets; use content_type or truncate")
        for text in (*self.headers, *self.headers.values(), self.redirect or "", self.content_type or ""):
            if not (text.isascii() and (text.isprintable() or not text)):
                raise wrong_value("headers", text, "printable ASCII")
        if (self.retry_after is not None) + (self.retry_after_date is not None) + ("retry-after" in names) > 1:
            raise wrong_value("retry_after", "several", "one of retry_after, retry_after_date and the header itself")

    def _describe_status(self) -> str:
        if self.redirect is not None:
            return f"{self.status or 302} redirect"
        response = self.response()
        html = "html" if response.content_type.startswith("text/html") else ""
        return f"{response.status} {self.rpc_status or ('body' if self.body is not None else html)}".rstrip()


@dataclass
class _Waiting:
    fault: Fault
    left: int | None
    random: random.Random
    until: float = math.inf

    def hits(self, method: str | None, name: str | None) -> bool:
        rate = self.fault.rate
        return self.fault.matches(method, name) and (rate is None or self.random.random() < rate)


class FaultQueue:
    """The faults to come, in the order of injection. Safe to use from several threads.

    Each fault with a rate draws from its own sequence, one number for each request that it is meant for: with
    the same seed (None for a random one) and the same order of injection, the same of these requests are hit.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = secrets.randbits(32) if seed is None else seed
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._added = 0
        self._injected: Counter[str] = Counter()

    @property
    def injected(self) -> dict[str, int]:
        """How many requests have been hit, by :attr:`Fault.kind`."""
        with self._lock:
            return dict(self._injected)

    @property
    def waiting(self) -> list[tuple[Fault, int | None]]:
        """The faults to come, and how many requests each has left."""
        with self._lock:
            return [(waiting.fault, waiting.left) for waiting in self._waiting]

    def add(self, fault: Fault) -> None:
        """Add a fault behind the others."""
        with self._lock:
            self._added += 1
            own_random = random.Random(f"{self.seed}/{self._added}")  # noqa: S311 (reproducible, not secret)
            self._waiting.append(_Waiting(fault, fault.times, own_random))

    def clear(self) -> None:
        """Drop the faults to come; the counts stay."""
        with self._lock:
            self._waiting.clear()

    def reset(self) -> None:
        """Drop the faults and the counts, and begin the sequences again."""
        with self._lock:
            self._waiting.clear()
            self._injected.clear()
            self._added = 0

    def take(self, method: str | None, name: str | None, now: float) -> Fault | None:
        """Use the first fault that hits a request with this method and resource name, if there is one.

        :param now: seconds of the emulator's clock.
        """
        with self._lock:
            self._waiting = [waiting for waiting in self._waiting if now < waiting.until]
            waiting = next((waiting for waiting in self._waiting if waiting.hits(method, name)), None)
            if waiting is None:
                return None
            self._injected[waiting.fault.kind] += 1
            if waiting.fault.lasts is not None and waiting.until == math.inf:
                waiting.until = now + waiting.fault.lasts
            if waiting.left is not None:
                waiting.left -= 1
            if waiting.left == 0:
                self._waiting.remove(waiting)
            return waiting.fault
