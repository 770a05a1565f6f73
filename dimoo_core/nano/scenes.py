"""The world of DiMOO-nano: up to three coloured shapes on a plain background, and its pictures.

Shapes stand in boxes on the 16 px grid, so a cell of a picture shows one of few things and a tiny VQ is enough. A shape
that is alone is small or large; where there are several, all are small and each has one of nine boxes to itself.

Shapes: H W cells (16 px each), pictures [3, H*16, W*16] float32 in 0..1.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

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
CORNERS = ("at the top left", "at the top right", "at the bottom left", "at the bottom right")  # for small shapes
BOXES = (  # where small shapes stand, three to a row, in reading order
    *("at the top left", "at the top", "at the top right"),
    *("on the left", "in the middle", "on the right"),
    *("at the bottom left", "at the bottom", "at the bottom right"),
)
FORMATS = ((8, 8), (6, 10))  # H, W in cells: 128x128 px and 160x96 px
MOST_FIGURES = 3  # in the scenes that are taught

_READING_ORDER = {place: number for number, place in enumerate(BOXES)}
_COLOUR_NAMES, _BACKGROUND_NAMES = tuple(COLOURS), tuple(BACKGROUNDS)
_OVERSAMPLING = 8
_EDGE_WIDTH = 3  # px
_HELD_OUT_ALIKE = {("square", "yellow"), ("star", "blue")}  # never two or three of these


@dataclass(frozen=True)
class Figure:
    """A shape and how it looks: names of SHAPES, COLOURS, SIZES and BOXES."""

    shape: str
    colour: str
    size: str
    place: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows: a background and the figures on it, in reading order of their places, however given.

    Raises ValueError where figures overlap: two in one place, or a large one that is not alone or in a corner.
    """

    background: str
    figures: tuple[Figure, ...] = ()

    def __post_init__(self) -> None:
        figures = tuple(sorted(self.figures, key=lambda figure: _READING_ORDER[figure.place]))
        places = [figure.place for figure in figures]
        if len(set(places)) < len(places):
            raise ValueError(f"Two figures stand in one place; expected a place of its own for each: {places}.")
        if any(one.size == "large" and (len(figures) > 1 or one.place in CORNERS) for one in figures):
            raise ValueError(f"A large figure stands beside others or in a corner: {places}; make it small.")
        object.__setattr__(self, "figures", figures)

    @classmethod
    def one(cls, background: str, shape: str, colour: str, size: str, place: str) -> Scene:
        """A scene of one figure."""
        return cls(background, (Figure(shape, colour, size, place),))

    @property
    def figure(self) -> Figure | None:
        """The only figure; None in an empty scene. Raises ValueError where there are several."""
        if len(self.figures) > 1:
            raise ValueError(f"The scene has {len(self.figures)} figures; expected at most one: use `figures`.")
        return self.figures[0] if self.figures else None

    def plus(self, figure: Figure) -> Scene:
        """The scene with one more figure."""
        return Scene(self.background, (*self.figures, figure))

    def without(self, figure: Figure) -> Scene:
        """The scene with one of its figures gone."""
        return Scene(self.background, tuple(other for other in self.figures if other != figure))


def every_scene() -> Iterator[Scene]:
    """All scenes of no or one figure, those in a corner excepted: the empty ones, then every combination of shape,
    colour, size, place and background."""
    for background in BACKGROUNDS:
        yield Scene(background)
    for shape, colour, size, place, background in product(SHAPES, COLOURS, SIZES, PLACES, BACKGROUNDS):
        yield Scene.one(background, shape, colour, size, place)


def random_scene(choose: random.Random, count: int, *, held: bool = False) -> Scene:
    """A scene of `count` small figures in any of the nine boxes, none that is held out; with `held`, only such."""
    while True:
        looks = [(choose.choice(SHAPES), choose.choice(_COLOUR_NAMES), "small") for _ in range(count)]
        places = choose.sample(BOXES, count)
        figures = tuple(Figure(*look, place) for look, place in zip(looks, places, strict=True))
        scene = Scene(choose.choice(_BACKGROUND_NAMES), figures)
        if held_out(scene) == held:
            return scene


def held_out(scene: Scene) -> bool:
    """Whether training never sees the scene, for one of its figures on this background or for two figures together.

    Of the 144 combinations of colour, shape and background 12 are held out, spread evenly: each shape is missing on
    three pairs of colour and background; each colour and each background is missing twice. Of the pairs of figures, by
    shape and colour, see `held_out_pairs`.
    """
    if any(_held_out_on(figure.shape, figure.colour, scene.background) for figure in scene.figures):
        return True
    looks = ((figure.shape, figure.colour) for figure in scene.figures)
    return any(pair in held_out_pairs() for pair in combinations(looks, 2))


def _held_out_on(shape: str, colour: str, background: str) -> bool:
    kind, paint = SHAPES.index(shape), _COLOUR_NAMES.index(colour)
    behind = _BACKGROUND_NAMES.index(background)
    return paint % 2 == kind % 2 and behind == (paint + 2 * kind + kind // 2) % len(BACKGROUNDS)


@cache
def held_out_pairs() -> frozenset[tuple[tuple[str, str], tuple[str, str]]]:
    """Pairs of looks (shape, colour) that no taught scene has together, in both orders: 22 of the 276 pairs of
    different looks, and 2 of the 24 pairs of equal ones.

    A formula chooses them. Each look is missing beside one to three others, any two shapes in three pairs of colours,
    and a shape beside its like in four in all. With the two colours exchanged, two shapes are always taught.
    """
    looks = [(kind, paint) for kind in range(len(SHAPES)) for paint in range(len(COLOURS))]
    names = dict(zip(looks, product(SHAPES, COLOURS), strict=True))
    pairs = {(look, look) for look in _HELD_OUT_ALIKE}
    for (kind, paint), (other_kind, other_paint) in combinations(looks, 2):
        mixed = sum(3 * k + p + 2 * k * p for k, p in ((kind, paint), (other_kind, other_paint)))
        if (mixed + 2 * kind * other_kind) % 11 == 3:
            pair = names[kind, paint], names[other_kind, other_paint]
            pairs |= {pair, pair[::-1]}
    return frozenset(pairs)


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
    side, words = SIZES[size], place.split()
    top = 0 if "top" in words else height - side if "bottom" in words else (height - side) // 2
    left = 0 if "left" in words else width - side if "right" in words else (width - side) // 2
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


def _parts(scene: Scene, height: int, width: int, edges: bool) -> Iterator[tuple[Figure, Tensor, tuple[slice, slice]]]:
    """Each figure, its coverage [side*16, side*16], and the pixels of its box."""
    for figure in scene.figures:
        top, left, side = box(figure.size, figure.place, height, width)
        rows, columns = (slice(start * CELL, (start + side) * CELL) for start in (top, left))
        yield figure, _coverage(figure.shape, side, edges), (rows, columns)


def coverage(scene: Scene, height: int, width: int, *, edges: bool = False) -> Tensor:
    """How much of each pixel [H*16, W*16] the scene's shapes cover, 0..1; with `edges`, their outlines instead."""
    whole = torch.zeros(height * CELL, width * CELL)
    for _, alpha, (rows, columns) in _parts(scene, height, width, edges):
        whole[rows, columns] = alpha
    return whole


def rgb(colour: tuple[int, int, int]) -> Tensor:
    """A colour as [3,1,1] in 0..1."""
    return torch.tensor(colour, dtype=torch.float32)[:, None, None] / 255


def draw(scene: Scene, height: int, width: int) -> Tensor:
    """The picture [3, H*16, W*16] of a scene in 0..1."""
    picture = rgb(BACKGROUNDS[scene.background]).repeat(1, height * CELL, width * CELL)
    for figure, alpha, (rows, columns) in _parts(scene, height, width, edges=False):
        picture[:, rows, columns] = alpha * rgb(COLOURS[figure.colour]) + (1 - alpha) * picture[:, rows, columns]
    return picture


def draw_edges(scene: Scene, height: int, width: int) -> Tensor:
    """The edge map [3, H*16, W*16] of a scene: its outlines in white on black."""
    alpha = coverage(scene, height, width, edges=True)
    return alpha * rgb(BACKGROUNDS["white"]) + (1 - alpha) * rgb(BACKGROUNDS["black"])
