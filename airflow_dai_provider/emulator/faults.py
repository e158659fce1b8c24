"""Faults on demand: what goes wrong with a request, and what is answered then."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Final

from airflow_dai_provider.emulator.answers import Answer, error_answer, html_answer
from airflow_dai_provider.emulator.errors import RPC_STATUS_OF_HTTP
from airflow_dai_provider.emulator.fault_rules import check_fault, describe
from airflow_dai_provider.emulator.routes import TOKEN_METHODS

_WORDS = "The emulator was told to fail."


class _ByRate(int):
    """The default of ``times``, which depends on ``rate``."""

    def __repr__(self) -> str:
        """Say so in a signature."""
        return "1, or None with a rate"


_BY_RATE: Final = _ByRate(1)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with matching requests.

    With ``status``, ``rpc_status`` or ``redirect`` the request is not processed, and a failure is answered.
    Otherwise it is processed and its real answer is sent, changed as the other fields say.

    :param method: method that it hits, such as ``operations.get`` or ``token``; None for every request but
        those for tokens.
    :param name: resource name that it hits; None for every one.
    :param times: how many requests it hits; None for every one from now on, the default with a ``rate``.
    :param rate: share of the matching requests that it hits, from 0 to 1; by the emulator's ``seed``.
    :param status: HTTP status. Without a body it is answered with the JSON error that belongs to it, or, if
        no rpc code does (502, for example), with the HTML page of a front end.
    :param rpc_status: rpc code of the JSON error, such as ``FAILED_PRECONDITION``; without ``status`` it
        brings its own HTTP status.
    :param html: whether the HTML page of a front end is answered where it would be JSON; needs ``status``.
    :param redirect: URL to send the client to, with 302 unless ``status`` says otherwise.
    :param body: body of the answer, sent as it is; needs ``status``.
    :param processed: whether the request is processed although a failure is answered.
    :param headers: further headers of the answer.
    :param content_type: content type of the answer, in place of its own.
    :param retry_after: seconds in the header ``Retry-After``.
    :param retry_after_date: seconds from the answer to the HTTP date in ``Retry-After``; the header ``Date``
        tells the emulator's time beside it.
    :param padding: bytes of white space behind the body, which stays valid JSON and grows too large.
    :param delay: seconds from the request to the answer (or to the drop); ``math.inf`` for a server that hangs.
    :param body_delay: seconds between the first half of the body and the rest (or the cut, with
        ``truncate``); ``math.inf`` for a server that hangs there.
    :param drop: ``before``: the connection is closed and the request is not processed; ``after``: the request
        is processed, and the connection is closed without an answer.
    :param truncate: number of bytes of the body to send, under the true ``Content-Length``, before the
        connection is closed.
    :param reset: whether ``drop`` or ``truncate`` resets the connection (RST) instead of closing it in order.
    :raises ValueError: if the fields contradict each other.
    """

    method: str | None = None
    name: str | None = None
    status: int | None = None
    rpc_status: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str | None = None
    delay: float = 0.0
    drop: str | None = None
    truncate: int | None = None
    times: int | None = _BY_RATE
    rate: float | None = None
    html: bool = False
    redirect: str | None = None
    processed: bool = False
    retry_after: int | None = None
    retry_after_date: float | None = None
    padding: int = 0
    body_delay: float = 0.0
    reset: bool = False

    def __post_init__(self) -> None:
        """Settle what depends on other fields, and refuse a fault that could not do what it says."""
        if self.times is _BY_RATE:
            object.__setattr__(self, "times", 1 if self.rate is None else None)
        check_fault(self)

    @property
    def replaces(self) -> bool:
        """Whether something else is answered than what the service would."""
        return not (self.status is None and self.rpc_status is None and self.redirect is None)

    @property
    def lets_through(self) -> bool:
        """Whether the service processes the request."""
        return self.drop != "before" and (self.processed or not self.replaces)

    @property
    def hangs(self) -> bool:
        """Whether nothing is ever answered, over a connection that stays open."""
        return self.delay == math.inf

    @property
    def kind(self) -> str:
        """What goes wrong, in a few words, such as ``503 retry-after``: the key of the injected counts."""
        return describe(self)

    def matches(self, method: str | None, name: str | None) -> bool:
        """Whether the fault is meant for a request.

        :param method: method that the request means.
        :param name: resource name in its path.
        """
        meant = method not in TOKEN_METHODS if self.method is None else self.method == method
        return meant and self.name in (None, name)

    def answer(self) -> Answer:
        """Return the answer in place of the real one, where the fault replaces it."""
        if self.redirect is not None:
            return html_answer(self.status or 302, "The document has moved.", {"Location": self.redirect})
        status = self.status or 0
        if self.body is not None:
            return Answer(status, self.body)
        rpc_status = self.rpc_status or RPC_STATUS_OF_HTTP.get(status)
        if rpc_status is None or self.html:
            return html_answer(status, _WORDS)
        return error_answer(rpc_status, _WORDS, self.status)

    def change(self, answer: Answer, now: float) -> Answer:
        """Return an answer with the fault's headers and content type.

        :param answer: the real answer, or the fault's own.
        :param now: epoch seconds.
        """
        headers = {**answer.headers, **self.headers}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.retry_after_date is not None:
            headers["Retry-After"] = formatdate(now + self.retry_after_date, usegmt=True)
            headers.setdefault("Date", formatdate(now, usegmt=True))
        return replace(answer, headers=headers, content_type=self.content_type or answer.content_type)
