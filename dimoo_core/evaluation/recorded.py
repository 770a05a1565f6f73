"""What recorded numbers are compared by, and the ids that they are written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..sequence.token_table import RELEASED, TokenTable

TOLERANCE = 1e-4  # absolute, of logits and pixels
# The table's names for those of the released code.
NAMES = {"boi": "image_begin", "eoi": "image_end", "boa": "answer_begin", "eoa": "answer_end", "eos": "end_of_text"}
NAMES |= {"codebook": "codebook_size", "image_token_offset": "code_offset", "mask_token": "mask"}
NAMES |= {"newline_token": "newline", "answer_start": "answer_begin"}


Check = tuple[str, str]  # what was compared, and how it differs ("" where it is equal)


def token_table(vocab: Mapping[str, int]) -> TokenTable:
    """The id table of a recorded vocabulary, whose names are the released code's."""
    ids = {NAMES.get(name, name): number for name, number in vocab.items()}
    return TokenTable.from_dict({name: number for name, number in ids.items() if name in RELEASED.to_dict()})


def differs(got: Any, expected: Any) -> str:
    """ "" where both are equal, otherwise a few words on how they differ."""
    if isinstance(got, Tensor) and isinstance(expected, Tensor):
        if got.shape != expected.shape:
            return f"shape {list(got.shape)} instead of {list(expected.shape)}"
        wrong = int((got != expected).sum())
        return f"{wrong} of {got.numel()} values differ" if wrong else ""
    return "" if got == expected else f"{got!r:.200} instead of {expected!r:.200}"


def far(got: Tensor | float, expected: Tensor | float, tolerance: float = TOLERANCE) -> str:
    """ "" where both are within the tolerance, otherwise how far apart they are."""
    got, expected = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64)
    if got.shape != expected.shape:
        return f"shape {list(got.shape)} instead of {list(expected.shape)}"
    distance = float((got - expected).abs().max())
    return "" if distance <= tolerance else f"off by up to {distance:.2g}, expected at most {tolerance:g}"
