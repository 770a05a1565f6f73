"""Pixels: reading pictures, RGB, fitting, compositing, previews. Pixels are fp32 [B,3,h,w] in 0..1.

Decided differently from the released code: the crop of a fitted picture is centred, not random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from . import sizes

MAX_PIXELS = 100_000_000  # of a picture that is read from a file
GREY = 0.5

# Formats that hold pixels and are read within this process
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DIB", "ICO"),
    *("JPEG2000", "PPM", "QOI", "DDS", "PCX", "SGI", "TGA"),
)

_ORIENTATION = 0x0112  # EXIF's tag for how the camera was held
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))


def fit(pixels: Tensor, width: int, height: int) -> Tensor:
    """pixels [B,3,h,w] of any size resized to cover width x height px, then cropped in the centre; what is left of them
    is `sizes.fitted_window`."""
    pixels = _halved(pixels, width, height)
    pixels = _middle(pixels, *sizes.needed_middle((pixels.shape[3], pixels.shape[2]), (width, height)))
    return _middle(cover(pixels, width, height), width, height).contiguous()


def cover(pixels: Tensor, width: int, height: int) -> Tensor:
    """pixels [B,3,h,w] of any size resized so that they just cover width x height px: halved while both sides are at
    least twice as long, then by bicubic interpolation, as in training."""
    pixels = _halved(pixels, width, height)
    old = (pixels.shape[3], pixels.shape[2])
    new = sizes.covering_size(old, (width, height))
    if new == old:
        return pixels
    return F.interpolate(pixels, new[::-1], mode="bicubic", antialias=True).clamp(0, 1)


def _halved(pixels: Tensor, width: int, height: int) -> Tensor:
    for size in sizes.halvings((pixels.shape[3], pixels.shape[2]), (width, height)):
        pixels = F.interpolate(pixels, size[::-1], mode="area")
    return pixels


def _middle(pixels: Tensor, width: int, height: int) -> Tensor:
    """The centre of pixels [B,3,h,w], at most width x height px."""
    top, left = sizes.offset(pixels.shape[2], height), sizes.offset(pixels.shape[3], width)
    return pixels[:, :, top : top + height, left : left + width]


def to_rgb(pixels: Tensor) -> Tensor:
    """Pixels [B,C,h,w] with C = 1 (grey), 2 (grey, alpha), 3 or 4 (alpha) -> [B,3,h,w] in 0..1.

    What is transparent becomes white, as in training. Raises ValueError for anything else, empty pictures and NaN.
    """
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 2, 3, 4) or not pixels.numel():
        raise ValueError(f"Got a picture of shape {list(pixels.shape)}; expected [B, 1 to 4, height, width].")
    pixels = pixels.float()
    if not bool(torch.isfinite(pixels).all()):
        raise ValueError("Got a picture that contains NaN or infinity; check what made it.")
    pixels = pixels.clamp(0, 1)
    if pixels.shape[1] in (2, 4):
        colour, alpha = pixels[:, :-1], pixels[:, -1:]
        pixels = colour * alpha + (1 - alpha)
    return pixels.expand(-1, 3, -1, -1)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture file: its colours, and what belongs to it but is not a colour.

    pixels: RGB [1,3,h,w] in 0..1 as the file has them, under transparency too. alpha: [1,1,h,w] in 0..1, None where the
    file has none. icc_profile: what its RGB colours mean, None where the file has one of other colours or none. dpi:
    (across, down).
    """

    pixels: Tensor
    alpha: Tensor | None = None
    icc_profile: bytes | None = None
    dpi: tuple[float, float] | None = None

    @classmethod
    def load(cls, path: str | Path) -> Picture:
        """The picture of a file, turned as its EXIF says. Raises ValueError where it cannot be read."""
        with open_picture(path) as image:
            pixels, profile, dpi = _values(_plain(image)), image.info.get("icc_profile"), _dpi(image)
        return cls._of(pixels, profile, dpi, f"picture {path}")

    @classmethod
    def from_pil(cls, image: Image.Image) -> Picture:
        """A PIL picture of any mode, turned as its EXIF says. Raises ValueError where its values are not finite."""
        return cls._of(_values(_plain(image)), image.info.get("icc_profile"), _dpi(image), "picture")

    @classmethod
    def _of(cls, pixels: Tensor, profile: bytes | None, dpi: tuple[float, float] | None, name: str) -> Picture:
        if not bool(torch.isfinite(pixels).all()):
            raise ValueError(f"The {name} contains NaN or infinity; save it as PNG or JPEG.")
        pixels = pixels.clamp(0, 1)
        if profile is not None and profile[16:20] != b"RGB ":
            profile = None  # one of grey or CMYK, from before the colours became RGB
        return cls(pixels[:, :3], pixels[:, 3:] if pixels.shape[1] == 4 else None, profile or None, dpi)

    def on_white(self) -> Tensor:
        """RGB [1,3,h,w] as the model sees the picture: what is transparent is white."""
        return to_rgb(self.pixels if self.alpha is None else torch.cat((self.pixels, self.alpha), dim=1))

    def repainted(self, painted: Tensor, mask: Tensor, drawn: Tensor) -> Tensor:
        """[B,3 or 4,h,w]: this picture with `painted` [B,3,h,w] where mask [1 or B,h,w] is 1, and its own alpha.

        Every other pixel is the file's, bit for bit. `drawn` [1 or B,h,w] is the mask before it was snapped to cells;
        see `visible_alpha`.
        """
        colours = composite(self.pixels, painted, mask)
        if self.alpha is None:
            return colours
        alpha = visible_alpha(self.alpha, drawn).expand(len(colours), -1, -1, -1)
        return torch.cat((colours, alpha.to(colours)), dim=1)


def visible_alpha(alpha: Tensor, drawn: Tensor) -> Tensor:
    """The alpha [B,1,h,w] of a picture whose part `drawn` [1 or B,h,w] was painted: its own, [1 or B,1,h,w].

    Only where nothing of that part would be seen, a hole that is to be filled, the part becomes opaque.
    """
    marked = drawn[:, None].to(alpha.device) > 0.5
    unseen = ~(marked & (alpha >= 0.5)).flatten(1).any(dim=1)[:, None, None, None]
    return torch.where(marked & unseen, torch.ones_like(alpha), alpha)


def load_picture(path: str | Path) -> Tensor:
    """The picture of a file as the model sees it, [1,3,h,w]: turned as its EXIF says, transparent parts white.

    Raises ValueError where it cannot be read.
    """
    return Picture.load(path).on_white()


@contextmanager
def open_picture(path: str | Path) -> Iterator[Image.Image]:
    """A picture file as PIL reads it: decoded, the first frame, turned as its EXIF says.

    Raises ValueError, naming the file, for whatever goes wrong here or inside the `with`, except for a lack of memory:
    decoders raise dozens of kinds of exception for damaged files.
    """
    with _opened(path) as image:
        image.load()
        yield _turned(image)


def picture_size(path: str | Path) -> tuple[int, int]:
    """The (width, height) px that a picture file has once it is turned as its EXIF says, from its header: no pixel is
    decoded, except of a TIFF. EXIF that a PNG has behind its pixels is not looked for.

    Raises ValueError, naming the file, where the header cannot be read.
    """
    with _opened(path) as image:
        if image.format == "TIFF":  # turned already by newer versions of PIL, and not by older ones
            image.load()
            return _turned(image).size
        turn = _turn(partial(Image.Image.getexif, image))  # a PNG's own would decode it
        return image.size[::-1] if turn in _SIDEWAYS else image.size


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """A picture file of which the header is read, with the errors of `open_picture`."""
    try:
        opened = Image.open(path, formats=known_formats())
    except MemoryError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    with opened:
        if math.prod(opened.size) > MAX_PIXELS:
            raise ValueError(
                f"The picture {path} has {opened.width}x{opened.height} px, at most {MAX_PIXELS // 10**6} million "
                "pixels are read: scale it down first."
            )
        try:
            yield opened
        except MemoryError:
            raise
        except Exception as error:
            raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    """What to say of a file that PIL could not read."""
    if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError)):
        return ValueError(f"The picture {path} cannot be read ({error.strerror}): check the path.")
    if isinstance(error, Image.DecompressionBombError):
        return ValueError(
            f"The picture {path} has too many pixels, at most {MAX_PIXELS // 10**6} million are read: scale it down "
            "first."
        )
    if isinstance(error, UnidentifiedImageError):
        return ValueError(f"The file {path} is not a readable picture (unknown format): save it as PNG or JPEG.")
    detail = (str(error).strip() or type(error).__name__).splitlines()[0][:80]
    return ValueError(f"The file {path} is not a readable picture ({detail}): save it as PNG or JPEG.")


def known_formats() -> list[str]:
    """The formats that are read, of those that this PIL knows; never EPS, for which it would start Ghostscript."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _turned(image: Image.Image) -> Image.Image:
    """A decoded picture turned as its EXIF says; as it is where the EXIF is damaged."""
    turn = _turn(image.getexif)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = dict(image.info)
    return turned


def _turn(exif: Callable[[], Image.Exif]) -> Image.Transpose | None:
    """How EXIF says to turn a picture; None where it does not, or is damaged."""
    try:
        return _TURNS.get(exif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:
        return None


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in image.info.get("dpi", ()))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 1 <= across < 65536 and 1 <= down < 65536 else None


def from_pil(image: Image.Image) -> Tensor:
    """A PIL picture of any mode -> [1,3,h,w] in 0..1, transparent parts white."""
    return to_rgb(_values(_plain(image)))


def _plain(image: Image.Image) -> Image.Image:
    """A PIL picture of any mode in one of the four that `_values` reads: F, I (of 16 bits), RGBA, RGB."""
    if image.mode in ("I", "F"):
        return image
    if image.mode.startswith("I;16"):
        return image.convert("I")
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("RGBA" if has_alpha(image) else "RGB")


def _values(image: Image.Image) -> Tensor:
    """The numbers of a plain picture, [1,3 or 4,h,w]. The mode alone says what they mean: floats are 0..1, integers of
    16 bits and more 0..65535, all else 0..255."""
    if image.mode == "F":
        return _pil_values(image, torch.float32, 1).expand(-1, 3, -1, -1)
    if image.mode == "I":
        return _pil_values(image, torch.int32, 1).expand(-1, 3, -1, -1) / 65535
    return _pil_values(image, torch.uint8, len(image.getbands())) / 255


def has_alpha(image: Image.Image) -> bool:
    """Whether a PIL picture has transparency: a channel, or a colour that stands for it."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _pil_values(image: Image.Image, dtype: torch.dtype, channels: int) -> Tensor:
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=dtype)
    return flat.view(1, image.height, image.width, channels).permute(0, 3, 1, 2).float()


def to_pil(pixels: Tensor) -> Image.Image:
    """One picture [3 or 4,h,w] (RGB, RGBA) in 0..1 as an 8-bit PIL picture."""
    values = (pixels.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu()
    return Image.fromarray(values.numpy())


def composite(original: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """`painted` where mask [B,h,w] is 1, `original` where it is 0, both bit for bit, and a blend in between; pictures
    [B,C,h,w]. NaN and infinity in one of them stay where that one is taken."""
    share = mask[:, None].to(original)
    mixed = torch.lerp(original, painted, share)  # 0 times NaN is NaN
    return torch.where(share <= 0, original, torch.where(share >= 1, painted, mixed))


def mosaic(codes: Tensor, unknown: Tensor, colours: Tensor) -> Tensor:
    """A cheap preview [B,3,H,W], one pixel per cell: the mean colour [K,3] of each code, grey where unknown."""
    grid = colours[codes.clamp(0, len(colours) - 1)].masked_fill(unknown[..., None], GREY)
    return grid.permute(0, 3, 1, 2)


def changed_size(before: Tensor, after: Tensor, remedy: str) -> str:
    """A sentence where a picture [B,C,h,w] has another size than before, with what to do about it; else ""."""
    old, new = (f"{one.shape[3]}x{one.shape[2]} px" for one in (before, after))
    return "" if old == new else f"{old} became {new}: {remedy}."


def pad_to_cells(pixels: Tensor, scale: int) -> Tensor:
    """Pixels or masks [...,h,w] with the last column and row repeated until both sides are multiples of `scale`."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % scale, 0, -height % scale), mode="replicate")
