"""Optimisers and learning rates, by the names that people know them by.

AdamW is torch's. adamw8bit (bitsandbytes), adafactor (transformers) and prodigy (prodigyopt) are used where they are
installed; nothing here needs them. Muon, for the matrices inside the blocks, is torch's, too.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..checks import number_in, shown, whole_number


@dataclass(frozen=True)
class OptimiserSettings:
    """rate: the peak learning rate, which the schedule scales. Muon, where `matrix_rate` is above 0, takes the weight
    matrices inside the blocks, and the optimiser `name` all others.

    Raises ValueError for an unknown name and for a number out of range.
    """

    name: str = "adamw"
    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    matrix_rate: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in OPTIMISERS:
            raise ValueError(f"optimizer is {shown(self.name)}; expected one of {', '.join(OPTIMISERS)}.")
        for name in ("rate", "matrix_rate", "weight_decay", "eps"):
            number_in(name, getattr(self, name), 0, 1)
        for beta in self.betas:
            number_in("betas", beta, 0, 1)


def _adamw(weights: list[nn.Parameter], settings: OptimiserSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        weights, lr=settings.rate, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )


def _adamw8bit(weights: list[nn.Parameter], settings: OptimiserSettings) -> torch.optim.Optimizer:
    made = _installed("bitsandbytes.optim", "bitsandbytes", "adamw8bit").AdamW8bit
    return made(weights, lr=settings.rate, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)


def _adafactor(weights: list[nn.Parameter], settings: OptimiserSettings) -> torch.optim.Optimizer:
    made = _installed("transformers.optimization", "transformers", "adafactor").Adafactor
    # with a rate that a schedule sets, not the one that Adafactor finds for itself
    given = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    return made(weights, lr=settings.rate, weight_decay=settings.weight_decay, **given)


def _prodigy(weights: list[nn.Parameter], settings: OptimiserSettings) -> torch.optim.Optimizer:
    made = _installed("prodigyopt", "prodigyopt", "prodigy").Prodigy
    return made(weights, lr=settings.rate, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)


OPTIMISERS: dict[str, Callable[[list[nn.Parameter], OptimiserSettings], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
}


def _installed(module: str, package: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"The optimizer {name} comes with the package {package}, which is not installed; run `pip install "
            f"{package}`, or choose adamw."
        ) from None


def build_optimisers(
    weights: Iterable[tuple[str, nn.Parameter]], settings: OptimiserSettings
) -> list[torch.optim.Optimizer]:
    """The optimisers of named weights; each group remembers its `peak` rate. Raises ValueError where the package of one
    is not installed."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, weight in weights:
        inner = settings.matrix_rate > 0 and weight.ndim == 2 and ".blocks." in name
        (matrices if inner else rest).append(weight)
    made = [OPTIMISERS[settings.name](rest, settings)]
    if matrices:
        made.append(torch.optim.Muon(matrices, lr=settings.matrix_rate, weight_decay=settings.weight_decay))
    for optimiser in made:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return made


def check_installed(settings: OptimiserSettings) -> None:
    """Raises ValueError where the package of an optimiser is not installed: to be known before the work begins."""
    build_optimisers([("", nn.Parameter(torch.zeros(1)))], settings)


def set_rate(optimisers: Iterable[torch.optim.Optimizer], scale: float) -> None:
    """The rate of the next update: this share of each group's peak."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * scale


# Learning rates -----------------------------------------------------------------------------------------------------

SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class Schedule:
    """The share of the peak rate that each update uses: rising over `warm_up` updates, then as `kind` says until
    `steps`: constant; cosine, down to the share `minimum`; linear, constant and then falling to 0 over the last `decay`
    share of the steps.

    first: the number of the first update. From 1 on, it learns already; from 0 on, as in the released code (which
    counts micro-batches), its rate is 0 where there is a warm-up. Raises ValueError for a number out of range.
    """

    kind: str
    steps: float
    warm_up: float = 0
    minimum: float = 0.0
    decay: float = 0.4
    first: int = 1

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(f"schedule is {shown(self.kind)}; expected one of {', '.join(SCHEDULES)}.")
        number_in("minimum", self.minimum, 0, 1)
        number_in("decay", self.decay, 1e-3, 1)
        whole_number("first", self.first, 0, 1)

    def scale(self, step: int) -> float:
        """The share, 0..1, for update `step`, counted from 0."""
        position = step + self.first
        rising = position / self.warm_up if position < self.warm_up else 1.0
        if self.kind == "linear":
            return max(0.0, min(rising, (1 - step / self.steps) / self.decay))
        if self.kind == "constant" or position < self.warm_up:
            return rising
        passed = min((position - self.warm_up) / max(self.steps - self.warm_up, 1), 1.0)
        return self.minimum + (1 - self.minimum) * 0.5 * (1 + math.cos(math.pi * passed))
