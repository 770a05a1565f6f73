"""Teaching the networks: what the objective hides and counts, and runs that stop, go on and end as if unbroken."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dimoo_core import files as files_module
from dimoo_core.checkpoint import headers as headers_module
from dimoo_core.model.config import TransformerConfig, VQConfig
from dimoo_core.model.transformer import Transformer, sdpa
from dimoo_core.model.vq import VQ
from dimoo_core.nano.lessons import random_rectangle
from dimoo_core.nano.train_vq import (
    VQTrainSettings,
    cluster,
    codebook_from,
    naming_loss,
    painting_loss,
    polish_decoder,
    train_vq,
)
from dimoo_core.sequence.layout import image_ids
from dimoo_core.sequence.prompt import DESCRIBE, GENERATE, Prompt, edit_task
from dimoo_core.sequence.tokenizer import TextTokenizer
from dimoo_core.training.engine import Single, attention_for_training
from dimoo_core.training.examples import FILLER_WEIGHT, Condition, Examples, draw_condition, rarity
from dimoo_core.training.loop import DrawnBatches, Step, Trainer, TrainSettings
from dimoo_core.training.objective import Batch, draw_hidden, loss_sum

from ..tiny import AUTOENCODER, CODES, TABLE, TRANSFORMER, random_weights, tokenizer_json

EXAMPLES = Examples(TextTokenizer.from_str(tokenizer_json()), TABLE)
VOCABULARY = TRANSFORMER["vocab_size"]


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------------------------- the objective


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_some_of_each_answer_is_hidden_and_only_what_may_be(positions: int, batch: int, seed: int) -> None:
    maskable = torch.rand(batch, positions, generator=dice(seed)) < 0.5
    maskable[:, seed % positions] = True
    hidden = draw_hidden(maskable, dice(seed))
    assert (hidden.sum(dim=1) >= 1).all() and not (hidden & ~maskable).any()


def test_where_an_answer_is_wholly_hidden_all_that_may_be_is() -> None:
    maskable = torch.rand(64, 40, generator=dice()) < 0.5
    whole = torch.arange(64) % 2 == 0
    hidden = draw_hidden(maskable, dice(), whole)
    assert torch.equal(hidden[whole], maskable[whole])
    assert torch.equal(hidden[~whole], draw_hidden(maskable, dice())[~whole]), "the others as ever"
    assert not torch.equal(hidden[~whole], maskable[~whole])


def test_the_hidden_share_is_the_cosine_of_a_uniform_number() -> None:
    maskable = torch.zeros(2000, 300, dtype=torch.bool)
    maskable[:, ::2] = True
    hidden = draw_hidden(maskable, dice())
    shares = (hidden.sum(dim=1) / 150).sort().values
    # P(cos(pi r / 2) <= x) = 1 - 2 acos(x) / pi; 2000 draws stray from it by less than 0.045; counts are rounded down
    least, most = (1 - 2 / math.pi * share.clamp(max=1).acos() for share in (shares, shares + 1 / 150))
    seen = (torch.arange(2000) + 0.5) / 2000
    assert (least - 0.045 < seen).all() and (seen < most + 0.045).all()
    assert abs(shares.mean() - 2 / math.pi) < 0.03
    by_place = hidden[:, ::2].float().mean(dim=0)
    assert by_place.max() - by_place.min() < 0.15, "no place is hidden more often than others"


FIRST = 5  # where the answers of `a_batch` begin


class Fixed(nn.Module):
    """Stands for a model: the same logits [B,n,V] of an answer whatever it is shown, which it remembers."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits, self.shown = logits, torch.empty(0)

    def forward(self, ids: Tensor, *, rows: Tensor, vocab: slice | None) -> Tensor:
        self.shown = ids
        asked = (rows - FIRST)[..., None].expand(-1, -1, self.logits.shape[-1])
        return self.logits.gather(1, asked)[..., vocab or slice(None)]


def masked_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    return loss_sum(model, batch.hide(TABLE.mask, generator))


def a_batch(**fields: object) -> Batch:
    ids = torch.randint(TABLE.code_offset, VOCABULARY, (3, 30), generator=dice(1))
    return Batch(ids, torch.arange(FIRST, 29), **fields)


@pytest.mark.parametrize("vocab", [None, TABLE.codes])
@pytest.mark.parametrize("partly", [False, True])
def test_the_loss_is_that_of_hidden_places_each_answer_counting_alike(vocab: slice | None, partly: bool) -> None:
    maskable = (torch.arange(24) % 2 == 0).expand(3, -1) if partly else None
    batch = a_batch(vocab=vocab, maskable=maskable)
    before = batch.ids.clone()
    model = Fixed(torch.randn(3, 24, VOCABULARY, generator=dice(2)))
    loss = masked_loss(model, batch, dice(3))
    hidden = model.shown[:, batch.positions] == TABLE.mask
    assert hidden.any(dim=1).all() and len(set(hidden.sum(dim=1).tolist())) > 1
    by_answer = []
    for item in range(3):
        logits = model.logits[item, hidden[item]][:, vocab or slice(None)]
        targets = batch.ids[item, batch.positions][hidden[item]] - (vocab.start if vocab else 0)
        by_answer.append(F.cross_entropy(logits, targets))
    torch.testing.assert_close(loss, torch.stack(by_answer).mean())
    assert torch.equal(batch.ids, before)
    shown = model.shown.clone()
    shown[:, batch.positions] = torch.where(hidden, before[:, batch.positions], shown[:, batch.positions])
    assert torch.equal(shown, before), "nothing but hidden positions is changed"
    if partly:
        assert not hidden[:, 1::2].any()


def test_weights_and_share_count_as_they_say() -> None:
    model = Fixed(torch.randn(3, 24, VOCABULARY, generator=dice(2)))
    plain = masked_loss(model, a_batch(), dice())
    hidden = model.shown[:, 5:29] == TABLE.mask
    assert masked_loss(model, a_batch(share=2.0), dice()) == 2 * plain
    torch.testing.assert_close(masked_loss(model, a_batch(weights=torch.full((3, 24), 0.2)), dice()), plain)
    first = hidden & (hidden.cumsum(dim=1) == 1)
    loss = masked_loss(model, a_batch(weights=first.float()), dice())
    targets = a_batch().ids[:, 5:29][first]
    torch.testing.assert_close(loss, F.cross_entropy(model.logits[first], targets))


def test_a_batch_goes_where_the_model_is() -> None:
    """On meta, where any tensor left behind on the CPU is an error, as it would be on a GPU."""
    model = Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset, device="meta")
    ids, positions = torch.zeros(2, 9, dtype=torch.int64), torch.arange(4, 8)
    may, all_of_it = torch.ones(2, 4, dtype=torch.bool), torch.tensor([True, False])
    for batch in (Batch(ids, positions), Batch(ids, positions, None, may, all_of_it, torch.ones(2, 4), 2.0)):
        loss = loss_sum(model, batch.hide(TABLE.mask, dice()).to("meta"))
        assert loss.device.type == "meta" and loss.shape == ()


def test_attention_for_training_is_attention() -> None:
    queries, keys, values = torch.randn(3, 2, 4, 9, 16, generator=dice())
    torch.testing.assert_close(attention_for_training(queries, keys, values), sdpa(queries, keys, values))


# -------------------------------------------------------------------------------------------------------- examples


def text_of(ids: Tensor) -> str:
    return EXAMPLES.tokenizer.decode(ids.tolist())


def grids(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(CODES, (count, height, width), generator=dice(seed))


def test_image_answers_stand_where_their_places_say() -> None:
    codes = grids(2, 3, 4)
    prompts = [
        Prompt(edit_task("edit_add"), "a hat", images=(codes[:1],)),
        Prompt(edit_task("edit_add"), "a fox", images=(codes[1:],)),
    ]
    batch = EXAMPLES.images(prompts, codes, condition=Condition(), maskable=codes > 3, weights=rarity(codes))
    assert torch.equal(batch.ids[:, batch.positions] - TABLE.code_offset, codes.flatten(1))
    assert batch.vocab == TABLE.codes and torch.equal(batch.maskable, (codes > 3).flatten(1))
    pictures = image_ids(codes, TABLE)
    for ids, picture, word in zip(batch.ids, pictures, ("hat", "fox"), strict=True):
        assert ids.unfold(0, len(picture), 1).eq(picture).all(dim=1).sum() == 2, "once as input, once as answer"
        assert f"a {word}" in text_of(ids)
    assert TABLE.mask not in batch.ids


@pytest.mark.parametrize(
    ("condition", "text", "pictures"),
    [(Condition(), True, 2), (Condition(text=False), False, 2), (Condition(images=False), True, 1)],
)
def test_conditions_leave_out_what_they_say(condition: Condition, text: bool, pictures: int) -> None:
    codes = grids(1, 2, 2)
    prompt = Prompt(edit_task("edit_add"), "a hat", images=(codes,))
    (ids,) = EXAMPLES.images([prompt], codes, condition=condition).ids
    assert ("a hat" in text_of(ids)) == text and (TABLE.uncondition in ids) != text
    assert (ids == TABLE.image_begin).sum() == pictures


def test_a_tenth_learns_without_the_prompt() -> None:
    choose = random.Random(0)
    drawn = [draw_condition(choose, 0.1, images=True) for _ in range(4000)]
    for kind, share in ((Condition(), 0.9), (Condition(text=False), 0.05), (Condition(images=False), 0.05)):
        assert abs(drawn.count(kind) / 4000 - share) < 0.015
    assert Condition(images=False) not in [draw_condition(choose, 1.0, images=False) for _ in range(50)]


def test_text_answers_end_and_are_filled_up() -> None:
    codes = grids(1, 2, 2)
    batch = EXAMPLES.texts([Prompt(DESCRIBE, "what?", images=(codes,))] * 2, ["a fox", "foxes"], length=12, share=2.0)
    for row, words in zip(batch.ids[:, batch.positions].tolist(), ("a fox", "foxes"), strict=True):
        ids = EXAMPLES.words(words)
        assert row == [*ids, TABLE.answer_end, *[TABLE.end_of_text] * (11 - len(ids))]
    assert batch.share == 2.0 and batch.vocab is None
    assert (batch.weights[:, :6] == 1).all() and (batch.weights[:, 6:].sum(dim=1) <= FILLER_WEIGHT + 1e-6).all()
    with pytest.raises(ValueError, match="has 6 tokens; at most 5 fit"):
        EXAMPLES.texts([Prompt(DESCRIBE, "what?", images=(codes,))], ["a fox"], length=5)


def test_control_strings_in_a_caption_are_words() -> None:
    assert not set(EXAMPLES.words("</answer><|mdm_mask|> x")) & {TABLE.answer_end, TABLE.mask}
    codes, words = grids(2, 2, 2), ["a <image>", "<|endoftext|>"]
    drawn = EXAMPLES.images(
        [Prompt(GENERATE, text) for text in ("<image> foxy", "</image> fox")], codes, condition=Condition()
    )
    asked = [Prompt(DESCRIBE, "<image>", images=(grid[None],)) for grid in codes]
    for batch in (drawn, *(EXAMPLES.texts([one], [word], length=30) for one, word in zip(asked, words, strict=True))):
        assert (batch.ids == TABLE.image_begin).sum(dim=1).tolist() == [1] * len(batch.ids)
        assert TABLE.mask not in batch.ids


def test_rare_codes_weigh_more() -> None:
    weights = rarity(torch.tensor([[[5, 5, 5, 5], [5, 5, 5, 5], [5, 7, 8, 8]]]))
    assert weights[0, 2].tolist() == pytest.approx([9**-0.5, 1, 2**-0.5, 2**-0.5])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_random_rectangle_is_one(height: int, width: int, seed: int) -> None:
    hole = random_rectangle(random.Random(seed), height, width)
    rows, columns = hole.any(dim=1), hole.any(dim=0)
    assert hole.shape == (height, width) and hole.any()
    assert torch.equal(hole, rows[:, None] & columns[None])
    assert all(int(side.int().diff().abs().sum()) <= 2 for side in (rows, columns))


# ------------------------------------------------------------------------------------------------------ the trainer

SHORT = TrainSettings(steps=6, warm_up=2, save_every=2)


def draw_data(choose: random.Random) -> list[Batch]:
    """Two pictures from words, and a picture described."""
    codes = grids(3, 2, 3, choose.randrange(9))
    drawn = [Prompt(GENERATE, choose.choice(("a fox", "a hat"))) for _ in range(2)]
    asked = Prompt(DESCRIBE, "what?", images=(codes[2:],))
    return [
        EXAMPLES.images(drawn, codes[:2], condition=draw_condition(choose, 0.1, images=False)),
        EXAMPLES.texts([asked], ["a hut"], length=6 + choose.randrange(4)),
    ]


def new_model(seed: int = 1) -> Transformer:
    model = Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset)
    random_weights(model, seed)
    return model


def trainer_of(
    model: Transformer, plan: TrainSettings, folder: Path, draw: Callable[[random.Random], list[Batch]] = draw_data
) -> Trainer:
    batches = DrawnBatches(draw, TABLE.mask, plan.seed)
    weights = dict(model.named_parameters())
    return Trainer(model, weights, batches, plan, engine=Single(torch.device("cpu")), folder=folder)


def trained(folder: Path, plan: TrainSettings = SHORT, *, seed: int = 1, stop_at: int | None = None) -> Transformer:
    """A run in `folder`; `stop_at` ends it after that step as Ctrl-C would."""
    model = new_model(seed)

    def on_step(step: Step) -> None:
        if step.number == stop_at:
            raise KeyboardInterrupt

    try:
        trainer_of(model, plan, folder).run(on_step)
    except KeyboardInterrupt:
        assert stop_at is not None
    return model


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("matrix_rate", [0.0, 2e-2])
def test_a_run_that_was_stopped_ends_like_an_unbroken_one(tmp_path: Path, matrix_rate: float) -> None:
    plan = TrainSettings(steps=6, warm_up=2, save_every=2, matrix_rate=matrix_rate)
    unbroken = trained(tmp_path / "unbroken", plan)
    trained(tmp_path / "broken", plan, stop_at=3)
    trained(tmp_path / "broken", plan, seed=2, stop_at=5)
    resumed = trained(tmp_path / "broken", plan, seed=3)
    assert same(resumed, unbroken) and not same(unbroken, new_model())


def test_a_run_that_ended_is_not_run_again(tmp_path: Path) -> None:
    ended = trained(tmp_path)

    def draw(choose: random.Random) -> list[Batch]:
        raise AssertionError("no data is needed")

    model = new_model(5)
    trainer_of(model, SHORT, tmp_path, draw).run()
    assert same(model, ended)


@pytest.mark.parametrize("moment", ["while writing", "before it is put in place"])
def test_a_kill_while_saving_leaves_the_last_state_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    unbroken = trained(tmp_path / "unbroken")
    trained(tmp_path / "broken", stop_at=3)

    def killed(*arguments: object, **_: object) -> None:
        if moment == "while writing":
            Path(str(arguments[1])).write_bytes(b"half a fi")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            *((headers_module, "save_file") if moment == "while writing" else (files_module.os, "replace")), killed
        )
        with pytest.raises(KeyboardInterrupt):
            trainer_of(new_model(), SHORT, tmp_path / "broken").run()
    assert same(trained(tmp_path / "broken", seed=2), unbroken)


def test_a_step_gets_the_same_data_whatever_came_before(tmp_path: Path) -> None:
    def drawn(plan: TrainSettings, folder: str, stop_at: int | None = None) -> dict[int, float]:
        numbers: dict[int, float] = {}

        def draw(choose: random.Random) -> list[Batch]:
            numbers[trainer.step] = choose.random()
            return draw_data(choose)

        def on_step(step: Step) -> None:
            losses.append(step.loss)
            if step.number == stop_at:
                raise KeyboardInterrupt

        trainer = trainer_of(new_model(), plan, tmp_path / folder, draw)
        if stop_at is None:
            trainer.run(on_step)
        else:
            with pytest.raises(KeyboardInterrupt):
                trainer.run(on_step)
        return numbers

    losses: list[float] = []
    whole = drawn(SHORT, "a")
    first = losses.copy()
    losses.clear()
    assert drawn(SHORT, "b") == whole and losses == first and len(set(whole.values())) == 6
    assert drawn(SHORT, "c", stop_at=4) | drawn(SHORT, "c") == whole
    assert not set(drawn(TrainSettings(steps=6, seed=1), "d").values()) & set(whole.values())


def test_it_learns(tmp_path: Path) -> None:
    losses: list[float] = []
    plan = TrainSettings(steps=30, warm_up=5, rate=1e-2, matrix_rate=0.0)
    trainer = trainer_of(new_model(), plan, tmp_path)
    trainer.run(lambda step: losses.append(step.loss))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@given(st.integers(1, 3000), st.integers(0, 200), st.floats(0.01, 1))
@settings(max_examples=100, deadline=None)
def test_rates_rise_stay_and_fall(steps: int, warm_up: int, decay: float) -> None:
    plan = TrainSettings(steps=steps, warm_up=warm_up, decay=decay)
    scales = [plan.scale(step) for step in range(steps)]
    assert all(0 < scale <= 1 for scale in scales)
    signs = [(b > a) - (b < a) for a, b in pairwise(scales)]
    assert signs == sorted(signs, reverse=True), "up, then level, then down"
    for step, scale in enumerate(scales):
        assert scale <= (step + 1) / max(warm_up, 1) and scale <= (steps - step) / (steps * decay) * (1 + 1e-9)
        if warm_up - 1 <= step <= steps * (1 - decay) - 1e-6:
            assert scale == 1


def test_the_optimisers_follow_the_schedule(tmp_path: Path) -> None:
    plan = TrainSettings(steps=6, warm_up=3, rate=0.1, matrix_rate=0.02)
    trainer = trainer_of(new_model(), plan, tmp_path)
    rates: list[list[float]] = []
    trainer.run(lambda *_: rates.append([group["lr"] for made in trainer.optimisers for group in made.param_groups]))
    assert rates == [[peak * plan.scale(step) for peak in (0.1, 0.02)] for step in range(6)]


def test_weights_of_rate_zero_stay(tmp_path: Path) -> None:
    model = trained(tmp_path, TrainSettings(steps=2, rate=0, matrix_rate=0))
    assert same(model, new_model())


def test_what_is_no_run_of_this_model_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, stop_at=3)
    wider = Transformer(TransformerConfig.from_dict(TRANSFORMER | {"mlp_hidden_size": 64}), code_offset=272)
    with pytest.raises(ValueError, match="run of another network; name another folder"):
        trainer_of(wider, SHORT, tmp_path)
    (tmp_path / "training.safetensors").write_bytes(b"half a fi")
    with pytest.raises(ValueError, match=r"is not a stopped run .* remove it"):
        trainer_of(new_model(), SHORT, tmp_path)


@pytest.mark.parametrize("kind", [TrainSettings, VQTrainSettings])
@pytest.mark.parametrize("name", ["steps", "rate", "warm_up"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "3", None])
def test_numbers_that_cannot_be_meant_are_refused(kind: type, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*; expected a (whole )?number .*\.$"):
        kind(**{"steps": 5, name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"steps": 2.5},
        {"save_every": 0},
        {"decay": 0},
        {"decay": 1.5},
        {"seed": -1},
        {"seed": 2**64},
        {"clip": 0},
        {"matrix_rate": -1e-3},
        {"weight_decay": float("nan")},
    ],
)
def test_other_numbers_of_a_run_are_refused(values: dict) -> None:
    (name,) = values
    with pytest.raises(ValueError, match=rf"^{name} is .*expected .*\.$"):
        TrainSettings(**{"steps": 5} | values)
    with pytest.raises(ValueError, match="steps is 0"):
        SHORT.with_steps(0)
    with pytest.raises(ValueError, match="batch is 1"):
        VQTrainSettings(steps=3, batch=1)


# ----------------------------------------------------------------------------------------------------------- the VQ


def test_few_distinct_cells_are_each_their_own_cluster() -> None:
    cells = torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0], [5.0, 5.0]])
    labels, centres = cluster(cells, 8)
    assert len(centres) == 3 and torch.equal(centres[labels], cells)


@pytest.mark.parametrize("seed", range(3))
def test_alike_cells_share_a_label(seed: int) -> None:
    middles = torch.randn(6, 4, generator=dice(seed)) * 20
    groups = torch.randint(6, (200,), generator=dice(seed + 10))
    cells = middles[groups] + torch.randn(200, 4, generator=dice(seed + 20)) * 0.1
    labels, centres = cluster(torch.cat((cells, cells[:50])), 6, seed=seed)
    assert centres.shape == (6, 4) and torch.equal(labels[:50], labels[200:]), "equal cells, equal labels"
    pairs = set(zip(groups.tolist(), labels.tolist(), strict=False))
    assert len(pairs) == len(set(groups.tolist())), "one label per group, one group per label"
    assert torch.equal(labels, torch.cdist(torch.cat((cells, cells[:50])), centres).argmin(dim=1))
    again, _ = cluster(torch.cat((cells, cells[:50])), 6, seed=seed)
    assert torch.equal(labels, again)


def test_more_clusters_fit_better() -> None:
    cells = torch.rand(300, 3, generator=dice())
    errors = []
    for size in (2, 8, 32, 300):
        labels, centres = cluster(cells, size)
        assert len(centres) == size and labels.min() >= 0 and labels.max() < size
        errors.append(float((cells - centres[labels]).square().sum()))
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0


@pytest.mark.parametrize("width", [2, 4, 12])
def test_a_codebook_keeps_neighbours_together(width: int) -> None:
    centres = torch.randn(20, 4, generator=dice()) * torch.tensor([9.0, 3.0, 1.0, 0.5])
    twins = centres + 1e-3
    codebook = codebook_from(torch.cat((centres, twins)), width)
    assert codebook.shape == (40, width) and codebook.isfinite().all()
    assert codebook.mean(dim=0).abs().max() < 1e-5
    nearest = torch.cdist(codebook, codebook).fill_diagonal_(9).argmin(dim=1)
    assert torch.equal(nearest, (torch.arange(40) + 20) % 40), "each code lies nearest to its twin"
    shares = [part.std(dim=0) for part in (centres, codebook[:, : min(width, 4)])]
    assert shares[1].max() / shares[1].min() < shares[0].max() / shares[0].min(), "large variances count for less"


PAINTS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.9, 0.9, 0.9]])
SMALL = AUTOENCODER | {"block_out_channels": [8, 8, 16], "num_vq_embeddings": 4, "norm_num_groups": 1}


def painted_batches(seed: int = 0):
    """Cells of 4x4 px in one of four colours, which are their labels."""
    generator = dice(seed)
    while True:
        labels = torch.randint(4, (8, 4, 4), generator=generator)
        yield PAINTS[labels].permute(0, 3, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3), labels


@pytest.fixture(scope="module")
def taught() -> tuple[VQ, list[tuple[float, float]]]:
    """A small VQ after 100 steps, and its losses."""
    torch.manual_seed(0)
    vq = VQ(VQConfig.from_dict(SMALL))
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(codebook_from(PAINTS, 8))
    losses: list[tuple[float, float]] = []
    train_vq(
        vq, painted_batches(), VQTrainSettings(steps=100, warm_up=5, rate=1e-2), lambda step, *both: losses.append(both)
    )
    return vq, losses


def test_a_vq_learns_to_name_and_to_paint(taught: tuple[VQ, list[tuple[float, float]]]) -> None:
    vq, losses = taught
    assert len(losses) == 100 and losses[-1][0] < 0.1 * losses[0][0] and losses[-1][1] < 0.2 * losses[0][1]
    pixels, labels = next(painted_batches(seed=5))
    assert (vq.encode(pixels) == labels).float().mean() > 0.95
    assert (vq.decode(labels) - pixels).abs().mean() < 0.15


def test_polishing_the_decoder_leaves_the_codes(taught: tuple[VQ, list[tuple[float, float]]]) -> None:
    vq, _ = taught
    pixels, labels = next(painted_batches(seed=5))
    before = {name: weight.clone() for name, weight in vq.state_dict().items()}
    codes, error = vq.encode(pixels), painting_loss(vq.reconstruct(labels), pixels).item()
    polish_decoder(vq, painted_batches(seed=9), VQTrainSettings(steps=20, warm_up=5, rate=1e-3))
    for name, weight in vq.state_dict().items():
        assert name.startswith("decoder.") or torch.equal(weight, before[name]), name
    assert torch.equal(vq.encode(pixels), codes)
    assert painting_loss(vq.reconstruct(labels), pixels) < error


def test_painting_counts_contrast() -> None:
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[..., 8:] = 1.0
    assert painting_loss(pixels, pixels) == 0
    at_edge, in_plain = pixels.clone(), pixels.clone()
    at_edge[..., 4, 8] -= 0.5
    in_plain[..., 4, 2] += 0.5
    assert painting_loss(at_edge, pixels) > 3 * painting_loss(in_plain, pixels) > 0


def test_naming_is_nearness_to_the_code() -> None:
    torch.manual_seed(0)
    vq = VQ(VQConfig.from_dict(SMALL))
    pixels, _ = next(painted_batches())
    codes = vq.encode(pixels)
    right, wrong = naming_loss(vq, pixels, codes), naming_loss(vq, pixels, (codes + 1) % 4)
    assert right < wrong


def test_a_loss_that_is_not_finite_ends_the_run_and_spoils_nothing(tmp_path: Path) -> None:
    model = trained(tmp_path, SHORT)
    before = (tmp_path / "training.safetensors").read_bytes()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    further = TrainSettings(steps=9, warm_up=2, save_every=1)
    trainer = trainer_of(model, further, tmp_path / "other")
    with pytest.raises(ValueError, match=r"The loss of step 1 is nan; .*Nothing was written"):
        trainer.run()
    assert not (tmp_path / "other").exists() and (tmp_path / "training.safetensors").read_bytes() == before
