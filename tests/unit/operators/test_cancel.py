"""DaiCancelOperationOperator, against a real HTTP server, and where it matters on the real metadata database."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, AirflowFailException

from airflow_dai_provider.api.operation import OperationState
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.operators.dai import DaiCancelOperationOperator
from tests.support.clock import Clock
from tests.support.connections import define_connection
from tests.support.emulators import MakeEmulator, count, methods
from tests.support.log import Log
from tests.support.task_instance import Ti

GET, CANCEL = "operations.get", "operations.cancel"
NAME = "operations/my-ingest"
ENDS = {
    "CANCELLED": {"cancel": "honoured", "cancel_seconds": 7},
    "SUCCEEDED": {"cancel": "ignored", "seconds": 7},
    "FAILED": {"cancel": "ignored", "seconds": 7, "outcome": "DOWNLOAD_ERROR", "code": 403},
}


def finish(state: str, otherwise: str = "") -> str:
    """Return a pattern of the words for a final state; a failure needs no more."""
    return rf"\({NAME}\) failed: DOWNLOAD_ERROR 403 " if state == "FAILED" else f"{NAME} is {state}{otherwise}"


@pytest.fixture
def execute(ti: Ti) -> Callable[..., Any]:
    """Execute the operator, with a context that has what it needs of one."""

    def run(operation_name: Any = NAME, **options: Any) -> Any:
        operator = DaiCancelOperationOperator(task_id="cancel", operation_name=operation_name, **options)
        return operator.execute({"ti": ti})

    return run


class TestRequest:
    def test_it_requests_the_cancellation_and_returns_the_name(
        self, emulator: DaiEmulator, execute: Any, log: Log, ti: Ti
    ) -> None:
        emulator.start_ingest(NAME)
        assert execute() == NAME
        assert emulator.state(NAME) == "CANCELLED"
        assert methods(emulator) == [CANCEL, GET]
        assert log.ours == [
            f"Requested the cancellation of {NAME}.",
            f"{NAME} is CANCELLED (last: ingest PROCESSING).",
        ]
        assert ti.pushed == {}

    def test_all_requests_use_one_connection(self, emulator: DaiEmulator, execute: Any) -> None:
        emulator.start_ingest(NAME, cancel_seconds=60)
        execute(wait_for_completion=True)
        assert len(emulator.requests) > 5
        assert emulator.connections == 1

    @pytest.mark.parametrize("name", ["operations/a/b/c", "operations/YWI+/cw==", "operations/a:b~c@d,e"])
    def test_names_of_several_segments_and_odd_characters_are_accepted(
        self, emulator: DaiEmulator, execute: Any, name: str
    ) -> None:
        emulator.start_ingest(name)
        assert execute(name) == name
        assert emulator.state(name) == "CANCELLED"

    def test_it_says_cancelled_only_when_get_has_shown_it(self, emulator: DaiEmulator, execute: Any, log: Log) -> None:
        emulator.start_ingest(NAME, cancel_seconds=60)
        execute()
        assert log.ours == [
            f"Requested the cancellation of {NAME}.",
            f"{NAME} is RUNNING (ingest PROCESSING).",
        ]
        assert "cancelled" not in " ".join(log.ours).lower()

    def test_a_waiting_task_says_cancelled_only_when_get_has_shown_it(
        self, emulator: DaiEmulator, execute: Any, log: Log
    ) -> None:
        emulator.start_ingest(NAME, cancel_seconds=60)
        execute(wait_for_completion=True)
        assert f"{NAME} is CANCELLED" in log.ours[-1]
        assert len(log.ours) > 5
        assert "cancelled" not in " ".join(log.ours[:-1]).lower()

    def test_the_final_state_that_the_poll_found_is_logged(self, emulator: DaiEmulator, execute: Any, log: Log) -> None:
        emulator.start_ingest(NAME, seconds=0, outcome="INVALID_MEDIA")
        assert execute() == NAME
        assert f"({NAME}) failed: INVALID_MEDIA" in log.ours[-1]
        assert log.ours[-1].endswith("it had already finished.")


class TestWait:
    @pytest.mark.parametrize("state", ENDS)
    @pytest.mark.parametrize("expected", [None, *ENDS], ids=str)
    def test_a_final_state_is_accepted_or_fails_the_task(
        self, emulator: DaiEmulator, execute: Any, ti: Ti, log: Log, state: str, expected: str | None
    ) -> None:
        emulator.start_ingest(NAME, **ENDS[state])
        if expected in (None, state):
            assert execute(wait_for_completion=True, expected_states=expected) == NAME
        else:
            with pytest.raises(AirflowFailException, match=finish(state, f".* accepts only {expected}")):
                execute(wait_for_completion=True, expected_states=expected)
        assert emulator.state(NAME) == state
        pushed = ti.pushed[ti.task_id, -1, "operation"]
        assert (pushed["name"], pushed["state"], pushed["done"]) == (NAME, state, True)
        assert re.search(finish(state), log.ours[-1])
        assert "already finished" not in log.text

    def test_a_failed_ingest_fails_the_task_with_its_reason(self, emulator: DaiEmulator, execute: Any) -> None:
        emulator.start_ingest(NAME, **ENDS["FAILED"])
        with pytest.raises(AirflowFailException, match="failed: DOWNLOAD_ERROR 403 .*could not be downloaded"):
            execute(wait_for_completion=True, expected_states="CANCELLED")

    def test_the_xcom_is_plain_json_without_secrets(
        self, emulator: DaiEmulator, execute: Any, ti: Ti, log: Log
    ) -> None:
        url = "https://user:secret@media.example/ad.mp4?X-Goog-Signature=secret#secret"
        emulator.start_ingest(NAME, creative_url=url, **ENDS["SUCCEEDED"])
        execute(wait_for_completion=True)
        pushed = ti.pushed[ti.task_id, -1, "operation"]
        assert json.loads(json.dumps(pushed)) == pushed
        assert {type(value) for value in pushed.values()} <= {str, bool, dict, int, type(None)}
        assert pushed["ingest"]["creative_url"] == "https://media.example/ad.mp4"
        assert pushed["ingest"]["gv_registry_id"]
        assert "secret" not in json.dumps(pushed)
        assert "secret" not in " ".join(log.ours)

    def test_nothing_is_pushed_without_waiting(self, emulator: DaiEmulator, execute: Any, ti: Ti) -> None:
        emulator.start_ingest(NAME)
        execute()
        assert ti.pushed == {}

    def test_polls_are_quick_at_first_and_then_one_per_interval(
        self, emulator: DaiEmulator, execute: Any, clock: Clock, log: Log
    ) -> None:
        emulator.start_ingest(NAME, cancel_seconds=60)
        execute(wait_for_completion=True, poll_interval=10)
        assert clock.slept[0] == 1
        assert clock.slept == sorted(clock.slept)
        assert clock.slept[-1] == 10
        polls = [line for line in log.ours if "next poll in" in line]
        assert len(polls) == len(clock.slept)
        assert all(f"{NAME} is RUNNING (ingest PROCESSING); " in line for line in polls)
        assert polls[1] == f"{NAME} is RUNNING (ingest PROCESSING); 1 s elapsed, next poll in 1.5 s"

    def test_a_timeout_fails_the_task(self, emulator: DaiEmulator, execute: Any, clock: Clock) -> None:
        emulator.start_ingest(NAME, cancel="ignored")
        with pytest.raises(
            AirflowException, match=f"{NAME} has not finished within 90 s.*{NAME} may still run"
        ) as raised:
            execute(wait_for_completion=True, timeout=90)
        assert not isinstance(raised.value, AirflowFailException)
        assert sum(clock.slept) == pytest.approx(90)
        assert count(emulator, CANCEL) == 1
        assert emulator.state(NAME) == "RUNNING"

    @pytest.mark.parametrize("polls_before", [0, 1, 3])
    def test_a_short_outage_does_not_end_the_wait(
        self, emulator: DaiEmulator, execute: Any, ti: Ti, polls_before: int
    ) -> None:
        emulator.start_ingest(NAME, cancel_seconds=60)
        if polls_before:
            emulator.inject(Fault(method=GET, headers={"X-Poll": "fine"}, times=polls_before))
        emulator.inject(Fault(method=GET, status=503, times=8))  # more than one poll with its retries
        assert execute(wait_for_completion=True) == NAME
        assert ti.pushed[ti.task_id, -1, "operation"]["state"] == "CANCELLED"
        assert count(emulator, CANCEL) == 1

    def test_what_has_finished_is_not_waited_for(
        self, make_emulator: MakeEmulator, execute: Any, clock: Clock, ti: Ti
    ) -> None:
        emulator = make_emulator(finished_cancel="failed_precondition")
        emulator.start_ingest(NAME, seconds=0)
        assert execute(wait_for_completion=True) == NAME
        assert clock.slept == []
        assert ti.pushed[ti.task_id, -1, "operation"]["state"] == "SUCCEEDED"

    def test_a_final_state_counts_although_the_service_refused(self, make_emulator: MakeEmulator, execute: Any) -> None:
        emulator = make_emulator(finished_cancel="failed_precondition")
        emulator.start_ingest(NAME, seconds=0)
        with pytest.raises(AirflowFailException, match="is SUCCEEDED.* accepts only CANCELLED"):
            execute(wait_for_completion=True, expected_states=["CANCELLED"])


class TestFinished:
    @pytest.mark.parametrize("answer", ["ok", "failed_precondition", "not_found"])
    @pytest.mark.parametrize("wait", [False, True], ids=["asks", "waits"])
    def test_a_finished_operation_is_no_error_and_is_logged(
        self, make_emulator: MakeEmulator, execute: Any, log: Log, answer: str, wait: bool
    ) -> None:
        emulator = make_emulator(finished_cancel=answer)
        emulator.start_ingest(NAME, seconds=0)
        assert execute(wait_for_completion=wait) == NAME
        assert emulator.state(NAME) == "SUCCEEDED"
        assert any("is SUCCEEDED" in line and "it had already finished" in line for line in log.ours)
        assert "cancelled" not in " ".join(log.ours).lower()

    @pytest.mark.parametrize("answer", ["failed_precondition", "not_found"])
    def test_an_operation_cancelled_before_is_no_error(
        self, make_emulator: MakeEmulator, execute: Any, log: Log, answer: str
    ) -> None:
        emulator = make_emulator(finished_cancel=answer)
        emulator.start_ingest(NAME)
        assert execute() == execute() == NAME
        assert "is CANCELLED" in log.ours[-1]
        assert "it had already finished" in log.ours[-1]


class TestMissing:
    @pytest.mark.usefixtures("emulator")
    def test_an_unknown_operation_fails_the_task_for_good(self, execute: Any) -> None:
        with pytest.raises(AirflowFailException, match=f"({CANCEL}|{GET}).*{NAME}.*missing_ok") as raised:
            execute()
        assert "may still run" not in str(raised.value)

    @pytest.mark.parametrize("wait", [False, True], ids=["asks", "waits"])
    @pytest.mark.usefixtures("emulator")
    def test_an_unknown_operation_is_accepted_with_missing_ok(self, execute: Any, log: Log, ti: Ti, wait: bool) -> None:
        assert execute(missing_ok=True, wait_for_completion=wait) == NAME
        assert NAME in log.ours[-1]
        assert "missing_ok is set" in log.ours[-1]
        assert ti.pushed == {}

    @pytest.mark.parametrize("missing_ok", [False, True])
    def test_an_operation_that_vanishes_during_the_wait_is_accepted_with_missing_ok(
        self, emulator: DaiEmulator, execute: Any, ti: Ti, missing_ok: bool
    ) -> None:
        emulator.start_ingest(NAME, cancel_seconds=60)
        emulator.inject(Fault(method=GET, headers={"X-Poll": "fine"}, times=3))
        emulator.inject(Fault(method=GET, rpc_status="NOT_FOUND", times=None))
        if missing_ok:
            assert execute(missing_ok=True, wait_for_completion=True) == NAME
        else:
            with pytest.raises(AirflowFailException, match="missing_ok"):
                execute(wait_for_completion=True)
        assert ti.pushed == {}

    def test_a_wrong_address_fails_the_task_in_spite_of_missing_ok(self, emulator: DaiEmulator, execute: Any) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(status=404, body=b"<html>no</html>", content_type="text/html", times=None))
        with pytest.raises(AirflowFailException, match="is the endpoint right"):
            execute(missing_ok=True)


class TestErrors:
    @pytest.mark.parametrize("rpc_status", ["FAILED_PRECONDITION", "NOT_FOUND"])
    @pytest.mark.parametrize("wait", [False, True], ids=["asks", "waits"])
    def test_a_refused_cancel_of_a_running_operation_fails_the_task(
        self, emulator: DaiEmulator, execute: Any, log: Log, rpc_status: str, wait: bool
    ) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(method=CANCEL, rpc_status=rpc_status, times=None))
        words = f"{NAME} has not finished within 90 s" if wait else f"{CANCEL} of {NAME} returned .* {rpc_status}"
        with pytest.raises(AirflowException, match=words) as raised:
            execute(wait_for_completion=wait, timeout=90)
        # The responses contradict each other, so a retry can help.
        assert not isinstance(raised.value, AirflowFailException)
        assert rpc_status in log.text + str(raised.value)
        assert emulator.state(NAME) == "RUNNING"
        assert count(emulator, CANCEL) == 3

    def test_missing_ok_does_not_hide_that_it_runs(self, emulator: DaiEmulator, execute: Any, log: Log) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(method=CANCEL, rpc_status="NOT_FOUND", times=None))
        with pytest.raises(AirflowException, match=f"{NAME} may still run"):
            execute(missing_ok=True)
        assert "Nothing is left to cancel" not in log.text

    @pytest.mark.parametrize("wait", [False, True], ids=["asks", "waits"])
    @pytest.mark.parametrize("method", [CANCEL, GET])
    def test_unimplemented_fails_the_task_at_once(
        self, emulator: DaiEmulator, execute: Any, clock: Clock, method: str, wait: bool
    ) -> None:
        emulator.start_ingest(NAME, cancel_seconds=60)
        emulator.unimplement(method)
        with pytest.raises(AirflowFailException) as raised:
            execute(wait_for_completion=wait)
        message = str(raised.value)
        assert f"{method} of {NAME} returned 501 UNIMPLEMENTED" in message
        assert "does not support the method, and a retry cannot help. Check the endpoint" in message
        assert f"{NAME} may still run." in message
        assert count(emulator, CANCEL) == 1
        assert count(emulator, method) == 1
        assert clock.slept == []

    @pytest.mark.parametrize(
        ("rpc_status", "words"),
        [
            ("PERMISSION_DENIED", "allow-listed"),
            ("INVALID_ARGUMENT", "INVALID_ARGUMENT"),
            ("UNAUTHENTICATED", "refused the credentials"),
            ("OUT_OF_RANGE", "OUT_OF_RANGE"),
        ],
    )
    def test_a_permanent_error_fails_the_task(
        self, emulator: DaiEmulator, execute: Any, rpc_status: str, words: str
    ) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(method=CANCEL, rpc_status=rpc_status, times=None))
        with pytest.raises(AirflowFailException, match=f"{words}.*{NAME} may still run"):
            execute()
        # After some of them get decides, and it can be behind.
        assert count(emulator, CANCEL) == (3 if rpc_status in ("INVALID_ARGUMENT", "OUT_OF_RANGE") else 1)

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"status": 503}, id="503"),
            pytest.param({"status": 429, "headers": {"Retry-After": "3"}}, id="429"),
            pytest.param({"status": 502}, id="502-of-a-front-end"),
            pytest.param({"drop": "before"}, id="dropped"),
            pytest.param({"drop": "after"}, id="answer-lost"),
        ],
    )
    def test_a_transient_error_is_retried(self, emulator: DaiEmulator, execute: Any, fault: dict[str, Any]) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(method=CANCEL, times=2, **fault))
        assert execute() == NAME
        assert count(emulator, CANCEL) == 3
        assert emulator.state(NAME) == "CANCELLED"

    @pytest.mark.parametrize("wait", [False, True], ids=["asks", "waits"])
    @pytest.mark.parametrize("down", ["answers-503", "is-gone"])
    def test_an_outage_fails_the_task_and_leaves_it_its_retries(
        self, emulator: DaiEmulator, execute: Any, down: str, wait: bool
    ) -> None:
        emulator.start_ingest(NAME)
        if down == "is-gone":
            emulator.stop()
        else:
            emulator.inject(Fault(status=503, times=None))
        with pytest.raises(AirflowException, match=f"{CANCEL} of {NAME} .*{NAME} may still run") as raised:
            execute(wait_for_completion=wait)
        assert not isinstance(raised.value, AirflowFailException)
        assert raised.value.__cause__ is not None

    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 503},
            {"rpc_status": "NOT_FOUND"},
            {"rpc_status": "PERMISSION_DENIED"},
            {"rpc_status": "UNAUTHENTICATED"},
            {"status": 200, "body": "{"},
            {"drop": "before"},
        ],
        ids=str,
    )
    def test_a_failed_poll_after_the_request_does_not_fail_the_task(
        self, emulator: DaiEmulator, execute: Any, log: Log, fault: dict[str, Any]
    ) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(method=GET, times=None, **fault))
        assert execute() == NAME
        assert "The cancellation is requested, but the operation could not be polled yet" in log.ours[-1]
        assert "cancelled" not in " ".join(log.ours).lower()

    def test_a_malformed_response_fails_the_task(self, emulator: DaiEmulator, execute: Any) -> None:
        emulator.start_ingest(NAME)
        emulator.inject(Fault(method=GET, status=200, body=b'{"name": "operations/', times=None))
        with pytest.raises(AirflowException, match=f"{GET} of {NAME} .*may still run"):
            execute(wait_for_completion=True)

    @pytest.mark.usefixtures("metadata_database")
    def test_an_undefined_connection_fails_the_task(self, monkeypatch: pytest.MonkeyPatch, execute: Any) -> None:
        monkeypatch.delenv("DAI_EMULATOR_HOST", raising=False)
        with pytest.raises(AirflowException, match="no_such_connection.* isn't defined"):
            execute(gcp_conn_id="no_such_connection")


INVALID_NAMES = [
    None,
    "",
    " ",
    "None",
    {"name": NAME},
    [NAME, None],
    (NAME, 5),
    '["operations/x y"]',
    5,
    True,
    b"operations/x",
    "operations",
    "operations/",
    "operations//x",
    "operations/x/",
    "operations/../x",
    "operations/x/..",
    "operations/./x",
    "/operations/x",
    "Operations/x",
    "creatives/x",
    "projects/p/operations/x",
    "operations/x y",
    " operations/x",
    "operations/x\n",
    "operations/x\t",
    "operations/\x00",
    "operations/x?alt=json",
    "operations/x#y",
    "operations/x\\y",
    "https://evil.example/operations/x",
    "operations/{{ params.name }}?",
]


class TestParameters:
    @pytest.mark.parametrize("name", INVALID_NAMES, ids=repr)
    def test_an_invalid_name_fails_for_good_without_a_request(
        self, emulator: DaiEmulator, execute: Any, name: Any
    ) -> None:
        with pytest.raises(AirflowFailException, match="Invalid operation name .*: expected a string 'operations/'"):
            execute(name)
        assert emulator.requests == []

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            (None, "the upstream task has pushed no name"),
            ("", "the upstream task has pushed no name"),
            ("None", "the upstream task has pushed no name"),
            ({"name": NAME}, "pass its 'name'"),
            ([[NAME]], r"a list within the list at index 0"),
            ("LazyXComSequence([3 items])", r"pass task\.output, or add '\| list'"),
        ],
        ids=repr,
    )
    @pytest.mark.usefixtures("emulator")
    def test_a_common_mistake_gets_a_hint(self, execute: Any, name: Any, hint: str) -> None:
        with pytest.raises(AirflowFailException, match=hint):
            execute(name)

    @pytest.mark.parametrize("states", ["RUNNING", [], "", "cancelled", ["CANCELLED", "x"], 5], ids=repr)
    def test_invalid_expected_states_fail_without_a_request(
        self, emulator: DaiEmulator, execute: Any, states: Any
    ) -> None:
        emulator.start_ingest(NAME)
        with pytest.raises(AirflowFailException, match="Invalid expected_states"):
            execute(expected_states=states, wait_for_completion=True)
        assert emulator.requests == []

    @pytest.mark.parametrize("states", ["CANCELLED", ["CANCELLED"], {"CANCELLED"}, OperationState.CANCELLED], ids=repr)
    def test_valid_expected_states_are_accepted(self, emulator: DaiEmulator, execute: Any, states: Any) -> None:
        emulator.start_ingest(NAME)
        assert execute(expected_states=states, wait_for_completion=True) == NAME

    @pytest.mark.parametrize("parameter", ["poll_interval", "timeout"])
    @pytest.mark.parametrize("value", [0, -1, "30", True, float("inf"), float("nan"), [30]], ids=repr)
    def test_invalid_seconds_fail_without_a_request(
        self, emulator: DaiEmulator, execute: Any, parameter: str, value: Any
    ) -> None:
        emulator.start_ingest(NAME)
        with pytest.raises(AirflowFailException, match=f"Invalid {parameter} .*: expected a positive number"):
            execute(**{parameter: value})
        assert emulator.requests == []

    @pytest.mark.parametrize("endpoint", ["http://h/path", "ftp://h", "https://user:secret@h"])
    def test_a_bad_endpoint_fails_for_good(self, monkeypatch: pytest.MonkeyPatch, execute: Any, endpoint: str) -> None:
        define_connection(monkeypatch, "dai")
        with pytest.raises(AirflowFailException, match="Invalid api_endpoint") as raised:
            execute(gcp_conn_id="dai", api_endpoint=endpoint)
        assert "secret" not in str(raised.value)

    def test_the_constructor_assigns_templates_unseen(self) -> None:
        given: dict[str, Any] = {name: object() for name in DaiCancelOperationOperator.template_fields}
        operator = DaiCancelOperationOperator(task_id="cancel", wait_for_completion=True, **given)
        assert {name: getattr(operator, name) for name in given} == given

    def test_defaults(self) -> None:
        operator = DaiCancelOperationOperator(task_id="cancel", operation_name=NAME)
        assert operator.wait_for_completion is False
        assert operator.expected_states is None
        assert operator.missing_ok is False
        assert (operator.poll_interval, operator.timeout) == (30.0, 3600.0)
        assert operator.gcp_conn_id == "google_cloud_default"
        assert operator.impersonation_chain is None
        assert operator.api_endpoint is None

    def test_parameters_are_keyword_only(self) -> None:
        with pytest.raises((TypeError, AirflowException)):
            DaiCancelOperationOperator(NAME, task_id="cancel")

    def test_templates_are_rendered(self) -> None:
        operator = DaiCancelOperationOperator(
            task_id="cancel",
            operation_name="operations/{{ word }}",
            wait_for_completion=True,
            expected_states=["{{ word | upper }}"],
            gcp_conn_id="{{ word }}_conn",
            impersonation_chain=["{{ word }}@example.com"],
            api_endpoint="{{ word }}.example.com",
        )
        operator.render_template_fields({"word": "cancelled"})
        assert {name: getattr(operator, name) for name in operator.template_fields} == {
            "operation_name": "operations/cancelled",
            "expected_states": ["CANCELLED"],
            "gcp_conn_id": "cancelled_conn",
            "impersonation_chain": ["cancelled@example.com"],
            "api_endpoint": "cancelled.example.com",
        }


@pytest.mark.parametrize("fault", [OSError("disk"), ValueError("not JSON"), TimeoutError("slow")], ids=repr)
def test_a_fault_of_the_xcom_backend_is_no_error_of_the_service(
    emulator: DaiEmulator, ti: Ti, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """It stays what it is, and Airflow retries it."""

    def fails(*_: object) -> None:
        raise fault

    monkeypatch.setattr(type(ti), "xcom_push", fails)
    operator = DaiCancelOperationOperator(
        task_id="cancel", operation_name=emulator.start_ingest(), wait_for_completion=True
    )
    with pytest.raises(type(fault)) as caught:
        operator.execute({"ti": ti})  # type: ignore[arg-type]
    assert caught.value is fault


@pytest.mark.parametrize(
    ("faults", "sent"),
    [
        pytest.param([{"method": CANCEL, "status": 503}], [CANCEL], id="between-two-attempts"),
        pytest.param([], [CANCEL, GET, GET], id="between-two-polls"),
        pytest.param([{"method": GET, "status": 503}], [CANCEL, GET, GET], id="after-a-failed-poll"),
    ],
)
def test_a_killed_task_sends_no_other_request(
    emulator: DaiEmulator, ti: Ti, monkeypatch: pytest.MonkeyPatch, faults: list[dict[str, Any]], sent: list[str]
) -> None:
    """As on Airflow 3, where a kill does not interrupt ``execute``."""
    emulator.start_ingest(NAME, cancel_seconds=60)
    for fault in faults:
        emulator.inject(Fault(times=None, **fault))
    operator = DaiCancelOperationOperator(task_id="cancel", operation_name=NAME, wait_for_completion=True)
    monkeypatch.setattr(DaiHook, "_sleep", lambda *_: operator.on_kill())
    with pytest.raises(AirflowException, match=f"the task was killed.*{NAME} may still run") as raised:
        operator.execute({"ti": ti})
    assert not isinstance(raised.value, AirflowFailException)
    assert methods(emulator) == sent


@pytest.mark.parametrize("field", DaiCancelOperationOperator.template_fields)
@pytest.mark.parametrize("template", ["{{ none }}", "{{ nothing }}"])
@pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
def test_a_template_that_renders_to_nothing_is_not_taken_as_left_out(
    emulator: DaiEmulator, ti: Ti, field: str, template: str, native: bool
) -> None:
    with DAG("cancel_rendered_to_nothing", schedule=None, render_template_as_native_obj=native):
        options: dict[str, Any] = {"operation_name": NAME, "wait_for_completion": True, field: template}
        operator = DaiCancelOperationOperator(task_id="cancel", **options)
    operator.render_template_fields({"nothing": ""})
    with pytest.raises(AirflowFailException, match=f"Invalid {field}".replace("_name", ".name")):
        operator.execute({"ti": ti})
    assert emulator.requests == []
