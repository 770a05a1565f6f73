"""What strangers wrote, in the page: it is read as they wrote it, and nothing of it comes to life."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from .. import strangers
from ..comfyhost.page import HASTE, NODES_2, begin, click, drawn, press_run, wait_for_end
from ..comfyhost.server import Server

LOAD = "prompt => app.loadApiJson(prompt, 'strangers')"
# Any trace of life: elements that only the stranger's text could have made, links that say another address than theirs.
ALIVE = r"""() => [
    ...document.querySelectorAll('img[src="x"], img[onerror], img[src*="one.test"]'),
    ...[...document.querySelectorAll('b, i')].filter(({ textContent }) => /^(bold|one|set)/.test(textContent)),
    ...[...document.querySelectorAll('a')].filter(({ href, textContent }) =>
        /one\.test|two\.test/.test(href) && textContent.trim() !== href),
].map(({ outerHTML }) => outerHTML).concat(window.hacked ? ['a script ran'] : [])"""
# Notes down what is to be read on nodes, as the newest pages take it away when the run ends: without line breaks and
# without the invisible characters that keep it text.
READ = r"""() => {
    window.read = new Set();
    const note = () => document.querySelectorAll('span, .comfy-markdown-content').forEach(({ textContent }) => {
        if (textContent.includes('1 < 2')) read.add(textContent.replace(/[\n\u200b]/g, ''));
    });
    new MutationObserver(note).observe(document.body, { childList: true, subtree: true, characterData: true });
}"""
COMBO = """type => {
    const node = app.graph.nodes.find(node => node.type === type);
    const widget = node.widgets.find(({ options }) => options?.values);
    app.canvas.selectNode(node);
    app.canvas.centerOnNode(node);
    return [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10];
}"""


on_the_canvas = pytest.mark.skipif(
    NODES_2, reason="looks where the canvas shows texts and lists; Nodes 2.0 have others"
)


@pytest.fixture
def page_with_gifts(page: Any, server: Server) -> Iterator[Any]:
    """The page of a user who was given a checkpoint and a folder of captioned pictures, and uses both at once."""
    with strangers.gifts(server.folder):
        begin(page, server.url)
        page.evaluate(LOAD, strangers.prompt())
        yield page


@on_the_canvas
def test_answers_captions_and_names_are_read_as_written(page_with_gifts: Any) -> None:
    page = page_with_gifts
    page.evaluate(READ)
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    line = strangers.SAYS.replace("\n", "")
    for expected in (
        line,
        f"picture 1: 50.0%  {line}",  # none of the prompt's words are in it, and of two halves that is one
        f"{strangers.FOLDER}/{strangers.FILE}: {line}",
    ):
        page.wait_for_function("expected => read.has(expected)", arg=expected, timeout=HASTE)
    assert page.evaluate(ALIVE) == []


@pytest.mark.skipif("COMFYUI_FRONT_END" not in os.environ, reason="with Nodes 2.0 page 1.32.9 shows no text on nodes")
def test_they_stay_words_with_nodes_2_as_well(page_with_gifts: Any, server: Server) -> None:
    page = page_with_gifts
    begin(page, server.url, **{"Comfy.VueNodes.Enabled": True})
    page.evaluate(LOAD, strangers.prompt())
    page.evaluate(READ)
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    page.wait_for_function(
        "[...read].some(text => text.includes('<b>bold</b> 1 < 2 & 2<3 & AT&T &lt;i>'))", timeout=HASTE
    )
    assert page.evaluate(ALIVE) == []


@on_the_canvas
@pytest.mark.parametrize("node", ["DimooLoader", "DimooCaptionFolder"])
def test_names_in_lists_are_read_as_written(page_with_gifts: Any, node: str) -> None:
    page = page_with_gifts
    where = page.evaluate(COMBO, node)
    drawn(page)
    x, y = page.evaluate("where => app.canvas.ds.convertOffsetToCanvas(where)", where)
    click(page.locator("#graph-canvas"), "document.querySelector('.litecontextmenu')", position={"x": x, "y": y})
    entries = page.locator(".litecontextmenu .litemenu-entry").all_inner_texts()
    assert strangers.FOLDER in [entry.replace("\u200b", "").strip() for entry in entries]
    assert page.evaluate(ALIVE) == []


def wait_for_complaint(page: Any, words: str) -> None:
    """Wait until the page complains, quoting `words` in its dialog; newer pages list errors behind a button."""
    dialog, more = page.locator(".p-dialog"), page.get_by_role("button", name="View details")
    dialog.or_(more).first.wait_for()
    if more.count():
        more.first.click()
        more.first.wait_for(state="hidden")
    else:
        page.wait_for_function("words => document.body.innerText.includes(words)", arg=words)


def test_an_error_that_quotes_a_name_is_read_as_written(page_with_gifts: Any, server: Server) -> None:
    page = page_with_gifts
    for file in (server.folder / "models" / "dimoo" / strangers.FOLDER).glob("*.safetensors"):
        file.write_bytes(b"")
    press_run(page)
    assert wait_for_end(page) == "execution_error"
    wait_for_complaint(page, strangers.TAG)
    assert page.evaluate(ALIVE) == []


def test_a_refusal_that_quotes_a_name_is_read_as_written(page_with_gifts: Any) -> None:
    page = page_with_gifts
    gone = strangers.FOLDER + "gone"
    page.evaluate(LOAD, strangers.prompt(gone))
    press_run(page)
    wait_for_complaint(page, gone)
    assert page.evaluate(ALIVE) == []
