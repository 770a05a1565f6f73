"""How often DiMOO-nano is right: `python -m dimoo_core.nano.table` prints the table; exit 1 if a row misses its limit.

A picture counts if the judge sees in it what was asked and finds it clean; an answer counts if it is the exact caption.
The settings are the checkpoint's defaults unless a row is about others; the last column prints them. The n cases of a
row are sampled with the seeds 0 to n - 1, and all rows of a task ask the same.

Controls must fail, or the other rows prove nothing: captions that leave something open in one step, or with a cache
that is never refreshed; pictures judged by another caption.

Rows about a cache's presets also say what it saves: the counted floating point operations of sampling a case, matrix
products and attention, compared with exact sampling.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ..checkpoint.find import NANO
from ..evaluation.runner import Runner, Setup
from ..evaluation.table import (
    Ask,
    Judgement,
    Measured,
    ResultFile,
    Row,
    evenness,
    heading,
    sameness,
    share_right,
    with_cost,
)
from ..provenance import versions
from ..sampling.ml_cache import PRESETS, PUBLISHED, CachePolicy
from ..sampling.text_cache import EXACT, SPEEDS
from .cases import Examiner, NanoCase
from .judge import Verdict, judge_all, matches
from .scenes import BACKGROUNDS, COLOURS, FORMATS, PLACES, SIZES

CASES = 210  # 15 ways to leave something open, 5 kinds of edit, 5 questions: each the same number of times
NEVER_REFRESHED = CachePolicy(ratio=0.98, warmup=0.0, refresh_interval=10_000)
CHOICES = {"size": tuple(SIZES), "colour": tuple(COLOURS), "place": PLACES, "background": tuple(BACKGROUNDS)}

_SETTINGS: dict[str, type] = {"steps": int, "temperature": float, "cfg": float, "image_cfg": float}


def load(folder: Path, device: str = "cpu") -> tuple[Runner, Setup]:
    """A checkpoint of nano's world and its default settings. Raises ValueError if it cannot be loaded."""
    runner, defaults = Runner.load(folder, device)
    return runner, Setup.usual(defaults, FORMATS[0])


# ---------------------------------------------------------------------------------------------------------- measures


def verdicts(cases: Sequence[NanoCase], pictures: Tensor) -> list[Verdict]:
    """What the pictures [n,3,h,w] of one task's cases show."""
    return judge_all(pictures, edges=cases[0].edges)


def judgements(cases: Sequence[NanoCase], pictures: Tensor) -> list[Judgement]:
    """Whether each picture shows what its case asked, and nothing else."""
    seen = zip(verdicts(cases, pictures), cases, strict=True)
    return [Judgement(matches(verdict.scene, case.asked), verdict.clean) for verdict, case in seen]


right = partial(share_right, judge=judgements)
priced = partial(with_cost, measure=right)


def spread(runner: Runner, cases: Sequence[NanoCase], setup: Setup) -> Measured:
    """How evenly the choices fall that one caption leaves open; rate: the least `evenness` of one. Only pictures that
    are right and clean are counted."""
    seen = verdicts(cases, runner.show(cases, runner.fill(cases, setup)))
    scenes = [v.scene for v, case in zip(seen, cases, strict=True) if v.clean and matches(v.scene, case.asked)]
    rates, remarks = [], [f"{len(set(scenes))} different scenes in {len(scenes)} pictures, right and clean"]
    for name, values in CHOICES.items():
        counts = Counter(getattr(scene, name) for scene in scenes)
        rates.append(evenness([counts[value] for value in values]))
        shares = ", ".join(f"{value} {counts[value] / max(len(scenes), 1):.0%}" for value in values)
        remarks.append(f"{name}: {shares}; evenness {rates[-1]:.0%}")
    return Measured(len(cases), min(rates), remarks=tuple(remarks))


# ---------------------------------------------------------------------------------------------------------- the table


def asks(method: Callable[[Examiner, int], NanoCase]) -> Ask[NanoCase]:
    """An examiner's method as what a row asks; every row has an examiner of its own, so all ask the same."""

    def ask(runner: Runner, grid: tuple[int, int], count: int) -> list[NanoCase]:
        examiner = Examiner(runner.encode, *grid)
        return [method(examiner, number) for number in range(count)]

    return ask


FULL, HELD_OUT, OPEN, BARE = (asks(one) for one in (Examiner.full, Examiner.held_out, Examiner.open, Examiner.bare))
DESCRIBE, DESCRIBE_HELD_OUT = asks(Examiner.describe), asks(Examiner.describe_held_out)
EDIT, EDGE_MAP, FROM_EDGES = asks(Examiner.edit), asks(Examiner.edge_map), asks(Examiner.from_edges)
HOLE, MISTAKEN = asks(Examiner.hole), asks(Examiner.mistaken)


def rows(usual: Setup) -> list[Row[NanoCase]]:
    """The whole table. Open captions are sampled at temperature 1, whatever is usual: there are choices to make."""
    free = replace(usual, temperature=1.0)
    return [*_tasks(usual, free), *_variants(usual, free), *_presets(usual, free), *_controls(usual, free)]


def _tasks(usual: Setup, free: Setup) -> list[Row[NanoCase]]:
    return [
        Row("generate full", FULL, usual, right, least=0.95),
        Row("generate full, held out", HELD_OUT, usual, right, least=0.85),
        Row("generate open", OPEN, free, right, least=0.80),
        Row("describe", DESCRIBE, usual, right, least=0.95),
        Row("describe, held out", DESCRIBE_HELD_OUT, usual, right, least=0.85),
        Row("edit", EDIT, usual, right, least=0.90, times=5),
        Row("edge map", EDGE_MAP, usual, right, least=0.95),
        Row("edge map to image", FROM_EDGES, usual, right, least=0.90),
        Row("inpaint", HOLE, usual, right, least=0.90),
    ]


def _variants(usual: Setup, free: Setup) -> list[Row[NanoCase]]:
    """The other format, the published cache, half the steps."""

    def wide(setup: Setup) -> Setup:
        return replace(setup, grid=FORMATS[1])

    def cached(setup: Setup) -> Setup:
        return replace(setup, cache=PUBLISHED)

    def half(setup: Setup) -> Setup:
        return replace(setup, steps=max(setup.steps // 2, 1))

    made = [Row("describe, other format", DESCRIBE, wide(usual), right, least=0.95)]
    for name, change in {"other format": wide, "ML-Cache": cached, "half the steps": half}.items():
        made += [
            Row(f"generate full, {name}", FULL, change(usual), right, least=0.90),
            Row(f"generate open, {name}", OPEN, change(free), right, least=0.70),
            Row(f"edit, {name}", EDIT, change(usual), right, least=0.80),
        ]
    return made


def _presets(usual: Setup, free: Setup) -> list[Row[NanoCase]]:
    """What each preset of ML-Cache costs and saves, where decisions are made one after the other, and of answers."""
    made = []
    for name, policy in PRESETS.items():
        if policy is not None:
            open_setup, edit_setup = (replace(setup, cache=policy) for setup in (free, usual))
            made += [
                Row(f"generate open, cache {name}", OPEN, open_setup, priced, least=0.35),
                Row(f"edit, cache {name}", EDIT, edit_setup, priced, least=0.90),
            ]
    for name, speed in SPEEDS.items():
        if speed != EXACT:
            quick = replace(usual, text=replace(usual.text, policy=speed))
            made += [Row(f"describe, {name}", DESCRIBE, quick, priced, least=0.95)]
    return made


def _controls(usual: Setup, free: Setup) -> list[Row[NanoCase]]:
    """What must fail, and what the noise is for."""
    one, stale = replace(free, steps=1), replace(free, cache=NEVER_REFRESHED)
    return [
        Row("control: open in one step", OPEN, one, right, most=0.26),
        Row("control: open, cache never refreshed", OPEN, stale, right, most=0.40),
        Row("control: full, judged by another caption", MISTAKEN, usual, right, most=0.02),
        Row("spread over seeds", BARE, free, spread, least=0.5),
        Row("one picture at temperature 0", BARE, replace(free, temperature=0.0), sameness, least=1.0),
    ]


# -------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where a row misses its limit."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        runner, usual = load(options.checkpoint, options.device)
    except ValueError as error:
        parser.error(str(error))
    given = {name: getattr(options, name) for name in _SETTINGS}
    every = rows(replace(usual, **{name: value for name, value in given.items() if value is not None}))
    table = [row for row in every if not options.rows or any(words in row.name for words in options.rows)]
    if options.cases < 1:
        parser.error(f"Got --cases {options.cases}, expected at least 1.")
    if not table:
        names = ", ".join(row.name for row in every)
        parser.error(f"No row has {' or '.join(options.rows)} in its name; choose among: {names}.")
    made_with = {"command": "python -m dimoo_core.nano.table", "commit": options.commit}
    made_with |= {"python": platform.python_version(), **versions()}
    try:
        file = ResultFile(options.json, made_with) if options.json else None
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(heading())
    missed = 0
    for row in table:
        known = file.get(row, options.cases) if file is not None and options.resume else None
        result = known or row.run(runner, options.cases)
        print(*result.lines(), sep="\n", flush=True)
        missed += not result.passes
        if file is not None and known is None:
            file.add(result, [one.name for one in every])
    print(f"{len(table) - missed} of {len(table)} rows are within their limits.")
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m dimoo_core.nano.table", description=summary)
    parser.add_argument("--checkpoint", type=Path, default=NANO, metavar="FOLDER", help="another nano (the built-in)")
    parser.add_argument("--cases", type=int, default=CASES, metavar="N", help=f"cases per row ({CASES})")
    parser.add_argument("--rows", nargs="+", metavar="WORDS", help="only rows whose name has one of these in it")
    parser.add_argument("--device", default="cpu", help="where to compute (cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also keep the results in this file, row by row")
    parser.add_argument("--commit", default="unknown", metavar="ID", help="the commit to note beside each result")
    parser.add_argument("--resume", action="store_true", help="reuse rows that FILE has from the same commit")
    for name, kind in _SETTINGS.items():
        text = f"{name} instead of the checkpoint's own"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
