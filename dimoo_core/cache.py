"""ML-Cache: in most steps only the least certain positions are computed, the rest is reused (arXiv 2510.06308).

`CachePolicy` says when and how much, `Cache` holds what one branch stored. The sampler makes caches and drops them at
its end; nothing is stored on a module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import number_in, whole_number


@dataclass(frozen=True)
class CachePolicy:
    """`ratio` of positions reused at a cached step, share of steps that are full at the start (`warmup`), and after
    how many steps all is computed anew (`refresh_interval`)."""

    ratio: float = 0.9
    warmup: float = 0.3
    refresh_interval: int = 5

    def __post_init__(self) -> None:
        if not 0 < number_in("cache_ratio", self.ratio, 0, 1) < 1:
            raise ValueError(f"cache_ratio is {self.ratio!r}; a number between 0 and 1 is needed, or no cache.")
        if not number_in("warmup_ratio", self.warmup, 0, 1) < 1:
            raise ValueError(f"warmup_ratio is {self.warmup!r}; a number from 0 to below 1 is needed.")
        whole_number("refresh_interval", self.refresh_interval, 2)

    def is_full(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` (from 0) computes every position."""
        warm = int(steps * self.warmup)
        return step <= warm or (step - warm) % self.refresh_interval == 0

    def rows(self, length: int) -> int:
        """Positions computed at a cached step in a sequence of `length`: floor((1 - ratio)(length - 1)) + 1.

        In fp32, because the released code takes this quantile in fp32: 0.1 x 130 is 13 there and below 13 in fp64.
        """
        share = torch.tensor(1 - self.ratio, dtype=torch.float32)
        return min(int((share * (length - 1)).floor()) + 1, length)


PRESETS: dict[str, CachePolicy | None] = {
    "off": None,
    "quality": CachePolicy(ratio=0.8, warmup=0.4, refresh_interval=3),
    "balanced": CachePolicy(ratio=0.9, warmup=0.3, refresh_interval=5),  # the published setting
    "fast": CachePolicy(ratio=0.95, warmup=0.2, refresh_interval=8),
}


class KeyValues:
    """Keys and values of one branch, layer by layer: the transformer's store. Written in place, positions are given."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, positions: Tensor | None, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values [B,h,n,d] at positions [B,n] (None: the whole) and give the whole [B,h,L,d]."""
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


def read_rows(whole: Tensor, index: Tensor) -> Tensor:
    """whole [B,L,X] at index [B,n] -> [B,n,X]"""
    return whole.gather(1, index[..., None].expand(-1, -1, whole.shape[-1]))


class Cache:
    """What one branch keeps between two full passes: keys and values, how certain each position was, and the code
    logits at the cells that were holes when it was made (holes only ever become fewer).

    B batch, L positions of the sequence, m holes, K codes.
    """

    def __init__(self, key_values: KeyValues, logits: Tensor, hole_positions: Tensor):
        """logits [B,L,K] of a full pass that filled `key_values`; hole_positions [B,m] in the sequence."""
        batch, length, codes = logits.shape
        self.key_values = key_values
        self._peak = logits.amax(dim=-1)
        slots = torch.arange(hole_positions.shape[1], device=logits.device).expand(batch, -1)
        # One more slot takes the logits of positions that are no hole, so that writing needs no selection.
        self._slot = torch.full((batch, length), slots.shape[1], device=logits.device).scatter(1, hole_positions, slots)
        spare = logits.new_zeros(batch, 1, codes)
        self._logits = torch.cat((read_rows(logits, hole_positions), spare), dim=1)

    def least_certain(self, count: int) -> Tensor:
        """The `count` positions [B,count], ascending, whose largest code logit was lowest when last computed."""
        return self._peak.topk(count, dim=1, largest=False).indices.sort(dim=1).values

    def store(self, positions: Tensor, logits: Tensor) -> None:
        """Replace what is known of positions [B,n] by their new code logits [B,n,K]."""
        self._peak.scatter_(1, positions, logits.amax(dim=-1))
        write_rows(self._logits, self._slot.gather(1, positions), logits)

    def read(self, positions: Tensor) -> Tensor:
        """Latest code logits [B,r,K] at hole positions [B,r]."""
        return read_rows(self._logits, self._slot.gather(1, positions))
