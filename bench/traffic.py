"""Bytes between the matrix products of a pass, and those of a step's decisions, at the published size in bf16, counted
without a GPU as one computes it: `python -m bench.card` prints them.

Counted are the operations of the production code on tensors without data. What only a GPU has stands in as one
operation of torch's that reads and writes what the kernel does: torch's fused RMSNorm (since torch 2.9), and, where
they are asked for, the kernels for rotary positions and SwiGLU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from dimoo_core.model.kernels import Kernel, rotate_by_addcmul, rotations, swiglus
from dimoo_core.model.transformer import RMSNorm
from dimoo_core.sampling.guidance import BranchLogits, combine
from dimoo_core.sampling.noise import Noise
from dimoo_core.sampling.selection import decide_in_chunks
from dimoo_core.sequence.token_table import RELEASED
from dimoo_core.training.footprint import attention

from .counts import PICTURE_LENGTH, STEPS, mean_holes, traffic
from .workload import RELEASED_SIZE

META = torch.device("meta")


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    return x * norm.weight


def _rotation(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    halves = x.unflatten(-1, (2, -1))
    halves.addcmul_(*(one[..., None, : halves.shape[-1]] for one in (cos, sin)))


def _swiglu(gate: Tensor, up: Tensor) -> None:
    gate.mul_(up)


@contextmanager
def as_on_a_gpu(rotation: Kernel = rotate_by_addcmul, swiglu: Kernel = swiglus.plain) -> Iterator[None]:
    """Has passes on "meta" take the ways of a GPU, or others."""
    where = META, torch.bfloat16
    with (
        mock.patch.object(RMSNorm, "forward", _norm),
        mock.patch.dict(rotations.settled, {(*where, RELEASED_SIZE.config.head_dim): rotation}),
        mock.patch.dict(swiglus.settled, {(*where, 0): swiglu}),
    ):
        yield


def gb_between_products_1024(kernels: bool = False) -> float:
    """GB read and written between the products of a pass over a picture of 1024x1024 px with the mean number of holes:
    by torch's own operations, or with the two kernels."""
    network = RELEASED_SIZE.build(META, torch.bfloat16, attention=attention)
    ids, rows = (torch.zeros(1, count, dtype=torch.int64, device=META) for count in (PICTURE_LENGTH, mean_holes()))
    with as_on_a_gpu(_rotation, _swiglu) if kernels else as_on_a_gpu():
        return traffic(lambda: network(ids, rows=rows, vocab=RELEASED.codes)) / 1e9


def gb_noise_1024() -> float:
    """GB read and written by a step of a picture of 1024x1024 px, of words with a negative, to draw its noise at the
    mean number of holes and decide upon codes with it."""
    noise, cells = Noise(0, 1, META, STEPS), torch.zeros(1, mean_holes(), dtype=torch.int64, device=META)
    logits = torch.empty(1, mean_holes(), RELEASED.codebook_size, dtype=torch.bfloat16, device=META)
    guided = partial(combine, logits, [BranchLogits(logits, 4.0)])

    def decide() -> None:
        decide_in_chunks(guided, noise.for_tokens(0, cells, RELEASED.codebook_size), 1.0)
        noise.for_remask(0, cells)

    return traffic(decide) / 1e9


def figures() -> dict[str, float]:
    """The figures by the names that `nox -s counts` prints."""
    return {
        "gb_between_products_1024": gb_between_products_1024(),
        "gb_between_products_1024_with_kernels": gb_between_products_1024(kernels=True),
        "gb_noise_1024": gb_noise_1024(),
    }
