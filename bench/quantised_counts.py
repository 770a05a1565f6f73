"""What one-byte weights cost and lose at the published size: `python -m bench.quantised_counts` prints the figures.

Launches are operations that are no views, counted on tensors without data in one pass of one branch. Errors are those
of one product as wide as the feed-forward's last, against fp32, with random numbers in which some channels are as much
larger than the rest as they are in language models (arXiv 2508.14896).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from dimoo_core.checkpoint.convert import KINDS, convert
from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.model import quantised
from dimoo_core.model.quantised import (
    FP8,
    GROUP,
    INT8,
    Quantised,
    largest_magnitude,
    linear,
    quantise,
    rotate,
    scale_of,
)
from dimoo_core.nano import table
from dimoo_core.sequence.token_table import RELEASED
from dimoo_core.training.footprint import blank_base

from .counts import PICTURE_LENGTH, mean_holes
from .op_counts import OpCounts
from .record import made_with, write_section
from .workload import RELEASED_SIZE

SHORT = 32  # positions of a pass over a block of an answer
_TOKENS, _ROWS = 64, 512
OUTLIERS = {"no outliers": (0, 1), "8 channels 50 times as large": (8, 50), "8 channels 300 times as large": (8, 300)}
WAYS = {
    "fp8, activations as they are": Quantised(FP8, full_precision=True),
    "fp8": Quantised(FP8),
    "int8": Quantised(INT8),
    "int8, activations as they are": Quantised(INT8, full_precision=True),
    "int8, rotated": Quantised(INT8, group=GROUP),
}


def launches(kind: str, positions: int = PICTURE_LENGTH, rows: int | None = None) -> int:
    """Launches of a pass over `positions` with logits at `rows` of them (None: at the mean number of holes of a picture
    of 1024x1024 px), with weights of `kind` in the pack's own layers."""
    network = blank_base(RELEASED_SIZE.config, RELEASED.code_offset, kind, torch.bfloat16)
    ids, wanted = (
        torch.zeros(1, count, dtype=torch.int64, device="meta") for count in (positions, rows or mean_holes())
    )
    with OpCounts() as counts, torch.no_grad():
        network(ids, rows=wanted, vocab=RELEASED.codes)
    return counts.count()


def launches_over_bf16(kind: str, positions: int = PICTURE_LENGTH, rows: int | None = None) -> float:
    """The same as a multiple of what bf16 launches."""
    return launches(kind, positions, rows) / launches("bf16", positions, rows)


@dataclass(frozen=True)
class Product:
    """x [M,K], weight [N,K] and what they make in fp32."""

    x: Tensor
    weight: Tensor
    exact: Tensor

    @classmethod
    def random(cls, channels: int, factor: float) -> Product:
        """What a SwiGLU of normal numbers gives, `channels` of it `factor` times as large."""
        generator = torch.Generator().manual_seed(0)
        width = RELEASED_SIZE.config.mlp_hidden_size
        gate, up = (torch.randn(_TOKENS, width, generator=generator) for _ in range(2))
        x = F.silu(gate) * up
        x[:, torch.randperm(width, generator=generator)[:channels]] *= factor
        weight = 0.02 * torch.randn(_ROWS, width, generator=generator)
        return cls(x, weight, x @ weight.t())

    @torch.no_grad()
    def error(self, way: Quantised) -> float:
        """Root mean square of what storing the weight in a `way` changes, as a share of that of the exact product."""
        weight = self.weight if way.group is None else rotate(self.weight, way.group)
        scale = scale_of(largest_magnitude(weight, way.format), way.format)
        x = self.x
        if way == Quantised(FP8):  # as cards compute that multiply fp8, whatever this machine does
            own = scale_of(largest_magnitude(x, FP8), FP8)
            x = quantise(x, own, FP8).float() * own
        result = linear(x, quantise(weight, scale, way.format), scale, way)
        return float((result - self.exact).square().mean().sqrt() / self.exact.square().mean().sqrt())


def errors() -> dict[str, dict[str, float]]:
    """The error of each of WAYS for each of OUTLIERS."""
    products = {name: Product.random(*outliers) for name, outliers in OUTLIERS.items()}
    return {way: {name: one.error(fields) for name, one in products.items()} for way, fields in WAYS.items()}


JUDGED = (
    "generate full, held out",
    "generate open",
    "edit, half the steps",
    "inpaint",
    "describe, held out",
)
FP8_PRODUCTS = "fp8, activations too"


def judged(cases: int) -> dict[str, dict[str, float]]:
    """Shares of `cases` that DiMOO-nano gets right and clean in each row of JUDGED, from a file of each kind; in fp8
    also with activations rounded as they are where a card multiplies fp8."""
    rates = {}
    with TemporaryDirectory() as folder:
        for name, kind in {**{kind: kind for kind in KINDS}, FP8_PRODUCTS: "fp8"}.items():
            path = Path(folder, f"{kind}.safetensors")
            convert(find(NANO), path, kind)
            with patch.object(quantised, "multiplies_fp8", lambda _, name=name: name == FP8_PRODUCTS):
                runner, usual = table.load(path, "cpu")
                rows = [row for row in table.rows(usual) if row.name in JUDGED]
                rates[name] = {row.name: row.run(runner, cases).measured.rate for row in rows}
    return rates


def figures() -> dict[str, float]:
    """What `nox -s counts` prints."""
    return {"launches_int8_own_over_bf16": launches_over_bf16("int8")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures, and write them to a file where one is named."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m bench.quantised_counts", description=summary)
    parser.add_argument("--judge", type=int, metavar="N", help="judge DiMOO-nano by N cases a row, too: some minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write section `quantised` of this file")
    options = parser.parse_args(arguments)
    counted = {kind: {"picture": launches(kind), "short": launches(kind, SHORT, SHORT)} for kind in KINDS}
    lost = errors()
    for kind, one in counted.items():
        print(f"{kind:<6}{one['picture']:>6} launches a pass at 1024x1024 px, {one['short']} over {SHORT} positions")
    for way, row in lost.items():
        print(f"{way:<32}" + "  ".join(f"{name} {error:.2%}" for name, error in row.items()))
    if options.json:
        made = made_with("python -m bench.quantised_counts --json docs/performance.json")
        write_section(options.json, "quantised", {**made, "launches": counted, "errors": lost})
    if options.judge:
        rates = judged(options.judge)
        for name, row in rates.items():
            print(f"{name:<22}" + "  ".join(f"{task} {rate:.1%}" for task, rate in row.items()))
        if options.json:
            made = made_with(f"python -m bench.quantised_counts --judge {options.judge} --json docs/performance.json")
            write_section(options.json, "quantised_nano", {**made, "cases": options.judge, "rates": rates})
    return 0


if __name__ == "__main__":
    sys.exit(main())
