"""Quantised files in the nodes, and every kind of weights with less memory than the model: the same tokens."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from .. import nodepack
from ..tiny import TRANSFORMER, write_checkpoint

NODES = nodepack.nodes()
convert, checkpoint, finding, host, quantised = (
    nodepack.part(name)
    for name in (
        "dimoo_core.checkpoint.convert",
        "dimoo_core.checkpoint.load",
        "dimoo_core.checkpoint.find",
        "nodes.host",
        "dimoo_core.model.quantised",
    )
)
KINDS = ("bf16", "fp8", "int8")
TextRows = nodepack.part("dimoo_core.model.text_rows").TextRows
WIDTHS = {"d_model": 32, "mlp_hidden_size": 64}  # which the rotation divides
OLDER = "tiny-int8 of before.safetensors"  # with a guarded layer in full precision
LAYERS = TRANSFORMER["n_layers"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    folder = write_checkpoint(place / "hub", transformer=TRANSFORMER | WIDTHS)
    for kind in KINDS:
        convert.convert(finding.find(folder), place / "dimoo" / f"tiny-{kind}.safetensors", kind)
    with pytest.MonkeyPatch.context() as before:
        before.setattr(convert, "_GROUPS", ())
        convert.convert(finding.find(folder), place / "older" / OLDER, "int8")
    return place / "dimoo"


@pytest.fixture(autouse=True)
def only_these_models(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.ldm.modules.attention as attention

    nodepack.put_checkpoint(models, monkeypatch)
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)  # others ask a GPU for its size


def run(name: str, **inputs):
    return nodepack.run(NODES[name], **inputs)


def load(kind: str, **settings) -> SimpleNamespace:
    model, vq = run("DimooLoader", checkpoint=f"tiny-{kind}.safetensors", **settings).args
    return SimpleNamespace(model=model, vq=vq, net=model.core.transformer)


def logits(net: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return net(torch.arange(0, 280, 7)[None])


def core_logits(models: Path, kind: str, **options) -> torch.Tensor:
    """What the core says without ComfyUI."""
    return logits(checkpoint.load_transformer(finding.find(models / f"tiny-{kind}.safetensors"), **options))


def layer_pair(fields, compute: torch.dtype = torch.float32) -> list[torch.nn.Module]:
    """A Linear with a stored weight [32,512] as this ComfyUI has it, and the core's."""
    weight = torch.randn(32, 512, generator=torch.Generator().manual_seed(0))
    if fields.group is not None:
        weight = quantised.rotate(weight, fields.group)
    scale = quantised.scale_of(quantised.largest_magnitude(weight, fields.format), fields.format)
    state = {"weight": quantised.quantise(weight, scale, fields.format), "weight_scale": scale}
    if fields.format is quantised.FP8:
        state["input_scale"] = torch.tensor(0.01)
    pair = []
    for ops in (host.layers(torch.bfloat16, compute, torch.device("cpu"), {fields.format}), quantised):
        layer = ops.Linear(512, 32, bias=False, device="meta")
        layer.load_state_dict(state | {"comfy_quant": fields.to_tensor()}, strict=True, assign=True)
        pair.append(layer)
    return pair


def streamed(net: torch.nn.Module) -> list[bool]:
    return [part.comfy_cast_weights for part in net.modules() if hasattr(part, "comfy_cast_weights")]


def jobs(loaded: SimpleNamespace) -> list[torch.Tensor | str]:
    """All that the networks do: a picture with both ways of guidance, an edit, an answer, and pixels."""
    prompt = run("DimooTextEncode", text="a fox")[0]
    canvas = run("DimooEmptyCanvas", width=64, height=48, batch_size=1)[0]
    settings = {"model": loaded.model, "seed": 5, "steps": 4, "cfg": 1.0}
    drawn = run("DimooSampler", prompt=prompt, canvas=canvas, **settings)[0]
    cached = run("DimooSampler", prompt=prompt, canvas=canvas, ml_cache="fast", **settings)[0]
    pixels = run("DimooVQDecode", vq=loaded.vq, canvas=drawn)[0]
    asked, blank, *_ = run("DimooImageEdit", vq=loaded.vq, image=pixels, edit_type="edit_add", text="x", side=128).args
    edited = run("DimooSampler", prompt=asked, canvas=blank, image_cfg=1.0, **settings)[0]
    words = run(
        "DimooDescribe", model=loaded.model, vq=loaded.vq, image=pixels, question="?", max_tokens=8, steps=4,
        block_length=8, temperature=1.0, cfg=0.5, seed=1,
    )[0]  # fmt: skip
    return [drawn.codes, cached.codes, edited.codes, pixels, *words]


def same(one: list, other: list) -> bool:
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))


# Files in the loader ------------------------------------------------------------------------------------------------


def test_the_loader_lists_files_beside_folders_and_nothing_foreign(models: Path, tmp_path: Path) -> None:
    import folder_paths

    more = tmp_path / "more models"
    write_checkpoint(more / "hub folder")
    (more / "sub").mkdir()
    shutil.copy(models / "tiny-int8.safetensors", more / "sub" / "mine.safetensors")
    (more / "sdxl.safetensors").write_bytes(b"\x10" + bytes(7) + b'{"a":{}}' * 2)
    folder_paths.folder_names_and_paths["dimoo"][0].append(str(more))
    options = NODES["DimooLoader"].define_schema().inputs[0].options
    ours = [f"tiny-{kind}.safetensors" for kind in KINDS]
    ours = ["DiMOO-nano (built in)", *ours, "hub folder", "sub/mine.safetensors"]
    assert [name for name in options if not name.startswith("download")] == ours
    model = run("DimooLoader", checkpoint="sub/mine.safetensors")[0]
    assert torch.equal(logits(model.core.transformer), logits(load("int8").net))


def test_a_replaced_file_is_noticed(models: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "mine.safetensors"
    shutil.copy(models / "tiny-fp8.safetensors", path)
    nodepack.put_checkpoint(tmp_path, monkeypatch)
    ask = NODES["DimooLoader"].fingerprint_inputs
    before = ask(checkpoint=path.name, weight_dtype="auto")
    shutil.copy(models / "tiny-int8.safetensors", path)
    assert ask(checkpoint=path.name, weight_dtype="auto") != before


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_auto_keeps_what_is_stored_and_a_dtype_undoes_it(models: Path, kind: str) -> None:
    kept, undone = load(kind), load(kind, weight_dtype="fp32")
    plain = load("bf16", weight_dtype="fp32").model.patcher.model_size()
    assert [one.stored for one in kept.model.core.formats] == ["F8_E4M3" if kind == "fp8" else "I8"]
    assert not undone.model.core.formats, "room for widened matrices is asked for where there are any"
    assert kept.model.patcher.model_size() < undone.model.patcher.model_size() == plain
    assert torch.equal(logits(undone.net), core_logits(models, kind, dtype=torch.float32, dequantised=True))
    assert load(kind, weight_dtype="bf16").model.patcher.model_size() == plain // 2


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_the_numbers_are_the_cores(models: Path, kind: str) -> None:
    """fp8 to the bit. ComfyUI's own int8 product may round its last bit otherwise, and a later layer by a step."""
    net, core = load(kind).net, checkpoint.load_transformer(finding.find(models / f"tiny-{kind}.safetensors"))
    came, wanted = logits(net), core_logits(models, kind, dtype=torch.float32)
    assert torch.equal(came, wanted) or (kind == "int8" and (came - wanted).std() < 0.1 * wanted.std())
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    for name in ("q_proj", "up_proj"):
        ours, theirs = (one.blocks[0].get_submodule(name) for one in (core, net))
        with torch.inference_mode():
            torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)


STORED = [
    quantised.Quantised(quantised.INT8, group=256),
    quantised.Quantised(quantised.INT8, group=64),
    quantised.Quantised(quantised.INT8, full_precision=True),
    quantised.Quantised(quantised.FP8),
]


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fields", STORED, ids=str)
@torch.inference_mode()
def test_a_layer_that_is_stored_in_any_way_computes_what_the_core_does(fields, compute: torch.dtype) -> None:
    """ComfyUI's eager int8 product rounds in the dtype that is computed in: in bf16 it is as exact, and not equal."""
    theirs, ours = layer_pair(fields, compute)
    x = torch.randn(2, 9, 512, generator=torch.Generator().manual_seed(1)).to(compute)
    x[:, :, 3] *= 100
    came, wanted = theirs(x), ours(x)
    with theirs.held(x) as call:
        assert torch.equal(call(x), came)
    near = 1e-4 if compute is torch.float32 or fields.group is None else 0.02
    assert (came - wanted).float().std() <= near * wanted.float().std()


def test_fp8_is_multiplied_as_fp8_under_any_comfyui(monkeypatch) -> None:
    theirs, ours = layer_pair(quantised.Quantised(quantised.FP8))
    x = torch.randn(2, 9, 512, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain = ours(x)
        monkeypatch.setattr(quantised, "multiplies_fp8", lambda _: True)
        rounded = ours(x)
        assert torch.equal(theirs(x), rounded) and not torch.equal(rounded, plain)


def test_a_comfyui_whose_int8_knows_no_rotation_gets_ours(monkeypatch) -> None:
    """A stand-in, on a ComfyUI that has int8: its Linear leaves the word for rotated layers unread."""
    import comfy.ops
    import comfy.quant_ops

    if quantised.INT8.name not in comfy.quant_ops.QUANT_ALGOS:
        pytest.skip("this ComfyUI has no int8")
    made = comfy.ops.mixed_precision_ops

    def deaf(*given, **options):
        class Linear(made(*given, **options).Linear):
            def _load_from_state_dict(self, state, prefix, *rest):
                state[f"{prefix}comfy_quant"] = quantised.Quantised(quantised.INT8).to_tensor()
                super()._load_from_state_dict(state, prefix, *rest)

        return SimpleNamespace(Linear=Linear)

    monkeypatch.setattr(comfy.ops, "mixed_precision_ops", deaf)
    theirs, ours = layer_pair(STORED[0])
    x = torch.randn(2, 9, 512, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(theirs(x), ours(x))


def test_a_comfyui_whose_int8_has_become_another_gets_ours(monkeypatch) -> None:
    import comfy.ops
    import comfy.quant_ops

    monkeypatch.setitem(comfy.quant_ops.QUANT_ALGOS, quantised.INT8.name, {"comfy_tensor_layout": "another"})
    monkeypatch.setattr(comfy.quant_ops, "get_layout_class", lambda name: name, raising=False)

    def changed(*, precision: torch.dtype) -> None:
        raise AssertionError(precision)

    monkeypatch.setattr(comfy.ops, "mixed_precision_ops", changed)
    theirs, ours = layer_pair(STORED[0])
    x = torch.randn(2, 9, 512, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(theirs(x), ours(x))


def test_an_int8_file_of_before_gives_what_it_gave(models: Path, monkeypatch) -> None:
    older = models.parent / "older"
    nodepack.put_checkpoint(older, monkeypatch)
    found = finding.find(older / OLDER)
    assert {entry.quantisation.full_precision for entry in found.weights.values() if entry.quantisation} == {
        True,
        False,
    }
    net = run("DimooLoader", checkpoint=OLDER)[0].core.transformer
    core = checkpoint.load_transformer(found)
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs, ours = net.blocks[0].ff_out(x), core.blocks[0].ff_out(x)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_that_comfyui_reckons_with_is_that_of_the_weights(models: Path, kind: str) -> None:
    found = finding.find(models / f"tiny-{kind}.safetensors")
    wanted = sum(entry.shape[0] * (entry.shape[1:] or (1,))[0] * (4 if entry.quantisation is None else 1)
                 for entry in found.weights.values())  # fmt: skip
    scales = 4 * sum(entry.shape[0] for entry in found.weights.values() if entry.quantisation is not None)
    size = load(kind).model.get_ram_usage()
    assert wanted <= size <= wanted + scales + 64 * len(found.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_in_a_layer_that_comfyui_can_stream(kind: str) -> None:
    net = load(kind).net
    assert not list(net.buffers())
    leaves = [part for part in net.modules() if list(part.parameters(recurse=False))]
    assert len(leaves) == 9 * LAYERS + 3, "the text tables are apart"
    assert all(hasattr(part, "comfy_cast_weights") and not list(part.children()) for part in leaves)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_comfyui_that_does_not_know_the_format_gets_ours(models: Path, kind: str, monkeypatch) -> None:
    import comfy.quant_ops

    monkeypatch.setattr(comfy.quant_ops, "QUANT_ALGOS", {})
    loaded = load(kind)
    layer = loaded.net.blocks[0].q_proj
    assert layer.weight.dtype is (torch.float8_e4m3fn if kind == "fp8" else torch.int8)
    assert torch.equal(logits(loaded.net), core_logits(models, kind, dtype=torch.float32))


def test_a_layer_of_comfyui_that_is_not_quantised_keeps_its_dtype(models: Path) -> None:
    """The head in bf16 takes half of what it would take in the dtype that is computed in."""
    layers = host.layers(torch.bfloat16, torch.float32, torch.device("cpu"), frozenset({quantised.FP8}))
    found = finding.find(models / "tiny-fp8.safetensors")
    net = checkpoint.load_transformer(found, ops=layers, dtype=torch.bfloat16)
    head = net.layers["ff_out"].codes
    assert head.weight.dtype is torch.bfloat16 and head.comfy_cast_weights
    assert torch.equal(logits(net), core_logits(models, "fp8", dtype=torch.float32))


# Less memory than the model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_with_part_of_the_weights_in_memory_every_job_gives_the_same(kind: str, monkeypatch) -> None:
    loaded = load(kind)
    whole = jobs(loaded)
    shares: list[float] = []

    for share in (0.0, 0.3, 0.7):

        def ready(networks, _scratch: int, _beside: tuple = (), share: float = share) -> torch.device:
            for patcher in networks:
                patcher.unpatch_model(patcher.offload_device)
                patcher.load(patcher.load_device, lowvram_model_memory=max(int(share * patcher.model_size()), 1))
                assert any(streamed(patcher.model)), "something did not fit"
                shares.append(patcher.model.model_loaded_weight_memory / patcher.model_size())
            return networks[0].load_device

        monkeypatch.setattr(host, "ready", ready)
        assert same(jobs(loaded), whole)
    assert min(shares) == 0 and 0.2 < max(shares) < 0.7


@pytest.mark.parametrize("ours", [False, True], ids=["as ComfyUI has it", "ours"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_stay_behind_are_brought_along_layer_by_layer(kind: str, ours: bool, monkeypatch) -> None:
    """A stand-in for a card that takes some of the weights, and for one that takes none."""
    import comfy.quant_ops

    if ours:
        monkeypatch.setattr(comfy.quant_ops, "QUANT_ALGOS", {})
    ids = torch.zeros(1, 40, dtype=torch.int64, device="meta")
    for share in (0.0, 0.5):
        net = load(kind).net
        patcher = host.managed(net, (torch.device("meta"), torch.device("cpu")))
        patcher.load(torch.device("meta"), lowvram_model_memory=max(int(share * patcher.model_size()), 1))
        places = {parameter.device.type for parameter in net.parameters()}
        assert places == ({"cpu", "meta"} if share else {"cpu"})
        rows = TextRows(net.text_tables.embedding, [0], offset=272, room=0, device=torch.device("meta"))
        with torch.inference_mode():
            assert net(ids, vocab=slice(272, 304), text_rows=rows).shape == (1, 40, 32)
            assert net(ids, rows=ids[:, :3], vocab=slice(272, 304), text_rows=rows).shape == (1, 3, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_sent_away_and_fetched_again_nothing_is_lost(kind: str) -> None:
    import comfy.model_management

    loaded = load(kind)
    before = logits(loaded.net)
    for _ in range(2):
        host.ready([loaded.model.patcher], 0)
        assert torch.equal(logits(loaded.net), before)
        comfy.model_management.unload_all_models()
    assert torch.equal(logits(loaded.net), before)
