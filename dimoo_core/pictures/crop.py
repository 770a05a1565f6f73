"""A small hole in a large picture: cut out its surroundings, work on them, put the result back. And a picture that was
fitted for an edit: the result back at its own size.

Pixels are fp32 [B,3,h,w] in 0..1, masks [1 or B,h,w] where 1 is to be repainted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import number_in, whole_number
from .pixels import composite
from .sizes import MAX_SIDE, Window, fitted_window

MAX_CONTEXT = 16.0


@dataclass(frozen=True)
class Region:
    """A rectangle of a picture; all four in px."""

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
    """Start and length of the region along one side of `limit` px; it must hold the pixels `marked` [limit]."""
    positions = marked.nonzero()[:, 0]
    first, last = int(positions[0]), int(positions[-1])
    length = min(math.ceil((last + 1 - first) * context / scale) * scale, limit)
    start = (first + last + 1 - length) // 2
    return min(max(start, 0), limit - length), length


def working_size(region: Region, side: int, scale: int) -> tuple[int, int]:
    """The size (width, height) px at which a region is worked on: about side x side px of area in its own shape, in
    multiples of `scale`; its own size, to the nearest multiples, where side is 0."""
    whole_number("side", side, 0, MAX_SIDE)
    factor = side / math.sqrt(region.width * region.height) if side else 1.0
    width, height = (max(scale, round(length * factor / scale) * scale) for length in (region.width, region.height))
    return width, height


def resize(pixels: Tensor, width: int, height: int) -> Tensor:
    """Pixels [B,C,h,w] at another size; the same tensor if they have it already."""
    if pixels.shape[2:] == (height, width):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def resize_mask(mask: Tensor, width: int, height: int) -> Tensor:
    """A mask [B,h,w] at another size. A pixel is marked if any pixel that it covers is: no marked spot gets lost."""
    if mask.shape[1:] == (height, width):
        return mask
    return F.adaptive_max_pool2d(mask[:, None], (height, width))[:, 0]


def stitch(original: Tensor, painted: Tensor, mask: Tensor, region: Region) -> Tensor:
    """`original` [1 or B,3,h,w] with `painted` [1 or B,3,h',w'], brought to the region's size, where mask [1 or
    B,h'',w''] of the region is 1; blended where it is between 0 and 1. All else is the original's, bit for bit.

    Raises ValueError where the numbers of pictures do not match.
    """
    batch = max(len(original), len(painted), len(mask))
    if {len(original), len(painted), len(mask)} - {1, batch}:
        raise ValueError(
            f"Got {len(painted)} painted pictures and {len(mask)} masks for {len(original)} cut-out pictures; of each "
            "there must be one, or as many as of the others."
        )
    painted = resize(painted, region.width, region.height)
    mask = resize_mask(mask, region.width, region.height)
    stitched = original.expand(batch, -1, -1, -1).clone()
    region.of(stitched).copy_(composite(region.of(stitched), painted, mask))
    return stitched


def shown_by(fitted: Tensor, picture: Tensor) -> tuple[Window, Tensor]:
    """What `fitted` [B,C,h',w'], which `pixels.fit` made of a picture [B,C,h,w], shows of it: the window, and a mask
    [1,h,w] of its pixels."""
    height, width = picture.shape[2:]
    window = fitted_window((width, height), (fitted.shape[3], fitted.shape[2]))
    return window, window_mask(window, width, height)


def at_own_size(painted: Tensor, window: Window, width: int, height: int) -> Tensor:
    """`painted` [B,C,h,w] in 0..1, which shows a window of a picture of width x height px, as it lies in that picture,
    without a shift: [B,C,height,width]. Around the window the edge of `painted` is repeated."""
    if (window.left, window.top, window.width, window.height) == (0, 0, width, height):
        return resize(painted, width, height)
    # Sampling does not average, so what is larger is first made about as large.
    most = math.ceil(window.width), math.ceil(window.height)
    painted = resize(painted, min(painted.shape[3], most[0]), min(painted.shape[2], most[1]))
    across = _positions(width, window.left, window.width).to(painted)
    down = _positions(height, window.top, window.height).to(painted)
    grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)
    grid = grid.expand(len(painted), -1, -1, -1)
    return F.grid_sample(painted, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)


def _positions(pixels: int, start: Fraction, length: Fraction) -> Tensor:
    """Where the centres of that many pixels lie along one axis of a window, fp64 [pixels]: -1 its start, 1 its end."""
    centres = torch.arange(pixels, dtype=torch.float64) + 0.5
    return (centres - float(start)) / float(length) * 2 - 1


def window_mask(window: Window, width: int, height: int) -> Tensor:
    """A mask [1,height,width] of a picture of width x height px: 1 where a pixel's centre lies in the window, or not
    half a pixel of what shows it away, so that the rim that halving leaves out does not remain."""
    across = _positions(width, window.left, window.width).abs() <= 1 + 1 / window.columns
    down = _positions(height, window.top, window.height).abs() <= 1 + 1 / window.rows
    return (down[:, None] & across)[None].float()


def feathered(mask: Tensor, feather: int) -> Tensor:
    """Mask [B,h,w] of 0 and 1 that rises inside its edge: over `feather` px (0..256) from near 0 to 1. What was 0
    stays 0, so that nothing outside is touched; the picture's own border is not an edge."""
    whole_number("feather", feather, 0, 256)
    return distance_inside(mask, feather + 1) / (feather + 1)


def distance_inside(mask: Tensor, most: int) -> Tensor:
    """How many px each pixel of a mask [B,h,w] of 0 and 1 is away from the nearest 0, in steps to any of its eight
    neighbours: 0 outside, 1 at the edge, up to `most`.

    Distances known up to n give those up to 2n: what is farther than n from the edge is n farther than the nearest to
    the edge of all that lie at most n away. So 256 px take nine rounds.
    """
    distance, known = mask, 1
    while known < most:
        further = min(known, most - known)
        distance = distance + _smallest_around(distance, known).clamp(max=further)
        known += further
    return distance


def _smallest_around(values: Tensor, radius: int) -> Tensor:
    """The smallest of values [B,h,w] in the square that reaches `radius` px from each to all sides, as far as there are
    values."""
    values = F.pad(values, (radius, radius, radius, radius), value=math.inf)
    for dim in (1, 2):
        window, whole = 1, 2 * radius + 1
        while window < whole:  # the smallest of twice as many from the smallest of two halves
            shift = min(window, whole - window)
            length = values.shape[dim] - shift
            values = torch.minimum(values.narrow(dim, 0, length), values.narrow(dim, shift, length))
            window += shift
    return values
