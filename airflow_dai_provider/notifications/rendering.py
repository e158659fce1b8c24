"""Rendering of a notifier's templates: if one fails, the ingests that the others name are still cancelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.notifier import BaseNotifier

from airflow_dai_provider.api.redaction import short_repr
from airflow_dai_provider.tasks.callback_scope import CallbackKind, callback_kind
from airflow_dai_provider.tasks.templates import check_rendered, is_given
from airflow_dai_provider.tasks.xcom import as_list, is_several

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

_AT_DEADLINE = (
    " The templates of a Deadline alert's callback have only dag_run, a dict (dag_run.dag_run_id, dag_run.conf), and "
    "deadline."
)


class RenderingNotifier(BaseNotifier):
    """A notifier whose templates may render to nothing, where Airflow 2 would keep the template.

    It also renders without a DAG, as for a Deadline alert, and with a DAG that has no template environment. For a
    Deadline alert too, an undefined name in a template is an error: rendered to nothing, it would hide a mistake.
    """

    #: The fields that may render to nothing: then there is nothing to cancel. In any other field, that is a problem.
    may_render_to_nothing: Sequence[str] = ()
    #: By field: a sentence for each template that could not be rendered.
    render_problems: Mapping[str, list[str]] = {}

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Render every field, and note the problem of each template that cannot be rendered."""
        dag = context.get("dag")
        at_deadline = callback_kind(context) is CallbackKind.DEADLINE
        if not jinja_env:
            jinja_env = self.get_template_env(dag if hasattr(dag, "get_template_env") else None)
            if at_deadline:
                from jinja2 import StrictUndefined

                jinja_env.undefined = StrictUndefined
        hint = _AT_DEADLINE if at_deadline else ""
        self.render_problems = {}
        for field in self.template_fields:
            given = getattr(self, field)
            rendered, problems = [], []
            for value in as_list(given):
                try:
                    rendered.append(self.render_template(value, context, jinja_env))
                except Exception as error:
                    problems.append(f"{short_repr(value)} cannot be rendered: {error}.{hint}")
            if is_given(given) and field not in self.may_render_to_nothing and not problems:
                try:
                    check_rendered(field, rendered)
                except ValueError as error:
                    problems.append(str(error))
            self.render_problems[field] = problems
            # A given field that cannot be rendered, or renders to None, becomes an empty list and never None: with
            # None, the notifier would cancel everything that the task or the run has started.
            one_value = not problems and not is_several(given) and (given is None or rendered[0] is not None)
            setattr(self, field, rendered[0] if one_value else [one for one in rendered if one is not None])
