"""A training's process among those that torchrun starts, on one machine or on many.

All processes take part in everything that is computed together, in the same order. So each decision, to stop, to save,
to refuse a gradient, is made of numbers that all of them have.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..devices import PATIENCE, Ranks, device
from .engine import Named, Single

LATEST = "latest"  # in the folder of a run: the file that names the last whole state that processes saved together
_engines = count()  # alike in all processes
_MEETING = timedelta(seconds=10)  # how far apart processes are that fail together


def has_shared_state(folder: Path) -> bool:
    """Whether the run in `folder` was saved in shards, whoever did that."""
    return (folder / LATEST).is_file()


def launched() -> bool:
    """Whether torchrun, or a like of it, started this process as one of several, or alone."""
    return dist.is_available() and (dist.is_torchelastic_launched() or int(os.environ.get("WORLD_SIZE", "1")) > 1)


def own_device(name: str) -> torch.device:
    """The device of this process among those of its machine; `name` as for `devices.device`. Raises ValueError where
    it names one card, which several processes would share."""
    chosen = torch.device(Ranks().device) if name == "auto" else device(name)
    if chosen.type == "cpu" or local_size() == 1:
        return chosen
    if chosen.index is not None and name != "auto" and ":" in name:
        raise ValueError(f"The device {name} is one card for several processes; name auto, cpu or {chosen.type}.")
    return torch.device(chosen.type, int(os.environ.get("LOCAL_RANK", "0")))


def check_shards(shards: int, processes: int) -> None:
    """Raises ValueError unless so many processes can be cut into groups of `shards`."""
    if shards < 1 or processes % shards:
        raise ValueError(f"shard is {shards}, which does not divide {processes} processes; name a number that does.")


def local_size() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def joined(where: torch.device) -> Iterator[None]:
    """One of the processes that torchrun started, or alone, until the end of the `with`, where it waits for the
    others."""
    if where.type != "cpu":
        torch.accelerator.set_device_index(where)  # what torch makes for itself belongs there, too
    own = dist.get_default_backend_for_device(where)
    backend = "gloo" if where.type == "cpu" else f"cpu:gloo,{where.type}:{own}"
    if launched():
        dist.init_process_group(backend, timeout=PATIENCE)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


# What all engines of several processes share -----------------------------------------------------------------------


class Processes:
    """This process among the others of a joined group."""

    def __init__(self, device: torch.device):
        self.device, self.rank, self.size = device, dist.get_rank(), dist.get_world_size()
        self._control = dist.new_group(backend="gloo", timeout=PATIENCE)  # numbers in the machine's memory
        self._number = next(_engines)
        self._arrived: list[tuple[int, FrameType | None]] = []
        self._handlers: dict[int, Any] = {}

    def sum(self, number: float) -> float:
        return self._reduced(number, torch.float64, dist.ReduceOp.SUM)

    def most(self, number: int) -> int:
        return self._reduced(number, torch.int64, dist.ReduceOp.MAX)

    def _reduced(self, number: float, dtype: torch.dtype, how: dist.ReduceOp.RedOpType) -> Any:
        value = torch.tensor(number, dtype=dtype)
        with _others_alive():
            dist.all_reduce(value, how, group=self._control)
        return value.item()

    def wait(self) -> None:
        """Until every process has come here."""
        with _others_alive():
            dist.barrier(group=self._control)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM, which torchrun hands on to all, are kept for `stop_if_asked`: one process that left the
        step where it stands would leave the others waiting."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._handlers = {number: signal.signal(number, lambda *one: self._arrived.append(one)) for number in numbers}
        try:
            yield
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def stop_if_asked(self) -> None:
        """Raises KeyboardInterrupt in all processes, where one of them was asked to stop."""
        if not self.most(len(self._arrived)):
            return
        for number, frame in self._arrived[:1]:
            handler = self._handlers[number]
            if callable(handler):  # the program's own may want to know which signal it was
                handler(number, frame)
        raise KeyboardInterrupt

    def together(self) -> bool:
        """Whether the other processes come here, too, within seconds."""
        store = dist.PrefixStore(f"failed {self._number}", dist.distributed_c10d._get_default_store())
        store.set(str(self.rank), "")
        try:
            store.wait([str(rank) for rank in range(self.size)], _MEETING)
        except RuntimeError:
            store.delete_key(str(self.rank))  # it leaves: those who fail because of it shall not count on it
            return False
        return True


@contextmanager
def _others_alive() -> Iterator[None]:
    """Raises ValueError where another process has ended meanwhile, of which gloo only says that nobody is there."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            "Another process of this training has ended, and with it this one; see its message."
        ) from error


class Replicated(Processes):
    """Every process has all of what is trained, and adds its gradients to those of the others: for a LoRA, whose base
    stands in each of them. `mixed` as for `Single`, which also keeps the state, in the first process."""

    def __init__(self, device: torch.device, weights: Named, *, mixed: bool = True):
        super().__init__(device)
        self._weights, self._single = list(weights.values()), Single(device, mixed=mixed)

    def computing(self) -> AbstractContextManager[Any]:
        return self._single.computing()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()
        if last:
            gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self._weights]
            together = torch.cat([gradient.float().flatten() for gradient in gradients])
            dist.all_reduce(together)
            parts = together.split([gradient.numel() for gradient in gradients])
            for weight, gradient, part in zip(self._weights, gradients, parts, strict=True):
                weight.grad = part.view_as(weight).to(gradient.dtype)

    def norms(self, weights: Sequence[nn.Parameter]) -> Tensor:
        return self._single.norms(weights)

    def save(self, folder: Path, step: int, weights: Named, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        if self.rank == 0:
            self._single.save(folder, step, weights, optimisers)
        self.wait()

    def resume(self, folder: Path, weights: Named, optimisers: Sequence[torch.optim.Optimizer]) -> int:
        return self._single.resume(folder, weights, optimisers)

    def whole(self, weight: nn.Parameter, dtype: torch.dtype) -> Tensor:
        return self._single.whole(weight, dtype)

    def finish(self) -> None:
        pass
