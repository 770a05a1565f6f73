"""The jobs in a few lines each: what the nodes and the command line call.

`Model` is the payload that travels: transformer, tokenizer and id table of one checkpoint. Pictures are fp32
[B,3,height,width] in 0..1 here; ComfyUI's own layout stays in the nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .model.transformer import Transformer
from .model.vq import VQ
from .pictures.masks import PAINTED, cells_to_mask, mask_to_cells
from .pictures.pixels import GREY, composite, fit
from .pictures.sizes import check_size, fit_size, understanding_size
from .sampling.guidance import Branch
from .sampling.image import ImageSettings, ImageStep, sample_image
from .sampling.text import TextSettings, TextStep, sample_text
from .sequence.canvas import Canvas
from .sequence.layout import prompt_prefix
from .sequence.prompt import DESCRIBE, GENERATE, Prompt, edit_task, prompt_strings
from .sequence.token_table import TokenTable
from .sequence.tokenizer import TextTokenizer

RELEASED_SIDES = (512, 1024)


@dataclass(frozen=True, eq=False)
class Model:
    """One checkpoint, loaded. `sides`: the smallest and largest bucket side (px) of pictures it describes."""

    transformer: Transformer
    tokenizer: TextTokenizer
    table: TokenTable
    sides: tuple[int, int] = RELEASED_SIDES


def guided(model: Model, prompt: Prompt, *, cfg: float, image_cfg: float) -> tuple[Tensor, list[Branch]]:
    """Prefix ids [1 or B,P] of an image task and the branches that guide it; a zero scale makes no branch.

    `cfg` moves away from the same images without (or with the negative) text; `image_cfg`, in edits, from the text
    without the images.
    """
    text, twin = (model.tokenizer.encode(string) for string in prompt_strings(prompt, model.tokenizer.defuse))
    images = prompt.images
    branches = [Branch(prompt_prefix(twin, images, model.table), cfg)]
    if images:
        branches.append(Branch(prompt_prefix(text, (), model.table), image_cfg))
    return prompt_prefix(text, images, model.table), [branch for branch in branches if branch.scale > 0]


def sample(
    model: Model,
    prompt: Prompt,
    canvas: Canvas,
    *,
    settings: ImageSettings,
    cfg: float = 4.0,
    image_cfg: float = 4.0,
    on_step: ImageStep | None = None,
    device: torch.device | str | None = None,
    chunk_rows: int | None = None,
) -> Canvas:
    """Fill the holes of a canvas: text-to-image, edit and inpaint alike. See `sample_image` for `on_step` and
    `chunk_rows`.

    `device` is where to compute (None: where the weights are); the result comes back to where the canvas was.
    """
    prefix, branches = guided(model, prompt, cfg=cfg, image_cfg=image_cfg)
    device = _device(model, device)
    branches = [Branch(branch.prefix.to(device), branch.scale) for branch in branches]
    prefix, options = prefix.to(device), {"settings": settings, "on_step": on_step, "chunk_rows": chunk_rows}
    return sample_image(model.transformer, model.table, canvas, prefix, branches, **options)


def describe(
    model: Model,
    images: Sequence[Tensor],
    question: str,
    *,
    settings: TextSettings,
    on_step: TextStep | None = None,
    device: torch.device | str | None = None,
    chunk_rows: int | None = None,
) -> list[str]:
    """One answer per batch item to a question about images, codes [1 or B,h,w] each; several images: one question.
    See `sample_text` for `on_step` and `chunk_rows`."""
    prompt = Prompt(DESCRIBE, question, images=tuple(images))
    string, _ = prompt_strings(prompt, model.tokenizer.defuse)
    prefix = prompt_prefix(model.tokenizer.encode(string), prompt.images, model.table).to(_device(model, device))
    options = {"settings": settings, "on_step": on_step, "chunk_rows": chunk_rows}
    answers = sample_text(model.transformer, model.table, prefix, **options)
    return [answer_text(model, ids) for ids in answers]


def answer_text(model: Model, ids: Sequence[int]) -> str:
    """The words among the ids of an answer, finished or half-way: no holes, no specials, no image codes."""
    table = model.table
    words = (number for number in ids if not table.codes.start <= number < table.codes.stop)
    return model.tokenizer.decode([number for number in words if number not in table.specials]).strip()


def generate(
    model: Model,
    vq: VQ,
    prompt: Prompt,
    size: tuple[int, int],
    *,
    settings: ImageSettings,
    cfg: float = 4.0,
    batch: int = 1,
    on_step: ImageStep | None = None,
) -> Tensor:
    """Pictures [batch,3,height,width] of a `text_prompt`, at size (width, height) px."""
    canvas = Canvas.empty(batch, *check_size(*size, vq.scale))
    return decode(vq, sample(model, prompt, canvas, settings=settings, cfg=cfg, on_step=on_step))


def edit(
    model: Model,
    vq: VQ,
    picture: Tensor,
    request: Edit,
    *,
    settings: ImageSettings,
    cfg: float = 4.0,
    image_cfg: float = 4.0,
    batch: int = 1,
    on_step: ImageStep | None = None,
) -> Tensor:
    """Edited pictures [B,3,h,w] of `picture` [B,3,h',w'], at the size it was fitted to; `batch` of a single one."""
    prompt, canvas, _ = request.prepare(vq, picture, batch)
    return decode(vq, sample(model, prompt, canvas, settings=settings, cfg=cfg, image_cfg=image_cfg, on_step=on_step))


def inpaint(
    model: Model,
    vq: VQ,
    picture: Tensor,
    cells: Tensor,
    prompt: Prompt,
    *,
    settings: ImageSettings,
    cfg: float = 4.0,
    on_step: ImageStep | None = None,
) -> Tensor:
    """`picture` [1 or B,3,h,w] with its `cells` (bool [1 or B,H,W]) painted anew; every other pixel stays."""
    canvas = paint(vq, picture, cells)
    painted = decode(vq, sample(model, prompt, canvas, settings=settings, cfg=cfg, on_step=on_step))
    return composite(picture, painted, cells_to_mask(canvas.unknown, vq.scale))


def text_prompt(text: str, negative: str = "") -> Prompt:
    """The prompt of text-to-image and inpaint."""
    return Prompt(GENERATE, text, negative)


@dataclass(frozen=True, eq=False)
class Edit:
    """What to do with a picture: an edit type of `prompt.EDITS`, its text, a reference picture where the type takes
    one, and the side (px) of the square whose area pictures are fitted to."""

    edit_type: str
    text: str = ""
    negative: str = ""
    reference: Tensor | None = None
    side: int = 512

    def prepare(self, vq: VQ, picture: Tensor, batch: int = 1) -> tuple[Prompt, Canvas, Tensor]:
        """Prompt, blank canvas and the fitted picture [B,3,h,w] for `picture` [B,3,h',w']. For a single picture the
        canvas has `batch` items.

        Style transfer keeps the size of the picture; the released script takes that of the style.
        """
        task = edit_task(self.edit_type)
        if (self.reference is None) != (task.images < 2):
            say = (
                "needs a reference image: connect one"
                if task.images == 2
                else "takes no reference image: disconnect it"
            )
            raise ValueError(f"The edit type {self.edit_type} {say}.")
        pictures = [picture] if self.reference is None else [picture, self.reference]
        fitted = [fit(one, *fit_size(one.shape[3], one.shape[2], self.side)) for one in pictures]
        images = tuple(encode(vq, one) for one in fitted)
        batch = max(batch, *map(len, images))
        return Prompt(task, self.text, self.negative, images), Canvas.empty(batch, *images[0].shape[1:]), fitted[0]


def paint(vq: VQ, picture: Tensor, cells: Tensor) -> Canvas:
    """The canvas of a picture [1 or B,3,h,w] with holes at `cells` bool [1 or B,H,W]; ValueError where none is."""
    if not bool(cells.any()):
        raise ValueError("The mask marks nothing, so there is nothing to repaint: paint over what should change.")
    codes = encode(vq, picture)
    return Canvas.from_codes(codes.expand(len(cells), -1, -1) if len(codes) == 1 else codes, cells)


def painted_cells(vq: VQ, picture: Tensor, mask: Tensor, *, coverage: float = PAINTED, grow: int = 0) -> Tensor:
    """Cells bool [B,H,W] of a picture that a mask [B,h,w] of any size marks; see `mask_to_cells`."""
    cells = check_size(picture.shape[3], picture.shape[2], vq.scale)
    return mask_to_cells(mask, cells, coverage=coverage, grow=grow)


def encode(vq: VQ, picture: Tensor) -> Tensor:
    """Codes [B,H,W] of pictures [B,3,h,w], whose sides must be multiples of the VQ's scale."""
    check_size(picture.shape[3], picture.shape[2], vq.scale)
    return vq.encode(picture)


def decode(vq: VQ, canvas: Canvas) -> Tensor:
    """Pictures [B,3,h,w] of a canvas; cells still unknown are grey."""
    pixels = vq.decode(canvas.codes)
    return composite(pixels, torch.full_like(pixels, GREY), cells_to_mask(canvas.unknown, vq.scale).to(pixels.device))


def describe_pictures(
    model: Model,
    vq: VQ,
    pictures: Sequence[Tensor],
    question: str,
    *,
    settings: TextSettings,
    on_step: TextStep | None = None,
) -> list[str]:
    """As `describe`, for pictures [1 or B,3,h,w] each, fitted as in training."""
    sizes = [understanding_size(one.shape[3], one.shape[2], model.sides, images=len(pictures)) for one in pictures]
    codes = [encode(vq, fit(one, *size)) for one, size in zip(pictures, sizes, strict=True)]
    return describe(model, codes, question, settings=settings, on_step=on_step)


def _device(model: Model, device: torch.device | str | None) -> torch.device | str:
    return next(model.transformer.parameters()).device if device is None else device
