"""Rows that say whether DiMOO-nano, in fp32, gives the very tokens on the device that it gives on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dimoo_core.checkpoint.find import NANO
from dimoo_core.evaluation.runner import Case, Runner
from dimoo_core.jobs import Placement, plan_image, plan_text
from dimoo_core.model.vq_tiles import TILE
from dimoo_core.nano.cases import Examiner
from dimoo_core.sampling.guidance import Guidance
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.ml_cache import PRESETS
from dimoo_core.sampling.text import TextSettings
from dimoo_core.sampling.text_cache import SPEEDS

from .report import Row
from .session import Session

CLOSE = 0.5  # of 255: the most that a decoded pixel may differ
GUIDANCE = Guidance(2.0, 1.0)
PLAIN = Placement(graphs=False)
SAMPLERS: dict[str, dict[str, Any]] = {
    "ml_cache off": {},
    "ml_cache balanced": {"cache": PRESETS["balanced"]},
    "corrected": {"corrections": 1, "polish": 2, "order": "halton", "shared_noise": 0.5},
}
WAYS = {"plain": PLAIN, "captured": Placement(graphs=True)}
PACKED = {"packed": Placement(packed=True, graphs=False)}


@dataclass(frozen=True)
class Nano:
    """DiMOO-nano on the CPU and on the device."""

    cpu: Runner
    other: Runner

    @classmethod
    def load(cls, device: torch.device) -> Nano:
        return cls(*(Runner.load(NANO, str(one))[0] for one in ("cpu", device)))


def right(session: Session) -> Iterator[Row]:
    """Every job on the device beside the CPU: as it is, with captured passes, and with its branches packed."""
    scale, which = session.scale, {"device": str(session.device), "beside": "cpu"}
    for row in _rows(Nano.load(session.device), scale.nano_cells, scale.nano_steps, scale.nano_tokens):
        yield {**row, **which}


def _rows(nano: Nano, cells: int, steps: int, tokens: int) -> Iterator[Row]:
    ask = Examiner(nano.cpu.encode, cells, cells)
    for name, case in {"picture": ask.open(0), "edit": ask.edit(0), "inpaint": ask.hole(1)}.items():
        for sampler, changes in SAMPLERS.items():
            yield from _picture(nano, case, f"{name}, {sampler}", ImageSettings(steps, guidance=GUIDANCE, **changes))
    question = ask.describe(0)
    for speed, policy in SPEEDS.items():
        yield from _answer(nano, question, f"describe, {speed}", TextSettings(tokens, tokens, tokens, policy=policy))
    yield from _codes_and_pixels(nano, ask.hole(0))


def _picture(nano: Nano, case: Case, job: str, settings: ImageSettings) -> Iterator[Row]:
    def codes(runner: Runner, placement: Placement) -> Tensor:
        return plan_image(runner.model, case.prompt, case.blank, settings).run(placement).codes.cpu()

    yield from _compared(nano, job, codes, WAYS | PACKED)


def _answer(nano: Nano, case: Case, job: str, settings: TextSettings) -> Iterator[Row]:
    def words(runner: Runner, placement: Placement) -> list[str]:
        return plan_text(runner.model, case.prompt.images, case.prompt.text, settings).run(placement)

    yield from _compared(nano, job, words, WAYS)


def _compared(
    nano: Nano, job: str, run: Callable[[Runner, Placement], Tensor | list[str]], ways: dict[str, Placement]
) -> Iterator[Row]:
    expected = run(nano.cpu, PLAIN)
    for way, placement in ways.items():
        yield {"job": job, "way": way, "equal": _same(expected, run(nano.other, placement))}


def _same(one: Tensor | list[str], other: Tensor | list[str]) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


def _codes_and_pixels(nano: Nano, case: Case) -> Iterator[Row]:
    assert case.original is not None
    picture = case.original[None].repeat(1, 1, 2, 2)
    tile = TILE // 2**8  # of a picture this small there are several
    for way, size in {"whole": None, "in tiles": tile}.items():
        codes, others = (one.vq.encode(picture.to(one.device), tile=size).cpu() for one in (nano.cpu, nano.other))
        yield {"job": "VQ encode", "way": way, "equal": torch.equal(codes, others)}
        pixels, others = (one.vq.decode(codes.to(one.device), tile=size).cpu() for one in (nano.cpu, nano.other))
        worst = float((pixels - others).abs().max() * 255)
        yield {"job": "VQ decode", "way": way, "equal": worst <= CLOSE, "worst_of_255": worst}
