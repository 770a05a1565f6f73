"""The text loop: an answer is decided block by block, left to right, in each block the surest tokens first.

The formulas are those of LLaDA's and the released understanding sampler; what a step computes anew and how many
tokens it may decide says the `TextPolicy`, whose default is as released.

Shapes: B batch, P prefix, N tokens of the answer, L = P + N + 2 sequence, m holes, n places computed, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from ..checks import number_in, whole_number
from ..model.transformer import Transformer
from ..sequence.layout import cut_answer, text_answer
from ..sequence.token_table import TokenTable
from .guidance import MAX_SCALE, Guided, combine_part
from .ml_cache import KeyValues
from .noise import Noise, no_noise, widest_float
from .schedule import tokens_per_step
from .selection import MAX_TEMPERATURE, decided_in_parts, hole_index
from .text_cache import EXACT, Scope, TextPolicy

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
    policy: TextPolicy = EXACT

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
    chunk_rows: int | None = None,
) -> list[list[int]]:
    """Answers to the prefixes [B,P], one list of ids each, up to (without) the first answer end, end of text or pad.

    `on_step(done, total, tokens [B,N])` is called after every step; what it raises (cancel) passes through. Where a
    block takes fewer steps than planned, `done` leaps. Sampling stops as soon as in every answer all before its end
    is decided (the released script crashes there). A sampled mask id leaves its hole open for a later block, as in
    the released loop. `chunk_rows` saves memory: how many rows the transformer works on at a time (None: all).
    """
    plan = tokens_per_step(settings.max_tokens, settings.steps, settings.block_length)
    total, done = sum(map(len, plan)), 0
    noise = Noise(settings.seed, len(prefix), prefix.device)
    readers = _readers(partial(transformer, chunk_rows=chunk_rows), table, prefix, settings)
    tokens = prefix.new_full((len(prefix), settings.max_tokens), table.mask)
    for number, counts in enumerate(plan):
        block = _Block(tokens == table.mask, number * settings.block_length, settings.block_length)
        for step, count in enumerate(counts):
            holes = hole_index(block.undecided(tokens == table.mask))
            if not holes.shape[1]:
                break
            scope = settings.policy.scope(number, step)
            guided = [(reader.logits(tokens, holes, scope, block), settings.cfg) for reader in readers]
            sampled = _sample_tokens(guided, holes, (noise, done + step, settings.temperature))
            del guided  # before the next pass, which may take the most memory
            chosen = block.choose(tokens == table.mask, holes, sampled[1], (count, settings.policy.threshold))
            tokens = _write(tokens, holes, sampled[0], chosen)
            if on_step is not None:
                on_step(done + step + 1, total, tokens)
            if _all_answered(tokens, table):
                return [cut_answer(answer, table) for answer in tokens.tolist()]
        done += len(counts)
    return [cut_answer(answer, table) for answer in tokens.tolist()]


class _Block:
    """The block at work: which holes a step may decide. A block decides as many as it is long, those among them that
    stay open because a mask id was sampled; if one of an earlier block is decided, one of its own stays open."""

    def __init__(self, unknown: Tensor, start: int, length: int):
        """unknown [B,N]: the holes of the answer before the block begins, at `start`."""
        self.start, self.length = start, length
        self.left = torch.full((len(unknown), 1), length, device=unknown.device)
        self._unknown = unknown

    def undecided(self, unknown: Tensor) -> Tensor:
        """The holes of unknown [B,N] that may be decided, bool [B,N]: none of a later block."""
        places = torch.arange(unknown.shape[1], device=unknown.device)
        return unknown & (places < self.start + self.length) & (self.left > 0)

    @cached_property
    def places(self) -> Tensor:
        """Places [B,n] in the answer that a step of Scope.BLOCK computes: the block, and holes left open before it.

        An item with fewer of those has a place of the block twice, which changes nothing.
        """
        before = hole_index(self._unknown[:, : self.start])
        before = before.where(self._unknown.gather(1, before), self.start)
        own = torch.arange(self.start, self.start + self.length, device=before.device)
        return torch.cat((before, own.expand(len(before), -1)), dim=1)

    @cached_property
    def rows(self) -> Tensor:
        """Where the places of the answer stand among `places`, [B,N]; 0 for the others."""
        numbers = torch.arange(self.places.shape[1], device=self.places.device).expand_as(self.places)
        return torch.zeros_like(self._unknown, dtype=torch.int64).scatter(1, self.places, numbers)

    def choose(self, unknown: Tensor, holes: Tensor, confidence: Tensor, how: tuple[int, float | None]) -> Tensor:
        """Which of the `holes` [B,m] are decided, bool [B,m]: the `count` surest, or with a threshold all as sure."""
        count, threshold = how
        undecided = self.undecided(unknown).gather(1, holes)
        confidence = confidence.masked_fill(~undecided, -torch.inf)
        wanted = torch.full_like(self.left, count)
        if threshold is not None:
            wanted = torch.maximum(wanted, (confidence >= threshold).sum(dim=1, keepdim=True))
            count = holes.shape[1]
        surest = confidence.topk(min(count, holes.shape[1]), dim=1).indices
        first = torch.arange(surest.shape[1], device=holes.device) < torch.minimum(wanted, self.left)
        chosen = torch.zeros_like(undecided).scatter(1, surest, first) & undecided
        self.left = self.left - chosen.sum(dim=1, keepdim=True)
        return chosen


class _Reader:
    """Logits of one branch, by passes over everything or with the keys and values of an earlier one."""

    def __init__(
        self, ask: Callable[..., Tensor], table: TokenTable, prefix: Tensor, policy: TextPolicy, *, blind: bool = False
    ):
        """ask: the transformer; prefix [B,P]; `blind` hides everything but the answer's own tokens."""
        self.ask, self.table, self.prefix, self.policy, self.blind = ask, table, prefix, policy, blind
        self.kept: KeyValues | None = None

    def logits(self, tokens: Tensor, holes: Tensor, scope: Scope, block: _Block) -> Tensor:
        """Logits [B,m,V] at places `holes` [B,m] of the answer tokens [B,N]."""
        ids = torch.cat((self.prefix, self._answer(tokens)), dim=1)
        start = self.prefix.shape[1]
        if scope is Scope.ALL:
            self.kept = None  # first, so that old and new never stand side by side
            self.kept = KeyValues() if self.policy.keeps else None
            return self.ask(ids, rows=start + 1 + holes, cache=self.kept)
        if scope is Scope.ANSWER:
            positions = torch.arange(start, ids.shape[1], device=ids.device).expand(len(ids), -1)
            rows = 1 + holes
        else:
            positions, rows = start + 1 + block.places, block.rows.gather(1, holes)
        return self.ask(ids.gather(1, positions), positions=positions, rows=rows, cache=self.kept)

    def _answer(self, tokens: Tensor) -> Tensor:
        answer = text_answer(tokens, self.table)
        if self.blind:
            answer[:, (0, -1)] = self.table.mask
        return answer


def _readers(ask: Callable[..., Tensor], table: TokenTable, prefix: Tensor, settings: TextSettings) -> list[_Reader]:
    """That of the prompt, and where it is guided the one that does not see it."""
    readers = [_Reader(ask, table, prefix, settings.policy)]
    if settings.cfg > 0:
        readers.append(_Reader(ask, table, torch.full_like(prefix, table.mask), settings.policy, blind=True))
    return readers


def _sample_tokens(guided: Guided, holes: Tensor, draw: tuple[Noise, int, float]) -> tuple[Tensor, Tensor]:
    """Token and its probability per hole, [B,m] each, from logits [B,m,V]; in fp64 as the released code."""
    noise, step, temperature = draw
    shape = guided[0][0].shape

    def wide(part: slice) -> Tensor:
        return combine_part(guided, part).to(widest_float(holes.device))

    drawing = noise.for_text(step, holes, shape[2]) if temperature > 0 else no_noise(*shape)
    return decided_in_parts(wide, drawing, temperature)


def _write(tokens: Tensor, holes: Tensor, sampled: Tensor, chosen: Tensor) -> Tensor:
    """tokens [B,N] with those sampled [B,m] at `holes` [B,m] that were chosen, bool [B,m]."""
    return tokens.scatter(1, holes, sampled.where(chosen, tokens.gather(1, holes)))


def _all_answered(tokens: Tensor, table: TokenTable) -> bool:
    """Whether every answer of tokens [B,N] has an end with nothing undecided before it."""
    ends = torch.isin(tokens, torch.tensor(table.ends, device=tokens.device))
    open_before = (tokens == table.mask) & (ends.cumsum(dim=1) == 0)
    return bool((ends.any(dim=1) & ~open_before.any(dim=1)).all())
