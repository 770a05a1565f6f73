"""Inpainting a picture of one's own with a mask painted in the page."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from PIL import Image

from dimoo_core.nano.captions import described
from dimoo_core.nano.judge import judge, matches
from dimoo_core.nano.scenes import draw

from ..comfyhost.client import Client
from ..comfyhost.page import click, open_template, press_run, shown, wait_for_end

BEFORE = "a large red circle on the left on a white background"
WANTED = "a large blue star on the left on a white background"  # what the template asks for
CELL = 16  # px
# As the template's note says: another file in Load Image, and nothing else.
CHOOSE = """name => {
    const load = app.graph.nodes.find(node => node.type === 'LoadImage');
    const chooser = load.widgets.find(widget => widget.name === 'image');
    chooser.options.values.push(name);
    chooser.value = name;
    chooser.callback(name);
    app.canvas.selectNode(load);
}"""
SHOWN = "app.graph.nodes.find(node => node.type === 'LoadImage').imgs?.[0]"
# The editor is open when its canvas has the picture's size and has stood still for a while: it comes with a movement.
STILL = """() => {
    const canvas = document.querySelector('#maskEditorCanvasContainer canvas');
    const place = canvas?.width === 128 && JSON.stringify(canvas.getBoundingClientRect());
    window.still = place && place === window.place ? window.still + 1 : 0;
    window.place = place;
    return window.still > 20;
}"""
CHOSEN = "app.graph.nodes.find(node => node.type === 'LoadImage').widgets[0].value"


def paint(page: Any, left: int, top: int, right: int, bottom: int) -> None:
    """Cover a box, in px of a picture of 128 x 128, with strokes of the mouse in the open mask editor."""
    box = page.locator("#maskEditorCanvasContainer canvas").last.bounding_box()
    scale = box["width"] / 128
    for y in range(top, bottom + 1, 8):
        page.mouse.move(box["x"] + left * scale, box["y"] + y * scale)
        page.mouse.down()
        page.mouse.move(box["x"] + right * scale, box["y"] + y * scale, steps=8)
        page.mouse.up()


def painted(page: Any, client: Client) -> np.ndarray:
    """The mask [128,128] that the editor saved, in the transparency of the picture that Load Image has now."""
    folder, _, file = page.evaluate(CHOSEN).removesuffix(" [input]").rpartition("/")
    saved = client.picture({"filename": file, "subfolder": folder, "type": "input"})
    return np.asarray(saved.convert("RGBA"))[..., 3] < 128


def test_mask_painted_in_the_page_says_what_changes_and_all_else_stays(page: Any, client: Client) -> None:
    drawn = (draw(described(BEFORE), 8, 8) * 255).round().byte().movedim(0, -1).numpy()
    name = client.upload("a-circle.png", Image.fromarray(drawn))
    open_template(page, "inpaint")
    page.evaluate(CHOOSE, name)
    page.wait_for_function(f"{SHOWN}?.naturalWidth === 128 && {SHOWN}.src.includes('{name}')")
    page.evaluate("app.extensionManager.command.execute('Comfy.MaskEditor.OpenMaskEditor')")
    page.wait_for_function(STILL)
    paint(page, 6, 38, 58, 90)
    click(
        page.get_by_role("button", name=re.compile(r"^\W*Save$")),
        f"{CHOSEN} !== '{name}' && {SHOWN}?.naturalWidth === 128",
    )
    press_run(page)
    assert wait_for_end(page) == "execution_success"

    after = shown(page, client).pixels("After")
    mask = painted(page, client)
    assert mask[42:86, 10:54].all() and not mask[:, 80:].any(), "the mask is not where the mouse was"
    cells = mask.reshape(8, CELL, 8, CELL).any(axis=(1, 3)).repeat(CELL, 0).repeat(CELL, 1)
    assert (after == drawn)[~cells].all()
    verdict = judge(torch.from_numpy(after.copy()).movedim(-1, 0) / 255)
    assert matches(verdict.scene, WANTED), verdict.words
