"""A small hole in a large picture: cut out its surroundings, work on them, put the result back.

Pixels are fp32 [B,3,h,w] in 0..1, masks [1 or B,h,w] where 1 is to be repainted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..checks import number_in, whole_number
from .pixels import composite
from .sizes import MAX_SIDE

MAX_CONTEXT = 16.0


@dataclass(frozen=True)
class Region:
    """A rectangle of a picture, px."""

    left: int
    top: int
    width: int
    height: int

    def of(self, pixels: Tensor) -> Tensor:
        """That part of pixels or masks [...,h,w]."""
        return pixels[..., self.top : self.top + self.height, self.left : self.left + self.width]


def region_around(mask: Tensor, *, context: float, scale: int) -> Region:
    """The part of a picture around what mask [B,h,w] marks, over all B: its bounding box made `context` times (1..16)
    as wide and high, moved back into the picture where it sticks out.

    Sides are multiples of `scale` px where the picture is large enough. Raises ValueError where nothing is marked.
    """
    number_in("context", context, 1, MAX_CONTEXT)
    marked = (mask > 0.5).any(dim=0)
    if not bool(marked.any()):
        raise ValueError("The mask marks nothing, so there is nothing to cut out: paint over what should change.")
    height, width = marked.shape
    top, tall = _span(marked.any(dim=1), context, scale, height)
    left, wide = _span(marked.any(dim=0), context, scale, width)
    return Region(left, top, wide, tall)


def _span(marked: Tensor, context: float, scale: int, limit: int) -> tuple[int, int]:
    """Start and length of the region along one side of `limit` px, whose pixels `marked` [limit] are to be in it."""
    places = marked.nonzero()[:, 0]
    first, last = int(places[0]), int(places[-1])
    length = min(math.ceil((last + 1 - first) * context / scale) * scale, limit)
    start = (first + last + 1 - length) // 2
    return min(max(start, 0), limit - length), length


def working_size(region: Region, side: int, scale: int) -> tuple[int, int]:
    """The size (width, height) px at which a region is worked on: about side x side px of area in its own shape, in
    multiples of `scale`; its own size, to the nearest multiples, where side is 0."""
    whole_number("side", side, 0, MAX_SIDE)
    factor = side / math.sqrt(region.width * region.height) if side else 1.0
    return tuple(max(scale, round(length * factor / scale) * scale) for length in (region.width, region.height))


def resize(pixels: Tensor, width: int, height: int) -> Tensor:
    """Pixels [B,C,h,w] at another size; the very same where it is theirs."""
    if pixels.shape[2:] == (height, width):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def resize_mask(mask: Tensor, width: int, height: int) -> Tensor:
    """A mask [B,h,w] at another size. A pixel is marked if any of what it stands for is: no marked spot gets lost."""
    if mask.shape[1:] == (height, width):
        return mask
    return F.adaptive_max_pool2d(mask[:, None], (height, width))[:, 0]


def stitch(original: Tensor, painted: Tensor, mask: Tensor, region: Region) -> Tensor:
    """`original` [1 or B,3,h,w] with `painted` [B,3,h',w'], brought to the region's size, where mask [1 or B,h'',w'']
    of the region is 1; blended where it is between 0 and 1. Every other pixel is the original's, bit for bit."""
    painted = resize(painted, region.width, region.height)
    mask = resize_mask(mask, region.width, region.height)
    batch = max(len(original), len(painted))
    stitched = original.expand(batch, -1, -1, -1).clone()
    region.of(stitched).copy_(composite(region.of(stitched), painted, mask))
    return stitched


def feathered(mask: Tensor, feather: int) -> Tensor:
    """Mask [B,h,w] of 0 and 1 that rises inside its edge: over `feather` px (0..256) from near 0 to 1. What was 0
    stays 0, so that nothing outside is touched; the picture's own border is no edge."""
    whole_number("feather", feather, 0, 256)
    inner, total = mask, mask
    for _ in range(feather):
        inner = 1 - F.max_pool2d(1 - inner[:, None], 3, stride=1, padding=1)[:, 0]
        total = total + inner
    return total / (feather + 1)
