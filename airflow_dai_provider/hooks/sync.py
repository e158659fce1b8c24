"""The synchronous hook, on one authorised ``requests`` session."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from random import random
from typing import Any, TypeVar

from google.api_core import exceptions

from airflow_dai_provider import metrics
from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import Repeats, ServiceError
from airflow_dai_provider.api.operation import Operation
from airflow_dai_provider.api.polling import Wait, describe_look
from airflow_dai_provider.hooks.base import DaiBaseHook
from airflow_dai_provider.transport.credentials import held_token
from airflow_dai_provider.transport.errors import api_error
from airflow_dai_provider.transport.sync_session import RequestsTransport

T = TypeVar("T")


class DaiHook(DaiBaseHook):
    """
    Talk to the DAI service with the credentials of a Google Cloud connection.

    Every way to authenticate that such a connection offers works, since the credentials are made by
    ``GoogleBaseHook``. The endpoint is the first of these that is set: ``api_endpoint``; the environment variable
    ``DAI_EMULATOR_HOST`` (then no connection and no credentials are needed); ``dai_api_endpoint`` in the
    connection's extra; ``https://dai.<universe domain>``.

    Failing requests are repeated as often as the connection's ``num_retries`` says (default 5), where repeating is
    safe, with exponential backoff. An error of the service is raised as the class of
    ``google.api_core.exceptions`` that belongs to its rpc code: ``NotFound``, ``MethodNotImplemented``
    (UNIMPLEMENTED), ``FailedPrecondition``, ``ServiceUnavailable`` (also when it cannot be reached), and so on.

    The hook keeps one session; use it as a context manager, or call :meth:`close`, to close that session.

    :param gcp_conn_id: the Google Cloud connection.
    :param impersonation_chain: service account(s) to impersonate, as in every Google operator.
    :param api_endpoint: ``host``, ``host:port`` or ``https://host:port`` instead of Google's own.
    :param timeout: seconds that one request may take to connect, for each piece of the answer's headers to come, and
        for its body to end.
    :param retry_timeout: seconds after which one call is not repeated again; 0 for no repeat at all.
    :raises ValueError: for a timeout that is no positive number, and for a bad endpoint.
    """

    #: Replaced in tests; time and chance are the only things that are.
    _sleep: Callable[[float], None] = staticmethod(time.sleep)
    _clock: Callable[[], float] = staticmethod(time.monotonic)
    _random: Callable[[], float] = staticmethod(random)

    def cancel_operation(self, name: str) -> None:
        """
        Ask the service to cancel an operation; best effort and asynchronous, so look with :meth:`get_operation`.

        :param name: ``operations/...``.
        :raises InvalidNameError: for a name that cannot be one, before anything is sent.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        self._call(rest.cancel_operation(name))
        metrics.count_cancel_requested()

    def prepare_cancellation(self, name: str, *, timeout: float) -> Callable[[], None]:
        """
        Prepare a cancel request that can be sent from a signal handler.

        It has a session of its own and the token that this hook holds when it is sent: then nothing is looked up,
        no token is fetched, and nothing is repeated. A hook that has no token yet fetches one now.

        :param name: ``operations/...``.
        :param timeout: seconds that connecting, the beginning of the answer, and its end may each take.
        :return: sends the request; raises ``google.api_core.exceptions.GoogleAPICallError`` as a call of the hook does.
        :raises InvalidNameError: for a name that cannot be one.
        """
        request = rest.cancel_operation(name)
        # A kill can come before the first call has fetched one.
        self._get_transport().fetch_first_token(request)
        transport = RequestsTransport(self.endpoint, held_token(self.get_credentials()), timeout)

        def send() -> None:
            with api_error():
                transport.call(request)

        return send

    def get_operation(self, name: str) -> Operation:
        """
        Return the latest state of an operation.

        :param name: ``operations/...``.
        :raises InvalidNameError: for a name that cannot be one, before anything is sent.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        request = rest.get_operation(name)
        metrics.count_looks()
        return self._call(request)

    def list_operations(self, filter_: str | None = None, page_size: int | None = None) -> Iterator[Operation]:
        """
        Yield the operations that the service lists, page by page as they are consumed.

        :param filter_: the service's standard list filter.
        :param page_size: how many operations one request may bring.
        :raises ValueError: for a page size that is no positive whole number.
        :raises google.api_core.exceptions.GoogleAPICallError: also ``MethodNotImplemented`` on a server without list.
        """
        token: str | None = None
        seen: set[str] = set()
        while True:
            page = self._call(rest.list_operations(filter_, page_size, token))
            yield from page.operations
            if page.next_page_token is None:
                return
            if page.next_page_token in seen:
                raise exceptions.Unknown(f"operations.list answered the same page token twice: {page.next_page_token}")
            token = page.next_page_token
            seen.add(token)

    def delete_operation(self, name: str) -> None:
        """
        Tell the service that nobody is interested in an operation any more; this does **not** cancel it.

        :param name: ``operations/...``.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        self._call(rest.delete_operation(name))

    def wait_for_operation(self, name: str, *, timeout: float | None = None, poll_interval: float = 30.0) -> Operation:
        """
        Look at an operation until it has ended; quickly at first, later once per interval; one log line per look.

        A look that fails is repeated like any call, and then made again at the next interval, for up to
        ``polling.MAX_OUTAGE`` seconds.

        :param name: ``operations/...``.
        :param timeout: seconds to wait at most, or None for no limit.
        :param poll_interval: the most seconds between two looks.
        :return: the operation, ended in whatever way.
        :raises WaitTimeoutError: when it has not ended in time; nothing is cancelled.
        :raises google.api_core.exceptions.GoogleAPICallError: when it cannot be looked at.
        """
        wait = Wait(name, started=self._clock(), poll_interval=poll_interval, timeout=timeout, jitter=self._random)
        request = rest.get_operation(name)
        while True:
            metrics.count_looks()
            try:
                operation = self._send_and_repeat(request, wait.time_left(self._clock()))
            except ServiceError as error:
                with api_error():
                    seconds, line = wait.after_error(error, self._clock())
                self.log.warning("%s", line)
            else:
                if operation.done:
                    return operation
                now = self._clock()
                seconds = wait.after_look(operation, now)
                self.log.info("%s", describe_look(operation, wait.elapsed(now), seconds))
            self._sleep(seconds)

    def create_creative(
        self, creative: Mapping[str, Any], dynamic_creative_info: Mapping[str, Any] | None = None
    ) -> Operation:
        """
        Start the ingest of a creative.

        The request is repeated only where the service has certainly not acted on it. After any other error an
        ingest may run whose name is not known.

        :param creative: the JSON object ``Creative``: ``{"adSystem": str, "mediaFiles": [{"uri": str,
            "delivery": str, "mimeType": str}], ...}``.
        :param dynamic_creative_info: the JSON object ``{"dynamicGroupId": str, "activeDuration": "3.5s"}``, or None.
        :return: the operation, whose ``name`` cancels and looks need.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        return self._call(rest.create_creative(creative, dynamic_creative_info))

    def get_creative(self, name: str) -> dict[str, Any]:
        """
        Return a creative.

        :param name: ``creatives/...``, one segment.
        :return: the JSON object ``Creative``.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        return self._call(rest.get_creative(name))

    def delete_creative(self, name: str) -> None:
        """
        Delete a creative.

        :param name: ``creatives/...``, one segment.
        :raises google.api_core.exceptions.GoogleAPICallError: of the class that belongs to the rpc code.
        """
        self._call(rest.delete_creative(name))

    def test_connection(self) -> tuple[bool, str]:
        """
        Ask DAI itself for one operation; this reads and changes nothing.

        Airflow's Test button calls the Google Cloud hook's method, which asks the token service only.

        :return: whether DAI answered these credentials, and what it said.
        """
        try:
            next(self.list_operations(page_size=1), None)
        except exceptions.MethodNotImplemented as error:
            return self._test_by_get(error)
        except Exception as error:
            return False, str(error)
        return True, f"{self.endpoint.url} answered operations.list."

    def _test_by_get(self, no_list: Exception) -> tuple[bool, str]:
        """Test a server without list: it should not know this operation, and say so in JSON."""
        try:
            self.get_operation("operations/airflow-dai-provider-connection-test")
        except exceptions.NotFound:
            pass  # as it should be
        except Exception as error:
            return False, f"{no_list} {error}"
        return True, f"{self.endpoint.url} answered operations.get; it has no operations.list."

    def make_repeats(self, request: rest.Request[Any], started: float, within: float) -> Repeats:
        """Return how a call is repeated that began at ``started`` and is awaited for ``within`` seconds."""
        return Repeats(
            request.repeat_after,
            num_retries=max(0, self.num_retries),
            retry_timeout=min(self.retry_timeout, within),
            started=started,
            jitter=self._random,
        )

    def _call(self, request: rest.Request[T]) -> T:
        with api_error():
            return self._send_and_repeat(request)

    def _send_and_repeat(self, request: rest.Request[T], within: float = float("inf")) -> T:
        """Send a request, and again after errors that allow it; raises the last ServiceError."""
        repeats = self.make_repeats(request, self._clock(), within)
        while True:
            try:
                return self._get_transport().call(request)
            except ServiceError as error:
                seconds = repeats.after(error, self._clock())
                self.log.warning("%s; attempt %d, next in %.1f s", error, repeats.attempts, seconds)
                metrics.count_repeat()
            self._sleep(seconds)
