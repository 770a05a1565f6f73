"""How often DiMOO-nano is right: `python -m dimoo_core.nano.rates` prints the table; exit 1 if a row misses its limit.

A picture counts if the judge sees in it what was asked and finds it clean; an answer counts if it is the exact caption.
The settings are those that the checkpoint brings as its defaults, but where a row is about others; the last column
prints them. The n cases of a row are sampled with the seeds 0 to n - 1, and all rows of a task ask the same.

Controls must fail, or the other rows prove nothing: captions that leave something open in one step, or with a cache
that never refreshes; pictures judged by another caption.

Rows of a cache's presets also say what it saves: the counted floating point operations of sampling a case, matrix
products and attention, beside those of exact sampling.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..checkpoint.defaults import Defaults
from ..checkpoint.find import NANO, find
from ..checkpoint.load import load_tokenizer, load_transformer, load_vq
from ..jobs import ImagePlan, Model, decode, encode, plan_image, plan_text
from ..model.vq import VQ
from ..pictures.masks import cells_to_mask
from ..pictures.pixels import composite
from ..sampling.guidance import Branch, Guidance
from ..sampling.image import ImageSettings
from ..sampling.ml_cache import PRESETS, CachePolicy
from ..sampling.text import TextSettings
from ..sampling.text_cache import EXACT, SPEEDS, TextPolicy
from ..sequence.canvas import Canvas
from .cases import Case, Examiner
from .judge import Verdict, judge_all, matches
from .scenes import BACKGROUNDS, CELL, COLOURS, FORMATS, PLACES, SIZES

CASES = 210  # 15 ways to leave something open, 5 kinds of edit, 5 questions: each the same number of times
BATCH = 32
COUNTED = 30  # cases whose operations are counted: they depend on the lengths of prompts alone
PUBLISHED_CACHE = CachePolicy(ratio=0.9, warmup=0.3, refresh_interval=5)
NEVER_REFRESHED = CachePolicy(ratio=0.98, warmup=0.0, refresh_interval=10_000)
CHOICES = {"size": SIZES, "colour": COLOURS, "place": PLACES, "background": BACKGROUNDS}

_NAME, _INDENT = 44, "    "
_SETTINGS = {"steps": int, "temperature": float, "cfg": float, "image_cfg": float}


# --------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Setup:
    """How cases are sampled: H W in cells, and what `sample_image`, `guided` and `sample_text` take."""

    cells: tuple[int, int] = FORMATS[0]
    steps: int = 16
    temperature: float = 1.0
    cfg: float = 1.0
    image_cfg: float = 1.0
    cache: CachePolicy | None = None
    text: TextSettings = field(default_factory=lambda: TextSettings(max_tokens=32, steps=32, block_length=32))

    @classmethod
    def usual(cls, defaults: Defaults) -> Setup:
        """What a checkpoint brings."""
        text = TextSettings(defaults.max_tokens, defaults.text_steps, defaults.block_length)
        return cls(FORMATS[0], defaults.steps, defaults.temperature, defaults.cfg, defaults.image_cfg, text=text)

    def words(self, case: Case) -> str:
        """The settings that matter to a case, for the table."""
        size = f"{self.cells[1] * CELL}x{self.cells[0] * CELL} px"
        if case.canvas is None:
            text = self.text
            blocks = f"{text.max_tokens} tokens in blocks of {text.block_length}"
            words = f"{size}, {blocks}, {text.steps} steps, temperature {text.temperature:g}, guidance {text.cfg:g}"
            return words if text.policy == EXACT else f"{words}, {_policy_words(text.policy)}"
        guidance = f"{self.cfg:g} text {self.image_cfg:g} image" if case.prompt.images else f"{self.cfg:g}"
        words = (
            f"{size}, {self.steps} step{'s' * (self.steps > 1)}, temperature {self.temperature:g}, guidance {guidance}"
        )
        return words if self.cache is None else f"{words}, cache: {_policy_words(self.cache)}"

    @property
    def exact(self) -> Setup:
        """The same without shortcuts."""
        return replace(self, cache=None, text=replace(self.text, policy=EXACT))


def _policy_words(policy: CachePolicy | TextPolicy) -> str:
    """Every setting of a policy by name."""
    values = {one.name.replace("_", " "): getattr(policy, one.name) for one in fields(policy)}
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


# ---------------------------------------------------------------------------------------------------------- the bench


class Bench:
    """A checkpoint, ready to be asked many cases at a time."""

    def __init__(self, model: Model, vq: VQ):
        self.model, self.vq = model, vq
        self.device = next(model.transformer.parameters()).device

    def encode(self, pictures: Tensor) -> Tensor:
        """Codes [B,H,W] of pictures [B,3,H*16,W*16]."""
        return encode(self.vq, pictures.to(self.device)).cpu()

    def fill(self, cases: Sequence[Case], setup: Setup) -> list[Canvas]:
        """The filled canvas [1,H,W] of every case; cases with prompts of the same length share a batch."""
        settings = ImageSettings(
            setup.steps, setup.temperature, cache=setup.cache, guidance=Guidance(setup.cfg, setup.image_cfg)
        )
        asked = [plan_image(self.model, case.prompt, case.canvas, settings) for case in cases]
        lengths = [(one.prefix.shape[1], *(branch.prefix.shape[1] for branch in one.branches)) for one in asked]
        filled, seed = {}, 0
        for places in _alike(lengths):
            canvas = _together([asked[place] for place in places], seed).run()
            filled |= dict(zip(places, _one_by_one(canvas), strict=True))
            seed += len(places)
        return [filled[place] for place in range(len(cases))]

    def flops(self, cases: Sequence[Case], setup: Setup) -> float:
        """Floating point operations of sampling a case, on average; making codes and pictures is not counted."""
        with FlopCounterMode(display=False, custom_mapping=_ATTENTION_ON_CPU) as counter:
            (self.answer if cases[0].canvas is None else self.fill)(cases, setup)
        return counter.get_total_flops() / len(cases)

    def show(self, cases: Sequence[Case], canvases: Sequence[Canvas]) -> Tensor:
        """The pictures [n,3,H*16,W*16] as a user gets them: outside the holes of an inpainted one the original."""
        pictures = [decode(self.vq, canvas.to(self.device)).cpu() for canvas in canvases]
        for place, case in enumerate(cases):
            if case.original is not None:
                mask = cells_to_mask(case.canvas.unknown, CELL)
                pictures[place] = composite(case.original[None], pictures[place], mask)
        return torch.cat(pictures)

    def answer(self, cases: Sequence[Case], setup: Setup) -> list[str]:
        """The words about the picture of every case; cases with the same question share a batch."""
        answers, seed = {}, 0
        for places in _alike([case.prompt.text for case in cases]):
            images = torch.cat([cases[place].prompt.images[0] for place in places])
            question, settings = cases[places[0]].prompt.text, replace(setup.text, seed=seed)
            answers |= dict(zip(places, plan_text(self.model, [images], question, settings).run(), strict=True))
            seed += len(places)
        return [answers[place] for place in range(len(cases))]


def _attention_flops(queries: torch.Size, keys: torch.Size, values: torch.Size, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(queries, keys, values)


# torch's counter knows the fused attention of GPUs only
_ATTENTION_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def load(folder: Path, device: str = "cpu") -> tuple[Bench, Setup]:
    """A checkpoint and its usual settings. Raises ValueError where it cannot be loaded."""
    found = find(folder)
    transformer = load_transformer(found, device=device, dtype=torch.float32)
    model = Model(transformer, load_tokenizer(found), found.table, found.defaults.sides)
    return Bench(model, load_vq(found, device=device)), Setup.usual(found.defaults)


def _together(plans: Sequence[ImagePlan], seed: int) -> ImagePlan:
    """Plans of single canvases, whose prompts and branches are equally long, as one batch."""
    branches = [
        Branch(torch.cat([one.prefix for one in same]), same[0].scale)
        for same in zip(*(plan.branches for plan in plans), strict=True)
    ]
    return replace(
        plans[0],
        prefix=torch.cat([plan.prefix for plan in plans]),
        branches=tuple(branches),
        canvas=_one_batch([plan.canvas for plan in plans]),
        settings=replace(plans[0].settings, seed=seed),
    )


def _one_batch(canvases: Sequence[Canvas]) -> Canvas:
    return Canvas(torch.cat([one.codes for one in canvases]), torch.cat([one.unknown for one in canvases]))


def _one_by_one(canvas: Canvas) -> list[Canvas]:
    return [Canvas(*parts) for parts in zip(canvas.codes.split(1), canvas.unknown.split(1), strict=True)]


def _alike(keys: Sequence[Hashable]) -> Iterator[list[int]]:
    """Places of equal keys, at most BATCH at a time."""
    groups: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    for places in groups.values():
        yield from (places[start : start + BATCH] for start in range(0, len(places), BATCH))


# ---------------------------------------------------------------------------------------------------------- measures


@dataclass(frozen=True)
class Measured:
    """What a row comes to. exact: share of cases that show what was asked; rate: what limits are about, where nothing
    else is said the share of cases that do and are clean."""

    count: int
    rate: float
    exact: float | None = None
    parts: dict[str, Measured] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def hits(bench: Bench, cases: Sequence[Case], setup: Setup) -> Measured:
    """How many cases come out as asked, and clean; kept cells must keep their codes."""
    if cases[0].canvas is None:
        answers = bench.answer(cases, setup)
        exact = good = [answer == case.asked for answer, case in zip(answers, cases, strict=True)]
        kept = [True] * len(cases)
    else:
        canvases = bench.fill(cases, setup)
        verdicts = judge_pictures(bench, cases, canvases)
        kept = [_kept(case.canvas, canvas) for case, canvas in zip(cases, canvases, strict=True)]
        exact = [matches(verdict.scene, case.asked) for verdict, case in zip(verdicts, cases, strict=True)]
        good = [a and v.clean and same for a, v, same in zip(exact, verdicts, kept, strict=True)]
    parts = sorted({case.part for case in cases})
    whole = _share(exact, good)
    if len(parts) > 1:
        own = {part: [case.part == part for case in cases] for part in parts}
        whole = replace(whole, parts={part: _share(_only(exact, of), _only(good, of)) for part, of in own.items()})
    if cases[0].original is not None:
        whole = replace(whole, remarks=(f"outside the hole all codes kept in {sum(kept)} of {len(kept)}",))
    return whole


def priced(bench: Bench, cases: Sequence[Case], setup: Setup) -> Measured:
    """As `hits`; a remark says what sampling a case costs, and what it does without shortcuts."""
    cost, exact = (bench.flops(cases[:COUNTED], one) for one in (setup, setup.exact))
    measured = hits(bench, cases, setup)
    words = f"{cost / 1e9:.2f} GFLOP a case counted, {cost / exact:.0%} of exact sampling's {exact / 1e9:.2f}"
    return replace(measured, remarks=(*measured.remarks, words))


def spread(bench: Bench, cases: Sequence[Case], setup: Setup) -> Measured:
    """How evenly the choices fall that one caption leaves open; rate: the least `evenness` of one. Only pictures that
    are right and clean are counted."""
    verdicts = judge_pictures(bench, cases, bench.fill(cases, setup))
    scenes = [v.scene for v, case in zip(verdicts, cases, strict=True) if v.clean and matches(v.scene, case.asked)]
    rates, remarks = [], [f"{len(set(scenes))} different scenes in {len(scenes)} pictures, right and clean"]
    for name, values in CHOICES.items():
        counts = Counter(getattr(scene, name) for scene in scenes)
        rates.append(evenness([counts[value] for value in values]))
        shares = ", ".join(f"{value} {counts[value] / max(len(scenes), 1):.0%}" for value in values)
        remarks.append(f"{name}: {shares}; evenness {rates[-1]:.0%}")
    return Measured(len(cases), min(rates), remarks=tuple(remarks))


def evenness(counts: Sequence[int]) -> float:
    """1 where all choices come equally often, 0 where one comes always or another never: where the most frequent of k
    has the share s, (1 - s) / (1 - 1/k). 0.5 is a share of 75 % for two choices, of 58 % for six."""
    if not all(counts):
        return 0.0
    return (1 - max(counts) / sum(counts)) / (1 - 1 / len(counts))


def sameness(bench: Bench, cases: Sequence[Case], setup: Setup) -> Measured:
    """rate: the share of seeds that give the very codes of the first."""
    first, *others = [canvas.codes for canvas in bench.fill(cases, setup)]
    same = [True, *(torch.equal(codes, first) for codes in others)]
    return Measured(len(same), sum(same) / len(same), remarks=("counted: pictures with the codes of the first seed's",))


def judge_pictures(bench: Bench, cases: Sequence[Case], canvases: Sequence[Canvas]) -> list[Verdict]:
    """What the canvases of one task show."""
    return judge_all(bench.show(cases, canvases), edges=cases[0].edges)


def _kept(before: Canvas, after: Canvas) -> bool:
    return torch.equal(before.codes[~before.unknown], after.codes[~before.unknown])


def _share(exact: list[bool], good: list[bool]) -> Measured:
    return Measured(len(good), sum(good) / len(good), sum(exact) / len(exact))


def _only(values: list[bool], wanted: list[bool]) -> list[bool]:
    return [value for value, want in zip(values, wanted, strict=True) if want]


# ---------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Row:
    """A line of the table: what is asked, how it is sampled and measured, and the limits of its rate. times: how many
    times the usual number of cases."""

    name: str
    ask: Callable[[Examiner, int], Case]
    setup: Setup
    least: float = 0.0
    most: float = 1.0
    measure: Callable[[Bench, Sequence[Case], Setup], Measured] = hits
    times: int = 1

    def run(self, bench: Bench, count: int = CASES) -> tuple[Measured, str]:
        """The measurement over `count` cases, and its settings in words."""
        examiner = Examiner(bench.encode, *self.setup.cells)
        cases = [self.ask(examiner, number) for number in range(count * self.times)]
        return self.measure(bench, cases, self.setup), self.setup.words(cases[0])

    def passes(self, measured: Measured) -> bool:
        """Whether the rate is within the limits."""
        return self.least <= measured.rate <= self.most


def rows(usual: Setup) -> list[Row]:
    """The whole table. Open captions are sampled at temperature 1, whatever is usual: there are choices to make."""
    free = replace(usual, temperature=1.0)
    return [*_tasks(usual, free), *_variants(usual, free), *_presets(usual, free), *_controls(usual, free)]


def _tasks(usual: Setup, free: Setup) -> list[Row]:
    return [
        Row("generate full", Examiner.full, usual, least=0.95),
        Row("generate full, held out", Examiner.held_out, usual, least=0.85),
        Row("generate open", Examiner.open, free, least=0.80),
        Row("describe", Examiner.describe, usual, least=0.95),
        Row("describe, held out", Examiner.describe_held_out, usual, least=0.85),
        Row("edit", Examiner.edit, usual, least=0.90, times=5),
        Row("edge map", Examiner.edge_map, usual, least=0.95),
        Row("edge map to image", Examiner.from_edges, usual, least=0.90),
        Row("inpaint", Examiner.hole, usual, least=0.90),
    ]


def _variants(usual: Setup, free: Setup) -> list[Row]:
    """The other format, the published cache, half the steps."""

    def wide(setup: Setup) -> Setup:
        return replace(setup, cells=FORMATS[1])

    def cached(setup: Setup) -> Setup:
        return replace(setup, cache=PUBLISHED_CACHE)

    def half(setup: Setup) -> Setup:
        return replace(setup, steps=max(setup.steps // 2, 1))

    made = [Row("describe, other format", Examiner.describe, wide(usual), least=0.95)]
    for name, change in {"other format": wide, "ML-Cache": cached, "half the steps": half}.items():
        made += [
            Row(f"generate full, {name}", Examiner.full, change(usual), least=0.90),
            Row(f"generate open, {name}", Examiner.open, change(free), least=0.70),
            Row(f"edit, {name}", Examiner.edit, change(usual), least=0.80),
        ]
    return made


def _presets(usual: Setup, free: Setup) -> list[Row]:
    """What each preset of ML-Cache costs and saves, where decisions are made one after the other, and of answers."""
    made = []
    for name, policy in PRESETS.items():
        if policy is not None:
            cached = [replace(setup, cache=policy) for setup in (free, usual)]
            made += [
                Row(f"generate open, cache {name}", Examiner.open, cached[0], least=0.35, measure=priced),
                Row(f"edit, cache {name}", Examiner.edit, cached[1], least=0.90, measure=priced),
            ]
    for name, policy in SPEEDS.items():
        if policy != EXACT:
            quick = replace(usual, text=replace(usual.text, policy=policy))
            made += [Row(f"describe, {name}", Examiner.describe, quick, least=0.95, measure=priced)]
    return made


def _controls(usual: Setup, free: Setup) -> list[Row]:
    """What must fail, and what the noise is for."""
    one, stale = replace(free, steps=1), replace(free, cache=NEVER_REFRESHED)
    return [
        Row("control: open in one step", Examiner.open, one, most=0.26),
        Row("control: open, cache never refreshed", Examiner.open, stale, most=0.40),
        Row("control: full, judged by another caption", Examiner.mistaken, usual, most=0.02),
        Row("spread over seeds", Examiner.bare, free, least=0.5, measure=spread),
        Row("one picture at temperature 0", Examiner.bare, replace(free, temperature=0.0), 1.0, measure=sameness),
    ]


def lines(row: Row, measured: Measured, settings: str) -> Iterator[str]:
    """A row of the table as text: one line, one more for each part and remark."""
    limit = f">= {row.least:.0%}" if row.least else f"<= {row.most:.0%}"
    yield _line(row.name, measured, f"{limit:>8}  {'ok  ' if row.passes(measured) else 'MISS'}  {settings}")
    yield from (_line(_INDENT + name, part) for name, part in measured.parts.items())
    yield from (_INDENT + remark for remark in measured.remarks)


def _line(name: str, measured: Measured, end: str = "") -> str:
    exact = "-" if measured.exact is None else f"{measured.exact:.1%}"
    return f"{name:<{_NAME}}{measured.count:>5}{exact:>8}{measured.rate:>11.1%}  {end}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Hands back 1 where a row misses its limit."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        bench, usual = load(options.checkpoint, options.device)
    except ValueError as error:
        parser.error(str(error))
    given = {name: getattr(options, name) for name in _SETTINGS}
    every = rows(replace(usual, **{name: value for name, value in given.items() if value is not None}))
    table = [row for row in every if not options.rows or any(words in row.name for words in options.rows)]
    if not table or options.cases < 1:
        names = ", ".join(row.name for row in every)
        parser.error(f"There is nothing to measure: at least 1 case is needed, and some of the rows {names}.")
    print(f"{'':<{_NAME}}{'cases':>5}{'exact':>8}{'and clean':>11}  {'wanted':>8}        settings")
    missed = 0
    for row in table:
        measured, settings = row.run(bench, options.cases)
        print(*lines(row, measured, settings), sep="\n", flush=True)
        missed += not row.passes(measured)
    print(f"{len(table) - missed} of {len(table)} rows are within their limits.")
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dimoo_core.nano.rates", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=NANO, metavar="FOLDER", help="another nano (the built-in)")
    parser.add_argument("--cases", type=int, default=CASES, metavar="N", help=f"cases per row ({CASES})")
    parser.add_argument("--rows", nargs="+", metavar="WORDS", help="only rows whose name has one of these in it")
    parser.add_argument("--device", default="cpu", help="where to compute (cpu)")
    for name, kind in _SETTINGS.items():
        text = f"{name} in place of the checkpoint's own"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
