"""Classifier-free guidance (arXiv 2207.12598): the unconditional branches, and how their logits are combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..checks import number_in

MAX_SCALE = 100.0  # far beyond any use; keeps fp32 logits finite


@dataclass(frozen=True)
class Guidance:
    """How strongly an image follows the prompt.

    text: guidance scale against the same images without (or with the negative) text. image: in edits, the scale against
    the text without the images. Both 0..100; a scale of 0 needs no branch and saves its time. start in [0,1): share of
    an item's own steps, at the beginning, that go without guidance. Raises ValueError for a number out of range.
    """

    text: float = 4.0
    image: float = 4.0
    start: float = 0.0

    def __post_init__(self) -> None:
        number_in("cfg", self.text, 0, MAX_SCALE)
        number_in("image_cfg", self.image, 0, MAX_SCALE)
        if not number_in("guidance_start", self.start, 0, 1) < 1:
            raise ValueError(f"guidance_start is {self.start!r}; expected a number from 0 to below 1.")

    def first_step(self, planned: int) -> int:
        """The step (from 0) at which guidance begins for an item that takes `planned` steps."""
        return int(self.start * planned)


@dataclass(frozen=True, eq=False)
class Branch:
    """An unconditional branch: `prefix` ids [1 or B,P] before the answer, and how far to move away from it."""

    prefix: Tensor
    scale: float

    def __post_init__(self) -> None:
        number_in("guidance scale", self.scale, 0, MAX_SCALE)


@dataclass(frozen=True, eq=False)
class BranchLogits:
    """Logits [B,r,V] of an unconditional branch, and its guidance scale."""

    logits: Tensor
    scale: float


def combine(conditional: Tensor, others: Sequence[BranchLogits], rows: slice = slice(None)) -> Tensor:
    """c + sum of g_i (c - u_i) for `rows` of the r rows, in fp32 whatever the dtype of the logits; all logits [B,r,V].

    One formula for all tasks: with one branch it is the released (1+g) c - g u and also the released text form
    u + (1+g)(c - u); with two it is the released form for edits. (The released code combines in bf16.)
    """
    conditional = conditional[:, rows].float()
    combined = conditional
    for other in others:
        combined = combined + other.scale * (conditional - other.logits[:, rows])
    return combined
