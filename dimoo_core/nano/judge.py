"""Reads the pixels of a picture of nano's world and says what it shows, and whether it shows nothing else.

What a picture shows is the best explanation among all scenes that can be drawn in its format: the drawing with the
least squared error. No scene has to be drawn for that: where a shape covers the share a of a pixel, with colour f on
background b, a drawing is b + a (f - b), so the squared error is a quadratic form in a few sums over the picture
(`_errors`), the same for all colours.

The best explanation alone is lenient: it passes pictures with stray fragments. A picture is `clean` if it also lies
within OVERALL of that drawing and no small patch of it has another mean colour: a fragment hardly shows in the mean
over a picture, and the blur of a VQ hardly in the means of patches. In cells that the drawing leaves plain, patches are
4x4 px and their limit is PLAIN: 9 of 16 pixels are seen in any colour on any background, and fewer for most pairs of
colours. In cells with an outline they are 8x8 px, and the limit OUTLINE is a share of the contrast, since blur grows
with it; half a shape is seen. Every drawing stays below both after nano's VQ encoded and decoded it: at most 24/255 and
0.29 of the contrast. Edge maps, whose lines are thin, have the limit LINES and stay below 10/255.

Shapes: B pictures, G places and shapes, h w pixels, P = h*w.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from .scenes import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    FORMATS,
    OPEN,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    caption,
    coverage,
    draw,
    draw_edges,
    rgb,
)

OVERALL = 12 / 255
PLAIN = 28 / 255
OUTLINE = 0.35  # of the contrast
MOST = 34 / 255  # for the highest contrasts
LINES = 16 / 255  # in edge maps, where an outline is thin
_PLAIN_PATCH, _OUTLINE_PATCH = 4, 8  # px


@dataclass(frozen=True)
class Verdict:
    """What a picture shows, and how far it is from the drawing of `scene`, in 0..1: over the picture, and in the mean
    colour of the worst patch of the cells that should be plain, and of those with an outline; root mean squares.

    An edge map (`edges`) shows no colours: there the scene names any.
    """

    scene: Scene
    distance: float
    worst_plain: float
    worst_outline: float
    edges: bool = False

    @property
    def clean(self) -> bool:
        """Whether the picture is that drawing and nothing besides."""
        outline = LINES if self.edges else min(MOST, OUTLINE * contrast(self.scene))
        return self.distance <= OVERALL and self.worst_plain <= PLAIN and self.worst_outline <= outline

    @property
    def words(self) -> str:
        """The caption of what is shown."""
        return caption(self.scene)


def judge(picture: Tensor) -> Verdict:
    """What a picture [3,h,w] in 0..1 shows. Raises ValueError unless it has one of nano's formats."""
    return judge_all(picture[None])[0]


def judge_edges(picture: Tensor) -> Verdict:
    """What an edge map [3,h,w] in 0..1 shows: shape, size and place, or nothing. Raises as `judge` does."""
    return judge_all(picture[None], edges=True)[0]


def judge_all(pictures: Tensor, *, edges: bool = False) -> list[Verdict]:
    """One verdict for each of the pictures, or edge maps, [B,3,h,w] in 0..1. Raises as `judge` does."""
    height, width = _cells(pictures)
    pictures = pictures.detach().float().cpu()
    scenes, sums = _errors(pictures, height, width, edges)
    found = [scenes[index] for index in sums.argmin(dim=1).tolist()]
    drawn = torch.stack([(draw_edges if edges else draw)(scene, height, width) for scene in found])
    error = pictures - drawn
    flat = (F.max_pool2d(drawn, CELL) == -F.max_pool2d(-drawn, CELL)).all(dim=1)  # [B,H,W]: cells of one colour
    distances = (
        error.square().mean(dim=(1, 2, 3)).sqrt(),
        _worst_patch(error, _PLAIN_PATCH).masked_fill(~flat, 0.0).amax(dim=(1, 2)),
        _worst_patch(error, _OUTLINE_PATCH).masked_fill(flat, 0.0).amax(dim=(1, 2)),
    )
    rows = zip(found, *(one.tolist() for one in distances), strict=True)
    return [Verdict(scene, distance, plain, outline, edges) for scene, distance, plain, outline in rows]


def contrast(scene: Scene) -> float:
    """How far the colours of shape and background are apart, root mean square in 0..1; 0 where there is no shape."""
    figure = scene.figure
    if figure is None:
        return 0.0
    return float((rgb(COLOURS[figure.colour]) - rgb(BACKGROUNDS[scene.background])).square().mean().sqrt())


def matches(scene: Scene, text: str) -> bool:
    """Whether all that a caption says is true of a scene; what it leaves open may be anything.

    `text` is a caption in the words and the order of `scenes.caption`; any other text matches no scene.
    """
    return " ".join(text.split()) in {caption(scene, pattern) for pattern in open_patterns()}


@cache
def open_patterns() -> tuple[tuple[str, ...], ...]:
    """Every choice of what a caption may leave unsaid, nothing first: 16 parts of OPEN."""
    return tuple(pattern for size in range(len(OPEN) + 1) for pattern in combinations(OPEN, size))


def _cells(pictures: Tensor) -> tuple[int, int]:
    """Height and width in cells; raises ValueError unless nano draws in that format."""
    if pictures.ndim == 4 and pictures.shape[1] == 3:
        height, width = pictures.shape[2:]
        if (height / CELL, width / CELL) in FORMATS:
            return height // CELL, width // CELL
    known = " or ".join(f"[3,{height * CELL},{width * CELL}]" for height, width in FORMATS)
    raise ValueError(
        f"Got a picture of shape {list(pictures.shape[1:])}, expected {known}, the formats of nano's world; generate "
        "one of these."
    )


def _worst_patch(error: Tensor, side: int) -> Tensor:
    """The largest error [B,H,W] of the mean colour of a patch of side x side px in each cell; error [B,3,h,w]."""
    return F.max_pool2d(F.avg_pool2d(error, side).square().mean(dim=1).sqrt(), CELL // side)


def _errors(pictures: Tensor, height: int, width: int, edges: bool) -> tuple[list[Scene], Tensor]:
    """The scenes and how far each picture is from each: squared error summed over the pixels, [B,scenes].

    With the sums A1 = sum a, A2 = sum a a, S1 = sum p, S2 = sum p p and C = sum a p over the pixels p of a picture:
    sum |p - b - a (f - b)|^2 = S2 - 2 b.S1 + P b.b - 2 (f - b).(C - A1 b) + A2 (f - b).(f - b)
    """
    scenes, alphas, index, front, back = _drawings(height, width, edges)
    pixels = pictures.flatten(2)
    sums, squares = pixels.sum(dim=2).double(), pixels.double().square().sum(dim=(1, 2))
    covered = torch.einsum("gp,bcp->bgc", alphas, pixels).double()[:, index]  # C [B,scenes,3]
    once, twice = alphas.sum(dim=1).double()[index], alphas.double().square().sum(dim=1)[index]
    step = front - back
    plain = squares[:, None] - 2 * sums @ back.T + pixels.shape[2] * back.square().sum(dim=1)
    shape = 2 * ((covered - once[:, None] * back) * step).sum(dim=2) - twice * step.square().sum(dim=1)
    return scenes, plain - shape


@cache
def _drawings(height: int, width: int, edges: bool) -> tuple[list[Scene], Tensor, Tensor, Tensor, Tensor]:
    """A format's scenes; the coverages [G,P]; of every scene which coverage, its colour and background [scenes,3]."""
    shown = [
        (shape, size, place, coverage(Scene("white", shape, "red", size, place), height, width, edges=edges).flatten())
        for shape, size, place in product(SHAPES, SIZES, PLACES)
    ]
    nothing = torch.zeros(1, height * width * CELL * CELL)
    alphas = torch.cat((torch.stack([alpha for *_, alpha in shown]), nothing))
    looks: list[tuple[str | None, str | None, str | None, int]] = [(None, None, None, len(shown))]
    looks = [*((shape, size, place, row) for row, (shape, size, place, _) in enumerate(shown)), *looks]
    scenes, index, paints = [], [], []
    for shape, size, place, row in looks:
        for colour, front, background, back in _paints(shape is not None, edges):
            scenes.append(Scene(background, shape, colour, size, place))
            index.append(row)
            paints.append((front, back))
    front, back = (torch.stack(side).double() for side in zip(*paints, strict=True))
    return scenes, alphas, torch.tensor(index), front, back


def _paints(has_shape: bool, edges: bool) -> Iterator[tuple[str | None, Tensor, str, Tensor]]:
    """Every colour and background by name and value [3]; an edge map knows only white lines on black."""
    colours: list[tuple[str | None, tuple[int, int, int]]] = [*COLOURS.items()] if has_shape else [(None, (0, 0, 0))]
    for (colour, front), (background, back) in product(colours, BACKGROUNDS.items()):
        if edges:
            yield colour, _flat(BACKGROUNDS["white"]), background, _flat(BACKGROUNDS["black"])
            return  # the first pair of names stands for all, as in `recipe.edge_scenes`
        yield colour, _flat(front), background, _flat(back)


def _flat(colour: tuple[int, int, int]) -> Tensor:
    return rgb(colour).flatten()
