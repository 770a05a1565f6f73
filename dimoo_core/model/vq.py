"""The VQ autoencoder: pixels to a grid of codes and back, in the layout of diffusers' `VQModel` (the aMUSEd family).

Pixels are in 0..1, a code is the index of the nearest codebook row, decoding looks the codes up and clips to 0..1.
Everything about the shape comes from the config. Nothing here keeps autograd state: `encode` and `decode` run
without it (the released script's 38.9 GB are mostly the decoder's graph); training calls `latents`, `reconstruct`.

Shapes: B batch, H W cells, s pixels per cell, C latent channels, E codebook width, K codebook rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, pairwise
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import VQConfig
from .in_place import add_, silu_
from .vq_tiles import WHOLE_TILES, Map, conv3, doubled, halved, norm_silu, tile_rows, total

_EPS = 1e-6  # of every group norm, as in diffusers
PALETTE_CHUNK = 256  # codes that are brought through the lowest level at a time
_DISTANCES_CHUNK = 2**23  # of latents to codebook rows: 32 MB

Convolve = Callable[[nn.Module, Tensor], Tensor]  # how a 3x3 convolution is made of a map


def plain(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution as it is."""
    return conv(x)


def of_fields(conv: nn.Module, x: Tensor) -> Tensor:
    """A 3x3 convolution of K endless fields, each the same everywhere; x [K,C,h,w], of which the first pixel is read
    -> [K,C',1,1]. All of it is a matrix, read off what the convolution makes of a field in each channel."""
    unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    answers = conv(F.pad(unit, (0, 0, 0, 1))[:, :, None, None].expand(-1, -1, 3, 3))[:, :, 1, 1]
    matrix, bias = answers[:-1] - answers[-1], answers[-1]
    return torch.addmm(bias, x[:, :, 0, 0], matrix)[:, :, None, None]


class Residual(nn.Module):
    """Two normed convolutions beside a shortcut; x [B,C,h,w] -> [B,C',h,w]."""

    def __init__(self, inputs: int, outputs: int, groups: int, ops, **where):
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, inputs, eps=_EPS, **where)
        self.conv1 = ops.Conv2d(inputs, outputs, 3, padding=1, **where)
        self.norm2 = ops.GroupNorm(groups, outputs, eps=_EPS, **where)
        self.conv2 = ops.Conv2d(outputs, outputs, 3, padding=1, **where)
        self.conv_shortcut = ops.Conv2d(inputs, outputs, 1, **where) if inputs != outputs else None

    def forward(self, x: Tensor, convolve: Convolve = plain) -> Tensor:
        y = convolve(self.conv1, silu_(self.norm1(x)))
        y = silu_(self.norm2(y))  # lets go of what was normed, before the convolution
        return add_(convolve(self.conv2, y), self._shortcut(x))

    def in_tiles(self, source: Map, rows: int, *, holds: bool) -> Map:
        """The same, of a map in tiles of `rows` rows. The result takes the memory of the map; or, where that does not
        lie in memory or has another width, of what is between the convolutions. In the first case what is between them
        is computed twice, in tiles twice as high, unless `holds`: then it has memory of its own."""
        own = source.memory if self.conv_shortcut is None else None
        twice = own is not None and not holds
        rows = 2 * rows if twice else rows
        measured = 4 * rows if source.memory is None else rows  # nothing else is in memory yet
        between = conv3(self.conv1, norm_silu(self.norm1, source, measured))
        between = between if twice else between.held(rows)
        outer = conv3(self.conv2, norm_silu(self.norm2, between, rows))
        shortcut = Map(source.height, lambda start, end: self._shortcut(source.rows(start, end)))
        return total(outer, shortcut, rows, between.memory if own is None else own)

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

    def forward(self, x: Tensor, convolve: Convolve = plain) -> Tensor:
        if self.up:
            return convolve(self.conv, F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # padded on the right and at the bottom only, as trained

    def in_tiles(self, source: Map, width: int, tile: int, most: int) -> Map:
        """The same, of a map `width` wide in tiles of about `tile` values. A result with more than half of `most`
        values is not held, but computed whenever it is read."""
        channels = self.conv.out_channels
        if not self.up:
            return halved(self.conv, source).held(tile_rows(channels, width, tile) // 2)
        result = doubled(self.conv, source)
        holds = 2 * channels * result.height * 2 * width <= most
        return result.held(tile_rows(channels, 2 * width, tile)) if holds else result


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
        return (*self.resnets, *self.resamples())

    def resamples(self) -> tuple[Resample, ...]:
        """What changes the size of the map in the end, if anything does."""
        return (*getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ()))


def run(layers: Iterable[nn.Module], x: Tensor, *options: Convolve) -> Tensor:
    """x through the layers, one after the other; no map is kept longer than the next layer needs it."""
    for layer in layers:
        x = layer(x, *options)
    return x


def run_in_tiles(levels: Iterable[Level], source: Map, width: int, tile: int, most: int) -> Map:
    """A map `width` wide through all layers of the levels, in tiles of about `tile` values. A level whose maps are not
    much larger than that is worked on whole; where two maps of a level have at most `most` values, two are held."""
    for level in levels:
        values = max(level.widths) * source.height * width
        if values <= WHOLE_TILES * tile:
            source = Map.of(run(level.resnets, source.whole(tile_rows(level.widths[0], width, tile))))
        else:
            for resnet, channels in zip(level.resnets, pairwise(level.widths), strict=True):
                rows = tile_rows(max(channels), width, tile)
                source = cast(Residual, resnet).in_tiles(source, rows, holds=2 * values <= most)
        for resample in level.resamples():
            source = resample.in_tiles(source, width, tile, most)
            width = 2 * width if resample.up else width // 2
    return source


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
        height, width = x.shape[2:]
        most = self.conv_in.out_channels * height * width
        x = run_in_tiles(self._levels(), conv3(self.conv_in, Map.of(x)), width, tile, most).whole(height)
        return self._out(x)

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

    def lowest(self, x: Tensor) -> Tensor:
        """The same through the lowest level only; [B,C,H,W] -> [B,C',2H,2W], or [B,C',H,W] where there is no other."""
        return run((self.conv_in, self.mid_block, *self._levels()[0].layers()), x)

    def colour_of(self, x: Tensor) -> Tensor:
        """The other levels, of maps that are endless and the same everywhere: one value of each after the lowest level
        [B,C',1,1] -> colours [B,3], not clipped."""
        x = run(chain.from_iterable(level.layers() for level in self._levels()[1:]), x, of_fields)
        return of_fields(self.conv_out, silu_(self.conv_norm_out(x))).flatten(1)

    def in_tiles(self, x: Tensor, tile: int) -> Tensor:
        """The same, worked on in tiles of about `tile` values."""
        levels = self._levels()
        height, width = (side << len(levels) - 1 for side in x.shape[2:])
        most, rows = self.conv_out.in_channels * height * width, tile_rows(self.conv_out.in_channels, width, tile)
        source = run_in_tiles(levels, Map.of(self.mid_block(self.conv_in(x))), x.shape[3], tile, most)
        return conv3(self.conv_out, norm_silu(self.conv_norm_out, source, rows)).whole(rows)

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
        latents = self._latents_of(codes)
        return self.decoder(latents) if tile is None else self.decoder.in_tiles(latents, tile)

    def _latents_of(self, codes: Tensor) -> Tensor:
        rows = rearrange(self.quantize.embedding(codes), "b h w e -> b e h w")
        return self.post_quant_conv(rows.contiguous())  # see `encode`

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, tile: int | None = None) -> Tensor:
        """pixels [B,3,H*s,W*s] in 0..1 -> codes [B,H,W] int64. Raises ValueError where a side is not a multiple
        of s, and where the numbers are not finite.

        `tile`: work in tiles of about that many values (`vq_tiles.TILE`), which takes a fraction of the memory and up
        to half as much work again, and gives the same up to rounding; None: the whole picture at once.
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

    @torch.no_grad()
    def mean_colours(self, device: torch.device | str = "cpu") -> Tensor:
        """One colour [K,3] in 0..1 per code, for cheap previews. The lowest level of the decoder sees a cell among
        cells of the same code, the others an endless field of the cell's mean. That is a twelfth of the work of
        decoding such cells. In nano's pictures grounds come out nearer to their colours (all cells are off by 4/255 on
        average, not by 7), cells at the edges of shapes a little farther (by 49/255, not by 43)."""
        middles = []
        for codes in torch.arange(self.codebook_size, device=device).split(PALETTE_CHUNK):
            x = self.decoder.lowest(self._latents_of(codes[:, None, None].expand(-1, 3, 3)))
            middle = slice(x.shape[3] // 3, -(x.shape[3] // 3))
            middles.append(x[:, :, middle, middle].mean(dim=(2, 3), keepdim=True))
        return _finite(self.decoder.colour_of(torch.cat(middles))).float().clamp_(0, 1)
