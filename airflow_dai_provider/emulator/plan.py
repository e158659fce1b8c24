"""What an ingest is going to do: how long it takes, how it ends, and what a cancel request does to it.

A user of plain HTTP chooses it by query parameters of the media URL; see :data:`URL_HELP`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlsplit

from airflow_dai_provider.emulator.errors import wrong_value

URL_HELP = """\
What an ingest does is chosen by query parameters of its media URL (the first mezzanine, else the first
media file), for example https://media.example/ad.mp4?seconds=30&outcome=DOWNLOAD_ERROR&code=403
  seconds=30         how long the ingest takes (inf: it never ends by itself)
  outcome=success    or DOWNLOAD_ERROR, INVALID_MEDIA, INTERNAL_ERROR
  code=404           HTTP status of the download, with outcome=DOWNLOAD_ERROR only
  cancel=honoured    or ignored: the ingest completes in spite of a cancel request
  cancel_seconds=2   from the cancel request to the end; an ingest that ends before ends its own way
Other parameters are left alone; those not given follow the emulator's options."""

OUTCOMES = ("success", "DOWNLOAD_ERROR", "INVALID_MEDIA", "INTERNAL_ERROR")
CANCEL_MODES = ("honoured", "ignored")
_DOWNLOAD_STATUS = 404


@dataclass(frozen=True)
class Plan:
    """What an ingest is going to do.

    :param seconds: how long it takes; ``math.inf`` for one that never ends by itself.
    :param outcome: ``success``, or the reason of its failure.
    :param code: HTTP status of the failed download, for ``DOWNLOAD_ERROR`` only; default 404.
    :param cancel: ``honoured``, or ``ignored`` for an ingest that completes in spite of a cancel request.
    :param cancel_seconds: from the cancel request to the end; an ingest that ends before ends its own way.
    :raises ValueError: for a value that none of these can have.
    """

    seconds: float = 5.0
    outcome: str = "success"
    code: int | None = None
    cancel: str = "honoured"
    cancel_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense, whoever asked for it."""
        check_seconds("seconds", self.seconds)
        check_seconds("cancel_seconds", self.cancel_seconds)
        if self.outcome not in OUTCOMES:
            raise wrong_value("outcome", self.outcome, f"one of {', '.join(OUTCOMES)}")
        if self.cancel not in CANCEL_MODES:
            raise wrong_value("cancel", self.cancel, f"one of {', '.join(CANCEL_MODES)}")
        if self.code is not None and self.outcome != "DOWNLOAD_ERROR":
            raise wrong_value("code", self.code, f"none with outcome={self.outcome}, only with DOWNLOAD_ERROR")
        if self.code is not None and not 100 <= self.code <= 599:
            raise wrong_value("code", self.code, "an HTTP status from 100 to 599")

    @property
    def download_status(self) -> int | None:
        """HTTP status of the failed download, None where no download failed."""
        if self.outcome != "DOWNLOAD_ERROR":
            return None
        return _DOWNLOAD_STATUS if self.code is None else self.code


def plan_from_url(url: str, defaults: Plan, **given: float | str | None) -> Plan:
    """Read the plan from the query of a media URL.

    :param url: the media URL; parameters with other names are left alone.
    :param defaults: what holds where nobody says otherwise.
    :param given: fields of the plan that win over the URL, where they are not None.
    :return: the plan.
    :raises ValueError: for a URL that cannot be split, and a field with a value it cannot have.
    """
    query = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    changes: dict[str, float | str] = {
        name: read(name, query[name]) for name, read in _PARAMETERS.items() if name in query
    }
    changes.update({name: value for name, value in given.items() if value is not None})
    return replace(defaults, **changes)  # type: ignore[arg-type]


def check_seconds(name: str, value: float) -> None:
    """Refuse a duration that is negative or not a number.

    :param name: what the duration is called.
    :param value: the duration in seconds; infinite is fine.
    :raises ValueError: if it is no duration.
    """
    if math.isnan(value) or value < 0:
        raise wrong_value(name, value, "a number of seconds, 0 or more")


def _seconds(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise wrong_value(name, text, "a number of seconds, 0 or more") from None


def _status(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise wrong_value(name, text, "an HTTP status from 100 to 599") from None


def _word(name: str, text: str) -> str:  # noqa: ARG001 (the signature of a reader)
    return text


_PARAMETERS: dict[str, Callable[[str, str], float | str]] = {
    "seconds": _seconds,
    "outcome": _word,
    "code": _status,
    "cancel": _word,
    "cancel_seconds": _seconds,
}
