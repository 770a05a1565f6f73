"""The memory of a step, counted without data: what nano really takes, and what the 8B would."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from dimoo_core.checkpoint.convert import KINDS
from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.checkpoint.load import load_transformer
from dimoo_core.model.adapters import Adapter, Adapters, Applied
from dimoo_core.training.footprint import (
    StepShape,
    blank_base,
    bytes_of,
    lora_step_cost,
    peak_of_steps,
    products_per_second,
)
from dimoo_core.training.optimise import OptimiserSettings, build_optimisers

SHAPE = StepShape(8, 8, prompt=30, batch=2)
NANO_FOUND = find(NANO)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_counted_is_what_nano_takes(nano_files: dict[str, Path], kind: str, recompute: bool) -> None:
    vocab = NANO_FOUND.table.codes
    blank = blank_base(NANO_FOUND.config, NANO_FOUND.table.code_offset, kind, torch.bfloat16)
    counted = lora_step_cost(blank, SHAPE, rank=16, vocab=vocab, recompute=recompute).bytes
    network = load_transformer(find(nano_files[kind])).recompute(recompute)
    adapter = Adapter.blank(network, rank=16, alpha=16.0)
    trained = list(adapter.parameters())
    held = peak_of_steps(
        partial(network, adapters=Adapters([Applied(adapter)])),
        trained,
        build_optimisers(adapter.named_parameters(), OptimiserSettings()),
        SHAPE.hidden(vocab, "cpu"),
    )
    measured = bytes_of([*network.parameters(), *trained]) + held
    assert counted == pytest.approx(measured, rel=0.1)


def test_stored_weights_and_recomputing_save_what_they_should() -> None:
    def cost(kind: str, *, recompute: bool = True) -> int:
        blank = blank_base(NANO_FOUND.config, NANO_FOUND.table.code_offset, kind, torch.bfloat16)
        return lora_step_cost(blank, SHAPE, rank=4, vocab=NANO_FOUND.table.codes, recompute=recompute).bytes

    assert cost("int8") < cost("bf16") < cost("bf16", recompute=False)


def test_a_larger_rank_and_a_longer_sequence_cost_more() -> None:
    blank = blank_base(NANO_FOUND.config, NANO_FOUND.table.code_offset, "bf16", torch.bfloat16)
    cost = partial(lora_step_cost, blank, vocab=NANO_FOUND.table.codes)
    plain = cost(SHAPE, rank=4)
    assert cost(SHAPE, rank=8).bytes > plain.bytes
    longer = cost(StepShape(8, 8, prompt=60, batch=2), rank=4)
    assert longer.bytes > plain.bytes and longer.flops > plain.flops
    fewer = cost(SHAPE, rank=4, targets=("q_proj",))
    assert fewer.bytes < plain.bytes and fewer.flops < plain.flops


@pytest.mark.parametrize(("kind", "side", "most"), [("int8", 1024, 12.5), ("bf16", 1024, 19.5), ("int8", 512, 10.8)])
def test_a_step_beside_the_8b_fits_the_cards_that_it_should(kind: str, side: int, most: float) -> None:
    from bench.training import lora_cost  # what `python -m bench.training` prints

    assert most - 1.5 < lora_cost(kind, side).bytes / 1e9 <= most


def test_products_are_timed() -> None:
    assert products_per_second(torch.device("cpu"), side=256, seconds=0.001) > 1e6
