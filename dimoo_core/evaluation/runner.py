"""Ask a checkpoint many cases at a time, in batches of equal sequence length, and count what an answer costs.

A `Case` says what to ask and what must come out, a `Setup` how to sample it, a `Runner` holds the checkpoint. Whether a
picture is right is for the caller to judge: see `evaluation.table`.

Shapes: n cases, B batch, P prefix length, H W cells of 16 px, pictures [n, 3, H*16, W*16] in 0..1.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..checkpoint.defaults import Defaults
from ..checkpoint.find import find
from ..checkpoint.load import load_tokenizer, load_transformer, load_vq
from ..jobs import ImagePlan, Model, decode, encode, plan_image, plan_text
from ..model.vq import VQ
from ..pictures.masks import cells_to_mask
from ..pictures.pixels import composite
from ..pictures.sizes import CELL
from ..sampling.guidance import Branch, Guidance
from ..sampling.image import ImageSettings
from ..sampling.ml_cache import CachePolicy
from ..sampling.text import TextSettings
from ..sampling.text_cache import EXACT, TextPolicy
from ..sequence.canvas import Canvas
from ..sequence.prompt import Prompt

BATCH = 32  # the most cases that are sampled together


@dataclass(frozen=True, eq=False)
class Case:
    """A prompt, the canvas [1,H,W] to fill (None: the answer is text) and what must come out.

    asked: a caption that must hold for the picture, or the exact answer. part: the kind of case, where a task has
    several. original [3,H*16,W*16]: the picture that is inpainted; its pixels stay where the canvas has no holes.
    """

    prompt: Prompt
    asked: str
    canvas: Canvas | None = None
    part: str = ""
    original: Tensor | None = None

    @property
    def blank(self) -> Canvas:
        """The canvas of a case that asks for a picture. Raises ValueError if it asks for text."""
        if self.canvas is None:
            raise ValueError(f"Got a case whose answer is text ({self.asked!r:.80}), expected one with a canvas.")
        return self.canvas


@dataclass(frozen=True)
class Setup:
    """How cases are sampled: the grid (H, W) in cells of a picture, and the settings of images, as for `ImageSettings`,
    and of text. Case i, in the order of sampling, has the seed `seed` + i."""

    grid: tuple[int, int]
    steps: int = 64
    temperature: float = 1.0
    cfg: float = 4.0
    image_cfg: float = 4.0
    cache: CachePolicy | None = None
    text: TextSettings = field(default_factory=TextSettings)
    corrections: int = 0
    polish: int = 0
    order: str = "confidence"
    shared_noise: float = 0.0
    seed: int = 0

    @classmethod
    def usual(cls, defaults: Defaults, grid: tuple[int, int]) -> Setup:
        """The checkpoint's own settings, at one size."""
        text = TextSettings(defaults.max_tokens, defaults.text_steps, defaults.block_length)
        return cls(grid, defaults.steps, defaults.temperature, defaults.cfg, defaults.image_cfg, text=text)

    def words(self, case: Case) -> str:
        """The settings that matter to a case, for the table."""
        height, width = self.grid
        size = f"{width * CELL}x{height * CELL} px"
        if case.canvas is None:
            text = self.text
            blocks = f"{text.max_tokens} tokens in blocks of {text.block_length}"
            words = f"{size}, {blocks}, {text.steps} steps, temperature {text.temperature:g}, guidance {text.cfg:g}"
            return words if text.policy == EXACT else f"{words}, {_policy_words(text.policy)}"
        guidance = f"{self.cfg:g} text {self.image_cfg:g} image" if case.prompt.images else f"{self.cfg:g}"
        steps = f"{self.steps} step{'s' * (self.steps > 1)}{f' + {self.polish} polish' * (self.polish > 0)}"
        said = [size, steps, f"temperature {self.temperature:g}", f"guidance {guidance}"]
        said += [f"order {self.order}"] * (self.order != "confidence")
        said += [f"corrections {self.corrections}"] * (self.corrections > 0)
        said += [f"shared noise {self.shared_noise:g}"] * (self.shared_noise > 0)
        said += [f"cache: {_policy_words(self.cache)}"] if self.cache is not None else []
        return ", ".join(said)

    @property
    def image(self) -> ImageSettings:
        """The settings of a picture, with the seed of the first case."""
        return ImageSettings(
            steps=self.steps,
            temperature=self.temperature,
            seed=self.seed,
            cache=self.cache,
            guidance=Guidance(self.cfg, self.image_cfg),
            corrections=self.corrections,
            polish=self.polish,
            order=self.order,
            shared_noise=self.shared_noise,
        )


def _policy_words(policy: CachePolicy | TextPolicy) -> str:
    """Every setting of a policy by name."""
    values = {one.name.replace("_", " "): getattr(policy, one.name) for one in fields(policy)}
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


class Runner:
    """A checkpoint, ready to be asked many cases at a time."""

    def __init__(self, model: Model, vq: VQ):
        self.model, self.vq = model, vq
        self.device = model.device

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> tuple[Runner, Defaults]:
        """The checkpoint of a folder, in fp32, and its default settings. Raises ValueError if it cannot be loaded."""
        found = find(folder)
        transformer = load_transformer(found, device=device, dtype=torch.float32)
        model = Model(transformer, load_tokenizer(found), found.table, found.defaults.sides)
        return cls(model, load_vq(found, device=device)), found.defaults

    def encode(self, pictures: Tensor) -> Tensor:
        """Codes [B,H,W] of pictures [B,3,H*16,W*16]."""
        return encode(self.vq, pictures.to(self.device)).cpu()

    def fill(self, cases: Sequence[Case], setup: Setup) -> list[Canvas]:
        """The filled canvas [1,H,W] of every case."""
        plans = [plan_image(self.model, case.prompt, case.blank, setup.image) for case in cases]
        filled: dict[int, Canvas] = {}
        for indices in batches([plan.lengths for plan in plans]):
            canvas = _one_batch([plans[index] for index in indices], seed=setup.seed + len(filled)).run()
            filled |= dict(zip(indices, _one_by_one(canvas), strict=True))
        return [filled[index] for index in range(len(cases))]

    def show(self, cases: Sequence[Case], canvases: Sequence[Canvas]) -> Tensor:
        """The pictures [n,3,H*16,W*16] as a user gets them: outside the holes of an inpainted one the original."""
        pictures = []
        for case, canvas in zip(cases, canvases, strict=True):
            picture = decode(self.vq, canvas.to(self.device)).cpu()
            if case.original is not None:
                picture = composite(case.original[None], picture, cells_to_mask(case.blank.unknown, CELL))
            pictures.append(picture)
        return torch.cat(pictures)

    def answer(self, cases: Sequence[Case], setup: Setup) -> list[str]:
        """The answer to every case that asks for text; cases with the same question share a batch."""
        answers: dict[int, str] = {}
        for indices in batches([case.prompt.text for case in cases]):
            images = torch.cat([cases[index].prompt.images[0] for index in indices])
            settings = replace(setup.text, seed=setup.seed + len(answers))
            texts = plan_text(self.model, [images], cases[indices[0]].prompt.text, settings).run()
            answers |= dict(zip(indices, texts, strict=True))
        return [answers[index] for index in range(len(cases))]

    def flops(self, cases: Sequence[Case], setup: Setup) -> float:
        """Mean floating point operations of sampling a case; encoding and decoding pictures is not counted."""
        with FlopCounterMode(display=False, custom_mapping=_ATTENTION_ON_CPU) as counter:
            if cases[0].canvas is None:
                self.answer(cases, setup)
            else:
                self.fill(cases, setup)
        return counter.get_total_flops() / len(cases)


def batches(keys: Sequence[Hashable], size: int = BATCH) -> Iterator[list[int]]:
    """Indices of equal keys, at most `size` at a time."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    for indices in groups.values():
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


def _attention_flops(queries: torch.Size, keys: torch.Size, values: torch.Size, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(queries, keys, values)


# torch's counter only knows the fused attention of GPUs
_ATTENTION_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def _one_batch(plans: Sequence[ImagePlan], seed: int) -> ImagePlan:
    """Plans of equal lengths as one of batch size len(plans)."""
    branches = [
        Branch(torch.cat([one.prefix for one in same]), same[0].scale)
        for same in zip(*(plan.branches for plan in plans), strict=True)
    ]
    canvases = [plan.canvas for plan in plans]
    return replace(
        plans[0],
        prefix=torch.cat([plan.prefix for plan in plans]),
        branches=tuple(branches),
        canvas=Canvas(torch.cat([one.codes for one in canvases]), torch.cat([one.unknown for one in canvases])),
        settings=replace(plans[0].settings, seed=seed),
    )


def _one_by_one(canvas: Canvas) -> list[Canvas]:
    pairs = zip(canvas.codes.split(1), canvas.unknown.split(1), strict=True)
    return [Canvas(codes, unknown) for codes, unknown in pairs]
