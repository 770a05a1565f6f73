"""DiMOO Train LoRA in a real ComfyUI: taught there, saved by ComfyUI's own nodes, used by ours, and cancelled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dimoo_core.nano.scenes import Scene, draw
from dimoo_core.pictures.pixels import to_pil
from dimoo_core.training.run_log import read_log

from ..comfyhost import workflow
from ..comfyhost.client import Client, Event, Workflow
from ..comfyhost.server import Server
from .test_lora import painted, same, with_lora

STEPS = 4
CAPTIONS = ("a sks star", "sks")


@pytest.fixture
def folders(server: Server) -> Iterator[Path]:
    """input/stars with two pictures and their texts; what a test leaves of a LoRA goes away after it."""
    folder, loras, output = (server.folder / name for name in ("input/stars", "models/loras", "output"))
    folder.mkdir()

    def there() -> set[Path]:
        return {*loras.glob("*"), *output.glob("*"), *output.glob("dimoo/train/*")}

    before = there()
    for number, text in enumerate(CAPTIONS):
        picture = to_pil(draw(Scene.one("black", "star", "yellow", "large", "in the middle"), 128, 128))
        picture.rotate(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text)
    yield server.folder
    for made in sorted({folder} | there() - before, reverse=True):
        shutil.rmtree(made) if made.is_dir() else made.unlink()


@pytest.fixture
def prompt(object_info: dict[str, Any]) -> Workflow:
    """Text to image with nano, with the LoRA that is taught in the same graph of input/stars."""
    prompt = workflow.to_api(workflow.load("text-to-image"), object_info)
    prompt[workflow.node_of(prompt, "DimooTextEncode")]["inputs"]["text"] = "a sks star"
    loader = workflow.node_of(prompt, "DimooLoader")
    values = {name: default for name, default in workflow.widgets(object_info["DimooTrainLora"]) if name}
    values |= {"folder": "stars", "steps": STEPS, "rank": 4, "learning_rate": 0.01, "warm_up": 0, "sample_every": 2}
    train = {"class_type": "DimooTrainLora", "inputs": {"model": [loader, 0], "vq": [loader, 1], **values}}
    taught = {**with_lora(prompt, "lora", "none"), "train": train}
    taught["lora"]["inputs"]["lora_model"] = ["train", 0]
    return taught


def changed(prompt: Workflow, **inputs: Any) -> Workflow:
    """The prompt with other inputs of Train LoRA."""
    return {**prompt, "train": {**prompt["train"], "inputs": {**prompt["train"]["inputs"], **inputs}}}


def test_a_lora_is_taught_of_a_folder_saved_by_comfyui_and_used_by_ours(
    client: Client, folders: Path, prompt: Workflow
) -> None:
    theirs = {
        "save": {"class_type": "SaveLoRA", "inputs": {"lora": ["train", 0], "prefix": "mine", "steps": ["train", 2]}},
        "graph": {"class_type": "LossGraphNode", "inputs": {"loss": ["train", 1], "filename_prefix": "loss"}},
    }
    client.free(unload_models=False, free_memory=True)
    result = client.run({**prompt, **theirs})
    assert result.status == "success", result.error()
    saved = workflow.node_of(prompt, "SaveImage")
    taught = client.picture(result.outputs[saved]["images"][0])
    assert client.picture(result.outputs["graph"]["images"][0]).width > 600, "the curve"
    assert result.steps("train")[-1] == STEPS
    previews = [event for event in result.named("preview") if event.data.get("node_id") == "train"]
    assert len(previews) == 3 * (2 * 16 + 1), "of two samples at steps 0, 2 and 4, and both side by side"
    sheet, curve = (client.picture(image) for image in result.outputs["train"]["images"])
    assert sheet.height > 3 * 128 and curve.width > curve.height
    said = " ".join(result.outputs["train"]["text"])
    assert "stars holds 2 pictures" in said and "it moves the logits by" in said
    ours, core = folders / "models/loras/my-lora.safetensors", folders / f"output/mine_{STEPS}_steps_00001_.safetensors"
    assert load_file(ours).keys() == load_file(core).keys()
    core.rename(folders / "models/loras/theirs.safetensors")
    plain = {key: one for key, one in prompt.items() if key != "train"}
    for file in ("my-lora.safetensors", "theirs.safetensors"):
        asked = {"model": prompt["lora"]["inputs"]["model"], "lora": file, "strength": 1.0}
        plain["lora"] = {**prompt["lora"], "inputs": asked}
        assert same(painted(client, plain), taught)
    plain["lora"]["inputs"]["strength"] = 0.0
    assert not same(painted(client, plain), taught)


def test_pictures_and_texts_come_from_comfyuis_own_loader_too(client: Client, folders: Path, prompt: Workflow) -> None:
    lists = {"class_type": "LoadImageTextDataSetFromFolder", "inputs": {"folder": "stars"}}
    asked = {"folder": "none", "images": ["data", 0], "texts": ["data", 1], "name": "of lists", "sample_every": 0}
    result = client.run({**changed(prompt, **asked), "data": lists})
    assert result.status == "success", result.error()
    assert (folders / "models/loras/of lists.safetensors").is_file()
    refused = client.run({**changed(prompt, **asked | {"folder": "stars"}), "data": lists})
    assert "the node has both" in refused.error()


def test_a_cancel_keeps_what_was_learnt_and_the_next_prompt_goes_on(
    client: Client, folders: Path, prompt: Workflow
) -> None:
    long = changed(prompt, steps=500, sample_every=0)

    def cancel(event: Event) -> None:
        if event.name == "progress" and event.data.get("node") == "train" and event.data["max"] == 500:
            client.interrupt()

    result = client.run(long, on_event=cancel)
    assert result.status == "interrupted" and result.error() == ""
    file, log = folders / "models/loras/my-lora.safetensors", folders / "output/dimoo/train/my-lora/log.jsonl"
    steps = len(read_log(log))
    assert 0 < steps < 20 and any(bool(one.any()) for name, one in load_file(file).items() if "lora_B" in name)
    result = client.run(changed(prompt, steps=steps + 2, sample_every=0))
    assert result.status == "success", result.error()
    assert [line["step"] for line in read_log(log)] == list(range(1, steps + 3))
    assert f"continues after step {steps}" in " ".join(result.outputs["train"]["text"])
