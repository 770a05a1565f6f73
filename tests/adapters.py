"""LoRAs of random numbers, for tests."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dimoo_core.model.adapters import TARGETS, Adapter, Adapters, Applied


def random_adapter(
    network: nn.Module,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    size: float = 1.0,
    seed: int = 0,
    targets: Iterable[str] = TARGETS,
) -> Adapter:
    """One that changes every layer that it stands beside; size: about by how much, in parts of what comes in."""
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter.blank(network, rank=rank, alpha=alpha, targets=targets, generator=generator)
    for branch in adapter.branches.values():
        branch.up.data.normal_(std=size * rank**0.5 / alpha, generator=generator)
    adapter.digest = str(seed)
    return adapter.requires_grad_(False)


def logits(network: nn.Module, *applied: tuple[Adapter, float], ids: Tensor | None = None) -> Tensor:
    """What a network says of some ids with adapters of these strengths."""
    ids = torch.arange(60)[None] if ids is None else ids
    with torch.no_grad():
        return network(ids, adapters=Adapters([Applied(*one) for one in applied]))
