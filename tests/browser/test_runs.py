"""What a user does with runs: cancel one and go on, and get a workflow back out of a saved picture."""

from __future__ import annotations

import base64
from typing import Any

from ..comfyhost import workflow
from ..comfyhost.client import Client
from ..comfyhost.page import click, open_template, press_run, shown, wait_for_end

SEED = 2**50 - 7  # the page itself cuts larger ones to 2**50 once a run is queued, whatever the node
SET = """([type, values]) => {
    const node = app.graph.nodes.find(node => node.type === type);
    for (const [name, value] of Object.entries(values)) node.widgets.find(widget => widget.name === name).value = value;
}"""
DROP = """([name, data]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const dropped = new DataTransfer();
    dropped.items.add(new File([bytes], name, { type: 'image/png' }));
    const options = { dataTransfer: dropped, bubbles: true, cancelable: true, clientX: 300, clientY: 700 };
    app.canvas.canvas.dispatchEvent(new DragEvent('drop', options));
}"""


def test_cancel_stops_a_run_and_the_next_one_works(page: Any, client: Client) -> None:
    open_template(page, "text-to-image")
    page.evaluate(SET, ["DimooSampler", {"steps": 1000, "seed": 31}])
    page.evaluate(SET, ["DimooEmptyCanvas", {"width": 512, "height": 512}])
    press_run(page)
    page.wait_for_function("seen.previews.length >= 2")
    click(page.get_by_role("button", name="Cancel current run").first, "seen.ends.length > 0")
    assert wait_for_end(page) == "execution_interrupted"
    assert page.evaluate("seen.previews.length") < 1000
    page.evaluate(SET, ["DimooSampler", {"steps": 16, "seed": 1}])
    page.evaluate(SET, ["DimooEmptyCanvas", {"width": 128, "height": 128}])
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    assert list(shown(page, client).pictures) == ["Picture"]
    assert page.locator(".comfy-error-report").count() == 0


def test_a_saved_picture_dropped_on_the_page_brings_its_workflow_back(page: Any, client: Client) -> None:
    open_template(page, "text-to-image-ml-cache")
    page.evaluate(SET, ["DimooSampler", {"seed": SEED}])
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    picture = shown(page, client).pictures["Picture"][0]
    made = page.evaluate("app.graphToPrompt()")["output"]
    click(page.get_by_role("button", name="Create a new blank workflow"), "app.graph.nodes.length === 0")
    page.evaluate(DROP, ["found-somewhere.png", base64.b64encode(picture).decode()])
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(made) + 1)  # and the note
    assert page.evaluate("app.graphToPrompt()")["output"] == made
    sampler = made[workflow.node_of(made, "DimooSampler")]
    assert sampler["inputs"]["seed"] == SEED
