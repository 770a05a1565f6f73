"""The canvas as a value: what it refuses, and that nobody changes one."""

from __future__ import annotations

import pytest
import torch

from dimoo_core.sequence.canvas import Canvas


def test_an_empty_canvas_is_all_holes_and_codes_have_none() -> None:
    assert Canvas.empty(2, 3, 4).holes.tolist() == [12, 12]
    assert Canvas.from_codes(torch.zeros(2, 3, 4, dtype=torch.int64)).holes.tolist() == [0, 0]


def test_one_mask_serves_a_whole_batch() -> None:
    unknown = torch.zeros(1, 3, 4, dtype=torch.bool)
    unknown[0, 0, 0] = True
    assert Canvas.from_codes(torch.zeros(2, 3, 4, dtype=torch.int64), unknown).holes.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("codes", "unknown"),
    [
        (torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.bool)),
        (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4, dtype=torch.bool)),
        (torch.zeros(1, 3, 0, dtype=torch.int64), torch.zeros(1, 3, 0, dtype=torch.bool)),
        (torch.zeros(1, 3, 4, dtype=torch.int64), torch.zeros(1, 4, 3, dtype=torch.bool)),
        (torch.zeros(1, 3, 4, dtype=torch.int64), torch.zeros(1, 3, 4)),
    ],
)
def test_odd_shapes_and_types_are_refused(codes: torch.Tensor, unknown: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^Got .*; expected "):
        Canvas(codes, unknown)


def test_codes_of_another_codebook_are_refused_unless_they_are_unknown() -> None:
    codes = torch.tensor([[[1, 40]]])
    with pytest.raises(ValueError, match=r"Got a canvas with codes 1\.\.40; expected 0\.\.31"):
        Canvas.from_codes(codes).check(32)
    Canvas.from_codes(codes, codes > 31).check(32)
    Canvas.empty(1, 1, 1).check(32)
