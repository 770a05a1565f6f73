"""Broken checkpoints: each is refused with one sentence that names the file, and nothing of it is executed."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dimoo_core.checkpoint.find import find
from dimoo_core.checkpoint.load import load_transformer, read_transformer

from ..tiny import AUTOENCODER, SPECIALS, TABLE, TRANSFORMER, open_all, tokenizer_json, write_checkpoint

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
VQ_FILE = "vqvae/diffusion_pytorch_model.safetensors"
NORM = "model.transformer.ln_f.weight"


class Trap:
    """Unpickling this makes a file: so a test can see that nobody did."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_state(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def move(old: str, new: str) -> Callable[[dict], object]:
    return lambda state: state.update({new: state.pop(old)})


def replace(name: str, tensor: torch.Tensor) -> Callable[[dict], object]:
    return lambda state: state.update({name: tensor})


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def header(path: Path, content: dict, data: bytes = b"", length: int | None = None) -> None:
    """A file with this safetensors header; `length` is what it claims the header's length to be."""
    text = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def complaint(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        open_all(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600, message
    assert message.endswith(".") and not re.search(r"[.!?] [A-Z]", message), f"more than one sentence: {message}"
    return message


def without_attention_of_block_1(state: dict[str, torch.Tensor]) -> None:
    for part in ("q_proj", "k_proj", "v_proj", "attn_out", "attn_norm"):
        del state[f"model.transformer.blocks.1.{part}.weight"]


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "does not exist"),
    "no config.json": (lambda at: (at / "config.json").unlink(), "no config.json"),
    "config.json cut": (lambda at: cut(at / "config.json", 40), "config.json is not usable JSON"),
    "config.json a list": (lambda at: (at / "config.json").write_text("[1]"), "expected an object"),
    "config.json a deep nest": (lambda at: (at / "config.json").write_text("[" * 10**5), "not usable JSON"),
    "config.json a huge number": (lambda at: (at / "config.json").write_text('{"d_model": 1' + "0" * 5000), "JSON"),
    "config.json bytes": (lambda at: (at / "config.json").write_bytes(b"\xff\xfe\x00"), "not usable JSON"),
    "config.json a memory bomb": (lambda at: os.truncate(at / "config.json", 2**33), "more than 1048576 bytes"),
    "config.json a folder": (
        lambda at: ((at / "config.json").unlink(), (at / "config.json").mkdir()),
        "config.json is not a file",
    ),
    "another model": (
        lambda at: edit_json(at / "config.json", model_type="llama"),
        "= 'llama'; expected 'llada'",
    ),
    "no model_type": (lambda at: edit_json(at / "config.json", model_type=None), "model_type = None"),
    "ids not a table": (lambda at: edit_json(at / "config.json", dimoo_token_ids=[1]), "dimoo_token_ids"),
    "defaults unknown": (
        lambda at: edit_json(at / "config.json", dimoo_defaults={"stepz": 3}),
        "dimoo_defaults names 'stepz'; there are size, side",
    ),
    "defaults of another kind": (
        lambda at: edit_json(at / "config.json", dimoo_defaults={"steps": 3, "size": [128]}),
        r"size = \[128\]; expected a value like \(1024, 1024\)",
    ),
    "defaults below zero": (
        lambda at: edit_json(at / "config.json", dimoo_defaults={"cfg": -0.5}),
        "cfg = -0.5; expected a value like 4.0",
    ),
    "defaults a number": (lambda at: edit_json(at / "config.json", dimoo_defaults=7), "dimoo_defaults = 7"),
    "ids incomplete": (lambda at: edit_json(at / "config.json", dimoo_token_ids={"mask": 1}), "lacks"),
    "ids of the released model": (
        lambda at: (at / "config.json").write_text(json.dumps({**TRANSFORMER, "dimoo_token_ids": None})),
        "dimoo_token_ids = None",
    ),
    "vocabulary too small": (lambda at: edit_json(at / "config.json", vocab_size=290), "vocabulary has 290 rows"),
    "config wider than the files": (lambda at: edit_json(at / "config.json", d_model=64), "has shape"),
    "config asks for the moon": (lambda at: edit_json(at / "config.json", n_layers=10**9), "n_layers = 1000000000"),
    "config asks for a wide moon": (lambda at: edit_json(at / "config.json", mlp_hidden_size=10**15), "mlp_hidden"),
    "no weights": (lambda at: (at / WEIGHTS).unlink(), "has no weights"),
    "weights cut": (lambda at: cut(at / WEIGHTS, 5000), "model.safetensors is cut short or garbled: it has 5000 bytes"),
    "weights cut in the header": (lambda at: cut(at / WEIGHTS, 100), "is cut short"),
    "weights empty": (lambda at: cut(at / WEIGHTS, 0), "is cut short"),
    "weights too long": (lambda at: (at / WEIGHTS).open("ab").write(b"x" * 64), "model.safetensors"),
    "weights a Git LFS pointer": (
        lambda at: (at / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "Git LFS pointer",
    ),
    "weights a web page": (lambda at: (at / WEIGHTS).write_text("<!DOCTYPE html><html>not found</html>"), "web page"),
    "weights noise": (
        lambda at: (at / WEIGHTS).write_bytes(b"\x10" + bytes(7) + b"!" * 99),
        "not a usable safetensors",
    ),
    "header larger than any": (lambda at: header(at / WEIGHTS, {}, length=2**62), "not a usable safetensors"),
    "header with negative offsets": (
        lambda at: header(at / WEIGHTS, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)),
        "not a usable safetensors",
    ),
    "header with overlapping tensors": (
        lambda at: header(
            at / WEIGHTS,
            {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"},
            bytes(8),
        ),
        "not a usable safetensors",
    ),
    "header with an absurd shape": (
        lambda at: header(at / WEIGHTS, {"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}}, bytes(4)),
        "not a usable safetensors",
    ),
    "weights a folder": (lambda at: ((at / WEIGHTS).unlink(), (at / WEIGHTS).mkdir()), "is not a file"),
    "weights a dead link": (
        lambda at: ((at / WEIGHTS).unlink(), (at / WEIGHTS).symlink_to(at / "gone")),
        "cannot be read",
    ),
    "weights twice": (lambda at: shutil.copy(at / WEIGHTS, at / "copy.safetensors"), "both hold"),
    "a key missing": (lambda at: edit_state(at / WEIGHTS, lambda state: state.pop(NORM)), f"1 missing .{NORM}"),
    "a key renamed": (
        lambda at: edit_state(at / WEIGHTS, move(NORM, "model.norm.weight")),
        rf"1 missing .{NORM}. and 1 unexpected .model.norm.weight",
    ),
    "a key too many": (
        lambda at: edit_state(at / WEIGHTS, replace("lm_head.weight", torch.zeros(2))),
        "1 unexpected .lm_head.weight",
    ),
    "many keys missing": (
        lambda at: edit_state(at / WEIGHTS, without_attention_of_block_1),
        "5 missing .* and 1 more",
    ),
    "a wrong shape": (
        lambda at: edit_state(at / WEIGHTS, replace(NORM, torch.zeros(31))),
        r"ln_f.weight in .* has shape \[31\], but its config.json says \[32\]",
    ),
    "a wrong dtype": (
        lambda at: edit_state(at / WEIGHTS, replace(NORM, torch.zeros(32, dtype=torch.int8))),
        "ln_f.weight in .* is stored as I8",
    ),
    "a transposed matrix": (
        lambda at: edit_state(at / WEIGHTS, replace("model.transformer.blocks.0.ff_proj.weight", torch.zeros(32, 48))),
        r"shape \[32, 48\], but its config.json says \[48, 32\]",
    ),
    "no VQ": (lambda at: shutil.rmtree(at / "vqvae"), "has no VQ"),
    "two VQs, none called vqvae": (
        lambda at: (shutil.copytree(at / "vqvae", at / "a"), (at / "vqvae").rename(at / "b")),
        "several VQ folders",
    ),
    "no VQ config": (lambda at: (at / "vqvae/config.json").unlink(), "vqvae/config.json cannot be read"),
    "another autoencoder": (
        lambda at: edit_json(at / "vqvae/config.json", _class_name="AutoencoderKL"),
        "'AutoencoderKL'; expected 'VQModel'",
    ),
    "no VQ weights": (lambda at: (at / VQ_FILE).unlink(), "vqvae has no weights"),
    "VQ weights cut": (lambda at: cut(at / VQ_FILE, 30000), "is cut short"),
    "a VQ key missing": (
        lambda at: edit_state(at / VQ_FILE, lambda state: state.pop("quant_conv.bias")),
        "1 missing .quant_conv.bias",
    ),
    "a VQ of another scale": (
        lambda at: write_checkpoint(at, vq=AUTOENCODER | {"block_out_channels": [8, 8, 8, 16]}),
        "has 8 px per code",
    ),
    "a VQ of another codebook": (
        lambda at: write_checkpoint(at, vq=AUTOENCODER | {"num_vq_embeddings": 64}),
        "has 64 codes, but .* room for 32",
    ),
    "a VQ of grey pictures": (
        lambda at: write_checkpoint(at, vq=AUTOENCODER | {"in_channels": 1}),
        "1 to 3 channels",
    ),
    "a VQ config of the moon": (
        lambda at: edit_json(at / "vqvae/config.json", layers_per_block=10**9),
        "layers_per_block = 1000000000",
    ),
    "no tokenizer": (lambda at: (at / "tokenizer.json").unlink(), "no tokenizer.json"),
    "tokenizer not JSON": (
        lambda at: (at / "tokenizer.json").write_text("{"),
        "is not a usable tokenizer",
    ),
    "tokenizer a config": (
        lambda at: (at / "tokenizer.json").write_text('{"model_type": "llada"}'),
        "not a usable tokenizer",
    ),
    "tokenizer that splits </user>": (
        lambda at: (at / "tokenizer.json").write_text(tokenizer_json({"</system>": 256})),
        "splits '</user>' into 7 tokens",
    ),
    "tokenizer with another <uncondition>": (
        lambda at: (at / "tokenizer.json").write_text(tokenizer_json(SPECIALS | {"<uncondition>": 300})),
        "'<uncondition>' the id",
    ),
    "tokenizer larger than the vocabulary": (
        lambda at: (at / "tokenizer.json").write_text(
            tokenizer_json(SPECIALS | {f"<extra {i}>": 300 + i for i in range(60)})
        ),
        "different checkpoints",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    open_all(folder)
    breakage, wanted = BREAKS[name]
    breakage(folder)
    message = complaint(folder)
    assert re.search(wanted, message), message
    assert str(folder) in message, message


INDEX_BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard absent": (lambda at: (at / SHARD).unlink(), f"names {SHARD}, which is absent"),
    "a shard renamed": (
        lambda at: (at / SHARD).rename(at / "part one.safetensors"),
        r"is absent \(there, but not named: part one.safetensors\)",
    ),
    "a shard cut": (lambda at: cut(at / SHARD, 4000), f"{SHARD} is cut short"),
    "a shard twice": (lambda at: shutil.copy(at / SHARD, at / "model-00002-of-00002.safetensors"), "both hold"),
    "a shard's key lost": (
        lambda at: edit_state(at / SHARD, lambda state: state.pop(sorted(state)[0])),
        "1 missing",
    ),
    "index not JSON": (lambda at: cut(at / INDEX, 50), f"{INDEX} is not usable JSON"),
    "index without map": (lambda at: (at / INDEX).write_text("{}"), "has no weight_map"),
    "index with a list": (lambda at: edit_json(at / INDEX, weight_map=[SHARD]), "has no weight_map"),
    "index with a number": (lambda at: edit_json(at / INDEX, weight_map={"a": 7}), "names 7, which is absent"),
    "index with nothing": (lambda at: edit_json(at / INDEX, weight_map={"a": ""}), "plain file names"),
    "two indexes": (lambda at: shutil.copy(at / INDEX, at / "old.safetensors.index.json"), "several indexes"),
    "index of pickles": (
        lambda at: ((at / SHARD).rename(at / "w.bin"), edit_json(at / INDEX, weight_map={"a": "w.bin"})),
        "w.bin is a pickle",
    ),
    "index of something else": (
        lambda at: ((at / SHARD).rename(at / "w.gguf"), edit_json(at / INDEX, weight_map={"a": "w.gguf"})),
        "only .safetensors files are read",
    ),
}


@pytest.mark.parametrize("name", INDEX_BREAKS)
def test_a_broken_index_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=2)
    open_all(folder)
    breakage, wanted = INDEX_BREAKS[name]
    breakage(folder)
    message = complaint(folder)
    assert re.search(wanted, message) and str(folder) in message, message


@pytest.mark.parametrize(
    "place", ["../other.safetensors", "{}/other.safetensors", "..", "sub/../../other.safetensors", "..\\other", "C:x"]
)
def test_an_index_cannot_point_out_of_its_folder(tmp_path: Path, place: str) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=2)
    (folder / "sub").mkdir()
    shutil.copy(folder / SHARD, tmp_path / "other.safetensors")
    edit_json(folder / INDEX, weight_map={"a": place.format(tmp_path)})
    assert "only plain file names" in complaint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "model.pth"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / WEIGHTS).unlink()
    torch.save({"trap": Trap(tmp_path / "sprung")}, folder / name)
    assert f"{name} is a pickle" in complaint(folder)
    assert f"{name} is a pickle" in complaint(folder / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("old", [True, False], ids=["bare pickle", "torch's zip"])
def test_a_pickle_under_the_name_of_safetensors_is_told(tmp_path: Path, old: bool) -> None:
    folder = write_checkpoint(tmp_path / "model")
    for name in (WEIGHTS, VQ_FILE):
        if old:
            (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        else:
            torch.save({"trap": Trap(tmp_path / "sprung")}, folder / name)
        assert "is a pickle in spite of its name" in complaint(folder)
    assert not (tmp_path / "sprung").exists()


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_llada.LLaDAModelLM"})
    (folder / "modeling_llada.py").write_text("raise SystemExit")
    open_all(folder)


def test_a_folder_of_folders_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # long paths are cut in messages
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in complaint(tmp_path / "empty")
    for name in ("a", "b"):
        write_checkpoint(tmp_path / "models" / name)
    message = complaint(Path("models"))
    assert "several checkpoints" in message and str(Path("models", "b")) in message
    (tmp_path / "lone.safetensors").write_bytes(b"")
    assert "no config.json of model_type 'llada' beside it" in complaint(tmp_path / "lone.safetensors")


def test_a_dtype_must_be_one_to_compute_in(tmp_path: Path) -> None:
    found = find(write_checkpoint(tmp_path))
    for dtype in (torch.int8, "bf16", torch.float64):
        with pytest.raises(ValueError, match="'auto' or one of"):
            load_transformer(found, dtype=dtype)


def test_codes_must_fit_the_vocabulary_where_the_caller_says_where_they_start(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    for offset in (0, TRANSFORMER["vocab_size"], -1):
        with pytest.raises(ValueError, match=rf"Got code_offset = {offset}, expected an id from 1 to"):
            read_transformer(folder, code_offset=offset)
    assert read_transformer(folder, code_offset=TABLE.code_offset)
