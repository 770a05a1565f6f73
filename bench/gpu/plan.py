"""The parts of a report in the order of their worth, each with the seconds that it takes on an H100."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from . import passes, right, work
from .report import Measurement
from .session import Session
from .work import EXACT, RELEASED, RELEASED_CACHE

Jobs = Sequence[tuple[str, str, dict[str, float]]]  # a job, its extent, and the seconds of each way

_CEILINGS, _RIGHT, _WEIGHTS, _BESIDE, _WAITS = 3, 24, 3, 4, 2
_PASS, _VQ, _ATTENTION, _BETWEEN, _PRODUCTS, _LORA = 1.5, 3, 1, 1, 1, 3
_BF16: Jobs = (
    ("picture", "large", {EXACT: 3, RELEASED: 4, RELEASED_CACHE: 16, "balanced": 9, "fast": 7}),
    ("edit", "small", {EXACT: 3, RELEASED: 3, "balanced": 7, "fast": 5}),
    ("answer", "large", {EXACT: 2, RELEASED: 2, "balanced": 4, "fast": 3}),
    ("picture", "small", {EXACT: 1, RELEASED: 1, "balanced": 4, RELEASED_CACHE: 8}),
)
_LEAST: Jobs = (("picture", "large", {"quality": 12}),)
_ONE_BYTE: Jobs = (
    ("picture", "large", {EXACT: 5}),
    ("picture", "small", {EXACT: 2, "balanced": 12}),
    ("answer", "large", {"fast": 12}),
)


def plan(session: Session, kinds: Sequence[str]) -> Iterator[Measurement]:
    """Everything that is measured, for these kinds of weights."""
    yield Measurement("ceilings", _CEILINGS, partial(passes.ceilings, session))
    yield Measurement("right", _RIGHT, partial(right.right, session))
    for kind in kinds:
        yield Measurement(f"weights, {kind}", _WEIGHTS, partial(work.weights, session, kind))
        yield from _bf16(session) if kind == "bf16" else _one_byte(session, kind)


def _bf16(session: Session) -> Iterator[Measurement]:
    large = session.scale.large
    yield Measurement("beside", _BESIDE, partial(work.beside, session))
    yield from _jobs(session, _BF16, "bf16")
    yield from _passes(session, passes.shapes(session), "bf16")
    yield Measurement(f"VQ {large}", _VQ, partial(work.pictures_and_codes, session, large))
    yield Measurement("waits", _WAITS, partial(work.waits, session))
    yield Measurement("attention", _ATTENTION, partial(passes.attention, session))
    yield Measurement("between", _BETWEEN, partial(passes.between, session))
    yield Measurement("products", _PRODUCTS, partial(passes.products, session))
    yield Measurement(f"train LoRA {large}, bf16", _LORA, partial(work.training, session, large, "bf16"))
    yield from _jobs(session, _LEAST, "bf16")


def _one_byte(session: Session, kind: str) -> Iterator[Measurement]:
    large = session.scale.large
    yield from _jobs(session, _ONE_BYTE, kind)
    full, *_, block = passes.shapes(session)
    yield from _passes(session, (full, block), kind)
    yield Measurement(f"train LoRA {large}, {kind}", _LORA, partial(work.training, session, large, kind))


def _jobs(session: Session, jobs: Jobs, kind: str) -> Iterator[Measurement]:
    for what, extent, ways in jobs:
        side = session.scale.large if extent == "large" else session.scale.small
        for way, seconds in ways.items():
            rows = partial(work.job, session, what, side, way, kind)
            yield Measurement(f"{what} {side}, {way}, {kind}", seconds, rows)


def _passes(session: Session, shapes: Sequence[passes.Shape], kind: str) -> Iterator[Measurement]:
    for shape in shapes:
        yield Measurement(f"pass, {shape.name}, {kind}", _PASS, partial(passes.passes, session, shape, kind))
