"""Questions about DiMOO-nano's pictures with short answers: how many, what colour, where, is there, is it so, which."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .captions import NUMBERS, PLURALS, RELATIONS, Look, stands
from .edits import named_by_shape
from .scenes import BACKGROUNDS, COLOURS, SHAPES, Scene

_HOW_OFTEN = {"none": 1, "one": 1, "two": 2, "three": 6}  # rare answers are chosen more often where a scene has them
_CHOICES = 3


@dataclass(frozen=True)
class Question:
    """What is asked about a picture, and the only right answer."""

    words: str
    answer: str


def ask(kind: str, scene: Scene, choose: random.Random) -> Question | None:
    """A question of one of KINDS about a scene; None where that kind has none with a single right answer.

    Yes and no are equally likely, and over scenes of one to three figures the answers of each kind are about equally
    frequent.
    """
    return _KINDS[kind](scene, choose)


def _how_many(scene: Scene, choose: random.Random) -> Question:
    counts = Counter(figure.shape for figure in scene.figures)
    numbers = {PLURALS[shape]: counts[shape] for shape in SHAPES} | {"shapes": len(scene.figures)}
    answers = [NUMBERS[number] for number in sorted(set(numbers.values())) if number < len(NUMBERS)]
    answer = choose.choices(answers, [_HOW_OFTEN[name] for name in answers])[0]
    what = choose.choice([name for name, number in numbers.items() if NUMBERS[number : number + 1] == (answer,)])
    return Question(f"how many {what} are there", answer)


def _coloured(scene: Scene) -> list[tuple[str, str, Sequence[str]]]:
    """What has a colour that can be asked for, the colour, and the colours that it could have."""
    figures = [(figure.shape, figure.colour, tuple(COLOURS)) for figure in named_by_shape(scene)]
    return [*figures, ("background", scene.background, tuple(BACKGROUNDS))]


def _what_colour(scene: Scene, choose: random.Random) -> Question:
    what, colour, _ = choose.choice(_coloured(scene))
    return Question(f"what colour is the {what}", colour)


def _which(scene: Scene, choose: random.Random) -> Question:
    """Half the wrong choices are colours that something else in the picture has, if there is such a thing."""
    what, colour, possible = choose.choice(_coloured(scene))
    wrong = [name for name in possible if name != colour]
    choose.shuffle(wrong)
    if choose.random() < 0.5:
        shown = {figure.colour for figure in scene.figures}
        wrong.sort(key=lambda name: name not in shown)
    choices = [colour, *wrong[: _CHOICES - 1]]
    choose.shuffle(choices)
    return Question(f"which of {', '.join(choices[:-1])} or {choices[-1]} is the {what}", colour)


def _where(scene: Scene, choose: random.Random) -> Question | None:
    figures = named_by_shape(scene)
    if not figures:
        return None
    figure = choose.choice(figures)
    return Question(f"where is the {figure.shape}", figure.place)


def _is_there(scene: Scene, choose: random.Random) -> Question | None:
    """What is not there differs from one of the figures in colour or in shape, or has the colour of another figure."""
    if not scene.figures:
        return None
    shown = {(figure.shape, figure.colour) for figure in scene.figures}
    figure = choose.choice(scene.figures)
    shape, colour = figure.shape, figure.colour
    if choose.random() < 0.5:
        return Question(f"is there {Look(shape, colour).words}", "yes")
    others = [(shape, other.colour) for other in scene.figures]
    changes = ([(shape, name) for name in COLOURS], [(name, colour) for name in SHAPES], others)
    wrong = [absent for change in changes if (absent := [look for look in change if look not in shown])]
    return Question(f"is there {Look(*choose.choice(choose.choice(wrong))).words}", "no")


def _is_so(scene: Scene, choose: random.Random) -> Question | None:
    figures = named_by_shape(scene)
    if len(figures) < 2:
        return None
    figure, other = choose.sample(figures, 2)
    true = choose.random() < 0.5
    relation = choose.choice([name for name in RELATIONS if stands(figure, name, other) == true])
    return Question(f"is the {figure.shape} {relation} the {other.shape}", "yes" if true else "no")


_KINDS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "how many": _how_many,
    "what colour": _what_colour,
    "where": _where,
    "is there": _is_there,
    "is it so": _is_so,
    "which": _which,
}
KINDS = tuple(_KINDS)
