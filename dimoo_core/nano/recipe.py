"""How DiMOO-nano's VQ is made: what its codes stand for, its size, the pictures it is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

import torch
from einops import rearrange
from torch import Tensor

from .scenes import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    FORMATS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    coverage,
    draw,
    draw_edges,
    every_scene,
    held_out,
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


def cell_features(scene: Scene, height: int, width: int, *, edges: bool = False) -> Tensor:
    """What the code of each cell [H*W, F] should say: the shape's part in it and its colour, or the plain background.

    The background behind the shape is left out on purpose: neighbouring cells show it, so that one code serves all
    backgrounds.
    """
    alpha, figure = coverage(scene, height, width, edges=edges)[None], scene.figure
    colour = (0, 0, 0) if figure is None else BACKGROUNDS["white"] if edges else COLOURS[figure.colour]
    shape = cells(torch.cat((alpha, alpha * rgb(colour))))
    behind = rgb(BACKGROUNDS["black" if edges else scene.background]).expand(3, height * CELL, width * CELL)
    plain = cells(torch.cat((torch.ones_like(alpha), behind)))
    return torch.where(cells(alpha).amax(dim=1, keepdim=True) > 0, shape, plain)


def edge_scenes() -> list[Scene]:
    """One scene per edge map that can be drawn: colours do not show in it."""
    colour, background = next(iter(COLOURS)), next(iter(BACKGROUNDS))
    shapes = [Scene(background, s, colour, size, place) for s in SHAPES for size in SIZES for place in PLACES]
    return [Scene(background), *shapes]


def _look(scene: Scene, edges: bool) -> tuple:
    """Everything but the background that decides a scene's cells: scenes of one look share their shape's cells."""
    return (edges, scene.shape, scene.size, scene.place, None if edges else scene.colour)


@cache
def _labelled_looks() -> tuple[dict[tuple, Tensor], dict[str, int], Tensor]:
    """Labels [H*W] by (look, H, W) with -1 for plain background; the backgrounds' labels; centres [K,F]."""
    scenes = {_look(scene, False): (scene, False) for scene in every_scene()}
    scenes |= {_look(scene, True): (scene, True) for scene in edge_scenes()}
    spots = [(look, *shape) for look in scenes for shape in FORMATS]
    features = [cell_features(scenes[look][0], h, w, edges=scenes[look][1]) for look, h, w in spots]
    plain = [cell_features(Scene(background), 1, 1) for background in BACKGROUNDS]
    labels, centres = cluster((torch.cat([*features, *plain]) * 255).round(), MAX_CODES)
    by_background = dict(zip(BACKGROUNDS, labels[-len(plain) :].tolist(), strict=True))
    parts = dict(zip(spots, labels[: -len(plain)].split([len(f) for f in features]), strict=True))
    for look, height, width in spots:
        scene, edges = scenes[look]
        bare = cells(coverage(scene, height, width, edges=edges)[None]).amax(dim=1) == 0
        parts[look, height, width] = parts[look, height, width].masked_fill(bare, -1)
    return parts, by_background, centres


def centres() -> Tensor:
    """What the codes of nano's world stand for, [K,F]: one for each different look of a cell."""
    return _labelled_looks()[2]


def labels_of(scene: Scene, height: int, width: int, *, edges: bool = False) -> Tensor:
    """The label [H,W] of every cell of a scene's picture, or of its edge map."""
    parts, by_background, _ = _labelled_looks()
    labels = parts[_look(scene, edges), height, width]
    behind = by_background["black" if edges else scene.background]
    return torch.where(labels < 0, behind, labels).view(height, width)


def vq_batches(size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (pixels [B,3,H*16,W*16], labels [B,H,W]) of scenes not held out, every sixth an edge map."""
    choose = random.Random(seed)
    scenes = [scene for scene in every_scene() if not held_out(scene)]
    while True:
        height, width = choose.choice(FORMATS)
        edges = [index % 6 == 5 for index in range(size)]
        batch = [choose.choice(edge_scenes() if edge else scenes) for edge in edges]
        pairs = list(zip(batch, edges, strict=True))
        pixels = [draw_edges(s, height, width) if edge else draw(s, height, width) for s, edge in pairs]
        labels = [labels_of(s, height, width, edges=edge) for s, edge in pairs]
        yield torch.stack(pixels), torch.stack(labels)
