"""The first DAG of the README, on a new Airflow without any connection."""

from __future__ import annotations

from stack import Airflow2Stack, Airflow3Stack

from airflow_dai_provider.emulator import DaiEmulator

Stack = Airflow2Stack | Airflow3Stack


def test_the_first_dag_of_the_readme_cancels_its_ingest(airflow: Stack, emulator: DaiEmulator) -> None:
    name = emulator.start_ingest("operations/my-ingest")
    run = airflow.trigger("cancel_dai_ingest")

    assert airflow.wait_for_run("cancel_dai_ingest", run) == "success"
    assert airflow.task_states("cancel_dai_ingest", run) == {"cancel": "success", "wait": "success"}
    assert emulator.state(name) == "CANCELLED"
    assert airflow.xcom("cancel_dai_ingest", run, "cancel") == name
    result = airflow.xcom("cancel_dai_ingest", run, "wait")
    assert (result["name"], result["state"], result["ingest"]["youtube_state"]) == (name, "CANCELLED", "PROCESSING")
