"""How exactly an answer is worked out: what of a sequence a step computes anew, and how many tokens it may decide.

After Fast-dLLM (arXiv 2505.22618). Keys and values of the prompt with its pictures hardly change while the answer
grows, nor do those of the blocks to come, so they are kept and only the block at work is computed; and of its tokens
all are decided that the model is sure of, not only as many as planned.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..checks import number_in, whole_number


class Scope(Enum):
    """What a step computes; the rest is taken from the step that computed it last."""

    ALL = "prompt, pictures and answer"
    ANSWER = "the answer, later blocks too"
    BLOCK = "the block at work, and holes left open before it"


@dataclass(frozen=True)
class TextPolicy:
    """prefix_refresh: blocks from one step that computes everything to the next, from the first block on; 0: every
    step does. answer_refresh: steps from one that computes the whole answer to the next, from the first of a block
    on. threshold: the probability from which a token is decided although its turn has not come; None: never."""

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
        return Scope.ANSWER if step % self.answer_refresh == 0 else Scope.BLOCK


EXACT = TextPolicy()

# Counted at the published size, a picture of 1024x1024 px and 128 tokens in as many steps and blocks of 32: floating
# point operations as a share of those of exact (`python -m bench.counts`). Measured on DiMOO-nano at its own settings,
# 32 tokens in one block: captions exactly right, of 210 pictures with combinations that training has seen and of 210
# with others, and the passes that a caption of 11 tokens took, in batches.
#
#             1 token a step   3 tokens a step   right, seen   right, held out   passes
#   exact     1                -                  99.0 %        99.0 %           32
#   balanced  1/24.4           1/29.1            100 %         100 %             1.8 and 1.4
#   fast      1/62.4           1/91.3            100 %         100 %             1.5 and 1.4
#
# Nano's captions leave so little open that they cannot tell the presets apart: all tokens in one step do as well. With
# 6 % of a picture's codes exchanged at random exact is right about 59 % of 64, balanced and fast about 64 %, and both
# give the caption of exact in 81 %. 0.9 is what Fast-dLLM uses; 0.8 is a choice of ours, untried on published weights.
SPEEDS: dict[str, TextPolicy] = {
    "exact": EXACT,
    "balanced": TextPolicy(prefix_refresh=1, answer_refresh=8, threshold=0.9),
    "fast": TextPolicy(prefix_refresh=4, answer_refresh=32, threshold=0.8),
}
