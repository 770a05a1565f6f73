"""Inpainting a picture of one's own with a mask painted in the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from dimoo_core.nano.judge import judge, matches
from dimoo_core.nano.scenes import draw, parse_caption

from ..comfyhost.client import Client
from ..comfyhost.page import open_template, press_run, shown, wait_for_end

BEFORE = "a large red circle on the left on a white background"
WANTED = "a large blue star on the left on a white background"  # what the template asks for
CELL = 16  # px
# As the template's note says: a Load Image node in place of the made picture and of the drawn mask.
REWIRE = """name => {
    const made = app.graph.nodes.find(node => node.title === 'Before').getInputNode(0);
    const load = LiteGraph.createNode('LoadImage');
    load.pos = [0, 800];
    app.graph.add(load);
    const chooser = load.widgets.find(widget => widget.name === 'image');
    chooser.options.values.push(name);
    chooser.value = name;
    chooser.callback(name);
    for (const id of [...made.outputs[0].links]) {
        const link = app.graph.links[id] ?? app.graph.links.get(id);
        load.connect(0, app.graph.getNodeById(link.target_id), link.target_slot);
    }
    load.connect(1, app.graph.nodes.find(node => node.type === 'DimooMaskPaint'), 'mask');
    app.canvas.selectNode(load);
}"""
LOADED = "app.graph.nodes.find(node => node.type === 'LoadImage').imgs?.[0]?.naturalWidth"
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


def test_mask_painted_in_the_page_says_what_changes_and_all_else_stays(page: Any, client: Client) -> None:
    drawn = (draw(parse_caption(BEFORE), 8, 8) * 255).round().byte().movedim(0, -1).numpy()
    name = client.upload("a-circle.png", Image.fromarray(drawn))
    open_template(page, "inpaint")
    page.evaluate(REWIRE, name)
    page.wait_for_function(f"{LOADED} === 128")
    page.evaluate("app.extensionManager.command.execute('Comfy.MaskEditor.OpenMaskEditor')")
    save = page.get_by_role("button", name="Save", exact=True)
    save.wait_for()
    page.locator("#maskEditorCanvasContainer canvas").last.wait_for()
    page.wait_for_function("document.querySelector('#maskEditorCanvasContainer canvas').width === 128")
    paint(page, 6, 38, 58, 90)
    save.click()
    page.wait_for_function(f"{CHOSEN} !== '{name}' && {LOADED} === 128")
    press_run(page)
    assert wait_for_end(page) == "execution_success"

    after = shown(page, client).pixels("After")
    chosen = page.evaluate(CHOSEN).removesuffix(" [input]")
    folder, _, file = chosen.rpartition("/")
    mask = (
        np.asarray(client.picture({"filename": file, "subfolder": folder, "type": "input"}).convert("RGBA"))[..., 3]
        < 128
    )
    assert 1000 < mask.sum() < 4096 + 1500, "the strokes cover about the left middle quarter"
    cells = mask.reshape(8, CELL, 8, CELL).any(axis=(1, 3)).repeat(CELL, 0).repeat(CELL, 1)
    assert (after == drawn)[~cells].all()
    verdict = judge(torch.from_numpy(after.copy()).movedim(-1, 0) / 255)
    assert matches(verdict.scene, WANTED), verdict.words
