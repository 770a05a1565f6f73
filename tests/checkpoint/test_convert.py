"""Converting: the one file is the checkpoint again, in ComfyUI's layout, and is there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dimoo_core import jobs
from dimoo_core.checkpoint import convert as converting
from dimoo_core.checkpoint.convert import KINDS, convert
from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.checkpoint.headers import Entry
from dimoo_core.checkpoint.load import load_tokenizer, load_transformer, load_vq
from dimoo_core.cli.main import main
from dimoo_core.model import quantised
from dimoo_core.sampling.guidance import Guidance
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.text import TextSettings

from ..tiny import TRANSFORMER, write_checkpoint

WIDTHS = {"d_model": 32, "mlp_hidden_size": 52}  # no multiple of what kernels like
BLOCK = "model.transformer.blocks.1."
MATRICES = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "hub", transformer=TRANSFORMER | WIDTHS, shards=2)


def made(folder: Path, kind: str) -> Path:
    output = folder.parent / "files" / f"{kind}.safetensors"
    size = convert(find(folder), output, kind)
    assert output.stat().st_size == size
    return output


def header(path: Path) -> dict:
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def draw_and_tell(path: Path) -> tuple[torch.Tensor, list[str]]:
    """A picture and what the model says of it."""
    found = find(path)
    transformer, vq = load_transformer(found), load_vq(found)
    model = jobs.Model(transformer, load_tokenizer(found), found.table, found.defaults.sides)
    settings = ImageSettings(steps=4, seed=3, guidance=Guidance(0.0))
    prompt = jobs.text_prompt("a large red circle on the left on a white background", "")
    picture = jobs.generate(model, vq, prompt, 128, 128, settings=settings)
    answers = jobs.describe(
        model, vq, [picture], "Describe the image.", settings=TextSettings(max_tokens=16, steps=8, block_length=16)
    )
    return picture, answers


def test_nano_in_one_bf16_file_gives_the_same_tokens(nano_files: dict[str, Path]) -> None:
    picture, answers = draw_and_tell(NANO)
    again, same = draw_and_tell(nano_files["bf16"])
    assert torch.equal(picture, again) and answers == same


def test_one_file_holds_what_the_folder_holds(folder: Path) -> None:
    found, single = find(folder), find(made(folder, "bf16"))
    for one, other in (
        (load_transformer(found, dtype=torch.bfloat16), load_transformer(single)),
        (load_vq(found, dtype="auto"), load_vq(single, dtype="auto")),
    ):
        wanted, came = one.state_dict(), other.state_dict()
        assert wanted.keys() == came.keys()
        assert all(torch.equal(wanted[name], came[name]) and wanted[name].dtype is came[name].dtype for name in wanted)
    assert single.tokenizer_text() == found.tokenizer_text()
    fields = ("config_json", "config", "table", "defaults", "vq_config_json", "vq_config")
    assert all(getattr(found, name) == getattr(single, name) for name in fields)
    assert single.kind == "single file" and single.files == (single.path,)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_the_layout_is_comfyuis_and_ff_out_is_guarded(folder: Path, kind: str) -> None:
    content = header(made(folder, kind))
    stored = {"fp8": "F8_E4M3", "int8": "I8"}[kind]
    layers = json.loads(content["__metadata__"]["_quantization_metadata"])["layers"]
    for leaf in MATRICES:
        rows = content[f"{BLOCK}{leaf}.weight"]["shape"][0]
        assert content[f"{BLOCK}{leaf}.weight"]["dtype"] == stored
        scale = content[f"{BLOCK}{leaf}.weight_scale"]
        assert (scale["dtype"], scale["shape"]) == ("F32", [] if kind == "fp8" else [rows, 1])
        assert layers[f"{BLOCK}{leaf}"] == {"format": {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}[kind]}
    guarded = f"{BLOCK}ff_out"
    if kind == "fp8":
        assert content[f"{guarded}.weight"]["dtype"] == "BF16" and guarded not in layers
        scales = {name: content[name] for name in content if name.startswith(BLOCK) and name.endswith("input_scale")}
        assert set(scales) == {f"{BLOCK}{leaf}.input_scale" for leaf in MATRICES if leaf != "attn_out"}
        assert all((one["dtype"], one["shape"]) == ("F32", []) for one in scales.values())
    else:
        assert content[f"{guarded}.weight"]["dtype"] == "I8" and layers[guarded]["full_precision_matrix_mult"] is True
    plain = ("model.transformer.wte", "model.transformer.ff_out", "model.transformer.ln_f", f"{BLOCK}attn_norm")
    assert {content[f"{name}.weight"]["dtype"] for name in plain} == {"BF16"}
    assert content["vqvae.quant_conv.weight"]["dtype"] == "F32", "the VQ stays as it was"
    quantised = [name for name, field in content.items() if name[0] != "_" and field["dtype"] == stored]
    assert len(quantised) == len(layers) == TRANSFORMER["n_layers"] * (6 if kind == "fp8" else 7)


@pytest.mark.parametrize(("hidden", "group"), [(192, 64), (512, 256)])
def test_where_its_width_can_be_grouped_the_guarded_matrix_of_int8_is_rotated(
    tmp_path: Path, hidden: int, group: int
) -> None:
    folder = write_checkpoint(tmp_path / "hub", transformer=TRANSFORMER | WIDTHS | {"mlp_hidden_size": hidden})
    path, name = made(folder, "int8"), f"{BLOCK}ff_out"
    layers = json.loads(header(path)["__metadata__"]["_quantization_metadata"])["layers"]
    rotated = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}
    assert layers[name] == rotated and sum("convrot" in fields for fields in layers.values()) == 2
    plain, back = (
        load_transformer(found, dtype=torch.float32, dequantised=True).get_parameter(f"{name}.weight")
        for found in (find(folder), find(path))
    )
    assert 0 < (back - plain).std() < 0.012 * plain.std()


def test_no_activation_outgrows_the_scale_that_a_file_of_fp8_gives_it(nano_files: dict[str, Path]) -> None:
    network = load_transformer(find(nano_files["fp8"]), dtype=torch.float32)
    shares: dict[str, float] = {}

    def see(name: str, layer, x: torch.Tensor) -> None:
        shares[name] = float(x.abs().max() / (448 * layer.input_scale))

    for name, layer in network.named_modules():
        if getattr(layer, "input_scale", None) is not None:
            layer.register_forward_pre_hook(lambda layer, given, name=name: see(name, layer, given[0]))
    network(torch.randint(0, 534, (2, 100), generator=torch.Generator().manual_seed(0)))
    assert len(shares) == 5 * network.config.n_layers
    assert min(shares.values()) > 0.05 and max(shares.values()) <= 1


@pytest.mark.parametrize("numbers", [[0.3, -1.7], [0.0, 0.0], [448.0, 1.0]], ids=str)
def test_the_scale_of_activations_is_a_power_of_two_that_none_outgrows(numbers: list[float]) -> None:
    """What rounds a scale to bf16 before it divides by it, as CUDA does, leaves such a one as it is."""
    norm = torch.tensor(numbers * 8)
    scale = converting.input_scale(norm.bfloat16())
    assert scale.shape == () and scale.dtype is torch.float32 and scale.frexp().mantissa == 0.5
    assert 448 * scale >= norm.abs().max() * 4, "one channel has all of a token"


def test_a_file_that_the_released_pack_cannot_read_says_so(folder: Path, tmp_path: Path) -> None:
    """0.2.0 reads files of version 1, and asks for an update of the pack for others."""
    wide = write_checkpoint(tmp_path / "wide" / "hub", transformer=TRANSFORMER | WIDTHS | {"mlp_hidden_size": 192})
    versions = {kind: header(made(wide, kind))["__metadata__"]["dimoo_format"] for kind in KINDS}
    assert versions == {"bf16": "1", "fp8": "2", "int8": "2"}
    assert header(made(folder, "int8"))["__metadata__"]["dimoo_format"] == "1", "nothing in it is rotated"


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_where_its_numbers_can_be_read_in_place(folder: Path, kind: str) -> None:
    path = made(folder, kind)
    content, sizes = header(path), {"F32": 4, "BF16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}
    content.pop("__metadata__")
    with path.open("rb") as file:
        assert int.from_bytes(file.read(8), "little") % 8 == 0
    assert all(field["data_offsets"][0] % sizes[field["dtype"]] == 0 for field in content.values())
    with safe_open(path, framework="pt") as file:  # the library reads it, and checks that there is no gap
        assert set(file.keys()) == set(content)


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_by_tensor_in_parts(folder: Path, kind: str, monkeypatch) -> None:
    """Small parts make the same bytes, and no more than a part is ever asked of the source."""
    whole = made(folder, kind).read_bytes()
    seen: list[int] = []
    read = Entry.read
    monkeypatch.setattr(Entry, "read", lambda *asked: seen.append((tensor := read(*asked)).numel()) or tensor)
    monkeypatch.setattr(converting, "_CHUNK", 100)
    assert made(folder, kind).read_bytes() == whole
    assert max(seen) <= 288, "one output channel of the VQ's widest convolution is the least that is a part"


@pytest.mark.parametrize(("kind", "most", "agreeing"), [("fp8", 0.15, 0.9), ("int8", 0.08, 0.95)])
def test_logits_stay_close(nano_files: dict[str, Path], kind: str, most: float, agreeing: float) -> None:
    """Measured: fp8 0.08 to 0.13 and 0.96 of the likeliest tokens, int8 0.03 to 0.06 and 0.98."""
    ids = torch.randint(0, 534, (2, 100), generator=torch.Generator().manual_seed(0))
    plain = load_transformer(find(NANO), dtype=torch.float32)(ids)
    came = load_transformer(find(nano_files[kind]), dtype=torch.float32)(ids)
    assert 0 < (came - plain).pow(2).mean().sqrt() / plain.std() <= most
    assert (came.argmax(-1) == plain.argmax(-1)).float().mean() >= agreeing


def test_logits_stay_close_where_a_card_multiplies_fp8(nano_files: dict[str, Path], monkeypatch) -> None:
    """Measured: 0.18 and 0.97 of the likeliest tokens, with activations rounded as well."""
    monkeypatch.setattr(quantised, "multiplies_fp8", lambda _: True)
    ids = torch.randint(0, 534, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, came = (load_transformer(find(path), dtype=torch.float32)(ids) for path in (NANO, nano_files["fp8"]))
    assert 0.13 < (came - plain).pow(2).mean().sqrt() / plain.std() <= 0.22
    assert (came.argmax(-1) == plain.argmax(-1)).float().mean() >= 0.9


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_asked_for_they_are_dequantised_while_loading(nano_files: dict[str, Path], kind: str) -> None:
    found, ids = find(nano_files[kind]), torch.arange(60)[None]
    plain = load_transformer(found, dtype=torch.float32, dequantised=True)
    assert {part.dtype for part in plain.parameters()} == {torch.float32}
    kept = load_transformer(found, dtype=torch.float32)
    assert found.formats and not find(nano_files["bf16"]).formats
    if kind == "fp8":
        assert torch.equal(kept(ids), plain(ids))
    stored = sum(part.nbytes for part in kept.parameters())
    assert stored < 0.62 * sum(part.nbytes for part in plain.parameters())


# Whole or not at all ------------------------------------------------------------------------------------------------


def test_stopped_half_way_nothing_is_left_and_nothing_is_lost(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "files" / "x.safetensors"
    output.parent.mkdir()
    output.write_bytes(b"what was there")

    def stop(done: int, total: int, _state: object) -> None:
        assert done < total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(find(folder), output, "int8", on_step=stop)
    assert output.read_bytes() == b"what was there" and list(output.parent.iterdir()) == [output]


def test_progress_ends_at_the_size_of_the_file(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    size = convert(
        find(folder), tmp_path / "x.safetensors", "fp8", on_step=lambda done, total, _: seen.append((done, total))
    )
    assert seen[-1] == (size, size) and seen == sorted(seen)


def test_its_own_input_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shard = sorted(folder.glob("*.safetensors"))[0]
    link, twin, place = tmp_path / "link.safetensors", tmp_path / "twin.safetensors", tmp_path / "place"
    link.symlink_to(shard)
    os.link(shard, twin)
    place.symlink_to(folder, target_is_directory=True)
    for output in (shard, link, twin, place / shard.name):
        with pytest.raises(ValueError, match="is a file of the checkpoint that is converted"):
            convert(find(folder), output, "bf16")
    for output in (folder / "new.safetensors", folder / "vqvae" / "new.safetensors", place / "new.safetensors"):
        with pytest.raises(ValueError, match="among the checkpoint's own files"):
            convert(find(folder), output, "bf16")
    single = made(folder, "bf16")
    with pytest.raises(ValueError, match="is a file of the checkpoint"):
        convert(find(single), single, "fp8")
    assert convert(find(single), single.with_name("again.safetensors"), "bf16") == single.stat().st_size
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_cannot_be_converted_is_one_sentence(folder: Path, tmp_path: Path, monkeypatch) -> None:
    output = tmp_path / "x.safetensors"
    for name in ("x", "x.bin", "x.safetensors.part"):
        with pytest.raises(ValueError, match=r"expected a file name that ends in \.safetensors"):
            convert(find(folder), tmp_path / name, "fp8")
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        convert(find(folder), tmp_path / "d.safetensors", "fp8")
    with pytest.raises(ValueError, match="Got dtype 'fp4', expected one of bf16, fp8, int8"):
        convert(find(folder), output, "fp4")
    with pytest.raises(ValueError, match="is quantised already"):
        convert(find(made(folder, "fp8")), output, "int8")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(
        ValueError, match=r"x\.safetensors needs [\d.]+ kB more in .*, where 1\.0 kB are free; make room"
    ):
        convert(find(folder), output, "fp8")
    monkeypatch.undo()
    shard = sorted(folder.glob("*.safetensors"))[0]
    state = load_file(shard)
    lost = sorted(state)[0]
    state.pop(lost)
    save_file(state, shard)
    with pytest.raises(ValueError, match=f"1 missing .{lost}"):
        convert(find(folder), output, "fp8")
    assert not output.exists()


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "new folder" / "mine.safetensors"
    assert main(["convert", str(folder), str(output), "--dtype", "int8"]) == 0
    assert str(output) in capsys.readouterr().out
    assert main(["describe", str(picture(tmp_path)), "--max-tokens", "4", "--steps", "4", "--block-length", "4",
                 "--checkpoint", str(output), "--device", "cpu"]) == 0  # fmt: skip
    assert main(["convert", str(output), str(tmp_path / "again.safetensors")]) == 2
    assert "is quantised already" in capsys.readouterr().err


def picture(folder: Path) -> Path:
    from dimoo_core.pictures.pixels import to_pil

    to_pil(torch.rand(3, 32, 32)).save(folder / "picture.png")
    return folder / "picture.png"
