"""ML-Cache: when everything is computed, how much otherwise, and what is kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimoo_core.cache import PRESETS, Cache, CachePolicy, KeyValues


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
    ],
)
def test_settings_out_of_range_are_refused(values: dict) -> None:
    (name,) = values
    with pytest.raises(ValueError, match=rf"{name}\w* is .* is needed"):
        CachePolicy(**values)


def test_presets_are_named_and_valid() -> None:
    assert list(PRESETS) == ["off", "quality", "balanced", "fast"]
    assert PRESETS["off"] is None and PRESETS["balanced"] == CachePolicy(0.9, 0.3, 5)


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


def test_a_cache_ranks_all_positions_and_answers_for_the_holes() -> None:
    logits = torch.tensor([[[5.0, 1.0], [2.0, 3.0], [0.0, 1.0], [9.0, 0.0]]])
    cache = Cache(KeyValues(), logits, torch.tensor([[1, 3]]))
    assert cache.least_certain(2).tolist() == [[1, 2]]
    cache.store(torch.tensor([[1, 2]]), torch.tensor([[[8.0, 0.0], [7.0, 0.0]]]))
    assert cache.least_certain(2).tolist() == [[0, 2]]
    assert cache.read(torch.tensor([[3, 1]])).tolist() == [[[9.0, 0.0], [8.0, 0.0]]]
