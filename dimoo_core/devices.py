"""Where to compute, by name."""

from __future__ import annotations

import torch


def accelerators() -> list[torch.device]:
    """The accelerators that torch sees; none where it sees none, or is older than 2.6."""
    there = getattr(torch, "accelerator", None)
    if there is None or not there.is_available():
        return []
    return [torch.device(there.current_accelerator().type, number) for number in range(there.device_count())]


def device(name: str) -> torch.device:
    """The device called `name`; auto is the accelerator where torch sees one. Raises ValueError for a strange name."""
    if name == "auto":
        return next(iter(accelerators()), torch.device("cpu"))
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The device {name!r} cannot be used ({reason}); try auto or cpu.") from None
