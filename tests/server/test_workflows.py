"""The example workflows: as files, and run in a real ComfyUI with what they make judged."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ..comfyhost import expect, workflow
from ..comfyhost.client import Client
from ..comfyhost.templates import TEMPLATES
from ..comfyhost.thumbnails import BACKGROUND, BADGE, SIDE

BUILT_IN = "DiMOO-nano (built in)"
TITLE = 30  # px of a node's title, which stands above its position
FREE = 50  # px below a node, for what pages hang there and for pictures that are higher than ours
# What leaves a setting to the checkpoint, by node
OWN = {
    "DimooSampler": {"steps": -1, "cfg": -1, "image_cfg": -1, "temperature": -1},
    "DimooEmptyCanvas": {"width": 0, "height": 0},
    "DimooImageEdit": {"side": 0},
    "DimooCropAroundMask": {"side": -16},
    "DimooDescribe": {"max_tokens": -1, "steps": -1, "block_length": -1},
    "DimooCaptionFolder": {"max_tokens": -1, "steps": -1, "block_length": -1},
}
# Workflows with a node that answers in words
ANSWERS = [
    (name, node["type"])
    for name in workflow.names()
    for node in workflow.load(name)["nodes"]
    if node["type"] in ("DimooDescribe", "DimooBestOf", "DimooCaptionFolder")
]
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
def test_nodes_of_a_workflow_leave_room_below(name: str) -> None:
    boxes = {f"{node['id']} {node['type']}": (*node["pos"], *node["size"]) for node in workflow.load(name)["nodes"]}
    close = [
        (first, second)
        for (first, (x, y, w, h)), (second, (x2, y2, w2, h2)) in combinations(boxes.items(), 2)
        if x < x2 + w2 and x2 < x + w and y - TITLE < y2 + h2 + FREE and y2 - TITLE < y + h + FREE
    ]
    assert not close


@pytest.mark.parametrize("name", workflow.names())
def test_another_checkpoint_is_one_change(object_info: dict[str, Any], name: str) -> None:
    """Sizes, steps and guidance are left to the checkpoint, and what needs to know it is connected to the loader."""
    for node in workflow.to_api(workflow.load(name), object_info).values():
        inputs = node["inputs"]
        assert OWN.get(node["class_type"], {}).items() <= inputs.items(), node
        if node["class_type"] in ("DimooEmptyCanvas", "DimooCropAroundMask"):
            assert "model" in inputs, node


@pytest.mark.parametrize("name", workflow.names())
def test_another_picture_is_one_change(object_info: dict[str, Any], name: str) -> None:
    prompt = workflow.to_api(workflow.load(name), object_info)
    pictures = [node["inputs"]["image"] for node in prompt.values() if node["class_type"] == "LoadImage"]
    assert len(pictures) <= 1 and all((TEMPLATES.EXAMPLES / picture).is_file() for picture in pictures)


@pytest.mark.parametrize("name", workflow.names())
def test_as_an_app_a_workflow_asks_for_what_it_has_and_shows_its_results(
    object_info: dict[str, Any], name: str
) -> None:
    saved = workflow.load(name)
    form, mode = saved["extra"]["linearData"], saved["extra"]["linearMode"]
    assert mode is False, "the graph opens first"
    prompt = workflow.to_api(saved, object_info)
    asked = [(str(node), widget) for node, widget, *_ in form["inputs"]]
    assert len(asked) == len(set(asked)) > 2
    for node, widget in asked:
        value = prompt[node]["inputs"][widget]
        declared = object_info[prompt[node]["class_type"]]
        assert widget in dict(workflow.widgets(declared)), (node, widget)
        assert not isinstance(value, list), f"{node} {widget} comes from another node"
        options = {name: one for group in declared["input"].values() for name, (_, *one) in group.items()}[widget]
        assert not any(one.get("advanced") for one in options), f"of {node} {widget} the form shows the name alone"
    assert ("DimooLoader", "checkpoint") in {(prompt[node]["class_type"], widget) for node, widget in asked}
    assert form["outputs"]
    for node in form["outputs"]:
        assert object_info[prompt[str(node)]["class_type"]]["output_node"], node


def test_no_two_workflows_share_the_id_of_a_node() -> None:
    """The page sends previews and results to the node of that id in whatever workflow is open."""
    ids = [node["id"] for name in workflow.names() for node in workflow.load(name)["nodes"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("name", "kind"), ANSWERS)
def test_an_answer_has_a_node_on_which_it_stays(name: str, kind: str) -> None:
    """Newer pages clear what our nodes show as soon as the run ends."""
    nodes = workflow.load(name)["nodes"]
    kept = {node["inputs"][0]["link"] for node in nodes if node["type"] == "PreviewAny"}
    (answering,) = (node for node in nodes if node["type"] == kind)
    assert [output for output in answering["outputs"] if kept.intersection(output["links"] or ())]


@pytest.mark.parametrize("name", workflow.names())
def test_workflow_can_be_read_whole_on_a_small_screen(name: str) -> None:
    boxes = [(*node["pos"], *node["size"]) for node in workflow.load(name)["nodes"]]
    width = max(x + w for x, _, w, _ in boxes) - min(x for x, *_ in boxes)
    height = max(y + h for _, y, _, h in boxes) - min(y - TITLE for _, y, _, _ in boxes)
    assert width <= LARGEST[0] and height <= LARGEST[1]


def test_every_workflow_has_a_small_thumbnail() -> None:
    """The Templates dialog shows TITLE.jpg; `nox -s demo -- --thumbnails` makes it."""
    thumbnails = {workflow.path(name, ".jpg") for name in workflow.names()}
    assert set(workflow.FOLDER.glob("*.jpg")) == thumbnails
    for path in thumbnails:
        assert Image.open(path).size == (SIDE, SIDE)
        assert path.stat().st_size < 20_000, path.name


@pytest.mark.parametrize("name", workflow.names())
def test_nothing_lies_under_the_badge_that_the_dialog_puts_on_a_thumbnail(name: str) -> None:
    corner = np.asarray(Image.open(workflow.path(name, ".jpg")).convert("RGB").crop((0, 0, *BADGE)))
    assert np.abs(corner.astype(int) - BACKGROUND).max() < 24, "more than JPEG makes of the background"


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
