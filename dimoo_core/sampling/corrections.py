"""Corrections while a picture forms: hasty decisions are taken back (remasking by trajectory, arXiv 2602.02927).

At every step the model's probability of the codes that already stand is read as well, and averaged over the steps; the
cells where it is lowest are masked again, while as many more holes are decided. So a picture takes the same passes and
has as many cells decided after each of them. (`corrector_k` of diffusers' DiscreteDDIMScheduler is nearest, but its
sweeps are passes of their own; the cells of a ReMDM sampler, arXiv 2503.00307, are drawn.)

Shapes: B batch, m cells that were holes at the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Trajectory:
    """How probable the code of each cell has been on average since it was decided."""

    def __init__(self, holes: Tensor):
        """holes bool [B,m]: the cells that may ever be masked."""
        self._holes = self._open = holes
        self._sum = self._steps = torch.zeros(holes.shape, device=holes.device)

    def add(self, probs: Tensor, unknown: Tensor) -> None:
        """Takes in a step's probabilities [B,m] of the codes that stand. unknown bool [B,m]: the cells that were open
        in that step; nothing stands there, and their means start anew."""
        self._open = unknown
        self._sum = (self._sum + probs).masked_fill(unknown, 0)
        self._steps = (self._steps + 1).masked_fill(unknown, 0)

    def least_probable(self, count: Tensor) -> Tensor:
        """The cells to be masked again, bool [B,m]: those count[b] of the decided holes whose mean is lowest; count
        [B]."""
        decided = self._holes & ~self._open
        mean = (self._sum / self._steps).masked_fill(~decided, torch.inf)
        ranks = mean.argsort(dim=1, stable=True).argsort(dim=1)
        return decided & (ranks < count[:, None])


def corrected_per_step(plans: Sequence[Sequence[int]], total: int, corrections: int, start: float) -> Tensor:
    """Cells that each item may mask again at each step, int64 [steps,B]: no more than its plan leaves open, none in the
    first `start` of its own steps."""

    def at(plan: Sequence[int], step: int) -> int:
        return min(corrections, plan[step]) if int(start * len(plan)) <= step < len(plan) else 0

    return torch.tensor([[at(plan, step) for plan in plans] for step in range(total)])
