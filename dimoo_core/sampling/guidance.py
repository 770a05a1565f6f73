"""Classifier-free guidance: what else is asked besides the prompt, and how the answers are combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..checks import number_in

Guided = Sequence[tuple[Tensor, float]]  # logits [B,r,V] of the prompt, then of the other branches and their scales

MAX_SCALE = 100.0  # far beyond any use; keeps fp32 logits finite


@dataclass(frozen=True, eq=False)
class Branch:
    """An unconditional branch: `prefix` ids [1 or B,P] before the answer, and how far to move away from it."""

    prefix: Tensor
    scale: float

    def __post_init__(self) -> None:
        number_in("guidance scale", self.scale, 0, MAX_SCALE)


def combine(conditional: Tensor, others: Sequence[tuple[Tensor, float]]) -> Tensor:
    """c + sum of g_i (c - u_i), in fp32 whatever comes in; all logits [B,r,V], `others` are (u_i, g_i).

    One formula for all tasks: with one branch it is the released (1+g) c - g u and also the released text form
    u + (1+g)(c - u); with two it is the released form for edits. (The released code combines in bf16.)
    """
    conditional = conditional.float()
    combined = conditional
    for unconditional, scale in others:
        combined = combined + scale * (conditional - unconditional.float())
    return combined


def combine_part(guided: Guided, part: slice) -> Tensor:
    """`combine` for a part of the r rows; the scale of the first branch means nothing."""
    (conditional, _), *others = guided
    return combine(conditional[:, part], [(logits[:, part], scale) for logits, scale in others])
