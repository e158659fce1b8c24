"""An Airflow of the tests' own, and the fixtures that all tests share.

The environment is set before anything imports Airflow, which reads it at its import: the plugins are imported later.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

pytest_plugins = [
    f"tests.support.{name}"
    for name in (
        "assets",
        "authorities",
        "clock",
        "connections",
        "dag_runs",
        "emulators",
        "log",
        "task_instance",
        "tiny_server",
        "token_server",
    )
]

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
