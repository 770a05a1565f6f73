"""What the host does for a short pass: the kernels that it launches and the calls that Python makes, at the published
number of layers. `python -m bench.card` prints them.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import cast

import torch

from dimoo_core.sampling.branch import KeyValues
from dimoo_core.sampling.image import ImageSettings, sample_image
from dimoo_core.sampling.ml_cache import PRESETS, CachePolicy
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.token_table import RELEASED
from dimoo_core.training.footprint import attention
from dimoo_core.training.live_bytes import LiveBytes

from .op_counts import OpCounts
from .traffic import META, as_on_a_gpu
from .workload import RELEASED_SIZE, ImageJob, Size

EDIT = ImageJob((32, 32), 60, (32, 32))  # at 512x512 px
NARROW = Size(16, 32, 1, 32, 320, 64)  # as many layers as published; calls do not depend on the width
POSITIONS, LENGTH = 32, 130
STEPS = 4
COUNTED = replace(cast(CachePolicy, PRESETS["balanced"]), warmup=0.0)  # cached from the second step on
# The same at commit 617129e, with Python 3.11 and torch 2.13.0, by this command in a checkout of it:
#   python -c "import cProfile, pstats, torch; from bench.workload import Size; from dimoo_core.cache import KeyValues
#   torch.set_grad_enabled(False); net, kept = Size(16, 32, 1, 32, 320, 64).build('cpu', torch.float32), KeyValues()
#   ids, positions = torch.zeros(1, 130, dtype=torch.int64), torch.arange(32)[None] + 90; net(ids, cache=kept)
#   run = lambda: net(ids[:, :32], positions=positions, cache=kept); run(); profile = cProfile.Profile()
#   profile.runcall(run); print(pstats.Stats(profile).total_calls)"
PYTHON_CALLS_617129E = 7551


def launches_edit_cached_step() -> int:
    """Kernels of a cached step of an edit with three branches, the most of any, without views."""
    network, policy = RELEASED_SIZE.build(META, torch.bfloat16, attention=attention), COUNTED
    prefix, branches = EDIT.prompts(RELEASED, META)
    settings, counts = ImageSettings(steps=STEPS, cache=policy), OpCounts()
    seen: list[int] = []
    side = EDIT.cells[0]
    with as_on_a_gpu(), LiveBytes(answer=side * side // 2), counts:  # the loop reads how many holes are left
        sample_image(
            network,
            RELEASED,
            Canvas.empty(1, *EDIT.cells),
            prefix,
            branches,
            settings=settings,
            on_step=lambda *_: seen.append(counts.count()),
        )
    taken = [now - before for before, now in pairwise(seen)]  # of steps 1, 2, ...
    return max(count for step, count in enumerate(taken, 1) if not policy.is_full(step, STEPS))


def python_calls() -> int:
    """Calls that Python's profiler counts in one pass over 32 positions of 130, whose keys and values are kept."""
    network, kept = NARROW.build("cpu", torch.float32), KeyValues()
    ids, positions = torch.zeros(1, LENGTH, dtype=torch.int64), torch.arange(POSITIONS)[None] + 90

    def run() -> None:
        network(ids[:, :POSITIONS], positions=positions, cache=kept)

    with torch.inference_mode():
        network(ids, cache=kept)
        run()
        return profiled(run)


def profiled(run: Callable[[], object]) -> int:
    """Calls of Python's and of C's functions, as Python's profiler counts them."""
    profile = cProfile.Profile()
    profile.runcall(run)
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]


def figures() -> dict[str, float]:
    """The figures by the names that `nox -s counts` prints."""
    return {
        "launches_edit_cached_step": launches_edit_cached_step(),
        "python_calls_32_positions_over_617129e": python_calls() / PYTHON_CALLS_617129E,
    }
