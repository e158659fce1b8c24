"""What the release workflow does to a checkout: see .github/prepare_release.py."""

from __future__ import annotations

import re
import runpy
import tomllib
from typing import Any

import pytest

from tests.support.documents import README, ROOT

RELEASE: dict[str, Any] = runpy.run_path(str(ROOT / ".github" / "prepare_release.py"))
REPOSITORY = "https://example.com/owner/project"
MODULE = '"""A package."""\n\n__version__ = "0.1.0"\n'


def test_a_tag_of_another_version_is_refused() -> None:
    with pytest.raises(SystemExit, match="expected the tag v0.1.0"):
        RELEASE["check_tag"]("v0.2.0", MODULE, "## 0.1.0 (2026-12-01)\n")


def test_a_version_without_a_date_in_the_changelog_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"no heading '## 0\.1\.0"):
        RELEASE["check_tag"]("v0.1.0", MODULE, "## Unreleased (0.1.0)\n")


def test_the_tag_of_a_dated_version_is_accepted() -> None:
    RELEASE["check_tag"]("v0.1.0", MODULE, "# Changelog\n\n## 0.1.0 (2026-12-01)\n")


def test_no_link_of_the_readme_stays_relative() -> None:
    changed = RELEASE["absolute_links"](README.read_text(), REPOSITORY, "v0.1.0")
    links = re.findall(r"\]\(([^)\s]+)\)", changed)
    assert len(links) > 30
    assert [link for link in links if not link.startswith("https://")] == []
    assert f"{REPOSITORY}/raw/v0.1.0/docs/images/log.png" in links
    assert f"{REPOSITORY}/blob/v0.1.0/docs/howto/pull-a-campaign.md#delete-one-ad" in links


def test_the_metadata_name_the_repository() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    before = tomllib.loads(text)["project"]["urls"]
    urls = tomllib.loads(RELEASE["with_urls"](text, REPOSITORY))["project"]["urls"]
    assert urls.pop("Source") == REPOSITORY
    assert urls.pop("Issues") == f"{REPOSITORY}/issues"
    assert urls.pop("Changelog").startswith(REPOSITORY)
    assert urls == before
