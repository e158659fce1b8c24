"""Batched polls: decide which of the polls that are due together use pages of operations.list, and which use get.

A page costs about as much as ten gets, and serves up to a hundred polls. It serves a poll only with an operation that
still runs. An operation that the list shows as done, shows unreadably or does not show at all is polled by get, so its
final state always comes from a get. No page is requested before the polls that it serves are due.

Pure: a driver (:mod:`airflow_dai_provider.transport.shared_polls` on an event loop,
:mod:`airflow_dai_provider.hooks.polls` in a worker) sends the requests, and brings its clock.
"""

from __future__ import annotations

from zlib import crc32

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.operation_page import PolledPage
from airflow_dai_provider.api.retry import THROTTLED, THROTTLED_OR_UNAVAILABLE, TRANSIENT, is_pause

#: Fewer waits than these poll by get, each at its own times.
MIN_POLLS = 20
#: A page is worth its cost when it serves at least this many polls.
MIN_POLLS_PER_PAGE = 10
#: One page that serves fewer is tolerated for every this many polls that are left.
POLLS_PER_POOR_PAGE = 20
#: One in this many polls of an operation is a get: a list can be wrong.
GET_EVERY = 20
#: Seconds for which all polls are gets after the list was refused, or was too long to be worth it.
GETS_FOR = 300.0
#: The same after an error that may pass. It doubles with each error in a row, up to the time of a refusal.
GETS_AFTER_ERROR = 30.0

#: The errors of the list that a get would meet too: they are the outcome of every poll that waits for the list.
_OUTAGES = THROTTLED_OR_UNAVAILABLE


def is_checked_by_get(name: str, number: int) -> bool:
    """Return whether this poll of an operation is a get in any case.

    Operations differ in the numbers at which they are checked, so a round does not check all of them at once.

    :param number: the number of the poll, counted from any start.
    """
    return (crc32(name.encode("utf-8", "surrogatepass")) + number) % GET_EVERY == 0


class BatchedPolls:
    """Decide between list and get for all polls of one endpoint and account, by what earlier readings have shown."""

    def __init__(self) -> None:
        # How many polls must be due together to make the list worth reading, and until when this estimate holds.
        self._needed = float(MIN_POLLS_PER_PAGE)
        self._believed_until = float("-inf")
        self._page_size = rest.LIST_PAGE_SIZE
        self._errors = 0
        self._throttled = False
        self._told = False

    def is_worthwhile(self, polls: float, now: float) -> bool:
        """Return whether to read the list when so many polls are due together."""
        return polls >= (self._needed if now < self._believed_until else MIN_POLLS_PER_PAGE)

    def begin(self, seen: dict[str, Operation | None], now: float) -> Reading | None:
        """Begin to read the list for polls that are due; return None when all of them are to be gets.

        :param seen: by name, what the last poll has returned; it becomes :attr:`Reading.left`.
        """
        if now >= self._believed_until:
            self._page_size = rest.LIST_PAGE_SIZE
        return Reading(seen, self._page_size) if self.is_worthwhile(len(seen), now) else None

    def end(self, reading: Reading, now: float) -> str | None:
        """Learn from a reading that has ended; return the line for the log, if there is news."""
        self._errors = 0
        self._throttled = False
        self._believed_until = now + GETS_FOR
        self._page_size = max(reading.page_size, MIN_POLLS_PER_PAGE)
        if reading.was_worthwhile:
            self._told = False
            self._needed = MIN_POLLS_PER_PAGE * reading.pages
            return None
        # More polls are worth more pages.
        self._needed = 2.0 * reading.polls
        shown = f"{reading.pages:,} pages of operations.list have shown {reading.answered:,} of {reading.polls:,}"
        return self._tell(f"{shown} operations that run", GETS_FOR)

    def end_late(self, reading: Reading, now: float) -> str | None:
        """Learn from a reading that was broken off because it took longer than one request may take."""
        if reading.was_worthwhile:
            return self.end(reading, now)
        _, line = self.fail(ServiceError("operations.list is too slow", Code.DEADLINE_EXCEEDED), now)
        return line

    def is_first_pause(self, error: ServiceError) -> bool:
        """Return whether this is the first throttling error in a row, after which the same page is requested again."""
        before, self._throttled = self._throttled, error.rpc_code in THROTTLED and error.sent
        return self._throttled and not before

    def fail(self, error: ServiceError, now: float) -> tuple[bool, str | None]:
        """Learn from a page that was not returned.

        :return: whether every poll that waits for the list fails with this error (otherwise they become gets); and the
            line for the log, or None.
        """
        if is_pause(error) or self.is_first_pause(error):
            return True, None
        seconds = GETS_FOR
        if error.rpc_code in TRANSIENT:
            seconds = min(GETS_AFTER_ERROR * 2.0 ** min(self._errors, 10), GETS_FOR)
            self._errors += 1
        self._needed, self._believed_until = float("inf"), now + seconds
        return error.rpc_code in _OUTAGES and not error.from_front_end, self._tell(str(error), seconds)

    def _tell(self, reason: str, seconds: float) -> str | None:
        if self._told:
            return None
        self._told = True
        return f"Polling by operations.get only for the next {seconds:.0f} s: {reason}"


class Reading:
    """One reading of the list, page by page, for polls that are due together.

    It goes on as long as it is useful: there is another page, enough polls are left to be worth it, and the last page
    was worth its cost, or few pages were in vain so far. So a list costs at most a twentieth more than gets would.

    A page that is too large is asked for again with half as many operations, as long as it can be worth its cost.

    :param seen: by name, what the last poll has returned; the reading removes what a page has shown.
    :param page_size: how many operations a page may bring.
    """

    def __init__(self, seen: dict[str, Operation | None], page_size: int = rest.LIST_PAGE_SIZE) -> None:
        #: Those without an answer so far. A driver may drop others that are no longer needed.
        self.left = seen
        self.polls = len(self.left)
        self.page_size = page_size
        self.pages = 0
        self.answered = 0
        self._goes_on = True
        self._in_vain = 0
        self._token: str | None = None

    @property
    def request(self) -> rest.Request[PolledPage]:
        """The request for the next page."""
        return rest.poll_operations(self.left, self._token, self.page_size)

    @property
    def is_useful(self) -> bool:
        """Whether to read on."""
        return self._goes_on and min(len(self.left), self.page_size) >= MIN_POLLS_PER_PAGE

    @property
    def was_worthwhile(self) -> bool:
        """Whether the pages have cost less than the gets that they have saved."""
        return self.answered >= MIN_POLLS_PER_PAGE * max(self.pages, 1)

    def take(self, page: PolledPage) -> None:
        """Note a page. The operations that it shows are no longer left: it serves some, and get polls the others."""
        for name in (*page.running, *page.others):
            self.left.pop(name, None)
        self.pages += 1
        self.answered += len(page.running)
        self._token = page.next_page_token
        if page.too_large:
            self.page_size //= 2
        in_vain = len(page.running) < MIN_POLLS_PER_PAGE
        self._in_vain += in_vain
        given_up = in_vain and self._in_vain * POLLS_PER_POOR_PAGE > len(self.left)
        self._goes_on = (page.too_large or self._token is not None) and not given_up
