"""DaiCancelStrayOperationsOperator: owners that cannot be read, and an asset that Airflow does not know."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from httpx import HTTPError

from airflow_dai_provider import version_compat
from airflow_dai_provider.emulator import DaiEmulator
from airflow_dai_provider.ingest.ownership import ASSET, Owner
from tests.support.clock import Clock
from tests.support.log import Log
from tests.support.owners import URL, Airflow, Owned, before_second_read, cancelled, set_state, sweep
from tests.support.task_instance import Store

pytestmark = pytest.mark.usefixtures("sweep_time")


class NotFoundError(Exception):
    """Stands in for an error of Airflow's API server under ``dag.test()``."""

    def __init__(self, message: str) -> None:
        self.response = SimpleNamespace(status_code=404)
        self.detail = {"reason": "not_found", "message": message}


class ForbiddenError(HTTPError):
    """Stands in for the response to a request for an XCom of another team."""

    def __init__(self) -> None:
        super().__init__("Task does not have access to this XCom in multi-team mode")
        self.response = SimpleNamespace(status_code=403)


def fails(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


class TestUnknownAsset:
    @pytest.fixture
    def known(self, owned: Owned) -> str:
        """Give the ingest of a task that runs, which no age makes a stray."""
        return owned("running")

    @pytest.mark.usefixtures("known")
    def test_where_airflow_does_not_know_the_asset_operations_go_by_age(
        self, emulator: DaiEmulator, records: Store, monkeypatch: pytest.MonkeyPatch, log: Log
    ) -> None:
        monkeypatch.setattr(records, "set", fails(NotFoundError(f"Asset with name='{ASSET}' not found")))
        sweep(older_than=timedelta(days=1))
        assert log.lines("The operations are judged by their age.")
        with pytest.raises(AirflowException, match="Airflow does not know the asset .* No cancellation was requested"):
            sweep(older_than=None)
        assert cancelled(emulator) == set()

    @pytest.mark.usefixtures("known")
    @pytest.mark.parametrize("message", ["Task instance UUID('018f') not found", "Not Found"])
    def test_any_other_404_fails_the_sweep(
        self, emulator: DaiEmulator, records: Store, monkeypatch: pytest.MonkeyPatch, message: str
    ) -> None:
        monkeypatch.setattr(records, "set", fails(NotFoundError(message)))
        with pytest.raises(AirflowException, match="Cannot read the owners of the operations"):
            sweep(older_than=1)
        assert cancelled(emulator) == set()

    @pytest.mark.usefixtures("known")
    def test_an_asset_that_becomes_unknown_meanwhile_fails_the_sweep(
        self, emulator: DaiEmulator, records: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Airflow then returns nothing for each key, and no error."""
        monkeypatch.setattr(records, "get", lambda _: None)
        with pytest.raises(AirflowException, match="Airflow does not know the asset .* No cancellation was requested"):
            sweep(older_than=1)
        assert cancelled(emulator) == set()


class TestOutage:
    @pytest.mark.parametrize("part", ["records", "states", "second read"])
    def test_without_an_answer_of_airflow_nothing_is_cancelled(
        self, emulator: DaiEmulator, owned: Owned, airflow: Airflow, records: Store, monkeypatch: Any, part: str
    ) -> None:
        owned("failed")
        if part == "records":
            records.broken = True
        elif part == "states":
            airflow.away = True
        else:
            before_second_read(monkeypatch, lambda: setattr(airflow, "away", True))
        with pytest.raises(
            AirflowException, match="Cannot read the owners of the operations: .* API server is unavailable"
        ) as raised:
            sweep(older_than=timedelta(seconds=1))
        assert not isinstance(raised.value, AirflowFailException)
        assert "No cancellation was requested" in str(raised.value)
        assert cancelled(emulator) == set()


class TestUnreadable:
    """One value that cannot be read does not end every sweep; an operation that can be its owner's is left alone."""

    @pytest.fixture
    def others(self, emulator: DaiEmulator, owned: Owned) -> tuple[str, str]:
        """Give a stray of a task that has failed, and the operation of another system."""
        stray = owned("failed", "z_run", url=f"{URL}z")
        return stray, emulator.start_ingest(seconds=math.inf, creative_url=f"{URL}other")

    @pytest.mark.parametrize("error", [FileNotFoundError("s3://bucket/key"), ForbiddenError()], ids=repr)
    @pytest.mark.parametrize(("state", "strays"), [("running", 0), ("failed", 2)])
    def test_an_xcom(
        self,
        emulator: DaiEmulator,
        airflow: Airflow,
        write: Any,
        clock: Clock,
        others: tuple[str, str],
        monkeypatch: pytest.MonkeyPatch,
        log: Log,
        state: str,
        strays: int,
        error: Exception,
    ) -> None:
        """Of a task that has started one ingest, and lost the response of another."""
        twin, adopted = (emulator.start_ingest(seconds=math.inf, creative_url=URL) for _ in range(2))
        write().end([adopted], [URL])
        set_state(airflow, state)
        clock.advance(60)
        monkeypatch.setattr(version_compat, "run_xcom", fails(error))
        sweep(older_than=1)
        assert cancelled(emulator) == {others[0], *(twin, adopted)[:strays]}
        kind = type(error).__name__
        assert log.lines(f"Cannot read the XCom operation_started of task ingest of run a_run of DAG a_dag: {kind}.")

    @pytest.mark.parametrize("state", ["running", "failed"])
    @pytest.mark.parametrize("why", ["FileNotFoundError", "another version has written it"])
    def test_a_record(
        self,
        emulator: DaiEmulator,
        owned: Owned,
        others: tuple[str, str],
        records: Store,
        monkeypatch: pytest.MonkeyPatch,
        log: Log,
        state: str,
        why: str,
    ) -> None:
        owned(state)
        key = Owner("a_dag", "a_run", "ingest").key
        records.kept[key] = {"format": 2}
        read = records.get

        def get(asked: str) -> Any:
            if asked == key and why == "FileNotFoundError":
                raise FileNotFoundError("s3://bucket/key")
            return read(asked)

        monkeypatch.setattr(records, "get", get)
        report = sweep(older_than=1)
        assert cancelled(emulator) == {others[0]}
        assert report["passed_over"]["unowned"] == 2
        assert log.lines(f"Cannot read the record {key} of an owner: {why}. Any operation may belong to these tasks")
        assert key in records.kept

    @pytest.mark.skipif(not version_compat.HAS_ASSET_STATE_STORE, reason="Airflow before 3.3 has no records of owners")
    @pytest.mark.parametrize("form", ["client", "supervisor"])
    @pytest.mark.parametrize("part", ["xcom", "record"])
    def test_an_outage_of_the_api_server_ends_the_sweep(
        self,
        emulator: DaiEmulator,
        airflow: Airflow,
        write: Any,
        clock: Clock,
        records: Store,
        monkeypatch: pytest.MonkeyPatch,
        form: str,
        part: str,
    ) -> None:
        import httpx
        from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
        from airflow.sdk.execution_time.comms import ErrorResponse

        error: Exception = httpx.ConnectError("away")
        if form == "supervisor":
            error = AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"message": "away"}))
        for _ in range(2):
            own = write()
            own.end([emulator.start_ingest(seconds=math.inf, creative_url=URL)])
        set_state(airflow, "running")
        clock.advance(60)
        read = records.get
        monkeypatch.setattr(version_compat, "run_xcom", fails(error))
        if part == "record":
            monkeypatch.setattr(records, "get", lambda key: fails(error)() if key.startswith("owner-") else read(key))
        with pytest.raises(AirflowException, match="Cannot read the owners of the operations: .*away"):
            sweep(older_than=1)
        assert cancelled(emulator) == set()
