"""The image loop, whatever the task: masked cells are decided a few at a time. (The other loop is `text`.)

Text-to-image, edit and inpaint are ONE loop on different data: the canvas says what is unknown, the prefix and the
branches what is asked for. Every step computes the branches' code logits at the holes only, combines them, samples
a code per hole and masks the least certain ones again (MaskGIT, arXiv 2202.04200; DiMOO, arXiv 2510.06308).

Shapes: B batch, P prefix, A answer, N = H*W cells, m holes, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from ..checks import number_in, whole_number
from ..sequence.canvas import Canvas
from ..sequence.layout import answer_length, cell_positions, image_answer
from ..sequence.token_table import TokenTable
from .branch import Ask, BranchSequence, Scope
from .guidance import Branch, BranchLogits, Guidance, combine
from .ml_cache import CachedBranch, CachePolicy
from .noise import SEEDS, Noise, no_noise
from .passes import Forward, Passes
from .schedule import Schedule, cosine
from .selection import MAX_TEMPERATURE, Holes, Selection, decide_in_chunks, first_holes, least_confident

_LEAST_PROBABILITY = 1e-20  # as in the released code, before its logarithm is taken

MAX_STEPS = 10_000

ImageStep = Callable[[int, int, Canvas], None]


@dataclass(frozen=True)
class ImageSettings:
    """How an image is sampled. Raises ValueError for a setting out of range.

    steps 1..10000. temperature 0 (deterministic) to 10. seed 0..2^64-1: item i of a batch uses seed + i. cache None:
    every step is exact. schedule and selection make the sampler: how many cells stay open after each step, and which.
    """

    steps: int = 64
    temperature: float = 1.0
    seed: int = 0
    cache: CachePolicy | None = None
    guidance: Guidance = field(default_factory=Guidance)
    schedule: Schedule = cosine
    selection: Selection = least_confident

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, 1, MAX_STEPS)
        number_in("temperature", self.temperature, 0, MAX_TEMPERATURE)
        whole_number("seed", self.seed, 0, SEEDS - 1)


@torch.no_grad()
def sample_image(
    transformer: Forward,
    table: TokenTable,
    canvas: Canvas,
    prefix: Tensor,
    branches: Sequence[Branch] = (),
    *,
    settings: ImageSettings,
    on_step: ImageStep | None = None,
    chunk_rows: int | None = None,
    packed: bool = False,
    graphs: bool = True,
) -> Canvas:
    """The canvas with its holes filled; known cells stay as they are. Runs on the device of `prefix` [1 or B,P].

    `branches` bring their own scales; of `settings.guidance` only `start` is read. `chunk_rows` saves memory: how many
    rows the transformer works on at a time (see there; None: all). `packed` and `graphs`: how passes are run, see
    `passes.Passes`.

    `on_step(done, total, canvas)` is called after every step; what it raises (cancel) passes through. A step may be
    the last before `total` is reached. Raises ValueError where no item of the batch has a hole, and where the model
    computes numbers that are not finite.
    """
    _check_canvas(canvas, prefix, branches, table)
    original_device, canvas = canvas.codes.device, canvas.to(prefix.device)
    plans = [settings.schedule(holes, settings.steps) for holes in canvas.holes.tolist()]
    total = max(map(len, plans))
    noise = Noise(settings.seed, len(plans), prefix.device, total)
    starts = [
        settings.guidance.first_step(len(plan) or total) for plan in plans
    ]  # without holes it starts like the others
    guided = [branch for branch in branches if branch.scale > 0]
    prefixes = [prefix, *(branch.prefix for branch in guided)]
    passes = Passes(
        transformer,
        length=max(ids.shape[1] for ids in prefixes) + answer_length(*canvas.codes.shape[1:]),
        device=prefix.device,
        vocab=table.codes,
        chunk_rows=chunk_rows,
        packed=packed,
        graphs=graphs,
    )
    fixed = passes.records(sum(len(plans) * max(_cached_counts(settings, ids, canvas)) for ids in prefixes))
    make_branch = partial(ImageBranch, table, settings, fixed=fixed)
    conditional = make_branch(prefix, canvas)
    guides = [GuidingBranch(make_branch, branch, canvas, starts) for branch in guided]
    keep = _kept_per_step(plans, total).to(prefix.device)
    holes = Holes(prefix.device)
    for step in range(total):
        unknown = canvas.unknown.flatten(1)
        (most,) = holes.read(unknown.sum(dim=1).max())
        if not most:
            break  # ties in certainty have decided more cells than planned
        index = first_holes(unknown, most)
        logits, others = _step_logits(passes, conditional, guides, image_answer(canvas, table), index, step)
        codes, probs = _sample_codes(logits, others, index, noise, step, settings.temperature)
        del logits, others  # before the next pass, which takes the most memory
        holes.record(probs, step)
        gumbel = noise.for_remask(step, index) if settings.temperature > 0 else torch.zeros_like(probs)
        canvas = _decide(canvas, index, codes, probs, keep[step], gumbel, settings)
        if on_step is not None:
            on_step(step + 1, total, canvas)
    holes.finish()
    return canvas.to(original_device)


def _kept_per_step(plans: Sequence[Sequence[int]], total: int) -> Tensor:
    """Holes that each item keeps after each step, [steps,B]; none after the end of its plan."""
    return torch.tensor([[plan[step] if step < len(plan) else 0 for plan in plans] for step in range(total)])


def _cached_counts(settings: ImageSettings, prefix: Tensor, canvas: Canvas) -> list[int]:
    """Positions that a cached step computes of a branch with `prefix` [1 or B,P], for each item; none without cache."""
    if settings.cache is None:
        return [0] * len(canvas.codes)
    length = prefix.shape[1] + answer_length(*canvas.codes.shape[1:])
    plans = ((holes, settings.schedule(holes, settings.steps)) for holes in canvas.holes.tolist())
    return [settings.cache.budget(length, holes, plan) for holes, plan in plans]


def _step_logits(
    passes: Passes,
    conditional: ImageBranch,
    guides: Sequence[GuidingBranch],
    answer: Tensor,
    index: Tensor,
    step: int,
) -> tuple[Tensor, list[BranchLogits]]:
    """The conditional logits [B,m,K] at cells `index` [B,m] of the image answer [B,A], and those of the branches that
    guide this step."""
    guiding = [guide for guide in guides if guide.first_step <= step]
    asks = [guide.asks(answer, index, step) for guide in guiding]
    logits, *given = passes.run([conditional.ask(answer, index, step), *chain.from_iterable(asks)])
    others = []
    for guide, asked in zip(guiding, asks, strict=True):
        own, given = given[: len(asked)], given[len(asked) :]
        others.append(BranchLogits(guide.merged(own, logits, step), guide.scale))
    return logits, others


class ImageBranch:
    """One branch at the holes of a canvas, with full passes or through ML-Cache."""

    def __init__(
        self,
        table: TokenTable,
        settings: ImageSettings,
        prefix: Tensor,
        canvas: Canvas,
        first_step: int = 0,
        *,
        fixed: bool = False,
    ):
        """prefix [1 or B,P]; first_step: the first with this branch; fixed: as for `KeyValues`."""
        batch, height, width = canvas.codes.shape
        self._mask = table.mask
        self._sequence = BranchSequence(prefix.expand(batch, -1), fixed=fixed)
        self._positions = prefix.shape[1] + cell_positions(height, width, prefix.device)  # [N], of the cells
        self._cached: CachedBranch | None = None
        policy = settings.cache
        if policy is not None:
            scopes = policy.scopes(settings.steps, first_step)
            self._cached = CachedBranch(self._sequence, policy, scopes, _cached_counts(settings, prefix, canvas))

    def ask(self, answer: Tensor, index: Tensor, step: int) -> Ask:
        """For logits [B,m,K] at cells `index` [B,m] of the image answer [B,A], at step `step`."""
        positions = self._positions[index]
        if self._cached is None:
            return Ask(Scope.ALL, self._sequence.all(answer, positions, keep=False))
        return self._cached.ask(answer, positions, step, self._mask)


class GuidingBranch:
    """An unconditional branch. Items of a batch whose guidance starts at the same step share a pass, so that each has
    its full passes at the steps where it would have them alone."""

    def __init__(
        self, make_branch: Callable[..., ImageBranch], branch: Branch, canvas: Canvas, first_steps: Sequence[int]
    ):
        """make_branch: an `ImageBranch` of prefix and canvas; first_steps: for each item when guidance begins."""
        self.scale, self.first_step = branch.scale, min(first_steps)
        self._groups: list[tuple[int, Tensor, ImageBranch]] = []
        for first in sorted(set(first_steps)):
            same = [item for item, step in enumerate(first_steps) if step == first]
            items = torch.tensor(same, device=canvas.codes.device)
            prefix = branch.prefix if len(branch.prefix) == 1 else branch.prefix[items]
            part = Canvas(canvas.codes[items], canvas.unknown[items])
            self._groups.append((first, items, make_branch(prefix, part, first)))

    def asks(self, answer: Tensor, index: Tensor, step: int) -> list[Ask]:
        """As for `ImageBranch`, one for each group of items that are guided at this step."""
        if len(self._groups) == 1:
            return [self._groups[0][2].ask(answer, index, step)]
        return [branch.ask(answer[items], index[items], step) for first, items, branch in self._groups if first <= step]

    def merged(self, given: Sequence[Tensor], conditional: Tensor, step: int) -> Tensor:
        """Logits [B,m,K] of what `asks` was given. Items that are not guided yet get the `conditional` ones [B,m,K], so
        that guidance cancels out."""
        if len(self._groups) == 1:
            return given[0]
        logits = conditional.clone()
        guided = [items for first, items, _ in self._groups if first <= step]
        for items, own in zip(guided, given, strict=True):
            logits[items] = own
        return logits


def _sample_codes(
    logits: Tensor, others: Sequence[BranchLogits], index: Tensor, noise: Noise, step: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """A code for each of the holes `index` [B,m], from logits [B,m,K], and its probability; [B,m] each."""
    gumbel = noise.for_tokens(step, index, logits.shape[2]) if temperature > 0 else no_noise(*logits.shape)
    return decide_in_chunks(partial(combine, logits, others), gumbel, temperature)


def _decide(
    canvas: Canvas,
    index: Tensor,
    codes: Tensor,
    probs: Tensor,
    keep: Tensor,
    gumbel: Tensor,
    settings: ImageSettings,
) -> Canvas:
    """The canvas with `codes` [B,m] at the holes `index` [B,m], of which keep[b] are masked again."""
    unknown = canvas.unknown.flatten(1).gather(1, index)
    log_prob = probs.clamp(min=_LEAST_PROBABILITY).log()
    log_prob = log_prob.masked_fill(~unknown, torch.inf)  # what is known is never masked
    keep = torch.minimum(keep, unknown.sum(dim=1) - 1).clamp(min=0)
    masked = settings.selection(log_prob, keep, gumbel, settings.temperature)
    flat = canvas.codes.flatten(1)
    decided = torch.where(unknown & ~masked, codes, flat.gather(1, index))
    return Canvas(
        flat.scatter(1, index, decided).view_as(canvas.codes),
        canvas.unknown.flatten(1).scatter(1, index, masked).view_as(canvas.unknown),
    )


def _check_canvas(canvas: Canvas, prefix: Tensor, branches: Sequence[Branch], table: TokenTable) -> None:
    if not bool(canvas.unknown.any()):
        raise ValueError(
            "The canvas is already full, so there is nothing to sample: use an empty canvas, or one with a mask."
        )
    canvas.check(table.codebook_size)
    batch = len(canvas.codes)
    for ids in (prefix, *(branch.prefix for branch in branches)):
        if ids.ndim != 2 or len(ids) not in (1, batch):
            raise ValueError(
                f"Got {len(ids)} prompts with pictures for a canvas of {batch}; expected one prompt, or one each: "
                "make the batch sizes equal."
            )
