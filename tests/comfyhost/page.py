"""ComfyUI's page in Debian's Chromium, for what only the page does: opening saved workflows, drawing them, previews."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# No sandbox, since tests run as root in containers; the rest keeps the browser from calling home.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
# Without these the page greets a new user with dialogs that cover the canvas.
SETTLED_IN = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
READY = "window.app && window.app.graph && window.app.vueAppReady"
BUILT = "workflow => app.loadGraphData(workflow).then(() => app.graphToPrompt())"
WHOLE = """() => {
    const groups = app.graph.groups.map(group => group._bounding);
    const boxes = app.graph.nodes.map(node => node.getBounding()).concat(groups);
    const [left, top] = [0, 1].map(side => Math.min(...boxes.map(box => box[side])));
    const [right, bottom] = [0, 1].map(side => Math.max(...boxes.map(box => box[side] + box[side + 2])));
    app.canvas.ds.fitToBounds([left, top, right - left, bottom - top], { zoom: 0.92 });
    app.canvas.setDirty(true, true);
}"""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium, started. Raises ImportError where playwright is not installed."""
    from playwright.sync_api import sync_playwright  # only the browser session has it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


def open_page(browser: Browser, url: str, width: int = 1600, height: int = 900) -> Page:
    """A new window with the page in it, ready to use, as a user who has been here before sees it."""
    page = browser.new_context(viewport={"width": width, "height": height}).new_page()
    page.request.post(f"{url}/settings", data=SETTLED_IN)
    page.goto(url)
    page.wait_for_function(READY, timeout=60_000)
    return page


def built_by_page(page: Page, saved: dict[str, Any]) -> dict[str, Any]:
    """Open a saved workflow in the page; gives what the page makes of it: `workflow` to save and `output` to queue."""
    return page.evaluate(BUILT, saved)


def show_whole(page: Page) -> None:
    """Zoom so that the whole graph is on the screen."""
    page.evaluate(WHOLE)
    page.wait_for_timeout(500)
