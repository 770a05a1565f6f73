"""The example workflows: as files, and run in a real ComfyUI with what they make judged."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
from PIL import Image

from ..comfyhost import expect, workflow
from ..comfyhost.client import Client
from ..comfyhost.thumbnails import SIDE

BUILT_IN = "DiMOO-nano (built in)"
TITLE = 30  # px of a node's title, which stands above its position
# Newer pages zoom a template, with 10 px around it, to three quarters of the canvas (1280 x 762 px in a window of
# 1280 x 800); zoomed to less than 8/14 they hide all text.
LARGEST = tuple(0.75 * side * 14 / 8 - 20 for side in (1280, 762))


@pytest.mark.parametrize("name", workflow.names())
def test_workflow_makes_what_was_asked(client: Client, object_info: dict[str, Any], name: str) -> None:
    workflow.make_ready(client, name)
    prompt = workflow.to_api(workflow.load(name), object_info)
    result = client.run(prompt)
    assert result.status == "success", result.error()
    findings = expect.inspect(name, expect.collect(client, prompt, result))
    assert findings and all(finding.right for finding in findings), findings


def test_every_workflow_has_checks() -> None:
    assert set(expect.CHECKS) == set(workflow.names())


@pytest.mark.parametrize("name", workflow.names())
def test_workflow_selects_nano_and_explains_itself(name: str) -> None:
    nodes = workflow.load(name)["nodes"]
    loaders = [node for node in nodes if node["type"] == "DimooLoader"]
    assert [node["widgets_values"][0] for node in loaders] == [BUILT_IN]
    assert any(node["type"] == "MarkdownNote" and len(node["widgets_values"][0]) > 100 for node in nodes)


@pytest.mark.parametrize("name", workflow.names())
def test_nodes_of_a_workflow_do_not_overlap(name: str) -> None:
    boxes = {f"{node['id']} {node['type']}": (*node["pos"], *node["size"]) for node in workflow.load(name)["nodes"]}
    overlapping = [
        (first, second)
        for (first, (x, y, w, h)), (second, (x2, y2, w2, h2)) in combinations(boxes.items(), 2)
        if x < x2 + w2 and x2 < x + w and y - TITLE < y2 + h2 and y2 - TITLE < y + h
    ]
    assert not overlapping


@pytest.mark.parametrize("name", workflow.names())
def test_workflow_can_be_read_whole_on_a_small_screen(name: str) -> None:
    boxes = [(*node["pos"], *node["size"]) for node in workflow.load(name)["nodes"]]
    width = max(x + w for x, _, w, _ in boxes) - min(x for x, *_ in boxes)
    height = max(y + h for _, y, _, h in boxes) - min(y - TITLE for _, y, _, _ in boxes)
    assert width <= LARGEST[0] and height <= LARGEST[1]


def test_every_workflow_has_a_small_thumbnail() -> None:
    """The Templates dialog shows NAME.jpg; `nox -s demo -- --thumbnails` makes it."""
    thumbnails = {path.stem: path for path in workflow.FOLDER.glob("*.jpg")}
    assert set(thumbnails) == set(workflow.names())
    for path in thumbnails.values():
        assert Image.open(path).size == (SIDE, SIDE)
        assert path.stat().st_size < 20_000, path.name


@pytest.mark.parametrize("name", workflow.names())
def test_workflow_holds_nothing_of_the_machine_it_was_made_on(name: str) -> None:
    text = json.dumps(workflow.load(name))
    assert "/work" not in text and "/tmp" not in text and "/root" not in text


def test_converter_refuses_what_it_would_get_wrong(object_info: dict[str, Any]) -> None:
    def with_sampler(**values: Any) -> dict[str, Any]:
        saved = workflow.load("text-to-image")
        for node in saved["nodes"]:
            if node["type"] == "DimooTextEncode":
                node.update(values)
        return saved

    with pytest.raises(ValueError, match="bypassed"):
        workflow.to_api(with_sampler(mode=4), object_info)
    with pytest.raises(ValueError, match="does not have"):
        workflow.to_api(with_sampler(type="NoSuchNode"), object_info)
    with pytest.raises(ValueError, match="rewrite"):
        workflow.to_api(with_sampler(widgets_values=["a {red|blue} circle", ""]), object_info)


def test_converter_leaves_out_what_is_muted_and_the_links_to_it(object_info: dict[str, Any]) -> None:
    saved = workflow.load("text-to-image-ml-cache")
    for node in saved["nodes"]:
        if node["type"] == "DimooCacheSettings":
            node["mode"] = 2
    prompt = workflow.to_api(saved, object_info)
    assert "cache" not in prompt[workflow.node_of(prompt, "DimooSampler")]["inputs"]
    assert "DimooCacheSettings" not in {content["class_type"] for content in prompt.values()}
