"""Where to compute, by name."""

from __future__ import annotations

import torch


def device(name: str) -> torch.device:
    """The device called `name`; auto is the accelerator where torch sees one. Raises ValueError for a strange name."""
    accelerator = getattr(torch, "accelerator", None)  # since torch 2.6
    if name == "auto":
        there = accelerator is not None and accelerator.is_available()
        return accelerator.current_accelerator() if there else torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The device {name!r} cannot be used ({reason}); try auto or cpu.") from None
