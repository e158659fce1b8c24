"""The errors of requests that got no response, or were not sent: no token, no credentials."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError

from airflow_dai_provider.api.errors import Code, ServiceError
from airflow_dai_provider.api.redaction import redact_urls
from airflow_dai_provider.transport.credentials import TokenRequest, error_in
from airflow_dai_provider.transport.google_errors import class_of, typed

if TYPE_CHECKING:
    from airflow_dai_provider.api import rest
    from airflow_dai_provider.api.endpoint import Endpoint

#: The most characters of a token service's message that are shown: it can be the page of a front end.
_MAX_MESSAGE = 500
#: A token: Google's access tokens, every JWT, and the value of the header.
_TOKEN = re.compile(r"\b(ya29\.|eyJ|Bearer )\S*")
#: What Google's Secret Manager responds when it cannot be asked now, as google-api-core's HTTP status.
_AWAY = frozenset({429, 500, 502, 503, 504})
#: In place of the text of a library, which can hold the password of a proxy.
_INVALID_URL = "the URL of the server, or that of the environment's proxy, cannot be read"
#: How the message of google-auth begins when it has found no credentials.
_FOUND_NONE = "Your default credentials were not found"


def no_response(
    request: rest.Request[Any], endpoint: Endpoint, reason: object, *, untrusted: bool, timed_out: bool, sent: bool
) -> ServiceError:
    """Return the error for a request that got no response.

    :param reason: the library's error.
    :param untrusted: whether the server's certificate does not verify, so that nothing was sent.
    :param timed_out: whether the time was up.
    :param sent: whether the request may have reached the service.
    """
    message = f"{request} got no response from {endpoint.url}: {redact_urls(str(reason) or type(reason).__name__)}"
    if untrusted:
        message += "; the server's certificate is not trusted (REQUESTS_CA_BUNDLE names other authorities)"
        return ServiceError(message, Code.FAILED_PRECONDITION, sent=False, from_front_end=True)
    return ServiceError(message, Code.DEADLINE_EXCEEDED if timed_out else Code.UNAVAILABLE, sent=sent)


def not_sent(request: rest.Request[Any], error: Exception) -> ServiceError:
    """Return the error for a request that the library refuses to send, such as one with a token that fits no header."""
    reason = _INVALID_URL if _is_invalid_url(error) else redact_urls(_without_tokens(error))
    return ServiceError(f"{request} was not sent: {reason}", Code.FAILED_PRECONDITION)


def no_authorities(request: rest.Request[Any], error: OSError) -> ServiceError:
    """Return the error for a request that was not sent because the certificate authorities cannot be read."""
    message = f"{request} was not sent: {error}"
    return ServiceError(message, Code.FAILED_PRECONDITION, sent=False, from_front_end=True)


def chain(error: BaseException | None, end: BaseException | None = None) -> Iterator[BaseException]:
    """Yield an error and its causes down to the root.

    :param end: an error that was being handled before, which is not a cause.
    """
    while error is not None and error is not end:
        yield error
        error = error.__cause__ or error.__context__


def public_cause(error: BaseException | None) -> BaseException | None:
    """Return an error if it may be the cause of another; None if a traceback would then show a secret.

    A proxy's URL can hold a password, and so can a header that the library quotes.
    """
    if _is_invalid_url(error):
        return None
    for link in chain(error):
        text = f"{link} {link!r}"
        if redact_urls(text) != text or _without_tokens(text) != text[:_MAX_MESSAGE] or "uthorization" in text:
            return None
    return error


def _is_invalid_url(error: BaseException | None) -> bool:
    """Return whether requests or urllib3 cannot read a URL, which their texts then show with a proxy's password."""
    return any("InvalidURL" in (kind := type(link).__name__) or kind.startswith("Location") for link in chain(error))


def _is_refusal(error: BaseException, request: TokenRequest) -> bool:
    """Return whether the credentials are refused: by the token service itself, or by google-auth before it asks.

    :param error: one of ``TOKEN_ERRORS``.
    :param request: what google-auth has asked with.
    """
    if not isinstance(error, GoogleAuthError) or error.retryable:
        return False
    if request.status:
        return request.refused
    return not any(isinstance(link, TransportError) for link in chain(error))


class NoTokenError(ServiceError):
    """No token could be fetched; many requests can wait for one, so the message is the reason only."""

    def of(self, request: rest.Request[Any]) -> ServiceError:
        """Return the error of one request, which was not sent."""
        message = f"{request} was not sent: no access token: {self}"
        return typed(ServiceError(message, self.rpc_code, sent=False, from_front_end=self.from_front_end))


def no_token(error: BaseException, token_request: TokenRequest, handled: BaseException | None = None) -> NoTokenError:
    """Return what an error of google-auth means.

    :param error: one of ``TOKEN_ERRORS``. Only its message is kept in it: google-auth also keeps the response, which
        can hold a token and shows in a traceback.
    :param token_request: what google-auth has asked with.
    :param handled: an error that was being handled before, which is not a cause.
    """
    service = f" (token service: {token_request.host})" if token_request.host else ""
    code = Code.UNAVAILABLE
    if _is_invalid_url(error):
        message, code = _INVALID_URL, Code.FAILED_PRECONDITION
    elif isinstance(error, ConnectionError | TimeoutError):
        message = f"{redact_urls(str(error))}{service}"
    elif isinstance(error, OSError):
        message, code = str(error), Code.FAILED_PRECONDITION  # The certificate authorities cannot be read.
    elif not isinstance(error, GoogleAuthError):
        message = f"the response of the token service cannot be read{service}"
    else:
        if _is_refusal(error, token_request):
            code = Code.UNAUTHENTICATED
        for link in chain(error, handled):
            if isinstance(link, GoogleAuthError):
                link.args = (_reason(link),)
        message = f"{redact_urls(error.args[0])}{service}"
        if token_request.from_front_end:
            page = f"{token_request.status} without a JSON error, from a front end or a proxy"
            message = f"the request for it returned {page}: {message}"
    # No service has refused anything: a file that the request needs cannot be read.
    unread = code is not Code.UNAVAILABLE and not token_request.status
    return NoTokenError(message, code, None, False, from_front_end=unread)


def credentials_error(connection: str, source: str, error: Exception) -> ServiceError:
    """Return the error for a connection that gives no credentials.

    :param connection: its id.
    :param source: the field that should give them.
    """
    links = list(chain(error))
    unavailable = (
        any(isinstance(link, TransportError | ConnectionError | TimeoutError) for link in links)
        or any(getattr(link, "rpc_code", getattr(link, "code", None)) in _AWAY for link in links)
        or getattr(error, "retryable", False)
        or _metadata_server_did_not_respond(error)
        or any(_is_page(link) for link in links)
    )
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
    message = f"The connection {connection!r} gives no usable credentials: {source}: "
    message += redact_urls(_without_tokens(reason))
    if unavailable:
        return typed(ServiceError(message, Code.UNAVAILABLE, sent=False))
    # A file is missing or half-written while its key is replaced.
    return unusable(message, from_front_end=True)


def unusable(message: str, *, from_front_end: bool = False) -> ServiceError:
    """Return the error for a connection without usable credentials.

    It is an Unauthenticated for those who catch it, although its code is not UNAUTHENTICATED, since no service has
    refused anything.

    :param from_front_end: whether it is an outage once the API has responded.
    """
    return class_of(Code.UNAUTHENTICATED)(message, Code.FAILED_PRECONDITION, None, False, from_front_end)


def _metadata_server_did_not_respond(error: Exception) -> bool:
    """Return whether google-auth has found no credentials, and would have found them if the metadata server responded.

    It asks that server last, and takes one that does not respond for one that does not exist.
    """
    found_none = isinstance(error, DefaultCredentialsError) and str(error).startswith(_FOUND_NONE)
    return found_none and os.environ.get("NO_GCE_CHECK") != "true"


def _is_page(error: BaseException) -> bool:
    """Return whether a front end has responded to google-auth in place of a token service.

    To find the project of a workload, it fetches a token when the credentials are made; the error keeps the response.
    """
    body = error.args[1] if isinstance(error, GoogleAuthError) and len(error.args) > 1 else None
    return isinstance(body, str) and error_in(body) is None


def _reason(error: GoogleAuthError) -> str:
    """Return the library's message, and that of the API behind it, which the library keeps back."""
    message, *response = error.args or (error,)
    with suppress(ValueError, TypeError, LookupError):
        message = f"{message}: {json.loads(response[0])['error']['message']}"
    return _without_tokens(message)


def _without_tokens(message: object) -> str:
    return _TOKEN.sub(r"\1...", str(message))[:_MAX_MESSAGE]
