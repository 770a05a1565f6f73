"""Where to compute, by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed


def accelerators() -> list[torch.device]:
    """The accelerators that torch sees; empty without any, and before torch 2.6."""
    accelerator = getattr(torch, "accelerator", None)
    if accelerator is None or not accelerator.is_available():
        return []
    kind = accelerator.current_accelerator().type
    return [torch.device(kind, index) for index in range(accelerator.device_count())]


def device(name: str) -> torch.device:
    """The device called `name`; auto is the accelerator where torch sees one.

    Raises ValueError for a name that torch cannot use.
    """
    if name == "auto":
        return next(iter(accelerators()), torch.device("cpu"))
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The device {name!r:.80} cannot be used ({reason}); try auto or cpu.") from None


@dataclass(frozen=True)
class Ranks:
    """The processes that share a list, as torchrun starts them; a single one without it."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """The ranks that torchrun's environment variables describe, joined through gloo; one process without them."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return cls(torch.distributed.get_rank(), size)

    @property
    def device(self) -> str:
        """The name of this process's own accelerator; "cpu" where there is none."""
        found = accelerators()
        return str(found[int(os.environ.get("LOCAL_RANK", "0")) % len(found)]) if found else "cpu"

    def wait(self) -> None:
        """Blocks until every process has called it."""
        if self.size > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        """Ends the group of processes."""
        if self.size > 1:
            torch.distributed.destroy_process_group()


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on an accelerator, those included that torch has reserved and does not use; None where torch
    cannot say, as on a CPU."""
    module: Any = getattr(torch, device.type, None)
    if device.type == "cpu" or not hasattr(module, "mem_get_info"):
        return None
    free, _ = module.mem_get_info(device)
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))
