"""Which file fits on which card, computed: `python -m bench.cards` prints the table.

A card's room is its memory less RESERVE, which the desktop, CUDA and ComfyUI take. A file fits if the transformer's
weights and what sampling needs beside them (`dimoo_core.memory`) find room together; what does not fit is read from RAM
in every pass. The text rows of embedding and head are not counted, for they stay in RAM; nor is the VQ: it works before
and after the transformer, which makes room for it.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from dimoo_core import memory
from dimoo_core.checkpoint.convert import KINDS, quantised_as
from dimoo_core.model.quantised import FP8, INT8
from dimoo_core.model.transformer import module_to_hub
from dimoo_core.model.vq import VQ
from dimoo_core.model.vq_tiles import TILE
from dimoo_core.sampling.ml_cache import PRESETS, CachePolicy
from dimoo_core.sampling.schedule import cosine
from dimoo_core.sequence.layout import answer_length
from dimoo_core.sequence.token_table import RELEASED

from .counts import JOBS, STEPS
from .record import made_with, write_section
from .workload import RELEASED_SIZE, RELEASED_VQ

CARDS = (8, 12, 16, 24)  # GiB, as cards are sold
FORMATS = {"bf16": (), "fp8": (FP8,), "int8": (INT8,)}
RESERVE = 1e9  # bytes
SPARE = 1e9  # bytes that a recommended file leaves free
BF16 = 2  # bytes


@dataclass(frozen=True)
class Pace:
    """What a kind of file is good for on a generation of cards, in words, and how that is known."""

    words: str
    known: Literal["measured", "counted", "guessed"]


_SLOW = Pace("slow: computes in fp32", "guessed")
_WIDENED = Pace("small, slower than bf16: no product of fp8, weights are widened at every call", "counted")
_FAST = Pace("fast", "guessed")
_FAST_FP8 = Pace("small and fast: products of fp8", "guessed")
_FAST_INT8 = Pace("small and fast: products of int8", "guessed")
PACES: dict[str, dict[str, Pace]] = {
    "Turing (RTX 20, GTX 16, T4)": {
        "bf16": _SLOW,
        "fp8": _SLOW,
        "int8": Pace("small and the fastest: products of int8", "guessed"),
    },
    "Ampere (RTX 30, A100)": {"bf16": _FAST, "fp8": _WIDENED, "int8": _FAST_INT8},
    "Ada (RTX 40, L4)": {"bf16": _FAST, "fp8": _FAST_FP8, "int8": _FAST_INT8},
    "Hopper (H100, H200)": {
        "bf16": Pace("the fastest", "measured"),
        "fp8": Pace("small; slower than bf16 in ComfyUI's own layers, which are no longer used", "measured"),
        "int8": Pace("small, slower than bf16", "measured"),
    },
    "Blackwell (RTX 50, B200)": {"bf16": _FAST, "fp8": _FAST_FP8, "int8": Pace("small", "guessed")},
}


@dataclass(frozen=True)
class Fit:
    """A file on a card. Bytes of weights that every pass reads from RAM, without and with ML-Cache; 0: it fits."""

    streamed: int
    streamed_cached: int
    spare: int  # bytes left on the card without ML-Cache; 0 where it streams


@dataclass(frozen=True)
class Card:
    """A card of `gib` GiB: how each kind of file fits, the kind to use, and GB of RAM and disk for that."""

    gib: int
    fits: dict[str, Fit]
    kind: str
    ram_gb: int
    disk_gb: float


@functools.cache
def weight_bytes(kind: str) -> int:
    """Bytes of the transformer's weights in a file of `kind`."""
    network = RELEASED_SIZE.build("meta", torch.bfloat16)
    weights = module_to_hub(network.state_dict())
    stored = {name: quantised_as(name, kind, weight.shape[-1]) for name, weight in weights.items()}
    return sum(weight.numel() * (BF16 if stored[name] is None else 1) for name, weight in weights.items())


@functools.cache
def text_bytes() -> int:
    """Bytes of the text rows of embedding and head, which stay in RAM while pictures are made."""
    layers = RELEASED_SIZE.build("meta", torch.bfloat16).layers
    return sum(layers[name].text.weight.nbytes for name in ("wte", "ff_out"))


@functools.cache
def vq_bytes() -> int:
    """Bytes of the VQ's weights, in fp32 as they are published."""
    return sum(weight.nbytes for weight in VQ(RELEASED_VQ, device="meta", dtype=torch.float32).parameters())


def sampling_bytes(cache: CachePolicy | None, kind: str = "bf16") -> int:
    """The most that a picture from words at 1024x1024 px or an edit at 512x512 px takes beside weights of `kind`."""
    return max(_job_bytes(job, cache, kind) for job in JOBS)


def _job_bytes(job: str, cache: CachePolicy | None, kind: str) -> int:
    side, prefixes = JOBS[job]
    length = max(prefixes) + answer_length(side, side)
    layer = memory.quantised_bytes(RELEASED_SIZE.config, BF16, FORMATS[kind], length)
    return layer + memory.image_bytes(
        RELEASED_SIZE.config,
        batch=1,
        length=length,
        cells=side * side,
        codes=RELEASED.codebook_size,
        branches=len(prefixes),
        itemsize=BF16,
        schedule=cosine(side * side, STEPS),
        cache=cache,
    )


def fit(weights: int, room: float, job: int, cached: int) -> Fit:
    """A file with so many bytes of weights in `room` bytes, beside what a job takes without and with ML-Cache."""
    streamed, streamed_cached = (max(0, math.ceil(weights + beside - room)) for beside in (job, cached))
    return Fit(streamed, streamed_cached, max(0, math.floor(room - weights - job)))


def cards() -> list[Card]:
    """A row for every card."""
    weights = {kind: weight_bytes(kind) for kind in KINDS}
    beside = {kind: [sampling_bytes(cache, kind) for cache in (None, PRESETS["balanced"])] for kind in KINDS}
    found = []
    for gib in CARDS:
        room = gib * 2**30 - RESERVE
        fits = {kind: fit(size - text_bytes(), room, *beside[kind]) for kind, size in weights.items()}
        roomy = [kind for kind in KINDS if fits[kind].spare >= SPARE]
        kind = max(roomy, key=weights.__getitem__) if roomy else min(weights, key=weights.__getitem__)
        file = weights[kind] + vq_bytes()
        download = weights["bf16"] + vq_bytes()
        ram = 8 * math.ceil((file / 1e9 + 4) / 8)  # the file, and 4 GB for the rest, as RAM is sold
        found.append(Card(gib, fits, kind, ram, round((download + (kind != "bf16") * file) / 1e9, 1)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.cards", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write section `cards` of this file")
    options = parser.parse_args(arguments)
    found = cards()
    for card in found:
        for kind, one in card.fits.items():
            words = f"streams {one.streamed / 1e9:.1f} GB a pass" if one.streamed else f"{one.spare / 1e9:.1f} GB spare"
            cached = f"streams {one.streamed_cached / 1e9:.1f}" if one.streamed_cached else "fits"
            chosen = "  <- recommended" if kind == card.kind else ""
            print(f"{card.gib:>3} GB  {kind:<5} {words:<24} with ML-Cache {cached}{chosen}")
        print(f"        {card.ram_gb} GB of RAM, {card.disk_gb} GB of disk")
    if options.json:
        content = {
            **made_with("python -m bench.cards --json docs/performance.json"),
            "weights": {kind: weight_bytes(kind) for kind in KINDS},
            "vq": vq_bytes(),
            "sampling": {name: sampling_bytes(policy) for name, policy in PRESETS.items()},
            "decode": {
                "whole": memory.decode_bytes(RELEASED_VQ, (1024, 1024), 4),
                "tiles": memory.decode_bytes(RELEASED_VQ, (1024, 1024), 4, tile=TILE),
            },
            "rows": [asdict(card) for card in found],
        }
        write_section(options.json, "cards", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
