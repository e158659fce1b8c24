"""One ``aiohttp`` session, shared by all waits of an event loop, and the meaning of its library's errors."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import certifi
import requests
from aiohttp.http import HttpProcessingError
from asgiref.sync import sync_to_async
from requests.utils import prepend_scheme_if_needed, select_proxy
from yarl import URL

from airflow_dai_provider.api import rest
from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.retry import Pause
from airflow_dai_provider.transport.credentials import (
    MISREAD_ERRORS,
    client_headers,
    refuse_header,
    refuse_plain_http,
)
from airflow_dai_provider.transport.google_errors import typed
from airflow_dai_provider.transport.shared_polls import SharedPolls
from airflow_dai_provider.transport.shared_run import SharedRuns
from airflow_dai_provider.transport.shared_token import Authorisation, Token
from airflow_dai_provider.transport.unsent import NoTokenError, chain, no_response, not_sent, public_cause

if TYPE_CHECKING:
    from airflow_dai_provider.api.endpoint import Endpoint

T = TypeVar("T")

#: The errors of an exchange.
_EXCHANGE_ERRORS = (
    aiohttp.ClientError,
    HttpProcessingError,
    OSError,
    TimeoutError,
    *MISREAD_ERRORS,
)
#: The errors that come before a request is sent.
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError, aiohttp.InvalidURL)

#: The most connections of one session; a request waits for a free one.
MAX_CONNECTIONS = 50
#: The most seconds that a request waits because the service has asked for a pause; a wait polls again later.
MAX_PAUSE = 30.0
#: Seconds for which the certificate authorities are not read again after they were.
AUTHORITIES_LAST = 30.0
#: Seconds that an idle connection stays open: longer than the default interval between two polls.
KEEP_ALIVE = 90.0


class AiohttpTransport:
    """Send requests to one endpoint with one token, once :meth:`open` was awaited on the loop.

    :param endpoint: where the service is.
    :param token: the source of the authorisation of a request; it is fetched in a thread, for which all requests wait.
    :param timeout: seconds that one request may take.
    :param clock: returns monotonic time in seconds.
    :param sleep: waits for seconds.
    :raises ValueError: when a token would leave this machine over plain HTTP.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        token: Token,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        refuse_plain_http(endpoint, token.credentials)
        self.endpoint = endpoint
        self.token = token
        self._fetching: SharedRuns[Authorisation] = SharedRuns()
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None
        # The authorities that a server's certificate is checked with, and when they may be read again.
        self._context: ssl.SSLContext | bool = True
        self._authorities_due = 0.0
        self._proxy: str | None = None
        # A request waits here, before its time begins to run.
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)
        # The pause that the service has asked for, which all requests of the session keep.
        self._pause = Pause()
        self._clock = clock
        self._sleep = sleep
        #: The polls of all waits that use this session.
        self.polls = SharedPolls(self.call, timeout, clock, sleep, self._short_pause)

    async def open(self) -> Self:
        """Open the session; certificates are read in a thread.

        :raises ServiceError: when they cannot be read, or the environment names a proxy that cannot be used.
        """
        try:
            self._context, self._proxy = await sync_to_async(self._read_environment, thread_sensitive=False)()
        except OSError as error:
            message = f"Cannot read the certificate authorities: {error}"
            failure = ServiceError(message, Code.FAILED_PRECONDITION, sent=False, from_front_end=True)
            raise typed(failure) from error
        except ValueError:
            # The cause is left out, since it can hold the proxy's password.
            expected = "expected the proxy of the environment to be an http:// or https:// URL"
            message = f"Nothing was sent to {self.endpoint.url}: {expected} (not shown: it can hold a password)."
            raise typed(ServiceError(message, Code.FAILED_PRECONDITION)) from None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=client_headers(f"aiohttp/{aiohttp.__version__}"),
            skip_auto_headers={"Content-Type"},
            # As large as http.client accepts.
            max_line_size=65536,
            max_field_size=65536,
            timeout=self._timeout,
        )
        return self

    async def close(self) -> None:
        """Close the connections."""
        try:
            await self.polls.close()
        finally:
            # Also when the loop ends, which cancels what closes the session.
            if self._session:
                await self._session.close()
            await self._fetching.close()

    def _read_environment(self) -> tuple[ssl.SSLContext, str | None]:
        """Read the authorities and the proxy from the environment, as ``requests`` does."""
        with requests.Session() as session:
            settings = session.merge_environment_settings(self.endpoint.url, {}, None, None, None)
        bundle = Path(settings["verify"] if isinstance(settings["verify"], str) else certifi.where())
        if not bundle.exists():
            raise FileNotFoundError(f"REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names {bundle}, which does not exist")
        context = ssl.create_default_context(**{"capath" if bundle.is_dir() else "cafile": str(bundle)})  # type: ignore[arg-type]
        proxy = None if self.endpoint.is_loopback else select_proxy(self.endpoint.url, settings["proxies"])
        return context, _proxy_url(proxy) if proxy else None

    async def _read_authorities_again(self) -> None:
        """Read the certificate authorities, which may have been replaced since the session was opened."""
        if self._clock() < self._authorities_due:
            return
        self._authorities_due = self._clock() + AUTHORITIES_LAST
        # A file that is just being replaced is read after a later failure.
        with suppress(OSError):
            self._context, self._proxy = await sync_to_async(self._read_environment, thread_sensitive=False)()

    async def call(self, request: rest.Request[T], until: float = float("inf")) -> T:
        """Send a request once; after a 401 again, with a fresh token, and then with credentials that are read again.

        :param until: the time of the clock at which it has to be sent, also when the service has asked for a pause.
        :raises ServiceError: of the class that belongs to its rpc code, for everything but the response asked for.
        """
        try:
            return await self._call(request, until)
        except NoTokenError as error:
            raise error.of(request) from error.__cause__
        except ServiceError as error:
            raise typed(error) from error.__cause__

    async def _call(self, request: rest.Request[T], until: float) -> T:
        authorisation = await self._authorise()
        for read_again in (False, True):
            try:
                return await self._send(request, authorisation, until)
            except ServiceError as error:
                if error.rpc_code is not Code.UNAUTHENTICATED:
                    raise
                refusal = error
            refused, authorisation = authorisation, await self._authorise(authorisation, read_again=read_again)
            if authorisation is refused:
                raise refusal
        return await self._send(request, authorisation, until)

    async def _authorise(self, refused: Authorisation | None = None, *, read_again: bool = False) -> Authorisation:
        """Return what authorises a request, as :meth:`Token.get` does."""
        if found := self.token.at_hand(refused, read_again=read_again):
            return found
        get = sync_to_async(self.token.get, thread_sensitive=False)
        return await self._fetching.run((refused, read_again), partial(get, refused, read_again=read_again))

    async def _send(self, request: rest.Request[T], authorisation: Authorisation, until: float) -> T:
        headers = authorisation.headers
        for name, value in headers.items():
            try:
                refuse_header(name, value)
            except ValueError as error:
                raise not_sent(request, error) from None
        try:
            async with self._free:
                # Here, since many requests can wait for a free connection when one of them is asked to wait.
                await self._keep_pause(request, until)
                response = await self._exchange(request, headers)
        except _EXCHANGE_ERRORS as error:
            failure, cause = self._transport_error(request, error), public_cause(error)
            if _is_untrusted(error):
                await self._read_authorities_again()
        else:
            try:
                return rest.read_response(request, response, datetime.now(UTC))
            except ServiceError as refusal:
                self._pause.note(refusal, self._clock())
                raise
        # Raised here, so that no error with a secret is the context of this one.
        raise failure from cause

    async def _keep_pause(self, request: rest.Request[Any], until: float) -> None:
        """Wait as long as the service has asked another request to wait; raise when that is too long."""
        while delay := self._pause.delay(now := self._clock()):
            if delay > MAX_PAUSE or now + delay > until:
                raise self._pause.error(request, delay)
            await self._sleep(delay)

    def _short_pause(self) -> float:
        """Return the seconds that are left of a pause, if it is so short that requests wait for its end."""
        delay = self._pause.delay(self._clock())
        return delay if delay <= MAX_PAUSE else 0.0

    async def _exchange(self, request: rest.Request[Any], headers: Mapping[str, str]) -> rest.Response:
        if self._session is None:
            raise RuntimeError("The session is not open.")
        async with self._session.request(
            request.http_method,
            # The path is encoded already; yarl would decode part of it.
            URL(self.endpoint.url + request.path, encoded=True),
            json=request.body,
            headers=headers,
            allow_redirects=False,
            proxy=self._proxy,
            ssl=self._context,
        ) as response:
            body = await _read_body(response)
            return rest.Response(response.status, response.headers, body, str(self.endpoint))

    def _transport_error(self, request: rest.Request[Any], error: Exception) -> ServiceError:
        """Translate an error of the library: whether a retry can help, and whether the service may have acted."""
        return no_response(
            request,
            self.endpoint,
            _reason(error),
            untrusted=_is_untrusted(error),
            timed_out=isinstance(error, TimeoutError),
            sent=not isinstance(error, _NEVER_SENT),
        )


def _is_untrusted(error: Exception) -> bool:
    return isinstance(error, aiohttp.ClientConnectorCertificateError)


def _reason(error: Exception) -> object:
    """Return the words of an error, without the status that the library gives to a response that has none."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy returned {error.status} {error.message}"
    for link in chain(error):
        if isinstance(link, aiohttp.ClientResponseError | HttpProcessingError):
            return " ".join(link.message.split())[:200]
    return error


def _proxy_url(proxy: str) -> str:
    url: str = prepend_scheme_if_needed(proxy, "http")
    parts = urlsplit(url)
    # aiohttp would speak HTTP to it nevertheless; a port that is not a number raises.
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError
    return url


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Read a response as it arrives, so that a large one does not fill the memory."""
    body = await response.content.read(rest.MAX_RESPONSE_BYTES + 1)
    if response.content.at_eof() or len(body) > rest.MAX_RESPONSE_BYTES:
        return body
    chunks = [body]
    size = len(body)
    while size <= rest.MAX_RESPONSE_BYTES and (
        chunk := await response.content.read(rest.MAX_RESPONSE_BYTES + 1 - size)
    ):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)
