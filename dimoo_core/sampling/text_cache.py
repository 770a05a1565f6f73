"""The text loop's cache: what of a sequence a step computes, and how many tokens it may decide.

After Fast-dLLM (arXiv 2505.22618). Keys and values of the prompt with its pictures hardly change while the answer
grows, nor do those of later blocks, so they are kept and only the current block is computed; and of its tokens all
are decided that the model is sure of, not only as many as planned.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import number_in, whole_number
from .branch import Scope


@dataclass(frozen=True)
class TextPolicy:
    """What the steps of an answer compute.

    prefix_refresh: blocks from one step that computes everything to the next, from the first block on; 0: every step
    computes everything. answer_refresh: steps from one that computes the whole answer to the next, from the first of a
    block on; the others compute the block and the holes left open before it. threshold: the probability from which a
    token is decided before its turn; None: never.
    """

    prefix_refresh: int = 0
    answer_refresh: int = 1
    threshold: float | None = None

    def __post_init__(self) -> None:
        whole_number("prefix_refresh", self.prefix_refresh, 0)
        whole_number("answer_refresh", self.answer_refresh, 1)
        if self.threshold is not None:
            number_in("threshold", self.threshold, 0, 1)

    @property
    def keeps(self) -> bool:
        """Whether any step reuses what an earlier one computed."""
        return self.prefix_refresh > 0

    def scope(self, block: int, step: int) -> Scope:
        """What step `step` of block `block` computes, both from 0."""
        if not self.keeps or (step == 0 and block % self.prefix_refresh == 0):
            return Scope.ALL
        return Scope.ANSWER if step % self.answer_refresh == 0 else Scope.PART


EXACT = TextPolicy()

# The threshold 0.9 is what Fast-dLLM uses; 0.8 is a choice of ours, untried on published weights. What they save, and
# what they cost nano, stands in docs/quality.md and docs/performance.md.
SPEEDS: dict[str, TextPolicy] = {
    "exact": EXACT,
    "balanced": TextPolicy(prefix_refresh=1, answer_refresh=8, threshold=0.9),
    "fast": TextPolicy(prefix_refresh=4, answer_refresh=32, threshold=0.8),
}
