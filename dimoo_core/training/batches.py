"""From a dataset to the batches of each step, and the loss on samples that are held back.

Which samples a step has, what is dropped of their prompts and what is hidden of their answers depends on the seed, the
step and the place in the step alone: never on how many processes there are, or on what came before. Sequences of one
length share a pass; others have passes of their own, since nothing masks a filling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from .dataset import Dataset
from .engine import Engine
from .objective import HiddenBatch, Network, dice, hide, loss_sum
from .sequences import Sequences

HELD_BACK_SHARES = (0.25, 0.5, 0.75, 1.0)  # of an answer that are hidden, one after the other
MOST_CHECKED = 256  # samples that a check looks at: more would cost more than they tell
_ROUNDS = 6  # of the cipher that shuffles


def shuffled(place: int, count: int, key: str) -> int:
    """The number, 0 to count - 1, that stands at `place` of a shuffled row: another row for each key. It is computed
    and not looked up, so a million samples take no memory: a Feistel cipher over the next power of four, applied until
    the result is in range."""
    half = max((count - 1).bit_length() + 1, 2) // 2
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for number in range(_ROUNDS):
            digest = hashlib.blake2b(f"{key} {number} {right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & low)
        place = left << half | right
        if place < count:
            return place


def check_shares(size: int, ranks: int) -> None:
    """Raises ValueError unless each of so many processes has a sample in a step of `size`."""
    if size < ranks:
        raise ValueError(
            f"batch x accumulate is {size}, for {ranks} processes; expected at least one sample for each: raise "
            "--accumulate."
        )


@dataclass(frozen=True)
class SampleBatches:
    """size: samples in a step, of all processes together. at_once: sequences in one pass. rank of ranks: the process
    whose share this is.

    Every sample comes once before any comes again. Raises ValueError where a process would have none in a step.
    """

    dataset: Dataset
    sequences: Sequences
    mask_id: int
    size: int
    at_once: int
    seed: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        check_shares(self.size, self.ranks)

    def step(self, number: int) -> list[HiddenBatch]:
        """This process's batches of step `number`, from 0."""
        hidden = []
        for place in range(self.rank, self.size, self.ranks):
            epoch, position = divmod(number * self.size + place, len(self.dataset))
            sample = self.dataset[shuffled(position, len(self.dataset), f"{self.seed} {epoch}")]
            choose = dice(self.seed, number, place)
            hidden.append(hide(self.sequences.draw(sample, choose), self.mask_id, choose))
        return stacked(hidden, self.at_once)


def stacked(hidden: Iterable[HiddenBatch], at_once: int) -> list[HiddenBatch]:
    """Batches of one as batches of up to `at_once` sequences of one length and kind, in the order of the first of
    each."""
    alike: dict[tuple, list[HiddenBatch]] = {}
    for one in hidden:
        rows = None if one.vocab is None else (one.vocab.start, one.vocab.stop)
        alike.setdefault((one.ids.shape[1], rows), []).append(one)
    groups = (group[start : start + at_once] for group in alike.values() for start in range(0, len(group), at_once))
    return [HiddenBatch.stack(group) for group in groups]


@dataclass(frozen=True)
class HeldBack:
    """Samples that are not taught, to see what was learnt and not memorised. The loss is taken of whole prompts, with
    fixed shares of the answers hidden and fixed seeds: that of training says more about the share that was drawn than
    about the model. Of more than `MOST_CHECKED` it is taken of so many, spread evenly over all."""

    dataset: Dataset
    sequences: Sequences
    mask_id: int
    at_once: int = 1

    @property
    def checked(self) -> list[int]:
        """The numbers of the samples whose loss is taken."""
        held = len(self.dataset)
        count = min(held, MOST_CHECKED)
        return [number * held // count for number in range(count)]

    def notes(self) -> list[str]:
        """What to tell of it: where only some are checked, how many."""
        held, checked = len(self.dataset), len(self.checked)
        return [f"{checked} of the {held} samples that are held back are checked"] if checked < held else []

    @cached_property
    def batches(self) -> list[HiddenBatch]:
        """All of it, the same at every call."""
        whole = Sequences(
            self.sequences.tokenizer, self.sequences.table, layout=replace(self.sequences.layout, unconditional=0.0)
        )
        hidden = []
        for index in self.checked:
            for number, share in enumerate(HELD_BACK_SHARES):
                choose = dice(0, number, index)
                hidden.append(hide(whole.draw(self.dataset[index], choose), self.mask_id, choose, share=share))
        return stacked(hidden, self.at_once)

    @torch.no_grad()
    def loss(self, network: Network, engine: Engine) -> float:
        """The mean loss over its hidden tokens."""
        total = torch.zeros((), dtype=torch.float64)
        for batch in self.batches:
            with engine.computing():
                total += loss_sum(network, batch.to(engine.device)).cpu().double()
        return float(total / sum(batch.count for batch in self.batches))
