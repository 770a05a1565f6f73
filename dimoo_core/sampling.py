"""The two loops: an image, whatever the task, and a text answer. Masked tokens are decided a few at a time.

Text-to-image, edit and inpaint are ONE loop on different data: the canvas says what is unknown, the prefix and the
branches say what is asked. Every step asks the branches for code logits at the holes only, combines them, samples
a code per hole and masks the least certain ones again (MaskGIT, arXiv 2202.04200; DiMOO, arXiv 2510.06308).

Shapes: B batch, P prefix, L sequence, H W cells, N = H*W, m holes, K codes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cache import Cache, CachePolicy, KeyValues
from .canvas import Canvas
from .checks import number_in, whole_number
from .guidance import MAX_SCALE, Branch, combine
from .layout import answer_length, cell_places, cut_answer, image_answer, text_answer
from .noise import Noise, gumbel_argmax, stays_masked, widest_float
from .schedule import holes_left, tokens_per_step
from .tokens import TokenTable
from .transformer import Transformer

MAX_TEMPERATURE = 10.0
_LEAST_CONFIDENCE = 1e-20  # as in the released code, before its logarithm is taken

ImageStep = Callable[[int, int, Canvas], None]
TextStep = Callable[[int, int, Tensor], None]


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


@dataclass(frozen=True)
class TextSettings:
    """How an answer is sampled: max_tokens in blocks of block_length, left to right, steps over all blocks; cfg is
    the scale against an unseen prompt (0: none). Raises ValueError, naming values that do, where they do not divide."""

    max_tokens: int = 128
    steps: int = 128
    block_length: int = 32
    temperature: float = 0.0
    cfg: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        tokens_per_step(self.max_tokens, self.steps, self.block_length)
        number_in("temperature", self.temperature, 0, MAX_TEMPERATURE)
        number_in("cfg", self.cfg, 0, MAX_SCALE)
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
        holes = _hole_index(canvas.unknown.flatten(1))
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


@torch.no_grad()
def sample_text(
    transformer: Transformer,
    table: TokenTable,
    prefix: Tensor,
    *,
    settings: TextSettings,
    on_step: TextStep | None = None,
) -> list[list[int]]:
    """Answers to the prefixes [B,P], one list of ids each, up to (without) the first answer end, end of text or pad.

    `on_step(done, total, tokens [B,N])` is called after every step; what it raises (cancel) passes through. Sampling
    stops as soon as in every answer all before its end is decided (the released script crashes there). A sampled
    mask id leaves its hole open for a later block, as in the released loop.
    """
    plan = tokens_per_step(settings.max_tokens, settings.steps, settings.block_length)
    block_ends = [(block + 1) * settings.block_length for block, counts in enumerate(plan) for _ in counts]
    counts = [count for counts in plan for count in counts]
    noise = Noise(settings.seed, len(prefix), prefix.device)
    tokens = prefix.new_full((len(prefix), settings.max_tokens), table.mask)
    for step, (count, end) in enumerate(zip(counts, block_ends, strict=True)):
        undecided = tokens == table.mask
        undecided[:, end:] = False
        holes = _hole_index(undecided)
        logits = _text_logits(transformer, table, prefix, (tokens, holes), settings.cfg)
        sampled, confidence = _sample_tokens(logits, holes, (noise, step, settings.temperature))
        confidence = confidence.masked_fill(~undecided.gather(1, holes), -torch.inf)
        surest = confidence.topk(count, dim=1).indices
        tokens = tokens.scatter(1, holes.gather(1, surest), sampled.gather(1, surest))
        if on_step is not None:
            on_step(step + 1, len(counts), tokens)
        if _all_answered(tokens, table):
            break
    return [cut_answer(answer, table) for answer in tokens.tolist()]


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


def _hole_index(unknown: Tensor) -> Tensor:
    """Indices [B,m] of the holes of unknown [B,N], ascending; m is the largest count of the batch, and an item with
    fewer is filled up with cells that are none. The one host sync of a step."""
    most = int(unknown.sum(dim=1).max())
    return (~unknown).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]


def _decide(canvas: Canvas, holes: Tensor, logits: Tensor, keep: Tensor, draw: tuple[Noise, int, float]) -> Canvas:
    """A new canvas: codes sampled at the holes [B,m] from logits [B,m,K], the keep [B] least certain masked again."""
    noise, step, temperature = draw
    codes, unknown = canvas.codes.flatten(1), canvas.unknown.flatten(1).gather(1, holes)
    if temperature > 0:
        parts = noise.for_tokens(step, holes, logits.shape[2])
        sampled = torch.cat([gumbel_argmax(logits[:, part], drawn, temperature) for part, drawn in parts], dim=1)
        doubt = noise.for_remask(step, holes)
    else:
        sampled, doubt = logits.argmax(dim=-1), torch.zeros_like(holes, dtype=torch.float32)
    confidence = _probability(logits, sampled).clamp(min=_LEAST_CONFIDENCE).log()
    confidence = confidence.masked_fill(~unknown, torch.inf)  # what is known is never masked
    keep = torch.minimum(keep, unknown.sum(dim=1) - 1).clamp(min=0)
    masked = stays_masked(confidence, keep, doubt, temperature)
    decided = torch.where(unknown & ~masked, sampled, codes.gather(1, holes))
    shape = canvas.codes.shape
    return Canvas(
        codes.scatter(1, holes, decided).view(shape),
        canvas.unknown.flatten(1).scatter(1, holes, masked).view(shape),
    )


def _text_logits(
    transformer: Transformer, table: TokenTable, prefix: Tensor, state: tuple[Tensor, Tensor], cfg: float
) -> Tensor:
    """Logits [B,m,V] in fp32 at the answer places `holes` [B,m]; state: (tokens [B,N], holes)."""
    tokens, holes = state
    ids = torch.cat((prefix, text_answer(tokens, table)), dim=1)
    start = prefix.shape[1] + 1
    logits = transformer(ids, rows=start + holes)
    if cfg == 0:
        return combine(logits, ())
    blind = torch.full_like(ids, table.mask)  # everything but the answer's own tokens is hidden
    blind[:, start : start + tokens.shape[1]] = tokens
    return combine(logits, [(transformer(blind, rows=start + holes), cfg)])


def _sample_tokens(logits: Tensor, holes: Tensor, draw: tuple[Noise, int, float]) -> tuple[Tensor, Tensor]:
    """Token and its probability per hole, [B,m] each, from logits [B,m,V]; in fp64 as the released code."""
    noise, step, temperature = draw
    logits = logits.to(widest_float(logits.device))
    if temperature > 0:
        parts = noise.for_text(step, holes, logits.shape[2])
        sampled = torch.cat([gumbel_argmax(logits[:, part], drawn, temperature) for part, drawn in parts], dim=1)
    else:
        sampled = logits.argmax(dim=-1)
    return sampled, _probability(logits, sampled)


def _probability(logits: Tensor, index: Tensor) -> Tensor:
    """softmax(logits [B,m,K]) at index [B,m], at temperature 1 whatever was sampled with.

    Not exp(logit - logsumexp): for large logits that loses the digits in which near-certain cells differ.
    """
    return logits.softmax(dim=-1).gather(2, index[..., None])[..., 0]


def _all_answered(tokens: Tensor, table: TokenTable) -> bool:
    """Whether every answer of tokens [B,N] has an end with nothing undecided before it."""
    ends = torch.isin(tokens, torch.tensor(table.ends, device=tokens.device))
    open_before = (tokens == table.mask) & (ends.cumsum(dim=1) == 0)
    return bool((ends.any(dim=1) & ~open_before.any(dim=1)).all())


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
