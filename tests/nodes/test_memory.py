"""Memory: memory that are neither below the truth nor far above it, and weights that ComfyUI can move in parts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dimoo_core.training.live_bytes import LiveBytes

from .. import nodepack
from ..tiny import AUTOENCODER, write_checkpoint

(
    cache,
    canvas,
    config,
    guidance,
    jobs,
    memory,
    layout,
    loader,
    passes,
    sampling,
    text_policy,
    text_rows,
    text_sampling,
    tokens,
    transformer,
    vq,
) = (
    nodepack.part(name)
    for name in (
        "dimoo_core.sampling.ml_cache",
        "dimoo_core.sequence.canvas",
        "dimoo_core.model.config",
        "dimoo_core.sampling.guidance",
        "dimoo_core.jobs",
        "dimoo_core.memory",
        "dimoo_core.sequence.layout",
        "nodes.loader",
        "dimoo_core.sampling.passes",
        "dimoo_core.sampling.image",
        "dimoo_core.sampling.text_cache",
        "dimoo_core.model.text_rows",
        "dimoo_core.sampling.text",
        "dimoo_core.sequence.token_table",
        "dimoo_core.model.transformer",
        "dimoo_core.model.vq",
    )
)
TILE = nodepack.part("dimoo_core.model.vq_tiles").TILE
RELEASED_VQ = {**AUTOENCODER, "block_out_channels": [128, 256, 256, 512, 768], "latent_channels": 256}
RELEASED_VQ |= {"num_vq_embeddings": 8192, "norm_num_groups": 32, "layers_per_block": 2}


EIGHT_B = {"d_model": 4096, "n_heads": 32, "mlp_hidden_size": 12288, "vocab_size": 134656, "rope_theta": 500000.0}
CACHED = cache.CachePolicy(warmup=0.0, refresh_interval=2)  # a full pass, a cached one, and so on
HOLES = cache.CachePolicy(warmup=0.0, refresh_interval=2, candidates="holes")
FROZEN = cache.CachePolicy(warmup=0.0, refresh_interval=2, prefix_interval=4)
BOTH = cache.CachePolicy(ratio=0.05, warmup=0.0, refresh_interval=2, candidates="holes", prefix_interval=4)
LITTLE = cache.CachePolicy(ratio=0.95, warmup=0.0, refresh_interval=3, candidates="holes")
KERNELS = 32 * 2**20  # what an estimate may have beyond 15 %: work space that nobody counts


def network(dtype: torch.dtype, layers: int = 4, **more):
    """The 8B model with fewer layers, on meta: they follow each other, and only ML-Cache keeps something of each.
    What the attention kernel takes is left out: torch's own on meta holds all scores, those of a GPU do not."""
    shape = config.TransformerConfig.from_dict({"model_type": "llada", "n_layers": layers, **EIGHT_B})
    options = {"attention": lambda q, k, v: torch.empty_like(q), "device": "meta", "dtype": dtype, **more}
    return transformer.Transformer(shape, code_offset=tokens.RELEASED.code_offset, **options).requires_grad_(False)


def holds(estimate: int, measured: int) -> bool:
    return measured <= estimate <= 1.15 * measured + KERNELS


def picture_bytes(
    dtype: torch.dtype, cells: tuple[int, int], prefix: int, branches: int, settings, **how
) -> tuple[int, int]:
    """Sampling a picture with so many unconditional `branches`: the bytes estimated, and those measured."""
    net, table, count = network(dtype), tokens.RELEASED, cells[0] * cells[1]
    blank, ids = canvas.Canvas.empty(1, *cells), torch.zeros(1, prefix, dtype=torch.int64, device="meta")
    guides = [guidance.Branch(ids, 1.0)] * branches
    with LiveBytes(answer=count) as measured:  # no hole is ever filled, as if every step were the first
        sampling.sample_image(net, table, blank, ids, guides, settings=settings, **how)
    estimate = memory.image_bytes(
        net.config,
        batch=1,
        length=prefix + layout.image_answer(blank, table).shape[1],
        cells=count,
        codes=table.codebook_size,
        branches=1 + branches,
        itemsize=dtype.itemsize,
        schedule=settings.schedule(count, settings.steps),
        cache=settings.cache,
        corrections=settings.corrections,
        **how,
    )
    return estimate, measured.peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(
    ("cells", "prefix", "branches", "policy"),
    [
        pytest.param((64, 64), 60, 0, None, id="1024x1024 without guidance"),
        pytest.param((64, 64), 60, 1, None, id="1024x1024"),
        pytest.param((48, 96), 60, 1, CACHED, id="1536x768 with ML-Cache"),
        pytest.param((32, 32), 1120, 2, None, id="edit 512x512"),
        pytest.param((64, 64), 4300, 2, CACHED, id="edit 1024x1024 with ML-Cache"),
        pytest.param((64, 64), 4300, 2, HOLES, id="edit 1024x1024 with ML-Cache of holes"),
        pytest.param((64, 64), 4300, 1, FROZEN, id="edit 1024x1024 with a frozen prefix"),
        pytest.param((64, 64), 60, 1, BOTH, id="1024x1024 with little reused"),
    ],
)
@pytest.mark.parametrize("chunk_rows", [None, memory.CHUNK_ROWS], ids=["whole", "in parts"])
def test_sampling_takes_what_was_estimated(
    dtype, cells: tuple[int, int], prefix: int, branches: int, policy, chunk_rows: int | None
) -> None:
    settings = sampling.ImageSettings(steps=4 if policy else 2, cache=policy)
    assert holds(*picture_bytes(dtype, cells, prefix, branches, settings, chunk_rows=chunk_rows, graphs=False))


@pytest.mark.parametrize("policy", [None, CACHED, HOLES], ids=["exact", "ML-Cache", "ML-Cache of holes"])
@pytest.mark.parametrize("more", [{"corrections": 400, "corrections_start": 0.0}, {"polish": 2}], ids=str)
def test_corrections_and_polish_take_what_was_estimated(policy, more: dict) -> None:
    settings = sampling.ImageSettings(steps=4 if policy else 2, cache=policy, **more)
    assert holds(*picture_bytes(torch.bfloat16, (64, 64), 60, 1, settings, graphs=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("prefix", "block", "cfg"), [(4300, 32, 0.0), (1200, 256, 0.0), (1200, 256, 1.0)])
@pytest.mark.parametrize(
    ("speed", "chunk_rows"), [("exact", None), ("exact", memory.CHUNK_ROWS), ("balanced", None), ("fast", None)]
)
def test_an_answer_takes_what_was_estimated(
    dtype, prefix: int, block: int, cfg: float, speed: str, chunk_rows: int | None
) -> None:
    net, policy = network(dtype), text_policy.SPEEDS[speed]
    how = {"cfg": cfg, "temperature": 1.0, "policy": policy}
    settings = text_sampling.TextSettings(max_tokens=block, steps=2, block_length=block, **how)
    with LiveBytes(answer=block) as measured:
        ids = torch.zeros(1, prefix, dtype=torch.int64, device="meta")
        text_sampling.sample_text(net, tokens.RELEASED, ids, settings=settings, chunk_rows=chunk_rows, graphs=False)
    shape = {"rows": block, "branches": 1 + (cfg > 0), "itemsize": dtype.itemsize, "keeps": policy.keeps}
    sequence = {"batch": 1, "length": prefix + block + 2, "answer": block + 2}
    assert holds(memory.text_bytes(net.config, **sequence, **shape, chunk_rows=chunk_rows), measured.peak)


def test_a_long_answer_to_a_small_picture_takes_what_was_estimated() -> None:
    """Where the answer is most of the sequence, a pass over it takes more than the first pass, whose keys it has."""
    net, policy = network(torch.float32), text_policy.SPEEDS["balanced"]
    settings = text_sampling.TextSettings(max_tokens=4096, steps=256, block_length=32, policy=policy)
    calls = iter(range(2))

    def twice(*_) -> None:
        if next(calls):
            raise InterruptedError

    with LiveBytes(answer=32) as measured, pytest.raises(InterruptedError):
        ids = torch.zeros(1, 300, dtype=torch.int64, device="meta")
        text_sampling.sample_text(net, tokens.RELEASED, ids, settings=settings, on_step=twice, graphs=False)
    shape = {"rows": 32, "branches": 1, "itemsize": 4, "keeps": True}
    assert holds(memory.text_bytes(net.config, batch=1, length=300 + 4098, answer=4098, **shape), measured.peak)


@pytest.fixture
def pool(monkeypatch) -> None:
    """Recordings, each of which takes its memory from one pool and gives nothing back, as CUDA graphs do."""
    held = []

    def record(_, run) -> SimpleNamespace:
        with LiveBytes() as own:
            run()
        most = max([own.peak, *(part.nbytes for part in held)])
        held.clear()
        held.append(torch.empty(most, dtype=torch.uint8, device="meta"))
        return SimpleNamespace(replay=lambda: None)

    monkeypatch.setattr(passes.Recorder, "record", record)


HOW = pytest.mark.parametrize(
    ("packed", "chunk_rows"),
    [(False, None), (True, None), (True, memory.CHUNK_ROWS)],
    ids=["recorded", "together", "in parts"],
)


def by_tens(holes: int, steps: int) -> list[int]:
    """A schedule of many steps, of which a test runs the first."""
    return [holes - 10 * step for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("cells", "prefix", "branches", "policy"),
    [
        pytest.param((64, 64), 60, 1, None, id="1024x1024"),
        pytest.param((32, 32), 1120, 2, LITTLE, id="edit 512x512"),
        pytest.param((32, 32), 60, 1, LITTLE, id="512x512"),
    ],
)
@HOW
def test_sampling_together_or_recorded_takes_what_was_estimated(
    pool, cells: tuple[int, int], prefix: int, branches: int, policy, packed: bool, chunk_rows: int | None
) -> None:
    settings = sampling.ImageSettings(steps=4 if policy else 2, cache=policy, schedule=by_tens)
    how = {"chunk_rows": chunk_rows, "packed": packed, "graphs": not packed}
    assert holds(*picture_bytes(torch.bfloat16, cells, prefix, branches, settings, **how))


def test_recorded_steps_with_corrections_take_what_was_estimated(pool) -> None:
    more = {"corrections": 100, "corrections_start": 0.0}
    settings = sampling.ImageSettings(steps=4, cache=LITTLE, schedule=by_tens, **more)
    assert holds(*picture_bytes(torch.bfloat16, (32, 32), 60, 1, settings, graphs=True))


@pytest.mark.parametrize(
    ("prefix", "block", "cfg", "speed"),
    [(4300, 32, 0.0, "balanced"), (4300, 32, 1.0, "balanced"), (1200, 64, 1.0, "balanced"), (1200, 128, 1.0, "exact")],
)
@HOW
def test_an_answer_together_or_recorded_takes_what_was_estimated(
    pool, monkeypatch, prefix: int, block: int, cfg: float, speed: str, packed: bool, chunk_rows: int | None
) -> None:
    seen = text_sampling.Seen
    monkeypatch.setattr(text_sampling, "Seen", lambda undecided, _: seen(undecided, 0))  # no hole stays open
    net, policy = network(torch.bfloat16), text_policy.SPEEDS[speed]
    settings = text_sampling.TextSettings(
        max_tokens=2 * block, steps=6, block_length=block, cfg=cfg, temperature=1.0, policy=policy
    )
    how = {"chunk_rows": chunk_rows, "packed": packed, "graphs": not packed}
    with LiveBytes(answer=block) as measured:
        ids = torch.zeros(1, prefix, dtype=torch.int64, device="meta")
        text_sampling.sample_text(net, tokens.RELEASED, ids, settings=settings, **how)
    plan = {"batch": 1, "length": prefix + 2 * block + 2, "answer": 2 * block + 2, "rows": block}
    shape = {"branches": 1 + (cfg > 0), "itemsize": 2, "keeps": policy.keeps, "refreshes": policy.keeps}
    assert holds(memory.text_bytes(net.config, **plan, **shape, **how), measured.peak)


def quantised_network(dtype: torch.dtype, kind: str):
    """The network with weights as in a file that `convert` writes."""
    core, how = (nodepack.part(f"dimoo_core.{name}") for name in ("model.quantised", "checkpoint.convert"))
    net = network(dtype, ops=core.LAYERS)
    for name, part in net.named_modules():
        layer = how.quantised_as(f"{name}.weight", kind, getattr(part, "in_features", 0))
        if layer is not None:
            rows, across = part.weight.shape
            part.quantisation, part.input_scale = layer, None  # None: nor is the product of fp8, which takes less
            scale = torch.zeros(layer.format.scale_shape(rows), device="meta")
            weight = torch.zeros(rows, across, device="meta").to(layer.format.dtype)
            part.weight, part.weight_scale = (torch.nn.Parameter(one, requires_grad=False) for one in (weight, scale))
    found = [getattr(part, "quantisation", None) for part in net.modules()]
    return net, {one.format for one in found if one is not None}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize(("tokens", "chunk_rows"), [(40, None), (4220, None), (4220, memory.CHUNK_ROWS)])
def test_a_pass_with_quantised_weights_takes_what_was_estimated(
    dtype, kind: str, tokens: int, chunk_rows: int | None
) -> None:
    net, formats = quantised_network(dtype, kind)
    ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    with torch.no_grad(), LiveBytes() as measured:
        net(ids, rows=ids[:, :32], vocab=slice(0, 8192), chunk_rows=chunk_rows)
    rows = {"logits": 8192, "rows": 32, "chunk_rows": chunk_rows}
    plain = memory.forward_bytes(net.config, tokens, dtype.itemsize, **rows)
    layer = memory.quantised_bytes(net.config, dtype.itemsize, formats, tokens, chunk_rows)
    assert plain < measured.peak <= plain + layer, "needed, enough, and too much by less than itself"


def test_a_pass_in_chunks_that_holds_its_weights_takes_what_was_estimated() -> None:
    layers = nodepack.part("nodes.host").layers(torch.bfloat16, torch.float32, torch.device("meta"))
    net = network(torch.bfloat16, ops=layers)  # every weight is cast, as one that streams is brought in
    ids = torch.zeros(1, 4220, dtype=torch.int64, device="meta")
    rows = text_rows.TextRows(lambda found: torch.empty(*found.shape, 4096, device="meta"), [0], offset=net.code_offset,
                              room=0, device=torch.device("meta"))  # fmt: skip
    with torch.no_grad(), LiveBytes() as measured:
        net(ids, rows=ids[:, :32], vocab=tokens.RELEASED.codes, chunk_rows=memory.CHUNK_ROWS, text_rows=rows)
    plain = memory.forward_bytes(net.config, 4220, 4, logits=8192, rows=32, chunk_rows=memory.CHUNK_ROWS)
    assert plain < measured.peak <= plain + memory.held_bytes(net.config, 4, ()), "needed, and enough"


def test_a_model_with_quantised_weights_asks_for_their_room_too(loaded, monkeypatch) -> None:
    host, quantised, rooms = nodepack.part("nodes.host"), nodepack.part("dimoo_core.model.quantised"), []
    jobs, text = nodepack.part("dimoo_core.jobs"), nodepack.part("dimoo_core.sampling.text")
    monkeypatch.setattr(host, "ready", lambda _, scratch, beside: rooms.append(scratch) or torch.device("cpu"))
    monkeypatch.setattr(host, "resident", lambda *_: True)
    for formats in ((), (quantised.FP8,)):
        core = replace(loaded[0].core, formats=formats)
        model = replace(loaded[0], core=core, streaming=nodepack.part("nodes.sockets").Streaming(found=False))
        model.place(jobs.plan_text(model.core, [torch.zeros(1, 2, 2, dtype=torch.int64)], "x", text.TextSettings()))
    shape = loaded[0].core.transformer.config
    assert rooms[1] >= rooms[0] + 4 * shape.d_model * shape.mlp_hidden_size


class WithCopies(LiveBytes):
    """Counts as if each convolution copied what goes in and comes out, as kernels on a GPU do: a decode at 1024x1024 px
    took 4.6 GB on an H200, of which torch's own tensors are 2.7."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if "convolution" in str(function):
            self.peak = max(self.peak, self.now + args[0].nbytes + result.nbytes)
        return result


def vq_peaks(module, size: tuple[int, int], tile: int | None) -> tuple[int, int]:
    """Bytes that decoding and encoding a picture of `size` (h, w) px take."""
    height, width = size
    with WithCopies() as decoding:
        module.decode(torch.zeros(1, height // 16, width // 16, dtype=torch.int64, device="meta"), tile=tile)
    picture = torch.zeros(1, height, width, 3, device="meta").movedim(-1, 1)  # as ComfyUI's lie in memory
    with WithCopies() as encoding:
        module.encode(picture, tile=tile)
    return decoding.peak, encoding.peak


def check_vq(size: tuple[int, int], dtype: torch.dtype, tile: int | None) -> tuple[int, int]:
    """Holds the memory against what is counted, and gives that: decoding, encoding."""
    shape = config.VQConfig.from_dict(RELEASED_VQ)
    decoding, encoding = vq_peaks(vq.VQ(shape, device="meta", dtype=dtype), size, tile)
    assert holds(memory.decode_bytes(shape, size, dtype.itemsize, tile=tile), decoding)
    assert holds(memory.encode_bytes(shape, size, dtype.itemsize, tile=tile), encoding)
    return decoding, encoding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [(512, 512), (1024, 1024), (768, 1536), (4096, 4096)])
def test_the_vq_takes_what_was_estimated(dtype: torch.dtype, size: tuple[int, int]) -> None:
    decoding, encoding = check_vq(size, dtype, None)
    if size == (1024, 1024):
        assert decoding < 1.16e9 * dtype.itemsize and encoding < 0.69e9 * dtype.itemsize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [(512, 512), (1024, 1024), (768, 1536), (2048, 2048)])
def test_the_vq_in_tiles_takes_what_was_estimated(dtype: torch.dtype, size: tuple[int, int]) -> None:
    decoding, encoding = check_vq(size, dtype, TILE)
    if size == (1024, 1024):
        assert max(decoding, encoding) < 0.25e9 * dtype.itemsize


@pytest.mark.parametrize(("dtype", "measured"), [(torch.float32, 4.6e9), (torch.bfloat16, 2.3e9)])
def test_what_is_estimated_is_not_below_what_a_gpu_took(dtype: torch.dtype, measured: float) -> None:
    shape = config.VQConfig.from_dict(RELEASED_VQ)  # on an H200, torch 2.11
    assert measured <= memory.decode_bytes(shape, (1024, 1024), dtype.itemsize) < 1.1 * measured


def test_the_palette_takes_what_was_estimated() -> None:
    shape = config.VQConfig.from_dict(RELEASED_VQ)
    module = vq.VQ(shape, device="meta")  # beforehand: weights are no part of an estimate
    with WithCopies() as palette:
        module.mean_colours("meta")
    assert holds(memory.palette_bytes(shape, 4), palette.peak) and palette.peak < 0.2e9


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
    tables = loaded[0].core.transformer.text_tables
    rows = text_rows.TextRows(tables.embedding, [0], offset=272, room=0, device=torch.device("meta"))
    jobs = {
        loaded[0].head.model: [lambda head: head["text_head"](torch.zeros(1, 32, device="meta"))],
        loaded[0].core.transformer: [
            lambda net: net(ids, text_rows=rows),
            lambda net: net(ids, rows=ids[:, :3], vocab=slice(272, 304), text_rows=rows),
        ],
        loaded[1].vq: [
            lambda net: net.decode(ids.view(1, 5, 8)),
            lambda net: net.decode(ids.view(1, 5, 8), tile=2**10),
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
        host.ready([patcher], 0)
        assert patcher in [entry.model for entry in comfy.model_management.current_loaded_models]
    comfy.model_management.unload_all_models()
    held = [entry.model for entry in comfy.model_management.current_loaded_models]
    assert loaded[0].patcher not in held and loaded[1].patcher not in held
    assert loaded[1].decode(torch.zeros(1, 2, 2, dtype=torch.int64)).shape == (1, 3, 32, 32)


@pytest.fixture
def asked(loaded, monkeypatch):
    """The VQ, and in which way each picture was decoded: whole (None) or in tiles. `free` is what ComfyUI tells."""
    import comfy.model_management

    module, ways = loaded[1].vq, []
    honest = module.decode

    def decode(codes, *, tile=None):
        ways.append(tile)
        if tile is None and decode.fails is not None:
            raise decode.fails
        return honest(codes, tile=tile)

    decode.fails, decode.ways, decode.free = None, ways, 2**40
    monkeypatch.setattr(module, "decode", decode)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: decode.free)
    return loaded[1], decode


CODES = torch.zeros(2, 3, 2, dtype=torch.int64)


def test_strips_serve_where_memory_is_short(asked) -> None:
    loaded_vq, decode = asked
    plenty = loaded_vq.decode(CODES)
    decode.free = memory.decode_bytes(loaded_vq.vq.config, (48, 32), 4) - 1
    little = loaded_vq.decode(CODES)
    assert decode.ways == [None, None, TILE, TILE]
    assert plenty.shape == (2, 3, 48, 32) and torch.allclose(plenty, little, atol=1e-4)


def test_out_of_memory_is_met_with_strips_and_nothing_else_is(asked) -> None:
    import comfy.model_management as management

    loaded_vq, decode = asked
    decode.fails = management.OOM_EXCEPTION("no memory")
    assert loaded_vq.decode(CODES).shape == (2, 3, 48, 32)
    assert decode.ways == [None, TILE] * 2
    for error in (management.InterruptProcessingException(), ValueError("another")):
        decode.fails, decode.ways[:] = error, []
        with pytest.raises(type(error)):
            loaded_vq.decode(CODES)
        assert decode.ways == [None], "a cancel must stop the work"


def test_out_of_memory_in_strips_too_reaches_comfyui(asked, monkeypatch) -> None:
    import comfy.model_management as management

    def never(codes, *, tile=None):
        raise management.OOM_EXCEPTION("no memory")

    monkeypatch.setattr(asked[0].vq, "decode", never)
    with pytest.raises(management.OOM_EXCEPTION):
        asked[0].decode(CODES)


@pytest.fixture
def short(monkeypatch):
    """Pretends that there are so many `free` bytes, and notes for how much room ComfyUI was asked, and what the
    transformer was told to work on at a time. Parts are small, since the model is."""
    import comfy.model_management as management

    rooms, told, load = [], [], management.load_models_gpu

    def noted(plan: type) -> None:
        honest = plan.run
        monkeypatch.setattr(
            plan, "run", lambda own, where, *rest: told.append(where.chunk_rows) or honest(own, where, *rest)
        )

    def loading(models, memory_required=0, **options) -> None:
        rooms.append(memory_required)
        load(models, memory_required=memory_required, **options)

    noted(jobs.ImagePlan), noted(jobs.TextPlan)
    monkeypatch.setattr(management, "load_models_gpu", loading)
    monkeypatch.setattr(nodepack.part("nodes.host"), "free_bytes", lambda _: state.free)
    monkeypatch.setattr(memory, "CHUNK_ROWS", 48)
    state = SimpleNamespace(free=2**40, rooms=rooms, told=told)
    return state


def test_a_picture_is_the_same_where_memory_is_short(loaded, short) -> None:
    nodes = nodepack.nodes()
    picture = torch.linspace(0, 1, 3 * 256 * 256).view(1, 256, 256, 3)
    prompt, blank, *_ = nodepack.run(nodes["DimooImageEdit"], vq=loaded[1], image=picture, text="x", side=256)
    ask = {"model": loaded[0], "prompt": prompt, "canvas": blank, "seed": 3, "steps": 4}
    nodepack.run(nodes["DimooSampler"], **ask)  # makes the palette
    short.rooms.clear(), short.told.clear()
    plenty = nodepack.run(nodes["DimooSampler"], **ask)[0]
    short.free = short.rooms[0] - 1
    little = nodepack.run(nodes["DimooSampler"], **ask)[0]
    assert torch.equal(plenty.codes, little.codes) and short.told == [None, 48]
    whole, again, in_parts = short.rooms
    assert whole == again > in_parts


def test_an_answer_is_the_same_where_memory_is_short(loaded, short) -> None:
    ask = {"max_tokens": 8, "steps": 8, "block_length": 4, "image": torch.rand(1, 128, 128, 3), "question": "What?"}
    describe = nodepack.nodes()["DimooDescribe"]
    plenty = nodepack.run(describe, model=loaded[0], vq=loaded[1], **ask)[0]
    short.free = short.rooms[-1] - 1
    short.rooms.clear()
    little = nodepack.run(describe, model=loaded[0], vq=loaded[1], **ask)[0]
    assert plenty == little and short.told == [None, 48]
    assert short.rooms[-2] == short.free + 1 >= short.rooms[-1]
