"""The VQ autoencoder: pixels to a grid of codes and back, in the layout of diffusers' `VQModel` (the aMUSEd family).

Pixels are in 0..1, a code is the index of the nearest codebook row, decoding looks the codes up and clips to 0..1.
Everything about the shape comes from the config. Nothing here keeps autograd state: `encode` and `decode` run
without it (the released script's 38.9 GB are mostly the decoder's graph); training calls `latents`, `reconstruct`.

Shapes: B batch, H W cells, s pixels per cell, C latent channels, E codebook width, K codebook rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain, pairwise
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import VQConfig
from .in_place import add_, silu_
from .vq_tiles import Flow, Tiles, conv3, doubled, halved, norm_silu, recut, tile_rows

_EPS = 1e-6  # of every group norm, as in diffusers
PALETTE_CHUNK = 64  # codes whose colours are decoded at a time
_DISTANCES_CHUNK = 2**23  # of latents to codebook rows: 32 MB


class Residual(nn.Module):
    """Two normed convolutions beside a shortcut; x [B,C,h,w] -> [B,C',h,w]."""

    def __init__(self, inputs: int, outputs: int, groups: int, ops, **where):
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, inputs, eps=_EPS, **where)
        self.conv1 = ops.Conv2d(inputs, outputs, 3, padding=1, **where)
        self.norm2 = ops.GroupNorm(groups, outputs, eps=_EPS, **where)
        self.conv2 = ops.Conv2d(outputs, outputs, 3, padding=1, **where)
        self.conv_shortcut = ops.Conv2d(inputs, outputs, 1, **where) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(silu_(self.norm1(x)))
        y = self.conv2(silu_(self.norm2(y)))
        return add_(y, self._shortcut(x))

    def in_tiles(self, source: Tiles) -> Tiles:
        """The same, of a map in tiles; what is between the convolutions is computed twice, and never held."""
        first = norm_silu(self.norm1, source.read())

        def inner(flow: Flow) -> Flow:
            return conv3(self.conv1, first(flow))

        second = norm_silu(self.norm2, inner(source.read()))
        waiting: deque[Tensor] = deque()

        def remembered(flow: Flow) -> Flow:
            for tile in flow:
                waiting.append(tile)
                yield tile

        outer = conv3(self.conv2, second(inner(remembered(source.drain()))))
        return Tiles(tile + self._shortcut(waiting.popleft()) for tile in outer)

    def _shortcut(self, x: Tensor) -> Tensor:
        return x if self.conv_shortcut is None else self.conv_shortcut(x)


class Attention(nn.Module):
    """Single-head attention over all positions; x [B,C,h,w] -> same."""

    def __init__(self, width: int, groups: int, ops, **where):
        super().__init__()
        self.group_norm = ops.GroupNorm(groups, width, eps=_EPS, **where)
        self.to_q = ops.Linear(width, width, **where)
        self.to_k = ops.Linear(width, width, **where)
        self.to_v = ops.Linear(width, width, **where)
        self.to_out = nn.ModuleList([ops.Linear(width, width, **where)])

    def forward(self, x: Tensor) -> Tensor:
        normed = rearrange(self.group_norm(x), "b c h w -> b 1 (h w) c")
        y = F.scaled_dot_product_attention(self.to_q(normed), self.to_k(normed), self.to_v(normed))
        return x + rearrange(self.to_out[0](y), "b 1 (h w) c -> b c h w", h=x.shape[2])


class Middle(nn.Module):
    """Two residuals at the lowest resolution, attention between them where the config has it."""

    def __init__(self, width: int, groups: int, attention: bool, ops, **where):
        super().__init__()
        self.resnets = nn.ModuleList([Residual(width, width, groups, ops, **where) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(width, groups, ops, **where)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Resample(nn.Module):
    """A 3x3 convolution that halves the sides, or doubles them."""

    def __init__(self, width: int, *, up: bool, ops, **where):
        super().__init__()
        self.up = up
        self.conv = ops.Conv2d(width, width, 3, stride=1 if up else 2, padding=1 if up else 0, **where)

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # padded on the right and at the bottom only, as trained

    def in_tiles(self, source: Tiles, width: int, tile: int) -> Tiles:
        """The same, as a view of a map of that width in tiles: computed whenever it is read, never held."""
        if not self.up:
            return source.through(lambda flow: halved(self.conv, flow))
        rows = tile_rows(self.conv.out_channels, 2 * width, tile) // 2
        return source.through(lambda flow: conv3(self.conv, doubled(recut(flow, rows))))


class Level(nn.Module):
    """The residuals of one resolution, then a resampling where it is not the last; names follow diffusers."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, resample: Resample | None, ops, **where):
        super().__init__()
        self.widths = [inputs] + [outputs] * layers
        self.resnets = nn.ModuleList([Residual(a, b, groups, ops, **where) for a, b in pairwise(self.widths)])
        if resample is not None:
            setattr(self, "upsamplers" if resample.up else "downsamplers", nn.ModuleList([resample]))

    def layers(self) -> tuple[nn.Module, ...]:
        """What a map goes through, one after the other."""
        return (*self.resnets, *self._resamples())

    def in_tiles(self, source: Tiles, size: tuple[int, int], tile: int) -> Tiles:
        """All layers, of a map of `size` (h, w) in tiles of about `tile` values. A map hardly larger than a tile is
        worked on whole."""
        height, width = size
        if max(self.widths) * height * width <= 2 * tile:
            source = Tiles([run(self.resnets, source.whole())])
        else:
            rows = tile_rows(max(self.widths), width, tile)
            source = source.through(lambda flow: recut(flow, rows))
            for resnet in self.resnets:
                source = cast(Residual, resnet).in_tiles(source)
        for resample in self._resamples():
            source = resample.in_tiles(source, width, tile)
        return source

    def _resamples(self) -> tuple[Resample, ...]:
        return (*getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ()))


def run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """x through the layers, one after the other; no map is kept longer than the next layer needs it."""
    for layer in layers:
        x = layer(x)
    return x


class Encoder(nn.Module):
    """Pixels [B,3,H*s,W*s] -> latents [B,C,H,W] before quant_conv."""

    def __init__(self, config: VQConfig, ops, **where):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = ops.Conv2d(config.in_channels, widths[0], 3, padding=1, **where)
        self.down_blocks = nn.ModuleList()
        for index, width in enumerate(widths):
            last = index == len(widths) - 1
            resample = None if last else Resample(width, up=False, ops=ops, **where)
            before = widths[max(index - 1, 0)]
            self.down_blocks.append(Level(before, width, config.layers_per_block, groups, resample, ops, **where))
        self.mid_block = Middle(widths[-1], groups, config.mid_attention, ops, **where)
        self.conv_norm_out = ops.GroupNorm(groups, widths[-1], eps=_EPS, **where)
        self.conv_out = ops.Conv2d(widths[-1], config.latent_channels, 3, padding=1, **where)

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.conv_in, *chain.from_iterable(level.layers() for level in self._levels()))
        return self._out(run(layers, x))

    def in_tiles(self, x: Tensor, tile: int) -> Tensor:
        """The same, worked on in tiles of about `tile` values."""
        size = x.shape[2:]
        rows = tile_rows(self.conv_in.out_channels, size[1], tile)
        source = Tiles(x.split(rows, dim=2), lambda flow: conv3(self.conv_in, flow))
        for index, level in enumerate(self._levels()):
            source = level.in_tiles(source, (size[0] >> index, size[1] >> index), tile)
        return self._out(source.whole())

    def _levels(self) -> list[Level]:
        return [cast(Level, level) for level in self.down_blocks]

    def _out(self, x: Tensor) -> Tensor:
        return self.conv_out(silu_(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents [B,C,H,W] after post_quant_conv -> pixels [B,3,H*s,W*s], not clipped."""

    def __init__(self, config: VQConfig, ops, **where):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = ops.Conv2d(config.latent_channels, widths[0], 3, padding=1, **where)
        self.mid_block = Middle(widths[0], groups, config.mid_attention, ops, **where)
        self.up_blocks = nn.ModuleList()
        for index, width in enumerate(widths):
            last = index == len(widths) - 1
            resample = None if last else Resample(width, up=True, ops=ops, **where)
            before = widths[max(index - 1, 0)]
            self.up_blocks.append(Level(before, width, config.layers_per_block + 1, groups, resample, ops, **where))
        self.conv_norm_out = ops.GroupNorm(groups, widths[-1], eps=_EPS, **where)
        self.conv_out = ops.Conv2d(widths[-1], config.out_channels, 3, padding=1, **where)

    def forward(self, x: Tensor) -> Tensor:
        layers = chain.from_iterable(level.layers() for level in self._levels())
        x = run((self.conv_in, self.mid_block, *layers), x)
        return self.conv_out(silu_(self.conv_norm_out(x)))

    def in_tiles(self, x: Tensor, tile: int) -> Tensor:
        """The same, worked on in tiles of about `tile` values."""
        height, width = x.shape[2:]
        source = Tiles([self.mid_block(self.conv_in(x))])
        for index, level in enumerate(self._levels()):
            source = level.in_tiles(source, (height << index, width << index), tile)
        final = norm_silu(self.conv_norm_out, source.read())
        return torch.cat(list(conv3(self.conv_out, final(source.drain()))), dim=2)

    def _levels(self) -> list[Level]:
        return [cast(Level, level) for level in self.up_blocks]


def _finite(x: Tensor) -> Tensor:
    """x, or a ValueError where it holds NaN or infinity; meta tensors hold nothing."""
    if not x.is_meta and not bool(torch.isfinite(x).all()):
        raise ValueError(
            "The VQ's numbers are not finite: its weights hold NaN or infinity, or outgrow the dtype; download the "
            "checkpoint again, or run the VQ in fp32."
        )
    return x


class Quantizer(nn.Module):
    """The codebook, an embedding layer so that ComfyUI can move it like any other."""

    def __init__(self, config: VQConfig, ops, **where):
        super().__init__()
        self.embedding = ops.Embedding(config.codebook_size, config.embed_dim, **where)
        self.size = config.codebook_size

    def rows(self, device: torch.device) -> Tensor:
        """The codebook [K,E], read through the layer's own forward, where ComfyUI brings weights to a device."""
        return self.embedding(torch.arange(self.size, device=device))

    def distances(self, latents: Tensor, codebook: Tensor | None = None) -> Tensor:
        """Euclidean distances [B,H,W,K] in fp32 of latents [B,E,H,W] to every codebook row [K,E] (None: read here)."""
        codebook = self.rows(latents.device) if codebook is None else codebook
        cells = rearrange(latents, "b e h w -> b (h w) e").float()
        distances = torch.cdist(cells, codebook.float())
        return rearrange(distances, "b (h w) k -> b h w k", w=latents.shape[3])

    def nearest(self, latents: Tensor) -> Tensor:
        """The nearest codebook row [B,H,W] to each of the latents [B,E,H,W], a few rows of cells at a time. Raises
        ValueError where the codebook is not finite: the row with NaN would be the nearest to everything."""
        codebook = _finite(self.rows(latents.device))
        rows = max(1, _DISTANCES_CHUNK // (self.size * len(latents) * latents.shape[3]))
        return torch.cat([self.distances(part, codebook).argmin(dim=-1) for part in latents.split(rows, dim=2)], dim=1)


class VQ(nn.Module):
    """The autoencoder. `ops` is a namespace with Conv2d, GroupNorm, Linear and Embedding."""

    def __init__(
        self,
        config: VQConfig,
        *,
        ops=nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.config = config
        where = {"device": device, "dtype": dtype}
        self.encoder = Encoder(config, ops, **where)
        self.quant_conv = ops.Conv2d(config.latent_channels, config.embed_dim, 1, **where)
        self.quantize = Quantizer(config, ops, **where)
        self.post_quant_conv = ops.Conv2d(config.embed_dim, config.latent_channels, 1, **where)
        self.decoder = Decoder(config, ops, **where)

    @property
    def scale(self) -> int:
        """Pixels per cell along each side."""
        return self.config.scale

    @property
    def codebook_size(self) -> int:
        """How many codes there are, K."""
        return self.config.codebook_size

    def latents(self, pixels: Tensor, *, tile: int | None = None) -> Tensor:
        """pixels [B,3,H*s,W*s] in 0..1 -> latents [B,E,H,W] before quantisation; `tile` as for `encode`."""
        return self.quant_conv(self.encoder(pixels) if tile is None else self.encoder.in_tiles(pixels, tile))

    def reconstruct(self, codes: Tensor, *, tile: int | None = None) -> Tensor:
        """codes [B,H,W] -> pixels [B,3,H*s,W*s], not clipped; `tile` as for `decode`."""
        rows = rearrange(self.quantize.embedding(codes), "b h w e -> b e h w")
        latents = self.post_quant_conv(rows.contiguous())  # see `encode`
        return self.decoder(latents) if tile is None else self.decoder.in_tiles(latents, tile)

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, tile: int | None = None) -> Tensor:
        """pixels [B,3,H*s,W*s] in 0..1 -> codes [B,H,W] int64. Raises ValueError where a side is not a multiple
        of s, and where the numbers are not finite.

        `tile`: work in tiles of about that many values (`vq_tiles.TILE`), which takes a fraction of the memory and up
        to twice the time, and gives the same up to rounding; None: the whole picture at once.
        """
        if pixels.ndim != 4 or pixels.shape[1] != self.config.in_channels:
            expected = f"[B,{self.config.in_channels},height,width]"
            raise ValueError(f"Got pixels of shape {list(pixels.shape)}; expected {expected}.")
        height, width = pixels.shape[2:]
        if height % self.scale or width % self.scale or not height * width:
            raise ValueError(
                f"Got a picture of {width}x{height} px; expected sides that are multiples of {self.scale} px: fit it "
                "first."
            )
        # Where channels are last in memory, as in ComfyUI's pictures, torch's group norm on a CPU is off in the
        # fourth digit and the third, which changes codes.
        pixels = pixels.to(self.encoder.conv_in.weight.dtype).contiguous()
        return self.quantize.nearest(_finite(self.latents(pixels, tile=tile)))

    @torch.no_grad()
    def decode(self, codes: Tensor, *, tile: int | None = None) -> Tensor:
        """codes [B,H,W] int64 in 0..K-1 -> pixels [B,3,H*s,W*s] in 0..1, fp32; `tile` as for `encode`."""
        return _finite(self.reconstruct(codes, tile=tile)).float().clamp_(0, 1)

    def mean_colours(self, device: torch.device | str = "cpu") -> Tensor:
        """One colour [K,3] in 0..1 per code: the mean of a cell among cells of the same code. For cheap previews."""
        codes = torch.arange(self.config.codebook_size, device=device)
        colours = []
        for part in codes.split(PALETTE_CHUNK):
            pixels = self.decode(part[:, None, None].expand(-1, 3, 3))
            colours.append(pixels[:, :, self.scale : -self.scale, self.scale : -self.scale].mean(dim=(2, 3)))
        return torch.cat(colours)
