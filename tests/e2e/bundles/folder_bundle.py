"""A DAG bundle with versions, each a folder: what the bundle of a git repository is to Airflow, without the git."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.dag_processing.bundles.base import BaseDagBundle


class FolderBundle(BaseDagBundle):
    """
    A bundle whose versions are the folders below a root; the file ``latest`` beside them names the last one.

    :param root: the folder.
    """

    supports_versioning = True

    def __init__(self, *, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._root = Path(root)

    def get_current_version(self) -> str:
        return self.version or (self._root / "latest").read_text().strip()

    def refresh(self) -> None:
        """Do nothing: the folders are there."""

    @property
    def path(self) -> Path:
        return self._root / self.get_current_version()
