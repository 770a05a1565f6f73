"""Whether the training of all weights fits, told before it starts.

What is counted is what must be there whatever the data are: for each weight 4 bytes in fp32, 4 of its gradient and 8 of
AdamW, divided by the shards. Activations come on top.
"""

from __future__ import annotations

import math
import os

import torch

from ..devices import free_bytes

WEIGHT, GRADIENT, ADAMW = 4, 4, 8  # bytes for each trained weight
_USABLE = 0.85  # of a card: the rest is for activations


def check_room(weights: int, where: torch.device, *, shards: int, processes: int, offload: bool = False) -> None:
    """Raises ValueError, with the sum in GB and what helps, unless the training of so many `weights`, in `shards`, fits
    on the device `where`. processes: how many share the machine's own memory, where shards lie if that is where the
    training is, or if they are to `offload`."""
    here = (WEIGHT + GRADIENT + ADAMW) * weights / shards
    on_machine = offload or where.type == "cpu"
    needed = here * processes if on_machine else here
    free = memory_bytes() if on_machine else free_bytes(where)
    if free is None or needed <= free:
        return
    parts = (f"{name} {_gb(size * weights / shards)}" for name, size in _NAMED)
    cards = math.ceil(here * shards / (_USABLE * free)) if free else 0
    others = [f"start it with torchrun on at least {cards} such cards"] if not on_machine and cards else []
    others += ["with --offload on one" if shards == 1 else "add --offload"] if not on_machine else []
    others += ["use more machines"] if on_machine else []
    place = f"the memory of this machine for {processes} processes" if on_machine else str(where)
    raise ValueError(
        f"Training all {weights / 1e9:.2f} billion weights takes {_gb(needed)} GB on {place} ({', '.join(parts)} GB "
        f"for each process) and activations on top, {_gb(free)} GB are there: {', '.join(others)}, or teach it a LoRA "
        "with `train lora`."
    )


_NAMED = (("fp32 weights", WEIGHT), ("gradients", GRADIENT), ("AdamW", ADAMW))


def memory_bytes() -> int | None:
    """The memory of this machine, taken or not; None where nobody can say, as on Windows."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"
