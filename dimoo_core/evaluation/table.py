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

COUNTED = 30  # cases whose operations are counted: these depend only on the lengths of prompts

_NAME, _INDENT = 44, "    "

C = TypeVar("C", bound=Case)
Ask = Callable[[Runner, tuple[int, int], int], Sequence[C]]  # (runner, grid, how many cases) -> cases


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
class Measured:
    """The outcome of a row. exact: share of cases that show what was asked; rate: the value that limits apply to, where
    nothing else is said the share of cases that are also clean. parts: the same for each kind of case."""

    count: int
    rate: float
    exact: float | None = None
    parts: dict[str, Measured] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """What `asdict` made, read again from JSON."""
        parts = {name: cls.from_dict(part) for name, part in values.get("parts", {}).items()}
        return cls(values["count"], values["rate"], values["exact"], parts, tuple(values.get("remarks", ())))


Measure = Callable[[Runner, Sequence[C], Setup], Measured]


@dataclass(frozen=True)
class Result:
    """A row that was measured, with its settings in words and the limits of its rate."""

    name: str
    measured: Measured
    settings: str
    least: float = 0.0
    most: float = 1.0

    @property
    def passes(self) -> bool:
        """Whether the rate is within the limits."""
        return self.least <= self.measured.rate <= self.most

    @property
    def limit(self) -> str:
        """The limits in words."""
        return f">= {self.least:.0%}" if self.least else f"<= {self.most:.0%}"

    def lines(self) -> Iterator[str]:
        """The row as text: one line, and one more for each part and remark."""
        end = f"{self.limit:>8}  {'ok  ' if self.passes else 'MISS'}  {self.settings}"
        yield _line(self.name, self.measured, end)
        yield from (_line(_INDENT + name, part) for name, part in self.measured.parts.items())
        yield from (_INDENT + remark for remark in self.measured.remarks)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """A row of a `ResultFile`."""
        measured = Measured.from_dict(values["measured"])
        return cls(values["name"], measured, values["settings"], values["least"], values["most"])


@dataclass(frozen=True)
class Row(Generic[C]):
    """A line of the table: what is asked, how it is sampled and measured, and the limits of its rate. times: how many
    times the usual number of cases."""

    name: str
    ask: Ask[C]
    setup: Setup
    measure: Measure[C]
    least: float = 0.0
    most: float = 1.0
    times: int = 1

    def run(self, runner: Runner, count: int) -> Result:
        """Ask `count` cases, times `times`, and measure them."""
        cases = self.ask(runner, self.setup.grid, count * self.times)
        measured = self.measure(runner, cases, self.setup)
        return Result(self.name, measured, self.setup.words(cases[0]), self.least, self.most)


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


def with_cost(runner: Runner, cases: Sequence[C], setup: Setup, *, measure: Measure[C]) -> Measured:
    """As `measure`; a remark says what sampling a case costs, and what it costs without caches."""
    cost, exact = (runner.flops(cases[:COUNTED], one) for one in (setup, setup.exact))
    measured = measure(runner, cases, setup)
    words = f"{cost / 1e9:.2f} GFLOP a case counted, {cost / exact:.0%} of exact sampling's {exact / 1e9:.2f}"
    return replace(measured, remarks=(*measured.remarks, words))


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
                return result if result.measured.count == count * row.times else None
        return None

    def add(self, result: Result, order: Sequence[str]) -> None:
        """Add a row and write the file; rows stand in the order of the table's names."""
        made = {"name": result.name, "least": result.least, "most": result.most, "settings": result.settings}
        made |= {"measured": asdict(result.measured), "made_with": self.made_with}
        others = [one for one in self.content["rows"] if one["name"] != result.name]
        ranks = {name: rank for rank, name in enumerate(order)}
        self.content["rows"] = sorted([*others, made], key=lambda one: ranks.get(one["name"], len(ranks)))
        atomic_write_text(self.path, json.dumps(self.content, indent=1) + "\n")
