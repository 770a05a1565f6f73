"""ML-Cache: when everything is computed, how much otherwise, and what is kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimoo_core.sampling.branch import KeyValues
from dimoo_core.sampling.ml_cache import PRESETS, Cache, CachePolicy
from dimoo_core.sampling.schedule import cosine


def test_warm_up_comes_first_and_refreshes_follow() -> None:
    policy = CachePolicy(0.9, 0.3, 5)
    full = [step for step in range(64) if policy.is_full(step, 64)]
    assert full == [*range(20), 24, 29, 34, 39, 44, 49, 54, 59], "28 of 64, as published"
    assert CachePolicy(0.5, 0.0, 2).is_full(0, 16) and not CachePolicy(0.5, 0.0, 2).is_full(1, 16)


def test_the_share_is_taken_in_fp32_as_a_quantile() -> None:
    assert CachePolicy(ratio=0.9).rows(131) == 14, "fp64 would say 13"
    assert CachePolicy(ratio=0.5).rows(117) == 59


@given(st.floats(0.001, 0.999), st.integers(1, 5000))
@settings(max_examples=300, deadline=None)
def test_rows_are_those_at_or_below_the_quantile(ratio: float, length: int) -> None:
    rows = CachePolicy(ratio=ratio).rows(length)
    values = torch.arange(length, dtype=torch.float32)
    below = int((values <= torch.quantile(values, 1 - ratio)).sum())
    assert 1 <= rows <= length and abs(rows - below) <= 1


@pytest.mark.parametrize(
    "values",
    [
        {"ratio": 0},
        {"ratio": 1},
        {"ratio": -0.1},
        {"ratio": float("nan")},
        {"ratio": None},
        {"warmup": 1},
        {"warmup": -1},
        {"warmup": float("nan")},
        {"refresh_interval": 1},
        {"refresh_interval": 2.5},
        {"refresh_interval": float("nan")},
        {"prefix_interval": 0},
        {"prefix_interval": 1.5},
        {"candidates": "some"},
    ],
)
def test_settings_out_of_range_are_refused(values: dict) -> None:
    (name,) = values
    with pytest.raises(ValueError, match=rf"{name}\w* is .*expected"):
        CachePolicy(**values)


def test_presets_are_named_and_valid() -> None:
    assert list(PRESETS) == ["off", "quality", "balanced", "fast"]
    assert PRESETS["off"] is None and all(PRESETS[name].candidates == "holes" for name in list(PRESETS)[1:])
    assert CachePolicy() == CachePolicy(0.9, 0.3, 5, "all", 1), "without a word the published one"


def test_key_values_keep_what_is_not_written() -> None:
    store = KeyValues()
    keys, values = torch.zeros(2, 3, 5, 4), torch.ones(2, 3, 5, 4)
    store.update(0, None, keys.clone(), values.clone())
    positions = torch.tensor([[1, 3], [0, 4]])
    fresh = torch.full((2, 3, 2, 4), 7.0)
    whole, _ = store.update(0, positions, fresh, fresh)
    for item in range(2):
        for place in range(5):
            assert (whole[item, :, place] == (7 if place in positions[item] else 0)).all()


def test_a_cached_step_has_a_budget_of_positions() -> None:
    assert CachePolicy(0.9).budget(131, 64, cosine(64, 16)) == 14, "a share of all, as published"
    holes = CachePolicy(0.9, candidates="holes")
    most = 6  # that one of 16 steps decides of 64 holes
    assert holes.budget(131, 64, cosine(64, 16)) == 7 + most
    assert holes.budget(131, 0, cosine(0, 16)) == 1
    assert holes.budget(131, 64, cosine(64, 1)) == 7 + 64


LOGITS = torch.tensor([[[5.0, 1.0], [2.0, 3.0], [0.0, 1.0], [9.0, 0.0]]])
EVERYWHERE = torch.arange(4)[None]
MASK = 7


def test_a_cache_ranks_all_positions_and_answers_for_the_holes() -> None:
    ids = torch.tensor([[1, MASK, 2, MASK]])
    cache = Cache(ids, torch.tensor([[1, 3]]))
    cache.store(EVERYWHERE, ids, LOGITS)
    assert cache.least_certain(ids, 2, MASK).tolist() == [[1, 2]]
    cache.store(torch.tensor([[1, 2]]), ids[:, 1:3], torch.tensor([[[8.0, 0.0], [7.0, 0.0]]]))
    assert cache.least_certain(ids, 2, MASK).tolist() == [[0, 2]]
    assert cache.read(torch.tensor([[3, 1]])).tolist() == [[[9.0, 0.0], [8.0, 0.0]]]


def test_what_was_decided_comes_first_and_then_the_least_certain_holes() -> None:
    ids = torch.tensor([[1, MASK, MASK, MASK]])
    cache = Cache(ids, torch.tensor([[1, 2, 3]]))
    cache.store(EVERYWHERE[:, 1:], ids[:, 1:], LOGITS[:, 1:])
    assert cache.decided_and_least_certain(ids, [2], MASK).tolist() == [[2, 1]], "the prompt is no candidate"
    decided = torch.tensor([[1, MASK, MASK, 5]])
    assert cache.decided_and_least_certain(decided, [2], MASK).tolist() == [[3, 2]]
    cache.store(torch.tensor([[3, 2]]), decided[:, [3, 2]], LOGITS[:, [3, 3]])
    assert cache.decided_and_least_certain(decided, [2], MASK).tolist() == [[1, 2]], "once is enough"


def test_an_item_with_a_smaller_budget_or_fewer_candidates_repeats_its_first() -> None:
    ids = torch.tensor([[MASK, MASK, MASK, MASK], [1, MASK, MASK, MASK], [1, MASK, 1, 1]])
    cache = Cache(ids, EVERYWHERE.expand(3, -1))
    cache.store(EVERYWHERE.expand(3, -1), ids, LOGITS.expand(3, -1, -1))
    chosen = cache.decided_and_least_certain(ids, [3, 1, 3], MASK)
    assert chosen.tolist() == [[2, 1, 0], [2, 2, 2], [1, 1, 1]]
