"""DAG files are parsed every few seconds: importing what they import must cost nothing beyond Airflow itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "aiohttp",
    "airflow.providers.google",
    "airflow_dai_provider.hooks",
    "airflow_dai_provider.transport",
    "google.api_core",
    "google.auth",
    "grpc",
    "requests",
    "tenacity",
    "urllib3",
)
# What any DAG file loads before it comes to this provider.
BASELINE = """
try:
    import airflow.sdk
    from airflow.sdk import DAG, BaseNotifier, BaseOperator, BaseSensorOperator
except ImportError:
    from airflow import DAG
    from airflow.models.baseoperator import BaseOperator
    from airflow.notifications.basenotifier import BaseNotifier
    from airflow.sensors.base import BaseSensorOperator
"""


def imported(module: str) -> set[str]:
    """Return the modules that a fresh interpreter loads for this one, beyond the baseline."""
    code = f"""{BASELINE}
import json, sys
before = set(sys.modules)
import {module}
print("NEW", json.dumps(sorted(set(sys.modules) - before)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("NEW "))
    return set(json.loads(line.removeprefix("NEW ")))


@pytest.mark.parametrize("kind", ["operators", "sensors", "notifications"])
def test_nothing_heavy_is_imported(kind: str) -> None:
    new = imported(f"airflow_dai_provider.{kind}.dai")
    assert f"airflow_dai_provider.{kind}.dai" in new
    assert {name for name in new if name.startswith(tuple(heavy + "." for heavy in HEAVY)) or name in HEAVY} == set()


def test_the_metadata_imports_nothing() -> None:
    code = "import sys; import airflow_dai_provider.get_provider_info; print('airflow' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
