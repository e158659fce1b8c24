"""The examples with a campaign: ingest all of it in one task; pull all of it."""

from __future__ import annotations

import pytest

from airflow_dai_provider.emulator import DaiEmulator, Fault
from tests.dags.test_examples import FOLDER, load
from tests.support.dag_runs import Run, RunDag
from tests.support.emulators import count

FIRST, SECOND = "operations/ad-1", "operations/ad-2"
SLOW = {"cancel_seconds": 40}
TOO_LATE = {"cancel": "ignored", "seconds": 90}
MEDIA = "https://media.example.com/ad-{}.mp4"


def pull(run_dag: RunDag) -> Run:
    return run_dag(load(FOLDER / "pull_campaign.py"))


class TestPull:
    def test_all_are_cancelled(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        for name in (FIRST, SECOND):
            emulator.start_ingest(name, **SLOW)
        run = pull(run_dag)
        assert run.state == "success"
        assert set(emulator.states().values()) == {"CANCELLED"}
        assert (run.xcom("cancel"), run.xcom("delete")) == ([FIRST, SECOND], [])
        assert count(emulator, "operations.cancel") == 2

    @pytest.mark.parametrize("plan", [TOO_LATE, {"seconds": 0}], ids=["in spite of the cancel", "before the cancel"])
    def test_an_ad_that_was_made_is_deleted(self, emulator: DaiEmulator, run_dag: RunDag, plan: dict) -> None:
        emulator.start_ingest(FIRST, **SLOW)
        emulator.start_ingest(SECOND, **plan)
        run = pull(run_dag)
        assert run.state == "success"
        assert emulator.states() == {FIRST: "CANCELLED", SECOND: "SUCCEEDED"}
        assert emulator.creatives() == []
        (deleted,) = run.xcom("delete")
        assert deleted == run.xcom("cancel", "operation")[1]["creative_name"]

    def test_one_that_the_service_does_not_know_is_passed_over(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        emulator.start_ingest(SECOND, **TOO_LATE)
        run = pull(run_dag)
        assert run.state == "success"
        assert run.xcom("cancel", "operation")[0] is None
        assert emulator.creatives() == []

    def test_ads_are_deleted_although_another_cannot_be_cancelled(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        emulator.start_ingest(FIRST)
        emulator.start_ingest(SECOND, **TOO_LATE)
        emulator.inject(Fault("operations.cancel", FIRST, rpc_status="PERMISSION_DENIED", times=None))
        run = pull(run_dag)
        assert run.tasks == {
            "cancel": "failed",
            "ads_made": "success",
            "delete": "success",
            "pulled": "upstream_failed",
        }
        assert run.state == "failed"
        assert emulator.states() == {FIRST: "RUNNING", SECOND: "SUCCEEDED"}
        assert emulator.creatives() == []


class TestIngest:
    def test_all_are_made(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        media = [MEDIA.format(f"{number}") + "?seconds=60" for number in range(3)]
        run = run_dag(load(FOLDER / "ingest_campaign.py"), {"media_urls": media})
        assert set(run.tasks.values()) == {"success"}
        assert run.state == "success"
        summary = run.xcom("summary")
        assert list(summary) == [MEDIA.format(number) for number in range(3)]
        assert sorted(summary.values()) == sorted(emulator.creatives())  # they are started side by side

    def test_the_summary_tells_what_failed_and_why(self, emulator: DaiEmulator, run_dag: RunDag) -> None:
        plans = ["seconds=60", "seconds=30&outcome=DOWNLOAD_ERROR&code=404", "seconds=no-number"]
        media = [f"{MEDIA.format(number)}?{plan}" for number, plan in enumerate(plans)]
        run = run_dag(load(FOLDER / "ingest_campaign.py"), {"media_urls": media})
        assert run.tasks == {
            "campaign": "success",
            "ingest": "failed",
            "summary": "success",
            "publish": "upstream_failed",
        }
        assert run.state == "failed"
        made, failed, refused = (run.xcom("summary")[MEDIA.format(number)] for number in range(3))
        assert emulator.creatives() == [made]
        assert failed.startswith("FAILED: ")
        assert refused.startswith("not started: ")
        assert "INVALID_ARGUMENT" in refused
