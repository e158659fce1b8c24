"""The store of operations and creatives, and the methods of the API on it. No HTTP, no timers."""

import base64
import binascii
import itertools
import re
import secrets
import threading
from collections.abc import Callable, Mapping

from airflow_dai_provider.emulator.errors import ApiError, invalid_argument, wrong_value
from airflow_dai_provider.emulator.ingest import Ingest, Plan, State, read_creative

FINISHED_CANCEL = ("ok", "failed_precondition", "not_found")
"""The possible responses to a cancel request for a finished operation; DAI's own is undocumented."""

_DEFAULT_PAGE_SIZE = 100
_LARGEST_PAGE_SIZE = 1000
_FILTER = re.compile(r"\s*done\s*=\s*(true|false)\s*")
_PAGE_TOKEN = re.compile(r"after:(\d{1,18}):(True|False|None)", re.ASCII)


class UnknownOperationError(KeyError):
    """The emulator has never started an ingest of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        # KeyError would show the bare key.
        return f"The emulator has never started an ingest named {self.name!r}"


class Store:
    """The operations and creatives of one emulator. Safe to use from several threads.

    :param defaults: plan of an ingest that asks for nothing else.
    """

    def __init__(self, clock: Callable[[], float], defaults: Plan, finished_cancel: str = "ok") -> None:
        if finished_cancel not in FINISHED_CANCEL:
            raise wrong_value("finished_cancel", finished_cancel, f"one of {', '.join(FINISHED_CANCEL)}")
        self.defaults = defaults
        self._clock = clock
        self._finished_cancel = finished_cancel
        self._lock = threading.RLock()
        self._serials = itertools.count(1)
        # Deleted ones stay, marked: their ingest goes on, and tests ask for its state.
        self._ingests: dict[str, Ingest] = {}
        self._by_creative: dict[str, Ingest] = {}

    def reset(self) -> None:
        """Remove every operation and creative."""
        with self._lock:
            self._ingests.clear()
            self._by_creative.clear()

    def start(self, name: str | None, creative: dict[str, object], creative_url: str, plan: Plan) -> dict[str, object]:
        """Start an ingest under a name (None for a new one), and return its operation.

        :raises ValueError: if the name is taken.
        """
        with self._lock:
            serial = next(self._serials)
            label = f"{serial}-{secrets.token_hex(2)}"
            name = name or f"operations/ingest-{label}"
            if name in self._ingests:
                raise wrong_value("name", name, "a name that no ingest of this emulator has had")
            now = self._clock()
            ingest = Ingest(name, f"gv-{label}", creative, creative_url, plan, created=now, serial=serial)
            self._ingests[name] = self._by_creative[ingest.creative_name] = ingest
            return ingest.to_json(now)

    # The methods of the API: each takes parts of the request, returns the JSON of the response, and raises ApiError.

    def create_creative(self, body: object) -> dict[str, object]:
        """Do ``creatives.create`` with the parsed JSON of the request."""
        creative, url = read_creative(body)
        try:
            plan = self.defaults.with_url(url)
        except ValueError as error:
            raise ApiError("INVALID_ARGUMENT", f"Invalid query of the media URL: {error}.") from error
        return self.start(None, creative, url, plan)

    def get_operation(self, name: str) -> dict[str, object]:
        """Do ``operations.get``."""
        with self._lock:
            return self._visible(name).to_json(self._clock())

    def list_operations(self, query: Mapping[str, str]) -> dict[str, object]:
        """Do ``operations.list``, in the order of creation.

        :param query: ``filter`` (``done=true`` or ``done=false``), ``pageSize`` and ``pageToken``, all optional.
        :return: ``{"operations": [...], "nextPageToken": ...}``, each absent when empty.
        """
        done = _read_filter(query.get("filter", ""))
        size = _read_page_size(query.get("pageSize", ""))
        after = _read_page_token(query.get("pageToken", ""), done)
        with self._lock:
            now = self._clock()
            matching = [
                ingest
                for ingest in self._ingests.values()
                if not ingest.deleted
                and ingest.serial > after
                and done in (None, ingest.state(now) is not State.RUNNING)
            ]
            shown = matching[:size]
            result: dict[str, object] = {}
            if shown:
                result["operations"] = [ingest.to_json(now) for ingest in shown]
            if len(matching) > size:
                result["nextPageToken"] = _page_token(shown[-1].serial, done)
            return result

    def cancel_operation(self, name: str) -> dict[str, object]:
        """Do ``operations.cancel``; for a finished operation as ``finished_cancel`` says."""
        with self._lock:
            if name in self._ingests:
                self._ingests[name].cancel_requests += 1
            ingest = self._visible(name)
            now = self._clock()
            finished = ingest.state(now) is not State.RUNNING
            ingest.request_cancel(now)
        if finished and self._finished_cancel == "failed_precondition":
            raise ApiError("FAILED_PRECONDITION", f"Operation is already done: {name}")
        if finished and self._finished_cancel == "not_found":
            raise _not_found("Operation", name)
        return {}

    def delete_operation(self, name: str) -> dict[str, object]:
        """Do ``operations.delete``: hide the operation, but let its ingest go on."""
        with self._lock:
            self._visible(name).deleted = True
        return {}

    def get_creative(self, name: str) -> dict[str, object]:
        """Do ``creatives.get``; a creative exists once its ingest has succeeded."""
        with self._lock:
            return self._ingest_of_creative(name).creative_json()

    def delete_creative(self, name: str) -> dict[str, object]:
        """Do ``creatives.delete``."""
        with self._lock:
            self._ingest_of_creative(name).creative_deleted = True
        return {}

    # For the emulator's user; deleted operations included.

    def states(self) -> dict[str, State]:
        """Return the state of every ingest ever started, by the name of its operation."""
        with self._lock:
            now = self._clock()
            return {name: ingest.state(now) for name, ingest in self._ingests.items()}

    def state(self, name: str) -> State:
        """Return the state of one ingest, or raise UnknownOperationError."""
        with self._lock:
            return self._known(name).state(self._clock())

    def creatives(self) -> list[str]:
        """Return the names of the creatives that exist."""
        with self._lock:
            now = self._clock()
            return [name for name, ingest in self._by_creative.items() if ingest.has_creative(now)]

    def cancel_requests(self, name: str) -> int:
        """Return the number of cancel requests for one operation, or raise UnknownOperationError."""
        with self._lock:
            return self._known(name).cancel_requests

    def _known(self, name: str) -> Ingest:
        if name not in self._ingests:
            raise UnknownOperationError(name)
        return self._ingests[name]

    def _visible(self, name: str) -> Ingest:
        ingest = self._ingests.get(name)
        if ingest is None or ingest.deleted:
            raise _not_found("Operation", name)
        return ingest

    def _ingest_of_creative(self, name: str) -> Ingest:
        ingest = self._by_creative.get(name)
        if ingest is None or not ingest.has_creative(self._clock()):
            raise _not_found("Creative", name)
        return ingest


def _read_filter(text: str) -> bool | None:
    if not text.strip():
        return None
    match = _FILTER.fullmatch(text)
    if match is None:
        raise invalid_argument("filter", "only done=true and done=false are supported")
    return match[1] == "true"


def _read_page_size(text: str) -> int:
    try:
        size = int(text or 0)
    except ValueError:
        raise invalid_argument("pageSize", "must be an integer") from None
    if size < 0:
        raise invalid_argument("pageSize", "must not be negative")
    return min(size, _LARGEST_PAGE_SIZE) or _DEFAULT_PAGE_SIZE


def _page_token(serial: int, done: bool | None) -> str:
    # A serial number stays true when operations appear or are deleted between two pages.
    return base64.urlsafe_b64encode(f"after:{serial}:{done}".encode()).decode()


def _read_page_token(text: str, done: bool | None) -> int:
    if not text:
        return 0
    try:
        token = base64.b64decode(text, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        token = ""
    match = _PAGE_TOKEN.fullmatch(token)
    if match is None:
        raise invalid_argument("pageToken", "is not a token of this service")
    if match[2] != str(done):
        raise invalid_argument("pageToken", "belongs to a request with another filter")
    return int(match[1])


def _not_found(resource: str, name: str) -> ApiError:
    return ApiError("NOT_FOUND", f"{resource} not found: {name}")
