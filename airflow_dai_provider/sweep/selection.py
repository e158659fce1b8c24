"""The selection of a sweep: which of the listed operations are strays. Pure."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from airflow_dai_provider.api.names import InvalidNameError
from airflow_dai_provider.api.operation import Ingest, Operation
from airflow_dai_provider.api.parameters import (
    MAX_SECONDS,
    check_flag,
    check_optional_text,
    check_seconds,
    template_hint,
)
from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.tasks.one_or_many import check_operation_names

if TYPE_CHECKING:
    from airflow_dai_provider.sweep.verdicts import Verdict


class PassedOver(StrEnum):
    """The reason why an operation is not selected."""

    FINISHED = "finished"
    SPARED = "spared"
    OTHER_URL = "other_url"
    OWNED = "owned"
    UNOWNED = "unowned"
    UNDATED = "undated"
    YOUNGER = "younger"


@dataclass(frozen=True, slots=True)
class Stray:
    """An operation that a sweep has selected.

    :param name: ``operations/...``.
    :param create_time: ISO 8601, or None where the service has not set it.
    :param age: seconds since then.
    :param creative_url: without user, query and fragment.
    :param owner: its owner, and why it is a stray; None for one without an owner, which is too old.
    """

    name: str
    create_time: str | None
    age: int | None
    creative_url: str | None
    owner: Verdict | None = None

    def __str__(self) -> str:
        age = "of unknown age" if self.age is None else f"{timedelta(seconds=self.age)} old"
        owner = f"; {self.owner}" if self.owner else ""
        return f"{self.name} ({age}, {self.creative_url or 'of unknown URL'}{owner})"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "create_time": self.create_time,
            "age": self.age,
            "creative_url": self.creative_url,
            "owner": self.owner.to_dict() if self.owner else None,
        }


@dataclass(frozen=True, slots=True)
class Selection:
    """The filters of a sweep: running operations that are old enough, match every filter, and are not spared.

    :param older_than: seconds, for operations without an owner; None to leave these alone.
    :param url_prefix: the beginning of the media URL.
    :param url_pattern: a pattern that is found somewhere in the media URL.
    :param spare: names that are left alone.
    :param include_undated: whether an operation without a create time counts as old enough.
    :param unowned_until: seconds since the epoch; operations without an owner that were created earlier are left alone.
    :param only: the names to select from, or None: the others are left alone too.
    """

    older_than: float | None
    url_prefix: str | None = None
    url_pattern: re.Pattern[str] | None = None
    spare: frozenset[str] = frozenset()
    include_undated: bool = False
    unowned_until: float = 0.0
    only: frozenset[str] | None = None

    @classmethod
    def read(
        cls, *, older_than: object, url_prefix: object, url_pattern: object, spare: object, include_undated: object
    ) -> Self:
        """Read the parameters of a task.

        :raises ValueError: for the first invalid one; the message says what was given and what was expected.
        """
        if include_undated is True and older_than is None:
            raise ValueError(
                "include_undated needs older_than: without it, operations without an owner are left alone."
            )
        pattern = check_optional_text("url_pattern", url_pattern, "a regular expression")
        return cls(
            older_than=None if older_than is None else check_duration("older_than", older_than),
            url_prefix=check_optional_text("url_prefix", url_prefix, "the beginning of a URL"),
            url_pattern=None if pattern is None else _compile("url_pattern", pattern),
            spare=_check_spare(spare),
            include_undated=check_flag("include_undated", include_undated),
        )

    @property
    def takes_every_url(self) -> bool:
        """Whether no filter leaves out operations by their media."""
        return self.url_prefix is None and self.url_pattern is None

    def passes_over(self, operation: Operation) -> PassedOver | None:
        """Return why an operation is not selected, whatever its owner and its age; None for one that may be."""
        if operation.done:
            return PassedOver.FINISHED
        if operation.name in self.spare or (self.only is not None and operation.name not in self.only):
            return PassedOver.SPARED
        if not self._matches((operation.ingest or Ingest()).signed_creative_url):
            return PassedOver.OTHER_URL
        return None

    def judge(self, operation: Operation, now: float, owner: Verdict | None = None) -> Stray | PassedOver:
        """Decide whether an operation is selected: by its owner, else by its age.

        :param now: seconds since the epoch.
        :param owner: the verdict by its owner, if it has one.
        """
        if why := self.passes_over(operation):
            return why
        ingest = operation.ingest or Ingest()
        created = _timestamp(ingest.create_time)
        dated = ingest.create_time is not None and created is not None
        stray = Stray(
            operation.name,
            ingest.create_time.isoformat() if ingest.create_time and created else None,
            # The clock of the service can be ahead.
            max(0, int(now - created)) if created else None,
            ingest.creative_url,
            owner,
        )
        if owner:
            return stray if owner.is_stray else PassedOver.OWNED
        if self.older_than is None or (created or 0.0) < self.unowned_until:
            return PassedOver.UNOWNED
        if not dated:
            return stray if self.include_undated else PassedOver.UNDATED
        return PassedOver.YOUNGER if created is not None and now - created <= self.older_than else stray

    def _matches(self, url: str | None) -> bool:
        if self.url_prefix is None and self.url_pattern is None:
            return True
        return (
            url is not None
            and (self.url_prefix is None or url.startswith(self.url_prefix))
            and (self.url_pattern is None or self.url_pattern.search(url) is not None)
        )


def check_duration(parameter: str, value: object) -> float:
    """Return the seconds of a duration, which can also be the text of a number: a template gives that.

    :raises ValueError: when that is not a positive duration; the message says what was given and what was expected.
    """
    number: object = value
    if isinstance(value, str):
        with suppress(ValueError):
            number = float(value)
    try:
        return check_seconds(parameter, number)
    except ValueError:
        expected = f"a timedelta, or a positive number of seconds, at most {MAX_SECONDS:,.0f}, or a text such as '6h'"
        hint = template_hint(value) if isinstance(value, str) else ""
        raise ValueError(f"Invalid {parameter} {short_repr(value)}: expected {expected}.{hint}") from None


def check_count(parameter: str, value: object, most: int | None = None) -> int:
    """Return a positive whole number.

    :raises ValueError: when it is something else; the message says what was given and what was expected.
    """
    if type(value) is int and 1 <= value <= (value if most is None else most):
        return value
    bounds = ", 1 or more" if most is None else f" from 1 to {most}"
    raise ValueError(f"Invalid {parameter} {short_repr(value)}: expected a whole number{bounds}.")


def _compile(parameter: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        message = f"Invalid {parameter} {short_repr(pattern)}: expected a regular expression ({error})."
        raise ValueError(message) from error


def _check_spare(value: object) -> frozenset[str]:
    """Return the names; an invalid one is refused, since its operation would not be spared."""
    if value is None:
        return frozenset()
    try:
        return frozenset(check_operation_names(value, "spare", in_order=False)[0])
    except InvalidNameError as error:
        raise ValueError(f"Invalid spare: {error}") from error


def _timestamp(time: datetime | None) -> float | None:
    """Return the seconds since the epoch; the epoch itself is a time that was not set."""
    seconds = time.timestamp() if time else 0.0
    return seconds if seconds > 0 else None
