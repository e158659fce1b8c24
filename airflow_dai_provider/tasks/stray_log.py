"""Name in the log each operation that a killed or failed task may leave running."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from airflow_dai_provider.api.many_wait import MAX_NAMED
from airflow_dai_provider.tasks.failures import describe_error, sentences

_NOTHING: Mapping[str, str] = MappingProxyType({})


def log_strays(log: Any, errors: Mapping[str, Exception], reason: str, about: Mapping[str, str] = _NOTHING) -> None:
    """Name every operation whose cancellation has failed: the first with their errors, the others by kind of error.

    :param errors: by name, why it was not cancelled.
    :param reason: why it was to be cancelled.
    :param about: by name, what else to say of it.
    """
    others: dict[str, list[str]] = {}
    for number, (name, error) in enumerate(errors.items()):
        why = sentences(f"{reason}, but {describe_error(error)}")
        if number < MAX_NAMED:
            log.error("%s may still run: %s%s", name, why, about.get(name, ""))
        else:
            others.setdefault(str(getattr(error, "rpc_code", type(error).__name__)), []).append(name)
    for kind, more in others.items():
        log.error("%s may still run: %s, but with the error %s.", ", ".join(more), reason, kind)
