"""The state of the service: its operations and creatives. No HTTP, no timers; time is an injected clock."""

import itertools
import secrets
import threading
from collections.abc import Callable, Mapping

from airflow_dai_provider.emulator import paging
from airflow_dai_provider.emulator.creatives import read_creative
from airflow_dai_provider.emulator.errors import ApiError, wrong_value
from airflow_dai_provider.emulator.ingest import Ingest, State
from airflow_dai_provider.emulator.plan import Plan, plan_from_url

FINISHED_CANCEL = ("ok", "failed_precondition", "not_found")
"""What a cancel request for a finished operation can be answered with; what DAI does is undocumented."""


class UnknownOperationError(KeyError):
    """The emulator has never started an ingest of this name.

    :param name: the name asked for.
    """

    def __init__(self, name: str) -> None:
        """Word the message."""
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        """Return a sentence: KeyError would show the bare key."""
        return f"The emulator has never started an ingest named {self.name!r}"


class Service:
    """The operations and creatives of one emulator. Safe to use from several threads.

    :param clock: epoch seconds.
    :param defaults: what an ingest does where nobody says otherwise.
    :param finished_cancel: answer to a cancel request for a finished operation, of :data:`FINISHED_CANCEL`.
    :raises ValueError: for another ``finished_cancel``.
    """

    def __init__(self, clock: Callable[[], float], defaults: Plan, finished_cancel: str = "ok") -> None:
        """Start without any operation."""
        if finished_cancel not in FINISHED_CANCEL:
            raise wrong_value("finished_cancel", finished_cancel, f"one of {', '.join(FINISHED_CANCEL)}")
        self.defaults = defaults
        self._clock = clock
        self._finished_cancel = finished_cancel
        self._lock = threading.RLock()
        self._serials = itertools.count(1)
        # Deleted ones stay, marked: their ingest goes on, and tests ask what became of it.
        self._ingests: dict[str, Ingest] = {}
        self._by_creative: dict[str, Ingest] = {}

    def reset(self) -> None:
        """Forget every operation and creative."""
        with self._lock:
            self._ingests.clear()
            self._by_creative.clear()

    def start(self, name: str | None, creative: dict[str, object], creative_url: str, plan: Plan) -> dict[str, object]:
        """Start an ingest.

        :param name: name of its operation, None for a new one.
        :param creative: the creative as submitted.
        :param creative_url: the media URL chosen.
        :param plan: what it is going to do.
        :return: the operation.
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
            self._ingests[name] = ingest
            self._by_creative[ingest.creative_name] = ingest
            return ingest.to_json(now)

    def create_creative(self, body: object) -> dict[str, object]:
        """Do ``creatives.create``.

        :param body: the parsed JSON of the request.
        :return: the operation.
        :raises ApiError: INVALID_ARGUMENT.
        """
        creative, url = read_creative(body)
        try:
            plan = plan_from_url(url, self.defaults)
        except ValueError as error:
            raise ApiError("INVALID_ARGUMENT", f"Invalid query of the media URL: {error}.") from error
        return self.start(None, creative, url, plan)

    def get_operation(self, name: str) -> dict[str, object]:
        """Do ``operations.get``.

        :param name: name of the operation.
        :return: the operation.
        :raises ApiError: NOT_FOUND.
        """
        with self._lock:
            return self._visible(name).to_json(self._clock())

    def list_operations(self, query: Mapping[str, str]) -> dict[str, object]:
        """Do ``operations.list``, in the order of creation.

        :param query: ``filter`` (``done=true`` or ``done=false``), ``pageSize`` and ``pageToken``.
        :return: ``{"operations": [...], "nextPageToken": ...}``, each absent when empty.
        :raises ApiError: INVALID_ARGUMENT.
        """
        page = paging.read_page(query)
        with self._lock:
            now = self._clock()
            matching = [
                ingest
                for ingest in self._ingests.values()
                if not ingest.deleted
                and ingest.serial > page.after
                and page.done in (None, ingest.state(now) is not State.RUNNING)
            ]
            shown = matching[: page.size]
            result: dict[str, object] = {}
            if shown:
                result["operations"] = [ingest.to_json(now) for ingest in shown]
            if len(matching) > len(shown):
                result["nextPageToken"] = page.token_after(shown[-1].serial)
            return result

    def cancel_operation(self, name: str) -> dict[str, object]:
        """Do ``operations.cancel``.

        :param name: name of the operation.
        :return: the empty object.
        :raises ApiError: NOT_FOUND; for a finished operation as ``finished_cancel`` says.
        """
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
            raise _operation_not_found(name)
        return {}

    def delete_operation(self, name: str) -> dict[str, object]:
        """Do ``operations.delete``: forget the operation, but let its ingest go on.

        :param name: name of the operation.
        :return: the empty object.
        :raises ApiError: NOT_FOUND.
        """
        with self._lock:
            self._visible(name).deleted = True
        return {}

    def get_creative(self, name: str) -> dict[str, object]:
        """Do ``creatives.get``.

        :param name: name of the creative; it exists once its ingest has succeeded.
        :return: the creative.
        :raises ApiError: NOT_FOUND.
        """
        with self._lock:
            return self._ingest_of_creative(name).creative_json()

    def delete_creative(self, name: str) -> dict[str, object]:
        """Do ``creatives.delete``.

        :param name: name of the creative.
        :return: the empty object.
        :raises ApiError: NOT_FOUND.
        """
        with self._lock:
            self._ingest_of_creative(name).creative_deleted = True
        return {}

    def states(self) -> dict[str, State]:
        """Return what has become of every ingest ever started, deleted operations included."""
        with self._lock:
            now = self._clock()
            return {name: ingest.state(now) for name, ingest in self._ingests.items()}

    def state(self, name: str) -> State:
        """Return what has become of one ingest, also when its operation is deleted.

        :param name: name of its operation.
        :raises UnknownOperationError: if there was never such an ingest.
        """
        with self._lock:
            return self._known(name).state(self._clock())

    def cancel_requests(self, name: str) -> int:
        """Return how many cancel requests have reached the service for one operation.

        :param name: name of the operation.
        :raises UnknownOperationError: if there was never such an operation.
        """
        with self._lock:
            return self._known(name).cancel_requests

    def _known(self, name: str) -> Ingest:
        if name not in self._ingests:
            raise UnknownOperationError(name)
        return self._ingests[name]

    def _visible(self, name: str) -> Ingest:
        ingest = self._ingests.get(name)
        if ingest is None or ingest.deleted:
            raise _operation_not_found(name)
        return ingest

    def _ingest_of_creative(self, name: str) -> Ingest:
        ingest = self._by_creative.get(name)
        if ingest is None or ingest.creative_deleted or ingest.state(self._clock()) is not State.SUCCEEDED:
            raise ApiError("NOT_FOUND", f"Creative not found: {name}")
        return ingest


def _operation_not_found(name: str) -> ApiError:
    return ApiError("NOT_FOUND", f"Operation not found: {name}")
