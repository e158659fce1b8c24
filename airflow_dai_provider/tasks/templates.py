"""Template fields that must not render to nothing: without a value they would mean something else."""

from __future__ import annotations

from typing import Any

from airflow_dai_provider.api.names import is_missing_name, missing_hint
from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.tasks.xcom import as_list


def is_given(value: object) -> bool:
    """Return whether a field has a value, before its template is rendered."""
    return value is not None and value != ""


def given_fields(task: Any) -> frozenset[str]:
    """Return the template fields of an operator that have a value; call it at the end of the constructor.

    Rendered natively, a template can give None. That is then no longer different from a field without a value.
    """
    return frozenset(field for field in task.template_fields if is_given(getattr(task, field)))


def check_rendered(field: str, value: object) -> None:
    """Check a field that was given, after its template was rendered.

    :raises ValueError: when it has rendered to nothing; the message names the field.
    """
    if any(is_missing_name(one) for one in as_list(value)):
        raise ValueError(f"Invalid {field} {short_repr(value)}: expected a value.{missing_hint('value')}")


def check_rendered_fields(task: Any, given: frozenset[str]) -> None:
    """Check every field of an operator that was given.

    :param given: of :func:`given_fields`.
    :raises ValueError: for the first that has rendered to nothing.
    """
    for field in task.template_fields:
        if field in given:
            check_rendered(field, getattr(task, field))
