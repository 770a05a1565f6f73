"""What the host does for a short pass, and that the counts see it when it does more."""

from __future__ import annotations

import sys

import pytest
import torch

from bench import launches
from dimoo_core.model.transformer import Block
from dimoo_core.sampling.passes import Passes

CALLS_MADE_WITH = (3, 11), "2.13.0"  # Python and torch


def test_a_cached_step_of_an_edit_launches_a_third_of_what_three_passes_would() -> None:
    assert launches.launches_edit_cached_step() <= 1400


def test_the_count_of_launches_rises_where_branches_go_one_by_one(monkeypatch) -> None:
    monkeypatch.setattr(Passes, "run", lambda self, asks: [ask.answer([self._single(ask.part)]) for ask in asks])
    assert launches.launches_edit_cached_step() > 2400


@pytest.mark.skipif(
    (sys.version_info[:2], torch.__version__.split("+")[0]) != CALLS_MADE_WITH,
    reason="another Python or torch makes other calls",
)
def test_a_short_pass_makes_at_most_half_the_calls_of_617129e() -> None:
    assert launches.python_calls() <= launches.PYTHON_CALLS_617129E / 2


def test_the_count_of_calls_rises_with_a_function_more_in_a_layer(monkeypatch) -> None:
    before, attend = launches.python_calls(), Block._attend
    monkeypatch.setattr(Block, "_attend", lambda *given: attend(*given))
    assert launches.python_calls() == before + launches.NARROW.layers
