"""One branch of guidance, the same for images and text: a prefix, and the keys and values that stay between passes. A
policy (`ml_cache`, `text_cache`) chooses the `Scope` of each step; what a branch then asks for is run by `passes`.

Shapes: B batch, P prefix, A answer, L = P + A sequence, n positions computed, r rows asked for, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..model.transformer import Part


class Scope(Enum):
    """What a pass computes; everything else keeps the keys and values of the last pass that computed it."""

    ALL = "the prefix and the answer"
    ANSWER = "the answer"
    PART = "some positions"


class KeyValues:
    """Keys and values of one branch, layer by layer: a `KeyValueStore`. Given positions are written in place.

    fixed: a pass over all positions writes in place too, so that a recorded pass finds them where they were.
    """

    def __init__(self, fixed: bool = False) -> None:
        self.fixed = fixed
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, positions: Tensor | None, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values [B,h,n,d] at positions [B,n] (None: all of them) and return all [B,h,L,d]."""
        if positions is None:
            if self.fixed and layer in self._layers:
                for kept, new in zip(self._layers[layer], (keys, values), strict=True):
                    kept.copy_(new)
            else:
                self._layers[layer] = keys, values
            return self._layers[layer]
        all_keys, all_values = self._layers[layer]
        for item in range(positions.shape[0]):
            where = positions[item]
            all_keys[item].index_copy_(1, where, keys[item])
            all_values[item].index_copy_(1, where, values[item])
        return all_keys, all_values


def write_rows(whole: Tensor, index: Tensor, rows: Tensor) -> None:
    """whole[b, index[b]] = rows[b] in place; whole [B,L,...], index [B,n], rows [B,n,...]. No host sync."""
    for item, where, row in zip(whole, index, rows, strict=True):
        item.index_copy_(0, where, row)


@dataclass(frozen=True, eq=False)
class Ask:
    """What a branch needs computed at a step: its part of a pass, whose logits [B,r,V] are those at the holes unless it
    stores them; then it reads those at the holes, [B,m,V], from what it has."""

    scope: Scope
    part: Part
    store: Callable[[Tensor], None] | None = None
    read: Callable[[], Tensor] | None = None

    def answer(self, logits: list[Tensor]) -> Tensor:
        """The logits [B,m,V] at the holes. Takes its own, the first, out of the list, so that nobody holds them once
        they are stored: they may be those of a whole sequence."""
        if self.store is None or self.read is None:
            return logits.pop(0)
        self.store(logits.pop(0))
        return self.read()


class BranchSequence:
    """The sequence of one branch, and the parts of it that passes compute; owns its keys and values."""

    def __init__(self, prefix: Tensor, *, fixed: bool = False):
        """prefix [B,P]: the ids before the answer. fixed: as for `KeyValues`."""
        self.prefix = prefix
        self._fixed = fixed
        self._kept: KeyValues | None = None

    def ids(self, answer: Tensor) -> Tensor:
        """Ids [B,L] of prefix and answer [B,A]."""
        return torch.cat((self.prefix, answer), dim=1)

    def all(self, answer: Tensor, rows: Tensor | None, *, keep: bool) -> Part:
        """Prefix and answer [B,A], for logits at `rows` [B,r] of the sequence (None: all L of them). keep: the keys and
        values are kept for the passes that follow."""
        if not keep:
            if not self._fixed:
                self._kept = None
            return Part(self.ids(answer), rows=rows)
        if not self._fixed or self._kept is None:  # so that old and new never stand side by side
            self._kept = KeyValues(self._fixed)
        return Part(self.ids(answer), rows=rows, cache=self._kept)

    def answer(self, answer: Tensor, rows: Tensor | None) -> Part:
        """The answer [B,A] alone, for logits at `rows` [B,r] of the answer (None: all A of them)."""
        start = self.prefix.shape[1]
        positions = torch.arange(start, start + answer.shape[1], device=answer.device).expand(len(answer), -1)
        return Part(answer, positions, self._kept, rows)

    def part(self, answer: Tensor, positions: Tensor, rows: Tensor | None = None) -> Part:
        """The `positions` [B,n] of the sequence, for logits at `rows` [B,r] of those (None: all n of them)."""
        return Part(self.ids(answer).gather(1, positions), positions, self._kept, rows)
