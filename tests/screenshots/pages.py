"""Pictures of Airflow's pages, each cut to the part of interest."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import FloatRect, Locator, Page, expect, sync_playwright

#: Wide enough for a log line; the pictures are no wider than a README.
VIEWPORT = {"width": 1280, "height": 1000}
#: Pixels of the picture per pixel of the page, so that text stays sharp at other sizes.
SCALE = 1.25
COLORS = 64
#: Milliseconds that a page has to show a text.
TIMEOUT = 20_000
#: The style of a terminal.
TERMINAL = "display: inline-block; margin: 0; padding: 12px; background: #1b1f24; color: #e6e6e6; font: 12px monospace"
#: Settings that Airflow keeps in the browser.
PREFERENCES = "localStorage.setItem('log_wrap', 'true')"


class Pages:
    """
    Take pictures of the pages of one Airflow.

    :param page: the browser's page.
    :param base_url: the address of Airflow's API server.
    :param folder: the folder for the pictures.
    """

    def __init__(self, page: Page, base_url: str, folder: Path) -> None:
        self._page = page
        self._base_url = base_url
        self._folder = folder

    def graph(self, name: str, dag_id: str, run_id: str, *task_ids: str) -> Path:
        """Take the graph of a run after all of its tasks have succeeded."""
        self._open(dag_id, run_id)
        self._page.get_by_label("Show Graph").click()
        nodes = [self._page.locator(".react-flow__node").filter(has_text=task_id) for task_id in task_ids]
        for node in nodes:
            expect(node).to_contain_text("success")
        picture = self._take(name, *nodes, margin=16)
        # Airflow would show the graph on the next page too.
        self._page.get_by_label("Show Grid").click()
        return picture

    def log(self, name: str, dag_id: str, run_id: str, task_id: str, *says: str) -> Path:
        """Take the log of a task, from the header of its page to its last line, with exceptions folded."""
        self._open(dag_id, run_id, "tasks", task_id)
        log = self._page.get_by_test_id("virtualized-list")
        last = self._page.get_by_test_id(re.compile("^(group-header|virtualized-item)-")).last
        for text in says:
            expect(log).to_contain_text(text)
        for exception in reversed(log.locator("details[open] > summary").all()):
            exception.click()
        return self._take(name, self._page.get_by_test_id("header-card"), last)

    def xcom(self, name: str, dag_id: str, run_id: str, task_id: str, *says: str) -> Path:
        """Take the XComs of a task, with their JSON unfolded."""
        self._open(dag_id, run_id, "tasks", task_id, "xcom")
        self._page.get_by_test_id("expand-all-button").click()
        table = self._page.get_by_role("table")
        for text in says:
            expect(table).to_contain_text(text)
        return self._take(name, self._page.get_by_test_id("header-card"), table)

    def provider(self, name: str, package: str, *says: str) -> Path:
        """Take a package's row in the list of providers, with the header of the table."""
        self._page.goto(f"{self._base_url}/providers")
        rows = self._page.get_by_role("row")
        row = rows.filter(has_text=package)
        for text in says:
            expect(row).to_contain_text(text)
        return self._take(name, rows.first, row)

    def terminal(self, name: str, text: str, *says: str) -> Path:
        """Take a text as a terminal shows it."""
        self._page.set_content(f'<pre style="{TERMINAL}">{escape(text)}</pre>')
        terminal = self._page.locator("pre")
        for word in says:
            expect(terminal).to_contain_text(word)
        return self._take(name, terminal, margin=0)

    def _open(self, *parts: str) -> None:
        dag_id, run_id, *rest = (quote(part, safe="") for part in parts)
        self._page.goto("/".join((self._base_url, "dags", dag_id, "runs", run_id, *rest)))

    def _take(self, name: str, *parts: Locator, margin: float = 4) -> Path:
        """Take the rectangle around these parts of the page, in few colours."""
        clip = self._settled(parts, margin)
        picture = self._folder / f"{name}.png"
        self._page.screenshot(path=picture, clip=clip, animations="disabled")
        options = ["--force", "--strip", "--speed", "1", "--output", str(picture)]
        subprocess.run(["pngquant", *options, str(COLORS), str(picture)], check=True)
        return picture

    def _settled(self, parts: Sequence[Locator], margin: float) -> FloatRect:
        """Return the rectangle around the parts, once it no longer moves."""
        for part in parts:
            expect(part).to_be_visible()
        before: FloatRect | None = None
        while (now := _around(parts, margin)) != before:
            before = now
            self._page.wait_for_timeout(700)
        return now


@contextmanager
def browsing(base_url: str, folder: Path) -> Iterator[Pages]:
    """Yield the pages of an Airflow in a headless Chromium."""
    folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=TIMEOUT)
    chromium = shutil.which("chromium") or "chromium"
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium) as browser:
        context = browser.new_context(viewport=VIEWPORT, device_scale_factor=SCALE, color_scheme="light")
        context.set_default_timeout(TIMEOUT)
        context.add_init_script(PREFERENCES)
        yield Pages(context.new_page(), base_url, folder)


def _around(parts: Sequence[Locator], margin: float) -> FloatRect:
    """Return the rectangle around these parts of a page, with a margin."""
    boxes = [box for part in parts if (box := part.bounding_box())]
    left = min(box["x"] for box in boxes) - margin
    top = min(box["y"] for box in boxes) - margin
    right = max(box["x"] + box["width"] for box in boxes) + margin
    bottom = max(box["y"] + box["height"] for box in boxes) + margin
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}
