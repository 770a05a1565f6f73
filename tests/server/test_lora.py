"""DiMOO LoRA in a real ComfyUI: what it changes, what it leaves as it was, and what is told of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dimoo_core.provenance import fingerprint

from ..comfyhost import expect, workflow
from ..comfyhost.client import Client, Workflow
from ..comfyhost.server import Server
from ..lora_files import word_lora, write_lora

RED = "a large red circle on the left on a white background"


@pytest.fixture
def files(server: Server) -> Iterator[list[Path]]:
    """Two LoRAs in the server's folder: `red` is blue, and `circle`, in a sub-folder, is star."""
    folder = server.folder / "models" / "loras"
    paths = [
        write_lora(folder / "red is blue.safetensors", word_lora("red", "blue")),
        write_lora(folder / "shapes" / "star.safetensors", word_lora("circle", "star")),
    ]
    yield paths
    for path in paths:
        path.unlink()


@pytest.fixture
def prompt(object_info: dict[str, Any]) -> Workflow:
    """Text to image with nano."""
    prompt = workflow.to_api(workflow.load("text-to-image"), object_info)
    prompt[workflow.node_of(prompt, "DimooTextEncode")]["inputs"]["text"] = RED
    return prompt


def with_lora(prompt: Workflow, key: str, lora: str, strength: float = 1.0) -> Workflow:
    """The prompt with a LoRA between the sampler and where its model came from."""
    sampler = workflow.node_of(prompt, "DimooSampler")
    inputs = {**prompt[sampler]["inputs"], "model": [key, 0]}
    lora_inputs = {"model": prompt[sampler]["inputs"]["model"], "lora": lora, "strength": strength}
    added = {sampler: {**prompt[sampler], "inputs": inputs}, key: {"class_type": "DimooLora", "inputs": lora_inputs}}
    return {**prompt, **added}


def painted(client: Client, prompt: Workflow) -> Image.Image:
    """The picture that a prompt saves; ComfyUI remembers nothing of earlier ones."""
    client.free(unload_models=False, free_memory=True)
    result = client.run(prompt)
    assert result.status == "success", result.error()
    return client.picture(result.outputs[workflow.node_of(prompt, "SaveImage")]["images"][0])


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def seen(picture: Image.Image) -> tuple[str, str]:
    scene = expect.judged(np.asarray(picture.convert("RGB"))).scene
    return scene.figure.colour, scene.figure.shape


def test_a_lora_changes_the_picture_and_without_it_all_is_as_before(
    client: Client, prompt: Workflow, files: list[Path]
) -> None:
    before, base = [path.read_bytes() for path in files], painted(client, prompt)
    taught = with_lora(prompt, "lora", "red is blue.safetensors")
    first = painted(client, taught)
    assert (seen(base), seen(first)) == (("red", "circle"), ("blue", "circle"))
    assert same(painted(client, taught), first)
    assert same(painted(client, with_lora(prompt, "lora", "red is blue.safetensors", 0.0)), base)
    assert same(painted(client, prompt), base), "a node that is bypassed is left out of what the page sends"
    assert [path.read_bytes() for path in files] == before


def test_with_and_without_in_one_graph_and_two_in_any_order(
    client: Client, prompt: Workflow, files: list[Path]
) -> None:
    names = ["red is blue.safetensors", "shapes\\star.safetensors"]  # the second as a page on Windows saves it
    one, other = (with_lora(with_lora(prompt, "1st", a), "2nd", b) for a, b in (names, reversed(names)))
    both = painted(client, one)
    assert seen(both) == ("blue", "star") and same(painted(client, other), both)
    sampler, decode, save = (workflow.node_of(one, kind) for kind in ("DimooSampler", "DimooVQDecode", "SaveImage"))
    plain = {**one[sampler], "inputs": {**one[sampler]["inputs"], "model": prompt[sampler]["inputs"]["model"]}}
    again = {
        "plain": plain,
        "plain decode": {**one[decode], "inputs": {**one[decode]["inputs"], "canvas": ["plain", 0]}},
        "plain save": {**one[save], "inputs": {**one[save]["inputs"], "images": ["plain decode", 0]}},
    }
    client.free(unload_models=False, free_memory=True)
    result = client.run({**one, **again})
    pictures = [client.picture(result.outputs[key]["images"][0]) for key in (save, "plain save")]
    assert [seen(picture) for picture in pictures] == [("blue", "star"), ("red", "circle")]
    told = json.loads(pictures[0].info["dimoo"])["loras"]
    assert told["2nd"] == {"name": names[1], "fingerprint": fingerprint(files[1:]), "strength": 1.0}


def test_a_replaced_file_is_read_again(client: Client, prompt: Workflow, files: list[Path]) -> None:
    taught = with_lora(prompt, "lora", "red is blue.safetensors")
    assert seen(painted(client, taught))[0] == "blue"
    write_lora(files[0], word_lora("red", "green"))
    result = client.run(taught)
    assert "lora" in result.executed()
    assert seen(client.picture(result.outputs[workflow.node_of(taught, "SaveImage")]["images"][0]))[0] == "green"


def test_unloaded_with_the_model_it_comes_back_with_it(client: Client, prompt: Workflow, files: list[Path]) -> None:
    def loaded() -> list[str]:
        return client.get("dimoo-probe").json()["models"]

    taught, deadline = with_lora(prompt, "lora", "red is blue.safetensors"), time.monotonic() + 10
    assert seen(painted(client, taught))[0] == "blue" and {"Transformer", "Adapter"} <= set(loaded())
    client.free(unload_models=True)
    while loaded() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert loaded() == []
    taught[workflow.node_of(taught, "DimooSampler")]["inputs"]["steps"] = 15
    result = client.run(taught)
    assert result.status == "success" and "lora" not in result.executed(), "what was read is kept"
    assert seen(client.picture(result.outputs[workflow.node_of(taught, "SaveImage")]["images"][0]))[0] == "blue"
    assert "Adapter" in loaded()


def test_what_is_left_over_stands_in_the_history(client: Client, prompt: Workflow, files: list[Path]) -> None:
    state = word_lora("red", "blue")
    write_lora(files[0], {**state, "text_encoder.fc1.lora_down.weight": next(iter(state.values())).clone()})
    result = client.run(with_lora(prompt, "lora", "red is blue.safetensors"))
    assert result.status == "success"
    assert "text_encoder.fc1.lora_down.weight" in " ".join(result.outputs["lora"]["text"])
