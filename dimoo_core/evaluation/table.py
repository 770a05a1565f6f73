"""A table of how often a model is right: its rows, their limits, and what is measured for them.

A `Row` asks a number of cases, samples them and measures how many are right; a control is a row that must fail, or the
other rows prove nothing. What a right picture is says the caller's judge. Results print as text and are kept as JSON,
row by row, so that a stopped measurement can be resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..files import atomic_write_text
from ..sequence.canvas import Canvas
from .runner import Case, Runner, Setup

COUNTED = 15  # cases whose operations are counted: these depend only on the lengths of prompts

_NAME, _INDENT = 44, "    "

C = TypeVar("C", bound=Case)
Ask = Callable[[Runner, Setup, int], Sequence[C]]  # (runner, with its grid and seed, how many cases) -> cases


@dataclass(frozen=True)
class Judgement:
    """Whether a picture shows what was asked, and whether it shows nothing else."""

    exact: bool
    clean: bool

    @property
    def right(self) -> bool:
        return self.exact and self.clean


Judge = Callable[[Sequence[C], Tensor], Sequence[Judgement]]  # (cases, their pictures [n,3,h,w]) -> one each


@dataclass(frozen=True)
class Work:
    """The floating point operations that sampling a case takes, counted, and those of exact sampling in `steps`."""

    flops: float
    exact: float
    steps: int

    @property
    def share(self) -> float:
        """Of exact sampling's."""
        return self.flops / self.exact

    @property
    def passes(self) -> float:
        """As many passes of exact sampling take as long."""
        return self.share * self.steps


@dataclass(frozen=True)
class Measured:
    """The outcome of a row. exact: share of cases that show what was asked; rate: the value that limits apply to, where
    nothing else is said the share of cases that are also clean. parts: the same for each kind of case. work: where it
    was counted."""

    count: int
    rate: float
    exact: float | None = None
    parts: dict[str, Measured] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    work: Work | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """What `asdict` made, read again from JSON."""
        parts = {name: cls.from_dict(part) for name, part in values.get("parts", {}).items()}
        work = Work(**values["work"]) if values.get("work") else None
        return cls(values["count"], values["rate"], values["exact"], parts, tuple(values.get("remarks", ())), work)


Measure = Callable[[Runner, Sequence[C], Setup], Measured]


@dataclass(frozen=True)
class Result:
    """A row that was measured, with its settings in words and the limits of its rate. seeds: where its sets of cases
    begin; `measured` is the first set's outcome and `again` that of the others."""

    name: str
    measured: Measured
    settings: str
    least: float = 0.0
    most: float = 1.0
    key: str = ""
    seeds: tuple[int, ...] = (0,)
    again: tuple[Measured, ...] = ()

    @property
    def sets(self) -> tuple[Measured, ...]:
        """The outcome of every set of cases."""
        return self.measured, *self.again

    @property
    def rate(self) -> float:
        """The mean over the sets of cases, which the limits apply to."""
        return sum(one.rate for one in self.sets) / len(self.sets)

    @property
    def cost(self) -> float | None:
        """Passes for a picture that is right and clean: those counted, over the share of such pictures. None where no
        work was counted, or nothing was right."""
        work = self.measured.work
        return work.passes / self.rate if work is not None and self.rate else None

    @property
    def passes(self) -> bool:
        """Whether the rate is within the limits."""
        return self.least <= self.rate <= self.most

    @property
    def limit(self) -> str:
        """The limits in words."""
        if self.least:
            return f">= {self.least:.0%}"
        return f"<= {self.most:.0%}" if self.most < 1 else "-"

    def lines(self) -> Iterator[str]:
        """The row as text: one line, and one more for each part, set of cases and remark."""
        end = f"{self.limit:>8}  {'ok  ' if self.passes else 'MISS'}  {self.settings}"
        yield _line(self.name, self.measured, end)
        yield from (_line(_INDENT + name, part) for name, part in self.measured.parts.items())
        others = zip(self.seeds[1:], self.again, strict=True)
        yield from (_line(f"{_INDENT}seeds from {seed}", one) for seed, one in others)
        yield from (_INDENT + remark for remark in self.measured.remarks)
        if self.cost is not None:
            yield f"{_INDENT}{self.cost:.1f} passes for each that is right and clean"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """A row of a `ResultFile`; older files have neither keys nor several sets."""
        return cls(
            values["name"],
            Measured.from_dict(values["measured"]),
            values["settings"],
            values["least"],
            values["most"],
            values.get("key", ""),
            tuple(values.get("seeds", (0,))),
            tuple(Measured.from_dict(one) for one in values.get("again", ())),
        )


@dataclass(frozen=True)
class Row(Generic[C]):
    """A line of the table: what is asked, how it is sampled and measured, and the limits of its rate. key: a short name
    that stays. times: how many times the usual number of cases. seeds: a set of cases begins at each of them."""

    key: str
    name: str
    ask: Ask[C]
    setup: Setup
    measure: Measure[C]
    least: float = 0.0
    most: float = 1.0
    times: int = 1
    seeds: tuple[int, ...] = (0,)

    def run(self, runner: Runner, count: int) -> Result:
        """Ask `count` cases, times `times`, from each of the seeds on, and measure them."""
        sets = []
        for seed in self.seeds:
            setup = replace(self.setup, seed=seed)
            cases = self.ask(runner, setup, count * self.times)
            sets.append(self.measure(runner, cases, setup))
        first, *again = sets
        limits = (self.least, self.most)
        return Result(self.name, first, setup.words(cases[0]), *limits, self.key, self.seeds, tuple(again))


def heading() -> str:
    """The line above the rows of a printed table."""
    return f"{'':<{_NAME}}{'cases':>5}{'exact':>8}{'and clean':>11}  {'limit':>8}        settings"


def _line(name: str, measured: Measured, end: str = "") -> str:
    exact = "-" if measured.exact is None else f"{measured.exact:.1%}"
    return f"{name:<{_NAME}}{measured.count:>5}{exact:>8}{measured.rate:>11.1%}  {end}".rstrip()


# ---------------------------------------------------------------------------------------------------------- measures


def share_right(runner: Runner, cases: Sequence[C], setup: Setup, *, judge: Judge[C]) -> Measured:
    """The share of cases that come out as asked, and clean. Cells of a canvas that are known must keep their codes; an
    answer must be exactly the one asked for."""
    if cases[0].canvas is None:
        answers = runner.answer(cases, setup)
        judged = [Judgement(answer == case.asked, True) for answer, case in zip(answers, cases, strict=True)]
        kept = [True] * len(cases)
    else:
        canvases = runner.fill(cases, setup)
        judged = list(judge(cases, runner.show(cases, canvases)))
        kept = [_kept(case.blank, canvas) for case, canvas in zip(cases, canvases, strict=True)]
    exact = [one.exact for one in judged]
    right = [one.right and same for one, same in zip(judged, kept, strict=True)]
    measured = _share(exact, right)
    names = sorted({case.part for case in cases})
    if len(names) > 1:
        chosen = {name: [case.part == name for case in cases] for name in names}
        parts = {name: _share(_only(exact, of), _only(right, of)) for name, of in chosen.items()}
        measured = replace(measured, parts=parts)
    if cases[0].original is not None:
        measured = replace(measured, remarks=(f"outside the hole all codes kept in {sum(kept)} of {len(kept)}",))
    return measured


def with_cost(runner: Runner, cases: Sequence[C], setup: Setup, *, measure: Measure[C], exact: Setup) -> Measured:
    """As `measure`, with the work that a case takes, beside that of sampling with `exact`. For answers a remark says
    how many are other ones."""
    beside = replace(exact, seed=setup.seed)
    steps = beside.text.steps if cases[0].canvas is None else beside.steps
    work = Work(runner.flops(cases[:COUNTED], setup), runner.flops(cases[:COUNTED], beside), steps)
    measured = measure(runner, cases, setup)
    words = f"{work.flops / 1e9:.2f} GFLOP a case counted, {work.share:.0%} of exact sampling's {work.exact / 1e9:.2f}"
    remarks = [*measured.remarks, words]
    if cases[0].canvas is None:
        answers, others = (runner.answer(cases, one) for one in (setup, beside))
        differ = sum(one != other for one, other in zip(answers, others, strict=True))
        remarks.append(f"{differ} of {len(cases)} answers are not those of exact sampling")
    return replace(measured, work=work, remarks=tuple(remarks))


def sameness(runner: Runner, cases: Sequence[Case], setup: Setup) -> Measured:
    """rate: the share of seeds that give exactly the codes of the first."""
    first, *others = [canvas.codes for canvas in runner.fill(cases, setup)]
    same = [True, *(torch.equal(codes, first) for codes in others)]
    return Measured(len(same), sum(same) / len(same), remarks=("counted: pictures with the codes of the first seed's",))


def evenness(counts: Sequence[int]) -> float:
    """1 where all choices are equally frequent, 0 where one is always or another never chosen: where the most frequent
    of k has the share s, (1 - s) / (1 - 1/k). 0.5 is a share of 75 % for two choices, of 58 % for six."""
    if not all(counts):
        return 0.0
    return (1 - max(counts) / sum(counts)) / (1 - 1 / len(counts))


def _kept(before: Canvas, after: Canvas) -> bool:
    return torch.equal(before.codes[~before.unknown], after.codes[~before.unknown])


def _share(exact: Sequence[bool], right: Sequence[bool]) -> Measured:
    return Measured(len(right), sum(right) / len(right), sum(exact) / len(exact))


def _only(values: Sequence[bool], chosen: Sequence[bool]) -> list[bool]:
    return [value for value, choose in zip(values, chosen, strict=True) if choose]


# ------------------------------------------------------------------------------------------------------------ as JSON


class ResultFile:
    """Results in a JSON file, written again after every row.

    Each row carries what it was measured with (`made_with`: commit, versions). A row that is measured again takes the
    place of the old one; rows of other names stay.
    """

    def __init__(self, path: Path, made_with: Mapping[str, str]):
        self.path, self.made_with = path, dict(made_with)
        text = path.read_text(encoding="utf-8") if path.exists() else "{}"
        self.content: dict[str, Any] = json.loads(text)
        if not isinstance(self.content, dict) or not isinstance(self.content.setdefault("rows", []), list):
            raise ValueError(f"Got {path}, expected a file of results with a list of rows; name another file.")

    def get(self, row: Row, count: int) -> Result | None:
        """The result of a row, if it is there with as many cases and made with the same code."""
        for one in self.content["rows"]:
            if one["name"] == row.name and one["made_with"] == self.made_with:
                result = Result.from_dict(one)
                same = (result.measured.count, result.seeds) == (count * row.times, row.seeds)
                return result if same else None
        return None

    def add(self, result: Result, order: Sequence[str]) -> None:
        """Add a row and write the file; rows stand in the order of the table's names."""
        made = asdict(result) | {"made_with": self.made_with}
        others = [one for one in self.content["rows"] if one["name"] != result.name]
        ranks = {name: rank for rank, name in enumerate(order)}
        self.content["rows"] = sorted([*others, made], key=lambda one: ranks.get(one["name"], len(ranks)))
        atomic_write_text(self.path, json.dumps(self.content, indent=1) + "\n")
