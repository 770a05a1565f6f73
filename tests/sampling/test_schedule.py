"""How many tokens each step decides."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimoo_core.sampling.schedule import cosine, tokens_per_step


@given(st.integers(0, 300), st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_every_step_of_an_image_decides_something_and_the_last_step_decides_all(holes: int, steps: int) -> None:
    plan = cosine(holes, steps)
    assert len(plan) <= steps
    assert all(after < before for before, after in zip([holes, *plan], plan, strict=False))
    assert not holes or plan[-1] == 0


def test_the_schedule_is_the_cosine_in_fp32() -> None:
    # fp64 would say 8 for the middle step of the first and 32 for that of the second
    assert cosine(16, 3) == [13, 7, 0]
    assert cosine(64, 3) == [55, 31, 0]
    assert cosine(4096, 1) == [0]
    assert cosine(2, 64) == [1, 0]


@pytest.mark.parametrize("steps", [0, -3, 2.0, True, None])
def test_steps_are_a_whole_number_from_one(steps: object) -> None:
    with pytest.raises(ValueError, match=r"steps is .* expected a whole number of at least 1"):
        cosine(16, steps)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_a_block_spreads_its_tokens_evenly_the_rest_first(block_length: int, blocks: int, per_block: int) -> None:
    plan = tokens_per_step(block_length * blocks, per_block * blocks, block_length)
    assert len(plan) == blocks
    for counts in plan:
        assert sum(counts) == block_length and 0 < len(counts) <= per_block
        assert counts == sorted(counts, reverse=True) and counts[0] - counts[-1] <= 1


def test_steps_that_do_not_divide_are_refused_with_steps_that_do() -> None:
    with pytest.raises(ValueError, match=r"50 steps .* 4 blocks .*: use 48 or 52 steps\."):
        tokens_per_step(128, 50, 32)
    with pytest.raises(ValueError, match=r": use 4 steps\."):
        tokens_per_step(128, 3, 32)
    tokens_per_step(128, 48, 32)
    tokens_per_step(128, 52, 32)


def test_a_block_length_that_does_not_divide_is_refused_with_some_that_do() -> None:
    with pytest.raises(ValueError, match=r"block_length 30 does not divide max_tokens 128: .* 8, 16, 32\."):
        tokens_per_step(128, 128, 30)
    with pytest.raises(ValueError, match=r"block_length 64 does not divide max_tokens 32"):
        tokens_per_step(32, 32, 64)


@pytest.mark.parametrize("values", [(0, 8, 8), (8, 0, 8), (8, 8, 0), (8.0, 8, 8), (8, 8, float("nan"))])
def test_absurd_text_settings_are_refused(values: tuple) -> None:
    with pytest.raises(ValueError, match="expected"):
        tokens_per_step(*values)
