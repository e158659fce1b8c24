"""The record of the requests that reached the emulator."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class RecordedRequest:
    """One request that reached the emulator.

    :param time: epoch seconds of the emulator's clock.
    :param method: method of the API, such as ``operations.cancel``; None where the request meant none.
    :param http_method: ``GET``, ``POST`` or ``DELETE``.
    :param raw_path: the path as it stood in the request line, without the query.
    :param name: the decoded resource name, None where the path holds none.
    :param query: the decoded query parameters; of a repeated one the last.
    :param headers: the headers, with lower-case keys; of a repeated one the last.
    :param body: the body.
    :param connection: number of the TCP connection, 1 for the first.
    :param status: the HTTP status sent, None as long as nothing is and where the connection was dropped.
    :param account: whose token it carries; None without a good one, and without authentication.
    :param fault: the kind of the fault that it has met, None for one that was treated well.
    """

    time: float
    method: str | None
    http_method: str
    raw_path: str
    name: str | None
    query: Mapping[str, str]
    # Neither headers nor bodies show in a failing test's output: they can hold tokens and signed URLs.
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    connection: int
    status: int | None = None
    account: str | None = None
    fault: str | None = None


class Recorder:
    """Keeps the requests in the order of their arrival. Safe to use from several threads.

    :param limit: how many to keep, the oldest going first; None for all.
    """

    def __init__(self, limit: int | None = None) -> None:
        """Start with nothing recorded."""
        self._limit = limit
        self._lock = threading.Lock()
        self._next_key = 0
        self._requests: dict[int, RecordedRequest] = {}

    def arrived(self, request: RecordedRequest) -> int:
        """Record a request.

        :param request: the request, not answered yet.
        :return: the key under which :meth:`answered` finds it.
        """
        with self._lock:
            key = self._next_key
            self._next_key += 1
            self._requests[key] = request
            if self._limit is not None and len(self._requests) > self._limit:
                del self._requests[next(iter(self._requests))]
            return key

    def answered(self, key: int, status: int) -> None:
        """Note what a request is answered with, unless it has been forgotten.

        :param key: what :meth:`arrived` returned.
        :param status: the HTTP status.
        """
        with self._lock:
            if key in self._requests:
                self._requests[key] = replace(self._requests[key], status=status)

    def requests(self) -> list[RecordedRequest]:
        """Return the requests recorded, in the order of their arrival."""
        with self._lock:
            return list(self._requests.values())

    def forget(self) -> None:
        """Forget all requests."""
        with self._lock:
            self._requests.clear()
