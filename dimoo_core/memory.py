"""Bytes that a job needs beside the weights: what decides whether it runs whole or in chunks, in ComfyUI and outside.

An estimate must not be below the truth; tests measure the truth. What the attention kernel takes is left out: the usual
ones need next to nothing.

B batch, L sequence, N cells, K codes, V vocabulary rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from .model.config import TransformerConfig, VQConfig
from .model.quantised import FP8, INT8, PRODUCT, Format
from .model.vq import PALETTE_CHUNK
from .model.vq_tiles import WHOLE_TILES, tile_rows
from .sampling.ml_cache import CachePolicy
from .sampling.passes import is_short

CHUNK_ROWS = 1024  # rows that the transformer works on at a time where memory is short

_ROUNDING = 1.03  # allocators round up and leave gaps, and the head has a few rows more than there are codes
_KERNELS = 32 << 20  # work space of kernels that are not counted, and the distances of some cells to all codes
_IN_FLIGHT = 6  # tiles in memory together where a map is made of another
_IN_FLIGHT_MEASURED = 17  # the same, where its mean and variance are taken, in tiles four times as high
_IN_FLIGHT_TWICE = 10  # the same, where what is between two convolutions is computed twice, in tiles twice as high
_DECIDED = 2**22  # logits that are decided at a time, and what each takes: the noise of an image, and of a text in fp64
_IMAGE_DECISION, _TEXT_DECISION = 20, 40
_FP32 = 4


def forward_bytes(
    config: TransformerConfig,
    tokens: int,
    itemsize: int,
    *,
    logits: int,
    rows: int | None = None,
    chunk_rows: int | None = None,
    keeps: bool = False,
) -> int:
    """One pass over B*L `tokens`, with `logits` numbers for each of B*r `rows` (None: all), in chunks of `chunk_rows`;
    `keeps`: keys and values of all layers stay. itemsize: bytes of a number that is computed with."""
    keys = keeps * _keys_bytes(config, tokens, itemsize)
    heading = config.n_layers * keys + itemsize * (tokens if rows is None else rows) * (2 * config.d_model + logits)
    layers = [(config.n_layers - 1, rows)]
    if rows is not None and config.n_layers > 1:
        layers.append((config.n_layers - 2, None))  # the last layer that all rows go through
    peak = heading
    for before, rows_out in layers:
        attending, feeding = _layer_bytes(config, tokens, rows_out, itemsize, chunk_rows)
        peak = max(peak, before * keys + attending, (before + 1) * keys + feeding)
    return peak + 2 * _FP32 * config.head_dim * (tokens + (rows or 0))  # and the tables of angles


def _layer_bytes(
    config: TransformerConfig, tokens: int, rows_out: int | None, itemsize: int, chunk_rows: int | None
) -> tuple[int, int]:
    """Attention, with keys and values of its own, and feed-forward of a layer that `tokens` enter and `rows_out`
    (None: all) leave."""
    width, hidden = itemsize * config.d_model, itemsize * config.mlp_hidden_size
    keys = _keys_bytes(config, tokens, itemsize)
    rows = tokens if rows_out is None else rows_out
    copied = 0 if rows_out is None else rows * width  # of the layer's input, and of its norm
    chunk = min(rows, chunk_rows or rows)
    rotating = 2 * copied + tokens * 2 * width + keys // 2 + rows * width + chunk * 2 * _FP32 * config.d_model
    attending = copied + tokens * width + keys + 2 * rows * width
    feeding = copied + tokens * width + chunk * (width + max(2 * hidden, hidden + width))
    return max(rotating, attending), feeding


def quantised_bytes(
    config: TransformerConfig,
    itemsize: int,
    formats: Collection[Format],
    tokens: int,
    chunk_rows: int | None = None,
) -> int:
    """What a layer with weights of these formats takes while it works on B*L `tokens`, of which the feed-forward gets
    `chunk_rows` at a time, beside all else: its matrix in the dtype that is computed in, or activations that are
    rounded and what they are rounded from; an int8 product takes no more than these."""
    if not formats:
        return 0
    held = 2 if FP8 in formats and chunk_rows is not None else 1  # for all chunks: ff_proj and up_proj, not ff_out
    widened = held * itemsize * config.d_model * config.mlp_hidden_size
    entering = tokens * config.d_model
    rounded = (itemsize + 1) * entering * (FP8 in formats)
    widest = max(entering, min(tokens, chunk_rows or tokens) * config.mlp_hidden_size)
    if INT8 in formats:
        rounded = max(rounded, (_FP32 + itemsize) * min(widest, PRODUCT // _FP32))
    return int(_ROUNDING * max(widened, rounded))


def held_bytes(config: TransformerConfig, itemsize: int, formats: Collection[Format]) -> int:
    """The matrices of a feed-forward, each held for all chunks of its layer where weights stream: in the dtype that is
    computed in, or as they are stored where that is int8."""
    each = INT8.dtype.itemsize if INT8 in formats else itemsize
    return int(_ROUNDING * 3 * each * config.d_model * config.mlp_hidden_size)


def adapter_bytes(rank: int, tokens: int, itemsize: int) -> int:
    """What low-rank branches take between their two products for B*L `tokens`; what they add goes where it is added."""
    return int(_ROUNDING * itemsize * rank * tokens)


def _keys_bytes(config: TransformerConfig, tokens: int, itemsize: int) -> int:
    """Keys and values of a layer."""
    return 2 * itemsize * config.n_kv_heads * config.head_dim * tokens


def image_bytes(
    config: TransformerConfig,
    *,
    batch: int,
    length: int,
    cells: int,
    codes: int,
    branches: int,
    itemsize: int,
    schedule: Sequence[int],
    cache: CachePolicy | None,
    corrections: int = 0,
    chunk_rows: int | None = None,
    packed: bool = False,
    graphs: bool = False,
) -> int:
    """Sampling images: `batch` B sequences of `length` L with `cells` N and `codes` K, `branches` with the conditional
    one, by a `schedule` (holes left after each step) with `corrections` cells masked again at a step; `chunk_rows` as
    for the transformer, `packed` as for `Passes`. graphs: with what CUDA graphs keep for themselves."""
    tokens, rows = batch * length, batch * cells
    at_once = branches if packed else 1  # that go through the layers together
    waiting = branches - at_once
    logits = itemsize * rows * codes  # of one branch; they wait until all can be combined
    how: dict[str, Any] = {"logits": codes, "chunk_rows": chunk_rows}
    if cache is None:
        kept, extra = 0, 0
        passing = waiting * logits + forward_bytes(config, at_once * tokens, itemsize, rows=at_once * rows, **how)
    else:
        keys = config.n_layers * _keys_bytes(config, tokens, itemsize)
        kept = keys + logits
        ranked = tokens if cache.candidates == "all" else rows
        full = forward_bytes(config, at_once * tokens, itemsize, rows=at_once * ranked, keeps=True, **how)
        storing = at_once * (keys + itemsize * ranked * codes) + (2 * at_once - 1) * logits
        fresh = branches * batch * cache.budget(length, cells, schedule, corrections)
        cached = forward_bytes(config, fresh, itemsize, **how)
        recorded = graphs and is_short(fresh)
        full += recorded * _keys_bytes(config, tokens, itemsize)  # copied to where they stay
        extra = recorded * (cached + itemsize * fresh * codes)  # what they work in, and the logits that they give
        reading = branches * logits + itemsize * fresh * codes
        passing = max(waiting * (logits + kept) + max(full, storing), branches * kept + max(cached, reading))
    deciding = branches * (logits + kept) + _IMAGE_DECISION * min(_DECIDED, rows * codes)
    return int(_ROUNDING * (extra + max(passing, deciding))) + _KERNELS


def text_bytes(
    config: TransformerConfig,
    *,
    batch: int,
    length: int,
    answer: int,
    rows: int,
    branches: int,
    itemsize: int,
    keeps: bool = False,
    refreshes: bool = False,
    chunk_rows: int | None = None,
    packed: bool = False,
    graphs: bool = False,
) -> int:
    """Sampling answers: `batch` B sequences of `length` L, of which `answer` ids are the answer, with logits over the
    whole vocabulary at `rows` of them at a time. Each branch may keep keys and values, and later compute all of them
    again (`refreshes`); `chunk_rows` as for the transformer, `packed` as for `Passes`. graphs: with what CUDA graphs
    keep for themselves."""
    tokens, rows = batch * length, batch * rows
    at_once = branches if packed else 1  # that go through the layers together
    waiting = branches - at_once
    logits = itemsize * rows * config.vocab_size  # of one branch; they wait until all can be combined
    kept = keeps * config.n_layers * _keys_bytes(config, tokens, itemsize)
    # logits of words and logits of codes, then both in one
    how: dict[str, Any] = {"logits": 2 * config.vocab_size, "chunk_rows": chunk_rows}
    full = forward_bytes(config, at_once * tokens, itemsize, rows=at_once * rows, keeps=keeps, **how)
    passing, extra = waiting * (logits + kept) + full, 0
    if keeps:
        fresh = forward_bytes(config, branches * batch * answer, itemsize, rows=branches * rows, **how)
        recorded = graphs and is_short(branches * rows)
        copied = recorded * refreshes * _keys_bytes(config, tokens, itemsize)  # to where they stay
        passing = max(passing + copied, branches * kept + fresh)
        kinds = 1 + is_short(branches * batch * answer)  # passes over a block, and those over the answer
        extra = recorded * (fresh + kinds * branches * logits)
    deciding = branches * (logits + kept) + _TEXT_DECISION * min(_DECIDED, rows * config.vocab_size)
    return int(_ROUNDING * (extra + max(passing, deciding))) + _KERNELS


def decode_bytes(config: VQConfig, size: tuple[int, int], itemsize: int, *, tile: int | None = None) -> int:
    """Decoding a picture of `size` (h, w) px, whole or in tiles of about `tile` values."""
    return _levels_bytes(config, size, itemsize, up=True, tile=tile) + _KERNELS


def encode_bytes(config: VQConfig, size: tuple[int, int], itemsize: int, *, tile: int | None = None) -> int:
    """Encoding a picture of `size` (h, w) px, which is copied, whole or in tiles of about `tile` values."""
    copied = config.in_channels * math.prod(size) * itemsize
    return copied + _levels_bytes(config, size, itemsize, up=False, tile=tile) + _KERNELS


def palette_bytes(config: VQConfig, itemsize: int) -> int:
    """The colours of all codes: 3x3 cells each, some codes at a time, through the lowest level of the decoder; or what
    that gives, through the other levels."""
    lowest, width = config.block_out_channels[-1], max(config.block_out_channels)
    doubled = 4 if config.scale > 1 else 1
    cells = 9 * min(PALETTE_CHUNK, config.codebook_size)
    upwards = cells * lowest * (1 + 4 * doubled)
    matrix = 4 * 9 * width * (width + 1)  # a convolution of a field of 3x3 in each channel
    fields = 4 * config.codebook_size * width + matrix
    return int(_ROUNDING * itemsize * (config.codebook_size * lowest + max(upwards, fields))) + _KERNELS


def _levels_bytes(config: VQConfig, size: tuple[int, int], itemsize: int, *, up: bool, tile: int | None) -> int:
    """The most that a level of the VQ takes; levels are what `vq.Level` is, from full size down.

    A convolution takes as much again as goes in and comes out, since its kernels copy both into an order of their own.
    With that the counts are what torch 2.11 with cuDNN took on an H200 at 1024x1024 px: 4.57 GB to decode in fp32 (4.6
    measured), 2.29 in bf16 (2.3).
    """
    widths, peak = config.block_out_channels, 0
    most = widths[0] * math.prod(size)
    for index, width in enumerate(widths):
        before = widths[min(index + 1, len(widths) - 1)] if up else widths[max(index - 1, 0)]
        height, across = (side >> index for side in size)
        pixels = height * across
        resampled = index < len(widths) - 1
        if tile is None or max(before, width) * pixels <= WHOLE_TILES * tile:
            values = pixels * _residual_width(before, width)
            if resampled and tile is None:
                values = max(values, pixels * (17 * before if up else 14 * width) // 4)
        else:
            values = _tiled_values(before, width, (height, across), tile, most, resampled=resampled, up=up)
        peak = max(peak, values)
    return int(_ROUNDING * peak * itemsize)


def _tiled_values(
    before: int, width: int, size: tuple[int, int], tile: int, most: int, *, resampled: bool, up: bool
) -> int:
    """Values of a level of `size` (h, w) that works in tiles, as `vq.run_in_tiles` has it: the maps that are held, and
    some tiles. before: channels of what comes into the level; resampled: whether there is a coarser one."""
    pixels, widest = math.prod(size), max(before, width)
    tiles = tile_rows(widest, size[1], tile) * size[1] * widest
    two = 2 * widest * pixels <= most
    if up:
        source = before if 2 * before * pixels <= most else before / 4  # before it was doubled
    else:
        source = before if before != width or two else width / 4 * resampled  # the next level's, beside this one's
    measured = int(source * pixels) + _IN_FLIGHT_MEASURED * tiles
    first = int((source + width) * pixels) + _IN_FLIGHT * tiles
    return max(measured, first, 0 if two else width * pixels + _IN_FLIGHT_TWICE * tiles)


def _residual_width(inputs: int, outputs: int) -> int:
    """Channels that live at once in a residual, at one of its convolutions: the input, what is convolved, the result,
    and the copies of those two."""
    return max(3 * inputs + 2 * outputs, inputs + 4 * outputs)
