"""Results written where an operand was: only of temporaries, and only where autograd does not follow them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def overwritable(*operands: Tensor) -> bool:
    """Whether a result may go where its operand was: yes, unless autograd follows one of them."""
    return not any(operand.requires_grad for operand in operands)


def add_(x: Tensor, change: Tensor) -> Tensor:
    """x + change of one shape, written to x unless autograd follows one of them."""
    return x.add_(change) if overwritable(x, change) else x + change


def silu_(x: Tensor) -> Tensor:
    """silu(x), written to x unless autograd follows it."""
    return F.silu(x, inplace=overwritable(x))
