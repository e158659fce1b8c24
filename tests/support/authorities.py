"""The certificate authorities that a client trusts."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from airflow_dai_provider.emulator import SelfSigned


@pytest.fixture
def few_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read one authority instead of the world's 150, which takes longer than the rest of most tests."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(_one_authority()))


@cache
def _one_authority() -> Path:
    folder = Path(os.environ["AIRFLOW_HOME"]) / "authority"
    folder.mkdir()
    return write_authority(folder, SelfSigned())


def write_authority(folder: Path, certificate: SelfSigned) -> Path:
    """Write the file that a client is to trust."""
    authority = folder / "ca.pem"
    authority.write_text(certificate.pem)
    return authority
