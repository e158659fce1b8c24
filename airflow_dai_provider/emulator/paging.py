"""The query of ``operations.list``: filter, page size and page token."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

from airflow_dai_provider.emulator.errors import ApiError

DEFAULT_PAGE_SIZE = 100
LARGEST_PAGE_SIZE = 1000
_FILTER = re.compile(r"\s*done\s*=\s*(true|false)\s*")
_TOKEN = re.compile(r"after:(\d{1,18}):(True|False|None)", re.ASCII)


@dataclass(frozen=True)
class Page:
    """Which operations a list request asks for.

    :param size: how many at most.
    :param after: serial number of the last operation of the page before, 0 for the first page.
    :param done: True or False for finished or running ones only, None for all.
    """

    size: int
    after: int
    done: bool | None

    def token_after(self, serial: int) -> str:
        """Write the token of the next page.

        The serial number stays true when operations appear or are deleted between two pages.

        :param serial: serial number of the last operation of this page.
        """
        return base64.urlsafe_b64encode(f"after:{serial}:{self.done}".encode()).decode()


def read_page(query: Mapping[str, str]) -> Page:
    """Read what a list request asks for.

    :param query: ``filter``, ``pageSize`` and ``pageToken``, each optional or empty.
    :return: the page.
    :raises ApiError: INVALID_ARGUMENT, naming the parameter.
    """
    done = _read_filter(query.get("filter", ""))
    return Page(_read_size(query.get("pageSize", "")), _read_token(query.get("pageToken", ""), done), done)


def _read_filter(text: str) -> bool | None:
    if not text.strip():
        return None
    match = _FILTER.fullmatch(text)
    if match is None:
        raise _invalid("filter", "only done=true and done=false are supported")
    return match[1] == "true"


def _read_size(text: str) -> int:
    try:
        size = int(text or 0)
    except ValueError:
        raise _invalid("pageSize", "must be an integer") from None
    if size < 0:
        raise _invalid("pageSize", "must not be negative")
    return min(size, LARGEST_PAGE_SIZE) or DEFAULT_PAGE_SIZE


def _read_token(text: str, done: bool | None) -> int:
    if not text:
        return 0
    try:
        token = base64.b64decode(text, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        token = ""
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise _invalid("pageToken", "is not a token of this service")
    if match[2] != str(done):
        raise _invalid("pageToken", "belongs to a request with another filter")
    return int(match[1])


def _invalid(parameter: str, problem: str) -> ApiError:
    return ApiError("INVALID_ARGUMENT", f"Invalid value of '{parameter}': {problem}.")
