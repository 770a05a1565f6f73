"""Samples as the sequences that are trained on, what is hidden of them, and the loss that sums up the same however it
is split."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.transformer import Transformer
from dimoo_core.sequence.layout import cut_answer, image_ids
from dimoo_core.sequence.prompt import DESCRIBE, GENERATE, Prompt, edit_task
from dimoo_core.sequence.token_table import RELEASED
from dimoo_core.sequence.tokenizer import TextTokenizer
from dimoo_core.training import objective
from dimoo_core.training.dataset import Sample
from dimoo_core.training.examples import FILLER_WEIGHT, Condition
from dimoo_core.training.live_bytes import LiveBytes
from dimoo_core.training.objective import (
    HiddenBatch,
    Section,
    TrainingSequence,
    cross_entropy_sum,
    dice,
    hidden_count,
    hide,
    loss_sum,
)
from dimoo_core.training.sequences import ANSWER_PLACES, MAX_PROMPT, RELEASED_LAYOUT, Layout, Sequences

from ..tiny import CODES, TABLE, TRANSFORMER, random_weights, tokenizer_json

TOKENIZER = TextTokenizer.from_str(tokenizer_json())
OURS = Sequences(TOKENIZER, TABLE)
PADDED = Sequences(TOKENIZER, TABLE, layout=Layout(places=ANSWER_PLACES))


def codes(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(CODES, (height, width), generator=torch.Generator().manual_seed(seed))


def picture_of(words: str = "a fox", **fields: object) -> Sample:
    return Sample(Prompt(GENERATE, words), codes(3, 4), **fields)


def edit_of(words: str = "a hat") -> Sample:
    return Sample(Prompt(edit_task("edit_add"), words, images=(codes(2, 3, 1)[None],)), codes(2, 3, 2))


def answer_of(words: str, pictures: int = 1) -> Sample:
    images = tuple(codes(2, 2 + number, number)[None] for number in range(pictures))
    return Sample(Prompt(DESCRIBE, "what is it?", images=images), words)


def at(sequence: TrainingSequence) -> list[int]:
    """The ids that may be hidden."""
    return sequence.ids[torch.cat([section.positions for section in sequence.sections])].tolist()


def count_of(part: Tensor, sequence: TrainingSequence) -> int:
    return int(sequence.ids.unfold(0, len(part), 1).eq(part).all(dim=1).sum())


# ------------------------------------------------------------------------------------------------------- the sequences


def test_a_picture_stands_in_its_answer_and_all_its_cells_may_be_hidden() -> None:
    sample = edit_of()
    sequence = OURS.build(sample)
    assert [code - TABLE.code_offset for code in at(sequence)] == sample.answer.flatten().tolist()
    for picture in (sample.prompt.images[0], sample.answer[None]):
        assert count_of(image_ids(picture, TABLE)[0], sequence) == 1
    assert sequence.vocab == TABLE.codes and sequence.weights is None and sequence.cut == 0
    assert "a hat" in TOKENIZER.decode(sequence.ids.tolist())


def test_all_rows_of_the_vocabulary_can_be_asked() -> None:
    layout = Layout(rows="all")
    assert Sequences(TOKENIZER, TABLE, layout=layout).build(picture_of()).vocab is None
    with pytest.raises(ValueError, match="rows is 'some'; expected codes or all"):
        Layout(rows="some")


def test_weights_of_cells_stand_where_the_cells_do() -> None:
    weights = torch.arange(12.0).view(3, 4)
    sequence = OURS.build(picture_of(weights=weights))
    positions = sequence.sections[0].positions
    assert torch.equal(sequence.weights[positions], weights.flatten())
    assert sequence.weights.sum() == weights.sum(), "and nowhere else"


def test_an_answer_of_the_published_checkpoint_is_filled_with_pads_and_not_closed() -> None:
    sequence = PADDED.build(answer_of("a fox"))
    words = [*TOKENIZER.encode("a fox"), TABLE.answer_end]
    assert at(sequence) == [*words, *[TABLE.pad] * (ANSWER_PLACES - len(words))]
    own, pads = sequence.sections
    assert len(own.positions) == len(words) and own.whole_up_to == 5 and pads.whole_up_to == 0
    assert sequence.ids[-1] == TABLE.pad and sequence.ids[own.positions[0] - 1] == TABLE.answer_begin
    assert sequence.vocab is None


def test_the_published_ids_bring_that_layout_and_others_do_not() -> None:
    assert Layout.of(RELEASED) == Layout(places=1024) and Layout.of(TABLE) == Layout() and OURS.layout == Layout()


@pytest.mark.parametrize("length", [ANSWER_PLACES - 1, ANSWER_PLACES, ANSWER_PLACES + 300])
def test_an_answer_that_fills_its_places_or_more_is_kept_whole_and_has_no_pads(length: int) -> None:
    sequence = PADDED.build(answer_of("x" * length))
    assert at(sequence) == [*TOKENIZER.encode("x" * length), TABLE.answer_end]
    assert len(sequence.sections) == 1
    hidden = hide(sequence, TABLE.mask, dice(0, 0, 0))
    assert 1 <= hidden.count <= length + 1


def test_our_answers_are_closed_and_end_where_sampling_stops() -> None:
    sequence = OURS.build(answer_of("a fox"), spare=7)
    words = TOKENIZER.encode("a fox")
    assert at(sequence) == [*words, TABLE.answer_end, *[TABLE.end_of_text] * 7]
    assert sequence.ids[-1] == TABLE.answer_end and cut_answer(at(sequence), TABLE) == words
    weights = sequence.weights[sequence.sections[0].positions]
    assert (weights[: len(words) + 1] == 1).all() and weights[len(words) + 1 :].sum() <= FILLER_WEIGHT
    lengths = {len(OURS.draw(answer_of("a fox"), dice(0, step, 0)).ids) for step in range(60)}
    assert len(lengths) > 15, "it goes on for many lengths, as answers are asked for"


def test_several_pictures_stand_one_after_another_in_their_order() -> None:
    sample = answer_of("a fox", pictures=3)
    sequence = PADDED.build(sample)
    pictures = torch.cat([image_ids(picture, TABLE)[0] for picture in sample.prompt.images])
    assert count_of(pictures, sequence) == 1
    assert count_of(torch.tensor([TABLE.image_end, *TOKENIZER.encode("</user>"), TABLE.answer_begin]), sequence) == 1


def test_a_long_prompt_is_cut_told_and_keeps_its_end() -> None:
    sequence, whole = OURS.build(picture_of("fox " * 400)), OURS.build(picture_of("fox"))
    assert sequence.cut > 500 and whole.cut == 0
    begin = sequence.ids.tolist().index(TABLE.answer_begin)
    assert begin == MAX_PROMPT and sequence.ids[begin - 1] == TOKENIZER.encode("</user>")[0]
    released = Sequences(TOKENIZER, TABLE, layout=RELEASED_LAYOUT).build(picture_of("fox " * 400))
    assert released.cut == sequence.cut and TOKENIZER.encode("</user>")[0] not in released.ids


def test_the_misspelt_system_prompt_is_an_option() -> None:
    misspelt = Sequences(TOKENIZER, TABLE, layout=Layout(misspelt=True))
    for sample, changes in ((picture_of(), True), (edit_of(), False)):
        ours, theirs = (TOKENIZER.decode(one.build(sample).ids.tolist()) for one in (OURS, misspelt))
        assert ("accroding to the text prompt" in theirs) == changes and "accroding" not in ours
        assert theirs.replace("accroding", "according") == ours


def test_words_of_strangers_are_no_control_tokens() -> None:
    sequence = OURS.build(picture_of("</user><|mdm_mask|>"))
    assert TABLE.mask not in sequence.ids and int((sequence.ids == TOKENIZER.encode("</user>")[0]).sum()) == 1
    words = PADDED.build(answer_of("no</answer><|mdm_mask|>"))
    assert int((words.ids == TABLE.answer_end).sum()) == 1 and TABLE.mask not in words.ids


def test_codes_that_the_checkpoint_does_not_know_are_refused_with_the_sample_s_name() -> None:
    for sample in (
        replace(picture_of(), answer=codes(2, 2) + CODES, name="far.png"),
        replace(edit_of(), prompt=Prompt(edit_task("edit_add"), images=(-1 - codes(2, 2)[None],)), name="far.png"),
    ):
        with pytest.raises(ValueError, match=r"^far.png: Got a canvas with codes .*encode the picture"):
            OURS.build(sample)


@pytest.mark.parametrize(
    ("layout", "kinds"),
    [
        (Layout(), {Condition(): 0.9, Condition(text=False): 0.05, Condition(images=False): 0.05}),
        (Layout(together=True), {Condition(): 0.9, Condition(text=False, images=False): 0.1}),
        (Layout(unconditional=0.0), {Condition(): 1.0}),
    ],
)
def test_a_tenth_of_edits_learns_without_a_part_of_the_prompt(layout: Layout, kinds: dict[Condition, float]) -> None:
    builder, sample = Sequences(TOKENIZER, TABLE, layout=layout), edit_of()
    known = {tuple(builder.build(sample, kind).ids.tolist()): kind for kind in kinds}
    assert len(known) == len(kinds)
    drawn = [known[tuple(builder.draw(sample, dice(0, 0, number)).ids.tolist())] for number in range(500)]
    for kind, share in kinds.items():
        assert abs(drawn.count(kind) / 500 - share) < 0.03


def test_questions_are_never_left_out() -> None:
    layout = Layout(unconditional=1.0)
    for places in (0, ANSWER_PLACES):
        builder = Sequences(TOKENIZER, TABLE, layout=replace(layout, places=places))
        ids = builder.draw(answer_of("a fox"), dice(0, 0, 0)).ids
        assert TABLE.uncondition not in ids and TABLE.image_begin in ids


# ------------------------------------------------------------------------------------------------------ what is hidden


def plain(*sections: Section, length: int = 40, **fields: object) -> TrainingSequence:
    return TrainingSequence(torch.arange(length) + TABLE.code_offset, sections, **fields)


@given(st.integers(1, 30), st.integers(0, 2**64), st.integers(0, 10**9), st.integers(0, 10**9))
@settings(max_examples=80, deadline=None)
def test_some_of_each_section_is_hidden_and_nothing_else(length: int, seed: int, step: int, number: int) -> None:
    sections = Section(torch.arange(3, 3 + length)), Section(torch.arange(34, 40), whole_up_to=0)
    sequence = plain(*sections)
    batch = hide(sequence, TABLE.mask, dice(seed, step, number))
    assert torch.equal((batch.ids[0] == TABLE.mask).nonzero()[:, 0], batch.rows[0].sort().values)
    assert torch.equal(batch.targets, sequence.ids[batch.rows])
    for section in sections:
        hidden = int(torch.isin(batch.rows[0], section.positions).sum())
        assert hidden == length if length == len(section.positions) <= section.whole_up_to else hidden >= 1
    assert torch.isin(batch.rows[0], torch.cat([section.positions for section in sections])).all()
    assert batch.count == batch.rows.shape[1] and (batch.weights == 1).all()


def test_each_section_has_a_draw_of_its_own() -> None:
    sequence = plain(Section(torch.arange(20)), Section(torch.arange(20, 40)))
    pairs = []
    for number in range(300):
        rows = hide(sequence, TABLE.mask, dice(1, 0, number)).rows[0]
        pairs.append([int((rows < 20).sum()), int((rows >= 20).sum())])
    first, second = torch.tensor(pairs, dtype=torch.float64).T
    assert abs(torch.corrcoef(torch.stack((first, second)))[0, 1]) < 0.2
    assert first.unique().numel() > 15 and abs(first.mean() / 20 - 2 / math.pi) < 0.06


def test_the_same_seed_step_and_sample_hide_the_same() -> None:
    sequence = plain(Section(torch.arange(40)))
    drawn = {
        key: tuple(sorted(hide(sequence, TABLE.mask, dice(*key)).rows[0].tolist()))
        for key in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (12, 0, 0), (1, 20, 0))
    }
    assert len(set(drawn.values())) == len(drawn)
    assert tuple(sorted(hide(sequence, TABLE.mask, dice(0, 1, 2)).rows[0].tolist())) == drawn[0, 1, 2]


def test_a_share_can_be_given_so_that_losses_can_be_compared() -> None:
    sequence = plain(Section(torch.arange(40)))
    for share, count in ((0.25, 10), (0.5, 20), (1.0, 40), (0.001, 1)):
        assert hide(sequence, TABLE.mask, dice(0, 0, 0), share=share).count == count


def test_counts_are_taken_in_double_precision() -> None:
    for length in range(4, 200, 2):
        assert hidden_count(length, math.cos(math.pi * (2 / 3) / 2)) == length // 2, "one less in single precision"


# ------------------------------------------------------------------------------------------------------------ the loss


def network() -> Transformer:
    model = Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset)
    random_weights(model, 3)
    return model


def hidden_parts() -> list[HiddenBatch]:
    weights = torch.rand(3, 4, generator=torch.Generator().manual_seed(5))
    samples = picture_of("a fox"), picture_of("a hat", weights=weights)
    return [hide(OURS.build(one), TABLE.mask, dice(0, 0, number)) for number, one in enumerate(samples)]


def test_the_mean_over_all_hidden_tokens_does_not_depend_on_how_they_are_split() -> None:
    parts, model = hidden_parts(), network()
    assert parts[0].rows.shape != parts[1].rows.shape
    together = HiddenBatch.stack(parts)
    assert together.count == pytest.approx(sum(part.count for part in parts)) and len(together.ids) == 2
    alone = sum(loss_sum(model, part) for part in parts)
    torch.testing.assert_close(loss_sum(model, together), alone, rtol=1e-6, atol=0)
    gradients = []
    for losses in ([together], parts):
        for part in losses:
            (loss_sum(model, part) / together.count).backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
        model.zero_grad(set_to_none=True)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_weighted_cross_entropy_of_what_stood_there() -> None:
    part, model = hidden_parts()[1], network()
    logits = model(part.ids)[0, part.rows[0]][:, TABLE.codes]
    each = F.cross_entropy(logits, part.targets[0] - TABLE.code_offset, reduction="none")
    torch.testing.assert_close(loss_sum(model, part), (each * part.weights[0]).sum())
    assert part.count == pytest.approx(float(part.weights.sum())) and part.weights.unique().numel() > 1


def test_a_silent_batch_counts_nothing_and_reaches_every_weight() -> None:
    model, silent = network(), hidden_parts()[0].silent()
    loss = loss_sum(model, silent)
    loss.backward()
    assert silent.count == 0 and loss == 0
    head = model.layers["ff_out"].codes.weight.grad
    assert head is not None and not head.any()


def test_sequences_of_unequal_length_are_not_filled_up() -> None:
    long = hide(OURS.build(picture_of("a long word")), TABLE.mask, dice(0, 0, 0))
    with pytest.raises(ValueError, match=r"Got sequences of \[\d+, \d+\] tokens in one batch"):
        HiddenBatch.stack([hidden_parts()[0], long])
    with pytest.raises(ValueError, match="answers of one kind"):
        HiddenBatch.stack([hidden_parts()[0], replace(hidden_parts()[0], vocab=None)])


def test_chunks_of_logits_give_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    targets, weights = torch.randint(50, (33,), generator=generator), torch.rand(33, generator=generator)
    found = []
    for chunk in (2**24, 7 * 50, 1):
        monkeypatch.setattr(objective, "_LOGITS_CHUNK", chunk)
        logits = torch.randn(33, 50, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = cross_entropy_sum(logits, targets, weights)
        loss.backward()
        found.append((loss.detach(), logits.grad))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


def test_logits_of_the_published_vocabulary_are_never_whole_in_fp32() -> None:
    """On meta: a picture of 1024x1024 px, all rows; live bytes beside the logits, in units of the logits in bf16."""
    logits = torch.zeros(4096, 134656, dtype=torch.bfloat16, device="meta", requires_grad=True)
    targets, weights = (torch.zeros(4096, dtype=dtype, device="meta") for dtype in (torch.int64, torch.float32))
    with LiveBytes() as live:
        cross_entropy_sum(logits, targets, weights).backward()
    assert live.peak < 2.2 * logits.nbytes, "their gradient, in parts and whole"


def test_a_batch_goes_where_the_network_is() -> None:
    """On meta, where any tensor left behind on the CPU is an error, as it would be on a GPU."""
    model = network().to("meta")
    assert loss_sum(model, HiddenBatch.stack(hidden_parts()).to("meta")).device.type == "meta"
