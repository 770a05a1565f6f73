"""Bytes that a job needs beside the weights: what decides whether it runs whole or in chunks, in ComfyUI and outside.

An estimate must not be below the truth; tests measure the truth. What the attention kernel takes is left out: the usual
ones need next to nothing.

B batch, L sequence, N cells, K codes, V vocabulary rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from .model.config import TransformerConfig, VQConfig
from .model.quantised import INT8, PRODUCT, Format
from .model.vq import PALETTE_CHUNK
from .model.vq_tiles import tile_rows
from .sampling.ml_cache import CachePolicy

CHUNK_ROWS = 1024  # rows that the transformer works on at a time where memory is short

_ROUNDING = 1.03  # allocators round up and leave gaps, and the head has a few rows more than there are codes
_KERNELS = 32 << 20  # work space of convolutions, and the distances of some cells to all codes
_IN_FLIGHT = 9  # tiles in memory together where two residual convolutions and a resampling follow each other
_DECIDED = 2**22  # logits that are decided at a time, and what each takes: the noise of an image, and of a text in fp64
_IMAGE_DECISION, _TEXT_DECISION = 32, 40
_FP32 = 4
_PRODUCTS = 3.5  # parts as large as one of an int8 product: itself in int32 and fp32, activations in fp32 and int8


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


def quantised_bytes(config: TransformerConfig, itemsize: int, formats: Collection[Format]) -> int:
    """What a layer with weights of these formats takes while it works, beside all else: its matrix in the dtype that is
    computed in, or a part of an int8 product with what it is made of."""
    if not formats:
        return 0
    widened = itemsize * config.d_model * config.mlp_hidden_size
    return int(_ROUNDING * max(widened, _PRODUCTS * PRODUCT * (INT8 in formats)))


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
    chunk_rows: int | None = None,
) -> int:
    """Sampling images: `batch` B sequences of `length` L with `cells` N and `codes` K, `branches` with the conditional
    one, by a `schedule` (holes left after each step); `chunk_rows` as for the transformer."""
    tokens, rows, others = batch * length, batch * cells, branches - 1
    logits = itemsize * rows * codes  # of one branch; they wait until all can be combined
    kept = 0
    if cache is None:
        passing = forward_bytes(config, tokens, itemsize, logits=codes, rows=rows, chunk_rows=chunk_rows)
    else:
        keys = config.n_layers * _keys_bytes(config, tokens, itemsize)
        kept = keys + logits
        ranked = None if cache.candidates == "all" else rows
        full = forward_bytes(config, tokens, itemsize, logits=codes, rows=ranked, chunk_rows=chunk_rows, keeps=True)
        fresh = batch * cache.budget(length, cells, schedule)
        cached = kept + forward_bytes(config, fresh, itemsize, logits=codes, chunk_rows=chunk_rows)
        storing = keys + logits + max(itemsize * (ranked or tokens) * codes, logits)
        passing = max(full, cached, storing, kept + logits + itemsize * fresh * codes)
    deciding = logits + kept + _IMAGE_DECISION * min(_DECIDED, rows * codes)
    return int(_ROUNDING * (others * (logits + kept) + max(passing, deciding))) + _KERNELS


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
    chunk_rows: int | None = None,
) -> int:
    """Sampling answers: `batch` B sequences of `length` L, of which `answer` ids are the answer, with logits over the
    whole vocabulary at `rows` of them at a time. Each branch may keep keys and values; `chunk_rows` as for the
    transformer."""
    tokens, rows = batch * length, batch * rows
    logits = itemsize * rows * config.vocab_size  # of one branch; they wait until all can be combined
    kept = keeps * config.n_layers * _keys_bytes(config, tokens, itemsize)
    head = 2 * config.vocab_size  # logits of words and logits of codes, then both in one
    passing = forward_bytes(config, tokens, itemsize, logits=head, rows=rows, chunk_rows=chunk_rows, keeps=keeps)
    if keeps:
        fresh = forward_bytes(config, batch * answer, itemsize, logits=head, rows=rows, chunk_rows=chunk_rows)
        passing = max(passing, kept + fresh)
    deciding = logits + kept + _TEXT_DECISION * min(_DECIDED, rows * config.vocab_size)
    return int(_ROUNDING * ((branches - 1) * (logits + kept) + max(passing, deciding))) + _KERNELS


def decode_bytes(config: VQConfig, size: tuple[int, int], itemsize: int, *, tile: int | None = None) -> int:
    """Decoding a picture of `size` (h, w) px, whole or in tiles of about `tile` values."""
    return _levels_bytes(config, size, itemsize, up=True, tile=tile) + _KERNELS


def encode_bytes(config: VQConfig, size: tuple[int, int], itemsize: int, *, tile: int | None = None) -> int:
    """Encoding a picture of `size` (h, w) px, which is copied, whole or in tiles of about `tile` values."""
    copied = config.in_channels * math.prod(size) * itemsize
    return copied + _levels_bytes(config, size, itemsize, up=False, tile=tile) + _KERNELS


def palette_bytes(config: VQConfig, itemsize: int) -> int:
    """Decoding every code among its own kind, 3x3 cells, a chunk of codes at a time."""
    side = 3 * config.scale
    return decode_bytes(config, (min(PALETTE_CHUNK, config.codebook_size) * side, side), itemsize)


def _levels_bytes(config: VQConfig, size: tuple[int, int], itemsize: int, *, up: bool, tile: int | None) -> int:
    """The most that a level of the VQ takes; levels are what `vq.Level` is, from full size down."""
    widths, peak = config.block_out_channels, 0
    for index, width in enumerate(widths):
        before = widths[min(index + 1, len(widths) - 1)] if up else widths[max(index - 1, 0)]
        height, across = (side >> index for side in size)
        pixels = height * across
        if tile is None or max(before, width) * pixels <= 2 * tile:
            values = pixels * _residual_width(before, width)
            if index < len(widths) - 1 and tile is None:
                values = max(values, pixels * (9 * before if up else 9 * width) // 4)
        else:
            rows = tile_rows(max(before, width), across, tile)
            values = width * pixels + _IN_FLIGHT * rows * across * max(before, width)
        peak = max(peak, values)
    return int(_ROUNDING * peak * itemsize)


def _residual_width(inputs: int, outputs: int) -> int:
    """Channels that live at once in a residual: the input, normed, convolved; then the input and three of the new."""
    return max(2 * inputs + outputs, inputs + 3 * outputs)
