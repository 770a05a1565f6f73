"""The same model and the same loops, written the way the released code works: the baseline of the benchmarks.

Rewritten after what Lumina-DiMOO's `modeling_llada.py` and its three generators do. Every step computes every position
of every branch, and the logits of the whole vocabulary at each; norms and rotations are chains of small fp32
operations; an attention mask that hides nothing is built per pass, and cast per layer where weights are not fp32; holes
are found and filled by boolean indexing; an answer takes an fp64 softmax over all positions. Its ML-Cache keeps keys as
they are before rotation, rotates all of them again at every pass, and writes keys, values and the logits of the whole
vocabulary by a boolean index, in every layer.

The random numbers are those of `dimoo_core.sampling.noise`, so the tokens must be the same.

Shapes: B batch (1 wherever holes are indexed), L sequence, n positions computed, D width, h heads, d head width,
V vocabulary, K codes, m holes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dimoo_core.model.transformer import Attention, Transformer, module_to_hub
from dimoo_core.sampling.ml_cache import CachePolicy
from dimoo_core.sampling.noise import Noise
from dimoo_core.sequence.token_table import TokenTable


class Kept:
    """What the released ML-Cache keeps of one branch: of every layer keys, not rotated, and values [1,L,D], and the
    logits [1,L,V]."""

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}

    def renewed(self, name: str, fresh: Tensor, computed: Tensor | None) -> Tensor:
        """A part [1,L,...] with its `computed` positions [1,L] (bool; None: all) from `fresh` [1,n,...]."""
        if computed is None:
            self._parts[name] = fresh
        else:
            self._parts[name][computed] = fresh.flatten(0, 1)
        return self._parts[name]


class Released:
    """The transformer from the published tensors of `transformer`; weights are shared where they are not split."""

    def __init__(self, transformer: Transformer, attention: Attention = F.scaled_dot_product_attention):
        self.config, self.attention = transformer.config, attention
        state = {name: part.detach() for name, part in module_to_hub(transformer.state_dict()).items()}
        self.weights = {name.removeprefix("model.transformer."): part for name, part in state.items()}
        self._rotation: tuple[Tensor, Tensor] | None = None

    def __call__(self, ids: Tensor, kept: Kept | None = None, computed: Tensor | None = None) -> Tensor:
        """Logits [B,L,V] of ids [B,L]; `kept`: those of the positions that are not `computed` [1,L] (bool; None: all
        are) as they were."""
        visible = torch.ones(len(ids), ids.shape[1], dtype=torch.bool, device=ids.device)
        bias = (visible[:, :, None] & visible[:, None, :]).unsqueeze(1).float()
        bias.masked_fill_(bias == 0, torch.finfo(bias.dtype).min)
        x = F.embedding(ids if computed is None else ids[computed][None], self.weights["wte.weight"])
        for layer in range(self.config.n_layers):
            x = self._block(x, f"blocks.{layer}.", bias, kept, computed)
        logits = F.linear(self._norm(x, "ln_f.weight"), self.weights["ff_out.weight"])
        return logits if kept is None else kept.renewed("logits", logits, computed)

    def _block(self, x: Tensor, at: str, bias: Tensor, kept: Kept | None, computed: Tensor | None) -> Tensor:
        weights = self.weights
        normed = self._norm(x, f"{at}attn_norm.weight")
        queries, keys, values = (F.linear(normed, weights[f"{at}{name}_proj.weight"]) for name in "qkv")
        if kept is not None:
            keys, values = kept.renewed(f"{at}k", keys, computed), kept.renewed(f"{at}v", values, computed)
        queries, keys, values = map(self._heads, (queries, keys, values))
        where = slice(None) if computed is None else computed.nonzero(as_tuple=True)[1]
        cos, sin = self._rotary(keys)
        queries, keys = self._rotated(queries, cos[where], sin[where]), self._rotated(keys, cos, sin)
        if bias.dtype != x.dtype:
            bias = bias.to(x.dtype)  # and is then not given to the kernel
            bias.masked_fill_(bias == -math.inf, torch.finfo(x.dtype).min)
        seen = self.attention(queries, keys, values)
        x = x + F.linear(seen.transpose(1, 2).flatten(2), weights[f"{at}attn_out.weight"])
        normed = self._norm(x, f"{at}ff_norm.weight")
        gate, up = (F.linear(normed, weights[f"{at}{name}_proj.weight"]) for name in ("ff", "up"))
        return x + F.linear(F.silu(gate) * up, weights[f"{at}ff_out.weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.to(torch.float32)
        variance = wide.pow(2).mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(variance + self.config.rms_norm_eps)
        return self.weights[name] * wide.to(x.dtype)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.config.head_dim).transpose(1, 2)

    def _rotary(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [L,d] for keys [B,h,L,d], made once for the longest sequence so far."""
        length, width = keys.shape[2:]
        if self._rotation is None or len(self._rotation[0]) < length:
            exponents = torch.arange(0, width, 2, device=keys.device, dtype=torch.float32) / width
            positions = torch.arange(length, device=keys.device, dtype=torch.float32)
            angles = torch.outer(positions, 1.0 / self.config.rope_theta**exponents)
            angles = torch.cat((angles, angles), dim=-1)
            self._rotation = angles.cos(), angles.sin()
        cos, sin = self._rotation
        return cos[:length], sin[:length]

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        wide = x.float()
        first, second = wide.view(*wide.shape[:-1], 2, -1).unbind(dim=-2)
        return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


@torch.no_grad()
def sample_image(
    network: Released,
    table: TokenTable,
    sequences: Sequence[Tensor],
    scales: Sequence[float],
    *,
    steps: int,
    temperature: float,
    seed: int,
    cache: CachePolicy | None = None,
) -> Tensor:
    """Codes [N] of one picture. sequences: ids [1,L] of the conditional branch and of those it is guided away from,
    each ending with the same answer; scales: one for each of the latter. cache: ML-Cache; of the policy the ratio, the
    warm-up and the refresh interval are read, which is all that the released one has."""
    noise, ids = Noise(seed, 1, sequences[0].device, steps), [one.clone() for one in sequences]
    holes = (ids[0] == table.mask).sum()
    cells = _cells(ids[0], table)
    kept = [None if cache is None else Kept() for _ in ids]
    computed: list[Tensor | None] = [None for _ in ids]
    for step in range(steps):
        masks = [one == table.mask for one in ids]
        if not masks[0].any():
            break
        logits = [network(*given)[:, :, table.codes] for given in zip(ids, kept, computed, strict=True)]
        own = [one[mask] for one, mask in zip(logits, masks, strict=True)]
        guided = own[0] + sum(scale * (own[0] - other) for scale, other in zip(scales, own[1:], strict=True))
        sampled, confidence, gumbel = _codes(guided, masks[0][:, cells], noise, step, temperature)
        left = max(1, int(torch.floor(holes * torch.cos(torch.tensor(math.pi / 2 * (step + 1) / steps)))))
        left = 0 if step == steps - 1 else min(left, len(sampled) - 1)
        score = confidence.clamp(min=1e-20).log() + temperature * gumbel
        decided = sampled + table.code_offset
        decided[score < score.sort().values[left]] = table.mask
        for one, mask in zip(ids, masks, strict=True):
            one[mask] = decided
        if cache is not None and step + 1 < steps:
            full = cache.is_full(step + 1, steps)
            computed = [None if full else _uncertain(one, 1 - cache.ratio) for one in logits]
    return ids[0][0, cells] - table.code_offset


def _uncertain(logits: Tensor, share: float) -> Tensor:
    """The `share` of positions [1,L] (bool) with the lowest peaks, for code logits [1,L,K]."""
    peaks = logits.max(dim=-1).values
    return peaks <= torch.quantile(peaks.float(), share, dim=-1, keepdim=True)


def _cells(ids: Tensor, table: TokenTable) -> Tensor:
    """Where the cells of the answer stand in ids [1,L], row by row."""
    start = int((ids[0] == table.answer_begin).nonzero()[-1])
    ordinary = (ids[0] == table.mask) | ((ids[0] >= table.code_offset) & (ids[0] < table.codes.stop))
    ordinary[:start] = False
    return ordinary.nonzero()[:, 0]


def _codes(
    logits: Tensor, masked: Tensor, noise: Noise, step: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Code, its probability and the noise added to that, for logits [m,K] at the `masked` cells [1,N]; [m] each."""
    holes = masked.nonzero()[:, 1][None]
    if temperature > 0:
        drawn = torch.cat([part for _, part in noise.for_tokens(step, holes, logits.shape[1])], dim=1)[0]
        sampled = (logits / temperature + drawn).argmax(dim=-1)
        gumbel = noise.for_remask(step, holes)[0]
    else:
        sampled, gumbel = logits.argmax(dim=-1), torch.zeros(len(logits), device=logits.device)
    return sampled, logits.softmax(dim=-1).gather(1, sampled[:, None])[:, 0], gumbel


@torch.no_grad()
def sample_text(
    network: Released, table: TokenTable, sequence: Tensor, *, steps: int, block_length: int, cfg: float = 0.0
) -> list[int]:
    """The answer, all N tokens at temperature 0, of ids [1,L] that end with its N mask ids and the answer's end."""
    ids, start = sequence.clone(), int((sequence[0] == table.mask).nonzero()[0])
    length = sequence.shape[1] - 1 - start
    prompt = torch.ones_like(ids, dtype=torch.bool)
    prompt[:, start : start + length] = False
    blocks = length // block_length
    for block in range(blocks):
        per_step, rest = divmod(block_length, steps // blocks)
        for step in range(steps // blocks):
            masked = ids == table.mask
            logits = network(ids)
            if cfg > 0:
                blind = ids.clone()
                blind[prompt] = table.mask
                hidden = network(blind)
                logits = hidden + (cfg + 1) * (logits - hidden)
            likeliest = logits.argmax(dim=-1)
            chances = F.softmax(logits.to(torch.float64), dim=-1)
            confidence = chances.gather(-1, likeliest[..., None])[..., 0]
            confidence[:, start + (block + 1) * block_length :] = -math.inf
            confidence = torch.where(masked, confidence, -math.inf)
            surest = confidence[0].topk(per_step + (step < rest)).indices
            ids[0, surest] = likeliest[0, surest]
            if _answered(ids[0, start : start + length], table):
                return ids[0, start : start + length].tolist()
    return ids[0, start : start + length].tolist()


def _answered(tokens: Tensor, table: TokenTable) -> bool:
    """Whether the answer [N] has an end with nothing undecided before it; the released script crashes here."""
    ends = torch.isin(tokens, torch.tensor(table.ends, device=tokens.device)).nonzero()
    return bool(len(ends)) and not bool((tokens[: int(ends[0])] == table.mask).any())
