"""Feature maps in tiles of rows, so that a convolutional network holds few of them in memory, and none between.

A map is anything that rows can be had of: they lie in memory, or are computed whenever they are asked for, from rows of
another map. A layer makes a map of a map, and only the tile that is asked for, with the rows next to it that a
convolution sees, is ever there. A group norm must know the whole map first: its mean and variance are taken tile by
tile beforehand. The result is that of the whole map, up to the rounding of sums taken in another order; nothing is
blended, there are no seams.

Rows that a convolution needs beyond its tile, and maps that are read more than once without being held, are computed
again: about half as much again in all, at the published size (`bench/vq_counts.py`).

Shapes: B batch, C channels, h w a map's sides, r the rows asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 2**23  # values in a tile: 32 MB in fp32
WHOLE_TILES = 4  # tiles as large as a map that is worked on whole
_LEAST_ROWS = 16  # a convolution computes two rows per tile that are thrown away
_REACH = 2  # rows on either side that two 3x3 convolutions see


@dataclass(frozen=True)
class Map:
    """A map [B,C,h,w] of `height` h: `rows(a, b)` gives its rows a to b [B,C,r,w], not to be written to. memory: where
    it lies; None: it is computed when it is read."""

    height: int
    rows: Callable[[int, int], Tensor]
    memory: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor) -> Map:
        """A map that lies in memory."""
        return cls(x.shape[2], lambda start, end: x[:, :, start:end], x)

    def held(self, rows: int) -> Map:
        """The map in memory, computed `rows` rows at a time where it has to be."""
        return self if self.memory is not None else Map.of(self.whole(rows))

    def whole(self, rows: int) -> Tensor:
        """The map in one piece, computed `rows` rows at a time."""
        if self.memory is not None:
            return self.memory
        whole: Tensor | None = None
        for start, end in spans(self.height, rows):
            tile = self.rows(start, end)
            if whole is None:
                whole = _room_for(self, tile)
            whole[:, :, start:end] = tile
            del tile
        assert whole is not None
        return whole


def spans(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """Where tiles of `rows` rows begin and end; the last may have fewer."""
    return ((start, min(start + rows, height)) for start in range(0, height, rows))


def tile_rows(channels: int, width: int, values: int) -> int:
    """Rows of a tile of about `values` numbers: an even number, at least 16."""
    return max(_LEAST_ROWS, values // (channels * width) // 2 * 2)


def conv3(conv: nn.Module, source: Map) -> Map:
    """A 3x3 convolution with padding 1. It pads with zeros above and below; where there are rows instead, what they
    become is cut off."""

    def rows(start: int, end: int) -> Tensor:
        top, bottom = max(start - 1, 0), min(end + 1, source.height)
        return conv(source.rows(top, bottom))[:, :, start - top : end - top]

    return Map(source.height, rows)


def doubled(conv: nn.Module, source: Map) -> Map:
    """Each value becomes 2x2, then a 3x3 convolution with padding 1."""

    def rows(start: int, end: int) -> Tensor:
        top, bottom = max((start - 1) // 2, 0), min(end // 2 + 1, source.height)
        result = conv(F.interpolate(source.rows(top, bottom), scale_factor=2.0, mode="nearest"))
        return result[:, :, start - 2 * top : end - 2 * top]

    return Map(2 * source.height, rows)


def halved(conv: nn.Module, source: Map) -> Map:
    """A 3x3 convolution of stride 2 that is padded on the right and at the bottom only."""

    def rows(start: int, end: int) -> Tensor:
        tile = source.rows(2 * start, min(2 * end + 1, source.height))
        return conv(F.pad(tile, (0, 1, 0, 2 * (end - start) + 1 - tile.shape[2])))

    return Map(source.height // 2, rows)


def total(changes: Map, base: Map, rows: int, memory: Tensor | None) -> Map:
    """The sum of two maps in tiles of two rows and more, written to `memory`; None: to new memory. Both may be computed
    from the very memory, by two 3x3 convolutions at most."""
    late: tuple[slice, Tensor] | None = None
    for start, end in spans(base.height, rows):
        change, tile = changes.rows(start, end), base.rows(start, end)
        if memory is None:
            memory = _room_for(base, change)
        if late is not None:
            memory[:, :, late[0]] = late[1]
        kept = end - start if end == base.height else max(0, end - start - _REACH)
        torch.add(tile[:, :, :kept], change[:, :, :kept], out=memory[:, :, start : start + kept])
        # The next tile is computed from these rows too.
        late = slice(start + kept, end), tile[:, :, kept:] + change[:, :, kept:]
        del change, tile
    assert memory is not None
    return Map.of(memory)


def norm_silu(norm: nn.GroupNorm, source: Map, rows: int) -> Map:
    """silu(group norm) of a map; its mean and variance are taken at once, `rows` rows at a time."""
    mean, variance = _moments(norm.num_groups, source, rows)
    scale, shift = (part.float() for part in _affine(norm, mean.device))
    width = norm.num_channels // norm.num_groups
    mean, deviation = (part.repeat_interleave(width, dim=1) for part in (mean, (variance + norm.eps).sqrt()))
    scale = scale / deviation
    shift = shift - mean * scale
    scale, shift = scale[..., None, None], shift[..., None, None]

    def normed(start: int, end: int) -> Tensor:
        tile = source.rows(start, end)
        result = torch.empty_like(tile, memory_format=torch.contiguous_format)  # `out` keeps bf16 from becoming fp32
        return F.silu(torch.addcmul(shift, tile, scale, out=result), inplace=True)

    return Map(source.height, normed)


def _moments(groups: int, source: Map, rows: int) -> tuple[Tensor, Tensor]:
    """Mean and variance [B,groups] in fp32 over a whole map, from those of its tiles."""
    variances, means = zip(*(_of_tile(groups, source.rows(*span)) for span in spans(source.height, rows)), strict=True)
    shares = [(end - start) / source.height for start, end in spans(source.height, rows)]
    share = torch.tensor(shares, device=means[0].device)[:, None, None]
    mean = (share * torch.stack(means)).sum(dim=0)
    variance = (share * (torch.stack(variances) + (torch.stack(means) - mean).square())).sum(dim=0)
    return mean, variance


def _of_tile(groups: int, tile: Tensor) -> tuple[Tensor, Tensor]:
    return torch.var_mean(tile.unflatten(1, (groups, -1)).float(), dim=(2, 3, 4), correction=0)


def _affine(norm: nn.GroupNorm, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] of a norm, read off what its own forward makes of 1 and -1 in each channel: that is where
    ComfyUI brings weights to a device."""
    ones = torch.ones(1, norm.num_channels, 1, device=device, dtype=norm.weight.dtype)
    high, low = norm(torch.cat((ones, -ones), dim=2))[0].float().unbind(dim=1)
    return (high - low) / 2 * (1 + norm.eps) ** 0.5, (high + low) / 2


def _room_for(source: Map, tile: Tensor) -> Tensor:
    return tile.new_empty((*tile.shape[:2], source.height, tile.shape[3]))
