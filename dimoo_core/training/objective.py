"""The masked-token objective: hide part of an answer, ask for what was hidden.

The hidden share of an answer is cos(pi r / 2) with r uniform in 0..1, as in MaskGIT (arXiv 2202.04200, section 3.2) and
Lumina-DiMOO's training. The loss is the cross entropy at hidden positions only. It is handed out as a sum together with
what it sums over, so that the mean over all hidden tokens of a step does not depend on how the step was split.

The released training fills the shorter sequences of a batch with id 0 and lets them be attended to, which changes the
loss. Here a batch holds sequences of one length, without any filling.

Shapes: B batch, L sequence, n positions that may be hidden, r positions that are, V vocabulary rows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

WHOLE_UP_TO = 5  # tokens: a shorter answer, or picture, is hidden as a whole
_LOGITS_CHUNK = 2**24  # logits that are held in fp32 at a time: 64 MB

Network = Callable[..., Tensor]  # a Transformer, as it is or with adapters


# What is hidden ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Section:
    """Positions [n] int64 of a sequence of which a share of their own is hidden. whole_up_to: all of them are, where
    there are no more than that."""

    positions: Tensor
    whole_up_to: int = WHOLE_UP_TO


@dataclass(frozen=True, eq=False)
class TrainingSequence:
    """One sequence with nothing hidden.

    ids [L]. sections: what may be hidden; they do not overlap. vocab: the rows that the answer's tokens come from
    (None: all). weights: fp32 [L], how much the loss of each position counts (None: alike). cut: how many tokens of the
    prompt were left out because it was too long.
    """

    ids: Tensor
    sections: tuple[Section, ...]
    vocab: slice | None = None
    weights: Tensor | None = None
    cut: int = 0


def dice(seed: int, step: int, sample: int) -> random.Random:
    """The random numbers of one sample at one step of a run: the same on every rank and in every worker."""
    return random.Random(f"{seed} {step} {sample}")


def hidden_count(length: int, share: float) -> int:
    """How many of `length` tokens the share 0..1 hides: rounded down in double precision, but at least one."""
    return max(1, math.floor(length * share))


def hide(sequence: TrainingSequence, mask_id: int, choose: random.Random, *, share: float | None = None) -> HiddenBatch:
    """The sequence with a part of each section hidden, as a batch of one.

    `choose.random()` is called for each section: once for the share, then once for each position; those with the lowest
    numbers are hidden. `share` is that of all sections instead of one drawn for each, for losses that are to be
    compared; short sections are hidden as a whole all the same.
    """
    rows = torch.cat([_hidden_positions(section, choose, share) for section in sequence.sections])
    ids = sequence.ids.clone()
    ids[rows] = mask_id
    weights = torch.ones(len(rows)) if sequence.weights is None else sequence.weights[rows]
    count = float(weights.double().sum())
    return HiddenBatch(ids[None], rows[None], sequence.ids[rows][None], weights[None], count, sequence.vocab)


def _hidden_positions(section: Section, choose: random.Random, share: float | None) -> Tensor:
    length = len(section.positions)
    drawn = math.cos(math.pi * choose.random() / 2)
    order = torch.tensor([choose.random() for _ in range(length)], dtype=torch.float64).argsort(stable=True)
    count = length if length <= section.whole_up_to else hidden_count(length, drawn if share is None else share)
    return section.positions[order[:count]]


# The loss -----------------------------------------------------------------------------------------------------------

_TENSORS = ("ids", "rows", "targets", "weights")  # of a HiddenBatch


@dataclass(frozen=True, eq=False)
class HiddenBatch:
    """Sequences of one length with a part hidden, and what stood there.

    ids [B,L]: mask ids where something is hidden. rows [B,r]: where that is. targets [B,r]: the ids that stood there.
    weights fp32 [B,r]: how much each counts; 0 where a sequence has fewer hidden places than others and `rows` is
    filled up. count: what the sum of losses is to be divided by, the sum of the weights unless they say otherwise.
    vocab: the rows that the targets come from (None: all).
    """

    ids: Tensor
    rows: Tensor
    targets: Tensor
    weights: Tensor
    count: float
    vocab: slice | None = None

    @classmethod
    def stack(cls, batches: Sequence[HiddenBatch]) -> HiddenBatch:
        """Several as one. Raises ValueError unless their sequences are equally long and come from the same rows."""
        first = batches[0]
        if any(batch.ids.shape[1:] != first.ids.shape[1:] or batch.vocab != first.vocab for batch in batches):
            lengths = [batch.ids.shape[1] for batch in batches]
            raise ValueError(
                f"Got sequences of {lengths} tokens in one batch; expected one length, and answers of one kind, since "
                "nothing masks a filling: give each length a pass of its own."
            )
        width = max(batch.rows.shape[1] for batch in batches)
        filled = [batch._filled(width) for batch in batches]
        ids, rows, targets, weights = (torch.cat([getattr(batch, name) for batch in filled]) for name in _TENSORS)
        return cls(ids, rows, targets, weights, sum(batch.count for batch in batches), first.vocab)

    def _filled(self, width: int) -> HiddenBatch:
        """With rows for `width` places, of which those behind the last count nothing."""
        missing = width - self.rows.shape[1]
        rows, targets = (
            torch.cat((part, part[:, :1].expand(-1, missing)), dim=1) for part in (self.rows, self.targets)
        )
        return replace(self, rows=rows, targets=targets, weights=F.pad(self.weights, (0, missing)))

    def silent(self) -> HiddenBatch:
        """The same sequences, counting nothing: for a process that takes part in a pass without data of its own."""
        return replace(self, weights=torch.zeros_like(self.weights), count=0.0)

    def to(self, device: torch.device | str) -> HiddenBatch:
        """The batch for a network on `device`."""
        parts = {name: getattr(self, name).to(device) for name in _TENSORS}
        return replace(self, **parts)


def loss_sum(network: Network, batch: HiddenBatch) -> Tensor:
    """The sum over hidden places of weight x cross entropy, a fp32 scalar; divided by the `count` of all batches of a
    step it is the step's loss."""
    logits = network(batch.ids, rows=batch.rows, vocab=batch.vocab)
    targets = batch.targets - (batch.vocab.start if batch.vocab else 0)
    return cross_entropy_sum(logits.flatten(0, 1), targets.flatten(), batch.weights.flatten())


def cross_entropy_sum(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """sum_i weights[i] * cross entropy of logits[i], in fp32: logits [n,V] of any type, targets [n], weights [n].

    Of the published vocabulary a large picture's logits take 2.2 GB in fp32, and as much again for each step of the
    computation; so they are widened in chunks, and again backward.
    """
    size = max(1, _LOGITS_CHUNK // logits.shape[1])
    chunks = list(zip(*(part.split(size) for part in (logits, targets, weights)), strict=True))
    if len(chunks) == 1:
        return _cross_entropy_sum(*chunks[0])
    sums = [checkpoint(_cross_entropy_sum, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(sums).sum()


def _cross_entropy_sum(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()


# Batches whose answers count alike ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Whole sequences of one length, and which part of them is the answer; each answer counts alike, so that one of
    which little is hidden counts as much as one of which all is.

    ids [B,L]: the true sequences. positions [n]: where the answer's tokens stand. vocab: the rows they come from (None:
    all). maskable [B,n]: what may be hidden (None: all). whole [B]: answers of which all of that is hidden, not a
    share (None: none). weights [B,n]: how much each place counts (None: alike).
    share: how much the batch counts beside others.
    """

    ids: Tensor
    positions: Tensor
    vocab: slice | None = None
    maskable: Tensor | None = None
    whole: Tensor | None = None
    weights: Tensor | None = None
    share: float = 1.0

    def hide(self, mask_id: int, generator: torch.Generator) -> HiddenBatch:
        """The batch with a part of each answer hidden. Its loss over its count, which is `share`, is the mean over the
        answers of the mean over what is hidden of each."""
        answer = self.ids[:, self.positions]
        maskable = torch.ones(answer.shape, dtype=torch.bool) if self.maskable is None else self.maskable
        hidden = draw_hidden(maskable, generator, self.whole)
        ids = self.ids.clone()
        ids[:, self.positions] = answer.masked_fill(hidden, mask_id)
        weights = hidden.float() if self.weights is None else hidden * self.weights
        weights = weights / (weights.sum(dim=1, keepdim=True).clamp(min=1e-6) * len(weights)) * self.share
        # the hidden places first; an answer with fewer of them than others is filled up with places that count 0
        order = hidden.int().argsort(dim=1, descending=True, stable=True)[:, : int(hidden.sum(dim=1).max())]
        rows, targets = self.positions[order], answer.gather(1, order)
        return HiddenBatch(ids, rows, targets, weights.gather(1, order), self.share, self.vocab)


def draw_hidden(maskable: Tensor, generator: torch.Generator, whole: Tensor | None = None) -> Tensor:
    """Which positions [B,n] to hide: at least one of each answer's `maskable` [B,n]; the share cos(pi r / 2) of them,
    or all where `whole` [B] says so."""
    shares = torch.cos(torch.rand(len(maskable), generator=generator).double() * (math.pi / 2))
    if whole is not None:
        shares = shares.masked_fill(whole, 1.0)
    counts = (shares * maskable.sum(dim=1)).floor().clamp(min=1)
    order = torch.rand(maskable.shape, generator=generator).masked_fill(~maskable, 2.0)
    ranks = order.argsort(dim=1).argsort(dim=1)
    return (ranks < counts[:, None]) & maskable
