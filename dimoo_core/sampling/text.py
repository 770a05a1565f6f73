"""The text loop: an answer is decided block by block, left to right, in each block the most probable tokens first.

The formulas are those of LLaDA (arXiv 2502.09992) and of the released understanding sampler. The `TextPolicy` chooses
what a step computes and how many tokens it may decide; its default is as released.

Shapes: B batch, P prefix, N tokens of the answer, L = P + N + 2 sequence, m holes, n positions computed, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..checks import number_in, whole_number
from ..model.transformer import take_rows
from ..sequence.layout import cut_answer, text_answer
from ..sequence.token_table import TokenTable
from .branch import Ask, BranchSequence, Scope
from .guidance import MAX_SCALE, BranchLogits, combine
from .noise import SEEDS, Noise, no_noise, widest_float
from .passes import Forward, Passes
from .schedule import tokens_per_step
from .selection import MAX_TEMPERATURE, Holes, decide_in_chunks, first_holes
from .text_cache import EXACT, TextPolicy

TextStep = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class TextSettings:
    """How an answer is sampled: max_tokens in blocks of block_length, left to right, steps over all blocks; cfg is
    the guidance scale against an unseen prompt (0: none). Raises ValueError, naming values that do, where they do not
    divide, and for a setting out of range."""

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
        whole_number("seed", self.seed, 0, SEEDS - 1)


@torch.no_grad()
def sample_text(
    transformer: Forward,
    table: TokenTable,
    prefix: Tensor,
    *,
    settings: TextSettings,
    on_step: TextStep | None = None,
    chunk_rows: int | None = None,
    packed: bool = False,
    graphs: bool = True,
    on_tokens: Callable[[list[int]], None] | None = None,
) -> list[list[int]]:
    """Answers to the prefixes [B,P], one list of ids each, up to (without) the first answer end, end of text or pad.

    `on_step(done, total, tokens [B,N])` is called after every step; what it raises (cancel) passes through. Where a
    block takes fewer steps than planned, `done` jumps. Sampling stops as soon as every answer is decided up to its end
    (the released script crashes there). A sampled mask id leaves its hole open for a later block, as in
    the released loop. `chunk_rows` saves memory: how many rows the transformer works on at a time (None: all).
    `packed` and `graphs`: how passes are run, see `passes.Passes`. `on_tokens(ids)` is told before each step which ids
    the answers are made of. Raises ValueError where the model computes numbers that are not finite.
    """
    plan = tokens_per_step(settings.max_tokens, settings.steps, settings.block_length)
    total, done, policy = sum(map(len, plan)), 0, settings.policy
    noise = Noise(settings.seed, len(prefix), prefix.device, total)
    passes = Passes(
        transformer,
        length=prefix.shape[1] + settings.max_tokens + 2,
        device=prefix.device,
        chunk_rows=chunk_rows,
        packed=packed,
        graphs=graphs,
    )
    fixed = passes.records((1 + (settings.cfg > 0)) * len(prefix) * settings.block_length)
    make_branch = partial(TextBranch, table, keep=policy.keeps, fixed=fixed)
    conditional, guides = make_branch(prefix), []
    if settings.cfg > 0:
        guides.append(make_branch(torch.full_like(prefix, table.mask), blind=True))
    tokens = prefix.new_full((len(prefix), settings.max_tokens), table.mask)
    ends = torch.tensor(table.ends, device=prefix.device)
    unanswered = torch.ones_like(ends[0])
    holes, seen = Holes(prefix.device), None
    for block_index, counts in enumerate(plan):
        block = Block(tokens == table.mask, block_index * settings.block_length, settings.block_length)
        for step, count in enumerate(counts):
            undecided = block.undecided(tokens == table.mask)
            if seen is None:
                questions, *numbers = holes.read(unanswered, *block.counts(tokens == table.mask), tokens)
                if not questions:
                    return [cut_answer(answer, table) for answer in tokens.tolist()]
                seen, ahead, ids = Seen(*numbers[:2]), Seen(*numbers[2:4]), numbers[4:]
                if on_tokens is not None:
                    on_tokens(ids)
            if not seen.undecided:
                seen = ahead  # the next block, whose tokens are the same
                break
            block.lay_out(seen.open_before)
            index, seen = first_holes(undecided, seen.undecided), None
            scope = policy.scope(block_index, step)
            logits, *others = passes.run([one.ask(tokens, index, scope, block) for one in (conditional, *guides)])
            guided = [BranchLogits(other, settings.cfg) for other in others]
            sampled, probs = _sample_tokens(logits, guided, index, noise, done + step, settings.temperature)
            del logits, others, guided  # before the next pass, which may take the most memory
            holes.record(probs, done + step)
            chosen = block.choose(tokens == table.mask, index, probs, count, policy.threshold)
            tokens = _write(tokens, index, sampled, chosen)
            unanswered = _unanswered(tokens, ends, table.mask)
            if on_step is not None:
                on_step(done + step + 1, total, tokens)
        done += len(counts)
    holes.finish()
    return [cut_answer(answer, table) for answer in tokens.tolist()]


@dataclass(frozen=True)
class Seen:
    """What the host must know of a block before a step: how many holes may be decided, and how many earlier blocks left
    open, both of the item that has most."""

    undecided: int
    open_before: int


class Block:
    """The block at work: which holes a step may decide.

    A block commits as many tokens as it is long; sampled mask ids count. Where it decides a hole that an earlier block
    left open, one of its own stays open.
    """

    index: Tensor
    rows: Tensor
    everything: Tensor

    def __init__(self, unknown: Tensor, start: int, length: int):
        """unknown [B,N]: the holes of the answer before the block begins, at `start`."""
        self.start, self.length = start, length
        self.left = torch.full((len(unknown), 1), length, device=unknown.device)
        self._laid_out = False
        self._unknown = unknown

    def undecided(self, unknown: Tensor) -> Tensor:
        """The holes of unknown [B,N] that may be decided, bool [B,N]: none of a later block."""
        index = torch.arange(unknown.shape[1], device=unknown.device)
        return unknown & (index < self.start + self.length) & (self.left > 0)

    def counts(self, unknown: Tensor) -> tuple[Tensor, ...]:
        """The numbers [] of `Seen` for the holes of unknown [B,N]: of this block, and of the next if it began now."""
        index, end = torch.arange(unknown.shape[1], device=unknown.device), self.start + self.length
        next_undecided = unknown & (index < end + self.length)
        counted = (self.undecided(unknown), self._unknown[:, : self.start], next_undecided, unknown[:, :end])
        return tuple(holes.sum(dim=1).max() for holes in counted)

    def lay_out(self, open_before: int) -> None:
        """Chooses the tokens of the answer that a step of Scope.PART computes, `index` [B,n]: the block, and the holes
        left open before it, of which the item with the most has `open_before`. An item with fewer of those has a token
        of the block twice, which changes nothing. `rows` [B,N]: where tokens of the answer stand in it, 0 for others;
        `everything` [B,n]: 0..n-1.
        """
        if self._laid_out:
            return
        self._laid_out = True
        before = first_holes(self._unknown[:, : self.start], open_before)
        before = before.where(self._unknown.gather(1, before), self.start)
        own = torch.arange(self.start, self.start + self.length, device=before.device)
        self.index = torch.cat((before, own.expand(len(before), -1)), dim=1)
        self.everything = torch.arange(self.index.shape[1], device=before.device).expand_as(self.index)
        self.rows = torch.zeros_like(self._unknown, dtype=torch.int64).scatter(1, self.index, self.everything)

    def choose(
        self, unknown: Tensor, index: Tensor, probs: Tensor, count: int, threshold: float | None = None
    ) -> Tensor:
        """Which of the holes `index` [B,m] are decided, bool [B,m]: the `count` of the highest `probs` [B,m], and with
        a threshold all that reach it."""
        undecided = self.undecided(unknown).gather(1, index)
        probs = probs.masked_fill(~undecided, -torch.inf)
        counts = torch.full_like(self.left, count)
        if threshold is not None:
            counts = torch.maximum(counts, (probs >= threshold).sum(dim=1, keepdim=True))
            count = index.shape[1]
        best = probs.topk(min(count, index.shape[1]), dim=1).indices
        first = torch.arange(best.shape[1], device=index.device) < torch.minimum(counts, self.left)
        chosen = torch.zeros_like(undecided).scatter(1, best, first) & undecided
        self.left = self.left - chosen.sum(dim=1, keepdim=True)
        return chosen


class TextBranch:
    """One branch of an answer, with passes over everything or with the keys and values of an earlier one."""

    def __init__(self, table: TokenTable, prefix: Tensor, *, keep: bool, fixed: bool = False, blind: bool = False):
        """prefix [B,P]; keep: later passes compute parts; fixed: as for `KeyValues`; blind: the branch sees nothing but
        the answer's own tokens."""
        self._sequence = BranchSequence(prefix, fixed=fixed)
        self._table, self._keep, self._blind = table, keep, blind

    def ask(self, tokens: Tensor, index: Tensor, scope: Scope, block: Block) -> Ask:
        """For logits [B,m,V] at tokens `index` [B,m] of the answer tokens [B,N].

        Passes that reuse something give logits of all of the block, so that their shapes are the same at every step.
        """
        answer, start = self._answer(tokens), self._sequence.prefix.shape[1]
        if scope is Scope.ALL:
            return Ask(scope, self._sequence.all(answer, start + 1 + index, keep=self._keep))
        if scope is Scope.ANSWER:
            part = self._sequence.answer(answer, 1 + block.index)
        else:
            part = self._sequence.part(answer, start + 1 + block.index, block.everything)
        given: list[Tensor] = []
        return Ask(scope, part, given.append, lambda: take_rows(given.pop(), block.rows.gather(1, index)))

    def _answer(self, tokens: Tensor) -> Tensor:
        answer = text_answer(tokens, self._table)
        if self._blind:
            answer[:, (0, -1)] = self._table.mask
        return answer


def _sample_tokens(
    logits: Tensor, others: Sequence[BranchLogits], index: Tensor, noise: Noise, step: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """A token for each of the holes `index` [B,m], from logits [B,m,V], and its probability, [B,m] each; in fp64 as the
    released code."""

    def wide(rows: slice) -> Tensor:
        return combine(logits, others, rows).to(widest_float(index.device))

    gumbel = noise.for_text(step, index, logits.shape[2]) if temperature > 0 else no_noise(*logits.shape)
    return decide_in_chunks(wide, gumbel, temperature)


def _write(tokens: Tensor, index: Tensor, sampled: Tensor, chosen: Tensor) -> Tensor:
    """tokens [B,N] with those `sampled` [B,m] at `index` [B,m] that were chosen, bool [B,m]."""
    return tokens.scatter(1, index, sampled.where(chosen, tokens.gather(1, index)))


def _unanswered(tokens: Tensor, ends: Tensor, mask: int) -> Tensor:
    """How many answers of tokens [B,N] do not yet have one of the `ends` [E] with nothing undecided before it, []."""
    ended = torch.isin(tokens, ends)
    open_before = (tokens == mask) & (ended.cumsum(dim=1) == 0)
    return (~ended.any(dim=1) | open_before.any(dim=1)).sum()
