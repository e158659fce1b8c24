"""
What all tests share: an Airflow of their own, a clock, an emulator, the log, and runs on a real metadata database.

The environment is set before anything imports Airflow, since Airflow reads it at its import.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
HOME = Path(tempfile.mkdtemp(prefix="airflow-dai-provider-tests-"))
PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}


def _isolate() -> None:
    for name in list(os.environ):
        if name.startswith(("AIRFLOW_", "GOOGLE_", "DAI_", "CLOUDSDK_")) or name.lower() in PROXIES:
            del os.environ[name]
    dags_folder = HOME / "dags"
    dags_folder.mkdir()
    os.environ.update(
        AIRFLOW_HOME=str(HOME),
        AIRFLOW__CORE__DAGS_FOLDER=str(dags_folder),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__CORE__UNIT_TEST_MODE="False",
        AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS="False",
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{HOME / 'airflow.db'}",
        # No real key file and no metadata server: credentials are what a test says.
        CLOUDSDK_CONFIG=str(HOME / "gcloud"),
        NO_GCE_CHECK="true",
    )


_isolate()


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@dataclass
class Clock:
    """
    Epoch seconds that pass when told to, and by ``step`` at every reading.

    :param slept: what the code under test would have slept; that time passes here instead.
    """

    now: float = 1_750_000_000.0
    step: float = 0.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        self.now += self.step
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        assert len(self.slept) < 1000, "This would wait for ever."


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Clock:
    """Let the clock pass instead of sleeping, also in Airflow's own code."""
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Clock:
    """Let hooks, notifiers and operators wait on the clock, without chance."""
    from airflow_dai_provider.hooks.dai import DaiAsyncHook, DaiHook
    from airflow_dai_provider.notifications.dai import DaiCancelOperationNotifier
    from airflow_dai_provider.operators.dai import DaiCancelStrayOperationsOperator, DaiCreateCreativeOperator

    async def sleep(seconds: float) -> None:
        clock.sleep(seconds)

    monkeypatch.setattr(DaiAsyncHook, "_sleep", staticmethod(sleep))
    monkeypatch.setattr(DaiAsyncHook, "_clock", staticmethod(clock))
    for looking in (DaiHook, DaiAsyncHook, DaiCancelStrayOperationsOperator):
        monkeypatch.setattr(looking, "_random", staticmethod(lambda: 0.0))
    operators = (DaiCreateCreativeOperator, DaiCancelStrayOperationsOperator)
    for waiting in (DaiHook, DaiCancelOperationNotifier, *operators):
        monkeypatch.setattr(waiting, "_sleep", staticmethod(clock.sleep))
        monkeypatch.setattr(waiting, "_clock", staticmethod(clock))
    return clock


@pytest.fixture
def make_emulator(monkeypatch: pytest.MonkeyPatch, fake_time: Clock) -> Iterator[Callable[..., Any]]:
    """Start an emulator on the test's clock, whose ingests never end by themselves, and point the hooks at it."""
    from airflow_dai_provider.emulator import DaiEmulator

    with ExitStack() as running:

        def make(**options: Any) -> DaiEmulator:
            emulator = running.enter_context(DaiEmulator(clock=fake_time, **{"ingest_seconds": 1e9, **options}))
            monkeypatch.setenv("DAI_EMULATOR_HOST", emulator.host)
            return emulator

        yield make


@pytest.fixture
def emulator(make_emulator: Callable[..., Any]) -> Any:
    return make_emulator()


@pytest.fixture
def airflow_2() -> bool:
    return _is_airflow_2()


@dataclass
class Log:
    """Every line logged: the logger's name, the level, the words."""

    everything: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(words for _, _, words in self.everything)

    @property
    def ours(self) -> list[str]:
        """The lines of this project's operators, sensors, hooks and notifiers; not those of the emulator."""
        return [words for _, words in self._ours()]

    @property
    def errors(self) -> list[str]:
        return [words for level, words in self._ours() if level == "error"]

    def add(self, logger: object, level: str, words: str) -> None:
        self.everything.append((str(logger), level, words))

    def _ours(self) -> Iterator[tuple[str, str]]:
        for logger, level, words in self.everything:
            # Airflow grumbles where a test calls execute() by itself.
            ours = "airflow_dai_provider." in logger and "airflow_dai_provider.emulator" not in logger
            if ours and "cannot be called outside" not in words:
                yield level, words


@pytest.fixture
def log() -> Iterator[Log]:
    """Record the log: Airflow 2 writes it with the standard library, Airflow 3 with structlog."""
    record = Log()
    make_record = logging.getLogRecordFactory()

    def remember(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make_record(*args, **kwargs)
        if made.name:
            record.add(made.name, made.levelname.lower(), made.getMessage())
        return made

    def remember_event(logger: Any, level: str, event: dict[str, Any]) -> dict[str, Any]:
        name = event.get("logger_name") or getattr(logger, "name", None)
        record.add(name, "error" if level == "exception" else level, str(event.get("event")))
        return event

    logging.setLogRecordFactory(remember)
    processors = _structlog_processors()
    processors.insert(0, remember_event)
    yield record
    processors.remove(remember_event)
    logging.setLogRecordFactory(make_record)


def _is_airflow_2() -> bool:
    from airflow import __version__

    return __version__.startswith("2.")


def _structlog_processors() -> list[Any]:
    if _is_airflow_2():
        return []
    import airflow.settings  # noqa: F401  (configures structlog)
    import structlog

    processors: list[Any] = structlog.get_config()["processors"]
    return processors


@dataclass
class StandInTaskInstance:
    """
    Stands in for the task instance of a context where a test calls ``execute`` or a callback by itself.

    It imitates the two ways in which this project reads XComs, as both versions of Airflow answer them:
    a list of task ids without map indexes gives the values of every map index, in their order (Airflow 2: a lazy
    sequence, empty where nothing was pushed; Airflow 3: a list, which holds None where nothing was pushed), and one
    task id with one map index gives the value or None. Anything else is an error here. What a sensor in reschedule
    mode asks for its start is "none yet".
    """

    task_id: str = "start_ingest"
    map_index: int = -1
    try_number: int = 1
    dag_id: str = "a_dag"
    run_id: str = "a_run"
    max_tries: int = 0
    pushed: dict[tuple[str, int, str], Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[self.task_id, self.map_index, key] = value

    def xcom_pull(self, task_ids: str | list[str], key: str, *, map_indexes: int | None = None) -> Any:
        if isinstance(task_ids, str):
            assert isinstance(map_indexes, int), "What the versions of Airflow answer then differs."
            return self.pushed.get((task_ids, map_indexes, key))
        assert map_indexes is None
        (task_id,) = task_ids
        found = sorted(
            (index, value) for (task, index, its), value in self.pushed.items() if (task, its) == (task_id, key)
        )
        values = [value for _, value in found]
        return tuple(values) if _is_airflow_2() else values or [None]

    def get_first_reschedule_date(self, _: Any) -> None:
        return None

    def of_other_task(self, task_id: str, key: str, value: Any, map_index: int = -1) -> None:
        """Have another task of the run, or another map index, push something."""
        self.pushed[task_id, map_index, key] = value


@pytest.fixture
def make_ti() -> type[StandInTaskInstance]:
    return StandInTaskInstance


@pytest.fixture
def ti() -> StandInTaskInstance:
    return StandInTaskInstance()


@pytest.fixture(scope="session")
def metadata_database() -> None:
    """Make the metadata database, once, when the first test asks for it."""
    migrated = subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], capture_output=True, text=True, check=False
    )
    assert migrated.returncode == 0, migrated.stderr[-2000:]


class StillWaitingError(BaseException):
    """A run has nothing to do before time passes; raised to see it as it is then."""


@dataclass
class Run:
    """A run as the metadata database has it."""

    dag_id: str
    run_id: str

    @property
    def state(self) -> str:
        from airflow.models import DagRun

        return str(DagRun.find(dag_id=self.dag_id, run_id=self.run_id)[0].get_state())

    @property
    def tasks(self) -> dict[str, str]:
        """Return the state of each task instance, by ``task_id`` or ``task_id[map_index]``."""
        return {key: str(ti.state) for key, ti in self._task_instances().items()}

    def tries(self, key: str) -> int:
        return int(self._task_instances()[key].try_number)

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        from airflow.models import xcom
        from airflow.utils.session import create_session

        where = {"dag_id": self.dag_id, "run_id": self.run_id, "task_id": task_id, "map_index": map_index, "key": key}
        with create_session() as session:
            if _is_airflow_2():
                return xcom.XCom.get_one(**where, session=session)
            found = session.query(xcom.XComModel).filter_by(**where).one_or_none()
            return None if found is None else xcom.XComModel.deserialize_value(found)

    def _task_instances(self) -> dict[str, Any]:
        from airflow.models import DagRun
        from airflow.utils.session import create_session

        with create_session() as session:
            run = DagRun.find(dag_id=self.dag_id, run_id=self.run_id, session=session)[0]
            instances = run.get_task_instances(session=session)
        return {
            ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]": ti
            for ti in sorted(instances, key=lambda ti: (ti.task_id, ti.map_index))
        }


@pytest.fixture
def run_dag(metadata_database: None, no_sleep: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """
    Run a DAG with ``dag.test()`` on the real metadata database, without sleeping.

    :param stop_when_waiting: leave the run as it is when nothing can be done before time passes, such as a retry
        delay.
    """

    def stop(_: float) -> None:
        raise StillWaitingError

    def run(dag: Any, conf: dict[str, Any] | None = None, *, stop_when_waiting: bool = False) -> Run:
        from airflow.models import DagRun

        from tests.support.airflow_versions import register

        register(dag)
        with monkeypatch.context() as patches, suppress(StillWaitingError):
            if stop_when_waiting:
                patches.setattr(time, "sleep", stop)
            dag.test(run_conf=conf)
        last = max(DagRun.find(dag_id=dag.dag_id), key=lambda dag_run: dag_run.id)
        return Run(dag.dag_id, last.run_id)

    return run
