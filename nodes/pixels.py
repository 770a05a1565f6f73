"""Where ComfyUI's pictures and masks become the core's, and back; nothing else knows ComfyUI's layout.

ComfyUI: IMAGE [B,height,width,C] and MASK [B,height,width], fp32 in 0..1. The core: [B,3,height,width].
Other packs also send other dtypes, layouts and devices; past this file there is one kind.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..dimoo_core.pictures.masks import check_marked
from ..dimoo_core.pictures.pixels import GREY, mosaic, to_pil, to_rgb
from ..dimoo_core.pictures.sizes import CELL
from . import host

MAX_SIDE = 16384  # px, as in ComfyUI's own nodes


def to_core(image: Any, name: str = "image") -> Tensor:
    """IMAGE of any number of channels -> RGB [B,3,h,w], what is transparent white. Raises ValueError, naming the input,
    for anything that is not a picture."""
    return to_rgb(channels_to_core(image, name))


def channels_to_core(image: Any, name: str = "image") -> Tensor:
    """IMAGE [B,h,w,C] or [h,w,C] of any dtype and on any device -> [B,C,h,w] in 0..1, with its 1 to 4 channels, where
    results lie between nodes. Raises ValueError, naming the input, for anything that is not a picture."""
    image = _tensor(image, name, "a picture")
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4:
        raise ValueError(f"The {name} has {image.ndim} dimensions; connect a picture, [batch,height,width,channels].")
    if not image.numel():
        raise ValueError(f"The {name} is empty, without pixels; connect a picture.")
    height, width, channels = image.shape[1:]
    if channels not in (1, 2, 3, 4):
        raise ValueError(
            f"The {name} has {channels} channels, a picture has 1 to 4; a mask needs Convert Mask to Image first."
        )
    if max(height, width) > MAX_SIDE:
        raise ValueError(
            f"The {name} is {width}x{height} px; at most {MAX_SIDE} px per side are read: scale it down first."
        )
    return _numbers(image, name).movedim(-1, 1)


def _tensor(value: Any, name: str, kind: str) -> Tensor:
    """`value`, if it is a tensor of plain numbers; otherwise a ValueError that names the input."""
    if value is None:
        raise ValueError(f"The {name} is missing (None); connect {kind}.")
    if not isinstance(value, Tensor):
        raise ValueError(f"The {name} is of type {type(value).__name__}; connect {kind}.")
    if value.is_complex():
        raise ValueError(f"The {name} holds complex numbers; connect {kind}.")
    return value


def _numbers(values: Tensor, name: str) -> Tensor:
    """Any dtype -> fp32 in 0..1, where results lie between nodes: whole numbers are 0..255, or 0..65535 in uint16."""
    dtype, values = values.dtype, values.detach().float().to(host.output_device())  # no fp64 on devices
    if not (dtype.is_floating_point or dtype == torch.bool):
        values = values / (65535 if dtype == torch.uint16 else 255)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"The {name} contains NaN or infinity; check the node that produced it.")
    return values.clamp(0, 1)


def to_comfy(pixels: Tensor) -> Tensor:
    """[B,C,h,w] -> IMAGE"""
    return pixels.movedim(1, -1).contiguous().float()


def mask_to_core(mask: Any, picture: Tensor, name: str = "mask") -> Tensor:
    """MASK for pictures [B,C,h,w] -> fp32 [1 or B,h,w] in 0..1; several masks of a single picture are united.

    Other packs' layouts are read too: [h,w], [B,1,h,w], [B,h,w,1], any dtype. Raises ValueError, naming the input,
    where it is empty or does not fit the pictures.
    """
    masks = _masks(_tensor(mask, name, "a mask"), name, tuple(picture.shape[2:]))
    check_marked(masks)  # first, since LoadImage gives an empty mask of 64x64 px where nothing is painted
    (height, width), (picture_height, picture_width) = masks.shape[1:], picture.shape[2:]
    if (height, width) != (picture_height, picture_width):
        raise ValueError(
            f"The {name} is {width}x{height} px, the image {picture_width}x{picture_height} px: make them the same "
            "size."
        )
    if len(picture) == 1:
        return masks.amax(dim=0, keepdim=True)
    if len(masks) not in (1, len(picture)):
        raise ValueError(f"Got {len(masks)} masks for {len(picture)} images; connect one mask, or one per image.")
    return masks


def _masks(mask: Tensor, name: str, size: tuple[int, ...]) -> Tensor:
    """A mask in any of the layouts -> fp32 [B,h,w] in 0..1. `size` (h, w) of the picture tells [h,w,1] from [B,h,w]."""
    if mask.ndim == 2 or (mask.ndim == 3 and mask.shape[2] == 1 and tuple(mask.shape[:2]) == size):
        mask = mask.reshape(1, *mask.shape[:2])
    elif mask.ndim == 4 and mask.shape[1] == 1 and (mask.shape[3] != 1 or tuple(mask.shape[2:]) == size):
        mask = mask[:, 0]
    elif mask.ndim == 4 and mask.shape[3] == 1:
        mask = mask[..., 0]
    if mask.ndim != 3 or not mask.numel():
        kind = (
            "an empty mask"
            if not mask.numel()
            else "a picture"
            if mask.ndim == 4
            else f"a tensor of {mask.ndim} dimensions"
        )
        raise ValueError(f"The {name} is {kind}; connect a mask (Convert Image to Mask makes one).")
    labels = not mask.is_floating_point() and int(mask.max()) == 1  # 0 and 1, not 0 and 1 of 255
    return _numbers(mask.bool() if labels else mask, name)


def crop_to_cells(pixels: Tensor, scale: int) -> Tensor:
    """[B,3,h,w] cropped in the centre so that both sides are multiples of `scale`; a side below one cell stays."""
    height, width = (max(side // scale * scale, min(side, scale)) for side in pixels.shape[2:])
    top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
    return pixels[:, :, top : top + height, left : left + width]


def preview(codes: Tensor, unknown: Tensor, colours: Tensor, size: int | None) -> Image.Image:
    """A picture of canvases [B,H,W], side by side: a square per cell, holes grey. It is as large as their pictures will
    be or, if they are larger than `size` px, smaller; squares are whole pixels."""
    tiles = mosaic(codes.to(colours.device), unknown.to(colours.device), colours)
    columns = math.ceil(math.sqrt(len(tiles)))
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, -len(tiles) % columns), value=GREY)
    sheet = to_pil(rearrange(tiles, "(r c) rgb h w -> rgb (r h) (c w)", c=columns))
    factor = CELL if size is None else min(CELL, max(1, size // max(sheet.size)))
    return sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST)


def grey_where(pixels: Tensor, mask: Tensor) -> Tensor:
    """[B,3,h,w] with what mask [B,h,w] marks turned grey."""
    return torch.where(mask[:, None] > 0.5, torch.full_like(pixels, GREY), pixels)
