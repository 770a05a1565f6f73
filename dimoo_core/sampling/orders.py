"""Orders: which of a step's cells are decided, and which stay masked for the next. The schedule says how many.

An order is a function of `Candidates` -> bool [B,m], the cells that stay masked: keep[b] of the open ones, or fewer
where cells tie. A new one is a new function of this signature and a row of `ORDERS`.

LLaDA's sampler calls this choice "remasking"; diffusers has no name for it (its AmusedScheduler, BlockRefinement-
Scheduler and DiscreteDDIMScheduler each have one order of their own).

Shapes: B batch, N = H*W cells, m of them looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .noise import Noise
from .selection import least_confident


@dataclass(frozen=True, eq=False)
class Candidates:
    """The cells that a step could decide, and what an order may know of them.

    cells [B,m]: their places in the grid of (H, W) cells, row by row. unknown bool [B,m]: which are open; the others
    are known and never masked. log_prob [B,m]: of the codes just drawn, infinite where a cell is known. keep [B]: how
    many stay masked, fewer than are open (0 where none is). noise, step: what an order draws from.
    """

    cells: Tensor
    unknown: Tensor
    log_prob: Tensor
    keep: Tensor
    grid: tuple[int, int]
    temperature: float
    noise: Noise
    step: int


Order = Callable[[Candidates], Tensor]


def by_confidence(of: Candidates) -> Tensor:
    """The released order (MaskGIT, arXiv 2202.04200): the surest first, with noise."""
    still = of.temperature == 0
    gumbel = torch.zeros_like(of.log_prob) if still else of.noise.for_remask(of.step, of.cells)
    return least_confident(of.log_prob, of.keep, gumbel, of.temperature)


def by_halton(of: Candidates) -> Tensor:
    """Spread over the grid along a Halton sequence (arXiv 2503.17076): cells decided together lie far apart, so that
    they depend on each other as little as they can."""
    return _last(halton_ranks(*of.grid, of.cells.device)[of.cells], of)


def by_chance(of: Candidates) -> Tensor:
    """An even draw of the open cells, whatever the temperature."""
    return _last(of.noise.for_order(of.step, of.cells), of)


ORDERS: dict[str, Order] = {"confidence": by_confidence, "halton": by_halton, "random": by_chance}


def _last(places: Tensor, of: Candidates) -> Tensor:
    """bool [B,m]: the keep[b] open cells that come last by their int `places` [B,m]."""
    from_last = places.long().masked_fill(~of.unknown, torch.iinfo(torch.int64).min)
    ranks = from_last.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ranks < of.keep[:, None]


@lru_cache(maxsize=16)
def halton_ranks(height: int, width: int, device: torch.device) -> Tensor:
    """The rank 0..N-1 of each of H x W cells, int64 [N], as the points of the Halton sequence with bases 2 (down) and
    3 (across) reach them; points in a cell that was reached before are passed over."""
    cells, points = height * width, 4 * height * width
    while True:
        index = np.arange(1, points + 1)
        reached, first = np.unique(_mirrored(index, 2, height) * width + _mirrored(index, 3, width), return_index=True)
        if len(reached) == cells:
            return torch.from_numpy(first.argsort().argsort()).to(device)
        points *= 2


def _mirrored(index: np.ndarray, base: int, size: int) -> np.ndarray:
    """floor(size * the digits of `index` mirrored at the point), int64: in whole numbers, so that it is exact."""
    mirrored, whole = np.zeros_like(index), 1
    while index.any():
        mirrored, whole, index = mirrored * base + index % base, whole * base, index // base
    return mirrored * size // whole
