"""The Templates dialog: what a newcomer finds under the pack's name, and what it does when Run is pressed."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest

from ..comfyhost import expect, workflow
from ..comfyhost.client import Client
from ..comfyhost.page import (
    begin,
    built_by_page,
    open_template,
    press_run,
    previews,
    shown,
    templates,
    wait_for_end,
)
from ..comfyhost.server import Server
from ..comfyhost.thumbnails import SIDE

FREE = 50  # px below every node, at 100 % zoom

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
}))"""
# Left, top, right, bottom in px of the graph, titles and what hangs on a node included, as nodes are drawn, or as
# elements of the page with Nodes 2.0.
BOXES = """elements => app.graph.nodes.map(node => {
    const name = `${node.id} ${node.title}`;
    if (!elements) {
        const [left, top, width, height] = node.getBounding();
        return { name, type: node.type, box: [left, top, left + width, top + height] };
    }
    const canvas = app.canvas.canvas.getBoundingClientRect();
    const { scale, offset } = app.canvas.ds;
    const seen = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
    const [x, y] = [canvas.x + offset[0] * scale, canvas.y + offset[1] * scale];
    return { name, type: node.type, box: [seen.left - x, seen.top - y, seen.right - x, seen.bottom - y]
        .map(place => place / scale) };
})"""
# The picture that the node of that title shows, on the canvas or, with Nodes 2.0, as an element.
PICTURE = """() => {
    const node = app.graph.nodes.find(node => node.title === 'Picture');
    const element = document.querySelector(`[data-node-id="${node.id}"] img`);
    return (element ?? node.imgs?.[0])?.naturalWidth === 128;
}"""
SAYS = """words => app.graph.nodes.find(node => node.title === 'What it says').widgets
    .some(({ value }) => value === words)"""
GROUPS = """() => app.graph.groups.map(({ title, _bounding: [left, top, width, height] }) =>
    ({ title, box: [left, top, left + width, top + height] }))"""
DRAWN = "count => document.querySelectorAll('[data-node-id]').length === count"
PICTURES_SHOWN = "[...document.images].every(image => image.complete)"
# Text on nodes of which a part is hidden, with the px that are.
CUT = """() => [...document.querySelectorAll('.dom-widget *, [data-node-id] *')].filter(part =>
        part.checkVisibility({ opacityProperty: true, visibilityProperty: true })
        && part.scrollHeight > part.clientHeight + 2 && (part.value ?? part.textContent).trim()
        && ['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(part).overflowY))
    .map(part => [part.tagName, part.className, (part.value ?? part.textContent).trim().slice(0, 60),
                  part.scrollHeight - part.clientHeight])"""
# Titles of nodes that the canvas shows in part.
CUT_TITLES = """() => {
    const prototype = CanvasRenderingContext2D.prototype, write = prototype.fillText, written = [];
    prototype.fillText = function (text) { written.push(text); return write.apply(this, arguments); };
    app.canvas.draw(true, true);
    prototype.fillText = write;
    return app.graph.nodes.map(node => node.getTitle()).filter(title => !written.includes(title));
}"""


def close(page: Any, *, elements: bool) -> list[tuple[str, str]]:
    """Nodes that overlap, or of which the lower one begins less than FREE px below the upper one."""
    nodes = page.evaluate(BOXES, elements)
    return [(one["name"], other["name"]) for one, other in combinations(nodes, 2) if meet(one["box"], other["box"])]


def meet(one: list[float], other: list[float]) -> bool:
    (left, top, right, bottom), (left2, top2, right2, bottom2) = one, other
    return left < right2 and left2 < right and top < bottom2 + FREE - 1 and top2 < bottom + FREE - 1  # rounded


def across_groups(page: Any, *, elements: bool) -> list[tuple[str, str]]:
    """Nodes that lie in a group in part."""
    found = []
    for group in page.evaluate(GROUPS):
        left, top, right, bottom = group["box"]
        for node in page.evaluate(BOXES, elements):
            left2, top2, right2, bottom2 = node["box"]
            touches = left < right2 and left2 < right and top < bottom2 and top2 < bottom
            if touches and not (left <= left2 and top <= top2 and right2 <= right and bottom2 <= bottom):
                found.append((group["title"], node["name"]))
    return found


def test_dialog_shows_every_workflow_with_its_thumbnail(page: Any) -> None:
    cards = templates(page)
    for name in workflow.names():
        card = page.get_by_test_id(f"template-workflow-{workflow.path(name).stem}")
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
    assert not page.evaluate(CUT)

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
    assert all(moving) and (len(moving) > 10 or not samplers)


@pytest.mark.parametrize("name", workflow.names())
def test_nodes_have_room_and_their_words_are_whole(page: Any, client: Client, name: str) -> None:
    """Before and after a run, drawn on the canvas and, with Nodes 2.0, as elements of the page."""
    workflow.make_ready(client, name)
    for elements in (False, True):
        begin(page, client.url, **{"Comfy.VueNodes.Enabled": elements})
        open_template(page, name)
        if elements:
            page.wait_for_function(DRAWN, arg=len(workflow.load(name)["nodes"]))
        else:
            assert not page.evaluate(CUT_TITLES)
        assert not close(page, elements=elements)
        press_run(page)
        assert wait_for_end(page) == "execution_success"
        page.wait_for_function(PICTURES_SHOWN)
        assert not close(page, elements=elements)
        assert not across_groups(page, elements=elements)
        if name != "train-lora":  # which writes a log, and the page scrolls what is higher than 200 px
            assert not page.evaluate(CUT)


def test_nodes_have_room_in_a_newer_page_as_well(newer_window: Any, newer_server: Server) -> None:
    """Its Nodes 2.0 draw nodes higher: the name of the pack stands below each, and text fields have a least height."""
    page = newer_window
    begin(page, newer_server.url, **{"Comfy.VueNodes.Enabled": True})
    for name in workflow.names():
        saved = workflow.load(name)
        built_by_page(page, saved)
        page.wait_for_function(DRAWN, arg=len(saved["nodes"]))
        assert not close(page, elements=True), name
        assert not page.evaluate(CUT), name


def inside(box: list[float], window: dict[str, int]) -> bool:
    """Whether a box (left, top, right, bottom) lies in the window, clear of the bars at its left and top."""
    left, top, right, bottom = box
    return left >= 60 and top >= 80 and right <= window["width"] and bottom <= window["height"]


def test_picture_and_words_stand_on_the_nodes(page: Any, client: Client) -> None:
    """What was made is not only sent: the picture hangs in its node, and what was said stands beside it."""
    open_template(page, "two-jobs")
    client.free(unload_models=False, free_memory=True)
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    page.wait_for_function(PICTURE)
    page.wait_for_function(SAYS, arg=expect.CIRCLE)


def test_words_are_there_again_when_a_remembered_answer_is_run_in_a_fresh_page(page: Any, client: Client) -> None:
    """Describe itself shows words only while it works; Preview Any gets them from ComfyUI's memory as well."""
    open_template(page, "describe")
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    begin(page, client.url)
    open_template(page, "describe")
    assert not page.evaluate(SAYS, expect.CIRCLE)
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    page.wait_for_function(SAYS, arg=expect.CIRCLE)
