"""Schedules: how many tokens are decided at which step. The whole schedule is a list before the loop starts.

An image schedule is a function (holes, steps) -> the holes that stay open after each step. A new one is a new function
of this signature, given as `ImageSettings.schedule`; everything that depends on the schedule calls it there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch

from ..checks import whole_number

MAX_TOKENS = 65_536  # of an answer

Schedule = Callable[[int, int], list[int]]


def cosine(holes: int, steps: int) -> list[int]:
    """The cosine schedule of MaskGIT (arXiv 2202.04200, eq. 3), which the published model was trained for.

    After step s of `steps`: max(1, floor(holes cos(pi/2 (s+1)/steps))), at most one less than before, 0 at the last.
    The list ends where no hole is left, so it may be shorter than `steps`.
    """
    whole_number("steps", steps, 1)
    left, plan = whole_number("holes", holes, 0), []
    for step in range(steps):
        if left == 0:
            break
        target = 0 if step == steps - 1 else max(1, _cosine_share(holes, (step + 1) / steps))
        left = min(target, left - 1)
        plan.append(left)
    return plan


@lru_cache(maxsize=2**14)  # the items of a batch, and one prompt after another, need the same few
def _cosine_share(holes: int, progress: float) -> int:
    # In fp32, as the released code computes it: for 16 holes of which half should stay, fp64 gives 8 and fp32 gives 7.
    cosine = torch.cos(0.5 * math.pi * torch.tensor([progress], dtype=torch.float32))
    return int((torch.tensor([holes], dtype=torch.float32) * cosine).floor())


def tokens_per_step(length: int, steps: int, block_length: int) -> list[list[int]]:
    """Tokens decided at each step, one list per block of a text answer of `length` tokens, blocks left to right.

    Each block has steps / blocks steps and spreads its tokens evenly, the remainder over the first ones; steps that
    would decide nothing are left out. Raises ValueError, naming values that do, where lengths or steps do not divide.
    """
    whole_number("max_tokens", length, 1, MAX_TOKENS)
    whole_number("block_length", block_length, 1)
    whole_number("steps", steps, 1, MAX_TOKENS)
    if length % block_length:
        fitting = [size for size in range(1, length + 1) if length % size == 0]
        nearest = sorted(sorted(fitting, key=lambda size: abs(size - block_length))[:3])
        raise ValueError(
            f"block_length {block_length} does not divide max_tokens {length}: use a block_length such as "
            f"{', '.join(map(str, nearest))}."
        )
    blocks = length // block_length
    if steps % blocks:
        below, above = steps // blocks * blocks, (steps // blocks + 1) * blocks
        raise ValueError(
            f"{steps} steps do not divide evenly over {blocks} blocks ({length} tokens in blocks of {block_length}): "
            f"use {f'{below} or ' if below else ''}{above} steps."
        )
    per_block = steps // blocks
    share, rest = divmod(block_length, per_block)
    counts = [share + (step < rest) for step in range(per_block)]
    return [[count for count in counts if count]] * blocks
