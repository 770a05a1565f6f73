"""The canvas: a grid of image codes, some of them still unknown. Blank, partly painted and finished pictures alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import whole_number


@dataclass(frozen=True, eq=False)
class Canvas:
    """`codes` [B,H,W] int64 in 0..K-1 and `unknown` bool [B,H,W]; a code at an unknown cell means nothing.

    A canvas is a value: it is never changed in place.
    """

    codes: Tensor
    unknown: Tensor

    def __post_init__(self) -> None:
        if self.codes.ndim != 3 or not self.codes.numel() or self.codes.dtype != torch.int64:
            raise ValueError(
                f"Got codes of shape {list(self.codes.shape)} and type {self.codes.dtype}; expected int64 "
                "[batch,height,width], each at least 1."
            )
        if self.unknown.shape != self.codes.shape or self.unknown.dtype != torch.bool:
            raise ValueError(
                f"Got a mask of shape {list(self.unknown.shape)} and type {self.unknown.dtype} for codes of shape "
                f"{list(self.codes.shape)}; expected a bool mask of the same shape."
            )

    @classmethod
    def empty(cls, batch: int, height: int, width: int) -> Canvas:
        """A blank canvas of height x width cells, `batch` times. Raises ValueError where one of them is below 1."""
        for name, number in (("batch", batch), ("height", height), ("width", width)):
            whole_number(name, number, 1)
        codes = torch.zeros(batch, height, width, dtype=torch.int64)
        return cls(codes, torch.ones_like(codes, dtype=torch.bool))

    @classmethod
    def from_codes(cls, codes: Tensor, unknown: Tensor | None = None) -> Canvas:
        """A picture's codes [B,H,W]; with `unknown` bool [1 or B,H,W] those cells are holes, without it none are."""
        if unknown is None:
            unknown = torch.zeros_like(codes, dtype=torch.bool)
        if unknown.shape[1:] == codes.shape[1:] and len(unknown) == 1:
            unknown = unknown.expand(codes.shape)
        return cls(codes, unknown.to(codes.device))

    @property
    def holes(self) -> Tensor:
        """How many cells are unknown, [B] int64."""
        return self.unknown.flatten(1).sum(dim=1)

    def to(self, device: torch.device | str) -> Canvas:
        """The same canvas on another device."""
        return Canvas(self.codes.to(device), self.unknown.to(device))

    def check(self, codebook_size: int) -> None:
        """Raises ValueError where a known cell holds a code that a codebook of this size does not have."""
        known = self.codes[~self.unknown]
        least, most = (int(known.min()), int(known.max())) if known.numel() else (0, 0)
        if least < 0 or most >= codebook_size:
            raise ValueError(
                f"Got a canvas with codes {least}..{most}; expected 0..{codebook_size - 1}: "
                "encode the picture with the VQ of the same checkpoint."
            )
