"""Draws the pictures that the templates begin with: `python -m tests.comfyhost.examples`.

They are scenes of DiMOO-nano's world, as its own drawer draws them. What is transparent is what Load Image gives as a
mask; the colours are there under it all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dimoo_core.nano.captions import described
from dimoo_core.nano.scenes import draw
from dimoo_core.pictures.pixels import to_pil
from dimoo_core.pictures.sizes import CELL

from .templates import TEMPLATES


@dataclass(frozen=True)
class Example:
    """A scene by its caption, on `height` x `width` cells, and the box (left, top, right, bottom in px) that is
    transparent."""

    caption: str
    height: int = 8
    width: int = 8
    hole: tuple[int, int, int, int] | None = None

    def draw(self) -> Image.Image:
        scene = described(self.caption)
        if scene is None:
            raise ValueError(f"{self.caption!r} is no caption of DiMOO-nano's world.")
        picture = to_pil(draw(scene, self.height, self.width))
        if self.hole is not None:
            alpha = Image.new("L", (self.width * CELL, self.height * CELL), 255)
            alpha.paste(0, self.hole)
            picture.putalpha(alpha)
        return picture


EXAMPLES = {
    "dimoo-circle.png": Example("a large red circle in the middle on a cyan background"),
    "dimoo-inpaint.png": Example("a large red circle on the left on a white background", hole=(0, 32, 64, 96)),
    "dimoo-large.png": Example(
        "a large red circle on the left on a white background", height=16, width=32, hole=(384, 96, 448, 160)
    ),
    "dimoo-strip.png": Example("a large purple square in the middle on a pink background", height=4),
    "dimoo-examples/square.png": Example("a large purple square on the left on a pink background"),
    "dimoo-examples/star.png": Example("a small yellow star at the top on a black background"),
    "dimoo-examples/triangle.png": Example("a small orange triangle at the bottom on a brown background"),
}


def write(folder: Path) -> None:
    """All of them into a folder."""
    for name, example in EXAMPLES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        example.draw().save(path, "PNG", optimize=True)
        print(f"{name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    write(TEMPLATES.EXAMPLES)
