"""Orders: which cells of a step are decided. All keep the schedule; where the next cell comes from is their own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimoo_core.sampling.noise import Noise
from dimoo_core.sampling.orders import ORDERS, Candidates, by_chance, by_halton, halton_ranks
from dimoo_core.sampling.selection import least_confident

CPU = torch.device("cpu")


def candidates(
    height: int = 8, width: int = 8, *, seed: int = 0, batch: int = 1, step: int = 0, share: float = 1.0, keep: int = 20
) -> Candidates:
    chance = torch.Generator().manual_seed(seed)
    unknown = torch.rand(batch, height * width, generator=chance) < share
    unknown[:, 0] = True
    return Candidates(
        cells=torch.arange(height * width).expand(batch, -1),
        unknown=unknown,
        log_prob=torch.randn(unknown.shape, generator=chance).masked_fill(~unknown, torch.inf),
        keep=(unknown.sum(dim=1) - 1).clamp(max=keep),
        grid=(height, width),
        temperature=1.0,
        noise=Noise(seed, batch, "cpu", 8),
        step=step,
    )


@pytest.mark.parametrize("order", ORDERS)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    share=st.floats(0, 1),
    keep=st.integers(0, 80),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_as_many_open_cells_stay_masked_as_asked(order: str, height, width, share, keep, seed) -> None:
    asked = candidates(height, width, seed=seed, batch=2, share=share, keep=keep)
    masked = ORDERS[order](asked)
    assert not (masked & ~asked.unknown).any()
    counts = masked.sum(dim=1)
    if order == "confidence":
        assert (counts <= asked.keep).all(), "cells that tie are decided, as in the released code"
    else:
        assert torch.equal(counts, asked.keep)


def test_confidence_is_the_released_rule() -> None:
    asked = candidates(share=0.7)
    gumbel = asked.noise.for_remask(asked.step, asked.cells)
    assert torch.equal(ORDERS["confidence"](asked), least_confident(asked.log_prob, asked.keep, gumbel, 1.0))


def test_the_halton_sequence_starts_as_its_definition_says() -> None:
    """Points 1 to 5: 1/2 1/4 3/4 1/8 5/8 down, 1/3 2/3 1/9 4/9 7/9 across, of 8 x 9 cells."""
    ranks = halton_ranks(8, 9, CPU).view(8, 9)
    assert [ranks[cell].item() for cell in ((4, 3), (2, 6), (6, 1), (1, 4), (5, 7))] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1), (6, 10), (8, 8), (64, 64), (37, 110)])
def test_the_halton_sequence_reaches_every_cell_once(grid: tuple[int, int]) -> None:
    ranks = halton_ranks(*grid, CPU)
    assert torch.equal(ranks.sort().values, torch.arange(math.prod(grid)))


def test_cells_decided_together_lie_far_apart_with_halton() -> None:
    ranks = halton_ranks(16, 16, CPU)
    first = (ranks < 16).nonzero()[:, 0]
    places = torch.stack((first // 16, first % 16), dim=1).double()
    apart = torch.cdist(places, places).fill_diagonal_(99).amin()
    assert apart >= 2, "of 16 cells in 256 no two are neighbours"
    quarters = torch.bincount((first // 16 // 8) * 2 + first % 16 // 8, minlength=4)
    assert quarters.min() >= 3


def test_halton_decides_the_first_open_cells_of_its_sequence() -> None:
    asked = candidates(share=0.5, keep=5)
    masked, ranks = by_halton(asked)[0], halton_ranks(8, 8, CPU)
    decided = asked.unknown[0] & ~masked
    assert ranks[masked].min() > ranks[decided].max()


def test_chance_is_even_and_new_at_every_step_and_seed() -> None:
    counts = torch.stack([by_chance(candidates(seed=seed, keep=32))[0] for seed in range(400)]).double().mean(dim=0)
    assert (counts - 0.5).abs().max() < 5 * 0.5 / math.sqrt(400)
    drawn = [by_chance(candidates(seed=seed, step=step)) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_chance_asks_neither_certainty_nor_temperature() -> None:
    asked = candidates()
    other = Candidates(**{**vars(asked), "log_prob": -asked.log_prob, "temperature": 0.0})
    assert torch.equal(by_chance(asked), by_chance(other))
