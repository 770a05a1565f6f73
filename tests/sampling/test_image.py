"""The two loops: what is known stays, what is unknown is filled, and only what is wanted is computed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.op_counts import OpCounts
from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.transformer import Transformer
from dimoo_core.sampling.guidance import Branch, Guidance
from dimoo_core.sampling.image import ImageSettings, sample_image
from dimoo_core.sampling.ml_cache import CachePolicy
from dimoo_core.sampling.orders import ORDERS, Candidates
from dimoo_core.sampling.schedule import cosine
from dimoo_core.sampling.text import TextSettings, sample_text
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.layout import cell_positions
from dimoo_core.training.live_bytes import LiveBytes

from ..tiny import CODES, TABLE, TRANSFORMER, random_weights

PREFIX = torch.tensor([[256, 7, 257, 258, 65, 66, 259]])
BLIND = torch.tensor([[256, 7, 257, 258, 264, 259]])
CACHE = CachePolicy(0.8, 0.2, 3)
HOLES = CachePolicy(0.8, 0.2, 3, candidates="holes")
FROZEN = CachePolicy(0.8, 0.4, 3, candidates="holes", prefix_interval=4)


def network(**changes) -> Transformer:
    config = TransformerConfig.from_dict(TRANSFORMER | changes)
    transformer = Transformer(config, code_offset=TABLE.code_offset)
    random_weights(transformer, 3)
    return transformer


TINY = network()


def image(canvas: Canvas, *, scale: float = 2.0, transformer=TINY, prefix=PREFIX, on_step=None, **changes) -> Canvas:
    branches = [Branch(BLIND, scale)]
    start = {"guidance": Guidance(start=changes.pop("guidance_start"))} if "guidance_start" in changes else {}
    plan = ImageSettings(**{"steps": 6} | changes | start)
    return sample_image(transformer, TABLE, canvas, prefix, branches, settings=plan, on_step=on_step)


def half_painted(batch: int, height: int, width: int, share: float = 0.5, seed: int = 0) -> Canvas:
    chance = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, CODES, (batch, height, width), generator=chance)
    unknown = torch.rand(codes.shape, generator=chance) < share
    unknown[:, 0, 0] = True
    return Canvas(codes, unknown)


def recorder(transformer: Transformer = TINY) -> SimpleNamespace:
    """A transformer that notes positions computed, logits handed back and the vocabulary rows of every pass."""
    passes: list[tuple[int, int, int]] = []

    def call(ids, **wanted):
        logits = transformer(ids, **wanted)
        passes.append((ids.shape[1], logits.shape[1], logits.shape[2]))
        return logits

    return SimpleNamespace(call=call, passes=passes)


# Images -------------------------------------------------------------------------------------------------------------


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    share=st.floats(0, 1),
    steps=st.integers(1, 9),
    temperature=st.sampled_from([0, 0.5, 1.0, 10.0]),
    cache=st.sampled_from([None, CACHE, HOLES, FROZEN, CachePolicy(0.99, 0.0, 2)]),
    start=st.sampled_from([0.0, 0.3, 0.99]),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=60, deadline=None)
def test_holes_are_filled_and_known_cells_stay(height, width, share, steps, temperature, cache, start, seed) -> None:
    canvas = half_painted(2, height, width, share, seed % 1000)
    before = canvas.codes.clone(), canvas.unknown.clone()
    plan = {"steps": steps, "temperature": temperature, "cache": cache, "guidance_start": start}
    full = image(canvas, seed=seed, **plan)
    assert not full.unknown.any() and int(full.codes.min()) >= 0 and int(full.codes.max()) < CODES
    assert torch.equal(full.codes[~canvas.unknown], canvas.codes[~canvas.unknown])
    assert torch.equal(canvas.codes, before[0]) and torch.equal(canvas.unknown, before[1]), (
        "the canvas given is a value"
    )


@pytest.mark.parametrize("cache", [None, CACHE, HOLES, FROZEN])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_item_of_a_batch_equals_the_single_run_with_its_seed(
    cache: CachePolicy | None, temperature: float
) -> None:
    canvas = half_painted(3, 6, 5)
    assert len(set(canvas.holes.tolist())) == 3, "items with different numbers of holes"
    last = 2**64 - 1  # and seeds that wrap
    batch = image(canvas, temperature=temperature, seed=last, cache=cache)
    for item in range(3):
        single = Canvas(canvas.codes[item : item + 1], canvas.unknown[item : item + 1])
        alone = image(single, temperature=temperature, seed=(last + item) % 2**64, cache=cache)
        assert torch.equal(batch.codes[item], alone.codes[0])


def test_each_item_of_a_batch_may_have_its_own_prompt() -> None:
    prefix = torch.cat((PREFIX, PREFIX.flip(1)))
    batch = image(Canvas.empty(2, 4, 4), prefix=prefix)
    for item in range(2):
        assert torch.equal(
            batch.codes[item], image(Canvas.empty(1, 4, 4), prefix=prefix[item : item + 1], seed=item).codes[0]
        )


def test_an_item_that_is_full_is_handed_back_beside_one_that_is_not() -> None:
    canvas = half_painted(2, 4, 4)
    canvas = Canvas(canvas.codes, canvas.unknown & torch.tensor([True, False])[:, None, None])
    full = image(canvas)
    assert torch.equal(full.codes[1], canvas.codes[1]) and not full.unknown.any()


def test_a_full_canvas_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="already full, so there is nothing to sample"):
        image(Canvas.from_codes(torch.zeros(1, 4, 4, dtype=torch.int64)))


def test_temperature_0_gives_one_picture_and_seeds_differ_otherwise() -> None:
    blank = Canvas.empty(1, 4, 4)
    assert torch.equal(image(blank, temperature=0, seed=1).codes, image(blank, temperature=0, seed=2).codes)
    assert torch.equal(image(blank, seed=1).codes, image(blank, seed=1).codes)
    assert not torch.equal(image(blank, seed=1).codes, image(blank, seed=2).codes)


def test_a_cache_that_reuses_nothing_changes_nothing() -> None:
    all_rows = CachePolicy(ratio=1e-9, warmup=0.0, refresh_interval=4)
    canvas = half_painted(2, 6, 6)
    assert all_rows.rows(len(PREFIX[0]) + 46) == len(PREFIX[0]) + 46
    for temperature in (0.0, 1.0):
        exact = image(canvas, temperature=temperature, steps=9)
        assert torch.equal(exact.codes, image(canvas, temperature=temperature, steps=9, cache=all_rows).codes)


def test_a_zero_scale_asks_no_branch() -> None:
    seen = recorder()
    image(Canvas.empty(1, 3, 3), scale=0.0, transformer=seen.call, steps=3)
    assert len(seen.passes) == 3
    image(Canvas.empty(1, 3, 3), transformer=seen.call, steps=3)
    assert len(seen.passes) == 9


def test_only_logits_of_codes_at_holes_are_computed() -> None:
    seen, left = recorder(), []
    image(Canvas.empty(1, 6, 6), transformer=seen.call, on_step=lambda *step: left.append(int(step[2].holes)))
    rows = [rows for _, rows, _ in seen.passes]
    assert rows == [count for count in [36, *left[:-1]] for _ in range(2)], "each branch, at the holes alone"
    assert {vocabulary for _, _, vocabulary in seen.passes} == {CODES}


def test_a_cached_step_computes_only_its_share_of_positions() -> None:
    seen = recorder()
    image(Canvas.empty(1, 6, 6), transformer=seen.call, steps=10, cache=CACHE)
    lengths = {PREFIX.shape[1] + 46, BLIND.shape[1] + 46}
    full = [step for step in range(10) if seen.passes[2 * step][0] in lengths]
    assert full == [0, 1, 2, 5, 8]
    for step in set(range(10)) - set(full):
        assert [seen.passes[2 * step + branch][0] for branch in range(2)] == [CACHE.rows(53), CACHE.rows(52)]
    assert {vocabulary for _, _, vocabulary in seen.passes} == {CODES}


def test_of_the_holes_alone_a_cached_step_computes_their_share_and_what_was_decided() -> None:
    seen = recorder()
    image(Canvas.empty(1, 6, 6), transformer=seen.call, steps=10, cache=HOLES)
    most = max(36 - cosine(36, 10)[0], *(a - b for a, b in pairwise(cosine(36, 10))))
    for step in (3, 4, 6, 7, 9):
        assert seen.passes[2 * step][:2] == seen.passes[2 * step + 1][:2] == (8 + most, 8 + most)
    assert [seen.passes[2 * step][1] for step in (0, 1, 2)] == [36, *cosine(36, 10)[:2]], "full: at the holes alone"


def test_what_was_decided_is_computed_at_the_next_step_whatever_its_certainty() -> None:
    computed, canvases = [], []

    def call(ids, positions=None, **wanted):
        computed.append(None if positions is None else set(positions[0].tolist()))
        return TINY(ids, positions=positions, **wanted)

    image(
        Canvas.empty(1, 6, 6),
        scale=0.0,
        transformer=call,
        steps=12,
        cache=CachePolicy(0.9, 0.0, 5, candidates="holes"),
        on_step=lambda *step: canvases.append(step[2].unknown[0].flatten()),
    )
    places = PREFIX.shape[1] + cell_positions(6, 6, "cpu")
    cached = [step for step in range(1, 12) if computed[step] is not None]
    assert len(cached) == 9
    for step in cached:
        before = canvases[step - 2] if step > 1 else torch.ones(36, dtype=torch.bool)
        assert set(places[before & ~canvases[step - 1]].tolist()) <= computed[step]


def test_a_frozen_prefix_is_computed_once_in_its_interval() -> None:
    seen = recorder()
    image(Canvas.empty(1, 6, 6), scale=0.0, transformer=seen.call, steps=12, cache=FROZEN)
    whole, answer = PREFIX.shape[1] + 46, 46
    full = {step: seen.passes[step][0] for step in (0, 1, 2, 3, 4, 7, 10)}
    assert full == {0: whole, 1: answer, 2: answer, 3: answer, 4: whole, 7: answer, 10: whole}
    assert all(seen.passes[step][0] < answer for step in set(range(12)) - set(full))


def test_a_prefix_frozen_where_it_would_not_change_costs_nothing() -> None:
    """In one layer keys and values of the prefix depend on the prefix alone, so that freezing it is exact."""
    shallow, canvas = network(n_layers=1), half_painted(2, 6, 6)
    policies = [CachePolicy(0.8, 0.7, 3, prefix_interval=interval) for interval in (1, 100)]
    pictures = [image(canvas, transformer=shallow, steps=9, cache=policy).codes for policy in policies]
    assert torch.equal(*pictures)


@pytest.mark.parametrize("cache", [None, CACHE, FROZEN])
def test_guidance_that_starts_late_asks_its_branch_no_sooner(cache: CachePolicy | None) -> None:
    seen = recorder()
    image(Canvas.empty(1, 6, 6), transformer=seen.call, steps=10, cache=cache, guidance_start=0.35)
    assert len(seen.passes) == 10 + 7, "of 10 steps the first 3 go without"
    assert seen.passes[4][0] == BLIND.shape[1] + 46, "and it begins with a full pass, when the other is at a cached one"


@pytest.mark.parametrize("cache", [None, CACHE])
def test_guidance_from_the_start_is_the_plain_run_and_a_late_one_is_another(cache: CachePolicy | None) -> None:
    blank = Canvas.empty(1, 6, 6)
    plain, late = image(blank, cache=cache), image(blank, cache=cache, guidance_start=0.5)
    assert torch.equal(plain.codes, image(blank, cache=cache, guidance_start=0.0).codes)
    assert torch.equal(plain.codes, image(blank, cache=cache, guidance_start=0.1).codes), "less than one of 6 steps"
    assert not torch.equal(plain.codes, late.codes)


def with_holes(*counts: int) -> Canvas:
    """Canvases of 6 x 6 cells, all known but for so many."""
    codes = torch.randint(0, CODES, (len(counts), 6, 6), generator=torch.Generator().manual_seed(1))
    places = torch.rand(len(counts), 36, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    unknown = torch.stack([place < count for place, count in zip(places, counts, strict=True)])
    return Canvas(codes, unknown.view(-1, 6, 6))


def test_late_guidance_of_a_small_mask_begins_in_its_own_plan() -> None:
    seen, small = recorder(), with_holes(10)
    took = len(cosine(10, 64))
    late = image(small, transformer=seen.call, steps=64, guidance_start=0.3)
    assert took <= 10 and len(seen.passes) == took + took - int(0.3 * took)
    assert not torch.equal(late.codes, image(small, steps=64, scale=0.0).codes)


@pytest.mark.parametrize("cache", [None, CACHE, HOLES, FROZEN])
@pytest.mark.parametrize("own", [False, True], ids=["one prompt", "own prompts"])
def test_late_guidance_of_a_batch_is_that_of_its_singles(cache: CachePolicy | None, own: bool) -> None:
    """Masks of 36, 10, 0, 24 and 10 cells have plans of different lengths; guidance begins at as different steps."""
    canvas = with_holes(36, 10, 0, 24, 10)
    assert len({int(0.4 * len(cosine(count, 32))) for count in (36, 10, 24)}) == 3
    blind = torch.stack([BLIND[0].roll(item) for item in range(5)]) if own else BLIND

    def guided(canvas: Canvas, blind: torch.Tensor, seed: int) -> torch.Tensor:
        settings = ImageSettings(steps=32, cache=cache, seed=seed, guidance=Guidance(start=0.4))
        return sample_image(TINY, TABLE, canvas, PREFIX, [Branch(blind, 2.0)], settings=settings).codes

    batch = guided(canvas, blind, 3)
    for item in (0, 1, 3, 4):
        single = Canvas(canvas.codes[item : item + 1], canvas.unknown[item : item + 1])
        alone = guided(single, blind[item : item + 1] if own else blind, 3 + item)
        assert torch.equal(batch[item], alone[0])


@pytest.mark.parametrize("cache", [None, HOLES])
def test_working_in_parts_gives_the_same_picture(cache: CachePolicy | None) -> None:
    canvas, asked = half_painted(2, 8, 8), []

    def call(ids, chunk_rows=None, **wanted):
        asked.append(chunk_rows)
        return TINY(ids, chunk_rows=chunk_rows, **wanted)

    plan = ImageSettings(steps=6, cache=cache)
    parts = sample_image(call, TABLE, canvas, PREFIX, [Branch(BLIND, 2.0)], settings=plan, chunk_rows=64)
    assert set(asked) == {64} and torch.equal(parts.codes, image(canvas, cache=cache).codes)


@pytest.mark.parametrize("sampler", [{}, {"corrections": 1, "corrections_start": 0}, {"polish": 2}])
def test_logits_of_a_step_take_no_more_than_they_are(sampler: dict) -> None:
    """Two branches of 1024 holes and 4096 codes: 17 MB each in bf16, beside them only parts of them in fp32."""
    table = replace(TABLE, codebook_size=4096)
    chance = torch.Generator().manual_seed(0)
    made = torch.randn(1, 1024, 4096, generator=chance).bfloat16()
    with LiveBytes() as live:
        sample_image(
            lambda ids, rows, **_: made[:, : rows.shape[1]].clone(),
            table,
            Canvas.empty(1, 32, 32),
            PREFIX,
            [Branch(BLIND, 2.0)],
            settings=ImageSettings(steps=2, temperature=0, **sampler),
        )
    part = 2**22 * 4
    assert 2 * made.nbytes < live.peak <= 2 * made.nbytes + 3.5 * part


def test_a_step_that_nobody_reuses_stores_nothing() -> None:
    stored = []

    def call(ids, cache=None, **wanted):
        stored.append(cache is not None and wanted.get("positions") is None)
        return TINY(ids, cache=cache, **wanted)

    image(Canvas.empty(1, 6, 6), scale=0.0, transformer=call, steps=10, cache=CACHE)
    assert [step for step in range(10) if stored[step]] == [2, 5, 8]


def test_progress_counts_and_shows_the_forming_picture() -> None:
    seen = []
    full = image(Canvas.empty(1, 4, 4), on_step=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(done, 6) for done in range(1, 7)]
    holes = [int(canvas.holes) for _, _, canvas in seen]
    assert holes == sorted(holes, reverse=True) and holes[-1] == 0, "and a canvas shown does not change later"
    assert torch.equal(seen[-1][2].codes, full.codes)


def test_cancel_passes_through_at_once_and_leaves_the_model_usable() -> None:
    class Cancelled(BaseException):
        pass

    def cancel(done, total, canvas):
        raise Cancelled

    blank, seen = Canvas.empty(1, 4, 4), recorder()
    expected = image(blank, cache=CACHE)
    with pytest.raises(Cancelled):
        image(blank, transformer=seen.call, on_step=cancel, cache=CACHE)
    assert len(seen.passes) == 2
    assert torch.equal(image(blank, cache=CACHE).codes, expected.codes)


def test_no_gradients_are_kept_though_the_weights_want_some() -> None:
    assert all(weight.requires_grad for weight in TINY.parameters())
    full = image(Canvas.empty(1, 3, 3), cache=CACHE)
    assert not full.codes.requires_grad and all(weight.grad is None for weight in TINY.parameters())


@pytest.mark.parametrize("cache", [None, CACHE, HOLES, FROZEN])
@pytest.mark.parametrize("layers", [1, 5])
def test_the_host_waits_at_most_twice_a_step_however_deep_the_model(cache: CachePolicy | None, layers: int) -> None:
    canvas, net = half_painted(2, 8, 8), network(n_layers=layers)

    def waits(steps: int) -> int:
        [cosine(count, steps) for count in canvas.holes.tolist()]  # made on the CPU, once
        with OpCounts() as ops:
            image(canvas, transformer=net, steps=steps, cache=cache)
        return sum(ops.waits.values())

    assert 6 <= waits(12) - waits(6) <= 2 * 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 10**6}, "steps is 1000000"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"seed": 2**64}, "seed is"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*expected a .*\."):
        ImageSettings(**values)


def test_codes_of_another_vq_and_prompts_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="encode the picture with the VQ of the same checkpoint"):
        image(Canvas(torch.full((1, 2, 2), CODES), torch.tensor([[[True, False], [False, False]]])))
    with pytest.raises(ValueError, match="one prompt, or one each"):
        image(Canvas.empty(3, 2, 2), prefix=PREFIX.expand(2, -1))


# Text ---------------------------------------------------------------------------------------------------------------


def answer(prefix=PREFIX, *, transformer=TINY, on_step=None, **changes) -> list[list[int]]:
    plan = TextSettings(**{"max_tokens": 16, "steps": 8, "block_length": 8} | changes)
    return sample_text(transformer, TABLE, prefix, settings=plan, on_step=on_step)


def scripted(*words: int):
    """A transformer that is sure of these answer tokens, the more so the further left they stand."""

    def call(ids, rows, **_):
        places = rows - PREFIX.shape[1] - 1
        wanted = torch.tensor(words)[places]
        logits = torch.zeros(*rows.shape, TABLE.codes.stop)
        sure = 10.0 - 0.1 * places.float()
        return logits.scatter(2, wanted[..., None], sure[..., None])

    return call


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_each_answer_of_a_batch_equals_the_single_one_with_its_seed(temperature: float, cfg: float) -> None:
    prefix = torch.cat((PREFIX, PREFIX.flip(1), PREFIX + 1))
    batch = answer(prefix, temperature=temperature, cfg=cfg, seed=5)
    for item in range(3):
        (alone,) = answer(prefix[item : item + 1], temperature=temperature, cfg=cfg, seed=5 + item)
        assert batch[item] == alone


def test_blocks_are_decided_left_to_right() -> None:
    seen = []
    answer(transformer=scripted(*range(1, 17)), on_step=lambda *step: seen.append(step[2][0].tolist()))
    for step, tokens in enumerate(seen, start=1):
        assert [token for token in tokens if token != TABLE.mask] == list(range(1, 2 * step + 1))


@pytest.mark.parametrize("end", [TABLE.answer_end, TABLE.end_of_text, TABLE.pad])
def test_an_answer_ends_at_its_first_end_and_sampling_stops_there(end: int) -> None:
    seen, words = [], [1, 2, 3, end, *[9] * 12]
    assert answer(transformer=scripted(*words), on_step=lambda *step: seen.append(step[:2])) == [[1, 2, 3]]
    assert seen == [(1, 8), (2, 8)]


def test_an_end_with_a_hole_before_it_ends_nothing_yet() -> None:
    def call(ids, rows, **_):  # surest on the right: the end comes first
        logits = scripted(*[1, 2, 3, 4, 5, 6, 7, TABLE.pad, *[9] * 8])(ids, rows)
        return logits * (1 + rows[..., None])

    seen = []
    assert answer(transformer=call, on_step=lambda *step: seen.append(step)) == [[1, 2, 3, 4, 5, 6, 7]]
    assert len(seen) == 4


def test_a_short_answer_waits_for_a_longer_one_in_the_batch() -> None:
    def call(ids, rows, **_):
        both = torch.stack(
            (scripted(TABLE.pad, *[9] * 15)(ids, rows[:1])[0], scripted(*range(1, 17))(ids, rows[1:])[0])
        )
        return both

    assert answer(PREFIX.expand(2, -1), transformer=call) == [[], list(range(1, 17))]


def test_only_logits_of_undecided_tokens_up_to_the_blocks_end_are_computed() -> None:
    seen = recorder()
    answer(transformer=seen.call, cfg=1.0)
    assert [rows for _, rows, _ in seen.passes] == [count for count in [8, 6, 4, 2] * 2 for _ in range(2)]


def test_guidance_hides_everything_but_the_answer() -> None:
    hidden = []

    def call(ids, rows, **_):
        hidden.append(ids[0].tolist())
        return scripted(*range(1, 17))(ids, rows)

    answer(transformer=call, cfg=1.0)
    for asked, blind in zip(hidden[::2], hidden[1::2], strict=True):
        length = PREFIX.shape[1]
        assert asked[:length] == PREFIX[0].tolist() and set(blind[: length + 1]) == {TABLE.mask} == {blind[-1]}
        assert asked[length + 1 : -1] == blind[length + 1 : -1]


def test_a_sampled_mask_id_leaves_its_hole_for_the_next_block() -> None:
    words = [TABLE.mask, *range(2, 17)]
    (tokens,) = answer(transformer=scripted(*words))
    assert tokens.count(TABLE.mask) >= 1 and len(tokens) == 16


def test_cancel_passes_through_text_too() -> None:
    def cancel(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(on_step=cancel)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 50, "max_tokens": 128, "block_length": 32}, "use 48 or 52 steps"),
        ({"block_length": 5}, "does not divide max_tokens 16"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"cfg": float("nan")}, "cfg is nan"),
        ({"cfg": -1.0}, "cfg is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_text_settings_out_of_range_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextSettings(**{"max_tokens": 16, "steps": 8, "block_length": 8} | values)


# Exchangeable parts -------------------------------------------------------------------------------------------------


def linear(holes: int, steps: int) -> list[int]:
    """As many cells at every step: a schedule that only the tests have."""
    steps = min(steps, holes)
    return [holes - holes * (step + 1) // steps for step in range(steps)]


def least_sure_first(of: Candidates) -> torch.Tensor:
    """The other way round: the surest cells stay masked."""
    order = of.log_prob.masked_fill(~of.unknown, -torch.inf).argsort(dim=1, descending=True).argsort(dim=1)
    return order < of.keep[:, None]


@pytest.mark.parametrize("cache", [None, CACHE, HOLES, FROZEN])
def test_a_second_schedule_runs_through_the_loop(cache: CachePolicy | None) -> None:
    left = []
    canvas = half_painted(2, 6, 6)
    image(canvas, steps=5, cache=cache, schedule=linear, on_step=lambda *now: left.append(now[2].holes.tolist()))
    expected = [linear(holes, 5) for holes in canvas.holes.tolist()]
    assert left == [list(step) for step in zip(*expected, strict=True)]


def test_the_cache_computes_what_the_schedule_decides() -> None:
    """The budget of a cached step holds the most that a step decides; another schedule decides another number."""
    passes = {}
    for schedule in (cosine, linear):
        seen = recorder()
        image(Canvas.empty(1, 6, 6), transformer=seen.call, steps=9, cache=HOLES, schedule=schedule)
        most = max(a - b for a, b in pairwise([36, *schedule(36, 9)]))
        assert {computed for computed, _, _ in seen.passes if computed < 30} == {HOLES.rows(36) + most}
        passes[schedule] = most
    assert passes[cosine] > passes[linear]


def test_a_further_order_runs_through_the_loop(monkeypatch) -> None:
    monkeypatch.setitem(ORDERS, "least sure", least_sure_first)
    blank = Canvas.empty(1, 6, 6)
    plain, other = image(blank), image(blank, order="least sure")
    assert not other.unknown.any() and not torch.equal(plain.codes, other.codes)
