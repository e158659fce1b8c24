"""Checks of the arguments of operators and sensors where the DAG is parsed: of literal values, not templates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from difflib import get_close_matches
from functools import cache, partial
from inspect import Parameter, signature
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.creative import DELIVERIES, InvalidCreativeError, check_creative
from airflow_dai_provider.api.endpoint import parse_endpoint
from airflow_dai_provider.api.parameters import check_connection
from airflow_dai_provider.tasks.failures import InvalidParameterError
from airflow_dai_provider.tasks.one_or_many import check_each

#: By parameter, what other operators and sensors call it.
_NEIGHBOURS = {
    "poll_interval": ("poke_interval", "polling_interval", "check_interval", "polling_period_seconds"),
    "poke_interval": ("poll_interval", "polling_interval", "check_interval", "polling_period_seconds"),
    "gcp_conn_id": ("conn_id", "google_cloud_conn_id", "connection_id"),
    "operation_name": ("operation", "operations", "operation_id", "operation_ids", "name", "names"),
    "creative": ("body", "creatives"),
    "creative_name": ("creative", "creatives", "name", "names"),
    "api_endpoint": ("endpoint", "host", "base_url"),
    "wait_for_completion": ("wait", "wait_until_finished", "wait_for_termination", "asynchronous"),
    "impersonation_chain": ("impersonate", "service_account", "delegate_to"),
    "missing_ok": ("ignore_missing", "ignore_if_missing", "ignore_not_found", "not_found_ok"),
    "expected_states": ("states", "target_states", "allowed_states", "expected_statuses"),
    "older_than": ("age", "min_age", "max_age"),
}
_MARKS = ("{{", "{%", "{#")
_MEDIA_FIELDS = ("mediaFiles", "mezzanines")
_FILE = {"uri": "https://host/", "delivery": DELIVERIES[0], "mimeType": "video/mp4"}
#: Valid values, to check the fields beside a template.
_VALID: dict[str, Any] = {
    "delivery": DELIVERIES[0],
    "activeDuration": "1s",
    **dict.fromkeys(_MEDIA_FIELDS, [_FILE]),
}


@contextmanager
def explained_names(kind: Any, given: Mapping[str, Any]) -> Iterator[None]:
    """Explain why the next constructor refuses an argument: Airflow's names unknown ones without a hint.

    :param kind: the class of the task.
    :param given: the arguments for that constructor.
    :raises InvalidParameterError: for a name that no constructor of the class has; the message names the parameter that
        was probably meant.
    """
    try:
        yield
    except (TypeError, AirflowException) as error:
        known = _parameters(kind)
        for name in given:
            if name not in known and repr(name) in str(error):
                close = [one for one, others in _NEIGHBOURS.items() if one in known and name in others]
                close = close or get_close_matches(name, sorted(known), 1)
                hint = f" Did you mean {close[0]}?" if close else ""
                raise InvalidParameterError(f"{kind.__name__} has no parameter {name}.{hint}") from error
        raise


def check_literals(task: Any, checks: Mapping[str, Callable[[Any], object]]) -> None:
    """Check each template field that has no template in it; call it at the end of a constructor.

    :param checks: by field, what raises ValueError for a wrong value. The fields of the connection are checked anyway.
    :raises ValueError: for the first wrong value.
    """
    if not shows_literals(task):
        return
    for field, check in (_CONNECTION | dict(checks)).items():
        value = getattr(task, field)
        # A subclass can set what is None before it executes.
        if value is not None and not has_template(value):
            check(value)


def shows_literals(task: Any) -> bool:
    """Return whether the fields of a task have the values in the DAG file, and templates in them can be recognised.

    A mapped task is constructed when it runs, from what other tasks have returned. Its fields are checked by
    ``execute``, which may have an earlier try's ingest to take care of.
    """
    dag = task.get_dag()
    # A DAG with an environment of its own can have other marks of a template.
    marks = getattr(dag, "jinja_environment_kwargs", None)
    # Rendered natively, any text can become another value. Airflow 3.3 and later let a task decide.
    native = getattr(task, "render_template_as_native_obj", None)
    if native is None:
        native = getattr(dag, "render_template_as_native_obj", False)
    return not (marks or native or getattr(task, "_BaseOperator__from_mapped", False))


def has_template(value: Any) -> bool:
    """Return whether a value, or a part of it, is known only when the task runs."""
    if isinstance(value, Mapping):
        return any(map(has_template, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(has_template, value))
    return _is_template(value)


def check_creative_literals(creative: Any, dynamic_creative_info: Any) -> None:
    """Check all of one creative, or of a list, that is not a template.

    :raises InvalidCreativeError: as :func:`check_creative`.
    """
    if creative is None or _is_template(creative):
        return
    info = None if _is_template(dynamic_creative_info) else _filled(dynamic_creative_info)

    def check(one: Any) -> None:
        if not _is_template(one):
            check_creative(_filled(one), info)

    check_each("creative", creative, check, InvalidCreativeError)


def _filled(value: Any, field: str = "") -> Any:
    """Return a value with valid ones in place of the templates in it."""
    if isinstance(value, Mapping):
        return {key: _filled(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_FILE if field in _MEDIA_FIELDS and _is_template(item) else _filled(item, field) for item in value]
    return _VALID.get(field, "a template") if _is_template(value) else value


def _is_template(value: Any) -> bool:
    """Return whether a value as a whole is rendered or resolved later; an XComArg is, and any other object may be."""
    if isinstance(value, str):
        return any(mark in value for mark in _MARKS)
    return not isinstance(value, Mapping | list | tuple | set | frozenset | int | float | timedelta | None)


@cache
def _parameters(kind: Any) -> frozenset[str]:
    """Return the parameters of all constructors of a class."""
    constructors = [vars(base)["__init__"] for base in kind.__mro__[:-1] if "__init__" in vars(base)]
    return frozenset(
        name
        for constructor in constructors
        for name, one in signature(constructor).parameters.items()
        if one.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    )


def _check_endpoint(value: Any) -> None:
    check_connection("any", None, value)
    if value is not None:
        parse_endpoint(value, "api_endpoint")


_CONNECTION: dict[str, Callable[[Any], object]] = {
    "gcp_conn_id": partial(check_connection, impersonation_chain=None, api_endpoint=None),
    "impersonation_chain": lambda chain: check_connection("any", chain, None),
    "api_endpoint": _check_endpoint,
}
