"""DiMOO-nano's world: what can be drawn, told apart by its picture, and what training never sees."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations, permutations, product

import pytest
import torch
from torch import Tensor

from dimoo_core.nano.recipe import edge_scenes
from dimoo_core.nano.scenes import (
    BACKGROUNDS,
    BOXES,
    CELL,
    COLOURS,
    CORNERS,
    FORMATS,
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
    held_out_pairs,
    random_scene,
)

SCENES = tuple(every_scene())
HELD_OUT = frozenset(scene for scene in SCENES if held_out(scene))
LOOKS = tuple(product(SHAPES, COLOURS))
CIRCLE = Figure("circle", "red", "small", "at the top left")
SQUARE = Figure("square", "blue", "small", "on the right")
STAR = Figure("star", "green", "small", "at the bottom")
THREE = Scene("white", (CIRCLE, SQUARE, STAR))


def fingerprint(picture: Tensor) -> bytes:
    """A picture as it would be stored: 8 bits a channel."""
    return (picture * 255).round().to(torch.uint8).numpy().tobytes()


def together(*looks: tuple[str, str], background: str) -> Scene:
    """Small figures of these shapes and colours."""
    figures = (Figure(*look, "small", place) for look, place in zip(looks, BOXES, strict=False))
    return Scene(background, tuple(figures))


# ------------------------------------------------------------------------------------------------------- scenes


def test_the_world_of_one_shape_has_every_combination_once() -> None:
    shown = len(SHAPES) * len(COLOURS) * len(SIZES) * len(PLACES) * len(BACKGROUNDS)
    assert len(SCENES) == len(set(SCENES)) == shown + len(BACKGROUNDS) == 1446


def test_a_scene_is_the_same_in_whatever_order_its_figures_are_given() -> None:
    for figures in permutations(THREE.figures):
        scene = Scene("white", figures)
        assert scene == THREE and hash(scene) == hash(THREE) and scene.figures == (CIRCLE, SQUARE, STAR)


def test_figures_come_and_go() -> None:
    assert THREE.without(SQUARE) == Scene("white", (CIRCLE, STAR))
    assert Scene("white").plus(STAR).plus(CIRCLE).plus(SQUARE) == THREE
    assert Scene("white").figure is None
    assert Scene.one("white", "star", "green", "small", "at the bottom").figure == STAR
    with pytest.raises(ValueError, match=r"^The scene has 3 figures; expected at most one: use `figures`\.$"):
        THREE.figure  # noqa: B018


@pytest.mark.parametrize(
    "figures",
    [
        (CIRCLE, replace(STAR, place=CIRCLE.place)),
        (CIRCLE, replace(STAR, size="large")),
        (replace(CIRCLE, size="large"),),
    ],
    ids=["one place twice", "a large one beside another", "a large one in a corner"],
)
def test_figures_that_would_overlap_are_refused(figures: tuple[Figure, ...]) -> None:
    with pytest.raises(ValueError, match=r"^(Two figures stand in one place|A large figure stands)[^.]*\.$"):
        Scene("white", figures)


# ------------------------------------------------------------------------------------------------------ drawings


@pytest.mark.parametrize("form", FORMATS)
def test_every_scene_of_one_shape_has_a_picture_of_its_own(form: tuple[int, int]) -> None:
    assert len({fingerprint(draw(scene, *form)) for scene in SCENES}) == len(SCENES)


@pytest.mark.parametrize("form", FORMATS)
def test_every_outline_has_an_edge_map_of_its_own(form: tuple[int, int]) -> None:
    maps = {fingerprint(draw_edges(scene, *form)) for scene in edge_scenes()}
    assert len(maps) == len(edge_scenes()) == 1 + len(SHAPES) * len(SIZES) * len(PLACES)
    scene = Scene.one("cyan", "star", "purple", "large", "at the top")
    other = Scene.one("white", "star", "red", "large", "at the top")
    assert torch.equal(draw_edges(scene, *form), draw_edges(other, *form)), "colours do not show"


@pytest.mark.parametrize(("form", "rows", "columns"), [((8, 8), (0, 3, 6), (0, 3, 6)), ((6, 10), (0, 2, 4), (0, 4, 8))])
def test_the_nine_boxes_stand_in_reading_order_and_apart(
    form: tuple[int, int], rows: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    assert set(BOXES) == {*PLACES, *CORNERS} and len(BOXES) == 9
    assert [box("small", place, *form) for place in BOXES] == [(row, column, 2) for row in rows for column in columns]


@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_of_several_shapes_shows_each_as_it_looks_alone(form: tuple[int, int]) -> None:
    picture, edges, behind = draw(THREE, *form), draw_edges(THREE, *form), draw(Scene("white"), *form)
    free = torch.ones(picture.shape[1:], dtype=torch.bool)
    for figure in THREE.figures:
        alone = Scene("white", (figure,))
        top, left, side = (value * CELL for value in box(figure.size, figure.place, *form))
        part = (slice(None), slice(top, top + side), slice(left, left + side))
        assert torch.equal(picture[part], draw(alone, *form)[part])
        assert torch.equal(edges[part], draw_edges(alone, *form)[part])
        assert coverage(THREE, *form)[part[1:]].max() == 1
        free[part[1:]] = False
    assert torch.equal(picture[:, free], behind[:, free])


# ------------------------------------------------------------------------------------------------ what is held out


def test_held_out_combinations_are_spread_evenly() -> None:
    kept = {(scene.figure.shape, scene.figure.colour, scene.background) for scene in HELD_OUT}
    assert len(kept) == 12 and len(HELD_OUT) == 12 * len(SIZES) * len(PLACES), "in every size and place"
    for part, names, times in ((0, SHAPES, 3), (1, COLOURS, 2), (2, BACKGROUNDS, 2)):
        assert Counter(combination[part] for combination in kept) == dict.fromkeys(names, times)
    assert not any(held_out(Scene(background)) for background in BACKGROUNDS)
    for one, two in combinations(range(3), 2):
        taught = {(c[one], c[two]) for c in product(SHAPES, COLOURS, BACKGROUNDS) if c not in kept}
        assert len(taught) == len({(c[one], c[two]) for c in product(SHAPES, COLOURS, BACKGROUNDS)}), "pairs are seen"


def test_what_is_held_out_of_one_shape_is_held_out_beside_another() -> None:
    for scene in HELD_OUT:
        if scene.figure.size == "small" and scene.figure.place == "in the middle":
            for look in LOOKS:
                assert held_out(scene.plus(Figure(*look, "small", "at the top left")))


def test_held_out_pairs_are_spread_over_looks_shapes_and_colours() -> None:
    pairs = held_out_pairs()
    assert all((second, first) in pairs for first, second in pairs), "whichever comes first"
    different = {frozenset(pair) for pair in pairs if pair[0] != pair[1]}
    assert (len(different), len(pairs) - 2 * len(different)) == (22, 2)
    beside = Counter(look for pair in different for look in pair)
    assert set(beside) == set(LOOKS) and set(beside.values()) <= {1, 2, 3}
    shapes = Counter(frozenset(shape for shape, _ in pair) for pair in different)
    assert {shapes[frozenset(two)] for two in combinations(SHAPES, 2)} == {3}
    assert sum(shapes[frozenset({shape})] for shape in SHAPES) == 4


def test_the_words_of_a_held_out_pair_are_taught_with_the_colours_exchanged() -> None:
    for (shape, colour), (other, paint) in held_out_pairs():
        assert shape == other or colour == paint or ((shape, paint), (other, colour)) not in held_out_pairs()


def test_a_scene_with_a_held_out_pair_is_held_out_wherever_the_two_stand() -> None:
    for first, second in combinations(LOOKS, 2):
        if not any(held_out(together(look, background="white")) for look in (first, second)):
            expected = (first, second) in held_out_pairs()
            assert held_out(together(first, second, background="white")) == expected
            assert held_out(together(second, first, background="white")) == expected
            if expected:
                assert held_out(together(first, ("circle", "red"), second, background="white"))
    alike = {look for look in LOOKS if all(held_out(together(look, look, background=name)) for name in BACKGROUNDS)}
    assert alike == {first for first, second in held_out_pairs() if first == second}


def test_random_scenes_are_taught_ones_or_held_out_ones_as_asked() -> None:
    choose = random.Random(0)
    for held in (False, True):
        for count in (1, 2, 3):
            scenes = [random_scene(choose, count, held=held) for _ in range(100)]
            assert all(held_out(scene) == held and len(scene.figures) == count for scene in scenes)
            assert {figure.size for scene in scenes for figure in scene.figures} == {"small"}
            for name, values in (("shape", SHAPES), ("place", BOXES), ("colour", COLOURS)):
                assert {getattr(figure, name) for scene in scenes for figure in scene.figures} == {*values}
    one, again = (random_scene(random.Random(5), 3) for _ in range(2))
    assert one == again
