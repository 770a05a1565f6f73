"""Corrections and polish: decided cells are taken back, former holes alone, and a batch's items stay what they are."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.op_counts import OpCounts
from dimoo_core.model.config import TransformerConfig
from dimoo_core.model.transformer import Transformer
from dimoo_core.sampling.corrections import Trajectory, corrected_per_step
from dimoo_core.sampling.guidance import Branch, Guidance
from dimoo_core.sampling.image import ImageSettings, sample_image
from dimoo_core.sampling.ml_cache import CachePolicy
from dimoo_core.sampling.orders import ORDERS
from dimoo_core.sampling.polish import LEAST_SHARE, halves
from dimoo_core.sampling.schedule import cosine
from dimoo_core.sampling.selection import Standing, decide_in_chunks
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.layout import cell_positions

from ..tiny import CODES, TABLE, TRANSFORMER, random_weights

PREFIX = torch.tensor([[256, 7, 257, 258, 65, 66, 259]])
BLIND = torch.tensor([[256, 7, 257, 258, 264, 259]])
SCALE = 2.0
CACHES = {
    "exact": None,
    "all": CachePolicy(0.8, 0.2, 3),
    "holes": CachePolicy(0.8, 0.2, 3, candidates="holes"),
    "frozen": CachePolicy(0.8, 0.4, 3, candidates="holes", prefix_interval=4),
}
SAMPLERS = {
    "corrections": {"corrections": 2, "corrections_start": 0.3},
    "polish": {"polish": 3},
    "halton": {"order": "halton"},
    "random": {"order": "random"},
    "shared noise": {"shared_noise": 0.5},
    "all": {"corrections": 1, "corrections_start": 0.0, "polish": 2, "order": "random", "shared_noise": 0.3},
}


def network() -> Transformer:
    transformer = Transformer(TransformerConfig.from_dict(TRANSFORMER), code_offset=TABLE.code_offset)
    random_weights(transformer, 3)
    return transformer.requires_grad_(False)


NET = network()


def image(canvas: Canvas, *, transformer=NET, on_step=None, start: float = 0.0, how: dict | None = None, **changes):
    plan = ImageSettings(**{"steps": 8, "guidance": Guidance(start=start)} | changes)
    branches = [Branch(BLIND, SCALE)]
    return sample_image(transformer, TABLE, canvas, PREFIX, branches, settings=plan, on_step=on_step, **(how or {}))


def painted(*counts: int, height: int = 6, width: int = 5) -> Canvas:
    """Canvases whose cells are known but for so many."""
    chance = torch.Generator().manual_seed(1)
    codes = torch.randint(0, CODES, (len(counts), height, width), generator=chance)
    places = torch.rand(len(counts), height * width, generator=chance).argsort(dim=1)
    unknown = torch.stack([place < count for place, count in zip(places, counts, strict=True)])
    return Canvas(codes, unknown.view_as(codes))


def item(canvas: Canvas, index: int) -> Canvas:
    return Canvas(canvas.codes[index : index + 1], canvas.unknown[index : index + 1])


def forming(canvas: Canvas, **changes) -> list[Canvas]:
    seen = [canvas]
    image(canvas, on_step=lambda *step: seen.append(step[2]), **changes)
    return seen


class Answers:
    """The network, noting the answer of every whole pass of the conditional branch."""

    def __init__(self) -> None:
        self.answers: list[torch.Tensor] = []

    def __call__(self, ids, positions=None, **how):
        if positions is None and torch.equal(ids[0, : PREFIX.shape[1]], PREFIX[0]):
            self.answers.append(ids[:, PREFIX.shape[1] :].clone())
        return NET(ids, positions=positions, **how)


def hidden(canvas: Canvas, answer: torch.Tensor) -> torch.Tensor:
    """Which cells [B,H,W] of the canvas are masks in an answer [B,A]."""
    return (answer[:, cell_positions(*canvas.codes.shape[1:], "cpu")] == TABLE.mask).view_as(canvas.unknown)


# Whatever the sampler ------------------------------------------------------------------------------------------------


@given(
    counts=st.tuples(st.integers(1, 30), st.integers(0, 30)),
    steps=st.integers(1, 9),
    temperature=st.sampled_from([0, 0.5, 1.0]),
    cache=st.sampled_from(list(CACHES)),
    start=st.sampled_from([0.0, 0.3]),
    corrections=st.sampled_from([0, 1, 5, 99]),
    corrections_start=st.sampled_from([0.0, 0.6, 1.0]),
    polish=st.integers(0, 3),
    order=st.sampled_from(list(ORDERS)),
    shared_noise=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_holes_are_filled_and_known_cells_stay(counts, cache, **changes) -> None:
    canvas = painted(*counts)
    full = image(canvas, cache=CACHES[cache], **changes)
    assert not full.unknown.any() and int(full.codes.min()) >= 0 and int(full.codes.max()) < CODES
    assert torch.equal(full.codes[~canvas.unknown], canvas.codes[~canvas.unknown])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_item_of_a_batch_equals_the_single_run_with_its_seed(sampler: str, cache: str, temperature: float) -> None:
    """Masks of 30, 8, 0, 1 and 19 cells have plans of different lengths, guidance begins at as different steps."""
    canvas, last = painted(30, 8, 0, 1, 19), 2**64 - 1
    how = {"cache": CACHES[cache], "temperature": temperature, "steps": 12, "start": 0.3, **SAMPLERS[sampler]}
    batch = image(canvas, seed=last, **how)
    for index in (0, 1, 3, 4):
        alone = image(item(canvas, index), seed=(last + index) % 2**64, **how)
        assert torch.equal(batch.codes[index], alone.codes[0])
    assert torch.equal(batch.codes[2], canvas.codes[2])


@pytest.mark.parametrize("cache", CACHES)
def test_without_corrections_and_polish_a_decided_code_never_changes(cache: str) -> None:
    for before, after in pairwise(forming(painted(30, 11), cache=CACHES[cache])):
        assert not (after.unknown & ~before.unknown).any()
        assert torch.equal(before.codes[~before.unknown], after.codes[~before.unknown])


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_packed_passes_and_rows_in_parts_give_the_same_picture(sampler: str, cache: str) -> None:
    how = {"cache": CACHES[cache], **SAMPLERS[sampler]}
    canvas = painted(30, 12)
    plain = image(canvas, **how)
    assert torch.equal(image(canvas, **how, how={"packed": True}).codes, plain.codes)
    assert torch.equal(image(canvas, **how, how={"chunk_rows": 16}).codes, plain.codes)


@pytest.mark.parametrize("cache", ["exact", "frozen"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_host_waits_no_more_often_in_a_step(sampler: str, cache: str) -> None:
    canvas = painted(12, 9, height=4, width=3)
    how = {"cache": CACHES[cache], **SAMPLERS[sampler]}

    def waits(steps: int, **changes) -> int:
        [cosine(count, steps) for count in canvas.holes.tolist()]  # made on the CPU, once
        with OpCounts() as ops:
            image(canvas, **how | {"steps": steps} | changes)
        return sum(ops.waits.values())

    assert waits(7) - waits(5) <= 2 * 2
    if "polish" in how:
        assert waits(5, polish=3) == waits(5, polish=1), "a polishing pass needs no number from the device"


def test_temperature_0_draws_nothing_but_a_random_order() -> None:
    blank = Canvas.empty(1, 6, 5)
    for sampler, how in SAMPLERS.items():
        pair = [image(blank, temperature=0, seed=seed, **how).codes for seed in (1, 2)]
        assert torch.equal(*pair) == ("order" not in how or how["order"] != "random"), sampler


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"corrections": -1}, "corrections is -1; expected a whole number of at least 0."),
        ({"corrections": 1.5}, "corrections is 1.5; expected a whole number of at least 0."),
        ({"corrections_start": 1.1}, "corrections_start is 1.1; expected a number from 0 to 1."),
        ({"polish": -1}, "polish is -1; expected a whole number from 0 to 100."),
        ({"polish": 101}, "polish is 101; expected a whole number from 0 to 100."),
        ({"order": "spiral"}, "order is 'spiral'; expected one of confidence, halton, random."),
        ({"order": None}, "order is None; expected one of confidence, halton, random."),
        ({"shared_noise": float("nan")}, "shared_noise is nan; expected a number from 0 to 1."),
    ],
)
def test_settings_out_of_range_are_refused_in_one_sentence(values: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        ImageSettings(**values)
    assert str(error.value) == message


# Corrections --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cache", CACHES)
def test_corrections_reopen_cells_and_leave_the_schedule_as_it_is(cache: str, order: str) -> None:
    canvas = painted(30, 12)
    how = {"steps": 10, "cache": CACHES[cache], "order": order}
    seen = forming(canvas, corrections=2, corrections_start=0.5, **how)
    plain = [step.holes.tolist() for step in forming(canvas, **how)]
    assert [step.holes.tolist() for step in seen] == plain, "as many are decided after each step"
    plans = [cosine(holes, 10) for holes in canvas.holes.tolist()]
    again = [(after.unknown & ~before.unknown).flatten(1).sum(dim=1).tolist() for before, after in pairwise(seen)]
    for index, plan in enumerate(plans):
        expected = [min(2, left) if step >= len(plan) // 2 else 0 for step, left in enumerate(plan)]
        assert [counts[index] for counts in again] == expected + [0] * (len(again) - len(plan))
    assert sum(map(sum, again)) > 4


def test_corrections_take_no_passes_of_their_own_and_read_every_former_hole() -> None:
    rows = {0: [], 3: []}
    for corrections, seen in rows.items():

        def call(ids, seen=seen, **how):
            logits = NET(ids, **how)
            seen.append(logits.shape[1])
            return logits

        image(painted(20, 9), transformer=call, corrections=corrections)
    assert rows[3] == [20] * 16 and len(rows[0]) == 16


@pytest.mark.parametrize("policy", [CachePolicy(0.99, 0.0, 5), CachePolicy(0.99, 0.0, 5, candidates="holes")])
def test_keys_and_values_of_a_cell_that_is_masked_again_are_those_of_a_mask(policy: CachePolicy) -> None:
    stored, again, seen = {}, 0, [torch.ones(36, dtype=torch.bool)]
    places = PREFIX.shape[1] + cell_positions(6, 6, "cpu")

    def call(ids, positions=None, **how):
        nonlocal again
        before = dict(stored)
        where = range(ids.shape[1]) if positions is None else positions[0].tolist()
        stored.update(zip(where, ids[0].tolist(), strict=True))
        for place, unknown in zip(places.tolist(), seen[-1].tolist(), strict=True):
            if unknown:
                assert stored[place] == TABLE.mask
                again += before.get(place, TABLE.mask) != TABLE.mask
            elif policy.candidates == "holes":
                assert stored[place] != TABLE.mask, "and what was decided has been computed as well"
        return NET(ids, positions=positions, **how)

    def noted(done: int, total: int, canvas: Canvas) -> None:
        seen.append(canvas.unknown[0].flatten())

    plan = ImageSettings(steps=12, cache=policy, corrections=4, corrections_start=0.2)
    sample_image(call, TABLE, Canvas.empty(1, 6, 6), PREFIX, settings=plan, on_step=noted)
    assert again > 3, "some had been computed with a code in between"


def test_where_ties_decide_more_cells_than_planned_none_is_masked_again_in_their_place() -> None:
    """A model that is sure of each cell alike, but for the first."""

    def call(ids, rows, **_):
        first = rows == PREFIX.shape[1] + cell_positions(6, 5, "cpu")[0]
        return torch.where(first, 1.0, 2.0)[..., None] * torch.linspace(0, 2, CODES)

    seen = []
    plan = ImageSettings(steps=8, temperature=0, corrections=3, corrections_start=0)
    noted = lambda *step: seen.append(step[2].holes.item())  # noqa: E731
    sample_image(call, TABLE, Canvas.empty(1, 6, 5), PREFIX, settings=plan, on_step=noted)
    assert seen == [1, 0]


def test_the_least_probable_on_average_are_masked_again() -> None:
    holes = torch.tensor([[True, True, True, True, False]])
    trajectory = Trajectory(holes)
    open_ = torch.tensor([[False, False, False, True, False]])
    trajectory.add(torch.tensor([[0.0, 0.9, 0.8, 0.1, 0.0]]), holes)
    trajectory.add(torch.tensor([[0.1, 0.5, 0.8, 0.1, 0.0]]), open_)
    trajectory.add(torch.tensor([[0.9, 0.4, 0.1, 0.1, 0.0]]), open_)
    again = trajectory.least_probable(torch.tensor([2]))
    assert again.tolist() == [[False, True, True, False, False]], "means .5 .45 .45; open and known ones never"


def test_the_mean_of_a_cell_starts_anew_with_a_new_code() -> None:
    trajectory, closed = Trajectory(torch.tensor([[True, True]])), torch.tensor([[False, False]])
    for probs in ([0.0, 0.3], [0.0, 0.3]):
        trajectory.add(torch.tensor([probs]), closed)
    trajectory.add(torch.tensor([[0.9, 0.3]]), torch.tensor([[True, False]]))
    trajectory.add(torch.tensor([[0.9, 0.3]]), closed)
    again = trajectory.least_probable(torch.tensor([1]))
    assert again.tolist() == [[False, True]]


def test_corrections_start_counts_an_items_own_steps() -> None:
    plans = [[9, 7, 5, 2, 0], [3, 1, 0], []]
    assert corrected_per_step(plans, 5, 2, 0.6).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [2, 0, 0], [0, 0, 0]]
    assert corrected_per_step(plans, 5, 9, 0.0)[:, 0].tolist() == [9, 7, 5, 2, 0]


# Polish -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES)
def test_polishing_passes_hide_one_half_of_the_former_holes_and_then_the_other(cache: str) -> None:
    canvas, net = painted(30, 14), Answers()
    image(canvas, transformer=net, cache=CACHES[cache], polish=3)
    parity = (torch.arange(6)[:, None] + torch.arange(5)) % 2
    for number, answer in enumerate(net.answers[-3:]):
        assert torch.equal(hidden(canvas, answer), canvas.unknown & (parity == number % 2))
    assert int((net.answers[-4] == TABLE.mask).sum()) != int((net.answers[-1] == TABLE.mask).sum())


def test_a_polishing_pass_is_one_pass_of_each_branch_for_all_items_whenever_their_guidance_began() -> None:
    batches = []

    def call(ids, **how):
        batches.append(len(ids))
        return NET(ids, **how)

    image(painted(30, 8, 1), transformer=call, steps=12, start=0.3, polish=2)
    assert batches[-4:] == [3] * 4 and batches[-5] != 3, "in the steps, items that are guided from the same step on"


@pytest.mark.parametrize("cache", CACHES)
def test_polish_changes_former_holes_alone_after_the_steps_without_it(cache: str) -> None:
    canvas = painted(30, 14)
    how = {"cache": CACHES[cache], "steps": 4}
    plain, seen = image(canvas, **how), forming(canvas, polish=2, **how)
    assert torch.equal(seen[-3].codes, plain.codes), "up to the last step nothing is different"
    for number, (before, after) in enumerate(pairwise(seen[-3:])):
        changed = before.codes != after.codes
        half = halves(6, 5, torch.device("cpu"))[number].view(6, 5)
        assert changed.any() and not (changed & ~(canvas.unknown & half)).any()


def test_progress_counts_the_polishing_passes_and_ends_at_its_total() -> None:
    counted = []
    image(painted(30, 14), steps=5, polish=2, on_step=lambda *step: counted.append(step[:2]))
    assert counted == [(done, 7) for done in range(1, 8)]
    counted.clear()
    image(painted(1), steps=5, polish=2, on_step=lambda *step: counted.append(step[:2]))
    assert counted == [(1, 3), (2, 3), (3, 3)], "one hole takes one step, whatever was asked for"


@pytest.mark.parametrize("stop", [5, 6])
def test_cancel_passes_through_between_polishing_passes(stop: int) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(done, total, canvas):
        if done == stop:
            raise Cancelled

    net = Answers()
    with pytest.raises(Cancelled):
        image(painted(30), transformer=net, steps=5, polish=3, on_step=cancel)
    assert len(net.answers) == stop


def test_numbers_that_are_not_finite_in_a_polishing_pass_are_refused() -> None:
    calls = iter(range(99))

    def call(ids, **how):
        return NET(ids, **how) * (1.0 if next(calls) < 3 * 2 else float("nan"))

    with pytest.raises(ValueError, match="not finite"):
        image(painted(30), transformer=call, steps=3, polish=2)


def test_what_stands_stays_unless_it_is_far_less_probable_than_the_likeliest() -> None:
    """Two codes at each cell: the first stands and is exp(-behind) as probable as the second."""
    far = -torch.tensor(LEAST_SHARE).log()
    behind = torch.tensor([0.0, far - 0.01, far + 0.01, far + 0.01])
    logits = torch.stack((-behind, torch.zeros(4)), dim=1)[None]
    standing = Standing(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[True, True, True, False]]), LEAST_SHARE)
    noise = [(slice(0, 3), None), (slice(3, 4), None)]
    codes, probs = decide_in_chunks(lambda chunk: logits[:, chunk], noise, 0, standing)
    assert codes.tolist() == [[0, 0, 1, 0]], "the last may not be redrawn"
    torch.testing.assert_close(probs, logits.softmax(dim=2).gather(2, codes[..., None])[..., 0])


# Shared noise -------------------------------------------------------------------------------------------------------


def blind_to_places(ids, rows, **_):
    """A model that thinks the same of every cell."""
    return torch.linspace(0, 2, CODES).expand(len(ids), rows.shape[1], -1)


def test_cells_that_are_alike_choose_alike_in_the_steps_that_share_their_noise() -> None:
    seen, blank = [], Canvas.empty(2, 6, 6)
    plan = ImageSettings(steps=8, shared_noise=0.5)
    noted = lambda *step: seen.append(step[2])  # noqa: E731
    sample_image(blind_to_places, TABLE, blank, PREFIX, settings=plan, on_step=noted)
    drawn = []
    for before, after in pairwise([blank, *seen]):
        new = before.unknown & ~after.unknown
        drawn.append([len(set(after.codes[index][new[index]].tolist())) for index in range(2)])
    assert drawn[:4] == [[1, 1]] * 4 and all(count > 1 for counts in drawn[4:] for count in counts)
    firsts = [seen[0].codes[index][~seen[0].unknown[index]][0].item() for index in range(2)]
    assert len({*firsts}) == 2, "each item draws its own"


def test_shared_noise_leaves_each_cell_its_distribution() -> None:
    """One cell, many seeds: as often each code as its probability says (a chi-square of 31 degrees of freedom)."""
    blank, runs = Canvas.empty(4000, 1, 1), 4000
    drawn = sample_image(
        blind_to_places, TABLE, blank, PREFIX, settings=ImageSettings(steps=1, shared_noise=1.0)
    ).codes.flatten()
    expected = torch.linspace(0, 2, CODES).softmax(dim=0) * runs
    assert ((drawn.bincount(minlength=CODES) - expected) ** 2 / expected).sum() < 70
