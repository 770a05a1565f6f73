"""What a pass of the 8B model asks of a device at 1024x1024, counted on meta tensors: nothing is computed.

The released code: 73.0 TFLOP a pass (the head over all positions and the whole vocabulary), 131 GB of traffic between
the matrix products and 1.1 GB of logits.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import counts
from bench.docs import Figures
from bench.op_counts import OpCounts
from bench.workload import RELEASED_SIZE
from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.transformer import Transformer
from dimoo_core.sampling.branch import KeyValues
from dimoo_core.sampling.ml_cache import PRESETS, PUBLISHED
from dimoo_core.sequence.token_table import RELEASED
from dimoo_core.training.footprint import attention
from dimoo_core.training.live_bytes import LiveBytes

from ..tiny import TABLE, TRANSFORMER, random_weights

LENGTH, CELLS = counts.PICTURE_LENGTH, 64 * 64
MEAN = counts.mean_holes()  # holes before a step, over a whole run


@pytest.fixture(scope="module")
def model() -> Transformer:
    return RELEASED_SIZE.build("meta", torch.bfloat16, attention=attention)


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
def counted(model: Transformer, length: int, **options) -> tuple[float, OpCounts, torch.Tensor]:
    """FLOP, operations and logits of a pass over `length` ids."""
    with FlopCounterMode(display=False) as flop, OpCounts() as ops:
        logits = model(blank(1, length), vocab=RELEASED.codes, **options)
    return flop.get_total_flops(), ops, logits


def test_a_pass_over_the_mean_of_a_runs_holes(passes: dict) -> None:
    flop, ops, logits = passes["mean"]
    assert MEAN == 2639 and 67e12 < flop <= 68.5e12
    assert 50e9 < ops.traffic() <= 60e9
    assert ops.count() <= 32 * 35 and not ops.waits
    assert logits.nbytes <= 0.05e9


def test_the_released_way_asks_for_more() -> None:
    ours, released = (counts.picture_passes()[name] for name in ("ours", "released"))
    assert released.flops == pytest.approx(73.0e12, rel=0.002) and ours.flops < 0.94 * released.flops
    assert released.traffic > 2 * ours.traffic and released.logits > 20 * ours.logits
    noted = Figures.load().performance["counted"]["passes"]
    assert noted == {"ours": asdict(ours), "released": asdict(released)}, "docs/performance.json; run nox -s docs"


@pytest.mark.parametrize("kind", ["first", "storing"])
def test_a_pass_over_all_holes_and_one_that_fills_a_cache(passes: dict, kind: str) -> None:
    flop, ops, logits = passes[kind]
    assert flop <= 68.7e12 and ops.traffic() <= 60e9 and not ops.waits
    assert logits.nbytes <= 0.07e9


def test_a_cached_pass_costs_its_share_and_waits_for_nothing(passes: dict) -> None:
    flop, ops, _ = passes["cached"]
    assert flop <= 6.9e12 and ops.traffic() <= 6.5e9 and not ops.waits


def test_the_formula_of_a_pass_is_what_torch_counts(passes: dict) -> None:
    assert passes["mean"][0] == counts.pass_flops(LENGTH, LENGTH, MEAN)
    assert passes["storing"][0] == counts.pass_flops(LENGTH, LENGTH, LENGTH)
    assert passes["cached"][0] == counts.pass_flops(423, LENGTH, 423)


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
PUBLISHED_SPEEDS = (2.00, 2.00)


@pytest.mark.parametrize("preset", [*PRESET_SPEEDS, "published"])
def test_presets_save_what_is_said_of_them(preset: str) -> None:
    policy = PRESETS.get(preset, PUBLISHED)
    saved = [round(counts.picture_flops(job, None) / counts.picture_flops(job, policy), 2) for job in counts.JOBS]
    assert saved == pytest.approx(PRESET_SPEEDS.get(preset, PUBLISHED_SPEEDS), abs=0.02)
    noted = Figures.load().performance["counted"]["shares"][preset]
    assert [round(1 / noted[job], 2) for job in counts.JOBS] == saved, "docs/performance.json; run nox -s docs"


def test_late_guidance_saves_the_share_of_its_branches() -> None:
    exact, late = counts.picture_flops("words", None), counts.picture_flops("words", None, 0.25)
    assert 1 - late / exact == pytest.approx(0.25 / 2, abs=0.005)
