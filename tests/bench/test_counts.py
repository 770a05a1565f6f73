"""What a pass of the 8B model asks of a device at 1024x1024, counted on meta tensors: nothing is computed.

The released code: 73.0 TFLOP a pass (the head over all positions and the whole vocabulary), 129 GB of traffic between
the matrix products, 1.1 GB of logits, 99 host syncs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.live_bytes import LiveBytes
from bench.op_counts import OpCounts, attention
from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.transformer import Transformer
from dimoo_core.sampling.branch import KeyValues
from dimoo_core.sampling.guidance import Branch, Guidance
from dimoo_core.sampling.image import ImageSettings, sample_image
from dimoo_core.sampling.ml_cache import PRESETS, CachePolicy
from dimoo_core.sampling.schedule import cosine
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.token_table import RELEASED

from ..tiny import TABLE, TRANSFORMER, random_weights

SHAPE = {"d_model": 4096, "n_layers": 32, "n_heads": 32, "mlp_hidden_size": 12288, "vocab_size": RELEASED.codes.stop}
LENGTH, CELLS, STEPS = 60 + 64 * 65 + 4, 64 * 64, 64
PLAN = [CELLS, *cosine(CELLS, STEPS)[:-1]]
MEAN = round(sum(PLAN) / len(PLAN))  # holes before a step, over a whole run


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = TransformerConfig.from_dict({**TRANSFORMER, **SHAPE})
    where = {"device": "meta", "dtype": torch.bfloat16}
    made = Transformer(config, code_offset=RELEASED.code_offset, attention=attention, **where)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def passes(model: Transformer) -> dict[str, tuple[float, OpCounts, torch.Tensor]]:
    """The passes of a run, counted once: with its mean of holes, with all holes, into a cache, and a cached one."""
    store, share = KeyValues(), 423
    return {
        "mean": counted(model, LENGTH, rows=blank(1, MEAN)),
        "first": counted(model, LENGTH, rows=blank(1, CELLS)),
        "storing": counted(model, LENGTH, cache=store),
        "cached": counted(model, share, cache=store, positions=blank(1, share)),
    }


def blank(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64, device="meta")


@torch.no_grad()
def counted(model: Transformer, length: int, **wanted) -> tuple[float, OpCounts, torch.Tensor]:
    """FLOP, operations and logits of a pass over `length` ids."""
    with FlopCounterMode(display=False) as flop, OpCounts() as ops:
        logits = model(blank(1, length), vocab=RELEASED.codes, **wanted)
    return flop.get_total_flops(), ops, logits


def test_a_pass_over_the_mean_of_a_runs_holes(passes: dict) -> None:
    flop, ops, logits = passes["mean"]
    assert MEAN == 2639 and 67e12 < flop <= 68.5e12
    assert 50e9 < ops.traffic() <= 60e9
    assert ops.count() <= 32 * 35 and not ops.waits
    assert logits.nbytes <= 0.05e9


@pytest.mark.parametrize("kind", ["first", "storing"])
def test_a_pass_over_all_holes_and_one_that_fills_a_cache(passes: dict, kind: str) -> None:
    flop, ops, logits = passes[kind]
    assert flop <= 68.7e12 and ops.traffic() <= 60e9 and not ops.waits
    assert logits.nbytes <= 0.07e9


def test_a_cached_pass_costs_its_share_and_waits_for_nothing(passes: dict) -> None:
    flop, ops, _ = passes["cached"]
    assert flop <= 6.9e12 and ops.traffic() <= 6.5e9 and not ops.waits


def test_the_formula_of_a_pass_is_what_torch_counts(passes: dict) -> None:
    assert passes["mean"][0] == pass_flop(LENGTH, LENGTH, MEAN)
    assert passes["storing"][0] == pass_flop(LENGTH, LENGTH, LENGTH)
    assert passes["cached"][0] == pass_flop(423, LENGTH, 423)


def test_working_in_parts_takes_less_memory(model: Transformer) -> None:
    peaks = []
    for rows in (None, 1024):
        with torch.no_grad(), LiveBytes() as live:
            model(blank(1, LENGTH), rows=blank(1, 1), vocab=RELEASED.codes, chunk_rows=rows)
        peaks.append(live.peak)
    assert peaks[0] <= 0.29e9 and peaks[1] <= 0.25e9


@pytest.mark.parametrize("rows", [48, 64, 100, 1000])
def test_working_in_parts_changes_no_bit(rows: int) -> None:
    shape = {"d_model": 128, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 384}
    net = Transformer(TransformerConfig.from_dict(TRANSFORMER | shape), code_offset=TABLE.code_offset)
    random_weights(net, 0)
    ids = torch.arange(2 * 150).view(2, 150) % TABLE.codes.stop
    with torch.no_grad():
        assert torch.equal(net(ids), net(ids, chunk_rows=rows))
    assert torch.allclose(net(ids), net(ids, chunk_rows=rows), rtol=0, atol=1e-4), "with gradients too"


def test_the_lean_pass_gives_what_the_differentiable_one_gives() -> None:
    net = Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset)
    random_weights(net, 0)
    ids, rows = torch.arange(60).view(2, 30), torch.tensor([[3, 1], [29, 0]])
    given = ids.clone(), rows.clone()
    with torch.no_grad():
        lean = net(ids, rows=rows)
    assert torch.allclose(lean, net(ids, rows=rows), rtol=0, atol=1e-4)
    assert torch.equal(ids, given[0]) and torch.equal(rows, given[1])


# What a whole run costs ----------------------------------------------------------------------------------------------

# preset: how many times less FLOP than exact sampling, a picture from words at 1024x1024 and an edit at 512x512
PRESET_SPEEDS = {"quality": (1.48, 1.74), "balanced": (1.98, 2.95), "fast": (2.72, 4.17)}
PUBLISHED = (2.00, 2.00)
JOBS = {"words": (64, (60, 46)), "edit": (32, (1142, 1132, 84))}  # side in cells, prefixes of the branches


def pass_flop(computed: int, length: int, rows: int) -> int:
    """Of `computed` positions that see `length`; the last layer's queries and feed-forward, and the head, at `rows`."""
    width, hidden, layers = SHAPE["d_model"], SHAPE["mlp_hidden_size"], SHAPE["n_layers"]
    keys, others, seeing = 4 * width**2, 4 * width**2 + 6 * width * hidden, 4 * length * width
    head = 2 * width * RELEASED.codebook_size
    return (layers - 1) * computed * (keys + others + seeing) + computed * keys + rows * (others + seeing + head)


def run_flop(job: str, policy: CachePolicy | None, guidance_start: float = 0.0) -> int:
    """Of a whole picture in 64 steps, by the passes that the sampler asks for."""
    side, prefixes = JOBS[job]
    lengths, chance, total = {}, torch.Generator().manual_seed(0), 0

    def call(ids, *, positions=None, cache=None, rows=None, **_):
        nonlocal total
        computed = ids.shape[1]
        length = computed if positions is None else lengths[id(cache)]
        if cache is not None:
            lengths[id(cache)] = length
        wanted = computed if rows is None else rows.shape[1]
        total += pass_flop(computed, length, wanted)
        return torch.randn(1, wanted, table.codebook_size, generator=chance)

    table = replace(RELEASED, codebook_size=32)
    prefix, *others = (torch.zeros(1, length, dtype=torch.int64) for length in prefixes)
    plan = ImageSettings(steps=STEPS, cache=policy, guidance=Guidance(start=guidance_start))
    sample_image(call, table, Canvas.empty(1, side, side), prefix, [Branch(one, 4.0) for one in others], settings=plan)
    return total


@pytest.mark.parametrize("preset", [*PRESET_SPEEDS, "published"])
def test_presets_save_what_is_said_of_them(preset: str) -> None:
    policy = PRESETS.get(preset, CachePolicy())
    saved = [round(run_flop(job, None) / run_flop(job, policy), 2) for job in JOBS]
    assert saved == pytest.approx(PRESET_SPEEDS.get(preset, PUBLISHED), abs=0.02)


def test_late_guidance_saves_the_share_of_its_branches() -> None:
    exact, late = run_flop("words", None), run_flop("words", None, 0.25)
    assert 1 - late / exact == pytest.approx(0.25 / 2, abs=0.005)
