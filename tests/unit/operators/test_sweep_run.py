"""DaiCancelStrayOperationsOperator: its threads, connections, parameters and kills, and its runs under Airflow."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowException,
    AirflowFailException,
    BaseHook,
    BaseOperator,
    task,
)

from airflow_dai_provider.emulator import DaiEmulator, Fault
from airflow_dai_provider.hooks.dai import DaiHook
from airflow_dai_provider.operators.dai import XCOM_REPORT, DaiCancelStrayOperationsOperator
from tests.support.clock import Clock
from tests.support.connections import define_connection
from tests.support.dag_runs import RunDag
from tests.support.emulators import MakeEmulator, count, methods
from tests.support.strays import CANCEL, GET, HOUR, LIST, make, pushed_report
from tests.support.task_instance import Ti
from tests.support.threads import untraced
from tests.support.token_server import token_server

pytestmark = pytest.mark.usefixtures("sweep_time")


#: Seconds for which the first requests are held until all threads have begun; longer ones for a busy machine.
HOLDS = (0.05, 1.0, 5.0, 20.0)


@contextmanager
def peak(emulator: DaiEmulator, method: str) -> Iterator[list[int]]:
    """Tell how many requests of a method were under way at a time, as the server saw it."""
    over = threading.Event()
    seen = [0]

    def watch() -> None:
        while not over.is_set():
            under_way = [request for request in emulator.requests if request.method == method and not request.status]
            seen[0] = max(seen[0], len(under_way))
            time.sleep(0.002)  # real: the test's clock stands still here

    with ThreadPoolExecutor(1) as watcher:
        watching = watcher.submit(watch)
        try:
            yield seen
        finally:
            over.set()
            watching.result()


def peak_of(play: Callable[[], None], emulator: DaiEmulator, method: str, threads: int) -> int:
    """Return how many requests of a method are under way at a time; their number is never more than the threads."""
    for seconds in HOLDS:
        emulator.reset()
        emulator.inject(Fault(method=method, delay=seconds, times=threads))
        with peak(emulator, method) as seen:
            play()
        if seen[0] >= threads:
            break
    return seen[0]


class TestConcurrency:
    @pytest.mark.parametrize("size", [1, 3, 8])
    def test_concurrent_requests_are_bounded(self, emulator: DaiEmulator, strays: Any, sweep: Any, size: int) -> None:
        def play() -> None:
            strays(*map(str, range(16)))
            sweep(max_concurrency=size)

        assert peak_of(play, emulator, CANCEL, size) == size
        assert emulator.connections == size + 1  # that of the list
        assert set(emulator.states().values()) == {"CANCELLED"}

    def test_polls_are_bounded_and_reuse_the_connections(self, emulator: DaiEmulator, strays: Any, sweep: Any) -> None:
        def play() -> None:
            strays(*map(str, range(12)), cancel_seconds=5)
            sweep(max_concurrency=4, wait_for_completion=True)

        assert peak_of(play, emulator, GET, 4) == 4
        assert count(emulator, GET) > 12
        assert emulator.connections == 4 + 1

    def test_no_more_threads_than_operations(self, emulator: DaiEmulator, strays: Any, sweep: Any) -> None:
        strays("a", "b")
        sweep(max_concurrency=50)
        assert emulator.connections <= 2 + 1

    def test_no_thread_is_left(self, strays: Any, sweep: Any) -> None:
        strays("a", "b")
        before = threading.enumerate()
        sweep()
        left = [one for one in threading.enumerate() if one not in before]
        assert not [thread.name for thread in left if thread.name.startswith("dai-worker")]

    def test_only_the_main_thread_asks_airflow_for_the_connection(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DAI_EMULATOR_HOST")
        extra = {"is_anonymous": True, "dai_api_endpoint": emulator.endpoint}
        monkeypatch.setenv("AIRFLOW_CONN_DAI", json.dumps({"conn_type": "google_cloud_platform", "extra": extra}))
        asking: list[threading.Thread] = []
        get_connection = BaseHook.get_connection

        def watched(_: object, conn_id: str) -> Any:
            asking.append(threading.current_thread())
            return get_connection(conn_id)

        monkeypatch.setattr(BaseHook, "get_connection", watched)
        strays(*"abcdef", cancel_seconds=5)
        sweep(gcp_conn_id="dai", wait_for_completion=True)
        assert set(emulator.states().values()) == {"CANCELLED"}
        assert asking == [threading.main_thread()]

    def test_all_threads_use_one_token(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        strays(*"abcdef")
        monkeypatch.delenv("DAI_EMULATOR_HOST")
        with token_server() as tokens:
            define_connection(monkeypatch, "dai", keyfile_dict=tokens.key, dai_api_endpoint=emulator.endpoint)
            sweep(gcp_conn_id="dai")
        assert tokens.asked == 1
        assert {request.headers.get("authorization") for request in emulator.requests} == {f"Bearer {tokens.issued[0]}"}
        assert set(emulator.states().values()) == {"CANCELLED"}


class TestConnection:
    def test_an_endpoint_overrides_the_emulator_of_the_environment(
        self, make_emulator: MakeEmulator, sweep: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        meant, other = make_emulator(), make_emulator()
        define_connection(monkeypatch, "dai", is_anonymous=True)
        meant.start_ingest("operations/a")
        clock.advance(2 * HOUR)
        assert sweep(gcp_conn_id="dai", api_endpoint=meant.endpoint)["requested"] == ["operations/a"]
        assert other.requests == []

    def test_the_impersonated_account_gets_the_token(
        self, emulator: DaiEmulator, sweep: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Google's own service, which does that, is out of reach here."""
        monkeypatch.delenv("DAI_EMULATOR_HOST")
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        with token_server() as tokens:
            extra = {"keyfile_dict": tokens.key, "dai_api_endpoint": emulator.endpoint, "num_retries": 0}
            define_connection(monkeypatch, "dai", **extra)
            with pytest.raises(AirflowException, match="was not sent: no access token.*iamcredentials"):
                sweep(gcp_conn_id="dai", impersonation_chain="robot@p.iam.gserviceaccount.com")
        assert emulator.requests == []


@contextmanager
def after_requests(emulator: DaiEmulator, number: int, method: str, act: Callable[[], object]) -> Iterator[None]:
    """Do something, in a thread, as soon as the server has seen so many requests, or never if the block ends before."""
    over = threading.Event()

    def watch() -> None:
        while count(emulator, method) < number and not over.is_set():
            time.sleep(0.002)  # real: the test's clock stands still here
        if not over.is_set():
            act()

    with ThreadPoolExecutor(1) as watcher:
        watching = watcher.submit(watch)
        try:
            yield
        finally:
            over.set()
            watching.result()


class TestKill:
    def test_a_killed_sweep_requests_nothing_more(self, emulator: DaiEmulator, strays: Any, ti: Ti) -> None:
        """As on Airflow 3, where a kill does not interrupt ``sweep``."""
        names = strays(*(f"ad-{number:02}" for number in range(20)))
        emulator.inject(Fault(method=CANCEL, delay=0.3, times=None))
        operator = make(max_concurrency=1, wait_for_completion=True)
        with (
            after_requests(emulator, 3, CANCEL, operator.on_kill),
            pytest.raises(AirflowException, match="20 of 20 stray operations may still run"),
        ):
            operator.execute({"ti": ti})
        assert 3 <= count(emulator, CANCEL) <= 4
        assert count(emulator, GET) == 0
        left = pushed_report(ti)["left"]
        assert sorted(left) == names
        assert "the task was killed before this was attempted" in left[names[-1]]
        assert left[names[0]].startswith("its cancellation is requested, but the task was killed")

    @pytest.mark.parametrize(
        ("method", "words"), [(LIST, "not retried: the task was killed"), (CANCEL, "5 of 5 stray")]
    )
    def test_a_sweep_that_is_killed_between_two_attempts_sends_no_retry(
        self, emulator: DaiEmulator, strays: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch, method: str, words: str
    ) -> None:
        strays(*"abcde")
        emulator.inject(Fault(method=method, status=503, times=None))
        operator = make(max_concurrency=1)
        monkeypatch.setattr(DaiHook, "_sleep", lambda *_: operator.on_kill())
        with pytest.raises(AirflowException, match=words):
            operator.execute({"ti": ti})
        assert methods(emulator) == ([LIST] if method == LIST else [LIST, CANCEL])

    def test_a_sweep_that_is_killed_during_its_wait_polls_no_more(
        self, emulator: DaiEmulator, strays: Any, ti: Ti, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        strays(*"ab", cancel_seconds=60)
        operator = make(wait_for_completion=True)
        monkeypatch.setattr(DaiHook, "_sleep", staticmethod(lambda *_: operator.on_kill()))
        with pytest.raises(AirflowException, match="2 of 2 stray operations may still run.*the task was killed"):
            operator.execute({"ti": ti})
        assert (count(emulator, CANCEL), count(emulator, GET)) == (2, 2)

    def test_an_exception_from_outside_stops_it_at_once(self, emulator: DaiEmulator, strays: Any, ti: Ti) -> None:
        """As on Airflow 2, and with an ``execution_timeout``: a signal handler raises in the main thread."""

        class KilledError(BaseException):
            pass

        def raise_killed(*_: object) -> None:
            raise KilledError

        names = strays(*(f"ad-{number:02}" for number in range(20)))
        emulator.inject(Fault(method=CANCEL, delay=0.2, times=None))
        others = threading.enumerate()
        before = signal.signal(signal.SIGALRM, raise_killed)
        try:
            with (
                untraced(),
                after_requests(emulator, 3, CANCEL, lambda: os.kill(os.getpid(), signal.SIGALRM)),
                pytest.raises(KilledError),
            ):
                make(max_concurrency=1).execute({"ti": ti})
        finally:
            signal.signal(signal.SIGALRM, before)
        under_way = [one for one in threading.enumerate() if one.name.startswith("dai-worker") and one not in others]
        assert under_way  # the response was not waited for
        for thread in under_way:
            thread.join()
        assert count(emulator, CANCEL) <= 4
        left = pushed_report(ti)["left"]
        assert set(names[4:]) <= set(left) <= set(names[1:])
        assert "broke off before its cancellation was requested" in left[names[-1]]


class TestParameters:
    @pytest.mark.parametrize(
        ("parameter", "value", "expected"),
        [
            ("older_than", 0, "a timedelta, or a positive number of seconds"),
            ("older_than", float("nan"), "a timedelta, or a positive number of seconds"),
            ("older_than", True, "a timedelta, or a positive number of seconds"),
            ("older_than", "six hours", "a timedelta, or a positive number of seconds"),
            ("url_prefix", "", "the beginning of a URL, or None"),
            ("url_pattern", "(", r"a regular expression \(missing"),
            ("spare", ["operations/a", "None"], "the upstream task has pushed no name"),
            ("include_undated", "False", "True or False"),
            ("max_cancellations", 0, "a whole number, 1 or more"),
            ("max_cancellations", None, "a whole number, 1 or more"),
            ("max_concurrency", 51, "a whole number from 1 to 50"),
            ("max_concurrency", 2.5, "a whole number from 1 to 50"),
            ("wait_for_completion", "yes", "True or False"),
            ("poll_interval", 0, "a positive number of seconds"),
            ("timeout", -1, "a positive number of seconds"),
            ("dry_run", "{{ params.dry_run }}", "True or False"),
        ],
    )
    def test_an_invalid_parameter_fails_for_good_without_a_request(
        self, emulator: DaiEmulator, strays: Any, sweep: Any, parameter: str, value: Any, expected: str
    ) -> None:
        strays("a")
        with pytest.raises(AirflowFailException, match=f"^Invalid {parameter}.*{expected}"):
            sweep(**{parameter: value})
        assert emulator.requests == []

    @pytest.mark.parametrize("field", DaiCancelStrayOperationsOperator.template_fields)
    @pytest.mark.parametrize("template", ["{{ none }}", "{{ nothing }}"])
    @pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
    def test_a_template_that_renders_to_nothing_is_not_taken_as_left_out(
        self, emulator: DaiEmulator, strays: Any, ti: Ti, field: str, template: str, native: bool
    ) -> None:
        strays("a")
        with DAG("sweep_rendered_to_nothing", schedule=None, render_template_as_native_obj=native):
            operator = make(**{field: template})
        operator.render_template_fields({"nothing": ""})
        with pytest.raises(AirflowFailException, match=f"Invalid {field}"):
            operator.execute({"ti": ti})
        assert emulator.requests == []

    def test_the_constructor_assigns_templates_unseen(self) -> None:
        given: dict[str, Any] = {name: object() for name in DaiCancelStrayOperationsOperator.template_fields}
        operator = DaiCancelStrayOperationsOperator(task_id="sweep", dry_run=True, **given)
        assert {name: getattr(operator, name) for name in given} == given
        assert operator.is_dry_run is True

    def test_defaults(self) -> None:
        operator = make()
        assert (operator.url_prefix, operator.url_pattern, operator.spare) == (None, None, None)
        assert (operator.include_undated, operator.wait_for_completion, operator.is_dry_run) == (False, False, False)
        assert (operator.max_cancellations, operator.max_concurrency) == (20, 8)
        assert (operator.poll_interval, operator.timeout) == (30.0, 3600.0)
        assert operator.gcp_conn_id == "google_cloud_default"
        assert (operator.impersonation_chain, operator.api_endpoint) == (None, None)

    def test_by_default_only_what_has_an_owner_can_be_a_stray(self) -> None:
        operator = DaiCancelStrayOperationsOperator(task_id="sweep")
        assert (operator.older_than, operator.orphaned_for) == (None, timedelta(minutes=2))

    def test_parameters_are_keyword_only(self) -> None:
        with pytest.raises((TypeError, AirflowException)):
            DaiCancelStrayOperationsOperator(HOUR, task_id="sweep")

    @pytest.mark.skipif(not hasattr(BaseOperator, "dry_run"), reason="The operators of Airflow 3.0 have no dry_run()")
    def test_the_dry_run_of_every_operator_still_works(self, emulator: DaiEmulator) -> None:
        """``dry_run()`` is what ``airflow tasks test --dry-run`` calls."""
        make(dry_run=True, url_prefix="https://").dry_run()
        assert emulator.requests == []

    def test_templates_are_rendered(self) -> None:
        operator = make(
            older_than="{{ seconds }}",
            orphaned_for="{{ seconds }}",
            url_prefix="https://{{ word }}/",
            url_pattern="{{ word }}$",
            spare=["operations/{{ word }}"],
            gcp_conn_id="{{ word }}_conn",
            impersonation_chain=["{{ word }}@example.com"],
            api_endpoint="{{ word }}.example.com",
        )
        operator.render_template_fields({"word": "x", "seconds": 60})
        assert {name: getattr(operator, name) for name in operator.template_fields} == {
            "older_than": "60",
            "orphaned_for": "60",
            "url_prefix": "https://x/",
            "url_pattern": "x$",
            "spare": ["operations/x"],
            "gcp_conn_id": "x_conn",
            "impersonation_chain": ["x@example.com"],
            "api_endpoint": "x.example.com",
        }


class TestRun:
    """On the real metadata database, by ``dag.test()``."""

    @staticmethod
    def dag(dag_id: str, **options: Any) -> Any:
        with DAG(dag_id, schedule=None, params={"hours": 1}) as dag:
            DaiCancelStrayOperationsOperator(task_id="sweep", **{"older_than": timedelta(hours=1), **options})
        return dag

    def test_the_report_is_returned_and_pushed(self, emulator: DaiEmulator, strays: Any, run_dag: RunDag) -> None:
        names = strays("a", "b", cancel_seconds=7)
        run = run_dag(self.dag("stray_report", wait_for_completion=True))
        assert run.tasks == {"sweep": "success"}
        assert run.xcom("sweep")["cancelled"] == names
        assert run.xcom("sweep", XCOM_REPORT) == run.xcom("sweep")
        assert set(emulator.states().values()) == {"CANCELLED"}

    def test_templates_are_rendered_in_a_run(self, strays: Any, run_dag: RunDag) -> None:
        strays("a", "b", "c")
        with DAG("stray_templates", schedule=None, params={"hours": 1, "url": "https://media.example/"}) as dag:

            @task
            def ours() -> list[str]:
                return ["operations/a", "operations/c"]

            DaiCancelStrayOperationsOperator(
                task_id="sweep", older_than="{{ params.hours * 3600 }}", url_prefix="{{ params.url }}", spare=ours()
            )
        run = run_dag(dag)
        assert run.state == "success"
        assert run.xcom("sweep")["requested"] == ["operations/b"]

    def test_each_map_index_sweeps_its_own_url(self, emulator: DaiEmulator, run_dag: RunDag, clock: Clock) -> None:
        for word in ("one", "two", "three"):
            emulator.start_ingest(f"operations/{word}", creative_url=f"https://{word}.example/ad.mp4")
        clock.advance(2 * HOUR)
        with DAG("stray_mapped", schedule=None) as dag:
            DaiCancelStrayOperationsOperator.partial(task_id="sweep", older_than=timedelta(hours=1)).expand(
                url_prefix=["https://one.example/", "https://two.example/"]
            )
        run = run_dag(dag)
        assert run.tasks == {"sweep[0]": "success", "sweep[1]": "success"}
        assert [run.xcom("sweep", map_index=index)["requested"] for index in (0, 1)] == [
            ["operations/one"],
            ["operations/two"],
        ]
        assert emulator.state("operations/three") == "RUNNING"

    def test_the_connection_sets_the_endpoint_and_the_retries(
        self, emulator: DaiEmulator, strays: Any, run_dag: RunDag, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DAI_EMULATOR_HOST")
        extra = {"is_anonymous": True, "num_retries": 2, "dai_api_endpoint": emulator.endpoint}
        monkeypatch.setenv("AIRFLOW_CONN_DAI", json.dumps({"conn_type": "google_cloud_platform", "extra": extra}))
        strays("a")
        emulator.inject(Fault(method=CANCEL, status=503, times=None))
        run = run_dag(self.dag("stray_connection", gcp_conn_id="dai"))
        assert run.tasks == {"sweep": "failed"}
        assert count(emulator, CANCEL) == 3

    def test_a_failed_sweep_leaves_its_report(self, emulator: DaiEmulator, strays: Any, run_dag: RunDag) -> None:
        strays("a", "b")
        emulator.inject(Fault(method=CANCEL, name="operations/a", rpc_status="PERMISSION_DENIED", times=None))
        run = run_dag(self.dag("stray_refused", retries=3))
        assert run.tasks == {"sweep": "failed"}
        assert run.tries("sweep") == 1
        assert list(run.xcom("sweep", XCOM_REPORT)["refused"]) == ["operations/a"]
        assert emulator.state("operations/b") == "CANCELLED"

    def test_a_retry_lists_anew_and_ends_an_outage(self, emulator: DaiEmulator, strays: Any, run_dag: RunDag) -> None:
        strays("a", "b", "c")
        emulator.inject(Fault(method=CANCEL, name="operations/b", status=503, times=7))
        run = run_dag(self.dag("stray_recovers", retries=3, retry_delay=timedelta(0)))
        assert run.tasks == {"sweep": "success"}
        assert run.tries("sweep") == 2
        assert run.xcom("sweep")["requested"] == ["operations/b"]
        assert run.xcom("sweep")["passed_over"]["finished"] == 2
        assert set(emulator.states().values()) == {"CANCELLED"}

    @pytest.mark.parametrize("method", [LIST, CANCEL])
    def test_unimplemented_spends_no_retry(
        self, emulator: DaiEmulator, strays: Any, run_dag: RunDag, method: str
    ) -> None:
        strays("a")
        emulator.unimplement(method)
        run = run_dag(self.dag(f"stray_unimplemented_{method[11:]}", retries=3))
        assert run.tasks == {"sweep": "failed"}
        assert run.tries("sweep") == 1
        assert count(emulator, method) == 1

    def test_too_many_spend_no_retry(self, emulator: DaiEmulator, strays: Any, run_dag: RunDag) -> None:
        strays("a", "b")
        run = run_dag(self.dag("stray_too_many", retries=3, max_cancellations=1))
        assert run.tasks == {"sweep": "failed"}
        assert run.tries("sweep") == 1
        assert len(run.xcom("sweep", XCOM_REPORT)["found"]) == 2
        assert count(emulator, CANCEL) == 0
