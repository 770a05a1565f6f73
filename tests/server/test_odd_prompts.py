"""Prompts that are not whole: one output alone, a node muted or bypassed, inputs missing or of the wrong kind. All of a
graph in which every node of the pack has a part."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from ..comfyhost import workflow
from ..comfyhost.client import Client, Refused, Result, Workflow
from ..comfyhost.server import Server
from ..conftest import TINY

PLACE = "odd-prompts"
MODEL, VQ, PICTURE, WORDS = ["loader", 0], ["loader", 1], ["picture", 0], ["words", 0]
ANSWER = {"question": "describe the picture", "max_tokens": 32, "steps": 4, "block_length": 32}
QUICK = {"seed": 1, "steps": 2, "cfg": 0.0, "image_cfg": 0.0}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def painted(canvas: list[Any], prompt: list[Any], model: list[Any], name: str) -> Workflow:
    """A canvas filled and decoded."""
    return {
        f"{name} sampled": node("DimooSampler", model=model, prompt=prompt, canvas=canvas, **QUICK),
        f"{name} decoded": node("DimooVQDecode", vq=VQ, canvas=[f"{name} sampled", 0]),
    }


PARTS: Workflow = {  # but for the widgets that stay as they are
    "loader": node("DimooLoader"),
    "picture": node("EmptyImage", width=128, height=128, batch_size=1, color=0xFF0000),
    "nothing": node("SolidMask", value=0.0, width=128, height=128),
    "spot": node("SolidMask", value=1.0, width=48, height=48),
    "mask": node("MaskComposite", destination=["nothing", 0], source=["spot", 0], x=32, y=32, operation="add"),
    "text": node("StringConcatenate", string_a="a red", string_b="circle", delimiter=" "),
    "words": node("DimooTextEncode", text="a red circle"),
    # text to image, with a LoRA
    "train": node(
        "DimooTrainLora",
        **{"model": MODEL, "vq": VQ, "folder": "none", "images": PICTURE, "texts": ["text", 0], "name": PLACE},
        **{"steps": 1, "rank": 2, "sample_every": 0, "warm_up": 0},
    ),
    "lora": node("DimooLora", model=MODEL, lora="none", lora_model=["train", 0]),
    "canvas": node("DimooEmptyCanvas", width=128, height=128, batch_size=2),
    "cache": node("DimooCacheSettings"),
    **painted(["canvas", 0], WORDS, ["lora", 0], "new"),
    "saved": node("SaveImage", images=["new decoded", 0], filename_prefix=f"{PLACE}/new"),
    "sheet": node("DimooContactSheet", image=["new decoded", 0]),
    "sheet shown": node("PreviewImage", images=["sheet", 0]),
    # an edit
    "edit": node("DimooImageEdit", vq=VQ, image=PICTURE, edit_type="edit_replace", text="make it blue", side=128),
    **painted(["edit", 1], ["edit", 0], MODEL, "edit"),
    "edit shown": node("PreviewImage", images=["edit decoded", 0]),
    # a part of a picture
    "crop": node("DimooCropAroundMask", image=PICTURE, mask=["mask", 0], side=128),
    "hole": node("DimooMaskPaint", vq=VQ, image=["crop", 0], mask=["crop", 1]),
    **painted(["hole", 0], WORDS, MODEL, "hole"),
    "stitch": node("DimooStitch", crop=["crop", 2], image=["hole decoded", 0], mask=["hole", 1]),
    "stitch shown": node("PreviewImage", images=["stitch", 0]),
    # there and back
    "codes": node("DimooVQEncode", vq=VQ, image=PICTURE),
    "back": node("DimooVQDecode", vq=VQ, canvas=["codes", 0]),
    "back shown": node("PreviewImage", images=["back", 0]),
    # words
    "answer": node("DimooDescribe", model=MODEL, vq=VQ, image=["new decoded", 0], **ANSWER),
    "answer saved": node("DimooSaveText", text=["answer", 0], filename_prefix=f"{PLACE}/new"),
    "best": node("DimooBestOf", model=MODEL, vq=VQ, image=["new decoded", 0], prompt=WORDS, judge_by="description"),
    "captions": node("DimooCaptionFolder", model=MODEL, vq=VQ, folder=PLACE, again=False, **ANSWER),
    "captions saved": node("DimooSaveText", text=["captions", 0], filename_prefix=f"{PLACE}/new"),
}
PARTS["new sampled"]["inputs"]["cache"] = ["cache", 0]
OURS = [key for key, content in PARTS.items() if content["class_type"].startswith("Dimoo")]
OF_EACH_KIND = {PARTS[key]["class_type"]: key for key in reversed(OURS)}


@pytest.fixture(scope="module", autouse=True)
def places(server: Server) -> Iterator[None]:
    """A picture for Caption Folder; what a graph leaves behind is gone at the end."""
    made = [server.folder / "input" / PLACE, server.folder / "output" / PLACE]
    made[0].mkdir()
    Image.new("RGB", (128, 128), "red").save(made[0] / "a.png")
    yield
    for folder in (*made, server.folder / "output" / "dimoo" / "train" / PLACE):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (server.folder / "models" / "loras").glob(f"{PLACE}*"):
        file.unlink()


@pytest.fixture(scope="module")
def graph(object_info: dict[str, Any]) -> Workflow:
    def whole(content: dict[str, Any]) -> dict[str, Any]:
        widgets = {name: value for name, value in workflow.widgets(object_info[content["class_type"]]) if name}
        return {**content, "inputs": widgets | content["inputs"]}

    return {key: whole(content) for key, content in PARTS.items()}


def with_sources(prompt: Workflow, key: str) -> Workflow:
    """A node with all that it uses."""
    links = [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    found = {key: prompt[key]}
    for source in links:
        found |= with_sources(prompt, source)
    return found


def shown(prompt: Workflow, object_info: dict[str, Any], key: str) -> Workflow:
    """A node with all that it uses, and one more that wants its first result unless it is one that ends a graph."""
    ends = object_info[prompt[key]["class_type"]]["output_node"]
    return with_sources(prompt, key) | ({} if ends else {"shown": node("PreviewAny", source=[key, 0])})


def without(prompt: Workflow, key: str, instead: Callable[[int, str, str], Any]) -> Workflow:
    """The prompt without a node. What used its output N as the input NAME of a node of KIND gets `instead` of them, or
    nothing where that is None."""

    def rerouted(content: dict[str, Any]) -> dict[str, Any]:
        kept = {}
        for name, value in content["inputs"].items():
            gone = isinstance(value, list) and value[0] == key
            kept[name] = instead(value[1], content["class_type"], name) if gone else value
        return {**content, "inputs": {name: value for name, value in kept.items() if value is not None}}

    return {name: rerouted(content) for name, content in prompt.items() if name != key}


def muted(prompt: Workflow, _: dict[str, Any], key: str) -> Workflow:
    return without(prompt, key, lambda *_: None)


def bypassed(prompt: Workflow, object_info: dict[str, Any], key: str) -> Workflow:
    """As the page makes it: an output becomes the input with its number if that has the type which is wanted, else the
    first one that has."""
    inputs, kinds = prompt[key]["inputs"], types(object_info[prompt[key]["class_type"]])

    def instead(slot: int, kind: str, name: str) -> Any:
        wanted = types(object_info[kind])[name]
        first = [one for number, one in enumerate(kinds) if number == slot] + list(kinds)
        return inputs.get(next((one for one in first if wanted in ("*", kinds[one])), ""))

    return without(prompt, key, instead)


def types(about: dict[str, Any]) -> dict[str, str]:
    """The types of a node's inputs by their names, in order."""
    return {
        name: about["input"][group][name][0]
        for group in ("required", "optional")
        for name in about["input_order"].get(group, [])
    }


def is_plain(result: Result) -> bool:
    """Whether a run went well, or ended with a sentence of ours."""
    kinds = {event.data["exception_type"] for event in result.named("execution_error")}
    return result.status == "success" or (kinds == {"ValueError"} and "\n" not in result.error())


def traceback_of(refused: Refused) -> str:
    """What the server caught while it checked a prompt."""
    found = [error["extra_info"] for one in refused.errors.values() for error in one["errors"]]
    return "".join(line for extra in found for line in extra.get("traceback", []))


def test_every_node_of_the_pack_has_its_part(client: Client, graph: Workflow, object_info: dict[str, Any]) -> None:
    assert set(OF_EACH_KIND) == {name for name in object_info if name.startswith("Dimoo")}
    result = client.run(graph)
    assert result.status == "success", result.error()


@pytest.mark.parametrize("change", [muted, bypassed])
@pytest.mark.parametrize("key", OURS)
def test_a_muted_or_bypassed_node_breaks_no_other(
    client: Client, graph: Workflow, object_info: dict[str, Any], key: str, change: Any
) -> None:
    """ComfyUI runs what is still whole and refuses the rest in words of its own."""
    try:
        result = client.run(change(graph, object_info, key))
    except Refused as refused:
        assert key == "loader", "all of the graph hangs on that one"
        assert "Required input is missing" in str(refused) and not traceback_of(refused)
    else:
        assert is_plain(result), result.error()
        assert result.status == "success" or key == "train", "of a LoRA that is not there the next node speaks"


def test_texts_are_saved_where_the_pictures_of_their_prefix_cannot_be(client: Client, graph: Workflow) -> None:
    """Save Text waits for Save Image, and would make the server run one that it has refused."""
    canvas = graph["canvas"]
    captions = with_sources(graph, "captions saved")
    result = client.run({**muted(with_sources(graph, "saved"), {}, "canvas"), **captions})
    assert result.status == "success", result.error()
    assert "captions saved" in result.outputs and "saved" not in result.outputs
    whole = client.run({**with_sources(graph, "saved"), **captions, "canvas": canvas})
    assert whole.status == "success" and {"captions saved", "saved"} <= set(whole.outputs)


def test_each_output_node_runs_alone(client: Client, graph: Workflow, object_info: dict[str, Any]) -> None:
    """The page's "run this node" names one output of the whole graph."""
    for key in [key for key in OURS if object_info[graph[key]["class_type"]]["output_node"]]:
        result = client.run(graph, targets=[key])
        assert result.status == "success", result.error()
        assert key in result.outputs and set(result.outputs) <= set(with_sources(graph, key))


@pytest.mark.parametrize("kind", sorted(OF_EACH_KIND))
def test_what_an_api_sends_wrong_is_refused_or_one_sentence(
    client: Client, graph: Workflow, object_info: dict[str, Any], kind: str
) -> None:
    """Missing inputs, objects in place of names and sockets, and NaN, which JSON in Python knows and no bound keeps
    out. Of an object ComfyUI itself makes words, or yes."""
    key, kinds = OF_EACH_KIND[kind], types(object_info[kind])
    whole = shown(graph, object_info, key)
    whole["loader"] = {**graph["loader"], "inputs": {**graph["loader"]["inputs"], "checkpoint": TINY}}
    inputs = whole[key]["inputs"]
    wrong = [{}, *({**inputs, name: {"a": 1}} for name, type in kinds.items() if type not in ("STRING", "BOOLEAN"))]
    wrong += [{**inputs, name: float("nan")} for name, type in kinds.items() if type == "FLOAT"]
    for given in wrong:
        try:
            result = client.run({**whole, key: {**whole[key], "inputs": given}})
        except Refused as refused:
            assert "dimoo" not in traceback_of(refused), given
        else:
            assert is_plain(result), (given, result.error())
