"""The create operator with a list of creatives."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, AirflowFailException, TaskDeferred, task

from airflow_dai_provider.api.batched_polls import MIN_POLLS
from airflow_dai_provider.api.operation_list import MAX_MESSAGE
from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.ingest.outcome import IngestFailedError
from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator
from airflow_dai_provider.tasks.failures import UnexpectedStateError
from tests.support.clock import Clock
from tests.support.connections import Connect
from tests.support.dag_runs import RunDag
from tests.support.emulators import MakeEmulator, count
from tests.support.ingests import CREATE, GET, JSON, LIST, SECRET, both, execute, make, resume
from tests.support.log import Log
from tests.support.payloads import creative
from tests.support.task_instance import TEMPLATE, Store, Ti

pytestmark = pytest.mark.usefixtures("_time")


def url(number: int, **plan: Any) -> str:
    return f"https://media.example.com/{number}.mp4?{SECRET}" + "".join(
        f"&{key}={value}" for key, value in plan.items()
    )


def media(number: int) -> str:
    return f"https://media.example.com/{number}.mp4"


def three(**second: Any) -> list[dict[str, Any]]:
    return [creative(url(0)), creative(url(1, **second)), creative(url(2))]


def name_of(emulator: DaiEmulator, number: int) -> str:
    """Return the operation of the newest ingest of a media file."""
    with DaiHook() as hook:
        every = [one for one in hook.list_operations() if one.ingest and one.ingest.creative_url == media(number)]
    return max(every, key=lambda one: (one.ingest.create_time, list(emulator.states()).index(one.name))).name  # type: ignore[union-attr]


def throttle_the_last(emulator: DaiEmulator, monkeypatch: pytest.MonkeyPatch, **fault: Any) -> None:
    """Refuse the start of the third of three, once the two others have started."""
    create, others, once = DaiHook.create_creative, threading.Semaphore(0), [True]

    def one(hook: DaiHook, body: Any, *args: Any) -> Any:
        if media(2) in str(body) and once:
            once.clear()
            assert all(others.acquire(timeout=30) for _ in range(2))
            emulator.inject(Fault(CREATE, **fault))
        operation = create(hook, body, *args)
        others.release()
        return operation

    monkeypatch.setattr(DaiHook, "create_creative", one)


class TestStart:
    @both
    def test_the_wait_for_many_reads_the_list(
        self, make_emulator: MakeEmulator, context: Any, deferrable: bool
    ) -> None:
        emulator = make_emulator(ingest_seconds=40.0)
        creatives = [creative(url(number)) for number in range(2 * MIN_POLLS)]
        assert sorted(execute(context, creative=creatives, deferrable=deferrable)) == sorted(emulator.states())
        assert count(emulator, LIST) >= 3
        assert count(emulator, GET) < 4 * len(creatives)

    @both
    def test_a_list_gives_lists_in_its_order(
        self, slow: DaiEmulator, context: Any, ti: Ti, store: Store, log: Log, deferrable: bool
    ) -> None:
        names = execute(context, creative=three(), deferrable=deferrable)
        assert names == [name_of(slow, number) for number in range(3)]
        assert set(slow.states().values()) == {"SUCCEEDED"}
        assert count(slow, CREATE) == 3
        assert ti.pushed["ingest", -1, "operation_name"] == names
        assert list(ti.pushed["ingest", -1, "operation_started"]["pushed_at"]) == names
        rows = ti.pushed["ingest", -1, "operation"]
        assert [(row["name"], row["state"], row["media_files"]) for row in rows] == [
            (name, "SUCCEEDED", [media(number)]) for number, name in enumerate(names)
        ]
        assert all(row["ingest"]["gv_registry_id"] for row in rows)
        assert store.kept == {}
        assert SECRET not in json.dumps(list(ti.pushed.values())) + log.text

    def test_equal_creatives_are_started_once(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        first, second, third = execute(context, creative=[creative(url(0)), creative(url(1)), creative(url(0))])
        assert first == third != second
        assert count(slow, CREATE) == 2
        assert ti.pushed["ingest", -1, "operation_name"] == [first, second]
        assert [row["name"] for row in ti.pushed["ingest", -1, "operation"]] == [first, second, third]

    @pytest.mark.parametrize("wait", [True, False])
    def test_a_list_of_one_is_a_list(self, slow: DaiEmulator, context: Any, ti: Ti, wait: bool) -> None:
        (name,) = execute(context, creative=[creative(url(0))], wait_for_completion=wait)
        assert list(slow.states()) == [name]
        assert ti.pushed["ingest", -1, "operation_name"] == [name]

    @both
    @pytest.mark.parametrize("wait", [True, False])
    def test_an_empty_list_starts_nothing_and_says_so(
        self, slow: DaiEmulator, context: Any, ti: Ti, log: Log, deferrable: bool, wait: bool
    ) -> None:
        assert execute(context, creative=[], deferrable=deferrable, wait_for_completion=wait) == []
        assert "The list of creatives is empty." in log.ours
        assert ti.pushed["ingest", -1, "operation_name"] == []
        assert ti.pushed.get(("ingest", -1, "operation")) == ([] if wait else None)
        assert slow.requests == []

    @pytest.mark.parametrize("write", [json.dumps, repr])
    def test_a_template_that_renders_to_the_text_of_a_list_is_read(
        self, slow: DaiEmulator, context: Any, write: Any
    ) -> None:
        assert execute(context, creative=write(three())) == [name_of(slow, number) for number in range(3)]

    def test_it_does_not_wait_without_wait_for_completion(self, slow: DaiEmulator, context: Any, ti: Ti) -> None:
        names = execute(context, creative=three(), wait_for_completion=False)
        assert slow.states() == dict.fromkeys(slow.states(), "RUNNING")
        assert count(slow, GET) == 0
        assert ti.pushed["ingest", -1, "operation_name"] == names

    @pytest.mark.usefixtures("slow")
    def test_what_has_started_is_not_meant_to_survive_a_failure(self, context: Any, ti: Ti) -> None:
        execute(context, creative=three(), wait_for_completion=False)
        assert ti.pushed["ingest", -1, "operation_started"]["refused"] is False

    def test_a_dynamic_creative_info_is_that_of_each(self, slow: DaiEmulator, context: Any) -> None:
        creatives = [creative(url(number), networkCode="1") for number in range(2)]
        execute(context, creative=creatives, dynamic_creative_info={"dynamicGroupId": "g"})
        bodies = [json.loads(request.body) for request in slow.requests if request.method == CREATE]
        assert [body["dynamicCreativeInfo"]["dynamicGroupId"] for body in bodies] == ["g", "g"]


@pytest.mark.parametrize("change", ["order", "length", "replaced"])
def test_a_list_that_has_changed_while_it_was_deferred_is_refused(
    slow: DaiEmulator, context: Any, ti: Ti, change: str
) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        make(creative=three(), deferrable=True).execute(context)
    creatives = three()[: 2 if change == "length" else 3]
    if change == "order":
        creatives.reverse()
    if change == "replaced":
        ti.pushed["ingest", -1, "operation"] = [1, 2, 3]
    with pytest.raises(AirflowException, match="is not that of the [23] creatives of this task"):
        resume(deferred.value, context, creative=creatives)
    assert count(slow, CREATE) == 3


class TestRefused:
    @pytest.mark.usefixtures("slow")
    def test_every_invalid_creative_is_named_with_its_index(self, slow: DaiEmulator, context: Any) -> None:
        creatives = [creative(url(0)), {"adSystem": 3}, creative(url(2)), None, creative("")]
        with pytest.raises(AirflowFailException) as caught:
            execute(context, creative=creatives)
        message = str(caught.value)
        assert "3 of 5 values of creative are invalid" in message
        for words in (
            "creative[1]: Invalid creative: adSystem",
            "creative[3]: ",
            "creative[4]: Invalid creative: media",
        ):
            assert words in message
        assert slow.requests == []

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ([[creative(url(0))]], "a list within the list at index 0"),
            ("[1, 2", "expected one value, or a list"),
            ([creative(url(0))] * 10_001, "at most 10,000 values, got 10,001"),
        ],
        ids=["nested", "no list", "too many"],
    )
    def test_what_is_no_list_of_creatives_is_refused(
        self, slow: DaiEmulator, context: Any, value: Any, words: str
    ) -> None:
        with pytest.raises(AirflowFailException, match=words):
            execute(context, creative=value)
        assert slow.requests == []

    @both
    @pytest.mark.usefixtures("slow")
    def test_a_timeout_tells_what_has_finished_by_then(self, context: Any, ti: Ti, deferrable: bool) -> None:
        with pytest.raises(AirflowException, match="1 of 3 operations have not finished within 100 s"):
            execute(context, creative=three(seconds=500), deferrable=deferrable, timeout=100)
        rows = ti.pushed["ingest", -1, "operation"]
        assert [row["state"] for row in rows] == ["SUCCEEDED", "RUNNING", "SUCCEEDED"]

    @both
    @pytest.mark.parametrize("retries", [0, 1])
    def test_one_refused_start_does_not_cancel_the_others(
        self, slow: DaiEmulator, context: Any, ti: Ti, deferrable: bool, retries: int
    ) -> None:
        ti.max_tries = retries
        slow.inject(Fault(CREATE, rpc_status="INVALID_ARGUMENT", times=1))
        with pytest.raises(AirflowFailException, match="2 of 3 ingests have succeeded. Not started: 1 INVALID_ARGUM"):
            execute(context, creative=three(), deferrable=deferrable)
        assert list(slow.states().values()) == ["SUCCEEDED"] * 2
        assert not any(slow.cancel_requested(name) for name in slow.states())
        rows = ti.pushed["ingest", -1, "operation"]
        (refused,) = [row for row in rows if row["name"] is None]
        assert [row["media_files"] for row in rows] == [[media(number)] for number in range(3)]
        assert {key: refused[key] for key in ("state", "done", "error_code")} == {
            "state": None,
            "done": False,
            "error_code": 3,
        }
        assert "INVALID_ARGUMENT" in refused["error_message"]

    def test_without_waiting_one_refused_start_fails_the_task_and_cancels_nothing(
        self, slow: DaiEmulator, context: Any, ti: Ti
    ) -> None:
        slow.inject(Fault(CREATE, rpc_status="PERMISSION_DENIED", times=1))
        with pytest.raises(AirflowFailException, match="Not started: 1 PERMISSION_DENIED"):
            execute(context, creative=three(), wait_for_completion=False)
        assert list(slow.states().values()) == ["RUNNING"] * 2
        assert sorted(ti.pushed["ingest", -1, "operation_name"]) == sorted(slow.states())
        assert ti.pushed["ingest", -1, "operation_started"]["refused"] is True
        assert not any(slow.cancel_requested(name) for name in slow.states())
        rows = ti.pushed["ingest", -1, "operation"]
        assert sorted(str(row["state"]) for row in rows) == ["None", "RUNNING", "RUNNING"]
        assert "PERMISSION_DENIED" in "".join(str(row["error_message"]) for row in rows)

    @pytest.mark.parametrize("pause", [60, 90], ids=["that can be borne", "that is too long"])
    def test_a_pause_that_the_service_asks_for_is_no_refusal(
        self, slow: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch, pause: int
    ) -> None:
        """The first call that cannot wait so long must not take all others with it."""
        create, started = DaiHook.create_creative, []

        def one(hook: DaiHook, *args: Any) -> Any:
            operation = create(hook, *args)
            started.append(operation)
            if len(started) == 30:
                slow.inject(Fault(CREATE, status=429, retry_after=pause, lasts=pause))
            return operation

        monkeypatch.setattr(DaiHook, "create_creative", one)
        creatives = [creative(url(number)) for number in range(100)]
        if pause == 60:
            assert len(set(execute(context, creative=creatives, wait_for_completion=False))) == 100
        else:
            with pytest.raises(IngestFailedError, match="ingests have started. Not started: .* RESOURCE_EXHAUSTED: "):
                execute(context, creative=creatives, wait_for_completion=False)

    def test_the_xcom_of_many_refused_starts_is_bounded(
        self, slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("airflow_dai_provider.api.operation_list.MAX_CHARACTERS", 4_000)
        slow.inject(Fault(CREATE, status=400, body='{"error": {"message": "%s"}}' % ("y" * 3_000), times=None, **JSON))
        with pytest.raises(AirflowFailException, match="0 of 10 ingests have succeeded"):
            execute(context, creative=[creative(url(number)) for number in range(10)])
        rows = ti.pushed["ingest", -1, "operation"]
        assert [row["media_files"] for row in rows] == [[media(number)] for number in range(10)]
        assert {len(row["error_message"]) for row in rows} == {MAX_MESSAGE}

    def test_unimplemented_fails_at_once(self, make_emulator: MakeEmulator, context: Any, ti: Ti) -> None:
        ti.max_tries = 3
        emulator = make_emulator(unimplemented=[CREATE])
        with pytest.raises(AirflowFailException, match="UNIMPLEMENTED.*a retry cannot help"):
            execute(context, creative=[creative(url(number)) for number in range(500)])
        assert count(emulator, CREATE) <= 200

    @both
    @pytest.mark.usefixtures("slow")
    def test_the_verdict_counts_the_reasons_and_names_the_first_ten(
        self, context: Any, ti: Ti, deferrable: bool
    ) -> None:
        failing = [creative(url(number, outcome="DOWNLOAD_ERROR", code=403)) for number in range(12)]
        other = creative(url(12, outcome="INVALID_MEDIA"))
        with pytest.raises(UnexpectedStateError) as caught:
            execute(context, creative=[*failing, other, creative(url(13))], deferrable=deferrable)
        message = str(caught.value)
        assert message.startswith(
            "1 of 14 ingests have succeeded. Did not succeed: 12 DOWNLOAD_ERROR 403, 1 INVALID_MEDIA: Ingest of"
        )
        assert "and 3 more" in message
        assert "media.example.com/9.mp4" in message
        assert "media.example.com/10.mp4" not in message
        reasons = [row["ingest"]["failure_reason"] for row in ti.pushed["ingest", -1, "operation"]]
        assert reasons == ["DOWNLOAD_ERROR"] * 12 + ["INVALID_MEDIA", None]

    @both
    def test_a_failure_named_by_retry_on_may_be_retried(
        self, slow: DaiEmulator, context: Any, deferrable: bool
    ) -> None:
        creatives = three(outcome="INTERNAL_ERROR")
        with pytest.raises(IngestFailedError, match="2 of 3 ingests have succeeded"):
            execute(context, creative=creatives, deferrable=deferrable, retry_on="INTERNAL_ERROR")
        assert list(slow.states().values()).count("FAILED") == 1


#: The page of a front end: no JSON error of the API.
PAGE = {"body": b"<html>Not here</html>", "content_type": "text/html"}


class TestErrorsOfOthers:
    """Errors that the API has not caused say nothing of the API."""

    @pytest.mark.parametrize("status", [404, 501])
    def test_one_page_of_a_front_end_keeps_no_creative_from_its_start(
        self, slow: DaiEmulator, context: Any, status: int
    ) -> None:
        slow.inject(Fault(CREATE, status=status, times=1, **PAGE))
        names = execute(context, creative=[creative(url(number)) for number in range(100)])
        assert list(slow.states()) == sorted(names, key=list(slow.states()).index)
        assert count(slow, CREATE) == 101

    def test_a_page_that_lasts_is_no_lack_of_the_method(
        self, slow: DaiEmulator, context: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        throttle_the_last(slow, monkeypatch, status=404, times=None, **PAGE)
        with pytest.raises(IngestFailedError, match="2 of 3 ingests have succeeded. Not started: 1 UNAVAILABLE"):
            execute(context, creative=three())
        assert len(slow.states()) == 2

    def test_nothing_but_pages_stops_the_starts_soon(self, slow: DaiEmulator, context: Any) -> None:
        slow.inject(Fault(CREATE, status=404, times=None, **PAGE))
        with pytest.raises(AirflowFailException, match="is the endpoint right"):
            execute(context, creative=[creative(url(number)) for number in range(400)])
        assert count(slow, CREATE) < 200

    @both
    def test_a_value_error_of_airflow_leaves_the_ingests_to_the_next_try(
        self, slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch, deferrable: bool
    ) -> None:
        ti.max_tries = 1
        push = ti.xcom_push

        def broken(key: str, value: Any) -> None:
            push(key, value)
            if key == "operation":
                raise ValueError("The XCom backend cannot encode this.")

        monkeypatch.setattr(ti, "xcom_push", broken, raising=False)
        with pytest.raises(ValueError, match="XCom backend"):
            execute(context, creative=three(), deferrable=deferrable)
        assert [slow.cancel_requested(name) for name in slow.states()] == [0, 0, 0]


class TestBefore33:
    @pytest.mark.parametrize("task_store", [True, False], ids=["3.3", "before 3.3"])
    def test_without_waiting_no_retry_starts_again_what_runs(
        self, slow: DaiEmulator, context: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch, task_store: bool
    ) -> None:
        ti.max_tries = 1
        if not task_store:
            del context["task_state_store"]
        throttle_the_last(slow, monkeypatch, status=429, times=None)
        with pytest.raises(AirflowException, match="2 of 3 ingests have started. Not started: 1 RESOURCE") as caught:
            execute(context, creative=three(), wait_for_completion=False)
        assert isinstance(caught.value, IngestFailedError) is task_store
        assert isinstance(caught.value, AirflowFailException) is not task_store
        assert ("a retry would start them again" in str(caught.value)) is not task_store
        assert list(slow.states().values()) == ["RUNNING"] * 2
        assert not any(slow.cancel_requested(name) for name in slow.states())

    def test_without_waiting_a_retry_is_left_where_nothing_has_started(
        self, slow: DaiEmulator, context_before_3_3: Any
    ) -> None:
        slow.inject(Fault(CREATE, status=429, times=None))
        with pytest.raises(IngestFailedError, match="0 of 3 ingests have started"):
            execute(context_before_3_3, creative=three(), wait_for_completion=False)

    @both
    @pytest.mark.parametrize("succeeded", [True, False])
    def test_the_task_fails_for_good_once_one_has_succeeded(
        self, slow: DaiEmulator, context_before_3_3: Any, deferrable: bool, succeeded: bool
    ) -> None:
        plans = [{"outcome": "INTERNAL_ERROR"}, {} if succeeded else {"outcome": "INTERNAL_ERROR"}]
        creatives = [creative(url(number, **plan)) for number, plan in enumerate(plans)]
        with pytest.raises(AirflowException) as caught:
            execute(context_before_3_3, creative=creatives, deferrable=deferrable, retry_on=["INTERNAL_ERROR"])
        assert isinstance(caught.value, AirflowFailException) is succeeded
        assert ("a retry would start them again" in str(caught.value)) is succeeded
        assert slow.states()

    @both
    @pytest.mark.parametrize("succeeded", [True, False])
    def test_so_it_does_after_a_timeout(
        self, slow: DaiEmulator, context_before_3_3: Any, deferrable: bool, succeeded: bool
    ) -> None:
        creatives = [creative(url(0, seconds=5 if succeeded else 500)), creative(url(1, seconds=500))]
        with pytest.raises(AirflowException) as caught:
            execute(context_before_3_3, creative=creatives, deferrable=deferrable, timeout=60)
        assert isinstance(caught.value, AirflowFailException) is succeeded
        states = sorted(slow.states().values())
        assert states == (["RUNNING", "SUCCEEDED"] if succeeded else ["RUNNING", "RUNNING"])
        assert slow.cancel_requested(name_of(slow, 1)) == 1

    @both
    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("outcome", ["SUCCEEDED", "INTERNAL_ERROR"])
    def test_so_it_does_after_an_error_of_airflow(
        self,
        context_before_3_3: Any,
        ti: Ti,
        monkeypatch: pytest.MonkeyPatch,
        deferrable: bool,
        outcome: str,
    ) -> None:
        push = ti.xcom_push

        def away(key: str, value: Any) -> None:
            if key == "operation" and any(row["done"] for row in value):
                raise OSError("the bucket is away")
            push(key, value)

        monkeypatch.setattr(ti, "xcom_push", away)
        creatives = three() if outcome == "SUCCEEDED" else [creative(url(0, outcome=outcome))]
        expected = AirflowFailException if outcome == "SUCCEEDED" else OSError
        with pytest.raises(expected, match="the bucket is away") as caught:
            execute(context_before_3_3, creative=creatives, deferrable=deferrable)
        assert ("a retry would start them again" in str(caught.value)) is (outcome == "SUCCEEDED")


class TestDag:
    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("native", [True, False], ids=["native", "text"])
    def test_a_template_and_the_output_of_a_mapped_task_give_lists(self, run_dag: RunDag, native: bool) -> None:
        with DAG("campaign", schedule=None, render_template_as_native_obj=native) as dag:

            @task
            def read(number: int) -> dict[str, Any]:
                return creative(url(number, seconds=1))

            sheet = read.expand(number=[0, 1])
            DaiCreateCreativeOperator(task_id="lazy", creative=sheet)
            template = "{{ ti.xcom_pull(task_ids='read') | list }}"
            sheet >> DaiCreateCreativeOperator(task_id="text", creative=template)
        run = run_dag(dag)
        assert run.state == "success"
        assert len({*run.xcom("lazy"), *run.xcom("text")}) == 4

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize("mapped", [True, False])
    def test_the_rendered_field_shows_no_signature(self, run_dag: RunDag, monkeypatch: Any, mapped: bool) -> None:
        from airflow.models.renderedtifields import RenderedTaskInstanceFields
        from airflow.utils.session import create_session

        masked: list[Any] = []
        monkeypatch.setattr("airflow_dai_provider.operators.dai.create.mask_secret", masked.append)
        creatives = [creative(url(number, seconds=1)) for number in range(3)]
        with DAG(f"signed_campaign_{mapped}", schedule=None) as dag:
            if mapped:
                DaiCreateCreativeOperator.partial(task_id="ingest").expand(creative=[creatives])
            else:
                DaiCreateCreativeOperator(task_id="ingest", creative=creatives)
        run = run_dag(dag)
        assert run.tasks == {"ingest[0]" if mapped else "ingest": "success"}
        with create_session() as session:
            kept = session.query(RenderedTaskInstanceFields).filter_by(dag_id=f"signed_campaign_{mapped}").all()
            (shown,) = [str(fields.rendered_fields) for fields in kept]
        assert "media.example.com/2.mp4" in shown
        assert "sig=" not in shown
        assert masked == [], "Value by value it takes a minute for a thousand."

    @pytest.mark.usefixtures("slow")
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ([creative(url(0))] * 10_001, "at most 10,000 values, got 10,001"),
            ([[creative(url(0))]], "list within the list at index 0: .*adSystem"),
            (json.dumps([creative(url(0))] * 10_001), "at most 10,000 values, got 10,001"),
            (f"[{url(0)}", "media.example.com/0.mp4.: expected one value, or a list"),
        ],
        ids=["too many", "nested", "too many in a text", "no list"],
    )
    def test_a_list_that_is_refused_is_not_masked_value_by_value_either(
        self, context: Any, monkeypatch: pytest.MonkeyPatch, given: Any, words: str
    ) -> None:
        masked: list[Any] = []
        monkeypatch.setattr("airflow_dai_provider.operators.dai.create.mask_secret", masked.append)
        operator = make(creative=TEMPLATE)
        operator.creative = given
        operator.render_template_fields(context)
        assert "media.example.com/0.mp4" in str(operator.creative)
        assert SECRET not in str(operator.creative)
        assert masked == []
        with pytest.raises(AirflowFailException, match=words) as caught:
            operator.execute(context)
        assert SECRET not in str(caught.value)

    def test_what_is_submitted_keeps_the_signature(self, slow: DaiEmulator, run_dag: RunDag) -> None:
        with DAG("signed_and_submitted", schedule=None) as dag:
            DaiCreateCreativeOperator(task_id="ingest", creative=[creative(url(0, seconds=1))])
        assert run_dag(dag).tasks == {"ingest": "success"}
        (body,) = [json.loads(request.body) for request in slow.requests if request.method == CREATE]
        assert SECRET in body["creative"]["mediaFiles"][0]["uri"]


def test_a_mapped_or_single_creative_is_refused_where_it_is_nothing(context: Any) -> None:
    with pytest.raises(AirflowFailException, match="Invalid creative"):
        make(creative=None).execute(context)


@pytest.mark.parametrize("cancel_on_kill", [True, False])
def test_an_endpoint_that_cannot_be_one_fails_the_task_for_good(
    context: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch, cancel_on_kill: bool
) -> None:
    monkeypatch.delenv("DAI_EMULATOR_HOST", raising=False)
    connect(is_anonymous=True, dai_api_endpoint="https://x/y")
    with pytest.raises(AirflowFailException, match="https://x/y"):
        make(creative=three(), cancel_on_kill=cancel_on_kill).execute(context)


def test_a_list_that_does_not_wait_tells_what_has_failed_between_two_tries(
    slow: DaiEmulator, context: Any, ti: Ti, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ti.max_tries = 1
    creatives = [creative(url(0, seconds=5, outcome="DOWNLOAD_ERROR")), creative(url(1)), creative(url(2))]
    throttle_the_last(slow, monkeypatch, status=429, lasts=300)
    with pytest.raises(IngestFailedError, match="2 of 3 ingests have started"):
        execute(context, creative=creatives, wait_for_completion=False)
    clock.advance(300)
    ti.try_number = 2
    ti.pushed.clear()
    with pytest.raises(AirflowFailException, match="DOWNLOAD_ERROR"):
        execute(context, creative=creatives, wait_for_completion=False)
    assert len(slow.states()) == 3
