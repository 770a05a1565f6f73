"""Captions of DiMOO-nano's world: the words of scenes, what they are true of, and how words are read."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations, product

import pytest

from dimoo_core.nano.captions import OPEN, RELATIONS, Caption, Look, caption, described, parse_caption, stands
from dimoo_core.nano.judge import open_patterns
from dimoo_core.nano.scenes import BACKGROUNDS, BOXES, COLOURS, SHAPES, Figure, Scene, every_scene, random_scene

SCENES = tuple(every_scene())
CIRCLE = Figure("circle", "red", "small", "at the top left")
SQUARE = Figure("square", "blue", "small", "on the right")
STAR = Figure("star", "green", "small", "at the bottom")
ONE, TWO, THREE = (Scene("white", (CIRCLE, SQUARE, STAR)[:count]) for count in (1, 2, 3))
LARGE_LEFT_CIRCLE = Look("circle", None, "large", "on the left")
RED_CIRCLE, BLUE_SQUARE = Look("circle", "red"), Look("square", "blue")


def some_scenes(each: int = 40) -> list[Scene]:
    """Scenes of one, two and three small shapes."""
    choose = random.Random(0)
    return [random_scene(choose, count) for count in (1, 2, 3) for _ in range(each)]


# --------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("an empty white background", Caption((), "white")),
        ("a circle", Caption((Look("circle"),))),
        ("a large circle on the left on a pink background", Caption((LARGE_LEFT_CIRCLE,), "pink")),
        ("a red circle and a blue square on a white background", Caption((RED_CIRCLE, BLUE_SQUARE), "white")),
        ("a circle, a square and a circle", Caption((Look("circle"), Look("square"), Look("circle")))),
        ("one red circle", Caption((RED_CIRCLE,), count=1)),
        ("two red circles on a white background", Caption((RED_CIRCLE,), "white", count=2)),
        ("three stars", Caption((Look("star"),), count=3)),
        ("a circle left of a square", Caption((Look("circle"), Look("square")), relation="left of")),
        (
            "a blue square below a red circle on a white background",
            Caption((BLUE_SQUARE, RED_CIRCLE), "white", relation="below"),
        ),
    ],
)  # fmt: skip
def test_captions_read_as_they_are_written(words: str, said: Caption) -> None:
    assert said.words == words
    assert parse_caption(words) == said
    assert parse_caption("  " + words.replace(",", "").replace(" ", "  ")) == said, "the tokenizer drops commas"


def test_full_captions_of_several_shapes_name_them_in_reading_order() -> None:
    assert caption(TWO) == "a red circle at the top left and a blue square on the right on a white background"
    assert caption(THREE) == (
        "a red circle at the top left, a blue square on the right and a green star at the bottom on a white background"
    )
    assert caption(THREE, ["place", "background"]) == "a red circle, a blue square and a green star"
    assert caption(TWO, ["size", "colour"]) == (
        "a circle at the top left and a square on the right on a white background"
    )


def test_captions_are_distinct_and_tell_all() -> None:
    captions = [caption(scene) for scene in SCENES]
    assert len(set(captions)) == len(SCENES)
    assert [described(text) for text in captions] == list(SCENES)
    for scene in some_scenes():
        assert described(caption(scene)) == scene
        orders = [Caption(looks, scene.background).words for looks in permutations(Caption.of(scene).looks)]
        assert {described(words) for words in orders} == {scene}, "in any order"


def test_open_captions_leave_out_what_they_say_and_no_more() -> None:
    scene = Scene.one("pink", "star", "blue", "small", "on the left")
    said = {"size": "small", "colour": "blue", "place": "on the left", "background": "on a pink background"}
    for names in open_patterns():
        text = caption(scene, names)
        assert text.startswith("a ") and "star" in text and "  " not in text
        assert all((part in text) == (name not in names) for name, part in said.items())


def test_every_caption_of_the_world_is_read_back() -> None:
    for scene in (*SCENES[::11], *some_scenes()):
        for names in open_patterns():
            said = Caption.of(scene, names)
            assert parse_caption(said.words) == said
            full = not names or not scene.figures or (len(scene.figures) > 1 and names == ("size",))
            assert described(said.words) == (scene if full else None)
    for shape, colour, background in product(SHAPES, (None, *COLOURS), (None, *BACKGROUNDS)):
        for count in (1, 2, 3):
            counted = Caption((Look(shape, colour),), background, count=count)
            assert parse_caption(counted.words) == counted and described(counted.words) is None
        for other, relation in product(SHAPES, RELATIONS):
            related = Caption((Look(shape, colour), Look(other)), background, relation=relation)
            assert parse_caption(related.words) == related and described(related.words) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a picture of something else",
        "the red circle",
        "a red circle please",
        "a circle red",
        "a circle on the left on the right",
        "a red circle a blue square",
        "a red circle and a blue square and a green star",
        "and a red circle",
        "four circles",
        "none circles",
        "two circle",
        "one circles",
        "two circles and a star",
        "two small circles",
        "a circle left of a square on the left",
        "a circle left of",
        "a small circle left of a square",
        "an empty red background",
        "a circle on a red background",
        "a circle on a white background background",
        "on a white background",
    ],
)
def test_other_words_are_no_caption(text: str) -> None:
    assert parse_caption(text) is None and described(text) is None


@pytest.mark.parametrize(
    "words",
    [
        "a large red circle at the top left on a white background",
        "a red circle on the left and a blue square on the left on a white background",
        "a large red circle on the left and a blue square on the right on a white background",
        "a red circle at the top left on a white background",
    ],
)
def test_a_caption_without_a_scene_of_its_own_describes_none(words: str) -> None:
    said = parse_caption(words)
    assert said is not None and said.words == words and said.scene is None


@pytest.mark.parametrize(
    "given",
    [
        {"looks": (RED_CIRCLE, BLUE_SQUARE), "count": 2},
        {"looks": (RED_CIRCLE,), "count": 0},
        {"looks": (RED_CIRCLE,), "count": 4},
        {"looks": (RED_CIRCLE,), "relation": "above"},
        {"looks": (Look("star", size="small"),), "count": 2},
        {"looks": (Look("star", place="at the top"), RED_CIRCLE), "relation": "above"},
        {"looks": (RED_CIRCLE, BLUE_SQUARE), "relation": "above", "count": 1},
    ],
)
def test_a_count_or_a_relation_of_other_looks_is_refused(given: dict) -> None:
    with pytest.raises(
        ValueError, match=r"^Got .*; expected one look with a count up to 3, or two with a relation.*\.$"
    ):
        Caption(**given)


# ------------------------------------------------------------------------------------------------ what is true


def test_a_caption_fits_its_scene_and_none_that_differs_in_what_it_says() -> None:
    for scene in (*SCENES[6::97], *some_scenes(10)):
        for names in open_patterns():
            said = Caption.of(scene, names)
            assert said.fits(scene)
            background = next(name for name in BACKGROUNDS if name != scene.background)
            assert said.fits(replace(scene, background=background)) == ("background" in names)
            for figure in scene.figures:
                rest = scene.without(figure)
                assert not said.fits(rest), "one less"
                shape = next(name for name in SHAPES if name not in {one.shape for one in scene.figures})
                assert not said.fits(rest.plus(replace(figure, shape=shape)))
                colour = next(name for name in COLOURS if name not in {one.colour for one in scene.figures})
                assert said.fits(rest.plus(replace(figure, colour=colour))) == ("colour" in names)
                places = {one.place for one in scene.figures}
                place = next(name for name in ("in the middle", *BOXES) if name not in places and "top" not in name)
                if figure.size == "small":
                    assert said.fits(rest.plus(replace(figure, place=place))) == ("place" in names)
                    assert not said.fits(scene.plus(replace(figure, place=place))), "one more"


def test_colours_that_have_changed_places_are_seen() -> None:
    swapped = Scene("white", (replace(CIRCLE, colour="blue"), replace(SQUARE, colour="red")))
    for names in ((), ("place",), ("place", "background")):
        said = Caption.of(TWO, names)
        assert said.fits(TWO) and not said.fits(swapped)
    assert Caption.of(TWO, ("colour",)).fits(swapped)


def test_it_does_not_matter_which_look_is_said_first() -> None:
    looks = (Look("circle"), Look("circle", "red"), Look("star", place="at the bottom"))
    scene = Scene("white", (CIRCLE, Figure("circle", "blue", "small", "in the middle"), STAR))
    for order in permutations(looks):
        assert Caption(order).fits(scene), "the red one cannot be both circles"
        assert not Caption(order).fits(scene.without(CIRCLE).plus(replace(CIRCLE, colour="blue")))


def test_so_many_are_counted_and_no_other() -> None:
    red = [Figure("circle", "red", "small", place) for place in BOXES[:4]]
    for number in range(5):
        scene = Scene("white", tuple(red[:number]))
        for count in (1, 2, 3):
            assert Caption((RED_CIRCLE,), count=count).fits(scene) == (number == count)
    assert not Caption((RED_CIRCLE,), count=2).fits(Scene("white", (red[0], replace(red[1], colour="blue"))))
    assert not Caption((RED_CIRCLE,), count=2).fits(Scene("white", (red[0], replace(red[1], shape="star"))))
    assert Caption((Look("circle"),), count=2).fits(Scene("white", (red[0], replace(red[1], colour="blue"))))
    assert not Caption((RED_CIRCLE,), "black", count=2).fits(Scene("white", tuple(red[:2])))


@pytest.mark.parametrize(
    ("place", "other", "relations"),
    [
        ("on the left", "on the right", {"left of"}),
        ("at the top", "at the bottom", {"above"}),
        ("at the bottom right", "at the top left", {"right of", "below"}),
        ("at the top", "on the left", {"right of", "above"}),
    ],
)
def test_relations_are_judged_by_row_or_by_column_alone(place: str, other: str, relations: set[str]) -> None:
    circle, square = replace(CIRCLE, place=place), replace(SQUARE, place=other)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for relation in RELATIONS:
        assert stands(circle, relation, square) == (relation in relations)
        said = Caption((RED_CIRCLE, BLUE_SQUARE), relation=relation)
        assert said.fits(Scene("pink", (circle, square))) == (relation in relations)
        back = Caption((BLUE_SQUARE, RED_CIRCLE), relation=opposite[relation])
        assert back.fits(Scene("pink", (circle, square))) == (relation in relations)


def test_of_two_alike_one_stands_so_to_the_other() -> None:
    scene = Scene("white", (replace(CIRCLE, place="on the left"), replace(CIRCLE, place="on the right")))
    assert Caption((RED_CIRCLE, RED_CIRCLE), relation="right of").fits(scene)
    assert not Caption((RED_CIRCLE, RED_CIRCLE), relation="above").fits(scene)


def test_an_empty_background_fits_no_shape() -> None:
    assert Caption((), "white").fits(Scene("white")) and Caption(()).fits(Scene("pink"))
    assert not Caption((), "white").fits(ONE) and not Caption((), "white").fits(Scene("pink"))
    assert not Caption((Look("circle"),)).fits(Scene("white"))
    assert caption(Scene("white"), OPEN) == "an empty white background", "or nothing would be said"
