"""The questions that DiMOO-nano is examined with: seeded cases of every task, each with the words that must come true.

Full captions say everything; they fix every token, so even a broken sampler passes them. Open captions leave a part
unsaid, so the sampler must make one choice out of many. Pictures that are shown to the model go through the VQ, as a
user's do.

Shapes: H W cells (16 px each), pictures [3, H*16, W*16] in 0..1.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..evaluation.runner import Case
from ..jobs import text_prompt
from ..sequence.canvas import Canvas
from ..sequence.prompt import DESCRIBE, Prompt, edit_task
from .judge import open_patterns
from .lessons import edges_only, taught_edits, taught_scenes
from .scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Scene,
    SceneEdit,
    box,
    caption,
    draw,
    draw_edges,
    every_scene,
    held_out,
)
from .words import QUESTIONS

KINDS = ("recolour", "replace", "remove", "add", "background")


@dataclass(frozen=True, eq=False)
class NanoCase(Case):
    """A case of nano's world. edges: the picture that is asked for is an edge map."""

    edges: bool = False


class Examiner:
    """Asks about pictures of H x W cells. Every method makes one case; `number` counts the cases of a row, so that
    kinds of cases take turns. The same seed and the same order of calls ask the same."""

    def __init__(self, encode: Callable[[Tensor], Tensor], height: int, width: int, *, seed: int = 0):
        """encode: pictures [1,3,H*16,W*16] -> codes [1,H,W]"""
        self._encode, self._height, self._width = encode, height, width
        self._choose = random.Random(seed)

    # ------------------------------------------------------------------------------------------- words to picture

    def full(self, number: int) -> NanoCase:
        """A caption that says everything, of a scene that training saw."""
        return self._words_to_picture(caption(self._scene()))

    def held_out(self, number: int) -> NanoCase:
        """A full caption with a colour, shape and background that training never saw together."""
        return self._words_to_picture(caption(self._held_out_scene()))

    def open(self, number: int) -> NanoCase:
        """A caption that leaves something unsaid: the 15 ways to do so take turns."""
        patterns = open_patterns()[1:]
        pattern = patterns[number % len(patterns)]
        return self._words_to_picture(caption(self._scene(), pattern), part=f"{len(pattern)} of 4 left open")

    def bare(self, number: int) -> NanoCase:
        """The same words every time, and few: all but the shape is left open."""
        return self._words_to_picture("a circle")

    def mistaken(self, number: int) -> NanoCase:
        """A control that must fail: a full caption, and another one to judge by."""
        case, other = self.full(number), self._scene()
        while caption(other) == case.asked:
            other = self._scene()
        return replace(case, asked=caption(other))

    def hole(self, number: int) -> NanoCase:
        """A hole over the shape, to be filled with another shape or colour; every other hole is a cell wider."""
        shown = self._scene()
        fitting = [replace(shown, shape=shape, colour=colour) for shape in SHAPES for colour in COLOURS]
        asked = self._choose.choice([scene for scene in fitting if scene != shown and not held_out(scene)])
        wider = number % 2
        top, left, side = self._box(shown)
        cells = torch.zeros(1, self._height, self._width, dtype=torch.bool)
        cells[:, max(top - wider, 0) : top + side + wider, max(left - wider, 0) : left + side + wider] = True
        return NanoCase(
            text_prompt(caption(asked)),
            caption(asked),
            Canvas.from_codes(self._codes(shown), cells),
            part="hole a cell wider than the box" if wider else "hole as large as the box",
            original=draw(shown, self._height, self._width),
        )

    # ----------------------------------------------------------------------------------------- picture to picture

    def edit(self, number: int) -> NanoCase:
        """An edit of a picture, outcome not held out; the kinds take turns."""
        kind = KINDS[number % len(KINDS)]
        possible: tuple[SceneEdit, ...] = ()
        while not possible:
            shown = Scene(self._choose.choice(list(BACKGROUNDS))) if kind == "add" else self._scene()
            possible = taught_edits(shown, kind)
        edit = self._choose.choice(possible)
        prompt = Prompt(edit_task(edit.edit_type), edit.instruction, images=(self._codes(shown),))
        return NanoCase(prompt, caption(edit.result), self._blank(), part=kind)

    def edge_map(self, number: int) -> NanoCase:
        """The edge map of a picture."""
        shown = self._scene()
        prompt = Prompt(edit_task("canny_pred"), images=(self._codes(shown),))
        return NanoCase(prompt, caption(edges_only(shown)), self._blank(), edges=True)

    def from_edges(self, number: int) -> NanoCase:
        """An edge map and words to a picture; every other time size and place are left to the edge map."""
        scene, unsaid = self._scene(), ("size", "place") if number % 2 else ()
        prompt = Prompt(edit_task("canny_control"), caption(scene, unsaid), images=(self._codes(scene, edges=True),))
        part = "size and place left to the map" if unsaid else "full captions"
        return NanoCase(prompt, caption(scene), self._blank(), part=part)

    # ------------------------------------------------------------------------------------------- picture to words

    def describe(self, number: int) -> NanoCase:
        """A picture that training saw, and one of the questions: they take turns."""
        return self._picture_to_words(self._scene(), number)

    def describe_held_out(self, number: int) -> NanoCase:
        """A picture with a colour, shape and background that training never saw together."""
        return self._picture_to_words(self._held_out_scene(), number)

    # -------------------------------------------------------------------------------------------------- the parts

    def _scene(self) -> Scene:
        return self._choose.choice(taught_scenes())

    def _held_out_scene(self) -> Scene:
        return self._choose.choice([scene for scene in every_scene() if held_out(scene)])

    def _codes(self, scene: Scene, *, edges: bool = False) -> Tensor:
        return self._encode((draw_edges if edges else draw)(scene, self._height, self._width)[None])

    def _box(self, scene: Scene) -> tuple[int, int, int]:
        """Top row, left column and side, in cells, of the box around a scene's shape."""
        figure = scene.figure
        assert figure is not None, "scenes of the examiner have a shape"
        return box(figure.size, figure.place, self._height, self._width)

    def _blank(self) -> Canvas:
        return Canvas.empty(1, self._height, self._width)

    def _words_to_picture(self, words: str, part: str = "") -> NanoCase:
        return NanoCase(text_prompt(words), words, self._blank(), part=part)

    def _picture_to_words(self, scene: Scene, number: int) -> NanoCase:
        question = QUESTIONS[number % len(QUESTIONS)]
        return NanoCase(Prompt(DESCRIBE, question, images=(self._codes(scene),)), caption(scene))
