"""The world of DiMOO-nano: one coloured shape, or none, on a plain background; its words and its pictures.

Everything that can be drawn can be listed (`every_scene`), so a judge can compare a picture with all of it. Shapes
stand in boxes on the 16 px grid, so a cell of a picture shows one of few things and a tiny VQ is enough.

Shapes: H W cells (16 px each), pictures [3, H*16, W*16] float32 in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..pictures.sizes import CELL

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (45, 80, 220),
    "yellow": (245, 215, 50),
    "orange": (245, 140, 35),
    "purple": (140, 60, 180),
}
BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (15, 15, 15),
    "grey": (130, 130, 130),
    "pink": (250, 175, 200),
    "cyan": (120, 215, 225),
    "brown": (120, 80, 50),
}
SIZES = {"small": 2, "large": 4}  # side of the box in cells
PLACES = ("in the middle", "on the left", "on the right", "at the top", "at the bottom")
FORMATS = ((8, 8), (6, 10))  # H, W in cells: 128x128 px and 160x96 px
OPEN = ("size", "colour", "place", "background")  # what a caption may leave unsaid

_OVERSAMPLING = 8
_EDGE_WIDTH = 3  # px


@dataclass(frozen=True)
class Figure:
    """A shape and how it looks: names of SHAPES, COLOURS, SIZES and PLACES."""

    shape: str
    colour: str
    size: str
    place: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows: a background, and a shape with all of colour, size and place, or none of these."""

    background: str
    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    place: str | None = None

    @property
    def figure(self) -> Figure | None:
        """The shape and how it looks; None in an empty scene."""
        if self.shape is None or self.colour is None or self.size is None or self.place is None:
            return None
        return Figure(self.shape, self.colour, self.size, self.place)


def every_scene() -> Iterator[Scene]:
    """All scenes: the empty ones, then every combination of shape, colour, size, place and background."""
    for background in BACKGROUNDS:
        yield Scene(background)
    for shape, colour, size, place, background in product(SHAPES, COLOURS, SIZES, PLACES, BACKGROUNDS):
        yield Scene(background, shape, colour, size, place)


def held_out(scene: Scene) -> bool:
    """Whether training never sees the scene: 12 of the 144 combinations of colour, shape and background, spread evenly.

    Each shape is missing on three pairs of colour and background; each colour and each background is missing twice.
    """
    figure = scene.figure
    if figure is None:
        return False
    shape = SHAPES.index(figure.shape)
    colour = list(COLOURS).index(figure.colour)
    background = list(BACKGROUNDS).index(scene.background)
    return colour % 2 == shape % 2 and background == (colour + 2 * shape + shape // 2) % len(BACKGROUNDS)


def caption(scene: Scene, leave_open: Collection[str] = ()) -> str:
    """The words for a scene; `leave_open` names what stays unsaid, of OPEN. Without a shape the background is all."""
    if scene.shape is None:
        return f"an empty {scene.background} background"
    phrases = {"size": scene.size, "colour": scene.colour, "place": scene.place}
    phrases["background"] = f"on a {scene.background} background"
    parts = {name: "" if name in leave_open else words for name, words in phrases.items()}
    words = ["a", parts["size"], parts["colour"], scene.shape, parts["place"], parts["background"]]
    return " ".join(word for word in words if word)


def parse_caption(text: str) -> Scene | None:
    """The scene that a full caption describes; None if the text is not a full caption."""
    return _scenes_by_caption().get(" ".join(text.split()))


@cache
def _scenes_by_caption() -> dict[str, Scene]:
    return {caption(scene): scene for scene in every_scene()}


@dataclass(frozen=True)
class SceneEdit:
    """A change of a scene: its kind, the pack's edit type, the instruction and the scene that results."""

    kind: str
    edit_type: str
    instruction: str
    result: Scene


def every_edit(scene: Scene) -> list[SceneEdit]:
    """All edits of a scene."""
    if scene.shape is None:
        shown = [other for other in every_scene() if other.shape and other.background == scene.background]
        edits = [SceneEdit("add", "edit_add", f"add {caption(other, ['background'])}", other) for other in shown]
    else:
        edits = [SceneEdit("remove", "edit_remove", f"remove the {scene.shape}", Scene(scene.background))]
        for colour in COLOURS:
            result = replace(scene, colour=colour)
            edits.append(SceneEdit("recolour", "edit_replace", f"make the {scene.shape} {colour}", result))
        for shape in SHAPES:
            text = f"replace the {scene.shape} with a {shape}"
            edits.append(SceneEdit("replace", "edit_replace", text, replace(scene, shape=shape)))
    for background in BACKGROUNDS:
        text = f"make the background {background}"
        edits.append(SceneEdit("background", "edit_background", text, replace(scene, background=background)))
    return [edit for edit in edits if edit.result != scene]


# ------------------------------------------------------------------------------------------------------ drawing


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape in its unit box, y downwards."""
    if shape == "square":
        return [(0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)]
    if shape == "triangle":
        return [(0.5, 0.08), (0.94, 0.88), (0.06, 0.88)]
    points = 10 if shape == "star" else 96
    radii = (0.48, 0.2) if shape == "star" else (0.44, 0.44)
    turns = [2 * math.pi * point / points for point in range(points)]
    return [
        (0.5 + radii[point % 2] * math.sin(turn), 0.5 - radii[point % 2] * math.cos(turn))
        for point, turn in enumerate(turns)
    ]


def box(size: str, place: str, height: int, width: int) -> tuple[int, int, int]:
    """Top row, left column and side, in cells, of the box that holds a shape in a picture of height x width cells."""
    side = SIZES[size]
    top, left = (height - side) // 2, (width - side) // 2
    top = {"at the top": 0, "at the bottom": height - side}.get(place, top)
    left = {"on the left": 0, "on the right": width - side}.get(place, left)
    return top, left, side


@cache
def _coverage(shape: str, side: int, edges: bool) -> Tensor:
    """How much of each pixel [side*16, side*16] the shape covers, or its outline does."""
    fine = side * CELL * _OVERSAMPLING
    corners = [(x * fine, y * fine) for x, y in _outline(shape)]
    image = Image.new("L", (fine, fine), 0)
    draw = ImageDraw.Draw(image)
    if edges:
        draw.line([*corners, *corners[:2]], fill=255, width=_EDGE_WIDTH * _OVERSAMPLING, joint="curve")
    else:
        draw.polygon(corners, fill=255)
    image = image.resize((side * CELL, side * CELL), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def coverage(scene: Scene, height: int, width: int, *, edges: bool = False) -> Tensor:
    """How much of each pixel [H*16, W*16] the scene's shape covers, 0..1; with `edges`, its outline instead."""
    alpha = torch.zeros(height * CELL, width * CELL)
    figure = scene.figure
    if figure is not None:
        top, left, side = (value * CELL for value in box(figure.size, figure.place, height, width))
        alpha[top : top + side, left : left + side] = _coverage(figure.shape, side // CELL, edges)
    return alpha


def rgb(colour: tuple[int, int, int]) -> Tensor:
    """A colour as [3,1,1] in 0..1."""
    return torch.tensor(colour, dtype=torch.float32)[:, None, None] / 255


def draw(scene: Scene, height: int, width: int) -> Tensor:
    """The picture [3, H*16, W*16] of a scene in 0..1."""
    alpha = coverage(scene, height, width)
    figure = scene.figure
    front = rgb(COLOURS[figure.colour]) if figure is not None else torch.zeros(3, 1, 1)
    return alpha * front + (1 - alpha) * rgb(BACKGROUNDS[scene.background])


def draw_edges(scene: Scene, height: int, width: int) -> Tensor:
    """The edge map [3, H*16, W*16] of a scene: its outline in white on black."""
    alpha = coverage(scene, height, width, edges=True)
    return alpha * rgb(BACKGROUNDS["white"]) + (1 - alpha) * rgb(BACKGROUNDS["black"])
