"""What DiMOO-nano learns from: the batches of one training step, over all its tasks.

Every batch holds one task, one picture format and one pattern of words, so that all its sequences are equally long.

The order matters. Which words belong to which place is learnt first, from full captions: at first of the five places
that a single word tells apart and in one format, then of all nine and in both. Mixed with everything else from the
start, this takes very long to learn; once it is known, the rest builds on it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from typing import TypeVar

import torch
from torch import Tensor

from ..sequence.prompt import DESCRIBE, GENERATE, Prompt, edit_task
from ..sequence.token_table import TokenTable
from ..sequence.tokenizer import TextTokenizer
from ..training.examples import WHOLE_PROMPT, Examples, draw_condition, rarity
from ..training.loop import Batches
from ..training.objective import Batch, HiddenBatch
from .captions import OPEN, RELATIONS, Caption, Look, caption, stands
from .edits import SceneEdit, every_edit
from .questions import KINDS as QUESTION_KINDS
from .questions import Question, ask
from .recipe import figures_of, labels_of
from .scenes import (
    BACKGROUNDS,
    BOXES,
    COLOURS,
    CORNERS,
    FORMATS,
    PLACES,
    SHAPES,
    Figure,
    Scene,
    every_scene,
    held_out,
    random_scene,
)
from .words import QUESTIONS

UNCONDITIONAL = 0.08  # share of batches that learn without the prompt, for guidance
ANSWER = 32  # tokens of an answer where nothing else is said
_ANSWER_LENGTHS = {16: 0.4, 32: 0.4, 64: 0.12, 128: 0.08}
_EDIT_KINDS = {"remove": 0.15, "recolour": 0.2, "replace": 0.2, "background": 0.2, "add": 0.25}
_SAID = {"colour": 0.6, "place": 0.25, "background": 0.5}  # of several shapes, where a caption leaves something open
_COLOUR_NAMES, _BACKGROUND_NAMES = tuple(COLOURS), tuple(BACKGROUNDS)

T = TypeVar("T")
Form = tuple[int, int]  # H, W in cells, one of FORMATS; where it may be None, one is drawn
# (choose, scene, H, W) -> the cells bool [H,W] that may be hidden, and whether all of them are or a share
Hide = Callable[[random.Random, Scene, int, int], tuple[Tensor, bool]]


@dataclass(frozen=True)
class Course:
    """Lessons one after the other. stages: for each, the step (from 0) before which it ends, and its batches."""

    stages: Sequence[tuple[int, Batches]]

    def step(self, number: int) -> Sequence[HiddenBatch]:
        """The batches of a step; past the end, those of the last stage."""
        stage = next((batches for until, batches in self.stages if number < until), self.stages[-1][1])
        return stage.step(number)


class Lessons:
    """Draws the batches of one training step."""

    def __init__(self, tokenizer: TextTokenizer, table: TokenTable):
        self.examples = Examples(tokenizer, table)

    def first_words(self, choose: random.Random) -> list[Batch]:
        """Full captions of one to three shapes, at the five places that one word tells apart, in the first format."""
        several = (self.several(choose, 10, count, places=PLACES, form=FORMATS[0]) for count in (2, 3))
        return [self.one(choose, 4, corners=False, form=FORMATS[0]), *several]

    def all_places(self, choose: random.Random) -> list[Batch]:
        """Full captions of one to three shapes, anywhere."""
        return [self.one(choose, 6), *(self.several(choose, 9, count) for count in (2, 3))]

    def half_of_everything(self, choose: random.Random) -> list[Batch]:
        """Half of the batches of `everything`, drawn anew each time: twice as many steps in the same time."""
        tasks = self._tasks(choose)
        return [task(choose, size) for task, size in choose.sample(tasks, len(tasks) // 2)]

    def everything(self, choose: random.Random) -> list[Batch]:
        """A batch of every task; some tasks have two."""
        return [task(choose, size) for task, size in self._tasks(choose)]

    def _tasks(self, choose: random.Random) -> list[tuple[Callable[[random.Random, int], Batch], int]]:
        return [
            (self.one, 6),
            (self.open, 8),
            (self.open, 8),
            (self.two_or_three, 8),
            (self.two_or_three, 8),
            (self.open_pair, 8),
            (self.counted, 6),
            (self.related, 6),
            (self.holes, 5),
            (self.edits, 6),
            (self.edits_of_pairs, 8),
            (self.edge_maps if choose.random() < 0.5 else self.from_edges, 4),
            (self.descriptions, 4),
            (self.descriptions_of_several, 6),
            (self.questions, 6),
            (self.questions, 6),
        ]

    # ------------------------------------------------------------------------------------------- words to picture

    def one(self, choose: random.Random, size: int, *, corners: bool = True, form: Form | None = None) -> Batch:
        """A full caption of one shape, sometimes of none."""
        if choose.random() < 0.06:
            scenes = [Scene(choose.choice(_BACKGROUND_NAMES)) for _ in range(size)]
        else:
            in_corner = corners and choose.random() < 0.25
            scenes = [single_scene(choose, in_corner) for _ in range(size)]
        return self._captioned(choose, [Caption.of(scene) for scene in scenes], scenes, form=form, decided=True)

    def open(self, choose: random.Random, size: int) -> Batch:
        """A caption of one shape with a part of the words left out."""
        pattern = _pattern(choose)
        scenes = [single_scene(choose) for _ in range(size)]
        return self._captioned(choose, [Caption.of(scene, pattern) for scene in scenes], scenes)

    def several(
        self,
        choose: random.Random,
        size: int,
        count: int,
        *,
        places: Sequence[str] = BOXES,
        form: Form | None = None,
    ) -> Batch:
        """A full caption of `count` shapes, named in any order."""
        return self._mentioned(choose, size, count, places, ("colour", "place", "background"), form=form)

    def two_or_three(self, choose: random.Random, size: int) -> Batch:
        """A caption of two or three shapes; half of them are full, others leave places and perhaps more open."""
        count = choose.choice((2, 3))
        if choose.random() < 0.5:
            return self.several(choose, size, count)
        said = [name for name, chance in _SAID.items() if choose.random() < chance]
        return self._mentioned(choose, size, count, BOXES, said)

    def open_pair(self, choose: random.Random, size: int) -> Batch:
        """Two different shapes anywhere; colours and background may be left open."""
        said = [name for name in ("colour", "background") if choose.random() < 0.5]
        return self._mentioned(choose, size, 2, BOXES, said, different=True)

    def counted(self, choose: random.Random, size: int) -> Batch:
        """Two or three of one shape; colour and background may be left open."""
        coloured, behind = choose.random() < 0.6, choose.random() < 0.5
        scenes, captions = [], []
        for _ in range(size):
            scene = _taught(lambda: _alike(choose, coloured))
            look = Look(scene.figures[0].shape, scene.figures[0].colour if coloured else None)
            scenes.append(scene)
            captions.append(Caption((look,), scene.background if behind else None, count=len(scene.figures)))
        return self._captioned(choose, captions, scenes)

    def related(self, choose: random.Random, size: int) -> Batch:
        """One shape beside, above or below another, in one row or column; colours and background may be left open."""
        relations = choose.choice((RELATIONS[:2], RELATIONS[2:]))  # as many words each
        coloured, behind = choose.random() < 0.5, choose.random() < 0.5
        scenes, captions = [], []
        for _ in range(size):
            relation = choose.choice(relations)
            figures, background = _in_relation(choose, relation)
            looks = tuple(Look(one.shape, one.colour if coloured else None) for one in figures)
            scenes.append(Scene(background, tuple(figures)))
            captions.append(Caption(looks, background if behind else None, relation=relation))
        return self._captioned(choose, captions, scenes)

    def holes(self, choose: random.Random, size: int) -> Batch:
        """Inpainting: a rectangle of a picture is to be filled and the rest is known, or the other way round."""
        leave_open = choose.choice(((), _pattern(choose)))
        scenes = [single_scene(choose) for _ in range(size)]
        captions = [Caption.of(scene, leave_open) for scene in scenes]
        return self._captioned(choose, captions, scenes, decided=not leave_open, hide=hole)

    # ----------------------------------------------------------------------------------------- picture to picture

    def edits(self, choose: random.Random, size: int) -> Batch:
        """One kind of edit of several pictures of one shape."""
        kind = _drawn(choose, _EDIT_KINDS)
        of_empty = kind == "add" or (kind == "background" and choose.random() < 0.05)

        def shown() -> Scene:
            return Scene(choose.choice(_BACKGROUND_NAMES)) if of_empty else single_scene(choose)

        return self._edits(choose, size, kind, shown)

    def edits_of_pairs(self, choose: random.Random, size: int) -> Batch:
        """One kind of edit of several pictures of two shapes; or of one, to which a second is added."""
        kind = _drawn(choose, _EDIT_KINDS)
        corner = choose.random() < 4 / 9  # the place that an addition names has so many words

        def shown() -> Scene:
            return random_scene(choose, 1 if kind == "add" else 2)

        def fits(edit: SceneEdit) -> bool:
            return kind != "add" or any(place in edit.instruction for place in CORNERS) == corner

        return self._edits(choose, size, kind, shown, fits)

    def edge_maps(self, choose: random.Random, size: int) -> Batch:
        """A picture's edge map."""
        height, width = _format(choose)
        scenes = [single_scene(choose) for _ in range(size)]
        sources = [labels_of(scene, height, width)[None] for scene in scenes]
        prompts = [Prompt(edit_task("canny_pred"), images=(source,)) for source in sources]
        outlines = [edges_only(scene) for scene in scenes]
        return self._images(choose, prompts, outlines, form=(height, width), edges=True)

    def from_edges(self, choose: random.Random, size: int) -> Batch:
        """A picture from an edge map and words; size and place may be left to the edge map."""
        leave_open = choose.choice(((), ("size", "place")))
        height, width = _format(choose)
        scenes = [single_scene(choose) for _ in range(size)]
        sources = [labels_of(edges_only(scene), height, width, edges=True)[None] for scene in scenes]
        words = [caption(scene, leave_open) for scene in scenes]
        prompts = [Prompt(edit_task("canny_control"), w, images=(s,)) for w, s in zip(words, sources, strict=True)]
        return self._images(choose, prompts, scenes, form=(height, width))

    # ------------------------------------------------------------------------------------------- picture to words

    def descriptions(self, choose: random.Random, size: int) -> Batch:
        """A picture of one shape, or of none, and a question; the answer is the full caption."""
        if choose.random() < 0.05:
            return self._descriptions(choose, [Scene(choose.choice(_BACKGROUND_NAMES)) for _ in range(size)])
        return self._descriptions(choose, [single_scene(choose, choose.random() < 0.15) for _ in range(size)])

    def descriptions_of_several(self, choose: random.Random, size: int) -> Batch:
        """A picture of two or three shapes and a question; the answer names them in reading order."""
        scenes = [random_scene(choose, choose.choice((2, 3))) for _ in range(size)]
        return self._descriptions(choose, scenes, at_least=ANSWER)

    def questions(self, choose: random.Random, size: int) -> Batch:
        """Questions of one kind about several pictures. Some batches have one-token answers, with one pad less than an
        answer has tokens, as the published checkpoint is asked."""
        kind = choose.choice(QUESTION_KINDS)
        asked: list[tuple[Question, Scene]] = []
        while len(asked) < size:
            scene = random_scene(choose, choose.choice((1, 2, 2, 2, 3, 3)))
            question = ask(kind, scene, choose)
            if question is not None and (not asked or _words(question) == _words(asked[0][0])):
                asked.append((question, scene))
        height, width = _format(choose)
        prompts = [
            Prompt(DESCRIBE, question.words, images=(labels_of(scene, height, width)[None],))
            for question, scene in asked
        ]
        answers = [question.answer for question, _ in asked]
        if all(" " not in answer for answer in answers) and choose.random() < 0.35:
            return self.examples.one_token(prompts, answers, pads=ANSWER - 1)
        return self.examples.texts(prompts, answers, length=choose.choice((16, ANSWER)))

    # -------------------------------------------------------------------------------------------------- the parts

    def _captioned(
        self,
        choose: random.Random,
        captions: Iterable[Caption],
        scenes: list[Scene],
        *,
        form: Form | None = None,
        decided: bool = False,
        hide: Hide | None = None,
    ) -> Batch:
        prompts = [Prompt(GENERATE, one.words) for one in captions]
        return self._images(choose, prompts, scenes, form=form, decided=decided, hide=hide or figures_unseen)

    def _mentioned(
        self,
        choose: random.Random,
        size: int,
        count: int,
        places: Sequence[str],
        said: Sequence[str],
        *,
        form: Form | None = None,
        different: bool = False,
    ) -> Batch:
        """Pictures of `count` small shapes, and captions that say the `said` parts of each, in any order. Places in
        corners take a word more, so the captions of a batch name one in the same turns."""
        in_corner = [place in CORNERS for place in choose.sample(places, count)] if "place" in said else None
        parts = [name for name in ("colour", "place") if name in said]
        scenes, captions = [], []
        for _ in range(size):
            figures, background = _figures(choose, count, places, in_corner, different)
            looks = tuple(Look(one.shape, **{name: getattr(one, name) for name in parts}) for one in figures)
            scenes.append(Scene(background, tuple(figures)))
            captions.append(Caption(looks, background if "background" in said else None))
        decided = {"colour", "place", "background"} <= {*said}
        return self._captioned(choose, captions, scenes, form=form, decided=decided)

    def _edits(
        self,
        choose: random.Random,
        size: int,
        kind: str,
        shown: Callable[[], Scene],
        fits: Callable[[SceneEdit], bool] = lambda edit: True,
    ) -> Batch:
        height, width = _format(choose)
        prompts: list[Prompt] = []
        results: list[Scene] = []
        while len(prompts) < size:
            scene = shown()
            possible = [edit for edit in taught_edits(scene, kind) if fits(edit)]
            if possible:
                edit = choose.choice(possible)
                source = labels_of(scene, height, width)[None]
                prompts.append(Prompt(edit_task(edit.edit_type), edit.instruction, images=(source,)))
                results.append(edit.result)
        return self._images(choose, prompts, results, form=(height, width), hide=figures_unseen)

    def _descriptions(self, choose: random.Random, scenes: list[Scene], at_least: int = 0) -> Batch:
        height, width = _format(choose)
        lengths = {length: weight for length, weight in _ANSWER_LENGTHS.items() if length >= at_least}
        length = _drawn(choose, lengths)
        scenes = scenes[: max(3, len(scenes) * ANSWER // max(length, ANSWER))]
        question = choose.choice(QUESTIONS)
        sources = [labels_of(scene, height, width)[None] for scene in scenes]
        prompts = [Prompt(DESCRIBE, question, images=(source,)) for source in sources]
        return self.examples.texts(prompts, [caption(scene) for scene in scenes], length=length, share=2.0)

    def _images(
        self,
        choose: random.Random,
        prompts: list[Prompt],
        scenes: list[Scene],
        *,
        form: Form | None = None,
        edges: bool = False,
        decided: bool = True,
        hide: Hide | None = None,
    ) -> Batch:
        """decided: the prompts leave one right answer. hide: what may be hidden (None: a share of all cells)."""
        height, width = form or _format(choose)
        condition = draw_condition(choose, UNCONDITIONAL, images=bool(prompts[0].images))
        codes = torch.stack([labels_of(scene, height, width, edges=edges) for scene in scenes])
        hidden = [hide(choose, scene, height, width) for scene in scenes] if hide else []
        return self.examples.images(
            prompts,
            codes,
            condition=condition,
            maskable=torch.stack([cells for cells, _ in hidden]) if hide else None,
            whole=torch.tensor([whole for _, whole in hidden]) if hide else None,
            weights=rarity(codes) if decided and condition == WHOLE_PROMPT else None,
        )


# ------------------------------------------------------------------------------------------------- what is taught


@cache
def taught_scenes() -> tuple[Scene, ...]:
    """All of `every_scene` with a shape that are not held out."""
    return tuple(scene for scene in every_scene() if scene.figures and not held_out(scene))


def taught_edits(scene: Scene, kind: str) -> list[SceneEdit]:
    """The edits of one kind whose outcome is not held out."""
    return [edit for edit in every_edit(scene, kind) if not held_out(edit.result)]


def single_scene(choose: random.Random, in_corner: bool = False) -> Scene:
    """A taught scene of one shape: small or large at one of PLACES, or small in a corner."""
    if not in_corner:
        return choose.choice(taught_scenes())
    return _taught(lambda: Scene(choose.choice(_BACKGROUND_NAMES), (_small(choose, choose.choice(CORNERS)),)))


def _taught(draw: Callable[[], Scene]) -> Scene:
    """The first scene drawn that is not held out."""
    while held_out(scene := draw()):
        pass
    return scene


def _small(choose: random.Random, place: str) -> Figure:
    return Figure(choose.choice(SHAPES), choose.choice(_COLOUR_NAMES), "small", place)


def _figures(
    choose: random.Random, count: int, places: Sequence[str], in_corner: Sequence[bool] | None, different: bool
) -> tuple[list[Figure], str]:
    """Small shapes in any order of their places and the background behind them, together not held out.

    in_corner: for each shape whether its place is one of CORNERS (None: as it comes). different: no two of one shape.
    """
    while True:
        figures = [_small(choose, place) for place in _places(choose, count, places, in_corner)]
        background = choose.choice(_BACKGROUND_NAMES)
        alike = different and len({figure.shape for figure in figures}) < count
        if not alike and not held_out(Scene(background, tuple(figures))):
            return figures, background


def _places(
    choose: random.Random, count: int, places: Sequence[str], in_corner: Sequence[bool] | None
) -> Iterator[str]:
    if in_corner is None:
        yield from choose.sample(places, count)
        return
    kinds = {corner: [place for place in places if (place in CORNERS) == corner] for corner in (False, True)}
    drawn = {corner: iter(choose.sample(kind, len(kind))) for corner, kind in kinds.items()}
    yield from (next(drawn[corner]) for corner in in_corner)


def _alike(choose: random.Random, coloured: bool) -> Scene:
    """Two or three of one shape and, with `coloured`, of one colour; they may be held out."""
    first = _small(choose, BOXES[0])
    colours = [first.colour if coloured else choose.choice(_COLOUR_NAMES) for _ in range(choose.choice((2, 3)))]
    places = choose.sample(BOXES, len(colours))
    figures = (replace(first, colour=colour, place=place) for colour, place in zip(colours, places, strict=True))
    return Scene(choose.choice(_BACKGROUND_NAMES), tuple(figures))


def _in_relation(choose: random.Random, relation: str) -> tuple[list[Figure], str]:
    """Two different shapes of which the first stands in this relation to the second, and their background."""
    while True:
        figures = [_small(choose, place) for place in choose.choice(_related_places()[relation])]
        background = choose.choice(_BACKGROUND_NAMES)
        if figures[0].shape != figures[1].shape and not held_out(Scene(background, tuple(figures))):
            return figures, background


@cache
def _related_places() -> dict[str, list[tuple[str, str]]]:
    """Per relation, the pairs of places in one row or column that stand so."""
    spots = [Figure(SHAPES[0], _COLOUR_NAMES[0], "small", place) for place in BOXES]
    aligned = [
        (one, other) for (a, one), (b, other) in permutations(enumerate(spots), 2) if a // 3 == b // 3 or a % 3 == b % 3
    ]
    return {
        relation: [(one.place, other.place) for one, other in aligned if stands(one, relation, other)]
        for relation in RELATIONS
    }


def edges_only(scene: Scene) -> Scene:
    """The scene, of all that have the same edge map, that stands for it: colours do not show."""
    return Scene(_BACKGROUND_NAMES[0], tuple(replace(one, colour=_COLOUR_NAMES[0]) for one in scene.figures))


def _words(question: Question) -> int:
    return len(question.words.split())


def _format(choose: random.Random) -> Form:
    return choose.choices(FORMATS, (0.67, 0.33))[0]


def _pattern(choose: random.Random) -> tuple[str, ...]:
    return tuple(choose.sample(OPEN, choose.randint(1, len(OPEN))))


def _drawn(choose: random.Random, weights: Mapping[T, float]) -> T:
    return choose.choices(list(weights), list(weights.values()))[0]


# ---------------------------------------------------------------------------------------------------- what is hidden


def random_rectangle(choose: random.Random, height: int, width: int) -> Tensor:
    """A bool mask [H,W], true in a rectangle of at least one cell."""
    rows, columns = (sorted(choose.sample(range(side + 1), 2)) for side in (height, width))
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[rows[0] : rows[1], columns[0] : columns[1]] = True
    return hole


def hole(choose: random.Random, scene: Scene, height: int, width: int) -> tuple[Tensor, bool]:
    """A `Hide` for inpainting, whatever the scene: a rectangle, or one time in four all but a rectangle."""
    inside = random_rectangle(choose, height, width)
    return ~inside if choose.random() < 0.25 and not inside.all() else inside, False


def figures_unseen(choose: random.Random, scene: Scene, height: int, width: int) -> tuple[Tensor, bool]:
    """A `Hide` for words to picture: all cells of most figures and a share of the background, or one time in three any
    cells.

    Sampling decides the most certain cells first, and these are plain background: most known cells of a half-made
    picture are background, and the shape must go where nothing is yet. Cells hidden at random hardly ever look like
    that, least of all with a large shape; a model that learns from these alone continues the background until there is
    no room left for the shape, and it learns from a shape's neighbours what the words should have told.
    """
    if choose.random() < 0.33 or not scene.figures:
        return torch.ones(height, width, dtype=torch.bool), False
    shown_by = figures_of(scene, height, width)
    all_unseen = choose.random() < 0.4
    shares = [_cosine(choose), *(1.0 if all_unseen else _figure_share(choose) for _ in scene.figures)]
    chances = torch.tensor([choose.random() for _ in range(height * width)]).view(height, width)
    hidden = chances < torch.tensor(shares)[shown_by]
    return (hidden if hidden.any() else shown_by == 1), True


def _cosine(choose: random.Random) -> float:
    return math.cos(math.pi / 2 * choose.random())


def _figure_share(choose: random.Random) -> float:
    """How much of a figure is hidden: mostly all, sometimes nothing or a part."""
    chance = choose.random()
    return 1.0 if chance < 0.6 else 0.0 if chance < 0.75 else _cosine(choose)
