"""Whether a picture shows what was asked: what the model says of it."""

from __future__ import annotations

import pytest
import torch

from dimoo_core import jobs
from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.checkpoint.load import load_tokenizer, load_transformer, load_vq
from dimoo_core.judge import QUESTION, by_description, plan_yes_or_no, words_kept, yes_or_no
from dimoo_core.nano.captions import caption
from dimoo_core.nano.scenes import Scene, draw
from dimoo_core.sampling.text import TextSettings

from .tiny import TABLE

SIDES = (64, 64)


def yes_shares(model: jobs.Model, codes: torch.Tensor, text: str) -> list[float]:
    return [judgement.score for judgement in yes_or_no(plan_yes_or_no(model, [codes], text))]


@pytest.fixture(scope="module")
def nano() -> tuple[jobs.Model, object]:
    found = find(NANO)
    model = jobs.Model(
        load_transformer(found, dtype=torch.float32), load_tokenizer(found), found.table, found.defaults.sides
    )
    return model, load_vq(found)


def test_words_are_counted_as_often_as_they_are_wanted() -> None:
    assert words_kept("A red circle, on red!", "the RED circle on blue") == 3 / 5
    assert words_kept("", "anything") == words_kept("...", "") == 1.0
    assert words_kept("red", "reddish") == 0.0


def test_a_description_agrees_with_the_picture_it_is_of(nano) -> None:
    model, vq = nano
    shown, other = (Scene.one("white", shape, "red", "large", "on the left") for shape in ("circle", "star"))
    codes = [jobs.encode(vq, torch.stack([draw(scene, 8, 8) for scene in (shown, other)]))]
    settings = TextSettings(32, 32, 32)
    right, wrong = by_description(jobs.plan_text(model, codes, "describe", settings), caption(shown))
    assert (right.score, right.description) == (1.0, caption(shown))
    assert wrong.score == 1 - 1 / len(caption(shown).split())


class Fixed(torch.nn.Module):
    """Says the same of every picture: id 1 with share `yes`, id 2 with `no`, all others equally little."""

    def __init__(self, yes: float, no: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((TABLE.codes.stop,), 1e-6))
        self.weight.data[[1, 2]] = torch.tensor([yes, no])
        self.asked: list[torch.Tensor] = []

    def forward(self, ids: torch.Tensor, *, rows: torch.Tensor, chunk_rows: int | None) -> torch.Tensor:
        self.asked.append(ids.gather(1, rows))
        return self.weight.log().expand(*rows.shape, -1)


class Words:
    """A tokenizer that knows yes and no, or neither: then both are the id of an unknown word."""

    def __init__(self, knows: bool):
        self.knows, self.seen = knows, []

    def encode(self, text: str) -> list[int]:
        self.seen.append(text)
        if text.strip().lower() in ("yes", "no"):
            return [(1 if "y" in text.lower() else 2) if self.knows else 3]
        return [4, 5, 6]

    def defuse(self, text: str) -> str:
        return text.replace("</user>", "< /user>")


def test_yes_is_weighed_against_no_at_the_first_place_of_the_answer() -> None:
    words, network = Words(knows=True), Fixed(0.6, 0.2)
    model = jobs.Model(network, words, TABLE, SIDES)
    shares = yes_shares(model, torch.zeros(2, 4, 4, dtype=torch.int64), "a cat </user>")
    assert shares == pytest.approx([0.75, 0.75])
    assert bool((network.asked[0] == TABLE.mask).all()), "the place that is read is masked"
    assert any(QUESTION.format("a cat < /user>") in text for text in words.seen), "the user's words are no control"


def test_two_words_that_are_next_to_impossible_are_weighed_all_the_same() -> None:
    """A softmax over all words would give 0 / 0: both are below what fp32 holds."""
    network = Fixed(1.0, 1.0)
    network.forward = lambda ids, *, rows, chunk_rows: network.scores.expand(*rows.shape, -1)
    network.scores = torch.zeros(TABLE.codes.stop)
    network.scores[:3] = torch.tensor([400.0, 1.0, 0.0])
    model = jobs.Model(network, Words(knows=True), TABLE, SIDES)
    shares = yes_shares(model, torch.zeros(1, 4, 4, dtype=torch.int64), "x")
    assert shares == pytest.approx([float(torch.sigmoid(torch.tensor(1.0)))])


def test_a_judge_whose_numbers_are_not_finite_judges_nothing() -> None:
    network = Fixed(0.6, 0.2)
    network.forward = lambda ids, *, rows, chunk_rows: torch.full((*rows.shape, TABLE.codes.stop), float("nan"))
    model = jobs.Model(network, Words(knows=True), TABLE, SIDES)
    with pytest.raises(ValueError, match=r"not finite \(step 1\)"):
        yes_shares(model, torch.zeros(1, 4, 4, dtype=torch.int64), "a cat")


def test_a_model_without_the_words_says_so() -> None:
    model = jobs.Model(Fixed(0.5, 0.5), Words(knows=False), TABLE, SIDES)
    with pytest.raises(ValueError, match="no words for yes and no"):
        yes_shares(model, torch.zeros(1, 4, 4, dtype=torch.int64), "a cat")
