"""A mixture of tasks over captioned pictures: what a fine-tune of any checkpoint trains on.

Text to image, filling a rectangle, and describing, all from the same (codes, caption) pairs. Batches hold pictures of
one size whose prompts are equally long, since the model has no padding.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sequence.prompt import DESCRIBE, DESCRIBE_QUESTION, GENERATE, Prompt
from .examples import Examples, draw_condition
from .objective import Batch


@dataclass(frozen=True)
class Shares:
    """Sequences of each task in a step, and the share of image batches that learn without the prompt."""

    generate: int = 8
    inpaint: int = 2
    describe: int = 2
    unconditional: float = 0.1


def random_rectangle(choose: random.Random, height: int, width: int) -> Tensor:
    """A bool mask [H,W], true in a rectangle of at least one cell."""
    rows, columns = (sorted(choose.sample(range(side + 1), 2)) for side in (height, width))
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[rows[0] : rows[1], columns[0] : columns[1]] = True
    return hole


class CaptionedPictures:
    """Draws the batches of one step from grids [H,W] and captions by name.

    Raises ValueError where a grid holds codes that the checkpoint does not have.
    """

    def __init__(
        self,
        examples: Examples,
        codes: Mapping[str, Tensor],
        captions: Mapping[str, str],
        *,
        question: str = DESCRIBE_QUESTION,
        shares: Shares | None = None,
    ):
        self.examples, self.codes, self.captions, self.question = examples, codes, captions, question
        self.shares = shares or Shares()
        self._alike: dict[tuple, list[str]] = defaultdict(list)
        known = examples.table.codebook_size
        for name, grid in codes.items():
            if int(grid.max()) >= known or int(grid.min()) < 0:
                raise ValueError(
                    f"The picture {name} has codes up to {int(grid.max())}, but the checkpoint knows {known}; encode "
                    "the pictures with the VQ of this checkpoint."
                )
            alike = (*grid.shape, len(examples.words(captions[name])))
            self._alike[alike].append(name)
        self._groups = list(self._alike.values())
        self._sizes = [len(group) for group in self._groups]

    def draw(self, choose: random.Random) -> list[Batch]:
        """One step's batches; every picture is equally likely."""
        batches = [self._images(choose, self.shares.generate, holes=False)]
        if self.shares.inpaint:
            batches.append(self._images(choose, self.shares.inpaint, holes=True))
        if self.shares.describe:
            batches.append(self._texts(choose, self.shares.describe))
        return batches

    def _names(self, choose: random.Random, count: int) -> list[str]:
        group = choose.choices(self._groups, self._sizes)[0]
        return choose.choices(group, k=count)

    def _images(self, choose: random.Random, count: int, *, holes: bool) -> Batch:
        names = self._names(choose, count)
        codes = torch.stack([self.codes[name] for name in names])
        prompts = [Prompt(GENERATE, self.captions[name]) for name in names]
        condition = draw_condition(choose, self.shares.unconditional, images=False)
        masks = torch.stack([random_rectangle(choose, *codes.shape[1:]) for _ in names]) if holes else None
        return self.examples.images(prompts, codes, condition=condition, maskable=masks)

    def _texts(self, choose: random.Random, count: int) -> Batch:
        names = self._names(choose, count)
        prompts = [Prompt(DESCRIBE, self.question, images=(self.codes[name][None],)) for name in names]
        answers = [self.captions[name] for name in names]
        words = len(self.examples.words(answers[0]))  # as many as in any other of the group
        return self.examples.texts(prompts, answers, length=words + 1 + choose.randrange(32))
