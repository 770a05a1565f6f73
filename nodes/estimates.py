"""How much memory a job needs beside the weights, in bytes. ComfyUI makes that much room, so it must not be less than
the truth; tests measure the truth. What the attention kernel takes is left out: the usual ones need next to nothing.

B batch, L sequence, N cells, K codes, V vocabulary rows.
"""

from __future__ import annotations

import math

from ..dimoo_core.cache import CachePolicy
from ..dimoo_core.config import TransformerConfig, VQConfig
from ..dimoo_core.strips import strip_rows

_ROUNDING = 1.03  # allocators round up and leave gaps
_KERNELS = 32 << 20  # work space of convolutions, and the distances of some cells to all codes
_IN_FLIGHT = 9  # strips that live at once where two residual convolutions and a resampling follow each other
_DRAWS, _DRAW = 2**22, 36  # the noise of so many codes is drawn at a time, with so many bytes each
_FP32, _FP64 = 4, 8


def forward_bytes(config: TransformerConfig, tokens: int, itemsize: int) -> int:
    """One pass over B*L `tokens`: queries turned in fp32 beside the layer's input, norm, keys and values; or, beside
    those, queries, the sum and its norm, the feed-forward's three wide tensors. And two rope tables, taken twice."""
    width, copied = config.d_model, _FP32 if itemsize < _FP32 else 0
    turning = (5 * itemsize + copied + 2 * _FP32) * width
    feeding = itemsize * (6 * width + 3 * config.mlp_hidden_size)
    return tokens * (max(turning, feeding) + 4 * _FP32 * config.head_dim)


def image_bytes(
    config: TransformerConfig,
    sequence: tuple[int, int],
    *,
    cells: int,
    codes: int,
    branches: int,
    itemsize: int,
    cache: CachePolicy | None,
) -> int:
    """Sampling an image: `sequence` (B, L), `cells` N, `codes` K, `branches` the conditional one included."""
    batch, length = sequence
    logits = batch * cells * codes
    waiting = (branches - 1) * itemsize * logits  # of the other branches, until all can be combined
    replaced = _FP32 * logits + waiting  # of the step before, until this step's are there
    combining = _combining_bytes(logits, branches, itemsize)
    deciding = _FP32 * logits + max(combining, _FP32 * logits, _DRAW * min(_DRAWS, logits))
    forward = forward_bytes(config, batch * length, itemsize)
    kept = 0
    if cache is not None:
        keys = 2 * itemsize * config.n_layers * config.n_kv_heads * config.head_dim * batch * length
        kept = (branches - 1) * (keys + itemsize * logits)
        # A full pass: the last layer's keys and values are kept anyway, then code logits of the whole sequence.
        pending = forward - 2 * itemsize * config.n_kv_heads * config.head_dim * batch * length
        everywhere = itemsize * (batch * length * codes + 2 * logits)
        forward = keys + max(pending, everywhere)
        deciding += keys + itemsize * logits
    return int(_ROUNDING * (kept + waiting + max(replaced + forward, deciding))) + _KERNELS


def text_bytes(
    config: TransformerConfig, length: int, *, rows: int, branches: int, itemsize: int, keeps: bool = False
) -> int:
    """Sampling an answer in a sequence of L, with logits over the whole vocabulary at so many `rows` at a time: they
    are combined in fp32, then copied to fp64, where a softmax is taken. Each branch may keep keys and values."""
    logits = rows * config.vocab_size
    kept = keeps * branches * 2 * itemsize * config.n_layers * config.n_kv_heads * config.head_dim * length
    waiting = (branches - 1) * itemsize * logits
    replaced = _FP32 * logits
    choosing = _FP64 * logits + max(_FP64 * logits, (_DRAW + 2 * _FP64) * min(_DRAWS, logits))
    deciding = _FP32 * logits + max(waiting + _combining_bytes(logits, branches, itemsize), choosing)
    forward = forward_bytes(config, length, itemsize) + waiting
    return int(_ROUNDING * (kept + max(replaced + forward, deciding))) + _KERNELS


def _combining_bytes(logits: int, branches: int, itemsize: int) -> int:
    """Combining the branches: two fp32 tensors beside the result, and what they are combined from."""
    if branches == 1:
        return 0
    return logits * (_FP32 * (2 + (branches > 2)) + (itemsize if itemsize < _FP32 else 0))


def decode_bytes(config: VQConfig, size: tuple[int, int], itemsize: int, *, strip: int | None = None) -> int:
    """Decoding a picture of `size` (h, w) px, at once or in strips of so many values."""
    return _levels_bytes(config, size, itemsize, up=True, strip=strip) + _KERNELS


def encode_bytes(config: VQConfig, size: tuple[int, int], itemsize: int, *, strip: int | None = None) -> int:
    """Encoding a picture of `size` (h, w) px, which is copied, at once or in strips of so many values."""
    copied = config.in_channels * math.prod(size) * itemsize
    return copied + _levels_bytes(config, size, itemsize, up=False, strip=strip) + _KERNELS


def palette_bytes(config: VQConfig, itemsize: int, at_once: int = 256) -> int:
    """Decoding every code amid its own kind, 3x3 cells, `at_once` of them; a batch was seen to take up to 1.4 times
    what one picture of that area takes."""
    side = 3 * config.scale
    return int(1.4 * decode_bytes(config, (min(at_once, config.codebook_size) * side, side), itemsize))


def _levels_bytes(config: VQConfig, size: tuple[int, int], itemsize: int, *, up: bool, strip: int | None) -> int:
    """The most that a level of the VQ takes; levels are what `vq.Level` is, from full size down."""
    widths, peak = config.block_out_channels, 0
    for index, width in enumerate(widths):
        before = widths[min(index + 1, len(widths) - 1)] if up else widths[max(index - 1, 0)]
        height, across = (side >> index for side in size)
        pixels = height * across
        if strip is None or max(before, width) * pixels <= 2 * strip:
            values = pixels * _residual_width(before, width)
            if index < len(widths) - 1 and strip is None:
                values = max(values, pixels * (9 * before if up else 9 * width) // 4)
        else:
            rows = strip_rows(max(before, width), across, strip)
            values = width * pixels + _IN_FLIGHT * rows * across * max(before, width)
        peak = max(peak, values)
    return int(_ROUNDING * peak * itemsize)


def _residual_width(inputs: int, outputs: int) -> int:
    """Channels that live at once in a residual: what came, normed, convolved; then what came and three of the new."""
    return max(2 * inputs + outputs, inputs + 3 * outputs)
