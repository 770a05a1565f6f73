"""Edits of DiMOO-nano's scenes: the words change what they say, and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from dimoo_core.nano.edits import KINDS, every_edit, named_by_shape
from dimoo_core.nano.scenes import BACKGROUNDS, Figure, Scene

CIRCLE = Figure("circle", "red", "small", "at the top left")
SQUARE = Figure("square", "blue", "small", "on the right")
STAR = Figure("star", "green", "small", "at the bottom")


def edits_of(scene: Scene) -> dict[str, Scene]:
    return {edit.instruction: edit.result for edit in every_edit(scene)}


def test_edits_of_one_shape_change_what_they_say() -> None:
    star = replace(STAR, size="large")
    scene = Scene("pink", (star,))
    edits = edits_of(scene)
    assert edits["make the star red"] == Scene("pink", (replace(star, colour="red"),))
    assert edits["replace the star with a circle"] == Scene("pink", (replace(star, shape="circle"),))
    assert edits["make the background white"] == Scene("white", (star,))
    assert edits["remove the star"] == Scene("pink")
    assert len(edits) == 1 + 5 + 3 + 5 and scene not in edits.values()


def test_to_an_empty_background_any_one_shape_is_added() -> None:
    added = {edit.instruction: edit.result for edit in every_edit(Scene("pink"), "add")}
    assert added["add a small green star at the bottom"] == Scene("pink", (STAR,))
    assert len(added) == 4 * 6 * 2 * 5


def test_of_two_shapes_the_other_stays_as_it_is() -> None:
    scene = Scene("white", (CIRCLE, SQUARE))
    edits = edits_of(scene)
    assert edits["remove the square"] == Scene("white", (CIRCLE,))
    assert edits["make the circle yellow"] == Scene("white", (replace(CIRCLE, colour="yellow"), SQUARE))
    assert edits["make the square red"] == Scene("white", (CIRCLE, replace(SQUARE, colour="red")))
    assert edits["replace the circle with a star"] == Scene("white", (replace(CIRCLE, shape="star"), SQUARE))
    assert edits["replace the circle with a square"] == Scene("white", (replace(CIRCLE, shape="square"), SQUARE))
    assert edits["make the background cyan"] == Scene("cyan", (CIRCLE, SQUARE))
    assert edits["add a green star at the bottom"] == Scene("white", (CIRCLE, SQUARE, STAR))
    assert Counter(edit.kind for edit in every_edit(scene)) == {
        "remove": 2,
        "recolour": 2 * 5,
        "replace": 2 * 3,
        "background": len(BACKGROUNDS) - 1,
        "add": 4 * 6 * 7,
    }
    assert scene not in edits.values()


def test_what_the_words_do_not_tell_apart_is_not_edited() -> None:
    alike = Scene("white", (CIRCLE, replace(SQUARE, shape="circle")))
    assert {edit.kind for edit in every_edit(alike)} == {"background", "add"}
    assert named_by_shape(alike.plus(STAR)) == [STAR]
    assert edits_of(alike.plus(STAR))["remove the star"] == alike


def test_nothing_is_added_where_there_is_no_room() -> None:
    beside = edits_of(Scene("white", (CIRCLE,)))
    assert beside["add a blue square on the right"] == Scene("white", (CIRCLE, SQUARE))
    assert not any(text.startswith("add") and "at the top left" in text for text in beside), "the place is taken"
    assert not every_edit(Scene("white", (CIRCLE, SQUARE, STAR)), "add")
    assert not every_edit(Scene.one("white", "star", "red", "large", "in the middle"), "add")


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_edit_is_what_all_edits_have_of_it(kind: str) -> None:
    for scene in (Scene("white"), Scene("white", (CIRCLE,)), Scene("white", (CIRCLE, SQUARE))):
        assert every_edit(scene, kind) == [edit for edit in every_edit(scene) if edit.kind == kind]
