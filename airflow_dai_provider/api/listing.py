"""Reading the whole list of operations, page by page. Pure: the caller sends the requests."""

from __future__ import annotations

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.operation_page import OperationPage

#: The most pages in a row without a new operation; a filter can leave pages empty.
MAX_IDLE_PAGES = 1_000


class Listing:
    """One reading of the list.

    A page that is too large is asked for again with half as many operations, and so are those after it.

    :param filter_: the service's standard list filter.
    :param page_size: how many operations a page may bring, or None for as many as the service likes.
    :raises ValueError: for a page size that is not a positive whole number.
    """

    def __init__(self, filter_: str | None = None, page_size: int | None = None) -> None:
        self._filter = filter_
        self._page_size = page_size
        self._token: str | None = None
        self._tokens: set[str] = set()
        self._names: set[str] = set()
        self._pages = 0
        self._idle = 0
        #: The request for the next page; None after the last one.
        self.request: rest.Request[OperationPage] | None = rest.list_operations(filter_, page_size)

    def take(self, page: OperationPage) -> str | None:
        """Note the requested page; return a description of the problem if the list would never end, else None."""
        if page.too_large:
            self._page_size = (self._page_size or rest.LIST_PAGE_SIZE) // 2
        else:
            self._note(page)
            if problem := self._problem():
                return problem
        more = page.too_large or self._token is not None
        self.request = rest.list_operations(self._filter, self._page_size, self._token) if more else None
        return None

    def _note(self, page: OperationPage) -> None:
        new = {operation.name for operation in page.operations} - self._names
        self._names |= new
        self._pages += 1
        self._idle = 0 if new else self._idle + 1
        self._token = page.next_page_token

    def _problem(self) -> str | None:
        if self._token is None:
            return None
        read = f"the list does not end; {self._pages:,} pages of it have shown {len(self._names):,} operations"
        if self._token in self._tokens:
            return f"operations.list returned the same page token twice: {self._token}; {read}"
        if self._idle >= MAX_IDLE_PAGES:
            return f"operations.list returned {self._idle:,} pages in a row without another operation; {read}"
        self._tokens.add(self._token)
        return None
