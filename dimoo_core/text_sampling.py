"""The text loop: an answer is decided block by block, left to right, in each block the surest tokens first.

The formulas are those of LLaDA's and the released understanding sampler.

Shapes: B batch, P prefix, N tokens of the answer, m holes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import number_in, whole_number
from .choices import MAX_TEMPERATURE, hole_index, probability, sampled_tokens
from .guidance import MAX_SCALE, combine
from .layout import cut_answer, text_answer
from .noise import Noise, widest_float
from .schedule import tokens_per_step
from .tokens import TokenTable
from .transformer import Transformer

TextStep = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class TextSettings:
    """How an answer is sampled: max_tokens in blocks of block_length, left to right, steps over all blocks; cfg is
    the scale against an unseen prompt (0: none). Raises ValueError, naming values that do, where they do not divide."""

    max_tokens: int = 128
    steps: int = 128
    block_length: int = 32
    temperature: float = 0.0
    cfg: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        tokens_per_step(self.max_tokens, self.steps, self.block_length)
        number_in("temperature", self.temperature, 0, MAX_TEMPERATURE)
        number_in("cfg", self.cfg, 0, MAX_SCALE)
        whole_number("seed", self.seed, 0, 2**64 - 1)


@torch.no_grad()
def sample_text(
    transformer: Transformer,
    table: TokenTable,
    prefix: Tensor,
    *,
    settings: TextSettings,
    on_step: TextStep | None = None,
) -> list[list[int]]:
    """Answers to the prefixes [B,P], one list of ids each, up to (without) the first answer end, end of text or pad.

    `on_step(done, total, tokens [B,N])` is called after every step; what it raises (cancel) passes through. Sampling
    stops as soon as in every answer all before its end is decided (the released script crashes there). A sampled
    mask id leaves its hole open for a later block, as in the released loop.
    """
    plan = tokens_per_step(settings.max_tokens, settings.steps, settings.block_length)
    block_ends = [(block + 1) * settings.block_length for block, counts in enumerate(plan) for _ in counts]
    counts = [count for counts in plan for count in counts]
    noise = Noise(settings.seed, len(prefix), prefix.device)
    tokens = prefix.new_full((len(prefix), settings.max_tokens), table.mask)
    for step, (count, end) in enumerate(zip(counts, block_ends, strict=True)):
        undecided = tokens == table.mask
        undecided[:, end:] = False
        holes = hole_index(undecided)
        logits = _text_logits(transformer, table, prefix, (tokens, holes), settings.cfg)
        sampled, confidence = _sample_tokens(logits, holes, (noise, step, settings.temperature))
        confidence = confidence.masked_fill(~undecided.gather(1, holes), -torch.inf)
        surest = confidence.topk(count, dim=1).indices
        tokens = tokens.scatter(1, holes.gather(1, surest), sampled.gather(1, surest))
        if on_step is not None:
            on_step(step + 1, len(counts), tokens)
        if _all_answered(tokens, table):
            break
    return [cut_answer(answer, table) for answer in tokens.tolist()]


def _text_logits(
    transformer: Transformer, table: TokenTable, prefix: Tensor, state: tuple[Tensor, Tensor], cfg: float
) -> Tensor:
    """Logits [B,m,V] in fp32 at the answer places `holes` [B,m]; state: (tokens [B,N], holes)."""
    tokens, holes = state
    ids = torch.cat((prefix, text_answer(tokens, table)), dim=1)
    start = prefix.shape[1] + 1
    logits = transformer(ids, rows=start + holes)
    if cfg == 0:
        return combine(logits, ())
    blind = torch.full_like(ids, table.mask)  # everything but the answer's own tokens is hidden
    blind[:, start : start + tokens.shape[1]] = tokens
    return combine(logits, [(transformer(blind, rows=start + holes), cfg)])


def _sample_tokens(logits: Tensor, holes: Tensor, draw: tuple[Noise, int, float]) -> tuple[Tensor, Tensor]:
    """Token and its probability per hole, [B,m] each, from logits [B,m,V]; in fp64 as the released code."""
    noise, step, temperature = draw
    logits = logits.to(widest_float(logits.device))
    if temperature > 0:
        sampled = sampled_tokens(logits, noise.for_text(step, holes, logits.shape[2]), temperature)
    else:
        sampled = logits.argmax(dim=-1)
    return sampled, probability(logits, sampled)


def _all_answered(tokens: Tensor, table: TokenTable) -> bool:
    """Whether every answer of tokens [B,N] has an end with nothing undecided before it."""
    ends = torch.isin(tokens, torch.tensor(table.ends, device=tokens.device))
    open_before = (tokens == table.mask) & (ends.cumsum(dim=1) == 0)
    return bool((ends.any(dim=1) & ~open_before.any(dim=1)).all())
