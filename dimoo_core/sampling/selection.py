"""The choices of one sampling step, of images and of text: the holes, a token for each, how sure, what stays open.

Shapes: B batch, N places, m holes, K codes or vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

MAX_TEMPERATURE = 10.0


def hole_index(unknown: Tensor) -> Tensor:
    """Indices [B,m] of the holes of unknown [B,N], ascending; m is the largest count of the batch, and an item with
    fewer is filled up with cells that are none. The one host sync of a step."""
    most = int(unknown.sum(dim=1).max())
    return (~unknown).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]


def gumbel_argmax(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """A sample [...] of softmax(logits / temperature) for logits and Gumbel noise [...,K]."""
    return (logits / temperature + noise).argmax(dim=-1)


def decided_in_parts(
    logits: Callable[[slice], Tensor], drawing: Iterable[tuple[slice, Tensor | None]], temperature: float
) -> tuple[Tensor, Tensor]:
    """Token and its probability per hole, [B,m] each, a part of the m holes at a time: widened, and with the noise,
    logits take several times what they take as they come.

    logits: those of a part, [B,part,K]. drawing: the parts and the noise [B,part,K] for each (None: the likeliest).
    """
    sampled, certain = [], []
    for part, drawn in drawing:
        wide = logits(part)
        sampled.append(wide.argmax(dim=-1) if drawn is None else gumbel_argmax(wide, drawn, temperature))
        certain.append(probability(wide, sampled[-1]))
        del wide, drawn  # before the next part is drawn
    return torch.cat(sampled, dim=1), torch.cat(certain, dim=1)


def probability(logits: Tensor, index: Tensor) -> Tensor:
    """softmax(logits [B,m,K]) at index [B,m], at temperature 1 whatever was sampled with.

    Not exp(logit - logsumexp): for large logits that loses the digits in which near-certain cells differ.
    """
    return logits.softmax(dim=-1).gather(2, index[..., None])[..., 0]


def stays_masked(log_confidence: Tensor, keep: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Which of the cells stay masked: the keep[b] lowest of `log confidence + temperature * noise`, bool [B,m].

    log_confidence and noise [B,m], keep [B] in 0..m-1. Cells that tie with the first one above the cut are decided,
    so ties leave fewer than keep[b] masked, as in the released code.
    """
    score = log_confidence + temperature * noise
    cut = score.sort(dim=-1).values.gather(1, keep[:, None])
    return score < cut
