"""The memory of training at the published size, counted: `python -m bench.training` prints a line for each case.

A LoRA of rank 16 on all linears of the blocks, batch 1, a picture from words, all of it hidden: the real step, forward,
backward and AdamW, twice, on tensors without data. GB are 10^9 bytes. What an allocator loses between tensors comes on
top.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from dimoo_core.checkpoint.convert import KINDS
from dimoo_core.sequence.token_table import RELEASED
from dimoo_core.training.footprint import StepCost, StepShape, blank_base, lora_step_cost

from .record import made_with, write_section
from .workload import RELEASED_SIZE

SIDES = (512, 1024)  # px
RANK, CELL = 16, 16


def lora_cost(kind: str, side: int, *, recompute: bool = True) -> StepCost:
    """A step of a LoRA beside weights of `kind`, for a picture of `side` x `side` px."""
    base = blank_base(RELEASED_SIZE.config, RELEASED.code_offset, kind, torch.bfloat16)
    shape = StepShape(side // CELL, side // CELL)
    return lora_step_cost(base, shape, rank=RANK, vocab=RELEASED.codes, recompute=recompute)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the lines, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write section `training` of this file")
    options = parser.parse_args(arguments)
    costs = {}
    for kind in KINDS:
        for side in SIDES:
            cost = costs[f"{kind}_{side}"] = lora_cost(kind, side)
            print(f"count lora_train_{kind}_{side}_gb {cost.bytes / 1e9:.2f}", flush=True)
            print(f"count lora_train_{kind}_{side}_tflop {cost.flops / 1e12:.1f}", flush=True)
    if options.json:
        rows = {name: {"bytes": cost.bytes, "flops": cost.flops} for name, cost in costs.items()}
        made = made_with("python -m bench.training --json docs/performance.json")
        write_section(options.json, "training", {**made, "rank": RANK, "lora": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
