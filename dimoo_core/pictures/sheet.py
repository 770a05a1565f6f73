"""Several pictures on one sheet, with words between or below them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .pixels import MAX_PIXELS

PAPER, INK = "white", "black"
GAP = 8  # px between the pictures of a contact sheet
_SMALLEST = 10  # px of letters; on larger pictures they grow with the width


def contact_sheet(pictures: Sequence[Image.Image], words: Sequence[str], columns: int = 0) -> Image.Image:
    """Pictures in reading order, each with its words below it, in `columns`; 0 makes the sheet about square.

    Raises ValueError for no picture, for another number of words than of pictures, and for a sheet of more than
    MAX_PIXELS.
    """
    if not pictures:
        raise ValueError("There is no picture for the sheet; expected at least one: connect a picture.")
    if len(words) != len(pictures):
        raise ValueError(f"Got {len(words)} texts for {len(pictures)} pictures; expected one each: connect as many.")
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    tiles = [captioned(picture, text) for picture, text in zip(pictures, words, strict=True)]
    return grid([tiles[first : first + columns] for first in range(0, len(tiles), columns)], GAP, GAP)


def grid(rows: Sequence[Sequence[Image.Image]], across: int = 0, down: int = 0) -> Image.Image:
    """Pictures side by side, each row as high as its highest; `across` px follow each picture, `down` px each row.

    Raises ValueError for a sheet of more than MAX_PIXELS.
    """
    heights = [max(one.height for one in row) + down for row in rows]
    width = max(sum(one.width + across for one in row) for row in rows)
    if width * sum(heights) > MAX_PIXELS:
        raise ValueError(
            f"The sheet would be {width}x{sum(heights)} px; expected at most {MAX_PIXELS:,} px in all: make the "
            "pictures smaller, or put fewer on it."
        )
    image, top = Image.new("RGB", (width, sum(heights)), PAPER), 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for one in row:
            image.paste(one, (left, top))
            left += one.width + across
        top += height
    return image


def captioned(picture: Image.Image, words: str) -> Image.Image:
    """A picture with words below it, on lines no wider than the picture and in all no higher than that."""
    font = _font(max(_SMALLEST, picture.width // 26))
    line = math.ceil(font.size * 1.4)
    lines = wrapped(words, picture.width, font)
    most = max(1, picture.width // line)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][:-4] + " ..."]
    image = Image.new("RGB", (picture.width, picture.height + line * len(lines)), PAPER)
    image.paste(picture, (0, 0))
    pen = ImageDraw.Draw(image)
    for number, text in enumerate(lines):
        pen.text((picture.width / 2, picture.height + line * (number + 0.5)), text, INK, font, anchor="mm")
    return image


def label(words: str, height: int) -> Image.Image:
    """Words on a line of `height` px."""
    font = _font(_SMALLEST)
    image = Image.new("RGB", (math.ceil(font.getlength(words)) + 4, height), PAPER)
    ImageDraw.Draw(image).text((2, 3), words, INK, font)
    return image


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """A picture, no longer than `side` px on its longer side."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if scale >= 1 else picture.resize(size, Image.Resampling.LANCZOS)


def wrapped(words: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Words as lines of at most `width` px; a word that is longer than that is cut."""
    lines: list[str] = []
    for paragraph in words.splitlines():
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") <= width:
                line = f"{line} {word}"
                continue
            *full, line = [*([line] if line else []), *_cut(word, width, font)]
            lines += full
        lines += [line] if line else []
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]  # with a size it is one


def _cut(word: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces
