"""What is taught: samples, and collections of them.

Shapes: H, W cells of an answer; h, w cells of an image in a prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from ..checks import number_in
from ..sequence.prompt import EDITS, Prompt

MOST_HELD = 0.5  # of the pictures at most are held back
INSTRUCTION = EDITS["edit_replace"]  # what an edit without a type of its own is: the edit_* types share a system prompt


@dataclass(frozen=True, eq=False)
class Sample:
    """A prompt and the answer that the model should give to it.

    prompt: its images are codes [1,h,w]. answer: codes [H,W] int64 of a picture, or the words of a text. weights: fp32
    [H,W], how much the loss of each cell counts; None: alike. name: what messages call it, the same for all samples of
    one picture.
    """

    prompt: Prompt
    answer: Tensor | str
    weights: Tensor | None = None
    name: str = ""


class Dataset(Protocol):
    """Samples by number, 0 to length - 1; the same number always gives the same sample. A list of samples is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@runtime_checkable
class HasNames(Protocol):
    """A dataset that knows what its samples are called, in order, without making each of them."""

    def names(self) -> Iterator[str]: ...


@dataclass(frozen=True, eq=False)
class Subset:
    """Some samples of a dataset, by an array of their numbers."""

    dataset: Dataset
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        return self.dataset[int(self.indices[index])]


def edit_prompt(instruction: str, images: tuple[Tensor, ...]) -> Prompt:
    """The prompt of an edit of images, codes [1,h,w] each, that has no type of its own. Several images are shown one
    after another."""
    return Prompt(replace(INSTRUCTION, images=len(images)), instruction, images=images)


def split(dataset: Dataset, share: float, seed: int) -> tuple[Subset, Subset]:
    """The samples to learn from, and a `share` (0 to 0.5) of the pictures that is held back: none where it is 0, else
    at least one.

    Samples of one name, such as repeats of a picture and questions about it, stay together. Which are held back depends
    on their names and the seed alone: a picture more or less moves at most one other. Eight bytes a sample are
    held. Raises ValueError where there are fewer than two pictures.
    """
    number_in("The share that is held back", share, 0, MOST_HELD)
    if not share:
        return Subset(dataset, np.arange(len(dataset))), Subset(dataset, np.arange(0))
    names = dataset.names() if isinstance(dataset, HasNames) else (dataset[index].name for index in range(len(dataset)))
    lots = np.fromiter((_lot(name, seed) for name in names), np.uint64, len(dataset))
    drawn = np.unique(lots)
    if len(drawn) < 2:
        raise ValueError("A share is to be held back, and there is a single picture; add pictures, or hold back none.")
    back = lots <= drawn[max(1, round(share * len(drawn))) - 1]
    return Subset(dataset, np.flatnonzero(~back)), Subset(dataset, np.flatnonzero(back))


def _lot(name: str, seed: int) -> int:
    """A number of 64 bits that all samples of one name draw."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()[:8], "big")
