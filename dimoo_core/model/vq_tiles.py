"""Feature maps in tiles of rows, so that a convolutional network never has more than one of them in memory.

A map flows through convolutions tile by tile, from the top: each holds back one tile until it has seen the row
below it. Only a group norm must know the whole map first. So before each norm the tiles flow once for its mean and
variance, and flow again, computed again, for what follows. The result is that of the whole map, up to the rounding of
sums taken in another order; nothing is blended, there are no seams.

Shapes: B batch, C channels, h w the whole map's sides, r a tile's rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

TILE = 2**23  # values in a tile: 32 MB in fp32
_LEAST_ROWS = 16  # a convolution computes two rows per tile that are thrown away

Flow = Iterator[Tensor]  # the tiles [B,C,r,w] of a map, from the top


class Tiles:
    """A map [B,C,h,w] that is held as tiles, seen through a `view`: what it becomes when it is read."""

    def __init__(self, held: Iterable[Tensor], view: Callable[[Flow], Flow] = iter):
        self._held, self._view = deque(held), view

    def read(self) -> Flow:
        """The tiles, to be read once more."""
        return self._view(iter(self._held))

    def drain(self) -> Flow:
        """The tiles for the last time; each is let go of once it has been read."""
        return self._view(self._held.popleft() for _ in range(len(self._held)))

    def through(self, view: Callable[[Flow], Flow]) -> Tiles:
        """The map behind a further view. The two share their tiles."""
        before = self._view
        tiles = Tiles((), lambda flow: view(before(flow)))
        tiles._held = self._held
        return tiles

    def whole(self) -> Tensor:
        """The map in one piece; nothing is left of the tiles."""
        tiles = list(self.drain())
        return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=2)


def tile_rows(channels: int, width: int, values: int) -> int:
    """Rows of a tile of about `values` numbers: an even number, at least 16."""
    return max(_LEAST_ROWS, values // (channels * width) // 2 * 2)


def recut(flow: Flow, rows: int) -> Flow:
    """The same map in tiles of `rows` rows; the last may have fewer."""
    rest: Tensor | None = None
    for tile in flow:
        rest = tile if rest is None else torch.cat((rest, tile), dim=2)
        del tile
        while rest is not None and rest.shape[2] >= rows:
            part, rest = rest[:, :, :rows], rest[:, :, rows:] if rest.shape[2] > rows else None
            yield part
    if rest is not None:
        yield rest


def conv3(conv: nn.Module, flow: Flow) -> Flow:
    """A 3x3 convolution with padding 1. Tiles keep their heights; each follows once the next one is read."""
    above: Tensor | None = None
    tile: Tensor | None = next(flow)
    while tile is not None:
        below = next(flow, None)
        parts = (above, tile, None if below is None else below[:, :, :1])
        present = [part for part in parts if part is not None]
        # The convolution pads with zeros above and below; where there are rows instead, what they become is cut off.
        result = conv(torch.cat(present, dim=2) if len(present) > 1 else tile)
        start = 0 if above is None else 1
        result = result[:, :, start : start + tile.shape[2]]
        above, tile = tile[:, :, -1:].clone(), below
        del parts, present, below
        yield result


def halved(conv: nn.Module, flow: Flow) -> Flow:
    """A 3x3 convolution of stride 2 that is padded on the right and at the bottom only; tiles of even heights."""
    tile: Tensor | None = next(flow)
    while tile is not None:
        below = next(flow, None)
        edge = torch.zeros_like(tile[:, :, :1]) if below is None else below[:, :, :1]
        result = conv(F.pad(torch.cat((tile, edge), dim=2), (0, 1)))
        tile = below
        del edge, below
        yield result


def doubled(flow: Flow) -> Flow:
    """Each value becomes 2x2."""
    for tile in flow:
        yield F.interpolate(tile, scale_factor=2.0, mode="nearest")


def norm_silu(norm: nn.GroupNorm, flow: Flow) -> Callable[[Flow], Flow]:
    """silu(group norm) as a view, with the mean and variance of the whole map in `flow`."""
    mean, variance = _moments(norm.num_groups, flow)
    scale, shift = (part.float() for part in _affine(norm, mean.device))
    width = norm.num_channels // norm.num_groups
    mean, deviation = (part.repeat_interleave(width, dim=1) for part in (mean, (variance + norm.eps).sqrt()))
    scale = scale / deviation
    shift = shift - mean * scale
    scale, shift = scale[..., None, None], shift[..., None, None]

    def view(flow: Flow) -> Flow:
        for tile in flow:
            yield F.silu(torch.addcmul(shift, tile.float(), scale), inplace=True).to(tile.dtype)

    return view


def _moments(groups: int, flow: Flow) -> tuple[Tensor, Tensor]:
    """Mean and variance [B,groups] in fp32 over a whole map, tile after tile (Chan, Golub and LeVeque 1983)."""
    count, mean, variance = 0, torch.zeros(()), torch.zeros(())
    for tile in flow:
        grouped = rearrange(tile, "b (g c) r w -> b g (c r w)", g=groups).float()
        fresh_variance, fresh_mean = torch.var_mean(grouped, dim=-1, correction=0)
        count += grouped.shape[-1]
        share, distance = grouped.shape[-1] / count, fresh_mean - mean
        mean = mean.to(distance) + share * distance
        variance = (
            (1 - share) * variance.to(distance) + share * fresh_variance + share * (1 - share) * distance.square()
        )
    return mean, variance


def _affine(norm: nn.GroupNorm, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] of a norm, read off what its own forward makes of 1 and -1 in each channel: that is where
    ComfyUI brings weights to a device."""
    ones = torch.ones(1, norm.num_channels, 1, device=device, dtype=norm.weight.dtype)
    high, low = norm(torch.cat((ones, -ones), dim=2))[0].float().unbind(dim=1)
    return (high - low) / 2 * (1 + norm.eps) ** 0.5, (high + low) / 2
