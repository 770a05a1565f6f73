"""The questions that DiMOO-nano is examined with: seeded cases of every task, each with the words that must come true.

Full captions say everything; they fix every token, so even a broken sampler passes them. Open captions leave a part
unsaid, so the sampler must make one choice out of many. Six kinds of them are those of GenEval (arXiv 2310.11513): a
single object, two objects, counting, colours, position, attribute binding. Pictures that are shown to the model go
through the VQ, as a user's do.

Shapes: H W cells (16 px each), pictures [3, H*16, W*16] in 0..1.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from ..evaluation.runner import Case
from ..jobs import text_prompt
from ..sequence.canvas import Canvas
from ..sequence.prompt import DESCRIBE, Prompt, edit_task
from .captions import NUMBERS, RELATIONS, Caption, Look, caption, parse_caption
from .edits import KINDS, SceneEdit
from .judge import open_patterns
from .lessons import edges_only, taught_edits, taught_scenes
from .questions import KINDS as QUESTION_KINDS
from .questions import Question, ask
from .scenes import (
    BACKGROUNDS,
    COLOURS,
    MOST_FIGURES,
    SHAPES,
    Figure,
    Scene,
    box,
    draw,
    draw_edges,
    every_scene,
    held_out,
    held_out_pairs,
    random_scene,
)
from .words import QUESTIONS

GENEVAL = ("single", "two_objects", "counting", "colours", "position", "binding")  # methods of the examiner


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

    def full_pairs(self, number: int) -> NanoCase:
        """A full caption of two or three figures that training saw together."""
        return self._words_to_picture(caption(self._several(number)), part=_how_many(number))

    def held_out_pairs(self, number: int) -> NanoCase:
        """A full caption of two or three figures, two of which training never saw together."""
        return self._words_to_picture(caption(self._held_out_together(number)), part=_how_many(number))

    # ------------------------------------------------------------------------------------ GenEval's kinds of captions

    def single(self, number: int) -> NanoCase:
        """One figure: "a circle"."""
        return self._said(Caption((Look(self._choose.choice(SHAPES)),)))

    def single_held_out(self, number: int) -> NanoCase:
        """One figure with a size, colour and background; the last two were never seen together on such a shape."""
        return self._said(Caption.of(self._held_out_scene(), ("place",)))

    def colours(self, number: int) -> NanoCase:
        """A figure with a colour: "a red circle"."""
        return self._said(Caption((Look(self._choose.choice(SHAPES), self._choose.choice(list(COLOURS))),)))

    def colours_held_out(self, number: int) -> NanoCase:
        """A figure with a colour and a background that training never saw together."""
        return self._said(Caption.of(self._held_out_scene(), ("size", "place")))

    def two_objects(self, number: int) -> NanoCase:
        """Two figures of different shapes: "a circle and a square"."""
        return self._said(Caption(self._two(coloured=False)))

    def two_objects_held_out(self, number: int) -> NanoCase:
        """Two figures of different shapes and colours on a background, one of which training never saw on it."""
        unseen = Caption.of(self._held_out_scene(), ("size", "place"))
        two = self._two(coloured=True)
        while not any(look in unseen.looks for look in two):
            two = self._two(coloured=True)
        return self._said(replace(unseen, looks=two))

    def counting(self, number: int) -> NanoCase:
        """Two or three of one shape, every other time of one colour as well: "two red circles", "three stars"."""
        count, coloured = 2 + number % 2, number // 2 % 2
        looks = [(shape, colour) for shape in SHAPES for colour in COLOURS]
        shape, colour = self._choose.choice([look for look in looks if (look, look) not in held_out_pairs()])
        part = f"{_how_many(number)}, colour {'said' if coloured else 'left open'}"
        return self._said(Caption((Look(shape, colour if coloured else None),), count=count), part=part)

    def counting_held_out(self, number: int) -> NanoCase:
        """Two or three of one shape and colour that training never saw together."""
        looks = sorted(one for one, other in held_out_pairs() if one == other)
        return self._said(Caption((Look(*self._choose.choice(looks)),), count=2 + number % 2), part=_how_many(number))

    def position(self, number: int) -> NanoCase:
        """Where a shape stands to another: "a circle left of a square"; the relations take turns."""
        return self._related(number, self._two(coloured=False))

    def position_held_out(self, number: int) -> NanoCase:
        """The same of two figures with colours that training never saw together."""
        return self._related(number, self._two(coloured=True, held=True))

    def binding(self, number: int) -> NanoCase:
        """Which colour belongs to which shape: "a red circle and a blue square"."""
        return self._said(Caption(self._two(coloured=True)))

    def binding_held_out(self, number: int) -> NanoCase:
        """The same of two figures that training never saw together."""
        return self._said(Caption(self._two(coloured=True, held=True)))

    def mistaken_kinds(self, number: int) -> NanoCase:
        """A control that must fail: the six kinds take turns, each judged by another caption, see `mistaken`."""
        name = GENEVAL[number % len(GENEVAL)]
        case = getattr(self, name)(number // len(GENEVAL))
        said = parse_caption(case.asked)
        assert said is not None, "the examiner asks in captions"
        return replace(case, asked=mistaken(said).words, part=name.replace("_", " "))

    # ---------------------------------------------------------------------------------------------------- inpainting

    def hole(self, number: int) -> NanoCase:
        """A hole over the shape, to be filled with another shape or colour; every other hole is a cell wider."""
        shown = self._scene()
        looks = [replace(self._figure(shown), shape=shape, colour=colour) for shape in SHAPES for colour in COLOURS]
        fitting = [Scene(shown.background, (look,)) for look in looks]
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
        possible: list[SceneEdit] = []
        while not possible:
            shown = Scene(self._choose.choice(list(BACKGROUNDS))) if kind == "add" else self._scene()
            possible = taught_edits(shown, kind)
        return self._edited(shown, self._choose.choice(possible))

    def edit_pairs(self, number: int) -> NanoCase:
        """An edit of a picture of two figures, or one that adds the second; the kinds take turns."""
        kind = KINDS[number % len(KINDS)]
        possible: list[SceneEdit] = []
        while not possible:
            shown = random_scene(self._choose, 1 if kind == "add" else 2)
            possible = taught_edits(shown, kind)
        return self._edited(shown, self._choose.choice(possible))

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

    def describe_pairs(self, number: int) -> NanoCase:
        """A picture of two or three figures that training saw together."""
        return self._picture_to_words(self._several(number), number, part=_how_many(number))

    def describe_pairs_held_out(self, number: int) -> NanoCase:
        """A picture of two or three figures, two of which training never saw together."""
        return self._picture_to_words(self._held_out_together(number), number, part=_how_many(number))

    def question(self, number: int) -> NanoCase:
        """A question about a picture of one to three figures that has a short answer; the kinds take turns."""
        asked: Question | None = None
        kind = QUESTION_KINDS[number % len(QUESTION_KINDS)]
        while asked is None:
            scene = self._any_number()
            asked = ask(kind, scene, self._choose)
        return NanoCase(Prompt(DESCRIBE, asked.words, images=(self._codes(scene),)), asked.answer, part=kind)

    def mistaken_question(self, number: int) -> NanoCase:
        """A control that must fail: the same, and another picture."""
        case = self.question(number)
        return replace(case, prompt=replace(case.prompt, images=(self._codes(self._any_number()),)))

    # -------------------------------------------------------------------------------------------------- the parts

    def _scene(self) -> Scene:
        return self._choose.choice(taught_scenes())

    def _held_out_scene(self) -> Scene:
        return self._choose.choice([scene for scene in every_scene() if held_out(scene)])

    def _several(self, number: int) -> Scene:
        return random_scene(self._choose, 2 + number % 2)

    def _any_number(self) -> Scene:
        return random_scene(self._choose, self._choose.randint(1, MOST_FIGURES))

    def _held_out_together(self, number: int) -> Scene:
        while True:
            scene = random_scene(self._choose, 2 + number % 2, held=True)
            looks = [(figure.shape, figure.colour) for figure in scene.figures]
            if any(pair in held_out_pairs() for pair in combinations(looks, 2)):
                return scene

    def _two(self, *, coloured: bool, held: bool = False) -> tuple[Look, Look]:
        """Two figures of different shapes and colours that training saw together, or never did."""
        while True:
            shapes, colours = self._choose.sample(SHAPES, 2), self._choose.sample(list(COLOURS), 2)
            one, two = zip(shapes, colours, strict=True)
            if ((one, two) in held_out_pairs()) == held:
                return (Look(*one), Look(*two)) if coloured else (Look(one[0]), Look(two[0]))

    def _related(self, number: int, looks: tuple[Look, Look]) -> NanoCase:
        relation = RELATIONS[number % len(RELATIONS)]
        return self._said(Caption(looks, relation=relation), part=relation)

    def _edited(self, shown: Scene, edit: SceneEdit) -> NanoCase:
        prompt = Prompt(edit_task(edit.edit_type), edit.instruction, images=(self._codes(shown),))
        return NanoCase(prompt, caption(edit.result), self._blank(), part=edit.kind)

    def _codes(self, scene: Scene, *, edges: bool = False) -> Tensor:
        return self._encode((draw_edges if edges else draw)(scene, self._height, self._width)[None])

    def _box(self, scene: Scene) -> tuple[int, int, int]:
        """Top row, left column and side, in cells, of the box around a scene's shape."""
        figure = self._figure(scene)
        return box(figure.size, figure.place, self._height, self._width)

    @staticmethod
    def _figure(scene: Scene) -> Figure:
        assert scene.figure is not None, "the scene has a shape"
        return scene.figure

    def _blank(self) -> Canvas:
        return Canvas.empty(1, self._height, self._width)

    def _said(self, said: Caption, part: str = "") -> NanoCase:
        return self._words_to_picture(said.words, part)

    def _words_to_picture(self, words: str, part: str = "") -> NanoCase:
        return NanoCase(text_prompt(words), words, self._blank(), part=part)

    def _picture_to_words(self, scene: Scene, number: int, part: str = "") -> NanoCase:
        question, answer = QUESTIONS[number % len(QUESTIONS)], caption(scene).replace(",", "")  # nano knows no commas
        return NanoCase(Prompt(DESCRIBE, question, images=(self._codes(scene),)), answer, part=part)


def mistaken(said: Caption) -> Caption:
    """A caption of one of the six kinds that no scene fits which `said` fits: one figure more or fewer, the relation
    reversed, the colours exchanged, another colour, or another shape."""
    *others, last = said.looks
    if said.count is not None:
        return replace(said, count=5 - said.count)  # two for three
    if said.relation is not None:
        return replace(said, relation=RELATIONS[RELATIONS.index(said.relation) ^ 1])
    if others and last.colour:
        colours = (last.colour, others[0].colour)
        looks = tuple(replace(look, colour=colour) for look, colour in zip(said.looks, colours, strict=True))
        return replace(said, looks=looks)
    if last.colour:
        return replace(said, looks=(replace(last, colour=_next(list(COLOURS), last.colour)),))
    shape = _next([shape for shape in SHAPES if all(shape != look.shape for look in others)], last.shape)
    return replace(said, looks=(*others, replace(last, shape=shape)))


def _next(values: Sequence[str], value: str) -> str:
    return values[(values.index(value) + 1) % len(values)]


def _how_many(number: int) -> str:
    """The kind of a case whose scenes have two and three figures in turn."""
    return NUMBERS[2 + number % 2]
