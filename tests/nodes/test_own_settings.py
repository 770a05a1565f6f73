"""Nodes as they come follow the checkpoint: -1 in a number, 0 px in a size; and what is said of a size far from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import dimoo_core
from dimoo_core.nano.judge import judge, matches
from dimoo_core.pictures.pixels import from_pil, to_pil

from .. import nodepack
from ..tiny import AUTOENCODER, TRANSFORMER, write_checkpoint

NODES = nodepack.nodes()
host = nodepack.part("nodes.host")
OWN = {
    "size": [64, 48],
    "side": 64,
    "steps": 4,
    "cfg": 1.5,
    "image_cfg": 2.5,
    "temperature": 0.5,
    "max_tokens": 24,
    "text_steps": 12,
    "block_length": 8,
}
TYPED = {"steps": 3, "cfg": 0.5, "image_cfg": 0.0, "temperature": 1.0}
TYPED_ANSWER = {"max_tokens": 12, "steps": 6, "block_length": 4}


def run(name: str, **inputs: Any) -> tuple:
    return nodepack.run(NODES[name], **inputs).args


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a table of its own, one of the published model's settings, and one with fewer codes."""
    folder = tmp_path_factory.mktemp("models")
    write_checkpoint(folder / "own", transformer=TRANSFORMER | {"dimoo_defaults": OWN})
    write_checkpoint(folder / "published", seed=1)
    fewer = {**TRANSFORMER["dimoo_token_ids"], "codebook_size": 16}
    transformer = {**TRANSFORMER, "vocab_size": TRANSFORMER["vocab_size"] - 16, "dimoo_token_ids": fewer}
    write_checkpoint(folder / "fewer", transformer=transformer, vq=AUTOENCODER | {"num_vq_embeddings": 16})
    return folder


@pytest.fixture(autouse=True)
def _only_these(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodepack.put_checkpoint(folder, monkeypatch)


@pytest.fixture(scope="module")
def own(folder: Path) -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        nodepack.put_checkpoint(folder, patch)
        model, vq = run("DimooLoader", checkpoint="own", weight_dtype="fp32")
        yield SimpleNamespace(model=model, vq=vq, python=dimoo_core.load(folder / "own", device="cpu", dtype="fp32"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stands on the node, one text after the other."""
    texts: list[str] = []
    monkeypatch.setattr(host, "show_text", lambda text, node: texts.append(text))
    monkeypatch.setattr(host, "_remarked", set())
    monkeypatch.setattr(host, "_logged", set())
    return texts


def painted(loaded: SimpleNamespace, text: str, canvas: Any = None, **settings: Any) -> Image.Image:
    """The picture of a graph of nodes as they come, but for what is given."""
    canvas = run("DimooEmptyCanvas", model=loaded.model)[0] if canvas is None else canvas
    prompt = run("DimooTextEncode", text=text)[0]
    filled = run("DimooSampler", model=loaded.model, prompt=prompt, canvas=canvas, **settings)[0]
    return to_pil(run("DimooVQDecode", vq=loaded.vq, canvas=filled)[0][0].movedim(-1, 0))


def test_a_graph_as_it_comes_paints_what_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    import comfy.utils

    totals: list[int] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: totals.append(total))
    wanted = "a large blue star on a pink background"
    picture = painted(SimpleNamespace(**dict(zip(("model", "vq"), run("DimooLoader"), strict=True))), wanted, seed=7)
    assert picture.size == (128, 128) and totals == [16] * 16 and said == []
    assert matches(judge(from_pil(picture)[0]).scene, wanted)


def test_the_same_graph_follows_the_checkpoint_that_is_loaded(own: SimpleNamespace) -> None:
    assert painted(own, "a fox", seed=3).size == (64, 48)
    assert painted(own, "a fox", seed=3).tobytes() == own.python.generate("a fox", seed=3)[0].tobytes()


@pytest.mark.parametrize("left_out", [*TYPED, None])
def test_minus_one_is_what_python_does_where_a_setting_is_left_out(own: SimpleNamespace, left_out: str | None) -> None:
    typed = {name: value for name, value in TYPED.items() if name != left_out}
    asked = {**typed, **({} if left_out is None else {left_out: -1})}
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    prompt, canvas, *_ = run("DimooImageEdit", vq=own.vq, image=picture, edit_type="edit_add", text="a fox", side=64)
    filled = run("DimooSampler", model=own.model, prompt=prompt, canvas=canvas, seed=5, **asked)[0]
    ours = to_pil(run("DimooVQDecode", vq=own.vq, canvas=filled)[0][0].movedim(-1, 0))
    (theirs,) = own.python.edit(picture[0].movedim(-1, 0), "a fox", type="edit_add", side=64, seed=5, **typed)
    assert ours.tobytes() == theirs.tobytes()
    settings, usual = own.python.image_settings(**typed), {**OWN, **typed}
    found = (settings.steps, settings.guidance.text, settings.guidance.image, settings.temperature)
    assert found == tuple(usual[name] for name in TYPED)


@pytest.mark.parametrize(
    "typed",
    [{}, TYPED_ANSWER, {"max_tokens": 10}, {"max_tokens": 24, "block_length": 12}, {"steps": 24}],
    ids=lambda typed: ", ".join(map("{0[0]} {0[1]}".format, typed.items())) or "nothing",
)
def test_an_answer_is_the_one_that_python_gives(own: SimpleNamespace, typed: dict) -> None:
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    asked = dict.fromkeys(TYPED_ANSWER, -1) | typed
    (answers,) = run("DimooDescribe", model=own.model, vq=own.vq, image=picture, question="what?", **asked)
    assert answers == [own.python.describe(picture[0].movedim(-1, 0), "what?", **typed)]


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, (64, 48)),
        ({"width": -1, "height": -16}, (64, 48)),
        ({"width": 96}, (96, 48)),
        ({"height": 32}, (64, 32)),
        ({"width": 16, "height": 32}, (16, 32)),
    ],
)
def test_a_canvas_of_no_size_has_the_checkpoints(own: SimpleNamespace, given: dict, size: tuple[int, int]) -> None:
    (canvas,) = run("DimooEmptyCanvas", model=own.model, **given)
    assert (canvas.codes.shape[2] * 16, canvas.codes.shape[1] * 16) == size
    assert run("DimooEmptyCanvas")[0].codes.shape == (1, 64, 64), "without a model that of the 8B"


@pytest.mark.parametrize(
    ("side", "with_model", "area"),
    [(-16, True, 55), (-1, True, 55), (-16, False, 1024), (0, True, 80), (128, True, 128)],
)
def test_a_crop_gets_the_size_that_suits_the_model(
    own: SimpleNamespace, side: int, with_model: bool, area: int
) -> None:
    mask = torch.zeros(1, 200, 200)
    mask[:, 80:120, 80:120] = 1
    model = {"model": own.model} if with_model else {}
    cut, *_ = run("DimooCropAroundMask", image=torch.rand(1, 200, 200, 3), mask=mask, side=side, **model)
    assert cut.shape[1] == cut.shape[2] == round(area / 16) * 16


def test_a_canvas_far_from_the_checkpoints_size_is_said_on_the_node_and_in_the_log(
    own: SimpleNamespace, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    sentence = (
        "The canvas is 256x128 px; own was made for about 64x48 px: connect model to DiMOO Empty Canvas, or type that "
        "size."
    )
    for _ in range(2):
        painted(own, "a fox", run("DimooEmptyCanvas", width=256, height=128)[0], steps=1)
    assert said == [sentence] * 2
    assert [one.getMessage() for one in caplog.records if "canvas" in one.getMessage()] == [f"DiMOO: {sentence}"]
    painted(own, "a fox", steps=1)
    assert said[2:] == [""], "it is taken away"
    painted(own, "a fox", steps=1)
    assert len(said) == 3, "and a node without a remark is left alone"


def test_what_to_do_about_a_size_depends_on_where_the_canvas_comes_from(own: SimpleNamespace, said: list[str]) -> None:
    picture = torch.rand(1, 128, 128, 3)
    prompt, canvas, *_ = run("DimooImageEdit", vq=own.vq, image=picture, edit_type="edit_add", text="x", side=128)
    run("DimooSampler", model=own.model, prompt=prompt, canvas=canvas, steps=1)
    mask = torch.zeros(1, 128, 128)
    mask[:, :32] = 1
    canvas, *_ = run("DimooMaskPaint", vq=own.vq, image=picture, mode="inpaint", mask=mask)
    said.clear()
    painted(own, "x", canvas, steps=1)
    assert said[-1].endswith(": scale the picture to about that size, or use DiMOO Crop Around Mask.")
    run(
        "DimooSampler",
        model=own.model,
        prompt=prompt,
        canvas=run("DimooEmptyCanvas", width=128, height=128)[0],
        steps=1,
    )
    assert said[-1].endswith(": set the side of DiMOO Image Edit to 0, or to a number near that.")


def test_a_vq_of_another_checkpoint_is_noticed(
    own: SimpleNamespace, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    picture = torch.rand(1, 64, 64, 3)
    _, published = run("DimooLoader", checkpoint="published")
    run("DimooDescribe", model=own.model, vq=published, image=picture, **TYPED_ANSWER)
    assert "the model is that of own, the VQ that of published" in caplog.text
    _, fewer = run("DimooLoader", checkpoint="fewer")
    asked = {"model": own.model, "vq": fewer, "image": picture}
    for node, rest in (("DimooDescribe", {}), ("DimooBestOf", {"prompt": run("DimooTextEncode", text="a fox")[0]})):
        with pytest.raises(ValueError, match="own knows 32 codes, the VQ of fewer has 16: connect model and vq of the"):
            run(node, **asked, **rest)
