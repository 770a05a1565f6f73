"""The training loop: one for every way to train (all weights or a LoRA) and for one device or many.

A step: its batches, which depend on the seed and the number of the step alone; the gradient of the mean loss over all
hidden tokens of the step, whatever batches and processes they fell into; an update at the rate of the schedule. Half an
update is never kept: a run that is stopped, or fails, leaves its last whole step.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Generator, Tensor

from ..checks import number_in, whole_number
from .engine import Engine, Named
from .objective import Batch, HiddenBatch, loss_sum
from .optimise import OptimiserSettings, Schedule, build_optimisers, set_rate
from .stopping import Stopped, uninterrupted


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a run; rates are peaks. See `OptimiserSettings` and `Schedule` for what they mean.

    clip: the largest norm of a step's gradient. save_every: steps between two states on disk. Raises ValueError for a
    number out of range.
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
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    schedule: str = "linear"
    minimum: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("warm_up", 0), ("save_every", 1)):
            whole_number(name, getattr(self, name), least)
        whole_number("seed", self.seed, 0, 2**32 - 1)
        number_in("clip", self.clip, 1e-6, 1e6)
        _ = self.optimiser, self.rates  # they check their own

    @property
    def optimiser(self) -> OptimiserSettings:
        return OptimiserSettings(
            self.optimizer, self.rate, self.betas, self.eps, self.weight_decay, matrix_rate=self.matrix_rate
        )

    @property
    def rates(self) -> Schedule:
        return Schedule(self.schedule, self.steps, self.warm_up, self.minimum, self.decay)

    def scale(self, step: int) -> float:
        """The share of the peak rates that step `step` (from 0) uses."""
        return self.rates.scale(step)

    def with_steps(self, steps: int) -> TrainSettings:
        """The same settings for another number of steps."""
        return replace(self, steps=steps)


class Batches(Protocol):
    """The data of a run."""

    def step(self, number: int) -> Sequence[HiddenBatch]:
        """This process's batches of step `number`, from 0: the same whatever came before."""
        ...


@dataclass(frozen=True)
class DrawnBatches:
    """Batches that `draw` makes from a random.Random, answers hidden as the objective says."""

    draw: Callable[[random.Random], list[Batch]]
    mask_id: int
    seed: int

    def step(self, number: int) -> list[HiddenBatch]:
        seed = self.seed * 1_000_003 + number
        generator = Generator().manual_seed(seed)
        return [batch.hide(self.mask_id, generator) for batch in self.draw(random.Random(seed))]


@dataclass(frozen=True)
class Step:
    """What a step was: its number from 1, how many there will be, the mean loss over its hidden tokens, the learning
    rate, the norm of the gradient before it was clipped, and the seconds that it took."""

    number: int
    steps: int
    loss: float
    rate: float
    gradient_norm: float
    seconds: float


class Trainer:
    """Weights in training; `run` continues where `folder` says the last run stopped.

    network: the call that gives logits, see `loss_sum`. weights: what is trained, by name. step: how many updates they
    have seen. whole: whether they are those of a whole step, which an error inside an update leaves them not. Raises
    ValueError where `folder` holds something other than a run of these weights.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        weights: Named,
        batches: Batches,
        settings: TrainSettings,
        *,
        engine: Engine,
        folder: Path,
    ):
        self.network, self.weights, self.batches = network, weights, batches
        self.settings, self.engine, self.folder = settings, engine, folder
        self.optimisers = build_optimisers(weights.items(), settings.optimiser)
        self.step = engine.resume(folder, weights, self.optimisers)
        self._set_rate()
        self._saved = self.step  # the last step that the folder has
        self.whole = True
        self._ending = False

    def run(self, on_step: Callable[[Step], None] | None = None, record: Callable[[Step], None] | None = None) -> None:
        """Train to the end; `on_step` after each step, once it is saved where that is due. `record` gets each step
        first, and Ctrl-C waits for it: so no step that the weights have seen is missing from a log.

        Whatever ends it, an error or a cancel that `on_step` raises included, the last whole step is saved first;
        Ctrl-C leaves as `Stopped`, which says so. Raises ValueError, before the weights change, where the loss or a
        gradient is not finite.
        """
        with self.engine.listening():
            self._run(on_step, record)

    def _run(self, on_step: Callable[[Step], None] | None, record: Callable[[Step], None] | None) -> None:
        steps = self.settings.steps
        try:
            while self.step < steps and not self._ending:
                began = time.monotonic()
                loss = self._accumulate()
                if not math.isfinite(loss):
                    raise ValueError(
                        f"The loss of step {self.step + 1} is {loss}; expected a finite number: lower the learning "
                        f"rate, or check that the weights are finite. {_capital(self.kept)}."
                    )
                norm = self._clip()
                with uninterrupted():  # half an update could not be resumed
                    rate = self._update()
                    step = Step(self.step, steps, loss, rate, norm, time.monotonic() - began)
                    if record is not None:
                        record(step)
                if self.step % self.settings.save_every == 0 or self.step == steps:
                    self.save()
                if on_step is not None:
                    on_step(step)
                self.engine.stop_if_asked()
            if self.step > self._saved:
                self.save()
        except BaseException as error:
            self._release()  # gradients of a step that was not finished
            if self.whole and self.step > self._saved and self.engine.together():
                self.save()
            if isinstance(error, KeyboardInterrupt):
                raise Stopped(self.kept) from error
            raise
        finally:
            self.engine.finish()

    def end(self) -> None:
        """Let the step that runs be the last, as if it had been the last of the settings."""
        self._ending = True

    def save(self) -> None:
        """Write the state as it is after the last step."""
        self.engine.save(self.folder, self.step, self.weights, self.optimisers)
        self._saved = self.step

    @property
    def kept(self) -> str:
        """What a stop now leaves, in words."""
        if not self._saved:
            return "nothing was written, no step was finished"
        return f"step {self._saved} of {self.settings.steps} is kept in {self.folder}, the same command continues there"

    def _accumulate(self) -> float:
        """Gradients of one step, and its loss; the weights stay as they are."""
        batches = list(self.batches.step(self.step))
        total = self.engine.sum(sum(batch.count for batch in batches))
        rounds = self.engine.most(len(batches))  # every process takes part in every pass of the others
        parts = []
        for number in range(rounds):
            batch = batches[number] if number < len(batches) else batches[0].silent()
            with self.engine.computing():
                part = loss_sum(self.network, batch.to(self.engine.device)) / max(total, 1e-6)
            self.engine.backward(part, last=number == rounds - 1)
            parts.append(part.detach())
        return self.engine.sum(sum(torch.stack(parts).tolist()))  # read once: each reading waits for the device

    def _clip(self) -> float:
        """Scales the gradients down to the largest norm that is allowed; returns the norm before."""
        norms = self.engine.norms(list(self.weights.values())).cpu()
        broken = [name for name, own in zip(self.weights, norms.tolist(), strict=True) if not math.isfinite(own)]
        if broken:  # it went from the last of them to all before it
            raise ValueError(
                f"The gradient of {broken[-1]} at step {self.step + 1} has a number that is not finite; lower the "
                f"learning rate, or train in bf16 or fp32. {_capital(self.kept)}."
            )
        norm = float(torch.linalg.vector_norm(norms))
        if norm > self.settings.clip:
            for weight in self.weights.values():
                if weight.grad is not None:
                    weight.grad.mul_(self.settings.clip / (norm + 1e-6))  # as torch's clip_grad_norm_
        return norm

    def _update(self) -> float:
        """Weights and optimisers one step on; the rate."""
        rate = self._set_rate()
        self.whole = False
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        self.whole = True
        self._release()
        return rate

    def _set_rate(self) -> float:
        set_rate(self.optimisers, self.settings.scale(self.step))
        return float(self.optimisers[0].param_groups[0]["lr"])

    def _release(self) -> None:
        for weight in self.weights.values():
            weight.grad = None


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
