"""What is wrong and no template is refused where the DAG is parsed; a template is left to the run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowFailException,
    BaseOperator,
    BaseSensorOperator,
    task,
)

from airflow_dai_provider.operators.dai import (
    DaiCancelOperationOperator,
    DaiCancelStrayOperationsOperator,
    DaiCreateCreativeOperator,
    DaiDeleteCreativeOperator,
)
from airflow_dai_provider.sensors.dai import DaiOperationSensor
from airflow_dai_provider.tasks.failures import InvalidParameterError
from tests.support.airflow_versions import IS_AIRFLOW_2, VERSION
from tests.support.payloads import NAME, creative, media_file
from tests.support.task_instance import Ti

CANCEL, SWEEP, CREATE = DaiCancelOperationOperator, DaiCancelStrayOperationsOperator, DaiCreateCreativeOperator
DELETE, SENSOR = DaiDeleteCreativeOperator, DaiOperationSensor
#: The required parameters of each class, and what its others need.
TASKS: dict[type[Any], dict[str, Any]] = {
    CANCEL: {"operation_name": NAME, "wait_for_completion": True},
    CREATE: {"creative": creative()},
    DELETE: {"creative_name": "creatives/my-ad"},
    SWEEP: {},
    SENSOR: {"operation_name": NAME},
}
TEMPLATES = ["{{ params.x }}", "{% if x %}a{% endif %}", ["{{ params.x }}"], [NAME, "operations/{{ params.x }}"]]


def make(kind: type[Any], **options: Any) -> Any:
    return kind(**{"task_id": "task", **TASKS[kind], **options})


class TestNames:
    @pytest.mark.parametrize(
        ("kind", "given", "meant"),
        [
            (CANCEL, "poke_interval", "poll_interval"),
            (CREATE, "poke_interval", "poll_interval"),
            (SENSOR, "poll_interval", "poke_interval"),
            (SENSOR, "polling_period_seconds", "poke_interval"),
            (CANCEL, "conn_id", "gcp_conn_id"),
            (DELETE, "google_cloud_conn_id", "gcp_conn_id"),
            (CANCEL, "wait", "wait_for_completion"),
            (SENSOR, "expected_state", "expected_states"),
            (CANCEL, "expected_stats", "expected_states"),
            (CREATE, "cancel_on_fail", "cancel_on_failure"),
            (SWEEP, "min_age", "older_than"),
            (SWEEP, "max_cancelations", "max_cancellations"),
            (SENSOR, "ignore_if_missing", "missing_ok"),
            (CANCEL, "endpoint", "api_endpoint"),
            (CANCEL, "retry", "retries"),
        ],
    )
    def test_an_unknown_parameter_gets_the_one_that_was_meant(self, kind: type[Any], given: str, meant: str) -> None:
        with pytest.raises(InvalidParameterError) as caught:
            make(kind, **{given: 5})
        assert str(caught.value) == f"{kind.__name__} has no parameter {given}. Did you mean {meant}?"

    @pytest.mark.parametrize("kind", TASKS)
    def test_an_unknown_parameter_like_none_is_named(self, kind: type[Any]) -> None:
        with pytest.raises(InvalidParameterError, match=f"^{kind.__name__} has no parameter qqq\\.$"):
            make(kind, qqq=5)

    @pytest.mark.parametrize("kind", TASKS)
    def test_parameters_of_airflow_and_of_a_subclass_are_known(self, kind: type[Any]) -> None:
        class Mine(kind):  # type: ignore[misc]
            def __init__(self, *, mine: int, **kwargs: Any) -> None:
                super().__init__(**kwargs)
                self.mine = mine

        task = Mine(task_id="task", **TASKS[kind], mine=1, retries=2, doc_md="words", execution_timeout=timedelta(1))
        assert (task.mine, task.retries) == (1, 2)

    @pytest.mark.parametrize("kind", TASKS)
    def test_what_a_later_class_takes_out_is_known(self, kind: type[Any]) -> None:
        class Mixin(BaseSensorOperator if kind is SENSOR else BaseOperator):  # type: ignore[misc]
            def __init__(self, **kwargs: Any) -> None:
                self.team = kwargs.pop("team")
                if not isinstance(self.team, str):
                    raise TypeError("The team is a text.")
                super().__init__(**kwargs)

        class Mine(kind, Mixin):  # type: ignore[misc]
            pass

        assert Mine(task_id="task", **TASKS[kind], team="a").team == "a"
        with pytest.raises(InvalidParameterError, match=r"^Mine has no parameter qqq\.$"):
            Mine(task_id="task", **TASKS[kind], team="a", qqq=5)
        with pytest.raises(TypeError, match=r"^The team is a text\.$"):
            Mine(task_id="task", **TASKS[kind], team=5)

    @pytest.mark.skipif(not IS_AIRFLOW_2, reason="Only Airflow 2 can be told to allow unknown parameters")
    @pytest.mark.parametrize("kind", TASKS)
    def test_unknown_parameters_can_be_allowed(self, kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW__OPERATORS__ALLOW_ILLEGAL_ARGUMENTS", "True")
        with pytest.warns(match="Invalid arguments were passed"):
            assert make(kind, qqq=5).task_id == "task"

    def test_default_args_of_other_tasks_are_none_of_ours(self) -> None:
        with DAG("mixed", schedule=None, default_args={"poke_interval": 5, "poll_interval": 6, "qqq": 7}):
            assert make(CANCEL).poll_interval == 6
            assert DaiOperationSensor(task_id="wait", operation_name=NAME).poke_interval == 5

    def test_expected_states_of_a_sensor_in_default_args_are_none_of_a_cancel_that_does_not_wait(self) -> None:
        with DAG("mixed", schedule=None, default_args={"expected_states": ["CANCELLED"]}):
            make(CANCEL)
            assert DaiOperationSensor(task_id="wait", operation_name=NAME).expected_states == ["CANCELLED"]


class TestValues:
    def test_expected_states_that_no_task_would_see_are_refused(self) -> None:
        with pytest.raises(InvalidParameterError, match="expected_states needs wait_for_completion=True: without it"):
            make(CANCEL, expected_states="CANCELLED", wait_for_completion=False)
        # A mapped task is constructed when it runs, and has something to cancel by then.
        with DAG("mapped", schedule=None):
            mapped = CANCEL.partial(task_id="mapped", expected_states="CANCELLED").expand(operation_name=[NAME])
        assert mapped.partial_kwargs["expected_states"] == "CANCELLED"

    @pytest.mark.parametrize(
        ("kind", "parameter", "value", "words"),
        [
            (
                CANCEL,
                "operation_name",
                "ingest-1",
                "Invalid operation name 'ingest-1': expected a string",
            ),
            (CANCEL, "operation_name", [NAME, "b"], r"operation_name\[1\]: Invalid operation name 'b'"),
            (CANCEL, "expected_states", ["DONE"], r"Invalid expected_states \['DONE'\]: expected None for"),
            (SENSOR, "operation_name", "operations/a b", "Invalid operation name 'operations/a b'"),
            (SENSOR, "expected_states", "cancelled", "Invalid expected_states 'cancelled'"),
            (DELETE, "creative_name", "operations/a", "Invalid creative name 'operations/a'"),
            (SWEEP, "older_than", "six hours", "Invalid older_than 'six hours': expected a timedelta, or a positive"),
            (SWEEP, "orphaned_for", -1, "Invalid orphaned_for -1"),
            (SWEEP, "url_pattern", "(", r"Invalid url_pattern '\(': expected a regular expression"),
            (SWEEP, "spare", "a", "Invalid spare: Invalid operation name 'a'"),
            (SWEEP, "include_undated", True, "include_undated needs older_than"),
            (CREATE, "creative", {"mediaFiles": []}, "adSystem: expected a string, got None; .* at least one entry"),
            (CREATE, "creative", [creative(), "x"], r"creative\[1\]: Invalid creative: expected a JSON object"),
            (CREATE, "dynamic_creative_info", {"activeDuration": "soon"}, "activeDuration: expected seconds such as"),
            *((kind, "gcp_conn_id", "", "Invalid gcp_conn_id ''") for kind in TASKS),
            *((kind, "impersonation_chain", 3, "Invalid impersonation_chain 3") for kind in TASKS),
            *((kind, "api_endpoint", "https://host/v1", "Invalid api_endpoint 'https://host/v1'") for kind in TASKS),
        ],
    )
    def test_a_wrong_value_is_refused(self, kind: type[Any], parameter: str, value: Any, words: str) -> None:
        with pytest.raises(InvalidParameterError, match=words):
            make(kind, **{parameter: value})

    @pytest.mark.parametrize("template", TEMPLATES, ids=repr)
    @pytest.mark.parametrize("kind", TASKS)
    def test_a_template_is_left_to_the_run(self, kind: type[Any], template: Any) -> None:
        if kind is CREATE and NAME in template:
            pytest.skip("A name is no creative.")
        fields = [field for field in kind.template_fields if field != "dynamic_creative_info"]
        made = make(kind, **dict.fromkeys(fields, template))
        assert [getattr(made, field) for field in fields] == [template] * len(fields)

    def test_the_output_of_a_task_is_left_to_the_run(self) -> None:
        with DAG("outputs", schedule=None):

            @task
            def upstream() -> str:
                return NAME

            made = upstream()
            for kind, required in TASKS.items():
                kind(task_id=kind.__name__, **dict.fromkeys(required.keys() & set(kind.template_fields), made))
            nested = make(CREATE, creative={"adSystem": "a", "mediaFiles": [media_file(), made]})
        assert nested.creative["mediaFiles"][1] is made

    @pytest.mark.parametrize(
        ("template", "words"),
        [
            ({"mediaFiles": [media_file("{{ params.url }}", delivery="STREAMING")]}, r"mediaFiles\[0\].delivery"),
            ({"mediaFiles": "{{ params.files }}", "adSystem": 5}, "adSystem: expected a string, got 5"),
            ({"mediaFiles": ["{{ params.file }}"], "adTitle": 5}, "adTitle: expected a string, got 5"),
            ({"mediaFiles": [media_file(delivery="{{ params.x }}"), media_file(None)]}, r"mediaFiles\[1\].uri"),
        ],
    )
    def test_what_is_wrong_beside_a_template_is_refused(self, template: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidParameterError, match=f"^Invalid creative: {words}") as caught:
            make(CREATE, creative={"adSystem": "example", **template})
        assert str(caught.value).count("expected") == 1

    def test_marks_of_its_own_are_not_guessed_at(self) -> None:
        marks = {"variable_start_string": "<<", "variable_end_string": ">>"}
        with DAG("marks", schedule=None, jinja_environment_kwargs=marks):
            assert make(CANCEL, operation_name="<< params.x >>").operation_name == "<< params.x >>"

    @pytest.mark.parametrize("of_task", [False, True], ids=["of the DAG", "of the task"])
    def test_what_native_rendering_makes_of_a_text_is_left_to_the_run(self, *, of_task: bool) -> None:
        if of_task and VERSION < (3, 3):
            pytest.skip("Airflow before 3.3 has no such parameter of a task.")
        options = {"render_template_as_native_obj": True} if of_task else {}
        with DAG("native", schedule=None, render_template_as_native_obj=not of_task):
            assert make(CANCEL, expected_states="['FAILED']", **options).expected_states == "['FAILED']"
            make(DELETE, creative_name="['creatives/a', 'creatives/b']", task_id="delete", **options)
            make(CREATE, creative=repr(creative()), task_id="create", **options)
            make(CREATE, dynamic_creative_info='{"dynamicGroupId": "x"}', task_id="dynamic", **options)

    def test_a_task_may_do_without_the_native_rendering_of_its_dag(self) -> None:
        if VERSION < (3, 3):
            pytest.skip("Airflow before 3.3 has no such parameter of a task.")
        with (
            DAG("native", schedule=None, render_template_as_native_obj=True),
            pytest.raises(InvalidParameterError, match="Invalid expected_states"),
        ):
            make(CANCEL, expected_states="['FAILED']", render_template_as_native_obj=False)

    @pytest.mark.parametrize(
        ("kind", "field"),
        [(CANCEL, "operation_name"), (SENSOR, "operation_name"), (DELETE, "creative_name"), (CREATE, "creative")],
    )
    def test_a_subclass_may_set_a_field_when_it_executes(self, kind: type[Any], field: str) -> None:
        class Mine(kind):  # type: ignore[misc]
            def __init__(self, **kwargs: Any) -> None:
                super().__init__(**{field: None}, **kwargs)

        made = Mine(task_id="task")
        assert getattr(made, field) is None
        with pytest.raises(AirflowFailException, match="Invalid .* None"):
            made.execute({"ti": Ti()})

    def test_a_mapped_task_is_checked_when_it_runs(self) -> None:
        made = CANCEL(task_id="task", operation_name="b", _airflow_from_mapped=True)
        assert made.operation_name == "b"

    def test_an_age_that_is_not_known_yet_may_include_undated_operations(self) -> None:
        marks = {"variable_start_string": "<<", "variable_end_string": ">>"}
        assert make(SWEEP, older_than="{{ params.age }}", include_undated=True).include_undated
        assert make(SWEEP, include_undated=True, _airflow_from_mapped=True).older_than is None
        with DAG("marks", schedule=None, jinja_environment_kwargs=marks):
            assert make(SWEEP, older_than="<< params.age >>", include_undated=True).older_than == "<< params.age >>"
        with DAG("outputs", schedule=None):

            @task
            def age() -> str:
                return "6h"

            assert make(SWEEP, older_than=age(), include_undated=True).include_undated


class TestDurations:
    @pytest.mark.parametrize("value", ["90s", timedelta(seconds=90), 90])
    @pytest.mark.parametrize(
        ("kind", "parameter"),
        [
            *((kind, parameter) for kind in (CANCEL, CREATE, SWEEP) for parameter in ("poll_interval", "timeout")),
            *((SENSOR, parameter) for parameter in ("poke_interval", "timeout")),
        ],
    )
    def test_each_takes_a_text(self, kind: type[Any], parameter: str, value: Any) -> None:
        assert getattr(make(kind, **{parameter: value}), parameter) == 90.0

    def test_so_do_those_of_airflows_sensors(self) -> None:
        sensor = make(SENSOR, max_wait="2m", default_args={"poke_interval": "5s", "timeout": "1h"})
        assert (sensor.max_wait, sensor.poke_interval, sensor.timeout) == (timedelta(minutes=2), 5.0, 3600.0)
        with DAG("defaults", schedule=None, default_args={"poke_interval": "7s"}):
            assert make(SENSOR).poke_interval == 7.0

    def test_a_default_that_the_sensor_does_not_take_is_not_checked(self) -> None:
        with DAG("defaults", schedule=None, default_args={"poke_interval": "often"}):
            assert make(SENSOR, poke_interval="9s").poke_interval == 9.0
            with pytest.raises(InvalidParameterError, match="Invalid poke_interval 'often'"):
                make(SENSOR, task_id="other")
