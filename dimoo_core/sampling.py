"""The image loop, whatever the task: masked cells are decided a few at a time. (The other loop is `text_sampling`.)

Text-to-image, edit and inpaint are ONE loop on different data: the canvas says what is unknown, the prefix and the
branches say what is asked. Every step asks the branches for code logits at the holes only, combines them, samples
a code per hole and masks the least certain ones again (MaskGIT, arXiv 2202.04200; DiMOO, arXiv 2510.06308).

Shapes: B batch, P prefix, L sequence, H W cells, N = H*W, m holes, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import Cache, CachePolicy, KeyValues
from .canvas import Canvas
from .checks import number_in, whole_number
from .choices import MAX_TEMPERATURE, hole_index, probability, sampled_tokens, stays_masked
from .guidance import Branch, combine
from .layout import answer_length, cell_places, image_answer
from .noise import Noise
from .schedule import holes_left
from .tokens import TokenTable
from .transformer import Transformer

_LEAST_CONFIDENCE = 1e-20  # as in the released code, before its logarithm is taken

ImageStep = Callable[[int, int, Canvas], None]


@dataclass(frozen=True)
class ImageSettings:
    """How an image is sampled. steps 1..10000, temperature 0 (deterministic) to 10, seed 0..2^64-1 (item i of a batch
    uses seed + i), cache None: every step is exact."""

    steps: int = 64
    temperature: float = 1.0
    seed: int = 0
    cache: CachePolicy | None = None

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, 1, 10_000)
        number_in("temperature", self.temperature, 0, MAX_TEMPERATURE)
        whole_number("seed", self.seed, 0, 2**64 - 1)


@torch.no_grad()
def sample_image(
    transformer: Transformer,
    table: TokenTable,
    canvas: Canvas,
    prefix: Tensor,
    branches: Sequence[Branch] = (),
    *,
    settings: ImageSettings,
    on_step: ImageStep | None = None,
) -> Canvas:
    """The canvas with its holes filled; known cells stay as they are. Runs on the device of `prefix` [1 or B,P].

    `on_step(done, total, canvas)` is called after every step; what it raises (cancel) passes through. A step may be
    the last before `total` is reached. Raises ValueError where no item of the batch has a hole.
    """
    _check_canvas(canvas, prefix, branches, table)
    home, canvas = canvas.codes.device, canvas.to(prefix.device)
    plans = [holes_left(count, settings.steps) for count in canvas.holes.tolist()]
    total = max(map(len, plans))
    noise = Noise(settings.seed, len(plans), prefix.device)
    asked = [Branch(prefix, 0.0), *(branch for branch in branches if branch.scale > 0)]
    readers = [_Reader(transformer, table, branch.prefix, canvas, settings) for branch in asked]
    for step in range(total):
        holes = hole_index(canvas.unknown.flatten(1))
        if not holes.shape[1]:
            break  # ties in certainty have decided more cells than planned
        answer = image_answer(canvas, table)
        logits, *others = (reader.logits(answer, holes, step) for reader in readers)
        scales = (branch.scale for branch in asked[1:])
        logits = combine(logits, list(zip(others, scales, strict=True)))
        keep = torch.tensor([plan[step] if step < len(plan) else 0 for plan in plans], device=prefix.device)
        canvas = _decide(canvas, holes, logits, keep, (noise, step, settings.temperature))
        if on_step is not None:
            on_step(step + 1, total, canvas)
    return canvas.to(home)


class _Reader:
    """Code logits of one branch at the holes, by full passes or through ML-Cache; the cache dies with the reader."""

    def __init__(
        self, transformer: Transformer, table: TokenTable, prefix: Tensor, canvas: Canvas, settings: ImageSettings
    ):
        batch, height, width = canvas.codes.shape
        self.transformer, self.codes, self.settings = transformer, table.codes, settings
        self.prefix = prefix.expand(batch, -1)
        self.places = prefix.shape[1] + cell_places(height, width, prefix.device)
        length = prefix.shape[1] + answer_length(height, width)
        self.share = settings.cache.rows(length) if settings.cache else length  # positions computed at a cached step
        self.cache: Cache | None = None

    def logits(self, answer: Tensor, holes: Tensor, step: int) -> Tensor:
        """Logits [B,m,K] at cells `holes` [B,m] of the image answer [B,A], at step `step`."""
        ids = torch.cat((self.prefix, answer), dim=1)
        positions = self.places[holes]
        if not self._is_full(step):
            return self._cached(ids, positions)
        self.cache = None  # first, so that old and new never stand side by side
        if self._is_full(step + 1):
            return self.transformer(ids, rows=positions, vocab=self.codes)
        key_values = KeyValues()
        everywhere = self.transformer(ids, cache=key_values, vocab=self.codes)
        self.cache = Cache(key_values, everywhere, positions)
        return self.cache.read(positions)

    def _cached(self, ids: Tensor, positions: Tensor) -> Tensor:
        recomputed = self.cache.least_certain(self.share)
        fresh = self.transformer(
            ids.gather(1, recomputed), positions=recomputed, cache=self.cache.key_values, vocab=self.codes
        )
        self.cache.store(recomputed, fresh)
        return self.cache.read(positions)

    def _is_full(self, step: int) -> bool:
        policy, steps = self.settings.cache, self.settings.steps
        return policy is None or step >= steps or policy.is_full(step, steps)


def _decide(canvas: Canvas, holes: Tensor, logits: Tensor, keep: Tensor, draw: tuple[Noise, int, float]) -> Canvas:
    """A new canvas: codes sampled at the holes [B,m] from logits [B,m,K], the keep [B] least certain masked again."""
    noise, step, temperature = draw
    codes, unknown = canvas.codes.flatten(1), canvas.unknown.flatten(1).gather(1, holes)
    if temperature > 0:
        sampled = sampled_tokens(logits, noise.for_tokens(step, holes, logits.shape[2]), temperature)
        doubt = noise.for_remask(step, holes)
    else:
        sampled, doubt = logits.argmax(dim=-1), torch.zeros_like(holes, dtype=torch.float32)
    confidence = probability(logits, sampled).clamp(min=_LEAST_CONFIDENCE).log()
    confidence = confidence.masked_fill(~unknown, torch.inf)  # what is known is never masked
    keep = torch.minimum(keep, unknown.sum(dim=1) - 1).clamp(min=0)
    masked = stays_masked(confidence, keep, doubt, temperature)
    decided = torch.where(unknown & ~masked, sampled, codes.gather(1, holes))
    shape = canvas.codes.shape
    return Canvas(
        codes.scatter(1, holes, decided).view(shape),
        canvas.unknown.flatten(1).scatter(1, holes, masked).view(shape),
    )


def _check_canvas(canvas: Canvas, prefix: Tensor, branches: Sequence[Branch], table: TokenTable) -> None:
    if not bool(canvas.unknown.any()):
        raise ValueError(
            "The canvas is already full, there is nothing to sample: use an empty canvas, or one with a mask on it."
        )
    canvas.check(table.codebook_size)
    batch = len(canvas.codes)
    for ids in (prefix, *(branch.prefix for branch in branches)):
        if ids.ndim != 2 or len(ids) not in (1, batch):
            raise ValueError(
                f"Prompt ids of shape {list(ids.shape)} came for {batch} canvases; one prompt, or one each, is needed."
            )
