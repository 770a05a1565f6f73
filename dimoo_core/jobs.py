"""The jobs: generate, edit, inpaint, outpaint, describe, on tensors. Each is prepared and run in one place.

The Python face, the command line and the nodes all call these. A job with words becomes a plan (`plan_image`,
`plan_text`): all that is known before the first pass. A plan says how much memory it needs, its caller says where to
run it (`Placement`). Pictures are fp32 [B,3,h,w] in 0..1, masks [1 or B,h,w] where 1 is to be repainted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from . import memory
from .checkpoint.defaults import Defaults
from .checks import whole_number
from .model.adapters import Adapters, Applied
from .model.config import TransformerConfig
from .model.quantised import Format
from .model.text_rows import TextRows
from .model.transformer import Part, Transformer
from .pictures.masks import PAINTED, RECTANGLE, cells_to_mask, centred_rectangle, mask_to_cells
from .pictures.pixels import GREY, composite, fit, pad_to_cells
from .pictures.sizes import CELL, check_size, fit_size, understanding_size
from .sampling.guidance import Branch, Guidance
from .sampling.image import ImageSettings, ImageStep, sample_image
from .sampling.ml_cache import CachePolicy
from .sampling.schedule import MAX_TOKENS
from .sampling.text import TextSettings, TextStep, sample_text
from .sampling.text_cache import EXACT, TextPolicy
from .sequence.canvas import Canvas
from .sequence.layout import answer_length, prompt_prefix
from .sequence.prompt import DESCRIBE, GENERATE, Prompt, edit_task, prompt_strings
from .sequence.token_table import TokenTable
from .sequence.tokenizer import TextTokenizer


@dataclass(frozen=True, eq=False)
class Bound:
    """A transformer together with what is the same at all calls of a job: LoRAs that act, and the embedding's rows of
    the text ids that occur (None: the embedding is part of the network)."""

    transformer: Transformer
    adapters: Adapters
    text_rows: TextRows | None = None

    @property
    def config(self) -> TransformerConfig:
        return self.transformer.config

    def __call__(self, ids: Tensor, **how: Any) -> Tensor:
        return self.transformer(ids, adapters=self.adapters, text_rows=self.text_rows, **how)

    def together(self, parts: Sequence[Part], **how: Any) -> list[Tensor]:
        return self.transformer.together(parts, adapters=self.adapters, text_rows=self.text_rows, **how)


@dataclass(frozen=True, eq=False)
class Model:
    """One checkpoint, loaded. sides: the smallest and the largest bucket side (px) of pictures that it describes.
    formats: those of quantised weights. adapters: LoRAs that act in every job."""

    transformer: Transformer
    tokenizer: TextTokenizer
    table: TokenTable
    sides: tuple[int, int]
    formats: Collection[Format] = ()
    adapters: Adapters = field(default_factory=Adapters)

    @property
    def network(self) -> Callable[..., Tensor]:
        """The transformer's call, with the adapters; without any it is the transformer itself."""
        return Bound(self.transformer, self.adapters) if self.adapters else self.transformer

    def text_rows(self, prefixes: Iterable[Tensor], device: torch.device | str, room: int = 0) -> TextRows | None:
        """The embedding's rows for the text ids of a job on its device: those of the `prefixes` [B,P], the special
        ones, and `room` for more. None where the embedding is part of the network."""
        tables, table = getattr(self.transformer, "text_tables", None), self.table
        if tables is None:
            return None
        ids = {*table.specials, *(token for prefix in prefixes for token in prefix.flatten().tolist())}
        return TextRows(tables.embedding, ids, offset=table.code_offset, room=room, device=torch.device(device))

    def network_with(self, text_rows: TextRows | None) -> Callable[..., Tensor]:
        """`network`, with rows of `text_rows` in place of its own embedding of text."""
        return self.network if text_rows is None else Bound(self.transformer, self.adapters, text_rows)

    def with_adapters(self, applied: Iterable[Applied]) -> Model:
        """The same network with further adapters beside those that it has."""
        return replace(self, adapters=Adapters([*self.adapters, *applied]))

    def working_bytes(self, tokens: int, itemsize: int, chunk_rows: int | None = None) -> int:
        """What its layers take while they work, beside all else: quantised weights, and adapters for `tokens` B*L,
        of which the feed-forward gets `chunk_rows` at a time (None: all)."""
        widened = memory.quantised_bytes(self.transformer.config, itemsize, self.formats, tokens, chunk_rows)
        return widened + memory.adapter_bytes(self.adapters.rank, tokens, itemsize)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.transformer.parameters()).device


class Autoencoder(Protocol):
    """A VQ, wherever it works: pixels [B,3,H*s,W*s] in 0..1 to codes [B,H,W] and back."""

    @property
    def scale(self) -> int:
        """Pixels per cell along each side, s."""
        ...

    @property
    def codebook_size(self) -> int:
        """How many codes there are, K."""
        ...

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, codes: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Placement:
    """Where and how a plan runs. device None: where the weights are. chunk_rows: how many rows the transformer works on
    at a time, which saves memory; None: all. packed: all branches go through the layers together at every step, which
    is for weights that are streamed. graphs: short passes may be recorded as CUDA graphs, which needs weights that stay
    where they are."""

    device: torch.device | str | None = None
    chunk_rows: int | None = None
    packed: bool = False
    graphs: bool = True


# Settings -----------------------------------------------------------------------------------------------------------


def image_settings(
    defaults: Defaults,
    *,
    seed: int = 0,
    steps: int | None = None,
    cfg: float | None = None,
    image_cfg: float | None = None,
    temperature: float | None = None,
    guidance_start: float = 0.0,
    cache: CachePolicy | None = None,
    corrections: int = 0,
    polish: int = 0,
    order: str = "confidence",
    shared_noise: float = 0.0,
) -> ImageSettings:
    """How to sample pictures; None: the checkpoint's own. Raises ValueError for a setting out of range."""
    own = defaults.own
    return ImageSettings(
        own("steps", steps),
        own("temperature", temperature),
        seed,
        cache,
        Guidance(own("cfg", cfg), own("image_cfg", image_cfg), guidance_start),
        corrections=corrections,
        polish=polish,
        order=order,
        shared_noise=shared_noise,
    )


def text_settings(
    defaults: Defaults,
    *,
    seed: int = 0,
    max_tokens: int | None = None,
    steps: int | None = None,
    block_length: int | None = None,
    temperature: float = 0.0,
    cfg: float = 0.0,
    policy: TextPolicy = EXACT,
) -> TextSettings:
    """How to sample an answer; None: the checkpoint's own, or what fits an answer of another length: a step for each
    token, and the longest blocks, up to the checkpoint's own, that divide it. Raises ValueError where steps and blocks
    do not divide, and for a setting out of range."""
    length = whole_number("max_tokens", defaults.own("max_tokens", max_tokens), 1, MAX_TOKENS)
    if steps is None:
        steps = defaults.text_steps if length == defaults.max_tokens else length
    if block_length is None:
        longest = whole_number("block_length", defaults.block_length, 1)
        block_length = max(size for size in range(1, min(longest, length) + 1) if length % size == 0)
    return TextSettings(length, steps, block_length, temperature, cfg, seed, policy)


def size_remark(defaults: Defaults, name: str, canvas: Canvas) -> str:
    """What is to be said of a canvas [B,H,W] far from the size that the checkpoint called `name` was made for, up to
    the cure; "" where it is near."""
    height, width = (cells * CELL for cells in canvas.codes.shape[1:])
    if not defaults.is_far(width, height):
        return ""
    own_width, own_height = defaults.size
    return f"The canvas is {width}x{height} px; {name} was made for about {own_width}x{own_height} px"


# Plans --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ImagePlan:
    """A canvas to be filled, in text-to-image, edit and inpaint alike: `prefix` ids [1 or B,P] of the prompt, and the
    branches that guide it."""

    model: Model
    prefix: Tensor
    branches: tuple[Branch, ...]
    canvas: Canvas
    settings: ImageSettings

    @property
    def lengths(self) -> tuple[int, ...]:
        """Ids in the prefix of each branch, the conditional one first."""
        return (self.prefix.shape[1], *(branch.prefix.shape[1] for branch in self.branches))

    def scratch_bytes(
        self, itemsize: int, chunk_rows: int | None = None, packed: bool = False, graphs: bool = False
    ) -> int:
        """Bytes of memory that it needs beside the weights. itemsize: bytes of a number that is computed with;
        chunk_rows and packed: as in `Placement`; graphs: with what passes take that are recorded as CUDA graphs."""
        batch, height, width = self.canvas.codes.shape
        length = max(self.lengths) + answer_length(height, width)
        rows = batch * length * (len(self.lengths) if packed else 1)
        return self.model.working_bytes(rows, itemsize, chunk_rows) + memory.image_bytes(
            self.model.transformer.config,
            batch=batch,
            length=length,
            cells=height * width,
            codes=self.model.table.codebook_size,
            branches=1 + len(self.branches),
            itemsize=itemsize,
            schedule=self.settings.schedule(height * width, self.settings.steps),
            cache=self.settings.cache,
            corrections=self.settings.corrections,
            chunk_rows=chunk_rows,
            packed=packed,
            graphs=graphs,
        )

    def run(self, placement: Placement | None = None, on_step: ImageStep | None = None) -> Canvas:
        """The filled canvas, on the device where it was; `on_step` as for `sample_image`."""
        placement = placement or Placement()
        device = placement.device or self.model.device
        text_rows = self.model.text_rows([self.prefix, *(branch.prefix for branch in self.branches)], device)
        return sample_image(
            self.model.network_with(text_rows),
            self.model.table,
            self.canvas,
            self.prefix.to(device),
            [Branch(branch.prefix.to(device), branch.scale) for branch in self.branches],
            settings=self.settings,
            on_step=on_step,
            chunk_rows=placement.chunk_rows,
            packed=placement.packed,
            graphs=placement.graphs,
        )


@dataclass(frozen=True, eq=False)
class TextPlan:
    """A question to be answered about images: `prefix` ids [B,P] of both."""

    model: Model
    prefix: Tensor
    settings: TextSettings

    def scratch_bytes(
        self, itemsize: int, chunk_rows: int | None = None, packed: bool = False, graphs: bool = False
    ) -> int:
        """Bytes of memory that it needs beside the weights; the arguments as for `ImagePlan`."""
        answer, branches = self.settings.max_tokens + 2, 1 + (self.settings.cfg > 0)
        length = self.prefix.shape[1] + answer
        rows = len(self.prefix) * length * (branches if packed else 1)
        return self.model.working_bytes(rows, itemsize, chunk_rows) + memory.text_bytes(
            self.model.transformer.config,
            batch=len(self.prefix),
            length=length,
            answer=answer,
            rows=self.settings.block_length,
            branches=branches,
            itemsize=itemsize,
            keeps=self.settings.policy.keeps,
            refreshes=self.settings.max_tokens > self.settings.policy.prefix_refresh * self.settings.block_length,
            chunk_rows=chunk_rows,
            packed=packed,
            graphs=graphs,
        )

    def run(self, placement: Placement | None = None, on_step: TextStep | None = None) -> list[str]:
        """One answer per batch item; `on_step` as for `sample_text`."""
        placement = placement or Placement()
        device = placement.device or self.model.device
        text_rows = self.model.text_rows([self.prefix], device, room=len(self.prefix) * self.settings.max_tokens)
        answers = sample_text(
            self.model.network_with(text_rows),
            self.model.table,
            self.prefix.to(device),
            settings=self.settings,
            on_step=on_step,
            chunk_rows=placement.chunk_rows,
            packed=placement.packed,
            graphs=placement.graphs,
            on_tokens=None if text_rows is None else text_rows.add,
        )
        return [answer_text(self.model, ids) for ids in answers]


Plan = ImagePlan | TextPlan
Placer = Callable[[Plan], Placement]


def where_the_weights_are(_: Plan) -> Placement:
    """The simplest `Placer`: on the device of the weights, without chunks."""
    return Placement()


def plan_image(model: Model, prompt: Prompt, canvas: Canvas, settings: ImageSettings) -> ImagePlan:
    """The plan to fill the holes of a canvas as a prompt says; a guidance scale of 0 makes no branch.

    The text branch has the same images without (or with the negative) text; in edits the image branch has the text
    without the images.
    """
    text, unconditional = (model.tokenizer.encode(string) for string in prompt_strings(prompt, model.tokenizer.defuse))
    images, guidance = prompt.images, settings.guidance
    branches = []
    if guidance.text > 0:
        branches.append(Branch(prompt_prefix(unconditional, images, model.table), guidance.text))
    if images and guidance.image > 0:
        branches.append(Branch(prompt_prefix(text, (), model.table), guidance.image))
    return ImagePlan(model, prompt_prefix(text, images, model.table), tuple(branches), canvas, settings)


def plan_text(model: Model, images: Sequence[Tensor], question: str, settings: TextSettings) -> TextPlan:
    """The plan to answer a question about images, codes [1 or B,h,w] each; several images: one question."""
    prompt = Prompt(DESCRIBE, question, images=tuple(images))
    string, _ = prompt_strings(prompt, model.tokenizer.defuse)
    return TextPlan(model, prompt_prefix(model.tokenizer.encode(string), prompt.images, model.table), settings)


def answer_text(model: Model, ids: Sequence[int]) -> str:
    """The words among the ids of an answer, finished or half-way: no holes, no special tokens, no image codes."""
    table = model.table
    words = (token for token in ids if not table.codes.start <= token < table.codes.stop)
    return model.tokenizer.decode([token for token in words if token not in table.specials]).strip()


# Pictures and codes -------------------------------------------------------------------------------------------------


def encode(vq: Autoencoder, picture: Tensor) -> Tensor:
    """Codes [B,H,W] of pictures [B,3,h,w], whose sides must be multiples of the VQ's scale."""
    check_size(picture.shape[3], picture.shape[2], vq.scale)
    return vq.encode(picture)


def decode(vq: Autoencoder, canvas: Canvas) -> Tensor:
    """Pictures [B,3,h,w] of a canvas; cells that are still unknown are grey. Raises ValueError for codes that the VQ
    does not have."""
    canvas.check(vq.codebook_size)
    pixels = vq.decode(canvas.codes)
    return composite(pixels, torch.full_like(pixels, GREY), cells_to_mask(canvas.unknown, vq.scale).to(pixels.device))


def encode_for_question(model: Model, vq: Autoencoder, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Codes [1 or B,H,W] of the pictures [1 or B,3,h,w] of one question, fitted as in training."""
    sizes = [understanding_size(one.shape[3], one.shape[2], model.sides, images=len(pictures)) for one in pictures]
    return [encode(vq, fit(one, *size)) for one, size in zip(pictures, sizes, strict=True)]


# Preparing ----------------------------------------------------------------------------------------------------------


def text_prompt(text: str, negative: str = "") -> Prompt:
    """The prompt of text-to-image, inpaint and outpaint."""
    return Prompt(GENERATE, text, negative)


@dataclass(frozen=True, eq=False)
class PreparedEdit:
    """What the sampler takes for an edit, and the `fitted` picture [B,3,h,w] as the model sees it."""

    prompt: Prompt
    canvas: Canvas
    fitted: Tensor


@dataclass(frozen=True, eq=False)
class Edit:
    """What to make of a picture: an edit type of `prompt.EDITS`, its text, a reference picture [1 or B,3,h,w] where the
    type takes one, and the side (px) of the square whose area pictures are fitted to."""

    edit_type: str
    text: str = ""
    negative: str = ""
    reference: Tensor | None = None
    side: int = 512

    def prepare(self, vq: Autoencoder, picture: Tensor, batch: int = 1) -> PreparedEdit:
        """For `picture` [B,3,h',w']; of a single picture the canvas has `batch` items. Raises ValueError for an unknown
        edit type, and where a reference picture is missing or not taken.

        Style transfer keeps the size of the picture; the released script takes that of the style.
        """
        whole_number("batch", batch, 1)
        task = edit_task(self.edit_type)
        if task.images == 2 and self.reference is None:
            raise ValueError(f"The edit type {self.edit_type!r} takes the style of a reference picture: give one.")
        if task.images < 2 and self.reference is not None:
            raise ValueError(f"The edit type {self.edit_type!r} takes no reference picture: leave it out.")
        pictures = [picture] if self.reference is None else [picture, self.reference]
        if self.reference is not None and 1 not in map(len, pictures) and len(picture) != len(self.reference):
            raise ValueError(
                f"Got {len(picture)} pictures and {len(self.reference)} reference pictures; expected a single one of "
                "either, or as many of both."
            )
        fitted = [fit(one, *fit_size(one.shape[3], one.shape[2], self.side)) for one in pictures]
        images = tuple(encode(vq, one) for one in fitted)
        height, width = images[0].shape[1:]
        canvas = Canvas.empty(max(batch, *map(len, images)), height, width)
        return PreparedEdit(Prompt(task, self.text, self.negative, images), canvas, fitted[0])


@dataclass(frozen=True, eq=False)
class PreparedInpaint:
    """A picture with a hole: its `canvas`, and the `picture` [1 or B,3,h,w], continued to whole cells.

    drawn [1 or B,height,width]: the mask before it was snapped to cells, at the picture's own size.
    """

    canvas: Canvas
    picture: Tensor
    drawn: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px, of the picture before it was continued."""
        height, width = self.drawn.shape[1:]
        return height, width

    @property
    def mask(self) -> Tensor:
        """The cells to be repainted, in px of `picture`: [B,h,w], 0 or 1."""
        scale = self.picture.shape[2] // self.canvas.codes.shape[1]
        return cells_to_mask(self.canvas.unknown, scale)

    def finish(self, painted: Tensor) -> Tensor:
        """The picture [B,3,height,width] with its hole from `painted` [B,3,h,w]; every other pixel stays as it was."""
        whole = composite(self.picture, painted, self.mask.to(painted.device))
        height, width = self.size
        return whole[:, :, :height, :width]


@dataclass(frozen=True, eq=False)
class Inpaint:
    """Which part of a picture to repaint.

    What a mask [1 or B,h,w] marks (above 0.5). Without a mask: a centred rectangle with these shares of the sides, or
    with `outpaint` everything outside it; `outpaint` does not change what a mask marks. The marked area grows by `grow`
    cells.
    """

    mask: Tensor | None = None
    outpaint: bool = False
    width_ratio: float = 0.2
    height_ratio: float = 1.0
    grow: int = 0

    def prepare(self, vq: Autoencoder, picture: Tensor, batch: int = 1) -> PreparedInpaint:
        """For `picture` [B,3,h,w] of any size: where a side is not a multiple of a cell, its edge is repeated. Of a
        single picture and mask the canvas has `batch` items. A mask must have the picture's size.

        A cell is repainted if any of it is painted over: nothing that was marked may stay. Of a drawn rectangle more
        than half of a cell counts, as in the released code. Raises ValueError where nothing is marked, and where
        nothing would stay.
        """
        whole_number("batch", batch, 1)
        height, width = picture.shape[2:]
        drawn, coverage = self.mask, PAINTED
        if drawn is None:
            drawn = centred_rectangle(width, height, width_ratio=self.width_ratio, height_ratio=self.height_ratio)
            drawn, coverage = (1 - drawn if self.outpaint else drawn), RECTANGLE
        elif drawn.shape[1:] != picture.shape[2:]:
            raise ValueError(
                f"Got a mask of {drawn.shape[2]}x{drawn.shape[1]} px for a picture of {width}x{height} px; expected "
                "the same size."
            )
        picture = pad_to_cells(picture, vq.scale)
        grid = check_size(picture.shape[3], picture.shape[2], vq.scale)
        holes = mask_to_cells(pad_to_cells(drawn, vq.scale), grid, coverage=coverage, grow=self.grow)
        if not bool(holes.any()) and self.mask is None:
            raise ValueError(
                f"The {'border around the ' * self.outpaint}rectangle of {self.width_ratio:g} x {self.height_ratio:g} "
                f"of a picture of {width}x{height} px marks nothing: a cell of {vq.scale} px counts where more than "
                "half of it is marked; change the ratios, or give a mask."
            )
        if not bool(holes.any()):
            raise ValueError("The mask marks nothing, so there is nothing to repaint: paint over what should change.")
        if bool(holes.flatten(1).all(dim=1).any()):
            raise ValueError(
                f"The mask, snapped to cells of {vq.scale} px, covers the whole picture, so nothing of it would stay: "
                "mark less, or generate a new picture."
            )
        codes = encode(vq, picture)
        items = max(batch, len(codes), len(holes))
        if {len(codes), len(holes)} - {1, items}:
            raise ValueError(
                f"Got {len(codes)} pictures and {len(holes)} masks for a batch of {items}; expected a single one of "
                "either, or as many of both."
            )
        canvas = Canvas.from_codes(codes.expand(items, -1, -1), holes.expand(items, -1, -1))
        return PreparedInpaint(canvas, picture, drawn)


# Whole jobs ---------------------------------------------------------------------------------------------------------


def generate(
    model: Model,
    vq: Autoencoder,
    prompt: Prompt,
    width: int,
    height: int,
    *,
    settings: ImageSettings,
    batch: int = 1,
    place: Placer = where_the_weights_are,
    on_step: ImageStep | None = None,
) -> Tensor:
    """Pictures [batch,3,height,width] of a `text_prompt`; px."""
    canvas = Canvas.empty(batch, *check_size(width, height, vq.scale))
    return decode(vq, _sample(model, prompt, canvas, settings, place, on_step))


def edit(
    model: Model,
    vq: Autoencoder,
    prepared: PreparedEdit,
    *,
    settings: ImageSettings,
    place: Placer = where_the_weights_are,
    on_step: ImageStep | None = None,
) -> Tensor:
    """Edited pictures [B,3,h,w], at the size to which the prepared one was fitted."""
    return decode(vq, _sample(model, prepared.prompt, prepared.canvas, settings, place, on_step))


def inpaint(
    model: Model,
    vq: Autoencoder,
    prepared: PreparedInpaint,
    prompt: Prompt,
    *,
    settings: ImageSettings,
    place: Placer = where_the_weights_are,
    on_step: ImageStep | None = None,
) -> Tensor:
    """Pictures [B,3,h,w] with the hole of a prepared one repainted; every other pixel stays."""
    return prepared.finish(decode(vq, _sample(model, prompt, prepared.canvas, settings, place, on_step)))


def describe(
    model: Model,
    vq: Autoencoder,
    pictures: Sequence[Tensor],
    question: str,
    *,
    settings: TextSettings,
    place: Placer = where_the_weights_are,
    on_step: TextStep | None = None,
) -> list[str]:
    """One answer per batch item to a question about pictures [1 or B,3,h,w] each."""
    plan = plan_text(model, encode_for_question(model, vq, pictures), question, settings)
    return plan.run(place(plan), on_step)


def _sample(
    model: Model, prompt: Prompt, canvas: Canvas, settings: ImageSettings, place: Placer, on_step: ImageStep | None
) -> Canvas:
    plan = plan_image(model, prompt, canvas, settings)
    return plan.run(place(plan), on_step)
