"""Draws what the Comfy Registry and ComfyUI-Manager show of the pack, its icon and its banner:
`python -m tests.registry_pictures`. DiMOO-nano paints them, as it does the pictures of the help pages.

Both show how a picture comes about: cell by cell, the surest first.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dimoo_core import jobs
from dimoo_core.sequence.canvas import Canvas

from .help_pictures import Studio, picture

FOLDER = Path(__file__).parent.parent / "docs"
ICON, BANNER = 400, (1680, 720)  # px: at most 400 a side; 21:9
MARGIN, TILE, GAP = 90, 276, 30  # px of the banner
PAPER, HOLE, INK, SOFT = (24, 24, 30), (58, 60, 70), (245, 245, 245), (170, 172, 184)
TEXT = "a large blue star in the middle on a pink background"
STEP = 13  # of 16, when the star can be told and much is open


def forming(steps: list[Canvas], final: Tensor, side: int, step: int = STEP) -> Image.Image:
    """The finished picture [1,3,h,w] at side x side px, with the cells that are open after a step left out."""
    shown = picture(final).resize((side, side), Image.Resampling.BICUBIC)
    draw, unknown = ImageDraw.Draw(shown), steps[step].unknown[0]
    size = side / len(unknown)
    for row, column in unknown.nonzero().tolist():
        left, top = column * size, row * size
        draw.rectangle((left, top, left + size, top + size), HOLE, PAPER, 2)
    return shown


def rounded(shown: Image.Image, radius: int) -> Image.Image:
    """The picture with round, transparent corners."""
    mask = Image.new("L", shown.size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, shown.width - 1, shown.height - 1), radius, 255)
    shown.putalpha(mask)
    return shown


def said(words: str) -> Image.Image:
    """Words in a box as large as a tile."""
    box = Image.new("RGB", (TILE, TILE), PAPER)
    draw, middle, font = ImageDraw.Draw(box), TILE // 2, ImageFont.load_default(28)
    draw.rounded_rectangle((1, 1, TILE - 2, TILE - 2), 16, outline=SOFT, width=2)
    lines = "\n".join(textwrap.wrap(f'"{words}"', 16))
    draw.multiline_text((middle, middle), lines, INK, font, anchor="mm", align="center", spacing=8)
    return box


def banner(studio: Studio, steps: list[Canvas], final: Tensor) -> Image.Image:
    """The pack's name above a row of what it does, each with its word."""
    hole = torch.zeros(1, *final.shape[2:])
    hole[:, 32:96, 64:] = 1  # the right half of the star
    holed = jobs.Inpaint(hole).prepare(studio.vq, final).canvas
    row = {
        "text to image": forming(steps, final, TILE),
        "edit": large(studio.edit(final, "edit_replace", "make the star yellow", seed=1)),
        "inpaint": forming([holed], final, TILE, 0),
        "control": large(studio.edit(final, "canny_pred", "", seed=1)),
        "describe": said(studio.say(final)),
    }
    sheet = Image.new("RGB", BANNER, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 70), "DiMOO", INK, ImageFont.load_default(120))
    draw.text((MARGIN + 4, 222), "Lumina-DiMOO in ComfyUI: one model for every job", SOFT, ImageFont.load_default(40))
    for number, (words, shown) in enumerate(row.items()):
        left, top = MARGIN + number * (TILE + GAP), 330
        sheet.paste(shown, (left, top), rounded(shown.copy(), 16))
        draw.text((left + TILE // 2, top + TILE + 14), words, SOFT, ImageFont.load_default(30), anchor="ma")
    return sheet


def large(pixels: Tensor) -> Image.Image:
    return picture(pixels).resize((TILE, TILE), Image.Resampling.BICUBIC)


def main() -> None:
    studio = Studio()
    steps = studio.good(TEXT)
    final = studio.decode(steps[-1])
    drawn = {"icon": rounded(forming(steps, final, ICON), 64), "banner": banner(studio, steps, final)}
    for name, shown in drawn.items():
        path = FOLDER / f"{name}.png"
        shown.save(path, optimize=True)
        print(f"{path.name}: {shown.width} x {shown.height} px, {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
