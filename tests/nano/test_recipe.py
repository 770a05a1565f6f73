"""What DiMOO-nano's VQ is taught: the label of every cell, and the pictures."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice, product

import pytest
import torch

from dimoo_core.nano.recipe import centres, edge_scenes, figures_of, labels_of, vq_batches
from dimoo_core.nano.scenes import (
    BACKGROUNDS,
    BOXES,
    FORMATS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    draw,
    draw_edges,
    every_scene,
    held_out,
    random_scene,
)

from .reading import outline_of, scene_of

SCENES = tuple(every_scene())


@pytest.mark.parametrize("form", FORMATS)
def test_cells_of_one_look_share_a_label_on_every_background(form: tuple[int, int]) -> None:
    for shape, size, place in product(SHAPES, SIZES, PLACES):
        grids = {name: labels_of(Scene.one(name, shape, "red", size, place), *form) for name in BACKGROUNDS}
        plain = {name: labels_of(Scene(name), *form) for name in BACKGROUNDS}
        behind = {name: grids[name] == plain[name][0, 0] for name in BACKGROUNDS}
        for name in BACKGROUNDS:
            assert len(plain[name].unique()) == 1
            assert torch.equal(behind[name], behind["white"]) and behind[name].any() and not behind[name].all()
            assert torch.equal(grids[name][~behind[name]], grids["white"][~behind[name]])
    assert len({int(labels_of(Scene(name), *form)[0, 0]) for name in BACKGROUNDS}) == len(BACKGROUNDS)


@pytest.mark.parametrize("form", FORMATS)
def test_labels_tell_every_scene_apart(form: tuple[int, int]) -> None:
    grids = {tuple(labels_of(scene, *form).flatten().tolist()) for scene in SCENES}
    assert len(grids) == len(SCENES)
    maps = {tuple(labels_of(scene, *form, edges=True).flatten().tolist()) for scene in edge_scenes()}
    empty = tuple(labels_of(Scene("black"), *form).flatten().tolist())
    assert len(maps) == len(edge_scenes()) and maps & grids == {empty}


def test_labels_are_codes_and_each_is_used() -> None:
    grids = [labels_of(scene, *form) for scene in SCENES for form in FORMATS]
    grids += [labels_of(scene, *form, edges=True) for scene in edge_scenes() for form in FORMATS]
    used = torch.cat([grid.flatten() for grid in grids]).unique()
    assert torch.equal(used, torch.arange(len(centres())))


def test_a_label_stands_where_the_shape_stands() -> None:
    scene = Scene.one("white", "square", "blue", "small", "on the left")
    behind = labels_of(scene, 8, 8) == labels_of(Scene("white"), 8, 8)
    assert (~behind).nonzero().tolist() == [[3, 0], [3, 1], [4, 0], [4, 1]]


def some_scenes(count: int = 30) -> list[Scene]:
    """Scenes of one to three small figures."""
    choose = random.Random(0)
    return [random_scene(choose, number % 3 + 1) for number in range(count)]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("edges", [False, True])
def test_labels_of_several_shapes_are_those_of_each_alone(form: tuple[int, int], edges: bool) -> None:
    for scene in some_scenes():
        grid, owner = labels_of(scene, *form, edges=edges), figures_of(scene, *form, edges=edges)
        behind = labels_of(Scene(scene.background), *form, edges=edges)
        assert torch.equal(grid[owner == 0], behind[owner == 0])
        for number, figure in enumerate(scene.figures, 1):
            alone = labels_of(Scene(scene.background, (figure,)), *form, edges=edges)
            assert torch.equal(grid[owner == number], alone[owner == number])
            assert torch.equal(owner == number, alone != behind)


@pytest.mark.parametrize("form", FORMATS)
def test_a_small_shape_has_the_same_labels_in_every_box(form: tuple[int, int]) -> None:
    seen = Counter()
    for place in BOXES:
        scene = Scene.one("white", "star", "blue", "small", place)
        seen[tuple(labels_of(scene, *form)[figures_of(scene, *form) > 0].tolist())] += 1
    assert list(seen.values()) == [9]


def test_labels_belong_to_the_caller() -> None:
    scene = some_scenes()[2]
    first = labels_of(scene, 8, 8)
    kept = first.clone()
    first.zero_()
    assert torch.equal(labels_of(scene, 8, 8), kept)


# ------------------------------------------------------------------------------------------------ what the VQ sees


def test_vq_batches_show_several_shapes_singles_and_edge_maps_and_nothing_held_out() -> None:
    """Every picture is drawn again from the scene that its labels tell of."""
    counts = Counter()
    for pixels, labels in islice(vq_batches(12, seed=3), 20):
        form = labels.shape[1:]
        assert tuple(form) in FORMATS and pixels.shape == (12, 3, form[0] * 16, form[1] * 16)
        for index, (picture, grid) in enumerate(zip(pixels, labels, strict=True)):
            if index % 6 == 5:
                assert torch.equal(picture, draw_edges(outline_of(grid), *form))
                counts["edge map"] += 1
                continue
            scene = scene_of(grid)
            assert not held_out(scene) and torch.equal(picture, draw(scene, *form))
            assert torch.equal(grid, labels_of(scene, *form))
            single = index % 3 == 2
            assert len(scene.figures) <= 1 or not single
            counts["single" if single else len(scene.figures)] += 1
    assert counts["edge map"] == counts["single"] == 40
    assert all(counts[number] > 35 for number in (1, 2, 3)) and counts.total() == 240
