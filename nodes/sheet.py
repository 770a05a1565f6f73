"""A batch of pictures on one sheet, to compare them."""

from __future__ import annotations

from collections.abc import Sequence

from ..dimoo_core.pictures.pixels import from_pil, to_pil
from ..dimoo_core.pictures.sheet import contact_sheet, fitted
from ..dimoo_core.sampling.noise import SEEDS
from ..dimoo_core.sequence.prompt import check_text
from . import host, pixels, widgets

MAX_COLUMNS = 64


class ContactSheet(host.io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="DimooContactSheet",
            display_name="DiMOO Contact Sheet",
            category="DiMOO",
            description=(
                "Puts a batch or a list of pictures on one sheet, each with words or a number below it, to compare "
                "variations at a glance."
            ),
            search_aliases=["image grid", "batch to grid", "image collage"],
            is_input_list=True,
            inputs=[
                host.io.Image.Input("image", tooltip="The pictures, as a batch or a list. Sizes may differ."),
                widgets.integer(
                    "columns",
                    0,
                    (0, MAX_COLUMNS),
                    "How many pictures side by side. 0 makes the sheet about square.",
                ),
                widgets.integer(
                    "side",
                    512,
                    (0, pixels.MAX_SIDE),
                    "Larger pictures are scaled down to this many px on their longer side. 0 keeps their size.",
                ),
                widgets.integer(
                    "first_number",
                    1,
                    (0, SEEDS - 1),
                    "Without text the pictures are numbered from here. Connect the sampler's seed, and every picture "
                    "has its own seed below it.",
                ),
                host.io.String.Input(
                    "text",
                    optional=True,
                    force_input=True,
                    tooltip=(
                        "The words below the pictures in place of numbers: a list, such as from DiMOO Describe, a text "
                        "with one line per picture, or one text for all. Letters that English does not have come out "
                        "as boxes."
                    ),
                ),
            ],
            outputs=[host.io.Image.Output(display_name="sheet", tooltip="The sheet as one picture.")],
        )

    @classmethod
    def execute(cls, image, columns=(0,), side=(512,), first_number=(1,), text=()):
        pictures = [to_pil(picture) for batch in image for picture in pixels.to_core(batch)]
        shown = [fitted(picture, side[0]) if side[0] else picture for picture in pictures]
        sheet = contact_sheet(shown, below(text, len(pictures), first_number[0]), columns[0])
        return host.io.NodeOutput(pixels.to_comfy(from_pil(sheet)))


def below(texts: Sequence[str], count: int, first: int) -> list[str]:
    """The words below each of `count` pictures: their own text or line, the one text for all, or numbers from `first`.

    Raises ValueError where there are several texts and not one for each picture, and for what is no text.
    """
    for text in texts:
        check_text("text", text)
    if not texts:
        return [str((first + place) % SEEDS) for place in range(count)]
    if len(texts) == 1:
        lines = [line for line in texts[0].splitlines() if line.strip()]
        return lines if len(lines) == count else [*texts] * count
    if len(texts) != count:
        raise ValueError(
            f"text holds {len(texts)} texts for {count} pictures; expected one per picture, or a single one: connect "
            "texts that were made of these pictures."
        )
    return list(texts)
