"""The training loop: many small batches per step, optimisers with warm-up and decay, a saved state to resume from."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checks import number_in, whole_number
from ..files import atomic_write
from ..model.transformer import Transformer, sdpa
from .objective import Batch, masked_loss


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a run. Rates are peaks: they rise over `warm_up` steps, and fall to 0 over the last `decay` share.

    `matrix_rate` is Muon's, for the weight matrices inside the blocks (0: AdamW for these too); `rate` is AdamW's.
    Raises ValueError for a number out of range.
    """

    steps: int
    rate: float = 2e-3
    matrix_rate: float = 2e-2
    warm_up: int = 100
    decay: float = 0.4
    weight_decay: float = 0.01
    clip: float = 1.0
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("warm_up", 0), ("save_every", 1)):
            whole_number(name, getattr(self, name), least)
        whole_number("seed", self.seed, 0, 2**32 - 1)
        for name in ("rate", "matrix_rate", "weight_decay"):
            number_in(name, getattr(self, name), 0, 1)
        number_in("decay", self.decay, 1e-3, 1)
        number_in("clip", self.clip, 1e-6, 1e6)

    def scale(self, step: int) -> float:
        """The share of the peak rates that step `step` (from 0) uses."""
        return min(1.0, (step + 1) / max(self.warm_up, 1), (1 - step / self.steps) / self.decay)

    def with_steps(self, steps: int) -> TrainSettings:
        """The same settings for another number of steps."""
        return replace(self, steps=steps)


WRITTEN_OUT = 512  # positions; the scores of longer sequences would fill the memory


def attention_for_training(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of queries, keys and values [B,h,L,d] each -> [B,h,L,d]. Written out for short sequences on a CPU,
    where its backward is faster than torch's own; elsewhere torch's own, which never holds the scores [B,h,L,L]."""
    if queries.device.type != "cpu" or queries.shape[-2] > WRITTEN_OUT:
        return sdpa(queries, keys, values)
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ values


# Stopping -----------------------------------------------------------------------------------------------------------


class Stopped(KeyboardInterrupt):
    """A run that was stopped with Ctrl-C or SIGTERM; the text says what is kept of it."""


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """A stop inside the `with` says `what` is kept, unless it says something itself."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if str(stop):
            raise
        raise Stopped(what) from stop


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the end of the `with`. They arrive in the main thread only; elsewhere this does
    nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda *one: arrived.append(one)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    for arrival, frame in arrived[:1]:
        handler = handlers[signal.Signals(arrival)]
        if callable(handler):
            handler(arrival, frame)
        elif handler != signal.SIG_IGN:
            os.kill(os.getpid(), arrival)


def build_optimisers(model: nn.Module, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon (torch's own) for the blocks' matrices and AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        inner = settings.matrix_rate > 0 and weight.ndim == 2 and ".blocks." in name
        (matrices if inner else rest).append(weight)
    adam = torch.optim.AdamW(rest, lr=settings.rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay)
    made: list[torch.optim.Optimizer] = [adam]
    if matrices:
        made.append(torch.optim.Muon(matrices, lr=settings.matrix_rate, weight_decay=settings.weight_decay))
    for optimiser in made:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return made


class Trainer:
    """A model in training; `run` continues where `folder` says the last run stopped.

    `draw` makes the batches of one step from a random.Random: the same step of the same seed gets the same data,
    stopped and resumed or not. Raises ValueError where `folder` holds something other than a run of this model.
    """

    def __init__(
        self,
        model: Transformer,
        draw: Callable[[random.Random], list[Batch]],
        settings: TrainSettings,
        *,
        mask_id: int,
        folder: Path,
    ):
        self.model, self.draw, self.settings, self.mask_id, self.folder = model, draw, settings, mask_id, folder
        self.optimisers = build_optimisers(model, settings)
        self.step = 0
        self._resume()
        self._saved = self.step  # the last step that the folder has

    def run(self, on_step: Callable[[int, int, float], None] | None = None) -> None:
        """Train to the end; `on_step(done, steps, loss)` after each step. A KeyboardInterrupt, whether from Ctrl-C or
        from `on_step`, saves the last whole step and leaves as `Stopped`, which says so. Raises ValueError,
        before the weights change, where the loss is not finite."""
        steps = self.settings.steps
        self.model.train()
        try:
            while self.step < steps:
                loss = self._accumulate()
                if not math.isfinite(loss):
                    raise ValueError(
                        f"The loss of step {self.step + 1} is {loss}; expected a finite number: lower the learning "
                        f"rate, or check that the weights are finite. {self.kept[0].upper()}{self.kept[1:]}."
                    )
                with uninterrupted():  # half an update could not be resumed
                    self._update()
                    self.step += 1
                if self.step % self.settings.save_every == 0 or self.step == steps:
                    self._save()
                if on_step is not None:
                    on_step(self.step, steps, loss)
        except KeyboardInterrupt as stop:
            self.model.zero_grad(set_to_none=True)  # of a step that was not finished
            if self.step > self._saved:
                self._save()
            raise Stopped(self.kept) from stop
        self.model.eval()

    @property
    def kept(self) -> str:
        """What a stop now leaves, in words."""
        if not self._saved:
            return "nothing was written, no step was finished"
        return f"step {self._saved} of {self.settings.steps} is kept in {self.folder}, the same command continues there"

    def _accumulate(self) -> float:
        """Gradients of one step, and its loss; the weights stay as they are."""
        seed = self.settings.seed * 1_000_003 + self.step
        batches = self.draw(random.Random(seed))
        generator = torch.Generator().manual_seed(seed)
        shares = sum(batch.share for batch in batches)
        total = 0.0
        device = next(self.model.parameters()).device
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16):
                loss = masked_loss(self.model, batch.to(device), self.mask_id, generator) / shares
            loss.backward()
            total += loss.item()
        return total

    def _update(self) -> None:
        """Weights and optimisers one step on."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * self.settings.scale(self.step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    # ------------------------------------------------------------------------------------------- stop and resume

    def _names(self) -> dict[Tensor, str]:
        return {weight: name for name, weight in self.model.named_parameters()}

    def _save(self) -> None:
        """Weights and optimiser state in one safetensors file, written whole or not at all."""
        names = self._names()
        tensors = {f"model/{name}": weight.detach() for weight, name in names.items()}
        for optimiser in self.optimisers:
            for weight, state in optimiser.state.items():
                tensors |= {f"state/{names[weight]}/{key}": torch.as_tensor(value) for key, value in state.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._file) as part:
            save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata={"step": str(self.step)})
        self._saved = self.step

    @property
    def _file(self) -> Path:
        return self.folder / "training.safetensors"

    def _resume(self) -> None:
        if not self._file.exists():
            return
        weights = dict(self.model.named_parameters())
        self._check_file({name: list(weight.shape) for name, weight in weights.items()})
        owners = {weight: made for made in self.optimisers for group in made.param_groups for weight in group["params"]}
        with safe_open(self._file, "pt") as file, torch.no_grad():
            self.step = int(file.metadata()["step"])
            for key in file.keys():  # noqa: SIM118 - not a mapping
                kind, _, name = key.partition("/")
                if kind == "model":
                    weights[name].copy_(file.get_tensor(key))
                else:
                    name, _, part = name.rpartition("/")
                    state, weight = file.get_tensor(key), weights[name]
                    # the optimisers count steps on the CPU, wherever the weights are
                    owners[weight].state[weight][part] = state if part == "step" else state.to(weight.device)

    def _check_file(self, shapes: dict[str, list[int]]) -> None:
        """Raises ValueError unless the stored weights have the names and shapes `shapes`."""
        try:
            with safe_open(self._file, "pt") as file:
                stored = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError as error:
            raise ValueError(f"{self._file} is not a stopped run ({error}); remove it to begin again.") from None
        if {name: stored.get(f"model/{name}") for name in shapes} != shapes:
            raise ValueError(f"{self._file} is a run of another network; name another folder for this one.")
