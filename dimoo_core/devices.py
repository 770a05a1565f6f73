"""Where to compute, by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

PATIENCE = timedelta(days=7)  # of processes that wait for others: torch's own ends a run after half an hour


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
        raise ValueError(f"The device {name!r:.80} cannot be used ({reason}); try auto or cpu.") from None


@dataclass(frozen=True)
class Ranks:
    """The processes that share a list, as torchrun starts them; alone without it."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """The ranks that torchrun's variables tell of, joined through gloo; nobody but us without them."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        return cls(torch.distributed.get_rank(), size)

    @property
    def device(self) -> str:
        """Each process has an accelerator of its own, where there are any; otherwise all compute on the CPU."""
        found = accelerators()
        return str(found[int(os.environ.get("LOCAL_RANK", "0")) % len(found)]) if found else "cpu"

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            torch.distributed.barrier()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Around work that the first process does alone and the others then find done."""
        if self.rank:
            self.wait()
        yield
        if not self.rank:
            self.wait()

    def leave(self) -> None:
        if self.size > 1:
            torch.distributed.destroy_process_group()


def has_fp64(device: torch.device) -> bool:
    """Whether a device computes in fp64: Metal, Intel Arc and DirectML do not."""
    return device.type not in ("mps", "xpu", "privateuseone")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on an accelerator, those that torch holds and does not use included; None where nobody can
    say, as on a CPU."""
    module: Any = getattr(torch, device.type, None)
    if not hasattr(module, "mem_get_info") or not module.is_available():
        return None
    free, _ = module.mem_get_info(device)
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; torch's own class is another one in every version."""
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return named and isinstance(error, (RuntimeError, MemoryError))
