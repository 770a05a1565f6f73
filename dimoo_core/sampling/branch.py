"""One branch of guidance, the same for images and text: a prefix, the transformer, and the keys and values that stay
between passes. What a pass computes is its `Scope`; a policy (`ml_cache`, `text_cache`) chooses the scope of each step.

Shapes: B batch, P prefix, A answer, L = P + A sequence, n positions computed, r rows asked for, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

Forward = Callable[..., Tensor]  # the transformer, bound to the arguments that are the same at every pass


class Scope(Enum):
    """What a pass computes; everything else keeps the keys and values of the last pass that computed it."""

    ALL = "the prefix and the answer"
    ANSWER = "the answer"
    PART = "some positions"


class KeyValues:
    """Keys and values of one branch, layer by layer: a `KeyValueStore`. Given positions are written in place."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, positions: Tensor | None, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values [B,h,n,d] at positions [B,n] (None: all of them) and return all [B,h,L,d]."""
        if positions is None:
            self._layers[layer] = (keys, values)
            return keys, values
        stored = self._layers[layer]
        for whole, part in zip(stored, (keys, values), strict=True):
            write_rows(whole.transpose(1, 2), positions, part.transpose(1, 2))
        return stored


def write_rows(whole: Tensor, index: Tensor, rows: Tensor) -> None:
    """whole[b, index[b]] = rows[b] in place; whole [B,L,...], index [B,n], rows [B,n,...]. No host sync."""
    for item, where, row in zip(whole, index, rows, strict=True):
        item.index_copy_(0, where, row)


class BranchRunner:
    """Logits of one branch; owns its keys and values."""

    def __init__(self, forward: Forward, prefix: Tensor):
        """prefix [B,P]: the ids before the answer."""
        self.forward, self.prefix = forward, prefix
        self._kept: KeyValues | None = None

    def sequence(self, answer: Tensor) -> Tensor:
        """Ids [B,L] of prefix and answer [B,A]."""
        return torch.cat((self.prefix, answer), dim=1)

    def all(self, answer: Tensor, rows: Tensor | None, *, keep: bool) -> Tensor:
        """Logits [B,r,V] of a pass over prefix and answer [B,A], at `rows` [B,r] of the sequence (None: all L of them).
        keep: its keys and values are kept for the passes that follow."""
        self._kept = None  # first, so that old and new never stand side by side
        self._kept = KeyValues() if keep else None
        return self.forward(self.sequence(answer), rows=rows, cache=self._kept)

    def answer(self, answer: Tensor, rows: Tensor | None) -> Tensor:
        """Logits [B,r,V] of a pass over the answer [B,A] alone, at `rows` [B,r] of the answer (None: all A of them)."""
        start = self.prefix.shape[1]
        positions = torch.arange(start, start + answer.shape[1], device=answer.device).expand(len(answer), -1)
        return self.forward(answer, positions=positions, rows=rows, cache=self._kept)

    def part(self, answer: Tensor, positions: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits [B,r,V] of a pass over `positions` [B,n] of the sequence, at `rows` [B,r] of those (None: all n)."""
        ids = self.sequence(answer).gather(1, positions)
        return self.forward(ids, positions=positions, rows=rows, cache=self._kept)
