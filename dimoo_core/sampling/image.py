"""The image loop, whatever the task: masked cells are decided a few at a time. (The other loop is `text_sampling`.)

Text-to-image, edit and inpaint are ONE loop on different data: the canvas says what is unknown, the prefix and the
branches say what is asked. Every step asks the branches for code logits at the holes only, combines them, samples
a code per hole and masks the least certain ones again (MaskGIT, arXiv 2202.04200; DiMOO, arXiv 2510.06308).

Shapes: B batch, P prefix, L sequence, H W cells, N = H*W, m holes, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..checks import number_in, whole_number
from ..model.transformer import Transformer
from ..sequence.canvas import Canvas
from ..sequence.layout import answer_length, cell_places, image_answer
from ..sequence.token_table import TokenTable
from .guidance import Branch, Guided, combine_part
from .ml_cache import Cache, CachePolicy, KeyValues
from .noise import Noise, no_noise
from .schedule import holes_left
from .selection import MAX_TEMPERATURE, decided_in_parts, hole_index, stays_masked

_LEAST_CONFIDENCE = 1e-20  # as in the released code, before its logarithm is taken

ImageStep = Callable[[int, int, Canvas], None]


@dataclass(frozen=True)
class ImageSettings:
    """How an image is sampled. steps 1..10000, temperature 0 (deterministic) to 10, seed 0..2^64-1 (item i of a batch
    uses seed + i), cache None: every step is exact. guidance_start in [0,1): share of an item's own steps, at the
    start, that go without the guiding branches; 0: none."""

    steps: int = 64
    temperature: float = 1.0
    seed: int = 0
    cache: CachePolicy | None = None
    guidance_start: float = 0.0

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, 1, 10_000)
        number_in("temperature", self.temperature, 0, MAX_TEMPERATURE)
        whole_number("seed", self.seed, 0, 2**64 - 1)
        if not number_in("guidance_start", self.guidance_start, 0, 1) < 1:
            raise ValueError(f"guidance_start is {self.guidance_start!r}; a number from 0 to below 1 is needed.")

    def guided_from(self, planned: int) -> int:
        """The step (from 0) from which an item with so many steps `planned` is guided. Few holes take fewer than
        `steps`."""
        return int(self.guidance_start * planned)


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
    chunk_rows: int | None = None,
) -> Canvas:
    """The canvas with its holes filled; known cells stay as they are. Runs on the device of `prefix` [1 or B,P].

    `chunk_rows` saves memory: how many rows the transformer works on at a time (see there; None: all).

    `on_step(done, total, canvas)` is called after every step; what it raises (cancel) passes through. A step may be
    the last before `total` is reached. Raises ValueError where no item of the batch has a hole.
    """
    _check_canvas(canvas, prefix, branches, table)
    home, canvas = canvas.codes.device, canvas.to(prefix.device)
    plans = [holes_left(count, settings.steps) for count in canvas.holes.tolist()]
    total = max(map(len, plans))
    noise = Noise(settings.seed, len(plans), prefix.device)
    starts = [settings.guided_from(len(plan) or total) for plan in plans]  # without a hole an item begins with others
    read = partial(_Reader, partial(transformer, vocab=table.codes, chunk_rows=chunk_rows), table.mask, settings)
    reader = read(prefix, canvas)
    guides = [_Guide(read, branch, canvas, starts) for branch in branches if branch.scale > 0]
    for step in range(total):
        holes = hole_index(canvas.unknown.flatten(1))
        if not holes.shape[1]:
            break  # ties in certainty have decided more cells than planned
        answer = image_answer(canvas, table)
        guided = [(reader.logits(answer, holes, step), 0.0)]
        guided += [guide.turn(answer, holes, step, guided[0][0]) for guide in guides if guide.begins <= step]
        keep = torch.tensor([plan[step] if step < len(plan) else 0 for plan in plans], device=prefix.device)
        canvas = _decide(canvas, holes, guided, keep, (noise, step, settings.temperature))
        del guided  # before the next pass, which takes the most memory
        if on_step is not None:
            on_step(step + 1, total, canvas)
    return canvas.to(home)


class _Reader:
    """Code logits of one branch at the holes, by full passes or through ML-Cache; the cache dies with the reader."""

    def __init__(self, ask: Callable[..., Tensor], mask: int, settings: ImageSettings, prefix: Tensor, canvas: Canvas):
        """ask: the transformer, for logits of codes; mask: the id of a hole; prefix [1 or B,P]."""
        batch, height, width = canvas.codes.shape
        self.ask, self.mask, self.settings = ask, mask, settings
        self.prefix = prefix.expand(batch, -1)
        self.places = prefix.shape[1] + cell_places(height, width, prefix.device)
        length = prefix.shape[1] + answer_length(height, width)
        self.everywhere = torch.arange(length, device=prefix.device).expand(batch, -1)
        if settings.cache:
            holes = canvas.holes.tolist()
            self.counts = [settings.cache.budget(length, count, settings.steps) for count in holes]
        self.cache: Cache | None = None
        self.prefix_step: int | None = None  # when the prefix was computed

    def logits(self, answer: Tensor, holes: Tensor, step: int) -> Tensor:
        """Logits [B,m,K] at cells `holes` [B,m] of the image answer [B,A], at step `step`."""
        ids = torch.cat((self.prefix, answer), dim=1)
        positions = self.places[holes]
        if self.cache is not None and not self._is_full(step):
            return self._cached(ids, positions)
        return self._full(ids, positions, step)

    def _cached(self, ids: Tensor, positions: Tensor) -> Tensor:
        if self.settings.cache.candidates == "all":
            recomputed = self.cache.least_certain(self.counts[0])
        else:
            recomputed = self.cache.decided_and_least_certain(ids, self.counts, self.mask)
        chosen = ids.gather(1, recomputed)
        fresh = self.ask(chosen, positions=recomputed, cache=self.cache.key_values)
        self.cache.store(recomputed, chosen, fresh)
        return self.cache.read(positions)

    def _full(self, ids: Tensor, positions: Tensor, step: int) -> Tensor:
        start = self.prefix.shape[1] if self._has_prefix(step) else 0
        key_values = self.cache.key_values if start else KeyValues()
        self.cache = None  # first, so that old and new never stand side by side
        if not start:
            self.prefix_step = step
            if self._is_full(step + 1) and not self._keeps_prefix(step + 1):
                return self.ask(ids, rows=positions)
        where = self.everywhere[:, start:]
        ranked = where if self.settings.cache.candidates == "all" else positions
        given = {"positions": where} if start else {}
        rows = None if ranked is where else ranked - start
        logits = self.ask(ids[:, start:], cache=key_values, rows=rows, **given)
        self.cache = Cache(key_values, ids, positions)
        self.cache.store(ranked, ids.gather(1, ranked), logits)
        del logits  # of the whole sequence, perhaps
        return self.cache.read(positions)

    def _is_full(self, step: int) -> bool:
        policy, steps = self.settings.cache, self.settings.steps
        return policy is None or step >= steps or policy.is_full(step, steps)

    def _keeps_prefix(self, step: int) -> bool:
        """Whether a full pass at `step` would leave the prefix as it was computed last."""
        policy = self.settings.cache
        return policy is not None and step - self.prefix_step < policy.prefix_interval

    def _has_prefix(self, step: int) -> bool:
        return self.cache is not None and self._keeps_prefix(step)


class _Guide:
    """A guiding branch. Items of a batch that ask it from the same step on share a reader: so each has its full passes
    when it would have them alone."""

    def __init__(self, read: Callable[[Tensor, Canvas], _Reader], branch: Branch, canvas: Canvas, starts: list[int]):
        """read: makes a reader of prefix and canvas; starts: for each item the step from which it is guided."""
        self.scale, self.begins = branch.scale, min(starts)
        self.groups: list[tuple[int, Tensor, _Reader]] = []
        for start in sorted(set(starts)):
            same = [item for item, one in enumerate(starts) if one == start]
            items = torch.tensor(same, device=canvas.codes.device)
            prefix = branch.prefix if len(branch.prefix) == 1 else branch.prefix[items]
            self.groups.append((start, items, read(prefix, Canvas(canvas.codes[items], canvas.unknown[items]))))

    def turn(self, answer: Tensor, holes: Tensor, step: int, own: Tensor) -> tuple[Tensor, float]:
        """Logits [B,m,K] and the scale; for items that are not guided yet what the prompt itself said, `own` [B,m,K],
        from which there is nowhere to move away. The rest as for a reader."""
        asked = [
            (items, reader.logits(answer[items], holes[items], step))
            for start, items, reader in self.groups
            if start <= step
        ]
        if len(self.groups) == 1:
            return asked[0][1], self.scale
        logits = own.clone()
        for items, part in asked:
            logits[items] = part
        return logits, self.scale


def _decide(canvas: Canvas, holes: Tensor, guided: Guided, keep: Tensor, draw: tuple[Noise, int, float]) -> Canvas:
    """A new canvas: codes sampled at the holes [B,m] from logits [B,m,K], the keep [B] least certain masked again."""
    noise, step, temperature = draw
    codes, unknown = canvas.codes.flatten(1), canvas.unknown.flatten(1).gather(1, holes)
    shape = guided[0][0].shape
    drawing = noise.for_tokens(step, holes, shape[2]) if temperature > 0 else no_noise(*shape)
    sampled, certain = decided_in_parts(partial(combine_part, guided), drawing, temperature)
    doubt = noise.for_remask(step, holes) if temperature > 0 else torch.zeros_like(certain)
    confidence = certain.clamp(min=_LEAST_CONFIDENCE).log()
    confidence = confidence.masked_fill(~unknown, torch.inf)  # what is known is never masked
    keep = torch.minimum(keep, unknown.sum(dim=1) - 1).clamp(min=0)
    masked = stays_masked(confidence, keep, doubt, temperature)
    decided = torch.where(unknown & ~masked, sampled, codes.gather(1, holes))
    return Canvas(
        codes.scatter(1, holes, decided).view_as(canvas.codes),
        canvas.unknown.flatten(1).scatter(1, holes, masked).view_as(canvas.unknown),
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
