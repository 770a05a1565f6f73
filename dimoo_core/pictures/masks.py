"""Masks, in pixels and on the grid of cells."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..checks import number_in, whole_number
from .pixels import from_pil, load_picture

RECTANGLE = 0.5  # a cell belongs to a drawn rectangle if more than half of it does, as in the released code
PAINTED = 0.0  # a cell belongs to a painted mask if any of it does: nothing that was painted over may stay


def load_mask(path: str | Path) -> Tensor:
    """A black and white picture as a mask, [1,h,w]: white is what is to be repainted."""
    return load_picture(path).mean(dim=1)


def mask_from_pil(image: Image.Image) -> Tensor:
    """A black and white PIL picture as a mask, [1,h,w]: white is what is to be repainted."""
    return from_pil(image).mean(dim=1)


def centred_rectangle(width: int, height: int, *, width_ratio: float, height_ratio: float) -> Tensor:
    """A mask [1,height,width], 1 inside a centred rectangle with those shares of the sides, 0 outside."""
    number_in("mask_w_ratio", width_ratio, 0, 1)
    number_in("mask_h_ratio", height_ratio, 0, 1)
    inner_width, inner_height = round(width * width_ratio), round(height * height_ratio)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    mask = torch.zeros(1, height, width)
    mask[:, top : top + inner_height, left : left + inner_width] = 1
    return mask


def mask_to_cells(mask: Tensor, cells: tuple[int, int], *, coverage: float = PAINTED, grow: int = 0) -> Tensor:
    """Cells (bool [B,H,W]) that a mask [B,h,w] of any size marks: those of which more than `coverage` (a share) is
    above 0.5, then grown by `grow` cells on all sides. The mask is stretched over the grid of `cells` (H, W)."""
    number_in("coverage", coverage, 0, 1)
    whole_number("grow", grow, 0, 64)
    if mask.ndim != 3 or not mask.numel():
        raise ValueError(f"A mask of shape {list(mask.shape)} came; [batch, height, width] is needed.")
    share = F.interpolate((mask > 0.5).float()[:, None], cells, mode="area")
    marked = (share > coverage).float()
    if grow:
        marked = F.max_pool2d(marked, 2 * grow + 1, stride=1, padding=grow)
    return marked[:, 0] > 0.5


def cells_to_mask(cells: Tensor, scale: int = 16) -> Tensor:
    """Cells bool [B,H,W] -> the mask [B,H*scale,W*scale] of their pixels, fp32 0 or 1."""
    return cells.float().repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
