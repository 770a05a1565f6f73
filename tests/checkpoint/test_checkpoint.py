"""Loading: what is on disk arrives in the module, in the dtype asked for, and is found whatever it is called."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dimoo_core.checkpoint.defaults import Defaults
from dimoo_core.checkpoint.find import candidates, find
from dimoo_core.checkpoint.load import (
    load_tokenizer,
    load_transformer,
    load_vq,
    read_headers,
    read_transformer,
    read_vq,
)
from dimoo_core.model.transformer import module_to_hub
from dimoo_core.training.lora import load_base

from ..tiny import AUTOENCODER, TABLE, TRANSFORMER, write_checkpoint

VQ_FILE = "vqvae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def stored(folder: Path) -> dict[str, torch.Tensor]:
    parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for part in parts for name, tensor in part.items()}


def test_single_file_arrives_whole(folder: Path) -> None:
    found = find(folder)
    loaded = module_to_hub(load_transformer(found).state_dict())
    wanted = stored(folder)
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)
    vq, file = load_vq(found).state_dict(), load_file(folder / VQ_FILE)
    assert vq.keys() == file.keys() and all(torch.equal(vq[name], file[name]) for name in file)
    assert found.table == TABLE and found.path == folder
    assert load_tokenizer(found).encode("</user>") == [259]


def test_shards_equal_the_single_file(folder: Path, tmp_path: Path) -> None:
    sharded = write_checkpoint(tmp_path / "sharded", shards=3)
    assert len(list(sharded.glob("*.safetensors"))) == 3
    one, many = load_transformer(find(folder)), load_transformer(find(sharded))
    ids = torch.arange(8)[None]
    assert torch.equal(one(ids), many(ids))


def test_names_of_weight_files_do_not_matter(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "anything at all.safetensors")
    (folder / VQ_FILE).rename(folder / "vqvae" / "vq.safetensors")
    sharded = write_checkpoint(tmp_path / "sharded", shards=2)
    (sharded / "model.safetensors.index.json").unlink()
    (sharded / "model-00001-of-00002.safetensors").rename(sharded / "b.safetensors")
    for place in (folder, sharded):
        load_vq(find(place))
        load_transformer(find(place))


def test_the_vq_is_known_by_its_config(folder: Path) -> None:
    (folder / "vqvae").rename(folder / "pictures")
    assert load_vq(find(folder)).scale == 16


def test_every_way_to_point_at_it(folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "with space" / "Gr\u00f6\u00dfe"
    odd.parent.mkdir()
    shutil.copytree(folder, odd)
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    for path in (folder, str(folder), folder / "config.json", folder / "model.safetensors", odd, odd.parent, link):
        assert load_transformer(find(path)).code_offset == TABLE.code_offset


def test_links_of_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = (
        tmp_path / "hub" / "models--a--b" / "blobs",
        tmp_path / "hub" / "models--a--b" / "snapshots" / "c0",
    )
    blobs.mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            blob = blobs / str(len(list(blobs.iterdir())))
            shutil.copyfile(path, blob)
            link = snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    assert candidates(tmp_path / "hub") == [snapshot]
    assert load_transformer(find(tmp_path / "hub")).config == find(folder).config


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cast_while_loading_equals_cast_afterwards(tmp_path: Path, dtype: torch.dtype) -> None:
    found = find(write_checkpoint(tmp_path, dtype=torch.bfloat16, shards=2))
    as_stored = load_transformer(found)
    cast = load_transformer(found, dtype=dtype)
    assert {part.dtype for part in as_stored.parameters()} == {torch.bfloat16}
    pairs = zip(as_stored.to(dtype).parameters(), cast.parameters(), strict=True)
    assert all(torch.equal(a, b) and b.dtype == dtype for a, b in pairs)


def test_auto_takes_the_dtype_of_most_bytes(folder: Path) -> None:
    state = stored(folder)
    mixed = {name: part if "norm" in name else part.bfloat16() for name, part in state.items()}
    save_file(mixed, folder / "model.safetensors")
    assert {part.dtype for part in load_transformer(find(folder), dtype="auto").parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("kept", "taken"), [("float16", "bfloat16"), ("float64", "float32")])
def test_auto_never_computes_in_fp16_which_overflows_nor_in_fp64(tmp_path: Path, kept: str, taken: str) -> None:
    found = find(write_checkpoint(tmp_path, dtype=getattr(torch, kept)))
    for dtype in (None, "auto"):
        loaded = load_transformer(found, dtype=dtype)
        assert {part.dtype for part in loaded.parameters()} == {getattr(torch, taken)}
    base = load_base(found, device=torch.device("cpu"))
    assert {part.dtype for part in base.transformer.parameters()} == {getattr(torch, taken)}


def test_vq_stays_fp32_unless_told(folder: Path) -> None:
    save_file({name: part.bfloat16() for name, part in load_file(folder / VQ_FILE).items()}, folder / VQ_FILE)
    found = find(folder)
    assert next(load_vq(found).parameters()).dtype == torch.float32
    assert next(load_vq(found, dtype="auto").parameters()).dtype == torch.bfloat16
    assert next(load_vq(found, dtype=torch.float16).parameters()).dtype == torch.float16


def test_loaded_for_use_and_nothing_stays_on_meta(folder: Path) -> None:
    found = find(folder)
    for module in (load_transformer(found), load_vq(found), load_transformer(found, dtype=torch.bfloat16)):
        assert not module.training
        assert not any(part.requires_grad or part.is_meta for part in module.parameters())
    assert all(part.is_meta for part in load_transformer(found, device="meta").parameters())


def test_writing_to_a_loaded_weight_leaves_the_file_alone(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for part in load_transformer(find(folder)).parameters():
            part.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_layer_classes_of_the_caller_load_through_their_own_hook(folder: Path) -> None:
    seen: list[str] = []

    class Linear(nn.Linear):
        def reset_parameters(self) -> None:
            """Nothing, like comfy's layers: the weights come from the file."""

        def _load_from_state_dict(self, state: dict, prefix: str, *rest) -> None:
            seen.append(prefix)
            super()._load_from_state_dict(state, prefix, *rest)

    layers = {name: getattr(nn, name) for name in ("Embedding", "RMSNorm", "Conv2d", "GroupNorm")}
    model = load_transformer(find(folder), ops=SimpleNamespace(Linear=Linear, **layers))
    linears = [layer for layer in model.modules() if isinstance(layer, Linear)]
    assert len(seen) == len(linears) == 7 * TRANSFORMER["n_layers"] + 2
    ids = torch.arange(6)[None]
    assert torch.equal(model(ids), load_transformer(find(folder))(ids))


def test_parts_can_be_read_alone(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "vqvae/config.json", VQ_FILE):
        (folder / name).unlink()
    assert read_transformer(folder, code_offset=200).code_offset == 200
    small = write_checkpoint(tmp_path / "small", vq=AUTOENCODER | {"block_out_channels": [8, 8, 16]})
    assert read_vq(small / "vqvae").scale == 4


def test_a_checkpoint_may_bring_its_defaults(folder: Path) -> None:
    assert find(folder).defaults == Defaults()
    settings = json.loads((folder / "config.json").read_text()) | {"dimoo_defaults": {"size": [128, 64], "cfg": 1}}
    (folder / "config.json").write_text(json.dumps(settings))
    assert find(folder).defaults == Defaults(size=(128, 64), cfg=1)


def test_headers_are_read_without_the_weights(folder: Path) -> None:
    weights = read_headers(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert set(weights) == names
    wte = weights["model.transformer.wte.weight"]
    assert wte.shape == (TRANSFORMER["vocab_size"], TRANSFORMER["d_model"]) and wte.dtype == "F32"


def test_files_name_all_that_a_change_would_touch(tmp_path: Path) -> None:
    found = find(write_checkpoint(tmp_path, shards=2))
    assert {path.suffix for path in found.files} == {".safetensors", ".json"}
    assert len(found.files) == 2 + 1 + 3  # shards, VQ, both configs and the tokenizer


def test_candidates_are_listed_without_complaint(folder: Path, tmp_path: Path) -> None:
    deep = write_checkpoint(tmp_path / "models--x--y" / "snapshots" / "0a1b")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "config.json").write_text("{ not json")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "llada"}))
    (tmp_path / "circle").symlink_to(tmp_path, target_is_directory=True)
    assert candidates(tmp_path) == [tmp_path / "broken", folder, deep]
    assert candidates(folder) == [folder]
    assert candidates(tmp_path / "absent") == []
    for path in (folder / "model.safetensors", deep / "tokenizer.json"):
        path.write_bytes(b"")  # listing does not look at them
    assert candidates(tmp_path) == [tmp_path / "broken", folder, deep]


def test_loading_imports_no_compiler() -> None:
    """Drawing or joining numbers on meta makes torch import sympy and more, which is most of a short command's time."""
    code = "import sys; from dimoo_core.checkpoint.find import NANO, find\n"
    code += "from dimoo_core.checkpoint.load import load_transformer, load_vq\n"
    code += "found = find(NANO); load_transformer(found); load_vq(found); assert 'sympy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
