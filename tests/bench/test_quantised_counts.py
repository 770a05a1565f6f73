"""One-byte weights: what they launch and what they lose, counted by the layers that compute with them."""

from __future__ import annotations

import pytest

from bench import quantised_counts
from bench.quantised_counts import OUTLIERS, SHORT, WAYS, errors, launches, launches_over_bf16
from dimoo_core.model import quantised

LARGE = [name for name, (channels, _) in OUTLIERS.items() if channels]


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize("positions", [None, SHORT], ids=["picture", "short"])
def test_our_layers_launch_at_most_three_times_what_bf16_does(kind: str, positions: int | None) -> None:
    shape = () if positions is None else (positions, positions)
    assert 1 < launches_over_bf16(kind, *shape) <= 3


def test_products_in_small_chunks_launch_more(monkeypatch) -> None:
    whole = launches("int8")
    monkeypatch.setattr(quantised, "PRODUCT", 64 << 20)
    assert launches("int8") > 1.4 * whole and launches_over_bf16("int8") > 3


def test_activations_that_were_rounded_only_by_three_more_operations_show(monkeypatch) -> None:
    whole, rounded = launches("int8"), quantised._rounded
    monkeypatch.setattr(quantised, "_rounded", lambda tokens: rounded(tokens.abs().neg().neg()))
    assert launches("int8") == whole + 3 * 7 * quantised_counts.RELEASED_SIZE.layers


def test_rotation_loses_little_more_than_rounded_weights_do_and_plain_rounding_of_outliers_much() -> None:
    lost = errors()
    assert lost.keys() == WAYS.keys()
    for outliers in LARGE:
        assert lost["int8, rotated"][outliers] < 0.02 < lost["fp8, activations as they are"][outliers]
        assert lost["int8"][outliers] > 4 * lost["int8, rotated"][outliers]
    assert lost["int8, activations as they are"]["no outliers"] < lost["int8, rotated"]["no outliers"] < 0.015
    assert lost["fp8, activations as they are"]["no outliers"] < lost["fp8"]["no outliers"] < 0.045


def test_nano_is_judged_from_a_file_of_every_kind(monkeypatch) -> None:
    monkeypatch.setattr(quantised_counts, "KINDS", ("int8",))
    monkeypatch.setattr(quantised_counts, "JUDGED", ("generate full, held out",))
    rates = quantised_counts.judged(2)
    assert list(rates) == ["int8", "fp8, activations too"]
    assert all(row == {"generate full, held out": 1.0} for row in rates.values())
