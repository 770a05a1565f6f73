"""The work of the published VQ, counted on tensors without data: tiles beside the whole picture at 1024x1024 px, and
the colours of previews beside what they took before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from dimoo_core.model.vq import VQ
from dimoo_core.model.vq_tiles import TILE

from .op_counts import OpCounts
from .workload import RELEASED_VQ

SIDE = 1024  # px
PALETTE_FLOPS_BEFORE = 138_033_160_519_680  # commit 52b50bf decoded every code among its own kind, 3x3 cells


@dataclass(frozen=True)
class Work:
    """FLOP, bytes that all operations read and write, and operations that are not views."""

    flops: int
    bytes: int
    launches: int


def counted(run: Callable[[], object]) -> Work:
    """The work of a call."""
    with FlopCounterMode(display=False) as flop, OpCounts() as ops:
        run()
    return Work(flop.get_total_flops(), sum(ops.bytes.values()), ops.count())


def released_vq() -> VQ:
    """The published VQ in fp32, without data."""
    return VQ(RELEASED_VQ, device="meta", dtype=torch.float32)


def decoding(vq: VQ, tile: int | None) -> Work:
    """Decoding a picture, whole or in tiles of about `tile` values."""
    codes = torch.zeros(1, SIDE // vq.scale, SIDE // vq.scale, dtype=torch.int64, device="meta")
    return counted(lambda: vq.decode(codes, tile=tile))


def encoding(vq: VQ, tile: int | None) -> Work:
    """Encoding a picture, whole or in tiles of about `tile` values."""
    pixels = torch.zeros(1, 3, SIDE, SIDE, device="meta")
    return counted(lambda: vq.encode(pixels, tile=tile))


def figures(tile: int = TILE) -> dict[str, float]:
    """What tiles cost, as parts of the whole, the dearer of decoding and encoding; and the colours of previews."""
    vq = released_vq()
    pairs = [(way(vq, tile), way(vq, None)) for way in (decoding, encoding)]
    palette = counted(lambda: vq.mean_colours("meta"))
    return {
        "vq_tiles_flops_over_whole": max(tiles.flops / whole.flops for tiles, whole in pairs),
        "vq_tiles_bytes_over_whole": max(tiles.bytes / whole.bytes for tiles, whole in pairs),
        "vq_tiles_launches_over_whole": max(tiles.launches / whole.launches for tiles, whole in pairs),
        "palette_flops_over_before": palette.flops / PALETTE_FLOPS_BEFORE,
    }
