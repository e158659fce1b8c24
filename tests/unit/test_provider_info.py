"""What Airflow reads about the provider."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager

from airflow_dai_provider.get_provider_info import get_provider_info
from tests.support.log import Log

PACKAGE = "airflow-dai-provider"
NOTIFIER = "airflow_dai_provider.notifications.dai.DaiCancelOperationNotifier"
MODULES = {kind: f"airflow_dai_provider.{kind}.dai" for kind in ("operators", "sensors", "hooks")}


def test_it_is_what_the_schema_of_this_airflow_asks_for() -> None:
    schema = json.loads((Path(airflow.__path__[0]) / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_the_entry_point_leads_to_it() -> None:
    (found,) = (
        point for point in entry_points(group="apache_airflow_provider") if point.dist and point.dist.name == PACKAGE
    )
    assert found.load() is get_provider_info


def test_it_names_what_there_is() -> None:
    info = get_provider_info()
    assert info["package-name"] == PACKAGE
    assert {kind: [module for entry in info[kind] for module in entry["python-modules"]] for kind in MODULES} == {
        kind: [module] for kind, module in MODULES.items()
    }
    assert info["notifications"] == [NOTIFIER]
    for module in MODULES.values():
        import_module(module)
    module, _, name = NOTIFIER.rpartition(".")
    assert isinstance(getattr(import_module(module), name), type)


def test_every_integration_is_described() -> None:
    info = get_provider_info()
    described = {integration["integration-name"] for integration in info["integrations"]}
    assert {entry["integration-name"] for kind in MODULES for entry in info[kind]} == described


class TestProvidersManager:
    @pytest.fixture
    def manager(self) -> Any:
        """Airflow's list of providers, read again."""
        manager = ProvidersManager()
        manager._cleanup()
        return manager

    def test_it_shows_the_provider(self, manager: Any) -> None:
        provider = manager.providers[PACKAGE]
        assert provider.version == version(PACKAGE)
        assert provider.data["hooks"][0]["python-modules"] == [MODULES["hooks"]]

    def test_it_finds_the_notifier(self, manager: Any) -> None:
        assert NOTIFIER in list(manager.notification)

    @pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated")
    def test_no_connection_type_is_added_or_taken(self, manager: Any) -> None:
        modules = {kind: str(hook and hook.hook_class_name) for kind, hook in manager.hooks.items()}
        assert modules["google_cloud_platform"].startswith("airflow.providers.google.")
        assert not any("airflow_dai_provider" in module for module in modules.values())

    def test_it_has_nothing_to_complain_of(self, manager: Any, log: Log) -> None:
        steps = [name for name in dir(manager) if name.startswith("initialize_providers_")]
        for step in steps:
            getattr(manager, step)()
        assert "initialize_providers_notifications" in steps
        assert PACKAGE not in log.text
        assert "airflow_dai_provider" not in log.text
