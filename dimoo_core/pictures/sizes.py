"""Sizes of pictures: the grid of cells, and the buckets that pictures are fitted to.

Fitting follows `golden.json` `crops`: of the sizes with about side x side pixels the one nearest in shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

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


# How a picture is brought to its bucket. Sizes and frames are (width, height) in px. ---------------------------------


@dataclass(frozen=True)
class Window:
    """The part of a picture that another one of `columns` x `rows` px shows. left, top, width, height: px of the
    picture; the edges may lie within pixels."""

    left: Fraction
    top: Fraction
    width: Fraction
    height: Fraction
    columns: int
    rows: int


def halvings(size: tuple[int, int], frame: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The sizes that a picture takes while it is halved, as long as both its sides are at least twice the frame's."""
    width, height = size
    while width >= 2 * frame[0] and height >= 2 * frame[1]:
        width, height = width // 2, height // 2
        yield width, height


def covering_scale(size: tuple[int, int], frame: tuple[int, int]) -> float:
    """How many times longer the sides of a picture become where it just covers the frame."""
    return max(frame[0] / size[0], frame[1] / size[1])


def covering_size(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The size of a picture where it just covers the frame."""
    scale = covering_scale(size, frame)
    return max(frame[0], round(size[0] * scale)), max(frame[1], round(size[1] * scale))


def needed_middle(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The size of the middle of a picture that is resized to cover the frame. Of one much longer than the frame only
    that much is needed: resized whole it could fill any memory."""
    scale = covering_scale(size, frame)
    return min(size[0], math.ceil(2 * frame[0] / scale)), min(size[1], math.ceil(2 * frame[1] / scale))


def fitted_window(size: tuple[int, int], frame: tuple[int, int]) -> Window:
    """The part of a picture of that size that `pixels.fit` shows in the frame: all of one axis, and the middle of the
    other."""
    every = [size, *halvings(size, frame)]
    halved, own = every[-1], 2 ** (len(every) - 1)  # px of the picture in one px of the halved one
    middle = needed_middle(halved, frame)
    resized = covering_size(middle, frame)
    starts, lengths = [], []
    for axis in (0, 1):
        one = Fraction(middle[axis], resized[axis])  # px of the halved picture in one px of the frame
        start = offset(halved[axis], middle[axis]) + offset(resized[axis], frame[axis]) * one
        rim = Fraction(size[axis] - halved[axis] * own, 2)  # halving an odd side shows it without half a px at each end
        starts.append(rim + start * own)
        lengths.append(frame[axis] * one * own)
    (left, top), (width, height) = starts, lengths
    return Window(left, top, width, height, *frame)


def offset(old: int, new: int) -> int:
    """Where the middle of `new` px begins in `old` px; 0 where it is not shorter."""
    return max(0, old - new) // 2


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
