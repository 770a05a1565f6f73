"""What DiMOO-nano learns from: the batches of one training step, over all its tasks.

Every batch holds one task, one picture format and one pattern of words, so that all its sequences are equally long.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from ..sequence.prompt import DESCRIBE, GENERATE, Prompt, edit_task
from ..sequence.token_table import TokenTable
from ..sequence.tokenizer import TextTokenizer
from ..training.examples import Condition, Examples, draw_condition, rarity
from ..training.objective import Batch
from .recipe import cells, edge_scenes
from .scenes import FORMATS, OPEN, Scene, SceneEdit, caption, coverage, every_edit, every_scene, held_out
from .words import QUESTIONS

UNCONDITIONAL = 0.1  # share of batches that learn without the prompt, for guidance
_ANSWER_LENGTHS = {16: 0.4, 32: 0.4, 64: 0.12, 128: 0.08}
_EDIT_KINDS = {"remove": 0.1, "recolour": 0.2, "replace": 0.2, "background": 0.2, "add": 0.3}

# (choose, scene, H, W) -> the cells bool [H,W] that may be hidden, and whether all of them are or a share
Hide = Callable[[random.Random, Scene, int, int], tuple[Tensor, bool]]
# codes [H,W] of every picture of the world, by (scene, edge map?, H, W)
Codes = Mapping[tuple[Scene, bool, int, int], Tensor]


def random_rectangle(choose: random.Random, height: int, width: int) -> Tensor:
    """A bool mask [H,W], true in a rectangle of at least one cell."""
    rows, columns = (sorted(choose.sample(range(side + 1), 2)) for side in (height, width))
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[rows[0] : rows[1], columns[0] : columns[1]] = True
    return hole


@cache
def taught_scenes() -> tuple[Scene, ...]:
    """All scenes with a shape that are not held out."""
    return tuple(scene for scene in every_scene() if scene.shape and not held_out(scene))


@cache
def taught_edits(scene: Scene, kind: str) -> tuple[SceneEdit, ...]:
    """The edits of one kind whose outcome is not held out."""
    return tuple(edit for edit in every_edit(scene) if edit.kind == kind and not held_out(edit.result))


class Lessons:
    """Draws the batches of one training step."""

    def __init__(self, tokenizer: TextTokenizer, table: TokenTable, codes: Codes):
        self.examples, self.codes = Examples(tokenizer, table), codes

    def draw(self, choose: random.Random) -> list[Batch]:
        """One step: each task's share, in batches of equally long sequences."""
        return [
            self.pictures(choose, 8, ()),
            self.pictures(choose, 16, self._pattern(choose)),
            self.pictures(choose, 16, self._pattern(choose)),
            self.holes(choose, 6),
            self.edits(choose, 6),
            self.edits(choose, 6),
            self.edge_maps(choose, 4),
            self.from_edges(choose, 3),
            self.descriptions(choose, 6),
        ]

    # ------------------------------------------------------------------------------------------------ the tasks

    def pictures(self, choose: random.Random, size: int, leave_open: tuple[str, ...]) -> Batch:
        """Text to image, with a part of the words left out."""
        blank = not leave_open and choose.random() < 0.08
        scenes = [self._empty(choose) if blank else choose.choice(taught_scenes()) for _ in range(size)]
        prompts = [Prompt(GENERATE, caption(scene, leave_open)) for scene in scenes]
        targets = [(scene, False) for scene in scenes]
        return self._images(choose, prompts, targets, decided=not leave_open, hide=shape_unseen if leave_open else None)

    def holes(self, choose: random.Random, size: int) -> Batch:
        """Inpainting: a rectangle of a picture is to be filled and the rest is known, or the other way round."""
        leave_open = choose.choice(((), self._pattern(choose)))
        scenes = [choose.choice(taught_scenes()) for _ in range(size)]
        prompts = [Prompt(GENERATE, caption(scene, leave_open)) for scene in scenes]
        targets = [(scene, False) for scene in scenes]
        return self._images(choose, prompts, targets, decided=not leave_open, hide=hole)

    def edits(self, choose: random.Random, size: int) -> Batch:
        """One kind of edit of several pictures."""
        kind = choose.choices(list(_EDIT_KINDS), list(_EDIT_KINDS.values()))[0]
        of_empty = kind == "add" or (kind == "background" and choose.random() < 0.05)
        height, width = self._format(choose)
        prompts: list[Prompt] = []
        targets: list[tuple[Scene, bool]] = []
        while len(prompts) < size:
            scene = self._empty(choose) if of_empty else choose.choice(taught_scenes())
            possible = taught_edits(scene, kind)
            if possible:
                edit = choose.choice(possible)
                source = self.codes[scene, False, height, width][None]
                prompts.append(Prompt(edit_task(edit.edit_type), edit.instruction, images=(source,)))
                targets.append((edit.result, False))
        return self._images(choose, prompts, targets, form=(height, width))

    def edge_maps(self, choose: random.Random, size: int) -> Batch:
        """A picture's edge map."""
        height, width = self._format(choose)
        scenes = [choose.choice(taught_scenes()) for _ in range(size)]
        sources = [self.codes[scene, False, height, width][None] for scene in scenes]
        prompts = [Prompt(edit_task("canny_pred"), images=(source,)) for source in sources]
        targets = [(edges_only(scene), True) for scene in scenes]
        return self._images(choose, prompts, targets, form=(height, width))

    def from_edges(self, choose: random.Random, size: int) -> Batch:
        """A picture from an edge map and words; size and place may be left to the edge map."""
        leave_open = choose.choice(((), ("size", "place")))
        height, width = self._format(choose)
        scenes = [choose.choice(taught_scenes()) for _ in range(size)]
        sources = [self.codes[edges_only(scene), True, height, width][None] for scene in scenes]
        words = [caption(scene, leave_open) for scene in scenes]
        prompts = [Prompt(edit_task("canny_control"), w, images=(s,)) for w, s in zip(words, sources, strict=True)]
        return self._images(choose, prompts, [(scene, False) for scene in scenes], form=(height, width))

    def descriptions(self, choose: random.Random, size: int) -> Batch:
        """A picture and a question; the answer is the full caption, answer end, then end of text to the end."""
        height, width = self._format(choose)
        length = choose.choices(list(_ANSWER_LENGTHS), list(_ANSWER_LENGTHS.values()))[0]
        size = max(3, size * 32 // max(length, 32))
        blank = choose.random() < 0.04
        scenes = [self._empty(choose) if blank else choose.choice(taught_scenes()) for _ in range(size)]
        question = choose.choice(QUESTIONS)
        sources = [self.codes[scene, False, height, width][None] for scene in scenes]
        prompts = [Prompt(DESCRIBE, question, images=(source,)) for source in sources]
        return self.examples.texts(prompts, [caption(scene) for scene in scenes], length=length, share=2.0)

    # ------------------------------------------------------------------------------------------------ the parts

    @staticmethod
    def _empty(choose: random.Random) -> Scene:
        return choose.choice([scene for scene in every_scene() if not scene.shape])

    @staticmethod
    def _format(choose: random.Random) -> tuple[int, int]:
        return choose.choices(FORMATS, (0.67, 0.33))[0]

    @staticmethod
    def _pattern(choose: random.Random) -> tuple[str, ...]:
        return tuple(choose.sample(OPEN, choose.randint(1, len(OPEN))))

    def _images(
        self,
        choose: random.Random,
        prompts: list[Prompt],
        targets: list[tuple[Scene, bool]],
        *,
        form: tuple[int, int] | None = None,
        decided: bool = True,
        hide: Hide | None = None,
    ) -> Batch:
        # decided: the prompts leave one right answer; hide: see there (None: a share of all cells)
        height, width = form or self._format(choose)
        condition = draw_condition(choose, UNCONDITIONAL, images=bool(prompts[0].images))
        codes = torch.stack([self.codes[scene, edges, height, width] for scene, edges in targets])
        hidden = [hide(choose, scene, height, width) for scene, _ in targets] if hide else []
        return self.examples.images(
            prompts,
            codes,
            condition=condition,
            maskable=torch.stack([cells for cells, _ in hidden]) if hide else None,
            whole=torch.tensor([whole for _, whole in hidden]) if hide else None,
            weights=rarity(codes) if decided and condition == Condition() else None,
        )


def edges_only(scene: Scene) -> Scene:
    """The one of `edge_scenes` whose edge map is the scene's."""
    return _by_outline()[scene.shape, scene.size, scene.place]


@cache
def _by_outline() -> dict[tuple, Scene]:
    return {(scene.shape, scene.size, scene.place): scene for scene in edge_scenes()}


# ---------------------------------------------------------------------------------------------------- what is hidden


def hole(choose: random.Random, scene: Scene, height: int, width: int) -> tuple[Tensor, bool]:
    """A `Hide` for inpainting, whatever the scene: a rectangle, or one time in four all but a rectangle."""
    inside = random_rectangle(choose, height, width)
    return ~inside if choose.random() < 0.25 and not inside.all() else inside, False


def shape_unseen(choose: random.Random, scene: Scene, height: int, width: int) -> tuple[Tensor, bool]:
    """A `Hide` for open words: all of the shape and a share of the background, or two times in five any cells.

    Sampling decides the most certain cells first, and these are plain background: most known cells of a half-made
    picture are background, and the shape must go where nothing is yet. Cells hidden at random hardly ever look like
    that, least of all with a large shape; a model that learns from these alone continues the background until there is
    no room left for the shape.
    """
    if choose.random() < 0.4:
        return torch.ones(height, width, dtype=torch.bool), False
    bare = _bare_cells(scene.shape, scene.size, scene.place, height, width).flatten().nonzero().flatten().tolist()
    share = math.cos(math.pi / 2 * choose.random())
    hidden = torch.ones(height * width, dtype=torch.bool)
    hidden[choose.sample(bare, round(len(bare) * (1 - share)))] = False
    return hidden.view(height, width), True


@cache
def _bare_cells(shape: str, size: str, place: str, height: int, width: int) -> Tensor:
    """Cells [H,W] that such a shape leaves plain, whatever the colours."""
    alpha = coverage(Scene("white", shape, "red", size, place), height, width)
    return (cells(alpha[None]).amax(dim=1) == 0).view(height, width)
