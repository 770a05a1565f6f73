"""Randomness: counter-based uniforms and Gumbel noise.

A uniform is a pure function of (seed, stream, step, cell, token), computed with int32 tensor operations on the device:
the same on every device and for every batch size, drawn only where it is used. The keys of all steps are made, and
copied to the device, before the first.

Image noise is rounded as bf16 does. On a GPU the released code draws it in bf16, where it cannot exceed 5.53, so that
unlikely codes are never picked (median rank of the sampled code 33 instead of 502 in fp32, on synthetic logits).
That is part of the model's quality and is kept; the arithmetic around it is fp32.

Shapes: B batch, m cells, K codes or vocabulary rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..checks import whole_number
from ..devices import has_fp64

SEEDS = 2**64
_WORD = 2**32 - 1
_DRAWS_CHUNK = 2**22  # bounds the temporaries: 16 MB each
_TOKEN_STREAM, _REMASK_STREAM, _SHARED_STREAM, _POLISH_STREAM = 1, 2, 3, 4
_STREAMS = (_TOKEN_STREAM, _REMASK_STREAM, _SHARED_STREAM, _POLISH_STREAM)
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)  # halves of a word in memory


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel(0,1) noise of uniforms in 0..1, in their own dtype: -log(-log(u + 1e-20) + 1e-20)."""
    return -torch.log(-torch.log(uniform + 1e-20) + 1e-20)


class Noise:
    """The random numbers of one sampling of at most `steps` steps; item i of the batch draws from seed + i (mod 2^64),
    so that it equals a single run with that seed."""

    def __init__(self, seed: int, batch: int, device: torch.device | str, steps: int):
        whole_number("seed", seed, 0, SEEDS - 1)
        self._keys = _keys(seed, batch, steps).to(device)
        self._device = self._keys.device  # with its number: another card may be the current one next time
        self._table = _bf16_gumbel_table(self._device)

    def for_tokens(self, step: int, cells: Tensor, tokens: int) -> Iterator[tuple[slice, Tensor]]:
        """Gumbel noise per cell and token, in chunks: (which of the m cells, noise bf16 [B,chunk,K]); cells [B,m]."""
        return self._drawn(_TOKEN_STREAM, step, cells, tokens, self._rounded)

    def shared(self, step: int, tokens: int) -> Tensor:
        """Gumbel noise per token, bf16 [B,1,K], for all cells of an item: each has the distribution that it has with
        noise of its own, and cells that are alike choose alike."""
        first = torch.zeros(self._keys.shape[1], 1, dtype=torch.int32, device=self._device)
        ((_, noise),) = self._drawn(_SHARED_STREAM, step, first, tokens, self._rounded)
        return noise

    def for_polish(self, number: int, cells: Tensor, tokens: int) -> Iterator[tuple[slice, Tensor]]:
        """As `for_tokens`, for a polishing pass, counted from 0 whatever steps came before."""
        return self._drawn(_POLISH_STREAM, number, cells, tokens, self._rounded)

    def for_remask(self, step: int, cells: Tensor) -> Tensor:
        """Gumbel noise per cell, fp32 [B,m], independent of that for tokens; cells [B,m]."""
        return self._rounded(self._word_per_cell(step, cells)).float()

    def for_order(self, step: int, cells: Tensor) -> Tensor:
        """A random number per cell, int32 [B,m], in place of the noise of `for_remask`: not rounded, so that hardly any
        two are the same; cells [B,m]."""
        return _mix_(self._word_per_cell(step, cells))

    def for_text(self, step: int, index: Tensor, tokens: int) -> Iterator[tuple[slice, Tensor]]:
        """As `for_tokens`, not rounded: the released text sampler draws in fp64 (fp32 where a device has no fp64)."""
        return self._drawn(_TOKEN_STREAM, step, index, tokens, self._exact)

    def _drawn(
        self, stream: int, step: int, cells: Tensor, tokens: int, noise: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[slice, Tensor]]:
        # Every cell has its own arithmetic progression over the tokens; mixing makes random words of it.
        strides, offsets = self._progressions(stream, step, cells)
        count = torch.arange(tokens, device=self._device, dtype=torch.int32)
        for chunk in chunks(len(cells), cells.shape[1], tokens):
            yield chunk, noise((count * strides[:, chunk, None]).add_(offsets[:, chunk, None]))

    def _rounded(self, words: Tensor) -> Tensor:
        """Noise bf16 of int32 words to mix, which are overwritten."""
        index = _stir_(words).bitwise_right_shift_(16).bitwise_and_(0xFFFF)
        return self._table.index_select(0, index.flatten()).view(index.shape)

    def _exact(self, words: Tensor) -> Tensor:
        """Noise in the widest dtype of int32 words to mix, which are overwritten."""
        unsigned = _mix_(words).long().bitwise_and_(_WORD)
        return gumbel((unsigned.to(widest_float(self._device)) + 0.5) / 2**32)

    def _word_per_cell(self, step: int, cells: Tensor) -> Tensor:
        """A word int32 [B,m] per cell to mix, for the choice of cells."""
        strides, offsets = self._progressions(_REMASK_STREAM, step, cells)
        return strides.bitwise_xor_(offsets)

    def _progressions(self, stream: int, step: int, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Per cell an odd stride and an offset, int32 [B,m] each."""
        keys = self._keys[step, :, stream - 1, :, None]  # [B,4,1]
        cells = cells.to(torch.int32, memory_format=torch.contiguous_format)
        strides = _mix_(_mix_(cells ^ keys[:, 0]).bitwise_xor_(keys[:, 1])).bitwise_or_(1)
        return strides, _mix_(_mix_(cells ^ keys[:, 2]).bitwise_xor_(keys[:, 3]))


def chunks(batch: int, cells: int, tokens: int) -> Iterator[slice]:
    """The m `cells` of each item in chunks, so that no tensor [B,chunk,K] has more than about four million values."""
    size = max(1, _DRAWS_CHUNK // (tokens * batch))
    for start in range(0, cells, size):
        yield slice(start, min(start + size, cells))


def every_cell(noise: Tensor, cells: int) -> Iterator[tuple[slice, Tensor]]:
    """The chunks that `Noise` draws in, of m `cells` that all have the same noise [B,1,K]."""
    return ((chunk, noise) for chunk in chunks(len(noise), cells, noise.shape[2]))


def no_noise(batch: int, cells: int, tokens: int) -> Iterator[tuple[slice, None]]:
    """The chunks that `Noise` draws in, without any noise."""
    return ((chunk, None) for chunk in chunks(batch, cells, tokens))


def widest_float(device: torch.device) -> torch.dtype:
    """fp64, or fp32 where a device has none."""
    return torch.float64 if has_fp64(device) else torch.float32


@cache
def _bf16_gumbel_table(device: torch.device) -> Tensor:
    """Gumbel noise of 16 random bits, bf16 [65536], from a uniform rounded to bf16; 1.0 becomes 0, as on a GPU."""
    uniform = ((torch.arange(2**16, device="cpu") + 0.5) / 2**16).to(torch.bfloat16)
    return gumbel(uniform.masked_fill(uniform == 1, 0)).to(device)


def _stir_(words: Tensor) -> Tensor:
    """`_mix_` but for its last operation, which leaves the upper halves as they are."""
    _fold_(words).mul_(0x7FEB352D)
    words.bitwise_xor_((words >> 15).bitwise_and_(0x1FFFF))  # the shift is arithmetic: the mask makes it a logical one
    return words.mul_(0x846CA68B - 2**32)


def _mix_(words: Tensor) -> Tensor:
    """Random-looking 32-bit words of 32-bit words (int32, contiguous), in their place.

    Two rounds of shift-xor and odd multiplication with the constants of Wellons' low-bias search (hash-prospector), on
    unsigned words; products keep their low 32 bits, which are the same for signed ones.
    """
    return _fold_(_stir_(words))


def _fold_(words: Tensor) -> Tensor:
    """words ^ (words >> 16) with a logical shift: the upper halves go into the lower."""
    halves = words.view(torch.int16)
    halves[..., _LOW::2].bitwise_xor_(halves[..., _HIGH::2])
    return words


def _keys(seed: int, batch: int, steps: int) -> Tensor:
    """Four 32-bit keys, int32 [steps,B,4,4], of every step, item and stream."""
    items = np.array([(seed + item) % SEEDS for item in range(batch)], dtype=np.uint64)[:, None]
    streams = _scrambled(items, np.array(_STREAMS, dtype=np.uint64))  # [B,4]
    each = _scrambled(streams, np.arange(steps, dtype=np.uint64)[:, None, None])
    keys = _scrambled(each[..., None], np.arange(4, dtype=np.uint64)) >> np.uint64(32)
    return torch.from_numpy(keys.astype(np.uint32).view(np.int32))


def _scrambled(state: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """The next uint64 state of a counter, by the SplitMix64 finaliser (Steele et al. 2014); arrays wrap silently."""
    state = state + np.uint64(0x9E3779B97F4A7C15) * (counter + np.uint64(1))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
