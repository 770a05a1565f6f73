"""How DiMOO-nano's VQ is made: what its codes stand for, its size, the pictures it is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import product

import torch
from einops import rearrange
from torch import Tensor

from .scenes import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    FORMATS,
    MOST_FIGURES,
    PLACES,
    SHAPES,
    SIZES,
    Figure,
    Scene,
    box,
    coverage,
    draw,
    draw_edges,
    every_scene,
    held_out,
    random_scene,
    rgb,
)
from .train_vq import cluster

MAX_CODES = 512


def vq_fields(codes: int) -> dict:
    """`vqvae/config.json` of nano."""
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [8, 16, 32, 64, 96],
        "down_block_types": ["DownEncoderBlock2D"] * 5,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 32,
        "layers_per_block": 1,
        "lookup_from_codebook": True,
        "mid_block_add_attention": False,
        "norm_num_groups": 1,  # more groups would take the mean of few channels away, and with it plain colour
        "norm_type": "group",
        "num_vq_embeddings": codes,
        "out_channels": 3,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 5,
        "vq_embed_dim": None,
    }


def cells(picture: Tensor) -> Tensor:
    """A picture [C, H*16, W*16] as its cells' values [H*W, C*16*16]."""
    return rearrange(picture, "c (h y) (w x) -> (h w) (c y x)", y=CELL, x=CELL)


def _tile_features(figure: Figure, edges: bool) -> tuple[Tensor, Tensor]:
    """Which cells bool [side,side] of a figure's box it covers, and what the code of each of the n covered ones should
    say, [n,F]: the shape's part in it and its colour.

    The background behind the shape is left out on purpose: neighbouring cells show it, so that one code serves all
    backgrounds.
    """
    side = SIZES[figure.size]
    alpha = coverage(Scene("white", (figure,)), side, side, edges=edges)[None]
    front = rgb(BACKGROUNDS["white"] if edges else COLOURS[figure.colour])
    covered = cells(alpha).amax(dim=1) > 0
    return covered.view(side, side), cells(torch.cat((alpha, alpha * front)))[covered]


def _plain_features(background: str) -> Tensor:
    """What the code of a cell without a shape should say, [1, F]."""
    behind = rgb(BACKGROUNDS[background]).expand(3, CELL, CELL)
    return cells(torch.cat((torch.ones(1, CELL, CELL), behind)))


def edge_scenes() -> list[Scene]:
    """One scene per edge map that can be drawn of no or one figure, those in a corner excepted: colours do not show."""
    colour, background = next(iter(COLOURS)), next(iter(BACKGROUNDS))
    shapes = [Scene.one(background, s, colour, size, place) for s in SHAPES for size in SIZES for place in PLACES]
    return [Scene(background), *shapes]


def _tile(figure: Figure, edges: bool) -> tuple[str, str, str]:
    """What decides the cells of a figure's box, wherever it stands: shape, size, colour (none in an edge map)."""
    return figure.shape, figure.size, "" if edges else figure.colour


@cache
def _labels() -> tuple[dict[tuple[str, str, str], Tensor], dict[str, int], Tensor]:
    """Labels [side,side] of each figure's box by `_tile`, -1 for plain background; the backgrounds' labels; centres
    [K,F]."""
    figures = [Figure(*look, "in the middle") for look in product(SHAPES, COLOURS, SIZES)]
    tiles = {_tile(figure, edges): _tile_features(figure, edges) for figure in figures for edges in (False, True)}
    features = [part for _, part in tiles.values()]
    plain = [_plain_features(background) for background in BACKGROUNDS]
    labels, centres = cluster((torch.cat([*features, *plain]) * 255).round(), MAX_CODES)
    by_background = dict(zip(BACKGROUNDS, labels[-len(plain) :].tolist(), strict=True))
    parts = labels[: -len(plain)].split([len(part) for part in features])
    by_tile = {
        name: torch.full_like(covered, -1, dtype=labels.dtype).masked_scatter(covered, part)
        for (name, (covered, _)), part in zip(tiles.items(), parts, strict=True)
    }
    return by_tile, by_background, centres


def centres() -> Tensor:
    """What the codes of nano's world stand for, [K,F]: one for each different look of a cell."""
    return _labels()[2]


@cache
def _figure_labels(figure: Figure, height: int, width: int, edges: bool) -> tuple[Tensor, Tensor]:
    """The cells [n] that a figure covers in a picture of H x W cells, numbered row by row, and their labels [n]."""
    tile = _labels()[0][_tile(figure, edges)]
    grid = torch.full((height, width), -1)
    top, left, side = box(figure.size, figure.place, height, width)
    grid[top : top + side, left : left + side] = tile
    covered = (grid.flatten() >= 0).nonzero().flatten()
    return covered, grid.flatten()[covered]


def labels_of(scene: Scene, height: int, width: int, *, edges: bool = False) -> Tensor:
    """The label [H,W] of every cell of a scene's picture, or of its edge map."""
    behind = _labels()[1]["black" if edges else scene.background]
    grid = torch.full((height * width,), behind)
    for figure in scene.figures:
        covered, labels = _figure_labels(figure, height, width, edges)
        grid[covered] = labels
    return grid.view(height, width)


def figures_of(scene: Scene, height: int, width: int, *, edges: bool = False) -> Tensor:
    """Which figure each cell [H,W] of a scene's picture, or of its edge map, shows: 1 for the first, 0 for none."""
    grid = torch.zeros(height * width, dtype=torch.int64)
    for number, figure in enumerate(scene.figures, 1):
        grid[_figure_labels(figure, height, width, edges)[0]] = number
    return grid.view(height, width)


def vq_batches(size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (pixels [B,3,H*16,W*16], labels [B,H,W]) of scenes not held out.

    Two of three pictures show one to three small figures in any of the nine boxes; the others are of `every_scene`,
    half of them edge maps.
    """
    choose = random.Random(seed)
    single = [scene for scene in every_scene() if not held_out(scene)]
    outlines = edge_scenes()
    while True:
        height, width = choose.choice(FORMATS)
        pixels, labels = [], []
        for index in range(size):
            edges = index % 6 == 5
            if index % 3 < 2:
                scene = random_scene(choose, choose.randint(1, MOST_FIGURES))
            else:
                scene = choose.choice(outlines if edges else single)
            pixels.append((draw_edges if edges else draw)(scene, height, width))
            labels.append(labels_of(scene, height, width, edges=edges))
        yield torch.stack(pixels), torch.stack(labels)
