"""The decisions of one sampling step, of images and of text: where the holes are, a token for each, how probable it is,
and which holes stay open.

Which cells of an image stay masked is chosen by an order, see `orders`; here is the released one.

Shapes: B batch, N cells or answer tokens, m holes, K codes or vocabulary rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_TEMPERATURE = 10.0


class Holes:
    """Whether the model's numbers are still finite, and what the host must know of a step, such as how many holes are
    left: read from the device together, the one time in a step that the host waits for it."""

    def __init__(self, device: torch.device):
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._step = 0

    def read(self, *counts: Tensor) -> list[int]:
        """The numbers of `counts`, int64 of any shapes and none below 0, one after the other. Raises ValueError where a
        probability was not finite."""
        flat = [count.reshape(-1) for count in counts]
        told = torch.where(self._finite, flat[0] if len(flat) == 1 else torch.cat(flat), -1)
        numbers = told.cpu().tolist() if told.numel() > 1 else [int(told)]
        check_finite(numbers[0] >= 0, self._step)
        return numbers

    def record(self, probability: Tensor, step: int) -> None:
        """Takes the probabilities [B,m] of step `step`, from 0, into the next check."""
        self._finite = self._finite & torch.isfinite(probability).all()
        self._step = step

    def finish(self) -> None:
        """Raises ValueError where the last step's probabilities were not finite."""
        check_finite(int(torch.where(self._finite, 1, -1)) >= 0, self._step)


def check_finite(finite: bool, step: int) -> None:
    """Raises ValueError unless what the model computed at `step`, from 0, was finite."""
    if not finite:
        raise ValueError(
            f"The model's numbers are not finite (step {step + 1}): the weights hold NaN or infinity, or outgrow the "
            "dtype; download the checkpoint again, load it in bf16 or fp32, or lower the strength of a LoRA."
        )


def first_holes(unknown: Tensor, most: int) -> Tensor:
    """Indices [B,most] of the holes of unknown [B,N], ascending, then of other cells; no host sync."""
    return (~unknown).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]


def gumbel_argmax(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """A sample [...] of softmax(logits / temperature) for logits and Gumbel noise [...,K]."""
    return (logits / temperature + noise).argmax(dim=-1)


@dataclass(frozen=True, eq=False)
class Standing:
    """What stands at m cells already, and is to stay but for some cells.

    tokens [B,m]. redrawn bool [B,m]: cells that may get another token; what stands at the others stays. least_share:
    they keep theirs too, unless its probability is below this share of the likeliest token's (None: they all get
    another).
    """

    tokens: Tensor
    redrawn: Tensor
    least_share: float | None = None

    def or_drawn(self, drawn: Tensor, logits: Tensor, chunk: slice) -> Tensor:
        """The tokens [B,chunk] of these cells after the step that has `drawn` [B,chunk] from logits [B,chunk,K]."""
        standing, redrawn = self.tokens[:, chunk], self.redrawn[:, chunk]
        if self.least_share is not None:
            behind = logits.amax(dim=-1) - logits.gather(2, standing[..., None])[..., 0]
            redrawn = redrawn & (behind > -math.log(self.least_share))
        return torch.where(redrawn, drawn, standing)


def decide_in_chunks(
    logits: Callable[[slice], Tensor],
    noise: Iterable[tuple[slice, Tensor | None]],
    temperature: float,
    standing: Standing | None = None,
) -> tuple[Tensor, Tensor]:
    """Token and its probability per hole, [B,m] each, a chunk of the m holes at a time: in fp32 or wider, and with the
    noise, logits take several times the memory of the model's own.

    logits: those of a chunk, [B,chunk,K]. noise: the chunks, and Gumbel noise [B,chunk,K] for each (None: take the
    likeliest token). standing: what stands there already (None: nothing, every cell gets a token).
    """
    tokens, probs = [], []
    for chunk, gumbel in noise:
        wide = logits(chunk)
        drawn = wide.argmax(dim=-1) if gumbel is None else gumbel_argmax(wide, gumbel, temperature)
        tokens.append(drawn if standing is None else standing.or_drawn(drawn, wide, chunk))
        probs.append(probability(wide, tokens[-1]))
        del wide, gumbel  # before the noise of the next chunk is drawn
    return torch.cat(tokens, dim=1), torch.cat(probs, dim=1)


def probability(logits: Tensor, index: Tensor) -> Tensor:
    """softmax(logits [B,m,K]) at index [B,m], at temperature 1 whatever was sampled with.

    Not exp(logit - logsumexp): for large logits that loses the digits in which near-certain cells differ.
    """
    return logits.softmax(dim=-1).gather(2, index[..., None])[..., 0]


def least_confident(log_prob: Tensor, keep: Tensor, gumbel: Tensor, temperature: float) -> Tensor:
    """Which cells stay masked, bool [B,m]: the keep[b] lowest of `log prob + temperature * gumbel` (MaskGIT, arXiv
    2202.04200, with a constant temperature, as the released code does).

    log_prob and gumbel [B,m], keep [B] in 0..m-1. Cells that tie with the first one above the cut are decided, so ties
    leave fewer than keep[b] masked, as in the released code.
    """
    score = log_prob + temperature * gumbel
    cut = score.sort(dim=-1).values.gather(1, keep[:, None])
    return score < cut
