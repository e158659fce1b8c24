"""The asset of the records of owners, as a DAG with a sweep registers it in the metadata database."""

from __future__ import annotations

import pytest

from airflow_dai_provider.ingest.ownership import ASSET
from airflow_dai_provider.version_compat import HAS_ASSET_STATE_STORE


@pytest.fixture
def asset(metadata_database: None) -> None:
    """Register the asset, where Airflow has state stores of assets; its state is empty."""
    if not HAS_ASSET_STATE_STORE:
        return
    from airflow.models.asset import AssetActive, AssetModel
    from airflow.utils.session import create_session

    with create_session() as session:
        for model in (AssetActive, AssetModel):
            session.query(model).filter_by(name=ASSET).delete()
        session.add(AssetModel(name=ASSET, uri=ASSET, group="asset"))
        session.flush()
        session.add(AssetActive(name=ASSET, uri=ASSET))
