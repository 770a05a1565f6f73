"""Makes the pictures of the help pages: `python -m tests.help_pictures [NODE ...]`. DiMOO-nano paints them, by the
core's jobs.

A picture shows what a node is for: tiles in reading order, an arrow where one becomes the next, a few words below.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dimoo_core import jobs
from dimoo_core.checkpoint.adapter_file import read_adapter
from dimoo_core.checkpoint.find import NANO, find
from dimoo_core.checkpoint.load import load_tokenizer, load_transformer, load_vq
from dimoo_core.judge import by_description
from dimoo_core.model.adapters import Applied
from dimoo_core.nano.judge import judge, matches
from dimoo_core.pictures.crop import region_around, resize, resize_mask, stitch, working_size
from dimoo_core.pictures.pixels import mosaic, to_pil
from dimoo_core.pictures.sheet import contact_sheet
from dimoo_core.pictures.sizes import CELL
from dimoo_core.sampling.guidance import Guidance
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.ml_cache import PRESETS
from dimoo_core.sampling.text import TextSettings
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.prompt import GENERATE, Prompt
from dimoo_core.training.code_cache import encode_list
from dimoo_core.training.loop import TrainSettings
from dimoo_core.training.lora import LoraBase, LoraData, LoraSettings, load_base, train_lora
from dimoo_core.training.samples import Request
from dimoo_core.training.watch import Watch

from .lora_files import word_lora

FOLDER = Path(__file__).parent.parent / "web" / "docs"
TILE, GAP, LINE = 128, 24, 16  # px: side of a tile, room between two, height of a line of words
PAPER, INK = (36, 36, 40), (225, 225, 225)
CIRCLE = "a large red circle on the left on a white background"
STAR = "a large blue star on the left on a white background"
OPEN = "a small green star"  # a caption that leaves something open, where nano now and then fails
FIRST_SEED = 11  # of four pictures of it that differ in quality
ADDED = "a large blue star in the middle on a white background"  # painted into an empty corner of a larger CIRCLE
TAUGHT, WORD = "a large yellow star in the middle on a black background", "sks"  # the latter nano does not know
QUESTION = "describe the picture"
ANSWER = TextSettings(max_tokens=32, steps=32, block_length=32)
SCENES = (
    "a small yellow star at the top on a black background",
    "a large green star on the right on a black background",
    "a small orange triangle at the bottom on a brown background",
    "a large purple square on the left on a pink background",
)


@dataclass
class Tile:
    """A picture, the words below it, one line each, and whether an arrow leads to it."""

    picture: Image.Image
    words: tuple[str, ...] = ()
    arrow: bool = False


@dataclass
class Studio:
    """DiMOO-nano, loaded, and what it painted so far, by its settings."""

    found: object = field(default_factory=lambda: find(NANO))

    def __post_init__(self) -> None:
        self.vq = load_vq(self.found)
        self.model = jobs.Model(
            load_transformer(self.found, dtype=torch.float32),
            load_tokenizer(self.found),
            self.found.table,
            self.found.defaults.sides,
        )
        self.colours = self.vq.mean_colours("cpu")

    def fill(self, prompt: Prompt, canvas: Canvas, *, seed: int, cache: str = "off") -> list[Canvas]:
        """The canvas after every step, the finished one last; temperature and steps as the example workflows have."""
        steps: list[Canvas] = [canvas]

        def on_step(_done: int, _total: int, now: Canvas) -> None:
            steps.append(Canvas(now.codes.clone(), now.unknown.clone()))

        settings = ImageSettings(steps=16, temperature=0.6, seed=seed, cache=PRESETS[cache], guidance=Guidance(0, 0))
        done = jobs.plan_image(self.model, prompt, canvas, settings).run(on_step=on_step)
        return [*steps[:-1], done]

    def paint(self, text: str, *, seed: int, cache: str = "off") -> Tensor:
        """A picture [1,3,128,128] of a text."""
        return self.decode(self.fill(jobs.text_prompt(text), Canvas.empty(1, 8, 8), seed=seed, cache=cache)[-1])

    def good(self, text: str, canvas: Canvas | None = None) -> list[Canvas]:
        """The steps of the first seed whose picture shows the text and is clean; nano does not always get there."""
        canvas = Canvas.empty(1, 8, 8) if canvas is None else canvas
        for seed in range(100):
            steps = self.fill(jobs.text_prompt(text), canvas, seed=seed)
            verdict = judge(self.decode(steps[-1])[0])
            if verdict.clean and matches(verdict.scene, text):
                return steps
        raise ValueError(f"No seed below 100 gives a clean picture of {text!r}; word it another way.")

    def edit(self, picture: Tensor, kind: str, text: str, *, seed: int) -> Tensor:
        """The picture [1,3,h,w] after an edit."""
        prepared = jobs.Edit(kind, text, side=128).prepare(self.vq, picture)
        return self.decode(self.fill(prepared.prompt, prepared.canvas, seed=seed)[-1])

    @cached_property
    def circle(self) -> Tensor:
        """A picture [1,3,128,128] that several pages begin with."""
        return self.decode(self.good(CIRCLE)[-1])

    def say(self, picture: Tensor) -> str:
        """What nano says of a picture [1,3,h,w]."""
        return jobs.describe(self.model, self.vq, [picture], QUESTION, settings=ANSWER)[0]

    def taught(self, word: str, meant: str) -> Studio:
        """The same studio with a LoRA that lets nano read `word` as `meant`."""
        other, network = copy.copy(self), self.model.transformer
        file = read_adapter(word_lora(word, meant), network.config, self.model.table.code_offset)
        other.model = self.model.with_adapters([Applied(file.adapter)])
        return other

    def decode(self, canvas: Canvas) -> Tensor:
        return jobs.decode(self.vq, canvas)

    def preview(self, canvas: Canvas) -> Image.Image:
        """What the sampler shows of a canvas: a square per cell, holes grey."""
        small = to_pil(mosaic(canvas.codes, canvas.unknown, self.colours)[0])
        return small.resize((small.width * 16, small.height * 16), Image.Resampling.NEAREST)


def strip(*tiles: Tile) -> Image.Image:
    """Tiles in rows of two, as wide as the page's sidebar has room for, with their words."""
    rows = [tiles[start : start + 2] for start in range(0, len(tiles), 2)]
    column = max(tile.picture.width for tile in tiles) + GAP
    heights = [max(tile.picture.height + LINE * len(tile.words) for tile in row) + GAP for row in rows]
    sheet, top = Image.new("RGB", (2 * column + GAP, sum(heights) + GAP // 2), PAPER), GAP // 2
    for row, height in zip(rows, heights, strict=True):
        for place, tile in enumerate(row):
            put(sheet, tile, (GAP + place * column, top))
        top += height
    return sheet


def put(sheet: Image.Image, tile: Tile, corner: tuple[int, int]) -> None:
    """A tile with its words and its arrow; `corner` (left, top) of its picture in px."""
    draw, font, (left, top) = ImageDraw.Draw(sheet), ImageFont.load_default(12), corner
    sheet.paste(tile.picture, corner)
    if tile.arrow:
        tip, middle = left - 5, top + tile.picture.height // 2
        draw.line((left - GAP + 5, middle, tip, middle), INK, 2)
        draw.polygon(((tip, middle), (tip - 6, middle - 5), (tip - 6, middle + 5)), INK)
    for number, words in enumerate(tile.words):
        place = (left + tile.picture.width / 2, top + tile.picture.height + 3 + number * LINE)
        draw.text(place, words, INK, font, anchor="ma")


def cells(picture: Image.Image, codes: Tensor | None = None) -> Image.Image:
    """The picture with the borders of its cells, and the numbers of its codes [H,W], where given."""
    drawn, font = picture.copy(), ImageFont.load_default(7)
    draw = ImageDraw.Draw(drawn)
    for side in range(0, max(drawn.size) + 1, 16):
        draw.line((side, 0, side, drawn.height), (96, 96, 96))
        draw.line((0, side, drawn.width, side), (96, 96, 96))
    if codes is not None:
        for row, line in enumerate(codes.tolist()):
            for column, code in enumerate(line):
                place = (column * 16 + 8, row * 16 + 8)
                ink = INK if sum(picture.getpixel(place)) < 300 else (0, 0, 0)
                draw.text(place, str(code), ink, font, anchor="mm")
    return drawn


def picture(pixels: Tensor) -> Image.Image:
    return to_pil(pixels[0])


def finished(studio: Studio, text: str, canvas: Canvas | None = None) -> Image.Image:
    return picture(studio.decode(studio.good(text, canvas)[-1]))


def broken(text: str) -> tuple[str, ...]:
    """A caption in lines as narrow as a tile."""
    return tuple(textwrap.wrap(text, 21))


def formats(studio: Studio) -> Image.Image:
    tiles = []
    for text, (rows, columns) in ((SCENES[0], (8, 8)), (SCENES[3], (6, 10))):
        canvas = Canvas.empty(1, rows, columns)
        words = (f"{columns * 16} x {rows * 16} px", f"{columns} x {rows} cells")
        tiles.append(Tile(cells(picture(studio.decode(canvas))), words))
        tiles.append(Tile(finished(studio, text, canvas), arrow=True))
    return strip(*tiles)


def captions(studio: Studio) -> Image.Image:
    return strip(*(Tile(finished(studio, text), broken(text)) for text in SCENES))


def edits(studio: Studio) -> Image.Image:
    circle = studio.circle
    edges = studio.edit(circle, "canny_pred", "", seed=1)
    green = studio.edit(edges, "canny_control", CIRCLE.replace("red", "green"), seed=1)
    return strip(
        Tile(picture(circle), ("image",)),
        Tile(picture(studio.edit(circle, "edit_replace", "make the circle blue", seed=1)), ("edit_replace",), True),
        Tile(picture(edges), ("canny_pred",)),
        Tile(picture(green), ("canny_control",), True),
    )


def repainted(studio: Studio) -> Image.Image:
    circle = studio.circle
    painted = torch.zeros(1, 128, 128)
    painted[:, 32:96, 0:64] = 1
    around = jobs.Inpaint(outpaint=True, width_ratio=0.5)
    tiles = []
    for mode, request, text in (("inpaint", jobs.Inpaint(painted), STAR), ("outpaint", around, CIRCLE)):
        canvas = request.prepare(studio.vq, circle).canvas
        tiles += [Tile(picture(studio.decode(canvas)), (mode,)), Tile(finished(studio, text, canvas), arrow=True)]
    return strip(*tiles)


def presets(studio: Studio) -> Image.Image:
    text = "a large blue circle on the left"  # which leaves something open: a full caption forgives a cache much
    return strip(*(Tile(picture(studio.paint(text, seed=1, cache=name)), (name,)) for name in PRESETS))


def forming(studio: Studio) -> Image.Image:
    steps = studio.good(SCENES[1])
    shown = [Tile(studio.preview(steps[step]), (f"step {step}",), step > 4) for step in (4, 10, 14)]
    return strip(*shown, Tile(picture(studio.decode(steps[-1])), ("step 16, decoded",), True))


def codes(studio: Studio) -> Image.Image:
    canvas = Canvas.from_codes(jobs.encode(studio.vq, studio.circle))
    return strip(
        Tile(cells(picture(studio.circle)), ("image",)),
        Tile(cells(studio.preview(canvas), canvas.codes[0]), ("canvas: a code per cell",), True),
    )


def decoded(studio: Studio) -> Image.Image:
    steps = studio.good(SCENES[1])
    half, done = steps[10], steps[-1]
    return strip(
        Tile(cells(studio.preview(done), done.codes[0]), ("canvas",)),
        Tile(picture(studio.decode(done)), ("image",), True),
        Tile(cells(studio.preview(half)), ("unfinished",)),
        Tile(picture(studio.decode(half)), ("image",), True),
    )


def text_tile(words: str, below: tuple[str, ...] = (), *, arrow: bool = False) -> Tile:
    """Words on a sheet of their own."""
    said = Image.new("RGB", (TILE, TILE), PAPER)
    draw, middle = ImageDraw.Draw(said), TILE / 2
    draw.rounded_rectangle((0, 16, TILE - 1, TILE - 16), 8, outline=INK)
    lines = "\n".join(textwrap.wrap(words, 18))
    draw.multiline_text((middle, middle), lines, INK, ImageFont.load_default(12), anchor="mm", align="center")
    return Tile(said, below, arrow)


def described(studio: Studio) -> Image.Image:
    pixels = studio.decode(studio.good(SCENES[2])[-1])
    return strip(Tile(picture(pixels), (QUESTION,)), text_tile(studio.say(pixels), arrow=True))


def captioned(studio: Studio) -> Image.Image:
    tiles = []
    for name, text in (("star", SCENES[0]), ("square", SCENES[3])):
        pixels = studio.decode(studio.good(text)[-1])
        tiles += [Tile(picture(pixels), (f"{name}.png",)), text_tile(studio.say(pixels), (f"{name}.txt",), arrow=True)]
    return strip(*tiles)


def saved(studio: Studio) -> Image.Image:
    pixels = studio.decode(studio.good(SCENES[1])[-1])
    return strip(Tile(picture(pixels), ("caption_00001_.png",)), text_tile(studio.say(pixels), ("caption_00001_.txt",)))


def enlarged(studio: Studio) -> tuple[Tensor, Tensor]:
    """A picture [1,3,512,512] with a circle, and a mask [1,512,512] of a spot in an empty corner of it."""
    mask = torch.zeros(1, 4 * TILE, 4 * TILE)
    mask[:, 64:128, 384:448] = 1
    return resize(studio.circle, 4 * TILE, 4 * TILE), mask


def small(pixels: Tensor, mask: Tensor | None = None) -> Image.Image:
    """A picture as large as a tile, with what a mask [1,h,w] marks greyed."""
    if mask is not None:
        pixels = torch.where(mask[:, None] > 0, 0.5, pixels)
    return picture(pixels).resize((TILE, TILE), Image.Resampling.LANCZOS)


def cut_out(studio: Studio) -> Image.Image:
    whole, mask = enlarged(studio)
    region = region_around(mask, context=2, scale=CELL)
    width, height = working_size(region, TILE, CELL)
    cut, marked = resize(region.of(whole), width, height), resize_mask(region.of(mask), width, height)
    return strip(
        Tile(small(whole, mask), (f"{whole.shape[3]} x {whole.shape[2]} px, marked",)),
        Tile(small(cut, marked), (f"the cut, {width} x {height} px",), True),
    )


def put_back(studio: Studio) -> Image.Image:
    whole, mask = enlarged(studio)
    region = region_around(mask, context=2, scale=CELL)
    size = working_size(region, TILE, CELL)
    cut, marked = resize(region.of(whole), *size), resize_mask(region.of(mask), *size)
    canvas = jobs.Inpaint(marked).prepare(studio.vq, cut).canvas
    painted = studio.decode(studio.good(ADDED, canvas)[-1])
    stitched = stitch(whole, painted, region.of(mask), region)
    return strip(Tile(picture(painted), ("the cut, painted",)), Tile(small(stitched), ("the whole picture",), True))


def ranked(studio: Studio) -> Image.Image:
    pictures = [studio.paint(OPEN, seed=seed) for seed in range(FIRST_SEED, FIRST_SEED + 4)]
    found = []
    for pixels in pictures:
        codes = [jobs.encode(studio.vq, pixels)]
        (judgement,) = by_description(jobs.plan_text(studio.model, codes, QUESTION, ANSWER), OPEN)
        found.append((judgement.score, judgement.description, pixels))
    found.sort(key=lambda one: -one[0])
    return strip(*(Tile(picture(pixels), (f"{share:.0%}", *broken(words))) for share, words, pixels in found))


def adapted(studio: Studio) -> Image.Image:
    blue, star = studio.taught("red", "blue"), studio.taught("circle", "star")
    both = blue.taught("circle", "star")
    rows = {"no LoRA": studio, "LoRA: red is blue": blue, "LoRA: a circle is a star": star, "both": both}
    return strip(*(Tile(picture(one.paint(CIRCLE, seed=2)), (words,)) for words, one in rows.items()))


def learnt(studio: Studio) -> Image.Image:
    """What nano paints of a word that it does not know while it is taught it."""
    seen = studio.decode(studio.good(TAUGHT)[-1])
    train = TrainSettings(
        steps=40, rate=2e-3, matrix_rate=0.0, warm_up=5, betas=(0.9, 0.99), schedule="constant", save_every=40
    )
    settings = LoraSettings(train, rank=8, batch=4, sample_every=20)
    base = LoraBase(
        load_base(studio.found, device=torch.device("cpu"), dtype=torch.float32, recompute=False),
        studio.vq,
        {"name": "nano", "fingerprint": ""},
        ImageSettings(steps=16, temperature=0.6, guidance=Guidance(0, 0)),
    )
    data = LoraData(
        encode_list([seen[0]], [WORD], studio.vq, side=TILE), requests=[Request(Prompt(GENERATE, WORD), 8, 8, seed=2)]
    )
    painted: dict[int, Image.Image] = {}
    watch = Watch(on_samples=lambda step, pictures: painted.update({step: pictures[0]}))
    with tempfile.TemporaryDirectory() as folder:
        train_lora(base, data, settings, run=Path(folder), output=Path(folder, "sks.safetensors"), watch=watch)
    taught = Tile(picture(seen), (f'taught as "{WORD}"',))
    return strip(taught, *(Tile(one, (f'"{WORD}", step {step}',), step > 0) for step, one in painted.items()))


def compared(studio: Studio) -> Image.Image:
    seeds = range(FIRST_SEED, FIRST_SEED + 4)
    sheet = contact_sheet([picture(studio.paint(OPEN, seed=seed)) for seed in seeds], [str(seed) for seed in seeds])
    return strip(text_tile(f"{OPEN}, seeds {seeds[0]} to {seeds[-1]}"), Tile(sheet, ("the sheet",), True))


SHEETS: dict[str, Callable[[Studio], Image.Image]] = {
    "DimooLoader": lambda studio: strip(*(Tile(finished(studio, text)) for text in SCENES)),
    "DimooTextEncode": captions,
    "DimooEmptyCanvas": formats,
    "DimooImageEdit": edits,
    "DimooMaskPaint": repainted,
    "DimooCropAroundMask": cut_out,
    "DimooStitch": put_back,
    "DimooCacheSettings": presets,
    "DimooSampler": forming,
    "DimooVQEncode": codes,
    "DimooVQDecode": decoded,
    "DimooBestOf": ranked,
    "DimooDescribe": described,
    "DimooCaptionFolder": captioned,
    "DimooSaveText": saved,
    "DimooLora": adapted,
    "DimooTrainLora": learnt,
    "DimooContactSheet": compared,
}


def main(nodes: list[str]) -> None:
    studio = Studio()
    for node in nodes or SHEETS:
        sheet, path = SHEETS[node](studio), FOLDER / node / "job.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, quality=85, subsampling=0, optimize=True)
        print(f"{path.relative_to(FOLDER)}: {sheet.width} x {sheet.height} px, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
