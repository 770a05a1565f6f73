"""Pictures and masks: sizes, fitting, RGB, and masks on the grid of cells. Pixels are fp32 [B,3,h,w] in 0..1.

Fitting follows `golden.json` `crops`: of the sizes with about side x side pixels the one nearest in shape, covered by
resizing, then cropped. Decided differently from the released code: the crop is centred, not random.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .checks import number_in, whole_number

PATCH = 32  # bucket sizes are multiples of it
MAX_RATIO = 4  # longest side of a bucket over its shortest
MAX_CELLS = 65536  # a canvas of 4096x4096 px at 16 px per cell
MAX_PIXELS = 100_000_000  # of a picture that is read from a file
RECTANGLE = 0.5  # a cell belongs to a drawn rectangle if more than half of it does, as in the released code
PAINTED = 0.0  # a cell belongs to a painted mask if any of it does: nothing that was painted over may stay
GREY = 0.5


def buckets(side: int) -> list[tuple[int, int]]:
    """Sizes (width, height) in px of about side x side pixels, multiples of 32, no longer than 4:1."""
    whole_number("side", side, PATCH, 4096)
    patches = (side // PATCH) ** 2
    return [
        (w * PATCH, h * PATCH)
        for w in range(1, patches + 1)
        for h in range(max(1, patches // (w + 1)), patches // w + 1)  # widest that fits, and the stairs down to it
        if max(w, h) <= MAX_RATIO * min(w, h)
    ]


def fit_size(width: int, height: int, side: int) -> tuple[int, int]:
    """The bucket (width, height) for a picture of width x height px: the one that cuts off least of its shape."""

    def match(size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        across, down = size[0] / width, size[1] / height
        return min(across, down) / max(across, down), size

    return max(buckets(side), key=match)


def understanding_size(width: int, height: int, sides: tuple[int, int], *, images: int) -> tuple[int, int]:
    """The size (width, height) at which a picture is described, as in training: with several `images` always a bucket
    of the smaller side; else a bucket where the area is below the smaller or above the larger side's square, and
    in between its own size, floored to multiples of 16."""
    small, large = sides
    area = width * height
    if images > 1 or area < small * small:
        return fit_size(width, height, small)
    if area > large * large or min(width, height) < 16:
        return fit_size(width, height, large)
    return width // 16 * 16, height // 16 * 16


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


def check_size(width: int, height: int, scale: int = 16) -> tuple[int, int]:
    """Cells (height, width) of a picture of width x height px; raises ValueError unless both are multiples of `scale`
    and the cells are few enough to be sampled."""
    if width < scale or height < scale or width % scale or height % scale:
        near = [max(scale, round(side / scale) * scale) for side in (width, height)]
        raise ValueError(
            f"A size of {width}x{height} px came; width and height must be multiples of {scale} px, at least {scale}: "
            f"use {near[0]}x{near[1]}."
        )
    cells = height // scale, width // scale
    if math.prod(cells) > MAX_CELLS:
        raise ValueError(
            f"A size of {width}x{height} px has {math.prod(cells)} cells, at most {MAX_CELLS} can be sampled: scale "
            "the picture down first."
        )
    return cells


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


def load_mask(path: str | Path) -> Tensor:
    """A black and white picture as a mask, [1,h,w]: white is what is to be repainted."""
    return load_picture(path).mean(dim=1)


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
