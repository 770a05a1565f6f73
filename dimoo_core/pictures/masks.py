"""Masks, in pixels and on the grid of cells."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..checks import number_in, whole_number
from .pixels import fit, from_pil, has_alpha, open_picture
from .sizes import CELL

RECTANGLE = 0.5  # a cell belongs to a drawn rectangle if more than half of it does, as in the released code
PAINTED = 0.0  # a cell belongs to a painted mask if any of it does: nothing that was painted over may stay


def load_mask(path: str | Path) -> Tensor:
    """A picture file as a mask, fp32 [1,h,w] in 0..1, where 1 is to be repainted.

    A picture with transparency marks what is transparent, as ComfyUI's Load Image reads it; of all others white is
    marked, and in label maps (0 and 1, or colours of a palette that are all dark) whatever is not 0. Raises ValueError
    where the file cannot be read or nothing is above 0.5.
    """
    with open_picture(path) as image:
        mask = _mask(image)
    try:
        return check_marked(mask)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _mask(image: Image.Image) -> Tensor:
    """What a PIL picture marks, [1,h,w]."""
    if has_alpha(image):
        alpha = image.convert("RGBA").getchannel("A")
        lowest, highest = alpha.getextrema()
        if lowest != highest:
            return 1 - from_pil(alpha)[:, 0]
        image = _opaque(image)
    mask = from_pil(image).mean(dim=1)
    if image.mode == "P" and not bool((mask > 0.5).any()):
        labels = image.copy()
        labels.putpalette(bytes(value for value in range(256) for _ in range(3)))  # each index as its own grey
        return (from_pil(labels).mean(dim=1) > 0).float()
    one = 1 / (65535 if image.mode.startswith("I") else 255)
    if image.mode != "F" and abs(float(mask.max()) - one) < one / 4:
        return (mask > 0).float()
    return mask


def _opaque(image: Image.Image) -> Image.Image:
    """A picture without its transparency, which is the same everywhere."""
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGBA").convert("RGB") if has_alpha(image) else image


def check_marked(mask: Tensor) -> Tensor:
    """`mask` [B,h,w], if some of it is above 0.5; otherwise a ValueError that says what its values are."""
    lowest, highest = (float(mask.min()), float(mask.max())) if mask.numel() else (0.0, 0.0)
    if highest > 0.5:
        return mask
    if highest == 0:
        seen = "The mask is empty and marks nothing (0 everywhere)"
    else:
        low, high = (f"{value:.2f}" if value == 0 or value > 0.01 else f"{value:.5f}" for value in (lowest, highest))
        seen = (
            f"Every value of the mask is {high}" if low == high else f"The values of the mask go from {low} to {high}"
        )
    raise ValueError(f"{seen}; white (above 0.5) marks what to repaint: paint over what should change.")


def mask_from_pil(image: Image.Image) -> Tensor:
    """A PIL picture as a mask, [1,h,w], as `load_mask` reads a file. Raises ValueError where nothing is above 0.5."""
    return check_marked(_mask(image))


def centred_rectangle(width: int, height: int, *, width_ratio: float, height_ratio: float) -> Tensor:
    """A mask [1,height,width], 1 inside a centred rectangle with those shares of the sides, 0 outside."""
    number_in("mask_w_ratio", width_ratio, 0, 1)
    number_in("mask_h_ratio", height_ratio, 0, 1)
    inner_width, inner_height = round(width * width_ratio), round(height * height_ratio)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    mask = torch.zeros(1, height, width)
    mask[:, top : top + inner_height, left : left + inner_width] = 1
    return mask


def scale_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask [B,h,w] at another size, [B,height,width]: whatever it marks stays marked, thin lines too."""
    smaller = (min(mask.shape[1], height), min(mask.shape[2], width))
    return F.interpolate(F.adaptive_max_pool2d(mask[:, None], smaller), (height, width), mode="nearest-exact")[:, 0]


def mask_to_cells(mask: Tensor, grid: tuple[int, int], *, coverage: float = PAINTED, grow: int = 0) -> Tensor:
    """Cells (bool [B,H,W]) that a mask [B,h,w] of any size marks: those of which more than `coverage` (a share) is
    above 0.5, then grown by `grow` cells on all sides. The mask is stretched over the `grid` (H, W) of cells."""
    number_in("coverage", coverage, 0, 1)
    whole_number("grow", grow, 0, 64)
    if mask.ndim != 3 or not mask.numel():
        raise ValueError(f"Got a mask of shape {list(mask.shape)}; expected [batch, height, width].")
    share = F.interpolate((mask > 0.5).float()[:, None], grid, mode="area")
    marked = (share > coverage).float()
    if grow:
        marked = F.max_pool2d(marked, 2 * grow + 1, stride=1, padding=grow)
    return marked[:, 0] > 0.5


def marked_cells(path: Path, size: tuple[int, int] | None, fitted: tuple[int, int]) -> Tensor:
    """Cells (bool [H,W]) that a mask file marks of a picture of `size` (width, height) px that `pixels.fit` brings to
    `fitted` px. size None: that of the mask. Raises ValueError where the mask cannot be read, has not the picture's
    shape, or marks only what the crop cuts off."""
    mask = load_mask(path)  # [1,h,w]
    own, (width, height) = (mask.shape[2], mask.shape[1]), fitted
    across, down = size or own
    if abs(own[0] * down - own[1] * across) > max(across, down):
        raise ValueError(
            f"The mask {path} has {own[0]}x{own[1]} px and the picture {across}x{down} px; expected the same shape."
        )
    cropped = fit(scale_mask(mask, down, across)[:, None], width, height)[:, 0]
    cells = mask_to_cells(cropped, (height // CELL, width // CELL))[0]
    if not bool(cells.any()):
        raise ValueError(f"The mask {path} marks only what the crop to {width}x{height} px cuts off: mark more.")
    return cells


def cells_to_mask(mask_cells: Tensor, scale: int = CELL) -> Tensor:
    """Cells bool [B,H,W] -> the mask [B,H*scale,W*scale] of their pixels, fp32 0 or 1."""
    return mask_cells.float().repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
