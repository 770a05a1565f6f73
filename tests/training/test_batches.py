"""The batches of each step: every sample in its turn, the same draws wherever they are made, and a fixed check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dimoo_core.sequence.prompt import DESCRIBE, GENERATE, Prompt
from dimoo_core.sequence.tokenizer import TextTokenizer
from dimoo_core.training.batches import HELD_BACK_SHARES, MOST_CHECKED, HeldBack, SampleBatches, shuffled, stacked
from dimoo_core.training.dataset import Sample, edit_prompt
from dimoo_core.training.engine import Single
from dimoo_core.training.objective import HiddenBatch
from dimoo_core.training.sequences import Layout, Sequences

from ..tiny import CODES, TABLE, TRANSFORMER, tokenizer_json

TOKENIZER = TextTokenizer.from_str(tokenizer_json())
CAPTIONS = ["a fox", "a hat", "a fox in a hut", "a hat on a fox", "a hut", "an owl", "two foxes"]


def codes(seed: int, height: int = 3, width: int = 4) -> Tensor:
    return torch.randint(CODES, (height, width), generator=torch.Generator().manual_seed(seed))


# each picture has a code of its own in its first cell, by which it is known again
PICTURES = [codes(seed).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(seed)) for seed in range(7)]
SAMPLES = [Sample(Prompt(GENERATE, words), picture) for words, picture in zip(CAPTIONS, PICTURES, strict=True)]


def batches_of(samples: Sequence[Sample] = SAMPLES, *, dropout: float = 0.0, **options: int) -> SampleBatches:
    sequences = Sequences(TOKENIZER, TABLE, layout=Layout(unconditional=dropout))
    return SampleBatches(samples, sequences, TABLE.mask, **{"size": 4, "at_once": 4, "seed": 0} | options)


def whole(batch: HiddenBatch) -> Tensor:
    """The ids with what was hidden."""
    return batch.ids.scatter(1, batch.rows, batch.targets)


def pictures_of(batches: Sequence[HiddenBatch]) -> list[int]:
    """Which pictures are the answers of some batches."""
    found = []
    for batch in batches:
        for ids in whole(batch).tolist():
            (start,) = [place for place, one in enumerate(ids) if one == TABLE.image_begin]
            found.append(ids[start + 1] - TABLE.code_offset)
    return found


def text_of(ids: Tensor) -> str:
    return TOKENIZER.decode(ids.tolist())


# --------------------------------------------------------------------------------------------------- which samples


@given(st.integers(1, 400), st.integers(0, 5))
def test_a_shuffled_row_has_every_number_once(count: int, key: int) -> None:
    assert sorted(shuffled(place, count, str(key)) for place in range(count)) == list(range(count))


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    rows = [tuple(shuffled(place, 50, f"{seed} {epoch}") for place in range(50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({*rows, tuple(range(50))}) == 5


@pytest.mark.parametrize("size", [1, 3, 4])
def test_every_sample_comes_once_before_any_comes_again(size: int) -> None:
    batches = batches_of(size=size)
    drawn = [picture for step in range(7 * size) for picture in pictures_of(batches.step(step))]
    assert set(Counter(drawn).values()) == {size * size}
    if size == 1:
        assert sorted(drawn) == list(range(7))


def test_captions_of_unequal_length_in_one_batch_are_pictures_of_their_own() -> None:
    step = batches_of(size=7, at_once=7).step(0)
    assert sorted(pictures_of(step)) == list(range(7)), "seven places, seven pictures"
    assert len(step) == len({len(words) for words in CAPTIONS}), "a pass for each length"
    for batch in step:
        for ids, picture in zip(whole(batch), pictures_of([batch]), strict=True):
            assert text_of(ids).endswith(f"prompt.{CAPTIONS[picture]}")


def test_no_pass_has_more_sequences_than_asked() -> None:
    assert [len(one.ids) for one in batches_of([SAMPLES[0]] * 5, size=5, at_once=2).step(0)] == [2, 2, 1]


def test_edits_and_questions_are_taught_beside_pictures() -> None:
    mixed = [
        SAMPLES[0],
        Sample(edit_prompt("remove the hat", (PICTURES[1][None],)), PICTURES[2]),
        Sample(Prompt(DESCRIBE, "what is it?", images=(PICTURES[3][None],)), "an owl"),
    ]
    step = batches_of(mixed, size=3).step(0)
    assert len(step) == 3
    for batch in step:
        text, pictures = text_of(batch.ids[0]), int((batch.ids == TABLE.image_begin).sum())
        if "what is it?" in text:
            assert pictures == 1 and batch.vocab is None and "an owl" in text_of(whole(batch)[0])
        else:
            assert pictures == (2 if "remove the hat" in text else 1) and batch.vocab == TABLE.codes
        assert batch.count > 0


# ------------------------------------------------------------------------------------------------------------ the draws


def sequences_of(batches: Sequence[HiddenBatch]) -> list[tuple]:
    """Each sequence as it is shown, and what is asked, whatever pass it is in."""
    return sorted(
        (ids.tolist(), sorted(zip(rows[kept].tolist(), targets[kept].tolist(), strict=True)))
        for batch in batches
        for ids, rows, targets, kept in zip(batch.ids, batch.rows, batch.targets, batch.weights > 0, strict=True)
    )


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_several_processes_draw_what_one_draws(ranks: int) -> None:
    for step in range(3):
        alone = batches_of(size=8, dropout=0.3).step(step)
        shares = [batches_of(size=8, dropout=0.3, rank=rank, ranks=ranks).step(step) for rank in range(ranks)]
        assert sequences_of([batch for share in shares for batch in share]) == sequences_of(alone)
        assert sum(batch.count for share in shares for batch in share) == sum(batch.count for batch in alone)


def test_how_many_are_in_a_pass_changes_no_draw() -> None:
    assert sequences_of(batches_of(at_once=1).step(5)) == sequences_of(batches_of(at_once=4).step(5))


def test_a_step_draws_the_same_whatever_came_before_and_another_draws_anew() -> None:
    batches = batches_of([SAMPLES[0]], size=1)
    first, later = sequences_of(batches.step(0)), sequences_of(batches.step(1))
    assert sequences_of(batches_of([SAMPLES[0]], size=1).step(1)) == later != first
    assert sequences_of(batches_of([SAMPLES[0]], size=1, seed=1).step(0)) != first


def test_the_share_of_dropped_captions_is_the_one_asked_for() -> None:
    batches = batches_of(dropout=0.2, size=10, at_once=10)
    drawn = [ids for step in range(60) for batch in batches.step(step) for ids in batch.ids]
    share = sum(bool((ids == TABLE.uncondition).any()) for ids in drawn) / len(drawn)
    assert abs(share - 0.2) < 0.05  # of 600, three standard deviations
    assert not any((ids == TABLE.uncondition).any() for batch in batches_of(dropout=0.0).step(0) for ids in batch.ids)


def test_only_cells_that_a_mask_marks_count() -> None:
    marked = torch.zeros(3, 4)
    marked[1, 2] = marked[2, 0] = 1
    masked = [Sample(Prompt(GENERATE, "a fox"), PICTURES[5], weights=marked)]
    chosen = {int(code) + TABLE.code_offset for code in PICTURES[5][marked.bool()]}
    seen: set[int] = set()
    for step in range(20):
        (batch,) = batches_of(masked, size=1).step(step)
        assert batch.count == batch.weights.sum() and set(batch.weights.flatten().tolist()) <= {0.0, 1.0}
        seen |= set(batch.targets[batch.weights > 0].tolist())
    assert seen == chosen


# ------------------------------------------------------------------------------------------------------- held back


class Shown(nn.Module):
    """Notes what it is shown, and says that every code is as likely."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []

    def forward(self, ids: Tensor, *, rows: Tensor, vocab: slice | None) -> Tensor:
        self.shown.append(ids)
        width = TRANSFORMER["vocab_size"] if vocab is None else vocab.stop - vocab.start
        return torch.zeros(*rows.shape, width)


def test_the_held_back_loss_is_taken_of_fixed_shares_of_whole_prompts() -> None:
    sequences = Sequences(TOKENIZER, TABLE, layout=Layout(unconditional=1.0))  # as the taught ones, of which all drop
    held = HeldBack(SAMPLES[:2], sequences, TABLE.mask)
    network, engine = Shown(), Single(torch.device("cpu"), mixed=False)
    first, again = held.loss(network, engine), held.loss(network, engine)
    assert first == again == pytest.approx(torch.tensor(float(CODES)).log().item(), rel=1e-6)
    ids, later = network.shown[: len(network.shown) // 2], network.shown[len(network.shown) // 2 :]
    assert all(torch.equal(one, two) for one, two in zip(ids, later, strict=True)), "the same is hidden every time"
    assert not any((one == TABLE.uncondition).any() for one in ids)
    hidden = Counter(int((one == TABLE.mask).sum()) for one in ids)
    assert hidden == {int(12 * share): 2 for share in HELD_BACK_SHARES}


def test_sequences_of_one_length_and_other_rows_are_kept_apart() -> None:
    (one,) = batches_of([SAMPLES[0]], size=1).step(0)
    other = HiddenBatch(one.ids, one.rows, one.targets, one.weights, one.count, None)
    assert [batch.vocab for batch in stacked([one, other, one], 4)] == [one.vocab, None]


def test_of_very_many_samples_a_check_takes_some_from_all_over_and_says_so() -> None:
    asked = set()

    class Million:
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int, /) -> Sample:
            asked.add(index)
            return SAMPLES[index % 2]

    sequences = Sequences(TOKENIZER, TABLE)
    held = HeldBack(Million(), sequences, TABLE.mask)
    assert sum(len(batch.ids) for batch in held.batches) == MOST_CHECKED * len(HELD_BACK_SHARES)
    assert len(asked) == MOST_CHECKED and min(asked) == 0 and max(asked) > 990_000
    assert held.notes() == [f"{MOST_CHECKED} of the 1000000 samples that are held back are checked"]
    assert HeldBack(SAMPLES, sequences, TABLE.mask).notes() == []


def test_every_process_has_a_sample_in_each_step() -> None:
    assert len(batches_of(size=2, ranks=2, rank=1).step(0)) == 1
    with pytest.raises(ValueError, match=r"^batch x accumulate is 2, for 3 processes; .* raise --accumulate\.$"):
        batches_of(size=2, ranks=3)
