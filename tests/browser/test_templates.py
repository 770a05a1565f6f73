"""The Templates dialog: what a newcomer finds under the pack's name, and what it does when Run is pressed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from ..comfyhost import expect, workflow
from ..comfyhost.client import Client
from ..comfyhost.page import open_template, press_run, previews, shown, templates, wait_for_end
from ..comfyhost.thumbnails import SIDE

TITLE = 30  # px of a node's title, which stands above its position

NODES = """() => app.graph.nodes.map(node => ({
    name: `${node.id} ${node.title}`,
    missing: node.has_errors || !LiteGraph.registered_node_types[node.type],
    // left, top, right, bottom in px of the window
    seen: [[node.pos[0], node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT],
           [node.pos[0] + node.size[0], node.pos[1] + node.size[1]]].flatMap(corner => {
        const box = app.canvas.canvas.getBoundingClientRect();
        const [x, y] = app.canvas.ds.convertOffsetToCanvas(corner);
        return [x + box.x, y + box.y];
    }),
    // left, top, width, height in the graph
    box: [...node.pos, ...node.size],
}))"""
NOTES = """() => [...document.querySelectorAll('.comfy-markdown')].filter(note => note.offsetParent).map(note =>
    [note.textContent, Math.max(note.scrollHeight, note.firstElementChild.scrollHeight) - note.clientHeight])"""


def overlapping(nodes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    found = []
    for number, first in enumerate(nodes):
        for second in nodes[number + 1 :]:
            (x, y, w, h), (x2, y2, w2, h2) = first["box"], second["box"]
            if x < x2 + w2 and x2 < x + w and y - TITLE < y2 + h2 and y2 - TITLE < y + h:
                found.append((first["name"], second["name"]))
    return found


def test_dialog_shows_every_workflow_with_its_thumbnail(page: Any) -> None:
    cards = templates(page)
    for name in workflow.names():
        card = page.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        picture = card.locator("img").first
        picture.wait_for()
        # where a thumbnail is missing the page puts a picture of its own, of another size
        page.wait_for_function("picture => picture.complete && picture.naturalWidth", arg=picture.element_handle())
        assert picture.evaluate("picture => picture.naturalWidth") == SIDE, name
    assert cards.count() == len(workflow.names())


@pytest.mark.parametrize("name", workflow.names())
def test_template_opens_whole_and_readable_and_runs_as_it_stands(page: Any, client: Client, name: str) -> None:
    workflow.make_ready(client, name)
    open_template(page, name)
    assert page.locator(".comfy-missing-nodes, .comfy-missing-models, .comfy-error-report").count() == 0
    nodes = page.evaluate(NODES)
    assert len(nodes) == len(workflow.load(name)["nodes"])
    assert not [node["name"] for node in nodes if node["missing"]]
    outside = [node for node in nodes if not inside(node["seen"], page.viewport_size)]
    assert not outside
    assert not page.evaluate("app.canvas.low_quality"), "zoomed out so far that the page hides all text"
    notes = page.evaluate(NOTES)
    assert notes and all(hidden <= 1 for _, hidden in notes), notes

    client.free(unload_models=False, free_memory=True)
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    findings = expect.inspect(name, shown(page, client))
    assert all(finding.right for finding in findings), findings
    frames = previews(page)
    paint = ("DimooSampler", "DimooTrainLora")
    samplers = {str(node["id"]) for node in workflow.load(name)["nodes"] if node["type"] in paint}
    assert {node for node, _ in frames} == samplers
    moving = [first[1] != second[1] for first, second in pairwise(frames) if first[0] == second[0]]
    assert len(moving) > 10 and all(moving)
    assert not overlapping(page.evaluate(NODES)), "a node has grown over another when its picture came"


def inside(box: list[float], window: dict[str, int]) -> bool:
    """Whether a box (left, top, right, bottom) lies in the window, clear of the bars at its left and top."""
    left, top, right, bottom = box
    return left >= 60 and top >= 80 and right <= window["width"] and bottom <= window["height"]


def test_picture_and_words_stand_on_the_nodes(page: Any, client: Client) -> None:
    """What was made is not only sent: the picture hangs in its node, and Describe shows what it said."""
    open_template(page, "describe")
    client.free(unload_models=False, free_memory=True)
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    page.wait_for_function("app.graph.nodes.find(node => node.title === 'Picture').imgs?.[0]?.naturalWidth === 128")
    page.get_by_text("a small orange triangle at the bottom on a brown background").locator(
        "visible=true"
    ).last.wait_for()


def test_words_are_there_again_when_a_remembered_answer_is_run_in_a_fresh_tab(page: Any, client: Client) -> None:
    """Describe itself shows words only while it works; Preview Any gets them from ComfyUI's memory as well."""
    there = "app.graph.nodes.find(node => node.title === 'What it says').widgets.some(({ value }) => value === '{}')"
    said = "a small orange triangle at the bottom on a brown background"
    open_template(page, "describe")
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    open_template(page, "describe")
    assert not page.evaluate(there.replace("{}", said))
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    page.wait_for_function(there.replace("{}", said))
