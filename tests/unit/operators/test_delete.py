"""DaiDeleteCreativeOperator, against a real HTTP server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, AirflowFailException

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.operators.dai import DaiDeleteCreativeOperator
from tests.support.clock import Clock
from tests.support.emulators import MakeEmulator, count, methods
from tests.support.log import Log
from tests.support.task_instance import Store, Ti

DELETE = "creatives.delete"
UNKNOWN = "creatives/gv-unknown"


@pytest.fixture
def execute(ti: Ti) -> Callable[..., Any]:
    """Execute the operator, with a context that has what it needs of one."""

    def run(creative_name: Any, store: Store | None = None, **options: Any) -> Any:
        operator = DaiDeleteCreativeOperator(task_id="delete", creative_name=creative_name, **options)
        return operator.execute({"ti": ti, "task_state_store": store})  # type: ignore[arg-type]

    return run


def make(emulator: DaiEmulator, number: int = 1) -> list[str]:
    """Ingest creatives, and return their names."""
    for _ in range(number):
        emulator.start_ingest(seconds=0)
    return emulator.creatives()


def fault(name: str, **options: Any) -> Fault:
    return Fault(DELETE, name, **options)


class TestOne:
    def test_it_deletes_the_creative_and_returns_its_name(self, emulator: DaiEmulator, execute: Any, log: Log) -> None:
        (name,) = make(emulator)
        assert execute(name) == name
        assert emulator.creatives() == []
        assert methods(emulator) == [DELETE]
        assert emulator.connections == 1
        assert log.ours == [f"Deleted {name}."]

    def test_one_that_does_not_exist_is_accepted_when_that_was_said_twice(
        self, emulator: DaiEmulator, execute: Any, log: Log, clock: Clock
    ) -> None:
        assert execute(UNKNOWN) == UNKNOWN
        assert methods(emulator) == [DELETE, DELETE]
        assert sum(clock.slept) == 10
        assert log.ours[-1] == f"{UNKNOWN} does not exist. Nothing is left to delete, and missing_ok is set."

    def test_without_missing_ok_it_fails_for_good(self, emulator: DaiEmulator, execute: Any) -> None:
        with pytest.raises(AirflowFailException, match=f"{DELETE} of {UNKNOWN} returned 404.* missing_ok=True accepts"):
            execute(UNKNOWN, missing_ok=False)
        assert count(emulator, DELETE) == 2

    @pytest.mark.parametrize("missing_ok", [True, False])
    def test_one_that_is_not_known_yet_is_deleted(
        self, emulator: DaiEmulator, execute: Any, missing_ok: bool, clock: Clock
    ) -> None:
        (name,) = make(emulator)
        emulator.inject(fault(name, rpc_status="NOT_FOUND", lasts=9))
        assert execute(name, missing_ok=missing_ok) == name
        assert emulator.creatives() == []
        assert sum(clock.slept) == 10

    def test_one_that_was_deleted_although_the_response_was_lost_is_accepted(
        self, emulator: DaiEmulator, execute: Any
    ) -> None:
        (name,) = make(emulator)
        emulator.inject(fault(name, drop="after"))
        assert execute(name) == name
        assert emulator.creatives() == []

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({"status": 503}, id="503"),
            pytest.param({"status": 429, "headers": {"Retry-After": "3"}}, id="429"),
            pytest.param({"drop": "before"}, id="dropped"),
        ],
    )
    def test_a_transient_error_is_retried(self, emulator: DaiEmulator, execute: Any, options: dict[str, Any]) -> None:
        (name,) = make(emulator)
        emulator.inject(fault(name, times=2, **options))
        assert execute(name) == name
        assert count(emulator, DELETE) == 3

    @pytest.mark.parametrize("down", ["answers-503", "is-gone"])
    def test_an_outage_fails_the_task_and_leaves_it_its_retries(
        self, emulator: DaiEmulator, execute: Any, down: str
    ) -> None:
        if down == "is-gone":
            emulator.stop()
        else:
            emulator.inject(Fault(status=503, times=None))
        with pytest.raises(AirflowException, match=f"{DELETE} of {UNKNOWN} .*{UNKNOWN} may still exist") as raised:
            execute(UNKNOWN)
        assert not isinstance(raised.value, AirflowFailException)
        assert down == "is-gone" or count(emulator, DELETE) == 6

    @pytest.mark.parametrize(
        ("rpc_status", "words"),
        [
            ("UNIMPLEMENTED", "does not support the method, and a retry cannot help. Check the endpoint"),
            ("PERMISSION_DENIED", "allow-listed"),
            ("UNAUTHENTICATED", "refused the credentials"),
            ("FAILED_PRECONDITION", "FAILED_PRECONDITION"),
            ("INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ],
    )
    def test_a_permanent_error_fails_the_task_at_once(
        self, emulator: DaiEmulator, execute: Any, clock: Clock, rpc_status: str, words: str
    ) -> None:
        (name,) = make(emulator)
        emulator.inject(fault(name, rpc_status=rpc_status, times=None))
        with pytest.raises(AirflowFailException, match=f"{words}.*{name} may still exist") as raised:
            execute(name)
        assert "stop the operation" not in str(raised.value)
        assert count(emulator, DELETE) == 1
        assert clock.slept == []


class TestMany:
    def test_a_list_gives_a_list_in_its_order(self, emulator: DaiEmulator, execute: Any, log: Log) -> None:
        names = make(emulator, 30)[::-1]
        assert execute(names) == names
        assert emulator.creatives() == []
        assert count(emulator, DELETE) == 30
        assert log.ours == ["Deleted 30 of 30 creatives; 0 did not exist, 0 failed."]

    @pytest.mark.parametrize("form", [list, tuple, "{!r}".format, lambda names: str(names).replace("'", '"')])
    def test_several_forms_of_a_list_are_read(self, emulator: DaiEmulator, execute: Any, form: Any) -> None:
        names = make(emulator, 3)
        assert execute(form(names)) == names
        assert emulator.creatives() == []

    @pytest.mark.parametrize("empty", [[], (), "[]"], ids=repr)
    def test_an_empty_list_is_fine_and_says_so(
        self, emulator: DaiEmulator, execute: Any, log: Log, empty: object
    ) -> None:
        assert execute(empty) == []
        assert emulator.requests == []
        assert log.ours == ["The list of creatives is empty: there is nothing to delete."]

    def test_duplicates_are_deleted_once_and_named_in_each_place(self, emulator: DaiEmulator, execute: Any) -> None:
        first, second = make(emulator, 2)
        assert execute([second, first, second]) == [second, first, second]
        assert count(emulator, DELETE) == 2

    def test_those_that_do_not_exist_are_among_the_names(self, emulator: DaiEmulator, execute: Any, log: Log) -> None:
        (name,) = make(emulator)
        assert execute([UNKNOWN, name]) == [UNKNOWN, name]
        assert count(emulator, DELETE) == 3
        assert log.ours[-2:] == [
            f"{UNKNOWN} does not exist. Nothing is left to delete, and missing_ok is set.",
            f"Deleted {name}.",
        ]

    def test_every_one_is_attempted_before_the_task_fails(self, emulator: DaiEmulator, execute: Any) -> None:
        names = make(emulator, 100)
        for name in names[:15]:
            emulator.inject(fault(name, rpc_status="PERMISSION_DENIED", times=None))
        emulator.inject(fault(names[20], rpc_status="FAILED_PRECONDITION", times=None))
        with pytest.raises(AirflowFailException) as raised:
            execute([*names, UNKNOWN], missing_ok=False)
        assert emulator.creatives() == [*names[:15], names[20]]
        message = str(raised.value)
        assert "15 PERMISSION_DENIED" in message
        assert "1 FAILED_PRECONDITION" in message
        assert "1 NOT_FOUND" in message
        assert "17 creatives may still exist." in message
        assert sum(name in message for name in [*names, UNKNOWN]) == 10
        assert "and 7 more" in message

    def test_only_unknown_ones_without_missing_ok_name_the_parameter(self, emulator: DaiEmulator, execute: Any) -> None:
        names = make(emulator, 2)
        with pytest.raises(
            AirflowFailException, match=r"1 of 3 creatives could not be deleted \(1 NOT_FOUND\): .*missing_ok=True"
        ):
            execute([*names, UNKNOWN], missing_ok=False)
        assert emulator.creatives() == []

    def test_a_transient_error_leaves_the_task_its_retries(self, emulator: DaiEmulator, execute: Any) -> None:
        names = make(emulator, 3)
        emulator.inject(fault(names[0], rpc_status="PERMISSION_DENIED", times=None))
        emulator.inject(fault(names[1], status=503, times=None))
        with pytest.raises(AirflowException, match="2 creatives may still exist") as raised:
            execute(names)
        assert not isinstance(raised.value, AirflowFailException)
        assert emulator.creatives() == names[:2]

    def test_what_the_service_was_too_busy_for_is_attempted_again_as_long_as_others_are_deleted(
        self, emulator: DaiEmulator, execute: Any
    ) -> None:
        names = make(emulator, 3)
        emulator.inject(fault(names[1], status=429, times=7))  # six are the retries of one call
        assert execute(names) == names
        assert emulator.creatives() == []

    def test_unimplemented_fails_at_once(self, emulator: DaiEmulator, execute: Any, clock: Clock) -> None:
        names = make(emulator, 500)
        emulator.unimplement(DELETE)
        with pytest.raises(AirflowFailException, match="UNIMPLEMENTED.*a retry cannot help.*500 creatives may still"):
            execute(names)
        assert count(emulator, DELETE) <= 100
        assert clock.slept == []

    def test_a_retry_leaves_out_what_was_deleted(self, emulator: DaiEmulator, execute: Any) -> None:
        names, store = make(emulator, 5), Store()
        emulator.inject(fault(names[2], status=503, times=None))
        with pytest.raises(AirflowException, match=names[2]):
            execute(names, store, missing_ok=False)
        emulator.clear_faults()
        emulator.forget_requests()
        assert execute(names, store, missing_ok=False) == names
        assert [request.name for request in emulator.requests] == [names[2]]
        assert (emulator.creatives(), store.kept) == ([], {})

    def test_a_retry_at_another_endpoint_asks_for_all(
        self, emulator: DaiEmulator, make_emulator: MakeEmulator, execute: Any
    ) -> None:
        names, store = make(emulator, 3), Store()
        emulator.inject(fault(names[2], status=503, times=None))
        with pytest.raises(AirflowException, match=names[2]):
            execute(names, store)
        other = make_emulator()
        assert execute(names, store) == names
        assert {request.name for request in other.requests} == set(names)

    @pytest.mark.parametrize("store", [None, Store(broken=True)], ids=["none", "broken"])
    def test_a_retry_without_a_store_asks_again(self, emulator: DaiEmulator, execute: Any, store: Store | None) -> None:
        names = make(emulator, 5)
        emulator.inject(fault(names[2], status=503, times=None))
        with pytest.raises(AirflowException, match=names[2]):
            execute(names, store)
        emulator.clear_faults()
        assert execute(names, store) == names
        assert emulator.creatives() == []


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize(
    "faults",
    [[{"status": 503}], [{"rpc_status": "NOT_FOUND"}]],
    ids=["between two attempts", "before the second look"],
)
def test_a_killed_task_sends_no_other_request(
    emulator: DaiEmulator, ti: Ti, monkeypatch: pytest.MonkeyPatch, number: int, faults: list[dict[str, Any]]
) -> None:
    """As on Airflow 3, where a kill does not interrupt ``execute``."""
    names = make(emulator, number)
    for one in faults:
        emulator.inject(Fault(DELETE, times=None, **one))
    operator = DaiDeleteCreativeOperator(task_id="delete", creative_name=names, missing_ok=False)
    for sleeper in (DaiHook, DaiDeleteCreativeOperator):
        monkeypatch.setattr(sleeper, "_sleep", lambda *_: operator.on_kill())
    with pytest.raises(AirflowException, match="may still exist|missing_ok"):
        operator.execute({"ti": ti})  # type: ignore[arg-type]
    asked = [request.name for request in emulator.requests]
    assert asked
    assert len(asked) == len(set(asked)) <= number  # none twice; some threads may not have begun
    assert emulator.creatives() == names


def test_a_task_that_was_killed_before_says_so(emulator: DaiEmulator, ti: Ti) -> None:
    (name,) = make(emulator)
    operator = DaiDeleteCreativeOperator(task_id="delete", creative_name=name)
    operator.on_kill()
    with pytest.raises(AirflowException, match=f"the task was killed.*{name} may still exist"):
        operator.execute({"ti": ti})  # type: ignore[arg-type]
    assert emulator.requests == []


@pytest.mark.parametrize("number", [1, 3])
def test_a_task_that_is_killed_while_it_connects_does_not_succeed(
    emulator: DaiEmulator, ti: Ti, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    names = make(emulator, number)
    operator = DaiDeleteCreativeOperator(task_id="delete", creative_name=names if number > 1 else names[0])
    monkeypatch.setattr(DaiHook, "connect", lambda *_: operator.on_kill())
    with pytest.raises(AirflowException, match="the task was killed before this was attempted.*may still exist"):
        operator.execute({"ti": ti})  # type: ignore[arg-type]
    assert emulator.creatives() == names


def test_a_kill_before_the_second_look_leaves_an_unknown_one_in_doubt(
    emulator: DaiEmulator, ti: Ti, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = DaiDeleteCreativeOperator(task_id="delete", creative_name=[UNKNOWN])
    monkeypatch.setattr(DaiDeleteCreativeOperator, "_sleep", lambda *_: operator.on_kill())
    with pytest.raises(AirflowException, match="404 NOT_FOUND.*The request was not retried: the task was kille"):
        operator.execute({"ti": ti})  # type: ignore[arg-type]
    assert count(emulator, DELETE) == 1


INVALID_NAMES = [
    *(None, "", " ", "None", {"name": "creatives/x"}, 5, True, b"creatives/x"),
    *("creatives", "creatives/", "creatives/a/b", "creatives/..", "/creatives/x", "Creatives/x", "operations/x"),
    *("creatives/x y", "creatives/x\n", "creatives/\x00", "creatives/x?alt=json", "creatives/x#y", "creatives/x\\y"),
    "https://evil.example/creatives/x",
]


class TestParameters:
    @pytest.mark.parametrize("name", INVALID_NAMES, ids=repr)
    def test_an_invalid_name_fails_for_good_without_a_request(
        self, emulator: DaiEmulator, execute: Any, name: Any
    ) -> None:
        (valid,) = make(emulator)
        words = "Invalid creative name .*: expected a string 'creatives/'"
        with pytest.raises(AirflowFailException, match=f"^{words}"):
            execute(name)
        with pytest.raises(AirflowFailException, match=rf"1 of 2 values .* creative_name\[1\]: {words}"):
            execute([valid, name])
        assert emulator.requests == []

    def test_every_invalid_name_is_named_with_its_index(self, emulator: DaiEmulator, execute: Any) -> None:
        with pytest.raises(AirflowFailException) as raised:
            execute(["creatives/a", None, "operations/x", "creatives/b", "creatives/c d"])
        message = str(raised.value)
        assert "3 of 5" in message
        assert [f"creative_name[{index}]: " in message for index in range(5)] == [False, True, True, False, True]
        assert emulator.requests == []

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            (None, "the upstream task has pushed no name"),
            ("", "the upstream task has pushed no name"),
            (None, "has no creative: leave it out"),
            ("None", "the upstream task has pushed no name"),
            ({"name": "operations/x", "creative_name": "creatives/x"}, "pass its 'creative_name'"),
        ],
        ids=repr,
    )
    @pytest.mark.usefixtures("emulator")
    def test_a_common_mistake_gets_a_hint(self, execute: Any, name: Any, hint: str) -> None:
        for given in (name, [name]):
            with pytest.raises(AirflowFailException, match=hint):
                execute(given)

    @pytest.mark.parametrize("names", [["creatives/x", ["creatives/y"]], "[creatives/x", ["creatives/x"] * 10_001])
    def test_what_is_no_list_of_names_is_refused(self, emulator: DaiEmulator, execute: Any, names: Any) -> None:
        with pytest.raises(AirflowFailException, match="Invalid creative_name"):
            execute(names)
        assert emulator.requests == []

    def test_defaults(self) -> None:
        operator = DaiDeleteCreativeOperator(task_id="delete", creative_name=UNKNOWN)
        assert operator.missing_ok is True
        assert operator.gcp_conn_id == "google_cloud_default"
        assert operator.impersonation_chain is None
        assert operator.api_endpoint is None

    def test_the_constructor_assigns_templates_unseen(self) -> None:
        given: dict[str, Any] = {name: object() for name in DaiDeleteCreativeOperator.template_fields}
        operator = DaiDeleteCreativeOperator(task_id="delete", **given)
        assert {name: getattr(operator, name) for name in given} == given

    def test_parameters_are_keyword_only(self) -> None:
        with pytest.raises((TypeError, AirflowException)):
            DaiDeleteCreativeOperator(UNKNOWN, task_id="delete")

    @pytest.mark.parametrize("field", DaiDeleteCreativeOperator.template_fields)
    @pytest.mark.parametrize("template", ["{{ none }}", "{{ nothing }}"])
    @pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
    def test_a_template_that_renders_to_nothing_is_not_taken_as_left_out(
        self, emulator: DaiEmulator, ti: Ti, field: str, template: str, native: bool
    ) -> None:
        with DAG("delete_rendered_to_nothing", schedule=None, render_template_as_native_obj=native):
            operator = DaiDeleteCreativeOperator(task_id="delete", **{"creative_name": UNKNOWN, field: template})
        operator.render_template_fields({"nothing": ""})
        with pytest.raises(AirflowFailException, match=f"Invalid {field}".replace("_name", ".name")):
            operator.execute({"ti": ti})  # type: ignore[arg-type]
        assert emulator.requests == []

    @pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
    def test_a_template_can_render_to_a_list(self, emulator: DaiEmulator, ti: Ti, native: bool) -> None:
        names = make(emulator, 2)
        with DAG("delete_rendered_to_a_list", schedule=None, render_template_as_native_obj=native):
            operator = DaiDeleteCreativeOperator(task_id="delete", creative_name="{{ names }}")
        operator.render_template_fields({"names": names})
        assert operator.execute({"ti": ti}) == names  # type: ignore[arg-type]
        assert emulator.creatives() == []
