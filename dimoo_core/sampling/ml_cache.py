"""ML-Cache: in most steps only some positions are computed, the rest is reused (arXiv 2510.06308).

`CachePolicy` chooses when and which, `CachedBranch` is one branch that follows it. The sampler makes the branches and
drops them when it ends; nothing is stored on a module. A new policy is a new row of `CANDIDATES`, or a field of
`CachePolicy` that `scopes`, `budget` or `CachedBranch` read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..checks import number_in, whole_number
from ..model.transformer import Part, take_rows
from .branch import Ask, BranchSequence, Scope, write_rows

CANDIDATES = ("all", "holes")


@dataclass(frozen=True)
class CachePolicy:
    """When everything is computed, and what in the steps between.

    ratio: share of the candidates that a cached step reuses. warmup: share of the steps, at the start, that are full.
    refresh_interval: steps from one full pass to the next. candidates: what a cached step chooses from, the least
    certain first. "all", the released policy: every position, prompt, newlines and known cells too, and a cell that was
    just decided only by chance. "holes": the holes alone, and beside them always what the last step decided, because
    its keys and values are still those of a mask. prefix_interval: the full passes compute the prompt and its pictures
    once in that many steps; 1: every time. Raises ValueError for a setting out of range.
    """

    ratio: float = 0.9
    warmup: float = 0.3
    refresh_interval: int = 5
    candidates: str = "all"
    prefix_interval: int = 1

    def __post_init__(self) -> None:
        if not 0 < number_in("cache_ratio", self.ratio, 0, 1) < 1:
            raise ValueError(f"cache_ratio is {self.ratio!r}; expected a number between 0 and 1, or no cache.")
        if not number_in("warmup_ratio", self.warmup, 0, 1) < 1:
            raise ValueError(f"warmup_ratio is {self.warmup!r}; expected a number from 0 to below 1.")
        whole_number("refresh_interval", self.refresh_interval, 2)
        whole_number("prefix_interval", self.prefix_interval, 1)
        if self.candidates not in CANDIDATES:
            raise ValueError(f"candidates is {self.candidates!r:.80}; expected one of {', '.join(CANDIDATES)}.")

    def is_full(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` (from 0) computes every position of the answer, and perhaps of the prefix."""
        warm = int(steps * self.warmup)
        return step <= warm or (step - warm) % self.refresh_interval == 0

    def scopes(self, steps: int, first: int = 0) -> list[Scope]:
        """What each of the `steps` computes, for a branch that is asked from step `first` on."""
        scopes, computed = [Scope.ALL] * first, None  # the step that computed the prefix last
        for step in range(first, steps):
            if computed is not None and not self.is_full(step, steps):
                scopes.append(Scope.PART)
            elif computed is not None and step - computed < self.prefix_interval:
                scopes.append(Scope.ANSWER)
            else:
                scopes.append(Scope.ALL)
                computed = step
        return scopes

    def rows(self, count: int) -> int:
        """Of `count` positions, those not reused: floor((1 - ratio)(count - 1)) + 1.

        In fp32, because the released code takes this quantile in fp32: 0.1 x 130 is 13 there and below 13 in fp64.
        """
        share = torch.tensor(1 - self.ratio, dtype=torch.float32)
        return min(int((share * (count - 1)).floor()) + 1, count)

    def budget(self, length: int, holes: int, schedule: Sequence[int], corrections: int = 0) -> int:
        """Positions computed at every cached step of an item: of a sequence of `length` its share, or of the `holes`
        at the start their share and the most that one step of the `schedule` (holes left after each) decides; and the
        `corrections` that a step may mask again, and what it decides in their place."""
        if self.candidates == "all":
            return min(self.rows(length) + corrections, length)
        decided = max((before - after for before, after in pairwise([holes, *schedule])), default=0)
        return min(self.rows(max(holes, 1)) + decided + 2 * corrections, length)


PUBLISHED = CachePolicy()  # the settings of the released code

# Chosen on DiMOO-nano, where at equal work the least certain holes beat all positions, the most certain holes and those
# not computed for longest, and a larger share beats refreshing more often. docs/quality.md has what they cost.
PRESETS: dict[str, CachePolicy | None] = {
    "off": None,
    "quality": CachePolicy(ratio=0.6, warmup=0.3, refresh_interval=5, candidates="holes"),
    "balanced": CachePolicy(ratio=0.9, warmup=0.3, refresh_interval=5, candidates="holes", prefix_interval=8),
    "fast": CachePolicy(ratio=0.9, warmup=0.1, refresh_interval=5, candidates="holes", prefix_interval=16),
}


class Cache:
    """What one branch keeps between two full passes beside its keys and values: the ids that they were computed from,
    the peak logit of each position (its certainty), and the code logits at the cells that were asked for at the full
    pass; those asked for later are among them.

    B batch, L positions of the sequence, n positions computed, m holes, K codes.
    """

    def __init__(self, ids: Tensor, asked: Tensor):
        """ids [B,L], of which a full pass has stored keys and values; asked [B,m]: positions in the sequence."""
        self._ids = ids.clone()
        self._peak = torch.full(ids.shape, torch.inf, device=ids.device)
        slots = torch.arange(asked.shape[1], device=ids.device).expand(len(ids), -1)
        # One more slot takes the logits of all other positions, so that writing needs no selection.
        self._slot = torch.full_like(ids, slots.shape[1]).scatter(1, asked, slots)
        self._slots = slots.shape[1] + 1
        self._logits: Tensor | None = None

    def least_certain(self, ids: Tensor, count: int, mask: int) -> Tensor:
        """The `count` positions [B,count], ascending, whose peak logit was lowest when last computed; before all others
        those that have got the `mask` id (again) since then."""
        peak = self._peak.masked_fill((ids == mask) & (self._ids != mask), -torch.inf)
        return peak.topk(count, dim=1, largest=False).indices.sort(dim=1).values

    def decided_and_least_certain(
        self, ids: Tensor, counts: Sequence[int], mask: int, limits: Tensor | None = None
    ) -> Tensor:
        """Positions [B,n] whose id is no longer the one computed from, then the least certain among those with the
        `mask` id: counts[b] in item b, n the largest. An item with fewer has its first one several times.

        limits [B,1]: the counts, where the caller has them on the device."""
        peak = self._peak.masked_fill(ids != mask, torch.inf).masked_fill(ids != self._ids, -torch.inf)
        peak, index = peak.topk(max(counts), dim=1, largest=False)
        limits = torch.tensor(counts, device=index.device)[:, None] if limits is None else limits
        beyond = torch.arange(index.shape[1], device=index.device) >= limits
        return torch.where(beyond | (peak == torch.inf), index[:, :1], index)

    def store(self, positions: Tensor, ids: Tensor, logits: Tensor) -> None:
        """Replace what is known of positions [B,n] by their ids [B,n] and new code logits [B,n,K]."""
        if self._logits is None:
            self._logits = logits.new_zeros(len(logits), self._slots, logits.shape[2])
        self._ids.scatter_(1, positions, ids)
        self._peak.scatter_(1, positions, logits.amax(dim=-1).float())
        write_rows(self._logits, self._slot.gather(1, positions), logits)

    def read(self, positions: Tensor) -> Tensor:
        """Latest code logits [B,r,K] at positions [B,r], which were asked for at the full pass."""
        if self._logits is None:
            raise RuntimeError("The cache was read before anything was stored in it.")
        return take_rows(self._logits, self._slot.gather(1, positions))


class CachedBranch:
    """A branch of an image that follows a `CachePolicy`."""

    def __init__(self, sequence: BranchSequence, policy: CachePolicy, scopes: Sequence[Scope], counts: Sequence[int]):
        """scopes: of every step, by the policy; counts: positions computed at a cached step, for each item."""
        self._sequence, self._policy, self._scopes, self._counts = sequence, policy, scopes, counts
        self._limits = torch.tensor(counts, device=sequence.prefix.device)[:, None]
        self._cache: Cache | None = None

    def ask(self, answer: Tensor, positions: Tensor, step: int, mask: int) -> Ask:
        """For code logits [B,m,K] at cells' `positions` [B,m] of the sequence with this answer [B,A]; mask: a hole's
        id."""
        scope, all_positions = self._scopes[step], self._policy.candidates == "all"
        ids = self._sequence.ids(answer)
        if scope is Scope.PART:
            cache = self._stored()
            if all_positions:
                chosen = cache.least_certain(ids, self._counts[0], mask)
            else:
                chosen = cache.decided_and_least_certain(ids, self._counts, mask, self._limits)
            return self._storing(scope, self._sequence.part(answer, chosen), ids, chosen, positions)
        self._cache = None  # first, so that old and new never stand side by side
        if scope is Scope.ALL and all(later is Scope.ALL for later in self._scopes[step + 1 : step + 2]):
            return Ask(scope, self._sequence.all(answer, positions, keep=False))  # nothing of it will be used again
        start = 0 if scope is Scope.ALL else self._sequence.prefix.shape[1]
        ranked, whole = positions, scope is Scope.ALL
        rows = None if all_positions else positions - start
        if all_positions:
            ranked = torch.arange(start, ids.shape[1], device=ids.device).expand(len(ids), -1)
        part = self._sequence.all(answer, rows, keep=True) if whole else self._sequence.answer(answer, rows)
        return self._storing(scope, part, ids, ranked, positions)

    def _storing(self, scope: Scope, part: Part, ids: Tensor, computed: Tensor, positions: Tensor) -> Ask:
        """Asks for the logits [B,n,K] at positions `computed` [B,n], to store them and read those at the holes."""

        def store(logits: Tensor) -> None:
            if scope is not Scope.PART:
                self._cache = Cache(ids, positions)
            self._stored().store(computed, ids.gather(1, computed), logits)

        return Ask(scope, part, store, lambda: self._stored().read(positions))

    def _stored(self) -> Cache:
        if self._cache is None:
            raise RuntimeError("A cached step precedes the first full one.")
        return self._cache
