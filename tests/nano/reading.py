"""Reads what DiMOO-nano is taught: the scene that labels tell of, and the answer that is true of a scene.

Nothing here asks the code that makes lessons: labels are compared with those of whole scenes, questions are answered by
looking at the figures.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import product

from torch import Tensor

from dimoo_core.nano.captions import NUMBERS, stands
from dimoo_core.nano.recipe import edge_scenes, labels_of
from dimoo_core.nano.scenes import (
    BACKGROUNDS,
    BOXES,
    COLOURS,
    FORMATS,
    SHAPES,
    Figure,
    Scene,
    box,
    every_scene,
)


def scene_of(grid: Tensor) -> Scene:
    """The scene that the labels [H,W] of a picture tell of, of one shape or several. KeyError where there is none."""
    found = _singles(edges=False).get(_key(grid))
    return _read_boxes(grid) if found is None else found


def outline_of(grid: Tensor) -> Scene:
    """The one of `edge_scenes` that the labels [H,W] of an edge map tell of. KeyError where there is none."""
    return _singles(edges=True)[_key(grid)]


def answer_to(question: str, scene: Scene) -> str:
    """What a question about a scene must be answered with."""
    said = re.sub(r"[,?]", "", question)
    if found := re.fullmatch(r"how many (\w+)s are there", said):
        return NUMBERS[sum(found[1] in ("shape", figure.shape) for figure in scene.figures)]
    if found := re.fullmatch(r"is there a (\w+) (\w+)", said):
        return _yes(any((figure.colour, figure.shape) == found.groups() for figure in scene.figures))
    if found := re.fullmatch(r"is the (\w+) (left of|right of|above|below) the (\w+)", said):
        return _yes(stands(_only(scene, found[1]), found[2], _only(scene, found[3])))
    if found := re.fullmatch(r"where is the (\w+)", said):
        return _only(scene, found[1]).place
    found = re.fullmatch(r"(?:what colour|which of (\w+) (\w+) or (\w+)) is the (\w+)", said)
    assert found, question
    *choices, what = found.groups()
    colour = scene.background if what == "background" else _only(scene, what).colour
    assert choices == [None] * 3 or choices.count(colour) == 1, question
    return colour


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _only(scene: Scene, shape: str) -> Figure:
    (figure,) = (one for one in scene.figures if one.shape == shape)
    return figure


def _key(grid: Tensor) -> tuple[int, ...]:
    return (*grid.shape, *grid.flatten().tolist())


@cache
def _singles(edges: bool) -> dict[tuple[int, ...], Scene]:
    scenes = edge_scenes() if edges else list(every_scene())
    return {_key(labels_of(scene, *form, edges=edges)): scene for scene in scenes for form in FORMATS}


def _read_boxes(grid: Tensor) -> Scene:
    """The scene of small figures; KeyError if anything stands outside the boxes or is no whole figure."""
    plain, behind = _backgrounds(), int(grid[0, 2])  # no box reaches there
    known, rest, figures = _figures_by_labels(*grid.shape, plain[behind]), grid.clone(), []
    for place in BOXES:
        top, left, side = box("small", place, *grid.shape)
        part = rest[top : top + side, left : left + side]
        if (part != behind).any():
            figures.append(known[place, tuple(part.flatten().tolist())])
            part.fill_(behind)
    if (rest != behind).any():
        raise KeyError(f"Something stands outside the boxes: {grid.tolist()}")
    return Scene(plain[behind], tuple(figures))


@cache
def _backgrounds() -> dict[int, str]:
    return {int(labels_of(Scene(name), *FORMATS[0])[0, 0]): name for name in BACKGROUNDS}


@cache
def _figures_by_labels(height: int, width: int, background: str) -> dict[tuple[str, tuple[int, ...]], Figure]:
    """Small figures by their place and the labels of its box."""
    found = {}
    for place, shape, colour in product(BOXES, SHAPES, COLOURS):
        figure = Figure(shape, colour, "small", place)
        top, left, side = box("small", place, height, width)
        grid = labels_of(Scene(background, (figure,)), height, width)
        found[place, tuple(grid[top : top + side, left : left + side].flatten().tolist())] = figure
    return found
