"""The README and the pages of the documentation: their code, commands, tables, headings and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
#: What a person reads: each page of the site, and the files beside it.
PAGES = (
    README,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts),
)
_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    :param page: the file.
    :param number: of the block in its page, from 1.
    :param language: the word behind the fence.
    :param code: the text within.
    """

    page: Path
    number: int
    language: str
    code: str

    @property
    def id(self) -> str:
        return f"{self.page.relative_to(ROOT).with_suffix('')}-{self.number}"

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, one per line of it, without comments."""
        joined = re.sub(r"\\\n\s*", " ", self.code)
        return [line for line in (re.sub(r"\s+# .*", "", line) for line in joined.splitlines()) if line.strip()]


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [Block(page, number, *found) for number, found in enumerate(_FENCE.findall(page.read_text()), 1)]


BLOCKS = tuple(block for page in PAGES for block in blocks_of(page))
SNIPPETS = tuple(block for block in BLOCKS if block.language == "python")
SHELL = tuple(block for block in BLOCKS if block.language == "shell")


def table(page: Path, head: str) -> str:
    """Return the table of a page whose first row begins like this."""
    text = page.read_text()
    return text[text.index(head) :].split("\n\n")[0]


def prose(page: Path) -> str:
    """Return the text of a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return what a link can name in a page: its headings, as GitHub and the site turn them into anchors."""
    headings = re.findall(r"^#+ (.*)", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in headings}
