"""ComfyUI's page in Debian's Chromium, for what only the page does: opening saved workflows, drawing them, previews.

Nothing here waits for a time to pass: every function waits for what it needs, however slow the machine is, and a click
that had no effect, because something moved or lay in its way, is made again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import workflow
from .client import Client
from .expect import Results

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Position

# No sandbox, since tests run as root in containers; the rest keeps the browser from calling home.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
# whether the page draws nodes as elements of its own (Nodes 2.0), in place of pixels of its canvas
NODES_2 = os.environ.get("DIMOO_NODES_2") == "1"
# Without the first two the page greets a new user with dialogs that cover the canvas; the rest is what it begins with.
SETTLED_IN = {
    "Comfy.TutorialCompleted": True,
    "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"],  # newer pages
    "Comfy.Minimap.Visible": False,
    "Comfy.Locale": "en",
    "Comfy.VueNodes.Enabled": NODES_2,
}
PACK = "dimoo-nodes"  # the name of the pack's folder, which is how the page calls a pack
PATIENCE = 120_000  # ms that any wait may take, for machines that do much else beside
ATTEMPTS, HASTE = 6, 10_000  # how often a click is made, and the ms that its effect may take before it counts as missed
READY = "window.app && window.app.graph && window.app.vueAppReady"
BUILT = "workflow => app.loadGraphData(workflow).then(() => app.graphToPrompt())"
# Notes down what is queued, and what the server tells the page: every preview with its node, and how each run ended.
WATCH = """() => {
    window.seen = { queued: 0, previews: [], ends: [] };
    const queue = app.queuePrompt;
    app.queuePrompt = function () { seen.queued += 1; return queue.apply(this, arguments); };
    app.api.addEventListener('b_preview_with_metadata', ({ detail }) =>
        seen.previews.push({ node: String(detail.nodeId), blob: detail.blob }));
    for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(end, () => seen.ends.push(end));
}"""
DIALOG = "document.querySelector('[data-testid=template-workflows-content]')"
CARDS = "title => document.querySelector(`[data-testid='template-workflow-${title}']`)"
OPENED = """before => app.extensionManager.workflow.openWorkflows.length > before
    && !document.querySelector('[data-testid=template-workflows-content]')"""
LEFT = """() => [app.extensionManager.workflow.openWorkflows.map(({ path }) => path),
    [...document.querySelectorAll('.p-dialog')].map(({ innerText }) => innerText)]"""
PRISTINE = """() => app.extensionManager.workflow.openWorkflows.length === 1 && seen.queued === 0
    && !document.querySelector('.p-dialog, #maskEditorCanvasContainer, .litecontextmenu')"""
# Which of the nodes that the search offers bears exactly a name; the first one is chosen already.
OFFERED = """name => {
    const offered = [...document.querySelectorAll('[role=option]')].filter(one => one.innerText.trim());
    const focus = document.activeElement.getAttribute('aria-activedescendant');
    if (document.activeElement.hasAttribute('aria-activedescendant') && focus !== offered[0]?.id) return false;
    return 1 + offered.findIndex(one => one.innerText.split('\\n')[0].trim() === name);
}"""
HANGING = "app.graph.nodes[0].flags.ghost"  # newer pages let a new node hang at the mouse until a click
OUTPUTS = "() => app.graph.nodes.map(node => [node.title, app.nodeOutputs[node.id]]).filter(([_, output]) => output)"
PREVIEWS = """() => Promise.all(seen.previews.map(async ({ node, blob }) =>
    [node, Array.from(new Uint8Array(await blob.arrayBuffer()))]))"""
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
    page.set_default_timeout(PATIENCE)
    begin(page, url)
    return page


def begin(page: Page, url: str, **settings: Any) -> None:
    """Load the page into its window anew, ready to use, with nothing left of what it, or another page, did before:
    the server is idle, its user has SETTLED_IN and `settings`, and the browser has forgotten what was stored.

    Four times as fast as a new window. Raises AssertionError where something is left all the same.
    """
    from playwright.sync_api import TimeoutError as Missed

    make_idle(Client(url))
    page.request.post(f"{url}/settings", data=SETTLED_IN | settings)
    page.goto("about:blank")  # only a page that is gone stores nothing more
    session = page.context.new_cdp_session(page)
    session.send("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "all"})
    session.detach()
    page.goto(url)
    page.wait_for_function(READY)
    page.evaluate(WATCH)
    try:
        page.wait_for_function(PRISTINE, timeout=HASTE)
    except Missed:
        left = page.evaluate(LEFT)
        raise AssertionError(f"the page does not begin with one workflow and no dialog: {left}") from None


def make_idle(client: Client, timeout: float = 60.0) -> None:
    """Cancel what runs, drop what is queued, and wait until the server does nothing."""
    deadline = time.monotonic() + timeout
    while client.queue_length():
        if time.monotonic() > deadline:
            raise TimeoutError(f"The server has been busy for {timeout:.0f} s in spite of a cancel.")
        client.post("queue", {"clear": True}).raise_for_status()
        client.interrupt()
        time.sleep(0.1)


def click(target: Locator, effect: str, arg: Any = None, position: Position | None = None) -> None:
    """Click, in the middle or at a position in px, until `effect`, a JavaScript condition that may take `arg`, holds.

    Raises AssertionError if it never does.
    """
    from playwright.sync_api import TimeoutError as Missed

    page, reasons = target.page, []
    for _ in range(ATTEMPTS):
        try:
            target.click(position=position, timeout=HASTE)
        except Missed as missed:  # covered, or gone because an earlier click worked after all
            reasons.append(str(missed))
        try:
            page.wait_for_function(effect, arg=arg, timeout=HASTE)
            return
        except Missed as missed:
            reasons.append(str(missed))
    raise AssertionError(f"{ATTEMPTS} clicks on {target} had no effect: {effect}\n" + "\n".join(reasons[-2:]))


def built_by_page(page: Page, saved: dict[str, Any]) -> dict[str, Any]:
    """Open a saved workflow in the page; gives what the page makes of it: `workflow` to save and `output` to queue."""
    return page.evaluate(BUILT, saved)


def show_whole(page: Page) -> None:
    """Zoom so that the whole graph is on the screen."""
    page.evaluate(WHOLE)
    drawn(page)


def drawn(page: Page) -> None:
    """Wait until the canvas shows the graph as it is now."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def templates(page: Page) -> Locator:
    """Open the Templates dialog at the pack's own page; gives its cards."""
    click(page.get_by_role("button", name="Templates", exact=True), DIALOG)
    click(page.get_by_text(PACK, exact=True).first, CARDS, workflow.path(workflow.names()[0]).stem)
    return page.locator("[data-testid^=template-workflow-]")


def open_template(page: Page, name: str) -> None:
    """Open one of the pack's templates from the dialog, and wait until its graph is on the screen."""
    templates(page)
    pick_template(page, name)


def pick_template(page: Page, name: str) -> None:
    """Choose a template in the open dialog, and wait until its graph is on the screen."""
    before = page.evaluate("app.extensionManager.workflow.openWorkflows.length")
    click(page.get_by_test_id(f"template-workflow-{workflow.path(name).stem}"), OPENED, before)
    drawn(page)


def add_by_name(page: Page, name: str) -> None:
    """Empty the graph and add one node to it as a user does who types its name into the search on the canvas. Raises
    AssertionError if that never works."""
    from playwright.sync_api import TimeoutError as Missed

    page.evaluate("app.graph.clear()")
    for _ in range(ATTEMPTS):
        for key in ["ArrowDown"] * (offered(page, name) - 1) + ["Enter"]:
            page.keyboard.press(key)
        try:
            page.wait_for_function("app.graph.nodes.length === 1", timeout=HASTE)
            break
        except Missed:  # the list of what is offered changed meanwhile
            page.keyboard.press("Escape")
    else:
        raise AssertionError(f"{ATTEMPTS} choices of {name} added no node.")
    _put_down(page)
    show_whole(page)


def _put_down(page: Page) -> None:
    """Click until no new node hangs on the mouse: a busy page may miss a click that comes too soon."""
    from playwright.sync_api import TimeoutError as Missed

    if not page.evaluate(HANGING):
        return
    for _ in range(ATTEMPTS):
        page.mouse.down()
        page.mouse.up()
        try:
            page.wait_for_function(f"!({HANGING})", timeout=HASTE)
            return
        except Missed:
            continue
    raise AssertionError(f"{ATTEMPTS} clicks put the new node nowhere.")


def offered(page: Page, name: str) -> int:
    """Type a name into the search on the canvas; gives its place among what is offered, from 1."""
    from playwright.sync_api import TimeoutError as Missed

    width, height = page.evaluate("[app.canvas.canvas.clientWidth, app.canvas.canvas.clientHeight]")
    for _ in range(ATTEMPTS):
        page.mouse.dblclick(width / 2, height / 4)
        try:
            page.wait_for_function("document.activeElement.matches('input[role=combobox]')", timeout=HASTE)
            page.keyboard.type(name)
            return page.wait_for_function(OFFERED, arg=name, timeout=HASTE).json_value()
        except Missed:
            page.keyboard.press("Escape")
    raise AssertionError(f"{ATTEMPTS} searches did not offer {name}.")


def press_run(page: Page) -> None:
    """Queue the graph on the screen with the page's own button."""
    page.evaluate("() => { seen.queued = 0; seen.previews = []; seen.ends = []; }")
    click(page.get_by_test_id("queue-button"), "seen.queued > 0")


def wait_for_end(page: Page) -> str:
    """Wait until the run that was queued ends, and say how: execution_success, _error or _interrupted."""
    page.wait_for_function("seen.ends.length > 0")
    return page.evaluate("seen.ends[0]")


def previews(page: Page) -> list[tuple[str, bytes]]:
    """The pictures that arrived while the last run was under way: (node, JPEG) each, in order."""
    return [(node, bytes(data)) for node, data in page.evaluate(PREVIEWS)]


def shown(page: Page, client: Client) -> Results:
    """Pictures and texts that the nodes on the screen got, by their titles."""
    found = Results()
    for title, output in page.evaluate(OUTPUTS):
        if output.get("images"):
            found.pictures[title] = [client.view(image) for image in output["images"]]
        if output.get("text"):
            found.texts[title] = output["text"]
    return found
