"""Faults on demand: wrong statuses, late answers, dropped and cut-off connections."""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from airflow_dai_provider.emulator.answers import Answer, error_answer, html_answer
from airflow_dai_provider.emulator.errors import HTTP_STATUSES, RPC_STATUS_OF_HTTP, wrong_value
from airflow_dai_provider.emulator.routes import METHODS

DROPS = ("before", "after")
_FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "content-type"})


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with the next matching requests.

    With neither ``status`` nor ``rpc_status`` the request is processed and its real answer is sent, changed
    as the other fields say. With one of them the request is not processed.

    :param method: method of the API that it hits, such as ``operations.get``; None for every request.
    :param name: resource name that it hits; None for every one.
    :param status: HTTP status. Without a body it is answered with the JSON error that belongs to it, or, if
        no rpc code does (502, for example), with the HTML page of a front end.
    :param rpc_status: rpc code of the JSON error, such as ``FAILED_PRECONDITION``; without ``status`` it
        brings its own HTTP status.
    :param headers: further headers of the answer, such as ``Retry-After``.
    :param body: body of the answer, sent as it is; needs ``status``.
    :param content_type: content type of the answer, in place of its own.
    :param delay: seconds from the request to the answer (or to the drop).
    :param drop: ``before``: the connection is closed and the request is not processed; ``after``: the request
        is processed, and the connection is closed without an answer.
    :param truncate: number of bytes of the body to send, under the true ``Content-Length``, before the
        connection is closed.
    :param times: how many requests it hits; None for every one from now on.
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
    times: int | None = 1

    def __post_init__(self) -> None:
        """Refuse a fault that could not do what it says."""
        self._check_values()
        self._check_answer()
        if self.drop is not None and self._changes:
            raise wrong_value("drop", self.drop, f"no {' or '.join(self._changes)} beside it: nothing is answered")
        if self.drop is None and not self._changes and not self.delay:
            raise wrong_value("Fault", "nothing that goes wrong", "a status, body, delay, drop or truncate")

    @property
    def lets_through(self) -> bool:
        """Whether the service processes the request."""
        return self.status is None and self.rpc_status is None and self.drop != "before"

    def matches(self, method: str | None, name: str | None) -> bool:
        """Whether the fault hits a request.

        :param method: method of the API that the request means.
        :param name: resource name in its path.
        """
        return self.method in (None, method) and self.name in (None, name)

    def answer(self) -> Answer:
        """Return the answer in place of the real one, where the fault does not let the request through."""
        if self.body is not None and self.status is not None:
            return Answer(self.status, self.body)
        rpc_status = self.rpc_status or RPC_STATUS_OF_HTTP.get(self.status or 0)
        if rpc_status is None:
            return html_answer(self.status or 0, "The emulator was told to fail.")
        return error_answer(rpc_status, "The emulator was told to fail.", self.status)

    def change(self, answer: Answer) -> Answer:
        """Return an answer with the fault's headers and content type.

        :param answer: the real answer, or the fault's own.
        """
        headers = {**answer.headers, **self.headers}
        return replace(answer, headers=headers, content_type=self.content_type or answer.content_type)

    @property
    def _changes(self) -> list[str]:
        fields = ("status", "rpc_status", "headers", "body", "content_type", "truncate")
        return [name for name in fields if getattr(self, name) not in (None, {})]

    def _check_values(self) -> None:
        if self.method is not None:
            check_method("method", self.method)
        if self.rpc_status is not None and self.rpc_status not in HTTP_STATUSES:
            raise wrong_value("rpc_status", self.rpc_status, f"one of {', '.join(HTTP_STATUSES)}")
        if self.drop not in (None, *DROPS):
            raise wrong_value("drop", self.drop, f"None or one of {', '.join(DROPS)}")
        if not (math.isfinite(self.delay) and self.delay >= 0):
            raise wrong_value("delay", self.delay, "a finite number of seconds, 0 or more")
        if self.times is not None and self.times < 1:
            raise wrong_value("times", self.times, "1 or more, or None for every request from now on")
        if framing := sorted(_FRAMING_HEADERS & {header.lower() for header in self.headers}):
            raise wrong_value("headers", framing[0], "content_type or truncate for it, the rest is the emulator's")

    def _check_answer(self) -> None:
        if self.status is not None and not 200 <= self.status <= 599:
            raise wrong_value("status", self.status, "an HTTP status from 200 to 599")
        if self.body is None:
            if self.status is not None and self.status < 400:
                raise wrong_value("status", self.status, "an error status where there is no body")
        elif self.status is None or self.rpc_status is not None:
            raise wrong_value("body", self.body, "a status and no rpc_status beside it")
        if self.truncate is None:
            return
        if self.truncate < 0:
            raise wrong_value("truncate", self.truncate, "a number of bytes, 0 or more")
        if self.body is not None and self.truncate >= len(self.body):
            raise wrong_value("truncate", self.truncate, f"less than the {len(self.body)} bytes of the body")


class FaultQueue:
    """The faults still to come, in the order of injection. Safe to use from several threads."""

    def __init__(self) -> None:
        """Start without faults."""
        self._lock = threading.Lock()
        self._waiting: list[tuple[Fault, int | None]] = []

    def add(self, fault: Fault) -> None:
        """Add a fault behind the others.

        :param fault: the fault.
        """
        with self._lock:
            self._waiting.append((fault, fault.times))

    def take(self, method: str | None, name: str | None) -> Fault | None:
        """Use the first fault that hits a request.

        :param method: method of the API that the request means.
        :param name: resource name in its path.
        :return: the fault, None if there is none.
        """
        with self._lock:
            for index, (fault, times) in enumerate(self._waiting):
                if fault.matches(method, name):
                    self._waiting[index] = (fault, None if times is None else times - 1)
                    if times == 1:
                        del self._waiting[index]
                    return fault
            return None


def check_method(field_name: str, method: str) -> None:
    """Refuse the name of a method that the API does not have.

    :param field_name: what the value is called.
    :param method: the name.
    :raises ValueError: listing the names it could be.
    """
    if method not in METHODS:
        raise wrong_value(field_name, method, f"one of {', '.join(METHODS)}")
