"""A picture that ComfyUI saved carries all that is needed to make it again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from dimoo_core.checkpoint.find import find
from dimoo_core.provenance import VERSION, fingerprint

from ..comfyhost import workflow
from ..comfyhost.client import Client, Refused, Workflow
from ..comfyhost.server import Server
from ..conftest import TINY


@pytest.fixture
def prompt(client: Client, object_info: dict[str, Any]) -> Workflow:
    """Text to image with ML-Cache settings of its own, by the tiny checkpoint; the server remembers none of it."""
    client.free(unload_models=False, free_memory=True)
    prompt = workflow.to_api(workflow.load("text-to-image-ml-cache"), object_info)
    prompt[workflow.node_of(prompt, "DimooLoader")]["inputs"]["checkpoint"] = TINY
    prompt[workflow.node_of(prompt, "DimooSampler")]["inputs"] |= {"seed": 2**63 + 77, "steps": 6}
    return prompt


def saved(client: Client, prompt: Workflow, **options: Any) -> Any:
    """The picture that a prompt saves, as its file holds it."""
    result = client.run(prompt, **options)
    assert result.status == "success", result.error()
    return client.picture(result.outputs[workflow.node_of(prompt, "SaveImage")]["images"][0])


def test_the_prompt_in_a_saved_picture_makes_it_again(client: Client, prompt: Workflow) -> None:
    picture = saved(client, prompt)
    client.free(unload_models=True, free_memory=True)  # so that nothing is remembered
    again = saved(client, json.loads(picture.info["prompt"]))
    assert np.array_equal(np.asarray(picture), np.asarray(again))
    assert again.info["dimoo"] == picture.info["dimoo"]


def test_a_saved_picture_tells_versions_and_the_checkpoint(server: Server, client: Client, prompt: Workflow) -> None:
    flow = workflow.load("text-to-image-ml-cache")
    picture = saved(client, prompt, extra={"extra_pnginfo": {"workflow": flow}})
    loader = workflow.node_of(prompt, "DimooLoader")
    files = find(server.folder / "models" / "dimoo" / TINY).files
    checkpoint = {"name": TINY, "fingerprint": fingerprint(files), "branches": "one by one"}
    told = {"version": VERSION, "torch": torch.__version__, "checkpoints": {loader: checkpoint}}
    assert json.loads(picture.info["dimoo"]) == told
    assert json.loads(picture.info["workflow"]) == flow


def test_so_does_one_whose_sampler_did_not_run_again(client: Client, prompt: Workflow) -> None:
    saved(client, prompt)
    prompt[workflow.node_of(prompt, "SaveImage")]["inputs"]["filename_prefix"] = "another"
    result = client.run(prompt)
    assert workflow.node_of(prompt, "DimooSampler") not in result.executed()
    picture = client.picture(result.outputs[workflow.node_of(prompt, "SaveImage")]["images"][0])
    told = json.loads(picture.info["dimoo"])
    assert told["version"] == VERSION
    assert [one["branches"] for one in told["checkpoints"].values()] == ["one by one"]


def test_pictures_without_our_nodes_are_left_alone(client: Client) -> None:
    plain = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "plain"}},
    }
    assert set(saved(client, plain).info) == {"prompt"}


def test_a_checkpoint_that_is_gone_is_named_by_the_loader(client: Client, prompt: Workflow) -> None:
    prompt[workflow.node_of(prompt, "DimooLoader")]["inputs"]["checkpoint"] = "gone"
    try:
        said = client.run(prompt).error()
    except Refused as refused:  # newer ComfyUIs check the list themselves
        said = str(refused)
    assert "gone" in said


@pytest.mark.parametrize("prompt", [None, [], "x", {}, {"1": None}, {"1": {"class_type": "DimooLoader"}}])
def test_what_is_no_prompt_is_refused_as_ever(client: Client, prompt: Any) -> None:
    assert client.post("prompt", {"prompt": prompt}).status_code in (400, 500)
    assert client.queue_length() == 0
