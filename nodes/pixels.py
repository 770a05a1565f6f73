"""The rim where ComfyUI's pictures and masks turn into the core's and back; nothing else knows ComfyUI's layout.

ComfyUI: IMAGE [B,height,width,C] and MASK [B,height,width], fp32 in 0..1. The core: [B,3,height,width].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..dimoo_core.pictures.pixels import GREY, mosaic, to_pil, to_rgb

MAX_SIDE = 16384  # px, as in ComfyUI's own nodes


def to_core(image: Tensor, name: str = "image") -> Tensor:
    """IMAGE of any number of channels -> RGB [B,3,h,w]. Raises ValueError, naming the input, for what is no picture."""
    if not isinstance(image, Tensor) or image.ndim != 4 or not image.numel():
        came = f"shape {list(image.shape)}" if isinstance(image, Tensor) else f"type {type(image).__name__}"
        raise ValueError(f"The {name} has {came}; connect a picture, [batch,height,width,channels].")
    height, width = image.shape[1:3]
    if max(height, width) > MAX_SIDE:
        raise ValueError(
            f"The {name} is {width}x{height} px; at most {MAX_SIDE} px per side are taken: scale it down first."
        )
    return to_rgb(image.movedim(-1, 1))


def to_comfy(pixels: Tensor) -> Tensor:
    """[B,3,h,w] -> IMAGE"""
    return pixels.movedim(1, -1).contiguous().float()


def mask_to_core(mask: Tensor, picture: Tensor) -> Tensor:
    """MASK for a picture [B,3,h,w] -> [1 or B,h,w]. Raises ValueError where it is empty or does not fit the picture."""
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3:
        raise ValueError(f"The mask has shape {list(mask.shape)}; connect a mask, [batch,height,width].")
    if not bool((mask > 0.5).any()):  # first, since LoadImage gives an empty mask of 64x64 px where nothing is painted
        raise ValueError(
            "The mask is empty: paint over what should change, or disconnect the mask for a centred rectangle."
        )
    (height, width), (wanted_height, wanted_width) = mask.shape[1:], picture.shape[2:]
    if (height, width) != (wanted_height, wanted_width):
        raise ValueError(
            f"The mask is {width}x{height} px, the image {wanted_width}x{wanted_height} px: make them the same size."
        )
    if len(mask) not in (1, len(picture)):
        raise ValueError(f"{len(mask)} masks came for {len(picture)} images; one mask, or one each, is needed.")
    return mask


def pad_to_cells(pixels: Tensor, scale: int) -> Tensor:
    """[...,h,w] with the last row and column repeated until both sides are multiples of `scale`."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % scale, 0, -height % scale), mode="replicate")


def crop_to_cells(pixels: Tensor, scale: int) -> Tensor:
    """[B,3,h,w] cropped in the centre so that both sides are multiples of `scale`; a side below one cell stays."""
    height, width = (max(side // scale * scale, min(side, scale)) for side in pixels.shape[2:])
    top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
    return pixels[:, :, top : top + height, left : left + width]


def preview(codes: Tensor, unknown: Tensor, colours: Tensor, size: int) -> Image.Image:
    """A picture at most `size` px wide and high of canvases [B,H,W], side by side: a square per cell, holes grey."""
    tiles = mosaic(codes.to(colours.device), unknown.to(colours.device), colours)
    columns = math.ceil(math.sqrt(len(tiles)))
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, -len(tiles) % columns), value=GREY)
    sheet = to_pil(rearrange(tiles, "(r c) rgb h w -> rgb (r h) (c w)", c=columns))
    factor = max(1, size // max(sheet.size))
    return sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST)


def grey_where(pixels: Tensor, mask: Tensor) -> Tensor:
    """[B,3,h,w] with what mask [B,h,w] marks turned grey."""
    return torch.where(mask[:, None] > 0.5, torch.full_like(pixels, GREY), pixels)
