"""Sizes of pictures: the grid of cells, and the buckets that pictures are fitted to.

Fitting follows `golden.json` `crops`: of the sizes with about side x side pixels the one nearest in shape.
"""

from __future__ import annotations

import math

from ..checks import whole_number

CELL = 16  # px per code along each side: what sizes, masks and buckets of this pack count in
PATCH = 32  # bucket sizes are multiples of it
MAX_SIDE = 4096  # px of the square whose area a picture is fitted to
MAX_RATIO = 4  # longest side of a bucket over its shortest
MAX_CELLS = 65536  # a canvas of 4096x4096 px


def buckets(side: int) -> list[tuple[int, int]]:
    """Sizes (width, height) in px of about side x side pixels, multiples of 32, no longer than 4:1."""
    whole_number("side", side, PATCH, MAX_SIDE)
    patches = (side // PATCH) ** 2
    return [
        (w * PATCH, h * PATCH)
        for w in range(1, patches + 1)
        for h in range(max(1, patches // (w + 1)), patches // w + 1)  # widest that fits, and the stairs down to it
        if max(w, h) <= MAX_RATIO * min(w, h)
    ]


def fit_size(width: int, height: int, side: int) -> tuple[int, int]:
    """The bucket (width, height) for a picture of width x height px: the one that cuts off least of its shape."""

    def match(size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        across, down = size[0] / width, size[1] / height
        return min(across, down) / max(across, down), size

    return max(buckets(side), key=match)


def understanding_size(width: int, height: int, sides: tuple[int, int], *, images: int) -> tuple[int, int]:
    """The size (width, height) at which a picture is described, as in training: with several `images` always a bucket
    of the smaller side; else a bucket where the area is below the smaller or above the larger side's square, and
    in between its own size, floored to multiples of a cell."""
    small, large = sides
    area = width * height
    if images > 1 or area < small * small:
        return fit_size(width, height, small)
    if area > large * large or min(width, height) < CELL:
        return fit_size(width, height, large)
    return width // CELL * CELL, height // CELL * CELL


def check_size(width: int, height: int, scale: int = CELL) -> tuple[int, int]:
    """Cells (height, width) of a picture of width x height px; raises ValueError unless both are multiples of `scale`
    and the cells are few enough to be sampled."""
    if width < scale or height < scale or width % scale or height % scale:
        near = [max(scale, round(side / scale) * scale) for side in (width, height)]
        raise ValueError(
            f"Got a size of {width}x{height} px; width and height must be multiples of {scale} px, at least {scale}: "
            f"use {near[0]}x{near[1]}."
        )
    cells = height // scale, width // scale
    if math.prod(cells) > MAX_CELLS:
        raise ValueError(
            f"Got a size of {width}x{height} px, which is {math.prod(cells)} cells, at most {MAX_CELLS} can be "
            "sampled: use a smaller size."
        )
    return cells
