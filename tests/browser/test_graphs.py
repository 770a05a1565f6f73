"""What a user does to a graph in the page: bypass, mute, make a subgraph of it, reload while it runs."""

from __future__ import annotations

from typing import Any

import pytest

from ..comfyhost import workflow
from ..comfyhost.client import Client
from ..comfyhost.page import READY, WATCH, built_by_page, press_run, previews, shown, wait_for_end
from ..server.test_odd_prompts import bypassed, muted
from .test_runs import SET
from .test_workflows import known_inputs

MODE = """([type, mode]) => {
    app.graph.nodes.find(node => node.type === type).mode = mode;
    return app.graphToPrompt();
}"""
CHANGES = {"muted": (2, muted), "bypassed": (4, bypassed)}
INTO_SUBGRAPH = """types => {
    const nodes = app.graph.nodes.filter(node => types.includes(node.type));
    app.canvas.selectItems(nodes);
    const { node } = app.graph.convertToSubgraph(new Set(nodes));
    return String(node.id);
}"""


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora", "DimooLora"),
        ("text-to-image", "DimooSampler"),
        ("text-to-image-ml-cache", "DimooCacheSettings"),
        ("crop-and-stitch", "DimooStitch"),
        ("crop-and-stitch", "DimooMaskPaint"),
        ("best-of", "DimooBestOf"),
    ],
)
def test_the_page_queues_what_is_left_when_a_node_is_switched_off(
    page: Any, object_info: dict[str, Any], name: str, kind: str, how: str
) -> None:
    mode, change = CHANGES[how]
    before = known_inputs(built_by_page(page, workflow.load(name))["output"], object_info)
    after = known_inputs(page.evaluate(MODE, [kind, mode])["output"], object_info)
    expected = change(before, object_info, workflow.node_of(before, kind))
    assert after == expected


def test_a_subgraph_runs_and_shows_the_picture_forming(page: Any, client: Client) -> None:
    built_by_page(page, workflow.load("text-to-image"))
    page.evaluate(SET, ["DimooSampler", {"seed": 71}])
    subgraph = page.evaluate(INTO_SUBGRAPH, ["DimooTextEncode", "DimooEmptyCanvas", "DimooSampler", "DimooVQDecode"])
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    assert list(shown(page, client).pictures) == ["Picture"]
    seen = previews(page)
    assert len(seen) == 16 and {node.partition(":")[0] for node, _ in seen} == {subgraph}


def test_a_reloaded_page_leaves_the_run_alone(page: Any, client: Client) -> None:
    built_by_page(page, workflow.load("text-to-image"))
    page.evaluate(SET, ["DimooSampler", {"steps": 60, "seed": 72}])
    page.evaluate(SET, ["DimooEmptyCanvas", {"width": 256, "height": 256}])
    press_run(page)
    page.wait_for_function("seen.previews.length >= 2")
    (queued,) = [entry[1] for entry in client.get("queue").json()["queue_running"]]
    page.reload()
    page.wait_for_function(READY)
    page.evaluate(WATCH)
    assert client.settled(queued, timeout=120)["status"]["status_str"] == "success"
