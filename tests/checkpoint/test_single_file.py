"""Checkpoints in one file: found by content among whatever lies in a folder, refused in one sentence if broken."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dimoo_core.checkpoint.convert import convert
from dimoo_core.checkpoint.find import candidates, find
from dimoo_core.checkpoint.load import load_transformer

from ..tiny import AUTOENCODER, TABLE, TRANSFORMER, open_all, tokenizer_json, write_checkpoint

MATRIX = "model.transformer.blocks.0.q_proj"
QUANTISED = "_quantization_metadata"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("files")
    folder = write_checkpoint(place / "hub")
    for kind in ("bf16", "fp8", "int8"):
        convert(find(folder), place / f"{kind}.safetensors", kind)
    return {kind: place / f"{kind}.safetensors" for kind in ("bf16", "fp8", "int8")}


def ordinary_model(path: Path) -> Path:
    """What an ordinary diffusion model's file looks like."""
    save_file({"model.diffusion_model.input_blocks.0.weight": torch.zeros(4, 4)}, path, metadata={"format": "pt"})
    return path


# Finding ------------------------------------------------------------------------------------------------------------


def test_files_are_listed_by_content(files: dict[str, Path], tmp_path: Path) -> None:
    mine = tmp_path / "sub folder" / "Gr\u00f6\u00dfe.safetensors"
    mine.parent.mkdir()
    shutil.copy(files["fp8"], mine)
    link = tmp_path / "link.safetensors"
    link.symlink_to(files["int8"])
    folder = write_checkpoint(tmp_path / "hub")
    ordinary_model(tmp_path / "sdxl.safetensors")
    shutil.copy(files["bf16"], tmp_path / "renamed.bin")
    shutil.copy(files["bf16"], tmp_path / ".hidden.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04garbage")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "endless.safetensors").write_bytes(b"\xff" * 8 + b'"dimoo_format"')
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "dead.safetensors").symlink_to(tmp_path / "gone")
    assert candidates(tmp_path) == sorted([mine, link, folder])
    for path in (mine, link, mine.parent):
        assert find(path).table == TABLE


def test_a_cut_file_is_listed_and_choosing_it_says_what_is_wrong(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(files["fp8"].read_bytes()[:-100])
    assert candidates(tmp_path) == [path]
    with pytest.raises(ValueError, match=r"cut\.safetensors is cut short or garbled"):
        find(path)


def test_listing_reads_a_megabyte_of_a_file_at_most(files: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    huge = tmp_path / "huge.safetensors"
    with huge.open("wb") as file:
        file.write((90_000_000).to_bytes(8, "little"))
        os.truncate(huge, 95_000_000)
    asked: list[int] = []
    opened = Path.open

    def spy(path: Path, *how: str):
        file = opened(path, *how)
        read = file.read
        return type("Spy", (), {"__enter__": lambda self: self, "__exit__": lambda *_: file.close(),
                                "read": lambda self, size: asked.append(size) or read(size)})()  # fmt: skip

    monkeypatch.setattr(Path, "open", spy)
    assert candidates(tmp_path) == [] and 0 < sum(asked) <= 8 + (1 << 20)


def test_a_foreign_file_that_is_named_gets_an_answer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a whole checkpoint; give a checkpoint folder, or a file made by"):
        find(ordinary_model(tmp_path / "sdxl.safetensors"))


def test_a_folder_with_a_file_in_it_stands_for_the_file(files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(files["int8"], tmp_path / "one.safetensors")
    assert find(tmp_path).path == tmp_path / "one.safetensors"
    shutil.copy(files["bf16"], tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"holds several checkpoints; name one of .*one.*two"):
        find(tmp_path)


# Broken ones --------------------------------------------------------------------------------------------------------


def rewritten(change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> Callable[[Path], None]:
    """A break that changes tensors and metadata and leaves a proper safetensors file."""

    def apply(path: Path) -> None:
        state = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
        change(state, metadata)
        save_file(state, path, metadata=metadata)

    return apply


def settings(part: str, **changes: object) -> Callable[[Path], None]:
    def change(_state: dict, metadata: dict[str, str]) -> None:
        metadata[part] = json.dumps(json.loads(metadata[part]) | changes)

    return rewritten(change)


def layers(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(_state: dict, metadata: dict[str, str]) -> None:
        content = json.loads(metadata[QUANTISED])
        change(content["layers"])
        metadata[QUANTISED] = json.dumps(content)

    return rewritten(apply)


def text_tensor(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda at: at.write_bytes(at.read_bytes()[:9000]), "is cut short"),
    "cut in the header": (lambda at: at.write_bytes(at.read_bytes()[:2000]), "is cut short"),
    "a longer tail": (lambda at: at.open("ab").write(b"x" * 64), "is cut short or garbled"),
    "of a later version": (
        rewritten(lambda _, about: about.update(dimoo_format="3")),
        "dimoo_format = '3', expected '1' or '2'; update this pack",
    ),
    "a key missing": (
        rewritten(lambda state, _: state.pop("model.transformer.ln_f.weight")),
        "1 missing .model.transformer.ln_f.weight",
    ),
    "a key too many": (
        rewritten(lambda state, _: state.update({"lm_head.weight": torch.zeros(2)})),
        "1 unexpected .lm_head.weight",
    ),
    "a VQ key missing": (
        rewritten(lambda state, _: state.pop("vqvae.quant_conv.bias")),
        "1 missing .quant_conv.bias",
    ),
    "no scale": (rewritten(lambda state, _: state.pop(f"{MATRIX}.weight_scale")), "lacks its weight or weight_scale"),
    "a scale of another shape": (
        rewritten(lambda state, _: state.update({f"{MATRIX}.weight_scale": torch.ones(7)})),
        r"weight_scale in .* is F32 \[7\], but float8_e4m3fn has F32 \[\]",
    ),
    "a scale of another dtype": (
        rewritten(lambda state, _: state.update({f"{MATRIX}.weight_scale": torch.ones((), dtype=torch.float16)})),
        r"is F16 \[\], but float8_e4m3fn has F32 \[\]",
    ),
    "a quantised matrix of another dtype": (
        rewritten(lambda state, _: state.update({f"{MATRIX}.weight": torch.zeros(32, 32)})),
        "is F32 .32, 32., but float8_e4m3fn has F8_E4M3",
    ),
    "a quantised matrix of another shape": (
        rewritten(lambda state, _: state.update({f"{MATRIX}.weight": torch.zeros(32, 16).to(torch.float8_e4m3fn)})),
        "has shape .32, 16., but its config.json says .32, 32.",
    ),
    "a quantised matrix with three sides": (
        rewritten(lambda state, _: state.update({f"{MATRIX}.weight": torch.zeros(2, 2, 2).to(torch.float8_e4m3fn)})),
        "but float8_e4m3fn has",
    ),
    "no word of what is quantised": (rewritten(lambda _, about: about.pop(QUANTISED)), "is stored as F8_E4M3"),
    "a layer forgotten": (layers(lambda named: named.pop(MATRIX)), "is stored as F8_E4M3"),
    "a format nobody knows": (
        layers(lambda named: named.update({MATRIX: {"format": "nvfp4"}})),
        "q_proj is quantised as 'nvfp4'; known formats are float8_e4m3fn, int8_tensorwise",
    ),
    "a field nobody knows": (
        layers(lambda named: named.update({MATRIX: {"format": "float8_e4m3fn", "transposed": True}})),
        "quantised with transposed; known fields are convrot, convrot_groupsize, format, full",
    ),
    "a rotated matrix of fp8": (
        layers(lambda named: named.update({MATRIX: {"format": "float8_e4m3fn", "convrot": True}})),
        "q_proj is rotated as float8_e4m3fn in groups of 256; known is int8_tensorwise in powers of 4",
    ),
    "a format that is a list": (layers(lambda named: named.update({MATRIX: {"format": [1]}})), r"quantised as \[1\]"),
    "a layer that is a word": (layers(lambda named: named.update({MATRIX: "fp8"})), "quantised as 'fp8'"),
    "layers that are a list": (
        rewritten(lambda _, about: about.update({QUANTISED: '{"layers": []}'})),
        "names no layers",
    ),
    "layers that are no JSON": (rewritten(lambda _, about: about.update({QUANTISED: "{"})), "is not usable JSON"),
    "a layer that is not there": (
        layers(lambda named: named.update({"model.x": {"format": "float8_e4m3fn"}})),
        "model.x is quantised, but lacks",
    ),
    "a quantised embedding": (
        rewritten(
            lambda state, about: (
                state.update({"model.transformer.wte.weight_scale": torch.ones(())}),
                state.update(
                    {"model.transformer.wte.weight": state["model.transformer.wte.weight"].to(torch.float8_e4m3fn)}
                ),
                about.update(
                    {
                        QUANTISED: about[QUANTISED].replace(
                            '{"model', '{"model.transformer.wte": {"format": "float8_e4m3fn"}, "model', 1
                        )
                    }
                ),
            )
        ),
        "which only the matrices of the blocks can be",
    ),
    "a quantised VQ": (
        layers(lambda named: named.update({"vqvae.quant_conv": {"format": "int8_tensorwise"}})),
        "which a VQ never is",
    ),
    "another model": (settings("config.json", model_type="llama"), "model_type = 'llama'"),
    "a config of the moon": (settings("config.json", n_layers=10**9), "n_layers = 1000000000"),
    "a config without end": (
        rewritten(lambda _, about: about.update({"config.json": "[" * (2 << 20)})),
        "config.json in .* has more than 1048576 characters|is not a whole checkpoint",  # if the mark comes behind it
    ),
    "a config of a deep nest": (
        rewritten(lambda _, about: about.update({"vqvae/config.json": "[" * 10**5})),
        "vqvae/config.json in .* is not usable JSON",
    ),
    "no config": (rewritten(lambda _, about: about.pop("config.json")), "config.json in .* is not usable JSON"),
    "a config that is a list": (rewritten(lambda _, about: about.update({"config.json": "[]"})), "expected an object"),
    "ids of the released model": (settings("config.json", dimoo_token_ids=None), "dimoo_token_ids = None"),
    "a VQ of another scale": (
        settings("vqvae/config.json", block_out_channels=AUTOENCODER["block_out_channels"][1:]),
        "has 8 px per code",
    ),
    "no tokenizer": (rewritten(lambda state, _: state.pop("tokenizer.json")), "has no tokenizer.json in it"),
    "a tokenizer of numbers": (
        rewritten(lambda state, _: state.update({"tokenizer.json": torch.zeros(9)})),
        "has no tokenizer.json in it",
    ),
    "a tokenizer of noise": (
        rewritten(lambda state, _: state.update({"tokenizer.json": torch.full((9,), 255, dtype=torch.uint8)})),
        "tokenizer.json in .* is not a usable tokenizer",
    ),
    "a tokenizer that splits </user>": (
        rewritten(lambda state, _: state.update({"tokenizer.json": text_tensor(tokenizer_json({"</system>": 256}))})),
        "splits '</user>'",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_file_is_refused_in_one_sentence(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(files["fp8"], path)
    open_all(path)
    breakage, wanted = BREAKS[name]
    breakage(path)
    with pytest.raises(ValueError) as caught:
        open_all(path)
    message = str(caught.value)
    assert re.search(wanted, message) and str(path) in message, message
    assert "\n" not in message and len(message) < 600 and message.endswith("."), message
    assert not re.search(r"[.!?] [A-Z]", message.replace(str(path), "")), f"more than one sentence: {message}"


def test_training_goes_on_from_a_quantised_file(files: dict[str, Path]) -> None:
    """What is asked for in fp32 has nothing but fp32, which can learn."""
    model = load_transformer(find(files["int8"]), dtype=torch.float32, dequantised=True).requires_grad_(True)
    model(torch.arange(8)[None]).sum().backward()
    assert all(part.grad is not None for part in model.blocks.parameters())
    assert len(list(model.parameters())) == 9 * TRANSFORMER["n_layers"] + 5
