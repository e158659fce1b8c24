"""The synchronous hook, on one authorised ``requests`` session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from google.api_core import exceptions

from airflow_dai_provider import metrics
from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.listing import Listing
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.parameters import Duration
from airflow_dai_provider.hooks.polls import DaiPollingHook
from airflow_dai_provider.transport.google_errors import typed
from airflow_dai_provider.transport.requests_session import RequestsTransport
from airflow_dai_provider.transport.shared_token import HeldToken


class DaiHook(DaiPollingHook):
    """Talk to the DAI service with the credentials of a Google Cloud connection.

    Every way to authenticate that such a connection offers works, since the credentials are made by
    ``GoogleBaseHook``. The endpoint is the first of these that is set: ``api_endpoint``; the environment variable
    ``DAI_EMULATOR_HOST`` (then no connection and no credentials are needed); ``dai_api_endpoint`` in the
    connection's extra; ``https://dai.<universe domain>``.

    A failed request is retried up to the connection's ``num_retries`` times (default 5), where a retry is safe, with
    exponential backoff. An error of the service is raised as the class of
    ``google.api_core.exceptions`` that belongs to its rpc code: ``NotFound``, ``MethodNotImplemented``
    (UNIMPLEMENTED), ``FailedPrecondition``, ``ServiceUnavailable`` (also when it cannot be reached), and so on.

    The hook keeps one session; use it as a context manager, or call :meth:`close`, to close that session.

    :param gcp_conn_id: the Google Cloud connection.
    :param impersonation_chain: service account(s) to impersonate, as in every Google operator.
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own.
    :param timeout: seconds that one request may take in all, over every address of the host. Here and in methods, a
        duration can also be a timedelta, or a text such as ``"90s"``.
    :param retry_timeout: seconds after which one call is not retried again; 0 for no retry.
    :raises ValueError: for a timeout that is not a positive number, and for a bad endpoint.
    """

    def cancel_operation(self, name: str) -> None:
        """Request the cancellation of an operation: best effort and asynchronous, so poll with :meth:`get_operation`.

        :param name: ``operations/...``.
        :raises InvalidNameError: for a name that cannot be one, before anything is sent.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        self._call(rest.cancel_operation(name))
        metrics.count_cancel_requested()

    def prepare_cancellation(self, *, fetch_token: bool = True) -> Callable[[str, float], None]:
        """Prepare cancel requests that can be sent from a signal handler, one at a time.

        They have a session of their own, and take the token that this hook holds when they are sent. A signal handler
        can interrupt any code, so by then nothing is looked up, no token is fetched, nothing is logged or counted, and
        nothing is retried.

        :param fetch_token: whether a hook that has no token yet fetches one now; once is enough for several sessions.
        :return: a function that takes a name and a timeout in seconds, and sends the request. It raises
            ``google.api_core.exceptions.GoogleAPICallError`` as a call of the hook does, and InvalidNameError for an
            invalid name.
        """
        endpoint = self.endpoint
        if fetch_token:
            # The task can be killed before the first call has fetched a token. An error is left for that call to meet.
            with suppress(ServiceError):
                self.shared_token().fetch_first()
        transport = RequestsTransport(endpoint, HeldToken(lambda: self._token), self.timeout)

        def send(name: str, timeout: float) -> None:
            transport.timeout = timeout
            transport.call(rest.cancel_operation(name))

        return send

    def get_operation(self, name: str, *, retry: bool = True) -> Operation:
        """Return the latest state of an operation.

        :param name: ``operations/...``.
        :param retry: whether a failed request is retried.
        :raises InvalidNameError: for a name that cannot be one, before anything is sent.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        request = rest.get_operation(name)
        metrics.count_polls()
        return self._call(request, retry=retry)

    def list_operations(
        self,
        filter_: str | None = None,
        page_size: int | None = None,
        *,
        on_unreadable: Callable[[str], None] | None = None,
    ) -> Iterator[Operation]:
        """Yield the operations that the service lists, page by page as they are consumed.

        An item of the list that is not an operation, or has no valid name, is passed over; the log has their number.

        :param filter_: the service's standard list filter.
        :param page_size: how many operations one request may bring; fewer where the response would be too large.
        :param on_unreadable: called for each item that is passed over, with what is wrong with it.
        :raises ValueError: for a page size that is not a positive whole number.
        :raises google.api_core.exceptions.GoogleAPICallError: also ``MethodNotImplemented`` on a server without list.
        """
        listing = Listing(filter_, page_size)
        unreadable: list[str] = []
        while listing.request:
            page = self._call(listing.request)
            yield from page.operations
            for problem in page.unreadable:
                unreadable.append(problem)
                if on_unreadable:
                    on_unreadable(problem)
            if endless := listing.take(page):
                raise typed(ServiceError(endless, Code.UNKNOWN))
        if unreadable:
            message = "operations.list: %d unreadable operations were passed over; of the first: %s"
            self.log.warning(message, len(unreadable), unreadable[0])

    def delete_operation(self, name: str) -> None:
        """Tell the service that the client has lost interest in an operation; this does **not** cancel it.

        :param name: ``operations/...``.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        self._call(rest.delete_operation(name))

    def wait_for_operation(
        self, name: str, *, timeout: Duration | None = None, poll_interval: Duration = 30.0
    ) -> Operation:
        """Poll an operation until it has finished; quickly at first, later once per interval; one log line per poll.

        A poll that fails is made again, for up to ``polling.MAX_OUTAGE`` seconds.

        :param name: ``operations/...``.
        :param timeout: seconds to wait at most, or None for no limit.
        :param poll_interval: the most seconds between two polls.
        :return: the operation, in any final state.
        :raises WaitTimeoutError: when it has not finished in time; nothing is cancelled.
        :raises google.api_core.exceptions.GoogleAPICallError: when it cannot be polled.
        """
        wait = self.make_wait(name, timeout=timeout, poll_interval=poll_interval)
        while not (operation := self.poll(wait)).done:
            seconds, line = wait.after_poll(operation, self._clock())
            self.log.info("%s", line)
            self._sleep(seconds)
        return operation

    def create_creative(
        self, creative: Mapping[str, Any], dynamic_creative_info: Mapping[str, Any] | None = None
    ) -> Operation:
        """Start the ingest of a creative.

        The request is retried only where the service has certainly not acted on it. After any other error an ingest
        may run under an unknown name.

        :param creative: the JSON object ``Creative``: ``{"adSystem": str, "mediaFiles": [{"uri": str,
            "delivery": str, "mimeType": str}], ...}``.
        :param dynamic_creative_info: the JSON object ``{"dynamicGroupId": str, "activeDuration": "3.5s"}``, or None.
        :return: the operation; its ``name`` is what a cancel and a poll need.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        return self._call(rest.create_creative(creative, dynamic_creative_info))

    def get_creative(self, name: str) -> dict[str, Any]:
        """Return a creative.

        :param name: ``creatives/...``, one segment.
        :return: the JSON object ``Creative``.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        return self._call(rest.get_creative(name))

    def delete_creative(self, name: str) -> None:
        """Delete a creative.

        :param name: ``creatives/...``, one segment.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        self._call(rest.delete_creative(name))

    def test_connection(self) -> tuple[bool, str]:
        """List one operation of the service; this reads and changes nothing.

        Airflow's Test button calls the Google Cloud hook's method, which asks the token service only.

        :return: whether the service accepted these credentials, and its response.
        """
        try:
            next(self.list_operations(page_size=1), None)
        except exceptions.MethodNotImplemented as error:
            return self._test_by_get(error)
        except Exception as error:
            return False, str(error)
        return True, f"{self.endpoint.url} responded to operations.list."

    def _test_by_get(self, no_list: Exception) -> tuple[bool, str]:
        """Test a server without list: it should respond in JSON that it does not know this operation."""
        try:
            self.get_operation("operations/airflow-dai-provider-connection-test")
        except exceptions.NotFound:
            pass  # as expected
        except Exception as error:
            return False, f"{no_list} {error}"
        return True, f"{self.endpoint.url} responded to operations.get; it has no operations.list."
