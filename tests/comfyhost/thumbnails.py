"""Pictures for the Templates dialog: `workflows/TITLE.jpg`, made of what the workflow itself takes and gives."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dimoo_core.pictures.sheet import wrapped

from .expect import Results
from .templates import TEMPLATES
from .workflow import path

SIDE = 400  # px, square as the dialog's cards are
GAP = 8
CAPTION = 96  # px below the pictures where there are words to show
BADGE = (180, 50)  # px at the top left of a thumbnail that the dialog covers: 110 x 30 px of a card, 250 px wide
# of workflows with more pictures than tell a story: the nodes whose first picture is shown, without words
PICTURES = {
    "variations": ("Sheet",),
    "edit": ("After",),
    "train-lora": ("Teach it",),
    "lora": ("Without the LoRA", "With the LoRA"),
}
# the nodes whose words are shown, where others say the same at length, or more than can be read on a card
WORDS: dict[str, tuple[str, ...]] = {"caption-folder": ("Captions",), "best-of": ()}
CIRCLE = ("dimoo-circle.png",)
# examples that a workflow begins with, where none of its results shows them
BEFORE = {
    "edit": CIRCLE,
    "describe": CIRCLE,
    "control": CIRCLE,
    "describe-and-regenerate": CIRCLE,
    "two-jobs": CIRCLE,
    "caption-folder": tuple(f"dimoo-examples/{name}.png" for name in ("square", "star", "triangle")),
}
BACKGROUND, INK = (32, 32, 36), (236, 236, 236)


def write(name: str, results: Results) -> Path:
    """Write the thumbnail of a workflow beside it."""
    file = path(name, ".jpg")
    if name in PICTURES:
        results = Results({title: results.pictures[title][:1] for title in PICTURES[name]})
    if name in WORDS:
        results = Results(results.pictures, {title: results.texts[title] for title in WORDS[name]})
    before = [(TEMPLATES.EXAMPLES / example).read_bytes() for example in BEFORE.get(name, ())]
    thumbnail(results, before).save(file, "JPEG", quality=85, optimize=True)
    return file


def thumbnail(results: Results, before: Iterable[bytes] = ()) -> Image.Image:
    """All that a workflow begins with and shows, in order: pictures side by side or in a grid, the words of a model
    below them, and nothing beside the badge above them."""
    pictures = different([*before, *(data for shown in results.pictures.values() for data in shown)])
    words = " / ".join(dict.fromkeys(text for texts in results.texts.values() for text in texts))  # each once
    sheet = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    above, below = BADGE[1] + GAP, CAPTION if words else 0
    for picture, (left, top, width, height) in zip(pictures, boxes(len(pictures), SIDE - above - below), strict=True):
        put(sheet, picture, (left, above + top, width, height))
    if words:
        caption(sheet, words, SIDE - below)
    return sheet


def different(files: Iterable[bytes]) -> list[Image.Image]:
    """The pictures of files, those that are there twice once."""
    pictures = (Image.open(io.BytesIO(data)).convert("RGB") for data in files)
    return list({(picture.size, picture.tobytes()): picture for picture in pictures}.values())


def boxes(count: int, height: int) -> list[tuple[int, int, int, int]]:
    """Where pictures go on SIDE x height px: (left, top, width, height) each; two lie like cards, more in a grid."""
    if count == 1:
        return [(0, 0, SIDE, height)]
    if count == 2:
        width, tall = round(SIDE * 0.6), round(height * 0.6)
        return [(0, 0, width, tall), (SIDE - width, height - tall, width, tall)]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    width, tall = (SIDE - GAP * (columns - 1)) // columns, (height - GAP * (rows - 1)) // rows
    last_row = count - columns * (rows - 1)
    found = []
    for index in range(count):
        row, column = divmod(index, columns)
        inset = (columns - last_row) * (width + GAP) // 2 if row == rows - 1 else 0
        found.append((inset + column * (width + GAP), row * (tall + GAP), width, tall))
    return found


def put(sheet: Image.Image, picture: Image.Image, box: tuple[int, int, int, int]) -> None:
    """A picture as large as its box allows, in its middle, with a seam around it where it covers another."""
    left, top, width, height = box
    scale = min(width / picture.width, height / picture.height)
    size = (round(picture.width * scale), round(picture.height * scale))
    left, top = left + (width - size[0]) // 2, top + (height - size[1]) // 2
    seam = (left - GAP // 2, top - GAP // 2, left + size[0] + GAP // 2, top + size[1] + GAP // 2)
    sheet.paste(BACKGROUND, seam)
    sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, top))


def caption(sheet: Image.Image, words: str, top: int) -> None:
    """Words in the middle of what is left below `top`, on as many lines as they need, smaller where they are many."""
    draw, room = ImageDraw.Draw(sheet), SIDE - top
    for size in range(26, 8, -2):
        font = ImageFont.load_default(size=size)
        text = "\n".join(wrapped(words, SIDE - 2 * GAP, font))
        box = draw.multiline_textbbox((0, 0), text, font=font)
        if box[3] <= room - GAP:
            break
    middle = (SIDE // 2, top + room // 2)
    draw.multiline_text(middle, text, fill=INK, font=font, anchor="mm", align="center")
