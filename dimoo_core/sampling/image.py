"""The image loop, whatever the task: masked cells are decided a few at a time. (The other loop is `text`.)

Text-to-image, edit and inpaint are ONE loop on different data: the canvas says what is unknown, the prefix and the
branches what is asked for. Every step computes the branches' code logits at the holes only, combines them, samples
a code per hole and masks the least certain ones again (MaskGIT, arXiv 2202.04200; DiMOO, arXiv 2510.06308). Three
things beside that are off by default: another order (`orders`), corrections while the picture forms (`corrections`),
and passes over the finished picture (`polish`).

Shapes: B batch, P prefix, A answer, N = H*W cells, m cells looked at, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from ..checks import number_in, shown, whole_number
from ..sequence.canvas import Canvas
from ..sequence.layout import answer_length, cell_positions, image_answer
from ..sequence.token_table import TokenTable
from .branch import Ask, BranchSequence, Scope
from .corrections import Trajectory, corrected_per_step
from .guidance import Branch, BranchLogits, Guidance, combine
from .ml_cache import CachedBranch, CachePolicy
from .noise import SEEDS, Noise, every_cell, no_noise
from .orders import ORDERS, Candidates
from .passes import Forward, Passes
from .polish import LEAST_SHARE, halves
from .schedule import Schedule, cosine
from .selection import MAX_TEMPERATURE, Holes, Standing, decide_in_chunks, first_holes

_LEAST_PROBABILITY = 1e-20  # as in the released code, before its logarithm is taken

MAX_STEPS = 10_000
MAX_POLISH = 100

ImageStep = Callable[[int, int, Canvas], None]


@dataclass(frozen=True)
class ImageSettings:
    """How an image is sampled. Raises ValueError for a setting out of range.

    steps 1..10000. temperature 0 (deterministic) to 10. seed 0..2^64-1: item i of a batch uses seed + i. cache None:
    every step is exact. schedule and order make the sampler: how many cells stay open after each step, and which; order
    is one of `ORDERS`. corrections: cells that each step masks again once `corrections_start` (0..1) of an item's own
    steps have passed, without passes of their own; 0: what is decided stays. polish: 0..100 passes over the finished
    picture, after the steps. shared_noise (0..1): share of an item's own steps, at the beginning, in which all its
    cells draw their codes with the same noise.
    """

    steps: int = 64
    temperature: float = 1.0
    seed: int = 0
    cache: CachePolicy | None = None
    guidance: Guidance = field(default_factory=Guidance)
    schedule: Schedule = cosine
    corrections: int = 0
    corrections_start: float = 0.6
    polish: int = 0
    order: str = "confidence"
    shared_noise: float = 0.0

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, 1, MAX_STEPS)
        number_in("temperature", self.temperature, 0, MAX_TEMPERATURE)
        whole_number("seed", self.seed, 0, SEEDS - 1)
        whole_number("corrections", self.corrections, 0)
        number_in("corrections_start", self.corrections_start, 0, 1)
        whole_number("polish", self.polish, 0, MAX_POLISH)
        number_in("shared_noise", self.shared_noise, 0, 1)
        if not isinstance(self.order, str) or self.order not in ORDERS:
            raise ValueError(f"order is {shown(self.order)}; expected one of {', '.join(ORDERS)}.")


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

    `on_step(done, total, canvas)` is called after every step and polishing pass; what it raises (cancel) passes
    through. The steps may end early, so `done` may skip numbers and `total` may never be reached. Raises ValueError
    where no item of the batch has a hole, and where the model computes numbers that are not finite.
    """
    _check_canvas(canvas, prefix, branches, table)
    original_device, canvas = canvas.codes.device, canvas.to(prefix.device)
    guiding = [branch for branch in branches if branch.scale > 0]
    prefixes = [prefix, *(branch.prefix for branch in guiding)]
    passes = Passes(
        transformer,
        length=max(ids.shape[1] for ids in prefixes) + answer_length(*canvas.codes.shape[1:]),
        device=prefix.device,
        vocab=table.codes,
        chunk_rows=chunk_rows,
        packed=packed,
        graphs=graphs,
    )
    make_branch = partial(GuidedBranch, passes, table, canvas, prefix, guiding)
    sampling = Sampling(make_branch, canvas, settings, on_step)
    return sampling.polished(sampling.filled()).to(original_device)


class Sampling:
    """One call of `sample_image`: the steps, then the polishing passes."""

    def __init__(
        self,
        make_branch: Callable[[ImageSettings, Sequence[int]], GuidedBranch],
        canvas: Canvas,
        settings: ImageSettings,
        on_step: ImageStep | None,
    ):
        """make_branch: from settings, and the step at which each item's guidance begins."""
        device, counts = canvas.codes.device, canvas.holes.tolist()
        plans = [settings.schedule(holes, settings.steps) for holes in counts]
        self._steps = max(map(len, plans))
        own_steps = [len(plan) or self._steps for plan in plans]  # an item without holes is like the others
        self._starts = [settings.guidance.first_step(steps) for steps in own_steps]
        self._sharing = [int(settings.shared_noise * steps) for steps in own_steps]
        self._sharing_steps = torch.tensor(self._sharing).to(device)
        self._keep = _kept_per_step(plans, self._steps).to(device)
        again = corrected_per_step(plans, self._steps, settings.corrections, settings.corrections_start)
        self._again = again.to(device)
        self._noise = Noise(settings.seed, len(plans), device, max(self._steps, settings.polish))
        self._holes = Holes(device)
        self._make_branch, self._canvas, self._most = make_branch, canvas, max(counts)
        self._settings, self._on_step = settings, on_step

    def filled(self) -> Canvas:
        """The canvas after the steps."""
        canvas, branch = self._canvas, self._make_branch(self._settings, self._starts)
        cells, trajectory = first_holes(canvas.unknown.flatten(1), self._most), None
        if self._settings.corrections:
            trajectory = Trajectory(canvas.unknown.flatten(1).gather(1, cells))
        for step in range(self._steps):
            unknown = canvas.unknown.flatten(1)
            (most,) = self._holes.read(unknown.sum(dim=1).max())
            if not most:
                break  # ties in certainty have decided more cells than planned
            if trajectory is None:
                cells = first_holes(unknown, most)
            canvas = self._step(branch, canvas, cells, step, trajectory)
            self._tell(step + 1, canvas)
        self._holes.finish()
        return canvas

    def polished(self, canvas: Canvas) -> Canvas:
        """A filled canvas after the polishing passes, which are exact whatever the cache of the steps."""
        if not self._settings.polish:
            return canvas
        branch = self._make_branch(replace(self._settings, cache=None), [0] * len(canvas.codes))  # all are guided
        _, height, width = canvas.codes.shape
        hidden = self._canvas.unknown.flatten(1) & halves(height, width, canvas.codes.device)[:, None]  # [2,B,N]
        most = hidden.sum(dim=2).amax(dim=1).tolist()
        for number in range(self._settings.polish):
            half = number % len(most)
            if most[half]:
                canvas = self._polish(branch, canvas, hidden[half], first_holes(hidden[half], most[half]), number)
            self._tell(self._steps + number + 1, canvas)
        self._holes.finish()
        return canvas

    def _step(
        self, branch: GuidedBranch, canvas: Canvas, cells: Tensor, step: int, trajectory: Trajectory | None
    ) -> Canvas:
        """The canvas after a step that looks at `cells` [B,m]: the open ones, or with a trajectory all former holes."""
        settings, unknown = self._settings, canvas.unknown.flatten(1).gather(1, cells)
        standing = None if trajectory is None else Standing(canvas.codes.flatten(1).gather(1, cells), unknown)
        logits, others = branch.logits(canvas, cells, step)
        noise = self._token_noise(step, cells, logits.shape[2])
        codes, probs = decide_in_chunks(partial(combine, logits, others), noise, settings.temperature, standing)
        del logits, others  # before the next pass, which takes the most memory
        self._holes.record(probs, step)
        keep = torch.minimum(self._keep[step], unknown.sum(dim=1) - 1).clamp(min=0)
        again = torch.zeros_like(unknown)
        if trajectory is not None:
            trajectory.add(probs, unknown)
            again = trajectory.least_probable(torch.minimum(self._again[step], keep))
        log_prob = probs.clamp(min=_LEAST_PROBABILITY).log().masked_fill(~unknown, torch.inf)
        left, (_, height, width) = keep - again.sum(dim=1), canvas.codes.shape
        candidates = Candidates(
            cells, unknown, log_prob, left, (height, width), settings.temperature, self._noise, step
        )
        return _decided(canvas, cells, codes, unknown, ORDERS[settings.order](candidates) | again)

    def _polish(self, branch: GuidedBranch, canvas: Canvas, hidden: Tensor, cells: Tensor, number: int) -> Canvas:
        """The canvas after a pass that hides the cells `hidden` bool [B,N], all of them among `cells` [B,m]."""
        flat, step, temperature = canvas.codes.flatten(1), self._steps + number, self._settings.temperature
        logits, others = branch.logits(Canvas(canvas.codes, hidden.view_as(canvas.unknown)), cells, step)
        noise = self._noise.for_polish(number, cells, logits.shape[2]) if temperature > 0 else no_noise(*logits.shape)
        standing = Standing(flat.gather(1, cells), hidden.gather(1, cells), LEAST_SHARE)
        codes, probs = decide_in_chunks(partial(combine, logits, others), noise, temperature, standing)
        self._holes.record(probs, step)
        return Canvas(flat.scatter(1, cells, codes).view_as(canvas.codes), canvas.unknown)

    def _token_noise(self, step: int, cells: Tensor, codes: int) -> Iterator[tuple[slice, Tensor | None]]:
        """Gumbel noise for K `codes` at `cells` [B,m], in chunks: an item's own for each cell, or the same for all."""
        if self._settings.temperature == 0:
            return no_noise(len(cells), cells.shape[1], codes)
        sharing = [step < steps for steps in self._sharing]
        if not any(sharing):
            return self._noise.for_tokens(step, cells, codes)
        shared = self._noise.shared(step, codes)
        if all(sharing):
            return every_cell(shared, cells.shape[1])
        which = (step < self._sharing_steps)[:, None, None]
        own = self._noise.for_tokens(step, cells, codes)
        return ((chunk, torch.where(which, shared, noise)) for chunk, noise in own)

    def _tell(self, done: int, canvas: Canvas) -> None:
        if self._on_step is not None:
            self._on_step(done, self._steps + self._settings.polish, canvas)


def _kept_per_step(plans: Sequence[Sequence[int]], total: int) -> Tensor:
    """Holes that each item keeps after each step, [steps,B]; none after the end of its plan."""
    return torch.tensor([[plan[step] if step < len(plan) else 0 for plan in plans] for step in range(total)])


def _cached_counts(settings: ImageSettings, prefix: Tensor, canvas: Canvas) -> list[int]:
    """Positions that a cached step computes of a branch with `prefix` [1 or B,P], for each item; none without cache."""
    if settings.cache is None:
        return [0] * len(canvas.codes)
    length = prefix.shape[1] + answer_length(*canvas.codes.shape[1:])
    plans = ((holes, settings.schedule(holes, settings.steps)) for holes in canvas.holes.tolist())
    return [settings.cache.budget(length, holes, plan, settings.corrections) for holes, plan in plans]


class GuidedBranch:
    """The conditional branch, and the unconditional ones that guide it."""

    def __init__(
        self,
        passes: Passes,
        table: TokenTable,
        canvas: Canvas,
        prefix: Tensor,
        guiding: Sequence[Branch],
        settings: ImageSettings,
        starts: Sequence[int],
    ):
        """prefix [1 or B,P]; guiding: with scales above 0; starts: for each item the step at which guidance begins."""
        self._passes, self._table = passes, table
        prefixes = [prefix, *(branch.prefix for branch in guiding)]
        counts = (max(_cached_counts(settings, ids, canvas)) for ids in prefixes)
        fixed = passes.records(sum(len(canvas.codes) * count for count in counts))
        make_branch = partial(ImageBranch, table, settings, fixed=fixed)
        self._conditional = make_branch(prefix, canvas)
        self._guides = [GuidingBranch(make_branch, branch, canvas, starts) for branch in guiding]

    def logits(self, canvas: Canvas, cells: Tensor, step: int) -> tuple[Tensor, list[BranchLogits]]:
        """The conditional logits [B,m,K] at `cells` [B,m] of a canvas, and those of the branches that guide this
        step."""
        answer = image_answer(canvas, self._table)
        guiding = [guide for guide in self._guides if guide.first_step <= step]
        asks = [guide.asks(answer, cells, step) for guide in guiding]
        logits, *given = self._passes.run([self._conditional.ask(answer, cells, step), *chain.from_iterable(asks)])
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


def _decided(canvas: Canvas, cells: Tensor, codes: Tensor, unknown: Tensor, masked: Tensor) -> Canvas:
    """The canvas with `codes` [B,m] at the `unknown` ones of `cells` [B,m]; the `masked` ones are (again) open."""
    flat = canvas.codes.flatten(1)
    decided = torch.where(unknown & ~masked, codes, flat.gather(1, cells))
    return Canvas(
        flat.scatter(1, cells, decided).view_as(canvas.codes),
        canvas.unknown.flatten(1).scatter(1, cells, masked).view_as(canvas.unknown),
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
