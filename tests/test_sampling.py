"""The two loops: what is known stays, what is unknown is filled, and only what is wanted is computed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dimoo_core.cache import CachePolicy
from dimoo_core.canvas import Canvas
from dimoo_core.config import TransformerConfig
from dimoo_core.guidance import Branch
from dimoo_core.sampling import ImageSettings, sample_image
from dimoo_core.text_sampling import TextSettings, sample_text
from dimoo_core.transformer import Transformer

from .tiny import CODES, TABLE, TRANSFORMER, random_weights

PREFIX = torch.tensor([[256, 7, 257, 258, 65, 66, 259]])
BLIND = torch.tensor([[256, 7, 257, 258, 264, 259]])
CACHE = CachePolicy(0.8, 0.2, 3)


def network(**changes) -> Transformer:
    config = TransformerConfig.from_dict(TRANSFORMER | changes)
    transformer = Transformer(config, code_offset=TABLE.code_offset)
    random_weights(transformer, 3)
    return transformer


TINY = network()


def image(canvas: Canvas, *, scale: float = 2.0, transformer=TINY, prefix=PREFIX, on_step=None, **changes) -> Canvas:
    branches = [Branch(BLIND, scale)]
    plan = ImageSettings(**{"steps": 6} | changes)
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
    cache=st.sampled_from([None, CACHE, CachePolicy(0.99, 0.0, 2)]),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=60, deadline=None)
def test_holes_are_filled_and_known_cells_stay(height, width, share, steps, temperature, cache, seed) -> None:
    canvas = half_painted(2, height, width, share, seed % 1000)
    before = canvas.codes.clone(), canvas.unknown.clone()
    full = image(canvas, steps=steps, temperature=temperature, cache=cache, seed=seed)
    assert not full.unknown.any() and int(full.codes.min()) >= 0 and int(full.codes.max()) < CODES
    assert torch.equal(full.codes[~canvas.unknown], canvas.codes[~canvas.unknown])
    assert torch.equal(canvas.codes, before[0]) and torch.equal(canvas.unknown, before[1]), (
        "the canvas given is a value"
    )


@pytest.mark.parametrize("cache", [None, CACHE])
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
    with pytest.raises(ValueError, match="already full, there is nothing to sample"):
        image(Canvas.from_codes(torch.zeros(1, 4, 4, dtype=torch.int64)))


def test_temperature_0_gives_one_picture_and_seeds_differ_otherwise() -> None:
    blank = Canvas.empty(1, 4, 4)
    assert torch.equal(image(blank, temperature=0, seed=1).codes, image(blank, temperature=0, seed=2).codes)
    assert torch.equal(image(blank, seed=1).codes, image(blank, seed=1).codes)
    assert not torch.equal(image(blank, seed=1).codes, image(blank, seed=2).codes)


def test_a_cache_that_reuses_nothing_changes_nothing() -> None:
    all_rows = CachePolicy(ratio=1e-9, warmup=0.0, refresh_interval=4)
    canvas = half_painted(2, 6, 6)
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


class Syncs(TorchDispatchMode):
    """Counts the operations that would make a GPU wait for the host, or the host for it."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean = name == "index" and any(part is not None and part.dtype == torch.bool for part in args[1])
        self.count += boolean or any(word in name for word in self.WAITING)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cache", [None, CACHE])
@pytest.mark.parametrize("layers", [1, 6])
def test_the_host_waits_at_most_twice_a_step_however_deep_the_model(cache: CachePolicy | None, layers: int) -> None:
    def waits(steps: int) -> int:
        with Syncs() as syncs:
            image(half_painted(2, 8, 8), transformer=network(n_layers=layers), steps=steps, cache=cache)
        return syncs.count

    waits(24), waits(12)  # the schedules are made on the CPU, once
    assert waits(24) - waits(12) <= 2 * 12


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
    with pytest.raises(ValueError, match=rf"{message}.* is needed\."):
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
