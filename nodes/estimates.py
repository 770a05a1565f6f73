"""How much memory a job needs beside the weights, in bytes. ComfyUI makes that much room, so it must not be less than
the truth; tests measure the truth. What the attention kernel takes is left out: the usual ones need next to nothing.

B batch, L sequence, N cells, K codes, V vocabulary rows.
"""

from __future__ import annotations

from ..dimoo_core.cache import CachePolicy
from ..dimoo_core.config import TransformerConfig, VQConfig

_MARGIN = 1.2  # allocators round up and leave gaps
_NOISE = 200 << 20  # the noise generator works in parts of at most this size


def forward_bytes(config: TransformerConfig, tokens: int, itemsize: int) -> int:
    """One pass over B*L `tokens`: keys and queries are turned in fp32, or the feed-forward's three wide tensors."""
    turning = (14 + 6 * itemsize) * config.d_model
    feeding = itemsize * (3 * config.mlp_hidden_size + 4 * config.d_model)
    return tokens * max(turning, feeding)


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
    """Sampling an image: `sequence` (B, L), `cells` N, `codes` K, `branches` the conditional one included.

    Between two branches their code logits wait; where they are combined and sampled, four such tensors in fp32. With
    ML-Cache each branch keeps keys, values and the logits of its holes, and a full pass makes logits of the whole
    sequence.
    """
    batch, length = sequence
    logits = batch * cells * codes
    kept, forward = branches * itemsize * logits, forward_bytes(config, batch * length, itemsize)
    if cache is not None:
        keys = config.n_layers * config.n_kv_heads * config.head_dim * batch * length
        kept += branches * itemsize * (2 * keys + logits)
        forward += 2 * itemsize * batch * length * codes
    return kept + int(_MARGIN * max(forward, 4 * 4 * logits)) + _NOISE


def text_bytes(
    config: TransformerConfig, length: int, *, tokens: int, branches: int, itemsize: int, keeps: bool = False
) -> int:
    """Sampling an answer of N `tokens` in a sequence of L: logits over the whole vocabulary, in the end in fp64; each
    branch may keep keys and values of the whole sequence."""
    logits = tokens * config.vocab_size
    total = logits * (branches * itemsize + 4 + 3 * 8)
    kept = keeps * branches * itemsize * 2 * config.n_layers * config.n_kv_heads * config.head_dim * length
    return kept + int(_MARGIN * (total + forward_bytes(config, length, itemsize))) + _NOISE


def decode_bytes(config: VQConfig, pixels: int, itemsize: int) -> int:
    """Decoding B*height*width `pixels`: the last level holds a few wide tensors at full size."""
    return int(_MARGIN * pixels * itemsize * _width(config, of_last=5, of_next=3))


def encode_bytes(config: VQConfig, pixels: int, itemsize: int) -> int:
    """Encoding B*height*width `pixels`, and the distances of each cell to every code."""
    distances = 2 * 4 * config.codebook_size * pixels // config.scale**2
    return int(_MARGIN * (pixels * itemsize * _width(config, of_last=6, of_next=2) + distances))


def palette_bytes(config: VQConfig, itemsize: int, at_once: int = 256) -> int:
    """Decoding every code amid its own kind, 3x3 cells, `at_once` of them."""
    return decode_bytes(config, min(at_once, config.codebook_size) * (3 * config.scale) ** 2, itemsize)


def _width(config: VQConfig, *, of_last: int, of_next: int) -> int:
    """Channels that live at full size: so many tensors of the outermost level, or so many of the one below it."""
    widths = config.block_out_channels
    return max(of_last * widths[0], of_next * widths[min(1, len(widths) - 1)])
