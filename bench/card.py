"""What a card is made to do, counted without one: `python -m bench.card` prints a line for each figure.

Every figure comes from running the production code: on tensors without data, on a tensor type that stands for a device
(`rehearsal`), or in a real ComfyUI with a stand-in for a card (`streaming`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import launches, quantised_counts, streaming, traffic, vq_counts, waits
from .record import made_with, write_section

PARTS = (streaming, waits, traffic, launches, quantised_counts, vq_counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the lines, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.card", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write section `card` of this file")
    options = parser.parse_args(arguments)
    figures: dict[str, float] = {}
    for part in PARTS:
        for name, value in part.figures().items():
            figures[name] = value
            print(f"count {name} {value:.4g}", flush=True)
    if options.json:
        made = made_with("python -m bench.card --json docs/performance.json")
        write_section(options.json, "card", {**made, "figures": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
