"""What a pass of the 8B model asks of a device at 1024x1024, counted on meta tensors: nothing is computed.

The released code: 73.0 TFLOP a pass (the head over all positions and the whole vocabulary), 129 GB of traffic between
the matrix products, 1.1 GB of logits, 99 host syncs.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dimoo_core.cache import KeyValues
from dimoo_core.config import TransformerConfig
from dimoo_core.schedule import holes_left
from dimoo_core.tokens import RELEASED
from dimoo_core.transformer import Transformer

from .live_bytes import LiveBytes
from .op_counts import OpCounts, attention
from .tiny import TABLE, TRANSFORMER, random_weights

SHAPE = {"d_model": 4096, "n_layers": 32, "n_heads": 32, "mlp_hidden_size": 12288, "vocab_size": RELEASED.codes.stop}
LENGTH, CELLS, STEPS = 60 + 64 * 65 + 4, 64 * 64, 64
PLAN = [CELLS, *holes_left(CELLS, STEPS)[:-1]]
MEAN = round(sum(PLAN) / len(PLAN))  # holes before a step, over a whole run


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = TransformerConfig.from_dict({**TRANSFORMER, **SHAPE})
    where = {"device": "meta", "dtype": torch.bfloat16}
    made = Transformer(config, code_offset=RELEASED.code_offset, attention=attention, **where)
    return made.eval().requires_grad_(False)


def blank(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64, device="meta")


@torch.no_grad()
def counted(model: Transformer, length: int, **wanted) -> tuple[float, OpCounts, torch.Tensor]:
    """FLOP, operations and logits of a pass over `length` ids."""
    with FlopCounterMode(display=False) as flop, OpCounts() as ops:
        logits = model(blank(1, length), vocab=RELEASED.codes, **wanted)
    return flop.get_total_flops(), ops, logits


def test_a_pass_over_the_mean_of_a_runs_holes(model: Transformer) -> None:
    flop, ops, logits = counted(model, LENGTH, rows=blank(1, MEAN))
    assert MEAN == 2639 and 67e12 < flop <= 68.5e12
    assert 50e9 < ops.traffic() <= 60e9
    assert ops.count() <= 32 * 35 and not ops.waits
    assert logits.nbytes <= 0.05e9


def test_a_pass_over_all_holes_and_one_that_fills_a_cache(model: Transformer) -> None:
    for wanted in ({"rows": blank(1, CELLS)}, {"cache": KeyValues()}):
        flop, ops, logits = counted(model, LENGTH, **wanted)
        assert flop <= 68.7e12 and ops.traffic() <= 60e9 and not ops.waits
        assert logits.nbytes <= 0.07e9


def test_a_cached_pass_costs_its_share_and_waits_for_nothing(model: Transformer) -> None:
    store, share = KeyValues(), 423
    counted(model, LENGTH, cache=store)
    flop, ops, _ = counted(model, share, cache=store, positions=blank(1, share))
    assert flop <= 6.9e12 and ops.traffic() <= 6.5e9 and not ops.waits


def test_traffic_and_operations_grow_by_the_layer_alone(model: Transformer) -> None:
    """32 layers cost 16 times what 2 more than one cost: nothing outside the layers is forgotten or dear."""
    counts = []
    for layers in (1, 3):
        config = TransformerConfig.from_dict({**TRANSFORMER, **SHAPE, "n_layers": layers})
        part = Transformer(config, code_offset=RELEASED.code_offset, attention=attention, device="meta")
        counts.append(counted(part.to(torch.bfloat16), LENGTH, rows=blank(1, MEAN))[1])
    per_layer = (counts[1].traffic() - counts[0].traffic()) / 2
    whole = counted(model, LENGTH, rows=blank(1, MEAN))[1].traffic()
    assert whole - 31 * per_layer == counts[0].traffic() < 3e9


def test_working_in_parts_takes_less_memory(model: Transformer) -> None:
    peaks = []
    for rows in (None, 1024):
        with torch.no_grad(), LiveBytes() as live:
            model(blank(1, LENGTH), rows=blank(1, 1), vocab=RELEASED.codes, at_once=rows)
        peaks.append(live.peak)
    assert peaks[0] <= 0.29e9 and peaks[1] <= 0.25e9


@pytest.mark.parametrize("rows", [48, 64, 100, 1000])
def test_working_in_parts_changes_no_bit(rows: int) -> None:
    shape = {"d_model": 128, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 384}
    net = Transformer(TransformerConfig.from_dict(TRANSFORMER | shape), code_offset=TABLE.code_offset)
    random_weights(net, 0)
    ids = torch.arange(2 * 150).view(2, 150) % TABLE.codes.stop
    with torch.no_grad():
        assert torch.equal(net(ids), net(ids, at_once=rows))
    assert torch.allclose(net(ids), net(ids, at_once=rows), rtol=0, atol=1e-4), "with gradients too"


def test_the_lean_pass_gives_what_the_differentiable_one_gives() -> None:
    net = Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset)
    random_weights(net, 0)
    ids, rows = torch.arange(60).view(2, 30), torch.tensor([[3, 1], [29, 0]])
    given = ids.clone(), rows.clone()
    with torch.no_grad():
        lean = net(ids, rows=rows)
    assert torch.allclose(lean, net(ids, rows=rows), rtol=0, atol=1e-4)
    assert torch.equal(ids, given[0]) and torch.equal(rows, given[1])
