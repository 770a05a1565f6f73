"""How prompts run in a real ComfyUI: progress and previews, cancel, unload, seeds, batches, refusals."""

from __future__ import annotations

import io
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ..comfyhost import workflow
from ..comfyhost.client import Client, Event, Refused, Result, Workflow
from ..conftest import TINY

SAMPLER = "DimooSampler"
NANO = "DiMOO-nano (built in)"


@pytest.fixture
def prompt(object_info: dict[str, Any]) -> Workflow:
    """Text to image as the pack ships it, with the tiny checkpoint."""
    prompt = workflow.to_api(workflow.load("text-to-image"), object_info)
    return changed(prompt, DimooLoader={"checkpoint": TINY}, DimooSampler={"steps": 6, "cfg": 1.0})


def changed(prompt: Workflow, **inputs: dict[str, Any]) -> Workflow:
    """The prompt with other inputs for the node of a type: `changed(prompt, DimooSampler={"seed": 3})`."""
    prompt = {node: {**content, "inputs": dict(content["inputs"])} for node, content in prompt.items()}
    for kind, values in inputs.items():
        prompt[workflow.node_of(prompt, kind)]["inputs"].update(values)
    return prompt


def pictures(client: Client, result: Result) -> list[np.ndarray]:
    """The saved pictures of a run."""
    assert result.status == "success", result.error()
    images = [image for output in result.outputs.values() for image in output["images"]]
    return [np.asarray(Image.open(io.BytesIO(client.view(image)))) for image in images]


def fresh(client: Client, prompt: Workflow) -> list[np.ndarray]:
    """The pictures of a prompt that really runs, whatever ComfyUI remembers of earlier ones."""
    client.free(unload_models=False, free_memory=True)
    result = client.run(prompt)
    assert workflow.node_of(prompt, SAMPLER) in result.executed()
    return pictures(client, result)


def test_every_step_reports_progress_and_shows_the_picture(client: Client, prompt: Workflow) -> None:
    node = workflow.node_of(prompt, SAMPLER)
    canvas = {"width": 640, "height": 640}
    result = client.run(changed(prompt, DimooEmptyCanvas=canvas, DimooSampler={"seed": 11}))
    assert result.steps(node) == [1, 2, 3, 4, 5, 6]
    previews = result.named("preview")
    assert len(previews) == 6
    assert {event.data["node_id"] for event in previews} == {node}
    frames = [np.asarray(event.image().convert("RGB")) for event in previews]
    (picture,) = pictures(client, result)
    assert {frame.shape for frame in frames[:-1]} == {(480, 480, 3)}
    assert frames[-1].shape == picture.shape, "the page writes this size under it"
    assert all((first != second).any() for first, second in pairwise(frames[:-1]))


def test_cancel_takes_effect_within_a_step_and_the_next_prompt_works(client: Client, prompt: Workflow) -> None:
    node = workflow.node_of(prompt, SAMPLER)
    expected = fresh(client, changed(prompt, DimooSampler={"seed": 12}))

    def cancel(event: Event) -> None:
        if event.name == "progress" and event.data["value"] == 3:
            client.interrupt()

    slow = changed(prompt, DimooEmptyCanvas={"width": 768, "height": 768}, DimooSampler={"seed": 12, "steps": 500})
    result = client.run(slow, on_event=cancel)
    assert result.status == "interrupted"
    assert result.steps(node)[-1] <= 4
    assert np.array_equal(fresh(client, changed(prompt, DimooSampler={"seed": 12})), expected)


def test_unload_frees_the_models_and_the_next_prompt_works(client: Client, prompt: Workflow) -> None:
    expected = fresh(client, changed(prompt, DimooSampler={"seed": 13}))
    assert {"Transformer", "VQ"} <= set(loaded(client))
    client.free(unload_models=True)
    deadline = time.monotonic() + 10
    while loaded(client) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert loaded(client) == []
    assert np.array_equal(fresh(client, changed(prompt, DimooSampler={"seed": 13})), expected)


def loaded(client: Client) -> list[str]:
    return client.get("dimoo-probe").json()["models"]


def test_equal_seeds_give_equal_pictures_and_others_do_not(client: Client, prompt: Workflow) -> None:
    first, again, other = (fresh(client, changed(prompt, DimooSampler={"seed": seed})) for seed in (14, 14, 15))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("seed", [16, 2**63, 2**64 - 1])
def test_a_batch_of_two_equals_two_singles(client: Client, prompt: Workflow, seed: int) -> None:
    batch = fresh(client, changed(prompt, DimooEmptyCanvas={"batch_size": 2}, DimooSampler={"seed": seed}))
    singles = [fresh(client, changed(prompt, DimooSampler={"seed": (seed + item) % 2**64}))[0] for item in (0, 1)]
    assert np.array_equal(batch, singles)


def test_what_runs_again_with_the_same_inputs_is_remembered(client: Client, prompt: Workflow) -> None:
    wanted = changed(prompt, DimooSampler={"seed": 17})
    fresh(client, wanted)
    assert client.run(wanted).executed() == []


@pytest.mark.parametrize("px", [0, -1, -16])
def test_a_graph_may_leave_its_settings_to_the_checkpoint(client: Client, prompt: Workflow, px: int) -> None:
    own = {"steps": -1, "cfg": -1.0, "image_cfg": -1, "temperature": -1}
    size = {"width": px, "height": px, "model": [workflow.node_of(prompt, "DimooLoader"), 0]}
    result = client.run(changed(prompt, DimooLoader={"checkpoint": NANO}, DimooSampler=own, DimooEmptyCanvas=size))
    assert [picture.shape for picture in pictures(client, result)] == [(128, 128, 3)]
    assert result.steps(workflow.node_of(prompt, SAMPLER)) == list(range(1, 17))


@pytest.mark.parametrize("side", [0, -1, -32])
def test_an_edit_may_leave_its_side_to_the_checkpoint(client: Client, side: int) -> None:
    edit = {"vq": ["loader", 1], "image": ["image", 0], "edit_type": "map: canny edges", "text": "", "side": side}
    prompt = {
        "loader": {"class_type": "DimooLoader", "inputs": {"checkpoint": NANO, "weight_dtype": "auto"}},
        "image": {
            "class_type": "EmptyImage",
            "inputs": {"width": 300, "height": 300, "batch_size": 1, "color": 0},
        },
        "edit": {"class_type": "DimooImageEdit", "inputs": edit},
        "save": {"class_type": "PreviewImage", "inputs": {"images": ["edit", 2]}},
    }
    assert [picture.shape for picture in pictures(client, client.run(prompt))] == [(128, 128, 3)]


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        (SAMPLER, {"steps": -2}),
        (SAMPLER, {"cfg": -1.5}),
        (SAMPLER, {"temperature": -2.0}),
        (SAMPLER, {"seed": 2**64}),
        ("DimooEmptyCanvas", {"width": -17}),
    ],
)
def test_what_is_out_of_range_is_refused_before_it_runs(
    client: Client, prompt: Workflow, node: str, inputs: dict[str, Any]
) -> None:
    with pytest.raises(Refused):
        client.run(changed(prompt, **{node: inputs}))


@pytest.mark.parametrize(
    ("node", "inputs"), [(SAMPLER, {"ml_cache": "no such"}), ("DimooLoader", {"checkpoint": "../../no such"})]
)
def test_a_choice_that_is_not_on_the_list_is_named(
    client: Client, prompt: Workflow, node: str, inputs: dict[str, Any]
) -> None:
    """ComfyUI 0.3.75 leaves checking these lists to the node, newer ones do it themselves."""
    try:
        said = client.run(changed(prompt, **{node: inputs})).error()
    except Refused as refused:
        said = str(refused)
    assert "no such" in said
    assert len(said) > 40


@pytest.mark.parametrize(
    ("node", "inputs", "words"),
    [
        ("DimooEmptyCanvas", {"width": 100}, "16"),
        ("DimooTextEncode", {"text": "word " * 10_000}, "characters"),
    ],
)
def test_a_node_that_refuses_says_so_in_a_sentence_and_the_next_prompt_works(
    client: Client, prompt: Workflow, node: str, inputs: dict[str, Any], words: str
) -> None:
    result = client.run(changed(prompt, **{node: inputs}))
    assert result.status == "error"
    assert words in result.error()
    assert "\n" not in result.error()
    assert pictures(client, client.run(changed(prompt, DimooSampler={"seed": 18})))


def test_a_saved_picture_carries_the_prompt_that_made_it(client: Client, prompt: Workflow) -> None:
    saved = workflow.load("text-to-image")
    result = client.run(changed(prompt, DimooSampler={"seed": 19}), extra={"extra_pnginfo": {"workflow": saved}})
    picture = client.picture(result.outputs[workflow.node_of(prompt, "SaveImage")]["images"][0])
    assert '"seed": 19' in picture.info["prompt"]
    assert '"DimooSampler"' in picture.info["workflow"]
