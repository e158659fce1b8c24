"""One task ingests all ads of a campaign; another reports the result of each, even if some have failed."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_dai_provider.operators.dai import DaiCreateCreativeOperator

MEDIA = ["https://media.example.com/ad-1.mp4", "https://media.example.com/ad-2.mp4"]

with DAG("ingest_campaign", schedule=None, params={"media_urls": MEDIA}) as dag:

    @task
    def campaign(params: dict) -> list[dict]:
        media = {"delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4"}
        return [{"adSystem": "example", "mediaFiles": [{"uri": url, **media}]} for url in params["media_urls"]]

    ingest = DaiCreateCreativeOperator(task_id="ingest", creative=campaign(), deferrable=True, timeout=3600, retries=2)

    @task(trigger_rule="all_done")
    def summary(operations: list[dict]) -> dict[str, str]:
        ads = {}
        for one in operations:
            made = one.get("creative_name")
            state, error = one["state"] or "not started", one["error_message"] or "no error"
            ads[one["media_files"][0]] = made or f"{state}: {error}"
        return ads

    @task
    def publish() -> None:
        """Do what follows when all ads exist."""

    summary(ingest.output["operation"])
    ingest >> publish()
