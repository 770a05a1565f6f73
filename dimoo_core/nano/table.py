"""How often DiMOO-nano is right: `python -m dimoo_core.nano.table` prints the table; exit 1 if a row misses its limit.

A picture counts if the judge sees in it what was asked and finds it clean; an answer counts if it is the exact caption.
The settings are the checkpoint's defaults unless a row is about others; the last column prints them. The n cases of a
row are sampled with the seeds 0 to n - 1, and all rows of a task ask the same. Rows of samplers ask a second set of
cases as well, with seeds from 1000 on.

Controls must fail, or the other rows prove nothing: captions that leave something open in one step, or with a cache
that is never refreshed; pictures judged by another caption; questions about a picture that is not shown.

Rows of samplers and presets also say what a case costs: the counted floating point operations of sampling it, matrix
products and attention, compared with exact sampling. Beside every sampler's open captions stands the row `spread` that
says whether it still chooses: one that settles on a few likely scenes can be clean in all of them.

With `--only KEY ...` each row is followed by `rate KEY PERCENT`, its clean share or least evenness, and, where work was
counted, by `work KEY PERCENT` of exact sampling's.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint.find import NANO
from ..evaluation.runner import Runner, Setup
from ..evaluation.table import (
    Ask,
    Judgement,
    Measure,
    Measured,
    Result,
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
from .captions import NUMBERS, PLURALS, RELATIONS
from .cases import GENEVAL, Examiner, NanoCase
from .judge import Verdict, judge_all, matches
from .scenes import BACKGROUNDS, COLOURS, FORMATS, PLACES, SIZES

CASES = 210  # 15 ways to leave something open, 5 kinds of edit, 5 questions: each the same number of times
BOTH = (0, 1000)  # the first seeds of the two sets of cases of a sampler's rows
SEVERAL = (*NUMBERS, *PLURALS.values(), *RELATIONS)  # words for scenes of several figures
NEVER_REFRESHED = CachePolicy(ratio=0.98, warmup=0.0, refresh_interval=10_000)
CHOICES = {"size": tuple(SIZES), "colour": tuple(COLOURS), "place": PLACES, "background": tuple(BACKGROUNDS)}


@dataclass(frozen=True)
class Sampler:
    """What a sampler changes of the usual settings. least: of open captions, what must be right and clean. words: what
    the names of its rows end with."""

    settings: Mapping[str, Any]
    words: str
    least: float = 0.0

    def of(self, setup: Setup) -> Setup:
        """A setup with this sampler."""
        return replace(setup, **self.settings)


_OPEN = 0.78  # the aim of exact sampling, which the aims of others follow
SAMPLERS = {  # the number in a key is that of all passes; rows that are older than samplers keep their names
    "exact_16": Sampler({"steps": 16}, "", _OPEN),
    "exact_8": Sampler({"steps": 8}, ", half the steps", 0.70),
    "polish_6": Sampler(  # without shared noise it never draws one of the backgrounds
        {"steps": 4, "polish": 2, "shared_noise": 0.25}, ", 4 steps and 2 polishing, shared noise", _OPEN - 0.04
    ),
    "polish_8": Sampler({"steps": 6, "polish": 2}, ", 6 steps and 2 polishing", 1 - 0.75 * (1 - _OPEN)),
    "polish_16": Sampler({"steps": 14, "polish": 2}, ", 14 steps and 2 polishing", 1 - 0.5 * (1 - _OPEN)),
    "corrections_16": Sampler({"steps": 16, "corrections": 1}, ", corrections", 1 - 0.5 * (1 - _OPEN)),
    "corrections_polish_16": Sampler(
        {"steps": 14, "polish": 2, "corrections": 1}, ", corrections, 14 steps and 2 polishing"
    ),
    "halton_16": Sampler({"steps": 16, "order": "halton"}, ", Halton order"),
    "halton_polish_8": Sampler({"steps": 6, "polish": 2, "order": "halton"}, ", Halton order 6 + 2"),
    "halton_polish_16": Sampler({"steps": 14, "polish": 2, "order": "halton"}, ", Halton order 14 + 2"),
    "random_polish_16": Sampler({"steps": 14, "polish": 2, "order": "random"}, ", random order 14 + 2"),
    "shared_4": Sampler({"steps": 4, "shared_noise": 1.0}, ", shared noise, 4 steps"),
    "shared_8": Sampler({"steps": 8, "shared_noise": 1.0}, ", shared noise, 8 steps"),
    "published": Sampler({"steps": 16, "cache": PUBLISHED}, ", ML-Cache", 0.70),
}
CACHED = {name: policy for name, policy in PRESETS.items() if policy is not None}
SAMPLERS |= {name: Sampler({"steps": 16, "cache": cache}, f", cache {name}", 0.35) for name, cache in CACHED.items()}
EXACT_16, BEST = SAMPLERS["exact_16"], SAMPLERS["halton_polish_16"]  # GenEval's kinds are asked with both
_GENEVAL_AIMS = dict.fromkeys(GENEVAL, 0.90) | {"two_objects": 0.85}
_HELD_OUT = 0.05  # less is asked of combinations that training never saw

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


def spread(runner: Runner, cases: Sequence[NanoCase], setup: Setup) -> Measured:
    """How evenly the choices fall that one caption leaves open; rate: the least `evenness` of one. Only pictures that
    are right and clean are counted."""
    seen = verdicts(cases, runner.show(cases, runner.fill(cases, setup)))
    scenes = [v.scene for v, case in zip(seen, cases, strict=True) if v.clean and matches(v.scene, case.asked)]
    rates, remarks = [], [f"{len(set(scenes))} different scenes in {len(scenes)} pictures, right and clean"]
    for name, values in CHOICES.items():
        counts = Counter(getattr(scene if name == "background" else scene.figure, name) for scene in scenes)
        rates.append(evenness([counts[value] for value in values]))
        shares = ", ".join(f"{value} {counts[value] / max(len(scenes), 1):.0%}" for value in values)
        remarks.append(f"{name}: {shares}; evenness {rates[-1]:.0%}")
    return Measured(len(cases), min(rates), remarks=tuple(remarks))


# ---------------------------------------------------------------------------------------------------------- the table


def asks(method: Callable[[Examiner, int], NanoCase], *, several: bool = False) -> Ask[NanoCase]:
    """An examiner's method as what a row asks; every row has an examiner of its own, so all ask the same.

    several: the scenes have several figures. Asking then raises ValueError where the model lacks words for them.
    """

    def ask(runner: Runner, setup: Setup, count: int) -> list[NanoCase]:
        unknown = unknown_words(runner) if several else []
        if unknown:
            raise ValueError(
                f"This nano does not know the words {', '.join(unknown)}; expected one that has learnt scenes of "
                "several figures: build one with python -m dimoo_core train nano."
            )
        examiner = Examiner(runner.encode, *setup.grid, seed=setup.seed)
        return [method(examiner, number) for number in range(count)]

    return ask


def unknown_words(runner: Runner) -> list[str]:
    """Words for scenes of several figures that the model does not know: none or most of SEVERAL."""
    return [word for word in SEVERAL if not runner.model.tokenizer.knows(word)]


FULL, HELD_OUT, OPEN, BARE = (asks(one) for one in (Examiner.full, Examiner.held_out, Examiner.open, Examiner.bare))
DESCRIBE, DESCRIBE_HELD_OUT = asks(Examiner.describe), asks(Examiner.describe_held_out)
EDIT, EDGE_MAP, FROM_EDGES = asks(Examiner.edit), asks(Examiner.edge_map), asks(Examiner.from_edges)
HOLE, MISTAKEN = asks(Examiner.hole), asks(Examiner.mistaken)
FULL_PAIRS, HELD_OUT_PAIRS = (asks(one, several=True) for one in (Examiner.full_pairs, Examiner.held_out_pairs))
DESCRIBE_PAIRS = asks(Examiner.describe_pairs, several=True)
DESCRIBE_PAIRS_HELD_OUT = asks(Examiner.describe_pairs_held_out, several=True)
EDIT_PAIRS, MISTAKEN_KINDS = (asks(one, several=True) for one in (Examiner.edit_pairs, Examiner.mistaken_kinds))
QUESTIONS, MISTAKEN_QUESTIONS = (asks(one, several=True) for one in (Examiner.question, Examiner.mistaken_question))


def rows(usual: Setup) -> list[Row[NanoCase]]:
    """The whole table. Open captions are sampled at temperature 1, whatever is usual: there are choices to make."""
    free = replace(usual, temperature=1.0)
    return [
        *_tasks(usual),
        *_geneval(free),
        *_samplers(free),
        *_variants(usual),
        *_texts(usual),
        *_controls(usual, free),
    ]


def _priced(setup: Setup) -> Measure[NanoCase]:
    """`right`, with the work beside exact sampling in 16 steps."""
    return partial(with_cost, measure=right, exact=EXACT_16.of(setup))


def _tasks(usual: Setup) -> list[Row[NanoCase]]:
    return [
        Row("full", "generate full", FULL, usual, right, least=0.98),
        Row("held_out", "generate full, held out", HELD_OUT, usual, right, least=0.95),
        Row("full_pairs", "generate full, two or three", FULL_PAIRS, usual, right, least=0.95),
        Row("held_out_pairs", "generate full, two or three, held out", HELD_OUT_PAIRS, usual, right, least=0.90),
        Row("describe", "describe", DESCRIBE, usual, right, least=0.97),
        Row("describe_held_out", "describe, held out", DESCRIBE_HELD_OUT, usual, right, least=0.85),
        Row("describe_pairs", "describe two or three", DESCRIBE_PAIRS, usual, right, least=0.95),
        Row(
            "describe_pairs_held_out",
            "describe two or three, held out",
            DESCRIBE_PAIRS_HELD_OUT,
            usual,
            right,
            least=0.85,
        ),
        Row("questions", "questions", QUESTIONS, usual, right, least=0.90),
        Row("edits", "edit", EDIT, usual, right, least=0.97, times=5),
        Row("edits_pairs", "edit one of two", EDIT_PAIRS, usual, right, least=0.90),
        Row("edge_map", "edge map", EDGE_MAP, usual, right, least=0.95),
        Row("from_edges", "edge map to image", FROM_EDGES, usual, right, least=0.90),
        Row("inpaint", "inpaint", HOLE, usual, right, least=0.90),
    ]


def _geneval(free: Setup) -> list[Row[NanoCase]]:
    """GenEval's six kinds of captions: with the best sampler, with exact sampling, and combinations never seen."""
    made, measure = [], _priced(free)
    for kind in GENEVAL:
        several = kind not in ("single", "colours")
        ask, held_out = (asks(getattr(Examiner, name), several=several) for name in (kind, f"{kind}_held_out"))
        words, least = kind.replace("_", " "), _GENEVAL_AIMS[kind]
        best, exact = BEST.of(free), EXACT_16.of(free)
        made += [
            Row(kind, f"{words}{BEST.words}", ask, best, measure, least=least, seeds=BOTH),
            Row(f"{kind}_exact_16", f"{words}, exact", ask, exact, measure, seeds=BOTH),
            Row(f"{kind}_held_out", f"{words}, held out", held_out, best, right, least=least - _HELD_OUT),
        ]
    return made


def _samplers(free: Setup) -> list[Row[NanoCase]]:
    """What each sampler makes of open captions, and how evenly it chooses."""
    made, measure = [], _priced(free)
    for name, one in SAMPLERS.items():
        setup = one.of(free)
        made += [
            Row(f"open_{name}", f"generate open{one.words}", OPEN, setup, measure, least=one.least, seeds=BOTH),
            Row(f"spread_{name}", f"spread over seeds{one.words}", BARE, setup, spread, least=0.5, seeds=BOTH),
        ]
    return made


def _variants(usual: Setup) -> list[Row[NanoCase]]:
    """Full captions and edits with other samplers, and in the other format."""
    wide, free = replace(usual, grid=FORMATS[1]), replace(usual, grid=FORMATS[1], temperature=1.0)
    made = [
        Row("describe_wide", "describe, other format", DESCRIBE, wide, right, least=0.95),
        Row("full_wide", "generate full, other format", FULL, wide, right, least=0.90),
        Row("full_pairs_wide", "generate full, two or three, other format", FULL_PAIRS, wide, right, least=0.90),
        Row("open_wide", "generate open, other format", OPEN, free, right, least=0.70),
        Row("edits_wide", "edit, other format", EDIT, wide, right, least=0.80),
    ]
    for name in ("published", "exact_8"):
        one = SAMPLERS[name]
        made += [
            Row(f"full_{name}", f"generate full{one.words}", FULL, one.of(usual), right, least=0.90, seeds=BOTH),
            Row(f"edits_{name}", f"edit{one.words}", EDIT, one.of(usual), right, least=0.80, seeds=BOTH),
        ]
    measure = _priced(usual)
    for name in ("polish_8", "corrections_16", *CACHED):
        one = SAMPLERS[name]
        made.append(Row(f"edits_{name}", f"edit{one.words}", EDIT, one.of(usual), measure, least=0.90, seeds=BOTH))
    return made


def _texts(usual: Setup) -> list[Row[NanoCase]]:
    """What the presets of answers cost and save, and questions answered in one pass."""
    made, measure = [], partial(with_cost, measure=right, exact=usual)
    for name, speed in SPEEDS.items():
        if speed != EXACT:
            quick = replace(usual, text=replace(usual.text, policy=speed))
            made += [
                Row(f"describe_{name}", f"describe, {name}", DESCRIBE, quick, measure, least=0.95),
                Row(f"describe_pairs_{name}", f"describe two or three, {name}", DESCRIBE_PAIRS, quick, measure),
                Row(f"questions_{name}", f"questions, {name}", QUESTIONS, quick, measure),
            ]
    blocks = usual.text.max_tokens // usual.text.block_length
    at_once = replace(usual, text=replace(usual.text, steps=blocks))
    made.append(Row("questions_one_pass", "questions, in one pass", QUESTIONS, at_once, measure))
    return made


def _controls(usual: Setup, free: Setup) -> list[Row[NanoCase]]:
    """What must fail, and what the noise is for."""
    one, stale, best = replace(free, steps=1), replace(free, cache=NEVER_REFRESHED), BEST.of(free)
    still = replace(free, temperature=0.0)
    return [
        Row("control_one_step", "control: open in one step", OPEN, one, right, most=0.26),
        Row("control_stale", "control: open, cache never refreshed", OPEN, stale, right, most=0.40),
        Row("control_full", "control: full, judged by another caption", MISTAKEN, usual, right, most=0.02),
        Row("control_kinds", "control: GenEval's kinds, by another caption", MISTAKEN_KINDS, best, right, most=0.02),
        Row("control_questions", "control: questions, another picture", MISTAKEN_QUESTIONS, usual, right, most=0.60),
        Row("same_at_0", "one picture at temperature 0", BARE, still, sameness, least=1.0),
    ]


# -------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where a row misses its limit, or cannot be measured."""
    parser = _parser()
    options = parser.parse_args(arguments)
    made_with = {"command": "python -m dimoo_core.nano.table", "commit": options.commit}
    made_with |= {"python": platform.python_version(), **versions()}
    try:
        runner, usual = load(options.checkpoint, options.device)
        given = {name: getattr(options, name) for name in _SETTINGS}
        every = rows(replace(usual, **{name: value for name, value in given.items() if value is not None}))
        table = _chosen(every, options)
        file = ResultFile(options.json, made_with) if options.json else None
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(heading())
    passed = 0
    for row in table:
        known = file.get(row, options.cases) if file is not None and options.resume else None
        try:
            result = known or row.run(runner, options.cases)
        except ValueError as error:
            print(f"{row.key}: {error}", file=sys.stderr, flush=True)
            continue
        print(*result.lines(), *(_short(result) if options.only else ()), sep="\n", flush=True)
        passed += result.passes
        if file is not None and known is None:
            file.add(result, [one.name for one in every])
    print(f"{passed} of {len(table)} rows are within their limits.")
    return 0 if passed == len(table) else 1


def _chosen(every: Sequence[Row[NanoCase]], options: argparse.Namespace) -> list[Row[NanoCase]]:
    """The rows that are asked for, with their seeds. Raises ValueError where none is, or for an option out of range."""
    if options.cases < 1:
        raise ValueError(f"Got --cases {options.cases}, expected at least 1.")
    if options.seeds is not None and options.seeds < 0:
        raise ValueError(f"Got --seeds {options.seeds}, expected 0 or more.")
    keys = [row.key for row in every]
    unknown = [key for key in options.only or () if key not in keys]
    if unknown:
        raise ValueError(f"No row has the key {', '.join(unknown)}; choose among: {', '.join(keys)}.")
    table = [row for row in every if not options.only or row.key in options.only]
    table = [row for row in table if not options.rows or any(words in row.name for words in options.rows)]
    if not table:
        names = ", ".join(row.name for row in every)
        raise ValueError(f"No row has {' or '.join(options.rows)} in its name; choose among: {names}.")
    first = options.seeds if options.seeds is not None else 0
    return [replace(row, seeds=(first,)) for row in table] if options.only or options.seeds is not None else table


def _short(result: Result) -> Iterator[str]:
    """A row's figures by its key, in percent."""
    yield f"rate {result.key} {100 * result.rate:.1f}"
    if result.measured.work is not None:
        yield f"work {result.key} {100 * result.measured.work.share:.1f}"


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m dimoo_core.nano.table", description=summary)
    parser.add_argument("--checkpoint", type=Path, default=NANO, metavar="FOLDER", help="another nano (the built-in)")
    parser.add_argument("--cases", type=int, default=CASES, metavar="N", help=f"cases per row ({CASES})")
    parser.add_argument("--rows", nargs="+", metavar="WORDS", help="only rows whose name has one of these in it")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="only these rows, each with one set of cases")
    parser.add_argument("--seeds", type=int, metavar="N", help="one set of cases, chosen and sampled from seed N on")
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
