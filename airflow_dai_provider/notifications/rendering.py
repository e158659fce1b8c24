"""Templates of a notifier: one that cannot be rendered does not spare the ingests that the others name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.notifier import BaseNotifier
from airflow.providers.common.compat.sdk import AirflowException

from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.tasks.callbacks import is_deadline

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

_AT_DEADLINE = (
    " The templates of a Deadline alert's callback have only dag_run, a dict (dag_run.dag_run_id, dag_run.conf), and "
    "deadline."
)


class RenderingNotifier(BaseNotifier):
    """
    A notifier whose templates may render to nothing, where Airflow 2 would keep the template.

    It renders with a DAG that has no environment too, and without a DAG, as at a Deadline alert. What a template names
    and does not find is an error there as it is with a DAG: rendered to nothing, it would hide a mistake.
    """

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Render every field; an exception stands for what cannot be rendered."""
        dag = context.get("dag")
        if not jinja_env:
            jinja_env = self.get_template_env(dag if hasattr(dag, "get_template_env") else None)
            if is_deadline(context):
                from jinja2 import StrictUndefined

                jinja_env.undefined = StrictUndefined
        for field in self.template_fields:
            setattr(self, field, self.render_template(getattr(self, field), context, jinja_env))

    def render_template(
        self, content: Any, context: Context, jinja_env: Any = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render one template, or each of a collection."""
        try:
            return super().render_template(content, context, jinja_env, seen_oids)
        except Exception as error:
            hint = _AT_DEADLINE if is_deadline(context) else ""
            return AirflowException(f"{short_repr(content)} cannot be rendered: {error}.{hint}")


def listed(values: Any) -> list[Any]:
    """Return one value or several as a list."""
    several = isinstance(values, Collection) and not isinstance(values, str | bytes | Mapping)
    return list(values) if several else [values]


def checked(values: Any) -> Any:
    """
    Return a value, or several.

    :raises Exception: the first one that stands in the place of a value.
    """
    for value in listed(values):
        if isinstance(value, Exception):
            raise value
    return values
