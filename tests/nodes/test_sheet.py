"""DiMOO Contact Sheet, as ComfyUI runs it: every input comes as a list."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from .. import nodepack

NODE = nodepack.nodes()["DimooContactSheet"]
below = nodepack.part("nodes.sheet").below
GAP = 8  # px between two pictures
TWO = torch.stack([torch.full((64, 96, 3), 0.2), torch.full((64, 96, 3), 0.6)])


def sheet(*images: Tensor, **inputs: Any) -> Tensor:
    """The sheet [1,h,w,3] of a list of batches."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in inputs.items()}
    defaults = {
        one.id: [one.default] for one in NODE.FINALIZE_SCHEMA().inputs if getattr(one, "default", None) is not None
    }
    return nodepack.run(NODE, **{**defaults, "image": list(images), **lists}).args[0]


def test_batches_and_lists_share_a_sheet_in_order() -> None:
    made = sheet(TWO, TWO[:1] + 0.2, columns=3)
    assert made.shape[0] == 1 and made.shape[2:] == (3 * (96 + GAP), 3)
    for place, value in enumerate((51, 153, 102)):
        left = place * (96 + GAP)
        assert torch.equal((made[0, :64, left : left + 96] * 255).round(), torch.full((64, 96, 3), float(value)))


def test_larger_pictures_are_scaled_down_to_side() -> None:
    assert sheet(TWO, columns=2, side=48).shape[2] == 2 * (48 + GAP)
    assert sheet(TWO, columns=2, side=0).shape[2] == sheet(TWO, columns=2).shape[2] == 2 * (96 + GAP)


def test_every_picture_has_its_text_or_its_number_below() -> None:
    assert below([], 3, 41) == ["41", "42", "43"]
    assert below([], 2, 2**64 - 1) == ["18446744073709551615", "0"]
    assert below(["a", "b"], 2, 1) == ["a", "b"]
    assert below(["first: 90 %\n\nsecond: 10 %"], 2, 1) == ["first: 90 %", "second: 10 %"]
    assert below(["one for all"], 2, 1) == ["one for all", "one for all"]


def test_texts_that_belong_to_other_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^text holds 3 texts for 2 pictures; expected .+: connect .+\.$"):
        sheet(TWO, text=["a", "b", "c"])


@pytest.mark.parametrize("text", [None, 7, "x" * 20_000])
def test_what_is_no_text_or_too_long_is_one_sentence(text: Any) -> None:
    with pytest.raises(ValueError, match=r"^The text .+; expected .+\.$"):
        sheet(TWO, text=["a star", text])


def test_text_and_numbers_are_drawn() -> None:
    plain, numbered, texts = sheet(TWO, text=["", ""]), sheet(TWO, first_number=88), sheet(TWO, text=["a star", "b"])
    assert numbered.shape == texts.shape and not torch.equal(numbered, texts)
    assert plain.shape[1] < numbered.shape[1]
    assert torch.equal(plain[:, :64], numbered[:, :64])
