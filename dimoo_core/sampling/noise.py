"""Randomness: counter-based uniforms and Gumbel noise.

A uniform is a pure function of (seed, stream, step, cell, token), computed with int64 tensor operations on the device:
the same on every device and for every batch size, drawn only where it is used, nothing copied from the CPU.

Image noise is rounded as bf16 does. On a GPU the released code draws it in bf16, where it cannot exceed 5.53, so that
unlikely codes are never picked (median rank of the sampled code 33 instead of 502 in fp32, on synthetic logits).
That is part of the model's quality and is kept; the arithmetic around it is fp32.

Shapes: B batch, m cells, K codes or vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..checks import whole_number

SEEDS = 2**64
_WORD = 2**32 - 1
_DRAWS_CHUNK = 2**22  # bounds the int64 temporaries: 32 MB each
_TOKEN_STREAM, _REMASK_STREAM = 1, 2


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel(0,1) noise of uniforms in 0..1, in their own dtype: -log(-log(u + 1e-20) + 1e-20)."""
    return -torch.log(-torch.log(uniform + 1e-20) + 1e-20)


class Noise:
    """The random numbers of one sampling; item i of the batch draws from seed + i (mod 2^64), so that it equals a
    single run with that seed."""

    def __init__(self, seed: int, batch: int, device: torch.device | str):
        whole_number("seed", seed, 0, SEEDS - 1)
        self._seeds = [(seed + item) % SEEDS for item in range(batch)]
        self._device = torch.device(device)
        self._table = _bf16_gumbel_table().to(device)

    def for_tokens(self, step: int, cells: Tensor, tokens: int) -> Iterator[tuple[slice, Tensor]]:
        """Gumbel noise per cell and token, in chunks: (which of the m cells, noise fp32 [B,chunk,K]); cells [B,m]."""
        for chunk, hashes in self._hashes(step, cells, tokens):
            yield chunk, self._table[hashes >> 16]

    def for_remask(self, step: int, cells: Tensor) -> Tensor:
        """Gumbel noise per cell, fp32 [B,m], independent of that for tokens; cells [B,m]."""
        steps, offsets = self._keys(_REMASK_STREAM, step, cells)
        return self._table[_mix(steps ^ offsets) >> 16]

    def for_text(self, step: int, index: Tensor, tokens: int) -> Iterator[tuple[slice, Tensor]]:
        """As `for_tokens`, not rounded: the released text sampler draws in fp64 (fp32 where a device has no fp64)."""
        for chunk, hashes in self._hashes(step, index, tokens):
            yield chunk, gumbel((hashes.to(widest_float(self._device)) + 0.5) / 2**32)

    def _hashes(self, step: int, cells: Tensor, tokens: int) -> Iterator[tuple[slice, Tensor]]:
        # Every cell has its own arithmetic progression over the tokens; mixing makes random words of it.
        steps, offsets = self._keys(_TOKEN_STREAM, step, cells)
        tokens_index = torch.arange(tokens, device=self._device)
        for chunk in chunks(len(cells), cells.shape[1], tokens):
            yield chunk, _mix((tokens_index * steps[:, chunk, None]).add_(offsets[:, chunk, None]).bitwise_and_(_WORD))

    def _keys(self, stream: int, step: int, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Per cell an odd step and an offset, 32 bits each, [B,m]."""
        words = [[_scramble(seed, stream, step, which) for which in range(4)] for seed in self._seeds]
        keys = (torch.tensor(words, device=self._device) & _WORD)[:, :, None]  # [B,4,1]
        steps = _mix(_mix(cells ^ keys[:, 0]) ^ keys[:, 1]) | 1
        return steps, _mix(_mix(cells ^ keys[:, 2]) ^ keys[:, 3])


def chunks(batch: int, cells: int, tokens: int) -> Iterator[slice]:
    """The m `cells` of each item in chunks, so that no tensor [B,chunk,K] has more than about four million values."""
    size = max(1, _DRAWS_CHUNK // (tokens * batch))
    for start in range(0, cells, size):
        yield slice(start, min(start + size, cells))


def no_noise(batch: int, cells: int, tokens: int) -> Iterator[tuple[slice, None]]:
    """The chunks that `Noise` draws in, without any noise."""
    return ((chunk, None) for chunk in chunks(batch, cells, tokens))


def widest_float(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on Metal, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def _bf16_gumbel_table() -> Tensor:
    """Gumbel noise of 16 random bits, fp32 [65536], through a uniform rounded to bf16; 1.0 becomes 0, as on a GPU."""
    uniform = ((torch.arange(2**16) + 0.5) / 2**16).to(torch.bfloat16)
    return gumbel(uniform.masked_fill(uniform == 1, 0)).float()


def _mix(words: Tensor) -> Tensor:
    """Random-looking 32-bit words of 32-bit words (int64 tensors, values below 2^32). Writes its own temporary.

    Two rounds of shift-xor and odd multiplication with the constants of Wellons' low-bias search (hash-prospector).
    Products overflow int64; the low 32 bits that are kept do not depend on how.
    """
    words = words ^ (words >> 16)
    words.mul_(0x7FEB352D).bitwise_and_(_WORD)
    words.bitwise_xor_(words >> 15)
    words.mul_(0x846CA68B).bitwise_and_(_WORD)
    return words.bitwise_xor_(words >> 16)


def _scramble(seed: int, *counters: int) -> int:
    """A 32-bit key from a 64-bit seed and counters, by the SplitMix64 finaliser (Steele et al. 2014)."""
    state = seed
    for counter in counters:
        state = (state + 0x9E3779B97F4A7C15 * (counter + 1)) % SEEDS
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % SEEDS
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % SEEDS
        state ^= state >> 31
    return state >> 32
