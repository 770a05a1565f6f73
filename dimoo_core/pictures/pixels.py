"""Pixels: reading pictures, RGB, fitting, compositing, previews. Pixels are fp32 [B,3,h,w] in 0..1.

Decided differently from the released code: the crop of a fitted picture is centred, not random.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 100_000_000  # of a picture that is read from a file
GREY = 0.5


def fit(pixels: Tensor, width: int, height: int) -> Tensor:
    """pixels [B,3,h,w] of any size resized to cover width x height px, then cropped in the centre."""
    old_height, old_width = pixels.shape[2:]
    while old_width >= 2 * width and old_height >= 2 * height:
        old_width, old_height = old_width // 2, old_height // 2
        pixels = F.interpolate(pixels, (old_height, old_width), mode="area")
    scale = max(width / old_width, height / old_height)
    # Of a picture much longer than the frame only the middle is needed: resized whole it could fill any memory.
    pixels = _middle(pixels, math.ceil(2 * width / scale), math.ceil(2 * height / scale))
    old_height, old_width = pixels.shape[2:]
    size = (max(height, round(old_height * scale)), max(width, round(old_width * scale)))
    if size != (old_height, old_width):
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
    return _middle(pixels, width, height).contiguous()


def _middle(pixels: Tensor, width: int, height: int) -> Tensor:
    """The centre of pixels [B,3,h,w], at most width x height px."""
    top, left = (max(0, old - new) // 2 for old, new in zip(pixels.shape[2:], (height, width), strict=True))
    return pixels[:, :, top : top + height, left : left + width]


def to_rgb(pixels: Tensor) -> Tensor:
    """Pixels [B,C,h,w] with C = 1 (grey), 2 (grey, alpha), 3 or 4 (alpha) -> [B,3,h,w] in 0..1.

    What is transparent becomes white, as in training. Raises ValueError for anything else, empty pictures and NaN.
    """
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 2, 3, 4) or not pixels.numel():
        raise ValueError(f"A picture of shape {list(pixels.shape)} came; [B, 1 to 4, height, width] is needed.")
    pixels = pixels.float()
    if not bool(torch.isfinite(pixels).all()):
        raise ValueError("The picture has pixels that are no number (NaN or infinite): look at the node that made it.")
    pixels = pixels.clamp(0, 1)
    if pixels.shape[1] in (2, 4):
        colour, alpha = pixels[:, :-1], pixels[:, -1:]
        pixels = colour * alpha + (1 - alpha)
    return pixels.expand(-1, 3, -1, -1)


def load_picture(path: str | Path) -> Tensor:
    """The picture of a file, [1,3,h,w], turned as its EXIF says. Raises ValueError where it cannot be read."""
    try:
        with Image.open(path) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise ValueError(
                    f"The picture {path} has {image.width}x{image.height} px, at most {MAX_PIXELS // 10**6} million "
                    "pixels are read: scale it down first."
                )
            return from_pil(image)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ValueError(f"The picture {path} cannot be read ({error.strerror}): check the path.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"The file {path} is no readable picture ({error}): save it as PNG or JPEG.") from error


def from_pil(image: Image.Image) -> Tensor:
    """A PIL picture of any mode -> [1,3,h,w] in 0..1."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = _pil_values(image.convert("F"), torch.float32, 1)
        return to_rgb(values / (65535 if float(values.max()) > 255 else 255))
    image = image.convert("RGBA" if "A" in image.mode or "transparency" in image.info else "RGB")
    return to_rgb(_pil_values(image, torch.uint8, len(image.getbands())) / 255)


def _pil_values(image: Image.Image, dtype: torch.dtype, channels: int) -> Tensor:
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=dtype)
    return flat.view(1, image.height, image.width, channels).permute(0, 3, 1, 2).float()


def to_pil(pixels: Tensor) -> Image.Image:
    """One picture [3,h,w] in 0..1 as an 8-bit PIL picture."""
    values = (pixels.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu()
    return Image.fromarray(values.numpy())


def composite(original: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """`painted` where mask [B,h,w] is 1, `original` where it is 0, both bit for bit, and a blend in between; pictures
    [B,3,h,w]. What is not finite in one of them stays where that one is taken."""
    share = mask[:, None].to(original)
    mixed = torch.lerp(original, painted, share)  # 0 times NaN is NaN
    return torch.where(share <= 0, original, torch.where(share >= 1, painted, mixed))


def mosaic(codes: Tensor, unknown: Tensor, colours: Tensor) -> Tensor:
    """A cheap preview [B,3,H,W], one pixel per cell: the mean colour [K,3] of each code, grey where unknown."""
    grid = colours[codes.clamp(0, len(colours) - 1)].masked_fill(unknown[..., None], GREY)
    return grid.permute(0, 3, 1, 2)


def pad_to_cells(pixels: Tensor, scale: int) -> Tensor:
    """Pixels or masks [...,h,w] with the last column and row repeated until both sides are multiples of `scale`."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % scale, 0, -height % scale), mode="replicate")
