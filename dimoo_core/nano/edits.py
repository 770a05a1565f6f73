"""Edits of DiMOO-nano's scenes: the words that ask for a change, and the scene that results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from .captions import Look
from .scenes import BACKGROUNDS, BOXES, COLOURS, MOST_FIGURES, PLACES, SHAPES, SIZES, Figure, Scene


@dataclass(frozen=True)
class SceneEdit:
    """A change of a scene: its kind, the pack's edit type, the instruction and the scene that results."""

    kind: str
    edit_type: str
    instruction: str
    result: Scene


def every_edit(scene: Scene, kind: str | None = None) -> list[SceneEdit]:
    """All edits of a scene, or those of one of KINDS. Words name a figure by its shape, so where two figures have one
    shape, neither is removed, recoloured or replaced."""
    kinds = _EDITS.values() if kind is None else (_EDITS[kind],)
    return [edit for edits in kinds for edit in edits(scene) if edit.result != scene]


def named_by_shape(scene: Scene) -> list[Figure]:
    """The figures of a scene that "the circle" or another shape's name points out: the only ones of their shape."""
    shapes = [figure.shape for figure in scene.figures]
    return [figure for figure in scene.figures if shapes.count(figure.shape) == 1]


def _remove(scene: Scene) -> Iterator[SceneEdit]:
    for figure in named_by_shape(scene):
        yield SceneEdit("remove", "edit_remove", f"remove the {figure.shape}", scene.without(figure))


def _recolour(scene: Scene) -> Iterator[SceneEdit]:
    for figure in named_by_shape(scene):
        for colour in COLOURS:
            result = scene.without(figure).plus(replace(figure, colour=colour))
            yield SceneEdit("recolour", "edit_replace", f"make the {figure.shape} {colour}", result)


def _replace(scene: Scene) -> Iterator[SceneEdit]:
    for figure in named_by_shape(scene):
        for shape in SHAPES:
            result = scene.without(figure).plus(replace(figure, shape=shape))
            yield SceneEdit("replace", "edit_replace", f"replace the {figure.shape} with a {shape}", result)


def _add(scene: Scene) -> Iterator[SceneEdit]:
    """To an empty scene, any figure that `every_scene` has; to small ones, another small one in a box that is free."""
    if not scene.figures:
        for shape, colour, size, place in product(SHAPES, COLOURS, SIZES, PLACES):
            text = f"add {Look(shape, colour, size, place).words}"
            yield SceneEdit("add", "edit_add", text, scene.plus(Figure(shape, colour, size, place)))
    elif len(scene.figures) < MOST_FIGURES and all(figure.size == "small" for figure in scene.figures):
        taken = {figure.place for figure in scene.figures}
        free = [place for place in BOXES if place not in taken]
        for shape, colour, place in product(SHAPES, COLOURS, free):
            text = f"add {Look(shape, colour, place=place).words}"
            yield SceneEdit("add", "edit_add", text, scene.plus(Figure(shape, colour, "small", place)))


def _background(scene: Scene) -> Iterator[SceneEdit]:
    for background in BACKGROUNDS:
        text = f"make the background {background}"
        yield SceneEdit("background", "edit_background", text, replace(scene, background=background))


_EDITS: dict[str, Callable[[Scene], Iterator[SceneEdit]]] = {
    "add": _add,
    "remove": _remove,
    "recolour": _recolour,
    "replace": _replace,
    "background": _background,
}
KINDS = tuple(_EDITS)
