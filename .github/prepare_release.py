"""Prepare a checkout for its release: a package index shows no files beside the README, and knows no repository.

Usage: ``python .github/prepare_release.py v0.1.0 https://host/owner/repository``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def check_tag(tag: str, module: str, changelog: str) -> None:
    """Compare a tag with the version of the package and the changelog.

    :param module: the source of the package's ``__init__``.
    :raises SystemExit: when they differ.
    """
    (version,) = re.findall(r'^__version__ = "(.*)"$', module, re.MULTILINE)
    if tag != f"v{version}":
        raise SystemExit(f"The tag is {tag}, and __version__ is {version}: expected the tag v{version}.")
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.MULTILINE):
        raise SystemExit(f"The changelog has no heading '## {version} (YYYY-MM-DD)'.")


def absolute_links(readme: str, repository: str, tag: str) -> str:
    """Return a README whose links to files and pictures of the project lead to the repository."""

    def absolute(found: re.Match[str]) -> str:
        path = found[1]
        if "://" in path or path.startswith("#"):
            return found[0]
        return f"]({repository}/{'raw' if path.endswith('.png') else 'blob'}/{tag}/{path})"

    return re.sub(r"\]\(([^)\s]+)\)", absolute, readme)


def with_urls(pyproject: str, repository: str) -> str:
    """Return the project's metadata with the pages of its repository."""
    urls = (
        f'Source = "{repository}"\nIssues = "{repository}/issues"\nChangelog = "{repository}/blob/main/CHANGELOG.md"\n'
    )
    return pyproject.replace("[project.urls]\n", f"[project.urls]\n{urls}", 1)


def main(tag: str, repository: str) -> None:
    """Check the tag, and change the README and the metadata in the working directory."""
    check_tag(tag, Path("airflow_dai_provider/__init__.py").read_text(), Path("CHANGELOG.md").read_text())
    for name, changed in (
        ("README.md", absolute_links(Path("README.md").read_text(), repository, tag)),
        ("pyproject.toml", with_urls(Path("pyproject.toml").read_text(), repository)),
    ):
        Path(name).write_text(changed)


if __name__ == "__main__":
    main(*sys.argv[1:])
