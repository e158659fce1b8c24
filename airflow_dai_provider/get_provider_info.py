"""The provider's metadata, which Airflow reads; this module imports nothing heavy."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, in the form of Airflow's ``provider_info.schema.json``."""
    integration = "Google Video Creative Ingest (DAI)"
    return {
        "package-name": "airflow-dai-provider",
        "name": "Google DAI",
        "description": "Cancel ingests of Google's Video Creative Ingest API (DAI) and wait for their final state.",
        "integrations": [
            {
                "integration-name": integration,
                "external-doc-url": "https://developers.google.com/video-creative-ingest",
                "tags": ["gcp"],
            }
        ],
        "operators": [{"integration-name": integration, "python-modules": ["airflow_dai_provider.operators.dai"]}],
        "sensors": [{"integration-name": integration, "python-modules": ["airflow_dai_provider.sensors.dai"]}],
        "triggers": [{"integration-name": integration, "python-modules": ["airflow_dai_provider.triggers.dai"]}],
        "hooks": [{"integration-name": integration, "python-modules": ["airflow_dai_provider.hooks.dai"]}],
        # Airflow 3.2 and later read it.
        "cli": ["airflow_dai_provider.cli.definition.dai_commands"],
        "notifications": ["airflow_dai_provider.notifications.dai.DaiCancelOperationNotifier"],
    }
