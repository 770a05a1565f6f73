"""ML-Cache: in most steps only some positions are computed, the rest is reused (arXiv 2510.06308).

`CachePolicy` says when and which, `Cache` holds what one branch stored. The sampler makes caches and drops them at
its end; nothing is stored on a module. A new policy is a new row of `CANDIDATES`, or a field that `Cache.choose` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..checks import number_in, whole_number
from .schedule import holes_left

CANDIDATES = ("all", "holes")


@dataclass(frozen=True)
class CachePolicy:
    """When all is computed, and what in the steps between.

    ratio: share of the candidates that a cached step reuses. warmup: share of the steps, at the start, that are full.
    refresh_interval: after how many steps all is computed anew. candidates: what a cached step chooses from, by the
    lowest certainty first. "all", the released policy: every position, prompt, newlines and known cells too, and a cell
    decided just now only by chance. "holes": the holes alone, and beside them always what the last step decided,
    because its keys and values are still those of a mask. prefix_interval: in how many steps the prompt and the
    pictures in it are computed once by the full passes; 1: by all of them.
    """

    ratio: float = 0.9
    warmup: float = 0.3
    refresh_interval: int = 5
    candidates: str = "all"
    prefix_interval: int = 1

    def __post_init__(self) -> None:
        if not 0 < number_in("cache_ratio", self.ratio, 0, 1) < 1:
            raise ValueError(f"cache_ratio is {self.ratio!r}; a number between 0 and 1 is needed, or no cache.")
        if not number_in("warmup_ratio", self.warmup, 0, 1) < 1:
            raise ValueError(f"warmup_ratio is {self.warmup!r}; a number from 0 to below 1 is needed.")
        whole_number("refresh_interval", self.refresh_interval, 2)
        whole_number("prefix_interval", self.prefix_interval, 1)
        if self.candidates not in CANDIDATES:
            raise ValueError(f"candidates is {self.candidates!r}; one of {', '.join(CANDIDATES)} is needed.")

    def is_full(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` (from 0) computes every position, of the prefix or after it."""
        warm = int(steps * self.warmup)
        return step <= warm or (step - warm) % self.refresh_interval == 0

    def rows(self, count: int) -> int:
        """Of `count` positions, those not reused: floor((1 - ratio)(count - 1)) + 1.

        In fp32, because the released code takes this quantile in fp32: 0.1 x 130 is 13 there and below 13 in fp64.
        """
        share = torch.tensor(1 - self.ratio, dtype=torch.float32)
        return min(int((share * (count - 1)).floor()) + 1, count)

    def budget(self, length: int, holes: int, steps: int) -> int:
        """Positions computed at every cached step of an item: of a sequence of `length` its share, or of the `holes`
        at the start their share and the most that one of the `steps` decides."""
        if self.candidates == "all":
            return self.rows(length)
        decided = max((before - after for before, after in pairwise([holes, *holes_left(holes, steps)])), default=0)
        return min(self.rows(max(holes, 1)) + decided, length)


# Measured on DiMOO-nano, 16 steps. Open captions at temperature 1, edits as they come; 210 seeded cases each, 1050 for
# edits of exact and published. Right (right and clean), and the work of sampling a picture compared with exact
# sampling; last for the 8B in 64 steps. Nano's edits leave nothing open, so they hardly test a frozen prefix.
#                                          open captions      work    edits clean        8B: 1024x1024, edit 512x512
#   exact                                  95 % (82 %)       100 %    99.7 %             100 %,  100 %
#   published, 0.9 / 0.3 / 5               81 % (51 %)        50 %    99.5 %              50 %,   50 %
#   quality                                90 % (64 %)        67 %    100 %               68 %,   57 %
#   balanced                               85 % (59 %)        50 %    100 %               51 %,   34 %
#   fast                                   84 % (49 %)        36 %    100 %               37 %,   24 %
# Chosen with weights of an earlier day, with which exact was right in 75 % (56 %) and balanced in 71 % (45 %). At that
# work: choosing from all positions 69 % (40 %), the most certain holes first 63 % (34 %), those not computed for
# longest first 67 % (40 %). A larger share gains more than refreshing more often: 0.8 every two steps 72 % (51 %)
# for 71 %.
PRESETS: dict[str, CachePolicy | None] = {
    "off": None,
    "quality": CachePolicy(ratio=0.6, warmup=0.3, refresh_interval=5, candidates="holes"),
    "balanced": CachePolicy(ratio=0.9, warmup=0.3, refresh_interval=5, candidates="holes", prefix_interval=8),
    "fast": CachePolicy(ratio=0.9, warmup=0.1, refresh_interval=5, candidates="holes", prefix_interval=16),
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
    """What one branch keeps between two full passes: keys and values, the ids they were computed from, how certain
    each position was, and the code logits at the cells that were holes when it was made (holes only become fewer).

    B batch, L positions of the sequence, n positions computed, m holes, K codes.
    """

    def __init__(self, key_values: KeyValues, ids: Tensor, hole_positions: Tensor):
        """ids [B,L], from which a full pass has filled `key_values`; hole_positions [B,m] in the sequence."""
        self.key_values = key_values
        self._ids = ids.clone()
        self._peak = torch.full(ids.shape, torch.inf, device=ids.device)
        slots = torch.arange(hole_positions.shape[1], device=ids.device).expand(len(ids), -1)
        # One more slot takes the logits of positions that are no hole, so that writing needs no selection.
        self._slot = torch.full_like(ids, slots.shape[1]).scatter(1, hole_positions, slots)
        self._slots = slots.shape[1] + 1
        self._logits: Tensor | None = None

    def least_certain(self, count: int) -> Tensor:
        """The `count` positions [B,count], ascending, whose largest code logit was lowest when last computed."""
        return self._peak.topk(count, dim=1, largest=False).indices.sort(dim=1).values

    def decided_and_least_certain(self, ids: Tensor, counts: Sequence[int], mask: int) -> Tensor:
        """Positions [B,n] whose id is no longer the one computed from, then the least certain among those with the
        `mask` id: counts[b] in item b, n the largest. An item with fewer has its first one several times."""
        doubt = self._peak.masked_fill(ids != mask, torch.inf).masked_fill(ids != self._ids, -torch.inf)
        doubt, index = doubt.topk(max(counts), dim=1, largest=False)
        limits = torch.tensor(counts, device=index.device)[:, None]
        beyond = torch.arange(index.shape[1], device=index.device) >= limits
        return torch.where(beyond | (doubt == torch.inf), index[:, :1], index)

    def store(self, positions: Tensor, ids: Tensor, logits: Tensor) -> None:
        """Replace what is known of positions [B,n] by their ids [B,n] and new code logits [B,n,K]."""
        if self._logits is None:
            self._logits = logits.new_zeros(len(logits), self._slots, logits.shape[2])
        self._ids.scatter_(1, positions, ids)
        self._peak.scatter_(1, positions, logits.amax(dim=-1).float())
        write_rows(self._logits, self._slot.gather(1, positions), logits)

    def read(self, positions: Tensor) -> Tensor:
        """Latest code logits [B,r,K] at hole positions [B,r]."""
        return read_rows(self._logits, self._slot.gather(1, positions))
