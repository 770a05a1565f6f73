"""The masked-token objective: hide part of an answer, ask for what was hidden.

The hidden share of an answer is cos(pi r / 2) with r uniform in 0..1, as in MaskGIT (arXiv 2202.04200, section 3.2) and
Lumina-DiMOO's training. The loss is the cross entropy at hidden positions only, averaged within each answer first, so
that an answer of which little is hidden counts as much as one of which all is.

Shapes: B batch, L sequence, n positions of the answer, V vocabulary rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """Whole sequences of one length, and which part of them is the answer.

    ids [B,L]: the true sequences. positions [n]: where the answer's tokens stand. vocab: the rows they come from (None:
    all). maskable [B,n]: what may be hidden (None: all). whole [B]: answers of which all of that is hidden, not a
    share (None: none). weights [B,n]: how much each place counts (None: alike).
    share: how much the batch counts beside others.
    """

    ids: Tensor
    positions: Tensor
    vocab: slice | None = None
    maskable: Tensor | None = None
    whole: Tensor | None = None
    weights: Tensor | None = None
    share: float = 1.0

    def to(self, device: torch.device | str) -> Batch:
        """The batch for a model on `device`. What may be hidden stays: it is drawn on the CPU, the same everywhere."""
        weights = None if self.weights is None else self.weights.to(device)
        return replace(self, ids=self.ids.to(device), positions=self.positions.to(device), weights=weights)


def draw_hidden(maskable: Tensor, generator: torch.Generator, whole: Tensor | None = None) -> Tensor:
    """Which positions [B,n] to hide: at least one of each answer's `maskable` [B,n]; the share cos(pi r / 2) of them,
    or all where `whole` [B] says so."""
    shares = torch.cos(torch.rand(len(maskable), generator=generator) * (math.pi / 2))
    if whole is not None:
        shares = shares.masked_fill(whole, 1.0)
    counts = (shares * maskable.sum(dim=1)).floor().clamp(min=1)
    order = torch.rand(maskable.shape, generator=generator).masked_fill(~maskable, 2.0)
    ranks = order.argsort(dim=1).argsort(dim=1)
    return (ranks < counts[:, None]) & maskable


def masked_loss(model: nn.Module, batch: Batch, mask_id: int, generator: torch.Generator) -> Tensor:
    """The objective of one batch, a scalar; times its share."""
    answer = batch.ids[:, batch.positions]
    maskable = torch.ones(answer.shape, dtype=torch.bool) if batch.maskable is None else batch.maskable
    hidden = draw_hidden(maskable, generator, batch.whole).to(answer.device)
    ids = batch.ids.clone()
    ids[:, batch.positions] = answer.masked_fill(hidden, mask_id)
    logits = model(ids, rows=batch.positions.expand(len(ids), -1), vocab=batch.vocab).float()
    targets = answer - (batch.vocab.start if batch.vocab else 0)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(hidden)
    weights = hidden if batch.weights is None else hidden * batch.weights
    return batch.share * ((losses * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6)).mean()
