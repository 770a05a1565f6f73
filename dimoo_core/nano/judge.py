"""Reads the pixels of a picture of nano's world and says what it shows, and whether it shows nothing else.

What a picture shows is its best explanation: the drawing with the least squared error, among all that have one large
figure, or a small one or none in each of the nine boxes. Nothing has to be drawn to find it. Where a shape covers the
share a of a pixel, with colour f on background b, a drawing is b + a (f - b), so what a figure takes off the squared
error of a plain background is a quadratic form in a few sums over its box (`_Spot.gains`). The boxes are disjoint, so
each has its best figure by itself, and has none where every one would add to the error.

The best explanation alone is lenient: it passes pictures with stray fragments. A picture is `clean` if it also lies
within OVERALL of that drawing and no small patch of it has another mean colour: a fragment hardly shows in the mean
over a picture, and the blur of a VQ hardly in the means of patches. In cells that the drawing leaves plain, patches are
4x4 px and their limit is PLAIN: 9 of 16 pixels are seen in any colour on any background, and fewer for most pairs of
colours. In cells with an outline they are 8x8 px, and the limit OUTLINE is a share of the figure's contrast, since blur
grows with it; half a shape is seen. Every drawing of one figure stays below both after nano's VQ encoded and decoded
it: at most 24/255 and 0.29 of the contrast. So do drawings of two and three where the VQ has learnt such; one that had
learnt single figures kept 96 % of them clean at 128x128 px, and 77 % at 160x96 px. Edge maps, whose lines are thin,
have the limit LINES and stay below 10/255.

Shapes: B pictures, K backgrounds, M spots, S shapes, C colours, h w pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import OPEN, Caption, parse_caption
from .scenes import (
    BACKGROUNDS,
    BOXES,
    CELL,
    COLOURS,
    FORMATS,
    PLACES,
    SHAPES,
    Figure,
    Scene,
    box,
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
_PLACES = {"small": BOXES, "large": PLACES}  # of figures, by size
_COLOURS, _BACKGROUNDS = tuple(COLOURS), tuple(BACKGROUNDS)


@dataclass(frozen=True)
class Verdict:
    """What a picture shows, and how far it is from the drawing of `scene`, in 0..1: over the picture, and in the mean
    colour of the worst patch of the cells that should be plain, and of those with the outline of each of the scene's
    figures; root mean squares.

    An edge map (`edges`) shows no colours: there the scene names any.
    """

    scene: Scene
    distance: float
    worst_plain: float
    worst_outlines: tuple[float, ...] = ()
    edges: bool = False

    @property
    def clean(self) -> bool:
        """Whether the picture is that drawing and nothing besides."""
        outlines = zip(self.worst_outlines, self.scene.figures, strict=True)
        return (
            self.distance <= OVERALL
            and self.worst_plain <= PLAIN
            and all(worst <= self._limit(figure) for worst, figure in outlines)
        )

    @property
    def words(self) -> str:
        """The caption of what is shown."""
        return Caption.of(self.scene).words

    def _limit(self, figure: Figure) -> float:
        return LINES if self.edges else min(MOST, OUTLINE * contrast(figure, self.scene.background))


def judge(picture: Tensor) -> Verdict:
    """What a picture [3,h,w] in 0..1 shows. Raises ValueError unless it has one of nano's formats."""
    return judge_all(picture[None])[0]


def judge_edges(picture: Tensor) -> Verdict:
    """What an edge map [3,h,w] in 0..1 shows: shapes, sizes and places. Raises as `judge` does."""
    return judge_all(picture[None], edges=True)[0]


def judge_all(pictures: Tensor, *, edges: bool = False) -> list[Verdict]:
    """One verdict for each of the pictures, or edge maps, [B,3,h,w] in 0..1. Raises as `judge` does."""
    height, width = _cells(pictures)
    pictures = pictures.detach().float().cpu()
    found = _explained(pictures, height, width, edges)
    drawn = torch.stack([(draw_edges if edges else draw)(scene, height, width) for scene in found])
    error = pictures - drawn
    flat = (F.max_pool2d(drawn, CELL) == -F.max_pool2d(-drawn, CELL)).all(dim=1)  # [B,H,W]: cells of one colour
    plain = _worst_patch(error, _PLAIN_PATCH).masked_fill(~flat, 0.0).amax(dim=(1, 2))
    outline = _worst_patch(error, _OUTLINE_PATCH).masked_fill(flat, 0.0)
    outlines = [
        tuple(_in_box(cells, figure).max().item() for figure in scene.figures)
        for scene, cells in zip(found, outline, strict=True)
    ]
    distances = error.square().mean(dim=(1, 2, 3)).sqrt()
    rows = zip(found, distances.tolist(), plain.tolist(), outlines, strict=True)
    return [Verdict(*row, edges) for row in rows]


def contrast(figure: Figure, background: str) -> float:
    """How far the colour of a figure is from that of a background, root mean square in 0..1."""
    return float((rgb(COLOURS[figure.colour]) - rgb(BACKGROUNDS[background])).square().mean().sqrt())


def matches(scene: Scene, text: str) -> bool:
    """Whether all that a caption says is true of a scene; what it leaves open may be anything, but for the number of
    figures.

    `text` is a caption in the words and the order of `captions.Caption`; any other text matches no scene.
    """
    said = parse_caption(text)
    return said is not None and said.fits(scene)


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


def _in_box(cells: Tensor, figure: Figure) -> Tensor:
    """Values [H,W] of cells in the box of a figure."""
    top, left, side = box(figure.size, figure.place, *cells.shape)
    return cells[top : top + side, left : left + side]


# ------------------------------------------------------------------------------------------------ the best explanation


@dataclass(frozen=True, eq=False)
class _Spot:
    """Where a figure of one size can stand: its box in pixels, and how much of each of them the shapes cover."""

    top: int
    left: int
    side: int
    alphas: Tensor  # [S, side*side]

    def gains(self, pictures: Tensor, backs: Tensor, fronts: Tensor) -> Tensor:
        """What each figure here takes off the squared error of a plain background, [B,K,S*C].

        With the sums A1 = sum a, A2 = sum a a and C = sum a p over the pixels p of the box:
        sum |p - b|^2 - sum |p - b - a (f - b)|^2 = 2 (f - b).(C - A1 b) - A2 (f - b).(f - b)
        """
        crop = pictures[:, :, self.top : self.top + self.side, self.left : self.left + self.side].flatten(2)
        covered = torch.einsum("sp,bcp->bsc", self.alphas, crop).double()
        once, twice = self.alphas.sum(dim=1).double(), self.alphas.double().square().sum(dim=1)
        step = fronts - backs[:, None]  # [K,C,3]
        over = covered[:, None] - once[:, None] * backs[:, None]  # [B,K,S,3]
        gains = 2 * torch.einsum("bksd,kcd->bksc", over, step) - twice[:, None] * step.square().sum(dim=2)[:, None]
        return gains.flatten(2)


def _explained(pictures: Tensor, height: int, width: int, edges: bool) -> list[Scene]:
    """The scene that explains each of the pictures [B,3,h,w] best."""
    fronts, backs = _paints(edges)
    sums = pictures.sum(dim=(2, 3)).double()
    plain = pictures[0, 0].numel() * backs.square().sum(dim=1) - 2 * sums @ backs.T  # [B,K], less what is common to all
    few, few_looks = _best(_spots("small", height, width, edges), pictures, backs, fronts)
    one, one_looks = _best(_spots("large", height, width, edges), pictures, backs, fronts)
    by_few, by_one = few.clamp(min=0).sum(dim=2), one.amax(dim=2)
    chosen = (plain - torch.maximum(by_few, by_one)).argmin(dim=1).tolist()
    scenes = []
    for item, back in enumerate(chosen):
        if by_one[item, back] > by_few[item, back]:
            size, shown, looks = "large", one[item, back].argmax()[None], one_looks[item, back]
        else:
            size, shown, looks = "small", (few[item, back] > 0).nonzero()[:, 0], few_looks[item, back]
        names = [(_PLACES[size][spot], *divmod(int(looks[spot]), len(fronts))) for spot in shown.tolist()]
        figures = tuple(Figure(SHAPES[shape], _COLOURS[colour], size, place) for place, shape, colour in names)
        scenes.append(Scene(_BACKGROUNDS[back], figures))
    return scenes


def _best(spots: Sequence[_Spot], pictures: Tensor, backs: Tensor, fronts: Tensor) -> tuple[Tensor, Tensor]:
    """The most that a figure gains at each spot, and which does, counted shape by shape; [B,K,M] each."""
    best = [spot.gains(pictures, backs, fronts).max(dim=2) for spot in spots]
    return torch.stack([one.values for one in best], dim=2), torch.stack([one.indices for one in best], dim=2)


@cache
def _spots(size: str, height: int, width: int, edges: bool) -> tuple[_Spot, ...]:
    """The spots for figures of one size, in the order of _PLACES."""
    spots = []
    for place in _PLACES[size]:
        top, left, side = (value * CELL for value in box(size, place, height, width))
        shown = [Scene.one("white", shape, "red", size, place) for shape in SHAPES]
        alphas = [coverage(scene, height, width, edges=edges)[top : top + side, left : left + side] for scene in shown]
        spots.append(_Spot(top, left, side, torch.stack(alphas).flatten(1)))
    return tuple(spots)


@cache
def _paints(edges: bool) -> tuple[Tensor, Tensor]:
    """The colours [C,3] of figures and [K,3] of backgrounds. An edge map is white on black, and the first names stand
    for that, as in `recipe.edge_scenes`."""
    if edges:
        return _values([BACKGROUNDS["white"]]), _values([BACKGROUNDS["black"]])
    return _values(COLOURS.values()), _values(BACKGROUNDS.values())


def _values(colours: Iterable[tuple[int, int, int]]) -> Tensor:
    return torch.stack([rgb(colour).flatten() for colour in colours]).double()
