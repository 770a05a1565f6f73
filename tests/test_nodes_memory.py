"""Memory: estimates that are neither below the truth nor far above it, and weights that ComfyUI can move in parts."""

from __future__ import annotations

import pytest
import torch

from . import nodepack
from .live_bytes import LiveBytes
from .tiny import AUTOENCODER, TABLE, TRANSFORMER, write_checkpoint

cache, canvas, config, estimates, layout, loader, sampling, text_policy, text_sampling, tokens, transformer, vq = (
    nodepack.part(name)
    for name in (
        "dimoo_core.cache",
        "dimoo_core.canvas",
        "dimoo_core.config",
        "nodes.estimates",
        "dimoo_core.layout",
        "nodes.loader",
        "dimoo_core.sampling",
        "dimoo_core.text_policy",
        "dimoo_core.text_sampling",
        "dimoo_core.tokens",
        "dimoo_core.transformer",
        "dimoo_core.vq",
    )
)
PREFIX = 60
RELEASED_VQ = {**AUTOENCODER, "block_out_channels": [128, 256, 256, 512, 768], "latent_channels": 256}
RELEASED_VQ |= {"num_vq_embeddings": 8192, "norm_num_groups": 32, "layers_per_block": 2}


def network(width: int, codes: int, dtype: torch.dtype):
    shape = {"d_model": width, "n_layers": 3, "mlp_hidden_size": 3 * width, "vocab_size": TABLE.code_offset + codes}
    settings = config.TransformerConfig.from_dict({**TRANSFORMER, **shape})
    return transformer.Transformer(settings, code_offset=TABLE.code_offset, dtype=dtype).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("width", "codes", "side", "batch", "policy"),
    [
        (64, 4096, 32, 1, None),
        (64, 2048, 24, 2, cache.CachePolicy()),
        (256, 512, 40, 1, cache.CachePolicy()),
        (256, 512, 40, 1, None),
    ],
)
def test_sampling_takes_what_was_estimated(width: int, codes: int, side: int, batch: int, policy) -> None:
    net = network(width, codes, torch.bfloat16)
    table = tokens.TokenTable.from_dict({**TABLE.to_dict(), "codebook_size": codes})
    blank = canvas.Canvas.empty(batch, side, side)
    prefix = torch.zeros(1, PREFIX, dtype=torch.int64)
    settings = sampling.ImageSettings(steps=3, cache=policy)
    with LiveBytes() as measured:
        sampling.sample_image(net, table, blank, prefix, [sampling.Branch(prefix, 1.0)], settings=settings)
    length = PREFIX + layout.image_answer(blank, table).shape[1]
    estimate = estimates.image_bytes(
        net.config, (batch, length), cells=side**2, codes=codes, branches=2, itemsize=2, cache=policy
    )
    assert measured.peak <= estimate <= 2 * measured.peak + 200 * 2**20


@pytest.mark.parametrize("speed", text_policy.SPEEDS)
def test_an_answer_takes_what_was_estimated(speed: str) -> None:
    net = network(64, 60_000, torch.bfloat16)
    table = tokens.TokenTable.from_dict({**TABLE.to_dict(), "codebook_size": 60_000})
    how = {"cfg": 1.0, "temperature": 1.0, "policy": text_policy.SPEEDS[speed]}
    settings = text_sampling.TextSettings(max_tokens=64, steps=1, block_length=64, **how)
    with LiveBytes() as measured:
        text_sampling.sample_text(net, table, torch.zeros(1, PREFIX, dtype=torch.int64), settings=settings)
    estimate = estimates.text_bytes(net.config, PREFIX + 66, tokens=64, branches=2, itemsize=2)
    assert measured.peak <= estimate <= 2 * measured.peak + 200 * 2**20


def test_what_an_answer_keeps_between_steps_is_estimated() -> None:
    """A long prompt and few words, so that keys and values are most of it."""
    net = network(64, 32, torch.float32)
    plan = text_sampling.TextSettings(4, 4, 2, cfg=1.0, policy=text_policy.SPEEDS["balanced"])
    prefix = torch.zeros(1, 3000, dtype=torch.int64)
    with LiveBytes() as measured:
        text_sampling.sample_text(net, TABLE, prefix, settings=plan)
    whole = estimates.text_bytes(net.config, 3006, tokens=4, branches=2, itemsize=4, keeps=True)
    without = estimates.text_bytes(net.config, 3006, tokens=4, branches=2, itemsize=4)
    assert measured.peak <= whole - 200 * 2**20 <= 1.5 * measured.peak
    assert without - 200 * 2**20 < measured.peak


@pytest.mark.parametrize("settings", [AUTOENCODER, RELEASED_VQ], ids=["tiny", "released shape"])
def test_the_vq_takes_what_was_estimated(settings: dict) -> None:
    shape = config.VQConfig.from_dict(settings)
    module = vq.VQ(shape, device="meta", dtype=torch.float32)
    cells = torch.zeros(1, 64, 64, dtype=torch.int64, device="meta")
    with LiveBytes() as decoding:
        module.decode(cells)
    assert decoding.peak <= estimates.decode_bytes(shape, 1024 * 1024, 4) <= 2 * decoding.peak
    with LiveBytes() as encoding:
        module.encode(torch.zeros(1, 3, 1024, 1024, device="meta"))
    assert encoding.peak <= estimates.encode_bytes(shape, 1024 * 1024, 4) <= 2 * encoding.peak
    with LiveBytes() as palette:
        module.mean_colours("meta")
    assert palette.peak <= estimates.palette_bytes(shape, 4) <= 2 * palette.peak


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    nodepack.put_checkpoint(write_checkpoint(tmp_path / "models" / "tiny").parent, monkeypatch)
    return nodepack.run(nodepack.nodes()["DimooLoader"], checkpoint="tiny")


def test_every_weight_is_in_a_layer_that_comfyui_can_stream(loaded) -> None:
    for module in (loaded[0].core.transformer, loaded[1].vq):
        assert not list(module.buffers()), "a buffer outside a layer is never moved"
        for name, part in module.named_modules():
            if list(part.parameters(recurse=False)):
                assert hasattr(part, "comfy_cast_weights") and not list(part.children()), name


def test_nothing_else_is_needed_where_no_weight_fits(loaded, monkeypatch) -> None:
    """A stand-in for a GPU too small for any weight: all stay on the CPU, each layer brings its own along."""
    import comfy.ldm.modules.attention as attention
    import comfy.model_patcher

    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)  # others ask a GPU for its size
    host = nodepack.part("nodes.host")
    ids = torch.zeros(1, 40, dtype=torch.int64, device="meta")
    jobs = {
        loaded[0].core.transformer: [
            lambda net: net(ids),
            lambda net: net(ids, rows=ids[:, :3], vocab=slice(272, 304)),
        ],
        loaded[1].vq: [
            lambda net: net.decode(ids.view(1, 5, 8)),
            lambda net: net.encode(torch.zeros(1, 3, 64, 32, device="meta")),
            lambda net: net.mean_colours("meta"),
        ],
    }
    for module, calls in jobs.items():
        patcher = host.managed(module, (torch.device("meta"), torch.device("cpu")))
        assert isinstance(patcher, comfy.model_patcher.ModelPatcher)
        patcher.load(torch.device("meta"), lowvram_model_memory=1)
        assert all(parameter.device.type == "cpu" for parameter in module.parameters())
        for call in calls:
            assert call(module).device.type == "meta"


def test_streamed_weights_give_the_same_numbers(loaded) -> None:
    net, ids = loaded[0].core.transformer, torch.arange(40)[None]
    with torch.inference_mode():
        plain = net(ids)
        for part in net.modules():
            if hasattr(part, "comfy_cast_weights"):
                part.comfy_cast_weights = True
        assert torch.equal(net(ids), plain)


def test_weights_may_be_kept_in_bf16_and_computed_in_fp32(tmp_path, monkeypatch) -> None:
    nodepack.put_checkpoint(write_checkpoint(tmp_path / "models" / "tiny").parent, monkeypatch)
    model = nodepack.run(nodepack.nodes()["DimooLoader"], checkpoint="tiny", weight_dtype="bf16")[0]
    kept = next(model.core.transformer.parameters()).dtype
    assert kept is torch.bfloat16 and model.itemsize == 4
    assert model.core.transformer(torch.arange(20)[None]).dtype is torch.float32


def test_comfyuis_unloading_reaches_both_models(loaded) -> None:
    import comfy.model_management

    host = nodepack.part("nodes.host")
    for patcher in (loaded[0].patcher, loaded[1].patcher):
        host.ready(patcher, 0)
        assert patcher in [entry.model for entry in comfy.model_management.current_loaded_models]
    comfy.model_management.unload_all_models()
    held = [entry.model for entry in comfy.model_management.current_loaded_models]
    assert loaded[0].patcher not in held and loaded[1].patcher not in held
    assert loaded[1].decode(torch.zeros(1, 2, 2, dtype=torch.int64)).shape == (1, 3, 32, 32)
