"""Results written where an operand was: only of temporaries, and only where autograd does not follow them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def overwritable(x: Tensor, *others: Tensor) -> bool:
    """Whether a result may go where an operand was: yes, unless autograd follows one of them."""
    return not x.requires_grad and not any(other.requires_grad for other in others)


def add_(x: Tensor, change: Tensor) -> Tensor:
    """x + change of one shape, written to x unless autograd follows one of them."""
    return x + change if x.requires_grad or change.requires_grad else x.add_(change)


def silu_(x: Tensor) -> Tensor:
    """silu(x), written to x unless autograd follows it."""
    return F.silu(x, inplace=overwritable(x))
