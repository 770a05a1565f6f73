"""Questions about DiMOO-nano's pictures: one right answer each, and no answer that can be guessed without looking."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

import pytest

from dimoo_core.nano.captions import NUMBERS, RELATIONS, Look
from dimoo_core.nano.questions import KINDS, Question, ask
from dimoo_core.nano.scenes import BACKGROUNDS, BOXES, COLOURS, Figure, Scene, random_scene
from dimoo_core.nano.words import build_tokenizer
from dimoo_core.sequence.tokenizer import TextTokenizer

from .reading import answer_to

CIRCLE = Figure("circle", "red", "small", "at the top left")
SQUARE = Figure("square", "blue", "small", "on the right")
OTHER_CIRCLE = Figure("circle", "green", "small", "at the bottom")
TWO = Scene("white", (CIRCLE, SQUARE))
THREE = TWO.plus(OTHER_CIRCLE)
ALIKE = THREE.without(SQUARE)


def answers(kind: str, scene: Scene, times: int = 300) -> dict[str, set[str]]:
    """What comes out as the right answer to each question of a kind about a scene."""
    choose, found = random.Random(0), defaultdict(set)
    for _ in range(times):
        question = ask(kind, scene, choose)
        if question is not None:
            found[question.words].add(question.answer)
    return dict(found)


def many(kind: str, count: int = 1800) -> list[tuple[Scene, Question]]:
    """Questions of a kind about scenes of one, two and three figures."""
    choose, found = random.Random(1), []
    while len(found) < count:
        scene = random_scene(choose, len(found) % 3 + 1 if kind != "is it so" else 2)
        question = ask(kind, scene, choose)
        if question is not None:
            found.append((scene, question))
    return found


# ------------------------------------------------------------------------------------------------- right answers


def test_how_many() -> None:
    assert answers("how many", THREE) == {
        "how many circles are there": {"two"},
        "how many squares are there": {"one"},
        "how many triangles are there": {"none"},
        "how many stars are there": {"none"},
        "how many shapes are there": {"three"},
    }
    empty = answers("how many", Scene("white"))
    assert len(empty) == 5 and set().union(*empty.values()) == {"none"}


def test_what_colour() -> None:
    assert answers("what colour", TWO) == {
        "what colour is the circle": {"red"},
        "what colour is the square": {"blue"},
        "what colour is the background": {"white"},
    }
    assert set(answers("what colour", THREE)) == {"what colour is the square", "what colour is the background"}
    assert answers("what colour", Scene("pink")) == {"what colour is the background": {"pink"}}


def test_where() -> None:
    assert answers("where", TWO) == {
        "where is the circle": {"at the top left"},
        "where is the square": {"on the right"},
    }
    assert answers("where", THREE) == {"where is the square": {"on the right"}}, "which circle is not said"
    assert not answers("where", ALIKE) and not answers("where", Scene("white"))


def test_is_there() -> None:
    found = answers("is there", TWO)
    for words, given in found.items():
        colour, shape = re.fullmatch(r"is there a (\w+) (\w+)", words).groups()
        assert given == {"yes" if any(Look(shape, colour).fits(one) for one in TWO.figures) else "no"}
    no = {words.removeprefix("is there a ") for words, given in found.items() if given == {"no"}}
    assert {"blue circle", "red square", "green circle", "red star"} <= no, "a colour, a shape, the other's colour"
    assert not answers("is there", Scene("white"))


def test_is_it_so() -> None:
    found = answers("is it so", TWO)
    assert found["is the circle left of the square"] == found["is the circle above the square"] == {"yes"}
    assert found["is the circle right of the square"] == found["is the square above the circle"] == {"no"}
    assert len(found) == 8
    assert not answers("is it so", ALIKE) and not answers("is it so", Scene("white", (CIRCLE,)))


def test_which() -> None:
    found = answers("which", TWO)
    for words, given in found.items():
        *choices, what = re.fullmatch(r"which of (\w+), (\w+) or (\w+) is the (\w+)", words).groups()
        assert given == {{"circle": "red", "square": "blue", "background": "white"}[what]}
        assert len({*choices}) == 3 and given < {*choices} < {*(BACKGROUNDS if what == "background" else COLOURS)}


def test_the_colour_of_another_shape_is_a_likely_choice() -> None:
    choose = random.Random(0)
    asked = [ask("which", TWO, choose).words for _ in range(600)]
    of_circle = [words for words in asked if words.endswith("circle")]
    assert 0.6 < sum("blue" in words for words in of_circle) / len(of_circle) < 0.8, "by chance it would be 0.4"


def test_a_scene_is_asked_all_that_can_be_asked() -> None:
    possible = {scene: {kind for kind in KINDS if answers(kind, scene)} for scene in (TWO, ALIKE, Scene("white"))}
    assert possible[TWO] == set(KINDS)
    assert possible[ALIKE] == {"how many", "what colour", "is there", "which"}
    assert possible[Scene("white")] == {"how many", "what colour", "which"}


# --------------------------------------------------------------------------------------------- nothing to be guessed


@pytest.mark.parametrize("kind", ["is there", "is it so"])
def test_yes_and_no_are_equally_frequent(kind: str) -> None:
    given = [(question.words, question.answer) for _, question in many(kind)]
    shares = Counter(answer for _, answer in given)
    assert set(shares) == {"yes", "no"} and abs(shares["yes"] / len(given) - 0.5) < 0.04
    for part in RELATIONS if kind == "is it so" else COLOURS:
        of_it = [answer for words, answer in given if f" {part} " in words]
        assert abs(of_it.count("yes") / len(of_it) - 0.5) < 0.12, "nor do the words give it away"


def test_numbers_are_about_equally_frequent() -> None:
    shares = Counter(question.answer for _, question in many("how many"))
    assert set(shares) == set(NUMBERS)
    assert all(0.17 < shares[number] / shares.total() < 0.34 for number in NUMBERS), shares


@pytest.mark.parametrize(("kind", "values"), [("where", BOXES), ("what colour", (*COLOURS, *BACKGROUNDS))])
def test_all_places_and_colours_are_answers(kind: str, values: tuple[str, ...]) -> None:
    shares = Counter(question.answer for _, question in many(kind))
    assert set(shares) == set(values) and max(shares.values()) < 2.5 * min(shares.values()), shares


def test_the_right_choice_stands_in_every_place() -> None:
    places = Counter()
    for _, question in many("which"):
        first, second, third = re.match(r"which of (\w+), (\w+) or (\w+) ", question.words).groups()
        places[(first, second, third).index(question.answer)] += 1
    assert all(0.28 < places[place] / places.total() < 0.39 for place in range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_true_of_random_scenes(kind: str) -> None:
    for scene, question in many(kind, 300):
        assert question.answer == answer_to(question.words, scene), (question, scene)


def test_questions_and_answers_are_made_of_known_words() -> None:
    plain = build_tokenizer()
    tokenizer, unknown = TextTokenizer(plain), plain.token_to_id("<unk>")
    for kind in KINDS:
        for _, question in many(kind, 100):
            assert unknown not in tokenizer.encode(f"{question.words} {question.answer}"), question
            if kind != "where":
                assert len(tokenizer.encode(question.answer)) == 1
