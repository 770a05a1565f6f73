"""Guidance: one formula for all tasks."""

from __future__ import annotations

import pytest
import torch

from dimoo_core.sampling.guidance import Branch, BranchLogits, combine

PREFIX = torch.zeros(1, 3, dtype=torch.int64)


def test_the_formula_is_each_of_the_released_ones() -> None:
    c, u, v = torch.randn(3, 1, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    torch.testing.assert_close(combine(c, [BranchLogits(u, 4.0)]), (1 + 4.0) * c - 4.0 * u)
    torch.testing.assert_close(combine(c, [BranchLogits(u, 1.5)]), u + (1.5 + 1) * (c - u))
    torch.testing.assert_close(
        combine(c, [BranchLogits(u, 2.5), BranchLogits(v, 4.0)]), c + 2.5 * (c - u) + 4.0 * (c - v)
    )
    assert torch.equal(combine(c, []), c)


def test_bf16_logits_are_combined_in_fp32_and_left_alone() -> None:
    c, u = torch.tensor([[1.0]]).bfloat16(), torch.tensor([[1.0078125]]).bfloat16()
    combined = combine(c, [BranchLogits(u, 0.1)])
    assert combined.dtype == torch.float32 and float(combined) == pytest.approx(1 - 0.00078125)
    assert c.dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf"), 1e6, "4", None, True])
def test_absurd_scales_are_refused(scale: object) -> None:
    with pytest.raises(ValueError, match=r"guidance scale is .* expected a number from 0 to 100"):
        Branch(PREFIX, scale)
