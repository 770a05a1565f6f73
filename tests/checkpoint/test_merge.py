"""LoRAs merged into a checkpoint: what a branch gave beside the layers, the weights give now."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dimoo_core.checkpoint import convert as converting
from dimoo_core.checkpoint.adapter_file import read_adapter
from dimoo_core.checkpoint.convert import convert
from dimoo_core.checkpoint.find import NANO, Found, find
from dimoo_core.checkpoint.headers import Entry
from dimoo_core.checkpoint.load import load_tokenizer, load_transformer, load_vq
from dimoo_core.checkpoint.merge import merge
from dimoo_core.model.adapters import Adapter, Adapters, Applied

from ..adapters import logits
from ..lora_files import PREFIX, random_lora
from ..tiny import TRANSFORMER, write_checkpoint


def everywhere(found: Found) -> Adapter:
    """A LoRA beside all that one can stand beside: linears, embedding, head."""
    generator = torch.Generator().manual_seed(1)
    state = random_lora(found)
    for name in ("wte", "ff_out"):
        rows, width = found.weights[f"model.transformer.{name}.weight"].shape
        state[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(2, width, generator=generator) * width**-0.5
        state[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(rows, 2, generator=generator) * 0.5
    return read_adapter(state, found.config, found.table.code_offset).adapter


def applied(found: Found, *strengths: float) -> Adapters:
    return Adapters([Applied(everywhere(found), strength) for strength in strengths])


@pytest.fixture
def source(tmp_path: Path) -> Found:
    """A tiny checkpoint in fp32, in two shards."""
    return find(write_checkpoint(tmp_path / "hub", shards=2))


def test_in_fp32_the_weights_give_what_the_branches_gave(source: Found, tmp_path: Path) -> None:
    adapter, ids = everywhere(source), torch.arange(source.config.vocab_size)[None]
    merge(source, applied(source, 0.5, -0.25), tmp_path / "out")
    plain, merged = load_transformer(source), load_transformer(find(tmp_path / "out"))
    wanted = logits(plain, (adapter, 0.5), (adapter, -0.25), ids=ids)
    torch.testing.assert_close(logits(merged, ids=ids), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - logits(plain, ids=ids)).abs().max() > 0.05


def test_in_bf16_they_do_within_its_rounding_and_each_is_rounded_once(tmp_path: Path) -> None:
    nano = find(NANO)
    adapter = everywhere(nano)
    merge(nano, applied(nano, 0.3), tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert made.keys() == nano.weights.keys() and {part.dtype for part in made.values()} == {torch.bfloat16}
    branch = adapter.branches["model.transformer.blocks.1.ff_out"]
    name = "model.transformer.blocks.1.ff_out.weight"
    change = 0.3 * branch.scale * branch.up.double() @ branch.down.double()
    exact = nano.weights[name].read().double() + change
    assert (made[name].double() - exact).abs().max() <= exact.abs().max() * 2.0**-8
    torch.testing.assert_close(made[name].double(), exact, rtol=2.0**-8, atol=1e-6)
    norm = "model.transformer.blocks.1.attn_norm.weight"
    assert torch.equal(made[norm], nano.weights[norm].read())
    plain = load_transformer(nano, dtype=torch.float32)
    wanted = logits(plain, (adapter, 0.3))
    came = logits(load_transformer(find(tmp_path / "out"), dtype=torch.float32))
    assert (came - wanted).pow(2).mean() < 0.01 * (wanted - logits(plain)).pow(2).mean()


def test_all_else_is_the_sources_and_convert_takes_it(source: Found, tmp_path: Path) -> None:
    size = merge(source, applied(source, 1.0), tmp_path / "out")
    made = find(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == size
    assert made.kind == "hub folder" and made.config_json == source.config_json
    assert made.tokenizer_text() == source.tokenizer_text() and made.vq_config_json == source.vq_config_json
    ours, theirs = load_vq(made, dtype="auto").state_dict(), load_vq(source, dtype="auto").state_dict()
    assert all(torch.equal(ours[name], part) for name, part in theirs.items())
    load_tokenizer(made)
    convert(made, tmp_path / "files" / "int8.safetensors", "int8")
    small = find(tmp_path / "files" / "int8.safetensors")
    assert small.formats
    right, came = (logits(load_transformer(one, dtype=torch.float32)) for one in (made, small))
    assert (came - right).pow(2).mean() < 0.1 * right.var()


def test_a_single_file_can_be_merged_into(source: Found, tmp_path: Path) -> None:
    convert(source, tmp_path / "files" / "one.safetensors", "bf16")
    single = find(tmp_path / "files" / "one.safetensors")
    merge(single, applied(single, 1.0), tmp_path / "out")
    made = find(tmp_path / "out")
    assert made.config_json == source.config_json and {one.dtype for one in made.weights.values()} == {"BF16"}


def test_no_more_than_a_chunk_of_a_tensor_is_read_and_chunks_make_the_same_bytes(
    source: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(source, applied(source, 1.0), tmp_path / "whole")
    seen: list[int] = []
    read = Entry.read
    monkeypatch.setattr(Entry, "read", lambda *asked: seen.append((tensor := read(*asked)).numel()) or tensor)
    monkeypatch.setattr(converting, "_CHUNK", 7 * TRANSFORMER["d_model"])  # no border of text and codes
    steps: list[tuple[int, int]] = []
    size = merge(
        source, applied(source, 1.0), tmp_path / "parts", on_step=lambda done, total, _: steps.append((done, total))
    )
    names = {entry.file.parent.name for entry in source.weights.values()}
    assert names == {"hub"} and max(seen) <= 7 * TRANSFORMER["d_model"]
    assert steps[-1] == (size, size) and steps == sorted(steps)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-6, atol=1e-7) for name in whole)


def test_what_cannot_be_merged_is_one_sentence_and_writes_nothing(source: Found, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, tmp_path / "files" / "int8.safetensors", "int8")
    small = find(tmp_path / "files" / "int8.safetensors")
    with pytest.raises(ValueError, match=r"is quantised, .*; merge into the checkpoint that it was made from"):
        merge(small, applied(source, 1.0), out)
    for strengths in ((0.0,), (0.5, -0.5)):
        with pytest.raises(ValueError, match=r"strengths of the LoRAs are 0, or 0 in sum"):
            merge(source, applied(source, *strengths), out)
    before = {path: path.read_bytes() for path in source.path.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to("nowhere")
    for taken, sentence in (
        (source.path, "holds a checkpoint already"),
        (tmp_path / "files", r"holds int8\.safetensors, which would be taken for a part of the checkpoint"),
        (source.path / "config.json", "is a file; expected a folder"),
        (tmp_path / "link", "is a file; expected a folder"),
    ):
        with pytest.raises(ValueError, match=sentence):
            merge(source, applied(source, 1.0), taken)
    assert before == {path: path.read_bytes() for path in source.path.rglob("*") if path.is_file()}
    assert not out.exists()


def test_numbers_too_large_for_the_dtype_are_not_written(tmp_path: Path) -> None:
    source = find(write_checkpoint(tmp_path / "hub", dtype=torch.float16))
    with pytest.raises(ValueError, match=r"Merged, model.transformer.* has numbers too large for F16"):
        merge(source, applied(source, 1e6), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_one_that_was_stopped_is_written_again(source: Found, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stop(done: int, total: int, _state: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(source, applied(source, 1.0), out, on_step=stop)
    assert not list(out.iterdir())
    (out / "model.safetensors").write_bytes(b"left by a stop after the weights")
    merge(source, applied(source, 1.0), out)
    load_transformer(find(out))
