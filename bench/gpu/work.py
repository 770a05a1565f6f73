"""Rows of whole jobs: pictures, answers, a LoRA that is taught, and pictures to codes and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import torch

from dimoo_core.model.adapters import Adapter, Adapters, Applied
from dimoo_core.model.vq import VQ
from dimoo_core.model.vq_tiles import TILE
from dimoo_core.pictures.sizes import CELL
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.ml_cache import PRESETS
from dimoo_core.sampling.text import TextSettings
from dimoo_core.sampling.text_cache import SPEEDS
from dimoo_core.training.footprint import StepShape, take_step
from dimoo_core.training.optimise import OptimiserSettings, build_optimisers

from ..workload import ImageJob, TextJob
from .released import ReleasedCode
from .report import Row
from .scale import build_vq, weight_bytes
from .session import Session
from .timing import Run, Taken, clear, once
from .timing import waits as waited

WAITED = 8  # steps of a picture in which the host's waits are counted
RANK, TAUGHT = 16, 4  # of a LoRA, and the steps that it is taught for
EXACT, RELEASED, RELEASED_CACHE = "exact", "released", "released cache"

# milliseconds a step or a token, seconds of a whole job, and the share of what the same takes with bf16 weights, that
# an H100 or H200 should reach; 617129e took 261 ms, 4.0, 10.7, 5.5 and 4.4 s on an H200
AIMS = {
    ("bf16", "picture 1024", EXACT): {"aim_ms": 215},
    ("bf16", "picture 512", "balanced"): {"aim_s": 2.6},
    ("bf16", "edit 512", "balanced"): {"aim_s": 5.0},
    ("bf16", "answer 1024", "balanced"): {"aim_s": 2.2},
    ("bf16", "answer 1024", "fast"): {"aim_s": 1.6},
    ("fp8", "picture 1024", EXACT): {"aim_of_bf16": 0.75},
}


def job(session: Session, what: str, side: int, way: str, kind: str) -> Iterator[Row]:
    """A picture, an edit or an answer about a picture of side x side px. way: exact, a preset of `ml_cache` or a
    `speed`, released, or released with its cache.

    Exact steps cost the same in a short plan as in a long one, so a few are run; a cache needs its whole plan.
    """
    scale, cached = session.scale, way not in (EXACT, RELEASED)
    if what == "answer":
        planned, measured = scale.tokens, scale.tokens if cached else scale.exact_tokens
        run, warm = _answer_runs(session, scale.question(side), way, kind, measured)
    else:
        planned, measured = scale.steps, scale.steps if cached else scale.exact_steps
        asked = scale.edit(side) if what == "edit" else scale.picture(side)
        run, warm = _picture_runs(session, asked, way, kind, measured)
    warm()
    taken = once(run, session.device)
    ms, name = taken.seconds * 1e3 / measured, f"{what} {side}"
    by = {"by": session.beside().name} if way in (RELEASED, RELEASED_CACHE) else {}
    row = {"job": name, "kind": kind, "way": way, **by, "measured": measured, "planned": planned}
    yield {**row, "ms": ms, "s": ms * planned / 1e3, **taken.memory, **AIMS.get((kind, name, way), {})}


def _picture_runs(session: Session, asked: ImageJob, way: str, kind: str, steps: int) -> tuple[Run, Run]:
    """The run, and a short one of the same to warm up."""
    if way in (RELEASED, RELEASED_CACHE):
        cached = way == RELEASED_CACHE
        image = partial(session.beside().image, asked, cached=cached)
        return image(steps), image(4 if cached else 2)
    network, table = session.network(kind), session.scale.size.table
    cache = None if way == EXACT else PRESETS[way]

    def run(steps: int) -> Run:
        return partial(asked.run, network, table, ImageSettings(steps, cache=cache))

    return run(steps), run(2 if cache is None else 4)


def _answer_runs(session: Session, asked: TextJob, way: str, kind: str, tokens: int) -> tuple[Run, Run]:
    """The same of an answer, one token a step: how certain a model of random weights is means nothing."""
    if way == RELEASED:
        beside = session.beside()
        return beside.answer(asked, tokens, tokens), beside.answer(asked, 2, 2)
    network, table = session.network(kind), session.scale.size.table
    policy, block = replace(SPEEDS[way], threshold=None), min(tokens, session.scale.block)

    def run(steps: int) -> Run:
        return partial(asked.run, network, table, TextSettings(tokens, steps, block, policy=policy))

    return run(tokens), run(2 * tokens // block)


def waits(session: Session) -> Iterator[Row]:
    """How often the host waits in a step of a short run, exact and with a cache."""
    scale = session.scale
    pictures = ((EXACT, scale.picture(scale.small)), ("balanced", scale.picture(scale.small)))
    for way, asked in (*pictures, ("balanced", scale.edit(scale.small))):
        run, _ = _picture_runs(session, asked, way, "bf16", WAITED)
        yield _waited(session, f"{'picture' if asked.picture is None else 'edit'} {scale.small}", way, run, WAITED)
    run, _ = _answer_runs(session, scale.question(scale.large), "fast", "bf16", scale.block)
    yield _waited(session, f"answer {scale.large}", "fast", run, scale.block)


def _waited(session: Session, name: str, way: str, run: Run, units: int) -> Row:
    run()
    count = waited(run, session.device)
    return {"job": name, "kind": "bf16", "way": way, "waits": None if count is None else count / units}


def training(session: Session, side: int, kind: str) -> Iterator[Row]:
    """A LoRA taught for a few steps beside the weights, batch 1, blocks computed again backward."""
    network, scale, device = session.network(kind), session.scale, session.device
    shape = StepShape(side // CELL, side // CELL, prompt=scale.words)
    adapter = Adapter.blank(network, rank=RANK, alpha=RANK, device=device)
    optimisers = build_optimisers(adapter.named_parameters(), OptimiserSettings())
    batch = shape.hidden(scale.size.table.codes, str(device))
    taught = partial(network.recompute(), adapters=Adapters([Applied(adapter)]))

    def run(steps: int) -> None:
        for _ in range(steps):
            take_step(taught, list(adapter.parameters()), optimisers, batch)

    try:
        run(1)
        taken = once(partial(run, TAUGHT), device)
    finally:
        network.recompute(False)
    row = {"job": f"train LoRA {side}", "kind": kind, "way": f"rank {RANK}", "measured": TAUGHT}
    yield {**row, "ms": taken.seconds * 1e3 / TAUGHT, **taken.memory}


def weights(session: Session, kind: str) -> Iterator[Row]:
    """Making the weights of a kind."""
    session.drop()
    taken = once(partial(session.network, kind), session.device)
    yield {"kind": kind, "weights_gb": weight_bytes(session.network(kind)) / 1e9, "s": taken.seconds}


def beside(session: Session) -> Iterator[Row]:
    """What ours is measured beside, and the transformers that the released code runs with."""
    beside = session.beside()
    yield {"by": beside.name, **({"transformers": version("transformers")} if isinstance(beside, ReleasedCode) else {})}


def pictures_and_codes(session: Session, side: int) -> Iterator[Row]:
    """The VQ: codes to pixels whole, in bf16 and in tiles, and pixels to codes."""
    device = session.device
    cells = (side // CELL, side // CELL)
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        vq = build_vq(session.scale, device, dtype)
        codes = torch.arange(cells[0] * cells[1], device=device).view(1, *cells) % vq.config.codebook_size
        pixels = torch.rand(1, 3, side, side, device=device)
        for way, run in _both_ways(vq, codes, pixels):
            run()
            yield {"job": f"VQ {side}", "kind": name, "way": way, **_milliseconds(once(run, device))}
            clear(device)


def _both_ways(vq: VQ, codes: torch.Tensor, pixels: torch.Tensor) -> Iterator[tuple[str, Run]]:
    yield "decode", partial(vq.decode, codes)
    yield "decode in tiles", partial(vq.decode, codes, tile=TILE)
    yield "encode", partial(vq.encode, pixels)
    yield "encode in tiles", partial(vq.encode, pixels, tile=TILE)


def _milliseconds(taken: Taken) -> Row:
    return {"ms": taken.seconds * 1e3, **taken.memory}
