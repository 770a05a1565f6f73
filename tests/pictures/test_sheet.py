"""A contact sheet: every picture whole and unchanged, with its words below it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from dimoo_core.pictures.pixels import MAX_PIXELS
from dimoo_core.pictures.sheet import GAP, contact_sheet, fitted, grid, wrapped

COLOURS = ("red", "green", "blue", "orange", "purple")
TILES = [Image.new("RGB", (128, 96), colour) for colour in COLOURS]


def at(sheet: Image.Image, left: int, top: int, size: tuple[int, int] = (128, 96)) -> bytes:
    return sheet.crop((left, top, left + size[0], top + size[1])).tobytes()


def ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Pixels in a box that are not paper."""
    return int((np.asarray(sheet.crop(box)) != 255).any(axis=2).sum())


@pytest.mark.parametrize("columns, across", [(0, 3), (1, 1), (2, 2), (9, 5)])
def test_pictures_stand_in_reading_order_unchanged(columns: int, across: int) -> None:
    sheet = contact_sheet(TILES, [""] * 5, columns)
    rows = -(-5 // across)
    assert sheet.size == (across * (128 + GAP), rows * (96 + GAP))
    for place, tile in enumerate(TILES):
        row, column = divmod(place, across)
        assert at(sheet, column * (128 + GAP), row * (96 + GAP)) == tile.tobytes()


def test_words_stand_below_their_own_picture() -> None:
    sheet = contact_sheet(TILES[:2], ["", "a small green star"], 2)
    below = sheet.height - GAP
    assert ink(sheet, (0, 96, 128, below)) == 0
    assert ink(sheet, (128 + GAP, 96, 2 * 128 + GAP, below)) > 50


def test_long_words_go_on_in_the_next_line_and_end_where_the_picture_would_be_dwarfed() -> None:
    one, long = (contact_sheet(TILES[:1], [words]) for words in ("a star", "a small green star " * 500))
    assert one.height < long.height <= 96 + 128 + GAP and long.width == one.width


@pytest.mark.parametrize("words", ["a small green star in the middle", "x" * 300, "one\ntwo\n\nthree", "", " \n "])
def test_lines_are_no_wider_than_asked_and_lose_nothing(words: str) -> None:
    font = ImageFont.load_default(10)
    lines = wrapped(words, 60, font)
    assert all(font.getlength(line) <= 60 and line.strip() for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(words.split())


def test_pictures_of_several_sizes_share_a_sheet() -> None:
    small, tall = Image.new("RGB", (10, 20), "red"), Image.new("RGB", (40, 60), "blue")
    sheet = grid([[small, tall], [tall]], across=2)
    assert sheet.size == (54, 120)
    assert at(sheet, 12, 0, (40, 60)) == at(sheet, 0, 60, (40, 60)) == tall.tobytes()


def test_larger_pictures_are_scaled_down_in_their_own_shape_and_smaller_ones_stay() -> None:
    assert fitted(TILES[0], 64).size == (64, 48)
    assert fitted(TILES[0], 128) is TILES[0] and fitted(TILES[0], 900) is TILES[0]
    assert fitted(Image.new("RGB", (1000, 1)), 100).size == (100, 1)


def test_a_sheet_that_cannot_be_made_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^There is no picture for the sheet; .+\.$"):
        contact_sheet([], [])
    with pytest.raises(ValueError, match=r"^Got 1 texts for 2 pictures; .+\.$"):
        contact_sheet(TILES[:2], ["one"])
    large = Image.new("1", (20_000, 20), 0)
    with pytest.raises(ValueError, match=rf"^The sheet would be 20000x\d+ px; expected at most {MAX_PIXELS:,} px"):
        grid([[large]] * 300)
