"""Rows of what a job is made of: ceilings of the device, passes of each kind, attention by kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dimoo_core.model.kernels import rotate_, settle, swiglu_
from dimoo_core.model.transformer import Part, RMSNorm, Transformer, rope_table
from dimoo_core.pictures.sizes import CELL
from dimoo_core.sampling.branch import KeyValues
from dimoo_core.sampling.ml_cache import PRESETS
from dimoo_core.sampling.schedule import cosine
from dimoo_core.training.footprint import products_per_second

from ..workload import ImageJob
from .report import Row
from .session import Session
from .timing import Run, captured_ms, host_ms, kernels, wall_ms

H100 = 700  # TFLOP/s of that product there, where the parts took the seconds that `plan` says
KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def ceilings(session: Session) -> Iterator[Row]:
    """What the device can do at most: a product in bf16, copies within it and from the host."""
    device, side, size = session.device, session.scale.product, session.scale.copied
    speed = products_per_second(device, side=side) / 1e12
    session.pace *= max(1.0, H100 / speed)
    yield {"way": f"bf16 product, {side} cubed", "tflops": speed}
    within = torch.zeros(size, dtype=torch.uint8, device=device)
    yield {"way": "copy within the device, read and written", "gb_s": 2 * _copied(device, within, size)}
    host = torch.zeros(size // 4, dtype=torch.uint8)
    yield {"way": "copy from pageable memory of the host", "gb_s": _copied(device, host, size // 4)}
    if device.type == "cuda":
        yield {"way": "copy from pinned memory of the host", "gb_s": _copied(device, host.pin_memory(), size // 4)}


def _copied(device: torch.device, source: torch.Tensor, size: int) -> float:
    """GB/s of a copy of `size` bytes to the device."""
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return size / wall_ms(lambda: target.copy_(source, non_blocking=True), device, 5) / 1e6


@dataclass(frozen=True)
class Shape:
    """A pass over `computed` of `length` positions (None: all of them) of each branch, for the logits of `rows` of
    them, of codes or of text."""

    name: str
    length: int
    computed: int | None
    rows: int
    codes: bool = True
    branches: int = 1


def shapes(session: Session) -> list[Shape]:
    """The kinds of passes that pictures and answers are made of."""
    scale, table = session.scale, session.scale.size.table
    large, small = (_length(session, scale.picture(side)) for side in (scale.large, scale.small))
    edit, cached = _length(session, scale.edit(scale.small)), _cached(session, small, scale.small)
    cells, computed = (scale.large // CELL) ** 2, _cached(session, large, scale.large)
    asked = scale.question(scale.large).sequence(table, scale.tokens).shape[1]
    return [
        Shape(f"picture {scale.large}, full", large, None, cells),
        Shape(f"picture {scale.large}, cached", large, computed, computed),
        Shape(f"picture {scale.small}, cached", small, cached, cached),
        Shape(f"picture {scale.small}, cached, both branches", small, cached, cached, branches=2),
        Shape(f"edit {scale.small}, cached, all branches", edit, cached, cached, branches=3),
        Shape("answer, a whole one", asked, scale.tokens + 2, scale.block, codes=False),
        Shape("answer, a block", asked, scale.block, scale.block, codes=False),
    ]


def _length(session: Session, job: ImageJob) -> int:
    return job.sequences(session.scale.size.table)[0][0].shape[1]


def _cached(session: Session, length: int, side: int) -> int:
    policy, cells = PRESETS["balanced"], session.scale.picture(side).cells
    assert policy is not None
    holes = cells[0] * cells[1]
    return policy.budget(length, holes, cosine(holes, session.scale.steps))


@torch.no_grad()
def passes(session: Session, shape: Shape, kind: str) -> Iterator[Row]:
    """A pass: milliseconds on the wall, of the host alone and of the kernels, how many of these there are, and
    milliseconds of the pass replayed as a CUDA graph."""
    network, table, device = session.network(kind), session.scale.size.table, session.device
    parts = [_part(network, shape, min(table.specials), device) for _ in range(shape.branches)]
    vocab = table.codes if shape.codes else None
    settle(device, torch.bfloat16, network.config.head_dim)
    run = partial(network.together, parts, vocab=vocab)
    which = {"job": shape.name, "kind": kind, "branches": shape.branches}
    repeats = 6 if shape.computed is None else 20
    ms = wall_ms(run, device, repeats)
    launched, busy = kernels(run, device)
    row = {**which, "positions": shape.computed or shape.length, "of": shape.length, "ms": ms}
    yield {**row, "host_ms": host_ms(run, device), "kernel_ms": busy, "kernels": launched}
    yield {**which, "captured_ms": captured_ms(run, device, repeats)}  # by itself, since it may fail


def _part(network: Transformer, shape: Shape, words: int, device: torch.device) -> Part:
    """What one branch brings: where it is cached, its keys and values are stored first. words: how many text ids there
    are to choose from."""
    ids = torch.randint(words, (1, shape.length), device=device)
    rows = torch.arange(shape.rows, device=device)[None]
    if shape.computed is None:
        return Part(ids, rows=rows)
    kept = KeyValues()
    network(ids, rows=rows[:, :1], cache=kept)
    return Part(ids[:, : shape.computed], torch.arange(shape.computed, device=device)[None], kept, rows)


@torch.no_grad()
def between(session: Session) -> Iterator[Row]:
    """What lies between the products of a full pass, each call of it."""
    config, device = session.network("bf16").config, session.device
    settle(device, torch.bfloat16, config.head_dim)
    length = _length(session, session.scale.picture(session.scale.large))
    where = torch.arange(length, device=device)[None]
    cos, sin = (one[0].transpose(0, 1) for one in rope_table(where, config.head_dim, config.rope_theta))
    heads = torch.randn(length, config.n_heads, config.head_dim, device=device).bfloat16()
    gate, up = (torch.randn(length, config.mlp_hidden_size, device=device).bfloat16() for _ in range(2))
    norm = RMSNorm(config.d_model, config.rms_norm_eps, device=device, dtype=torch.bfloat16)
    x = torch.randn(length, config.d_model, device=device).bfloat16()
    calls = {"rotation": partial(rotate_, heads, (cos, sin)), "swiglu": partial(swiglu_, gate, up)}
    times = {f"{name}_ms": wall_ms(run, device) for name, run in {**calls, "norm": partial(norm, x)}.items()}
    yield {"positions": length, **times}


@torch.no_grad()
def products(session: Session) -> Iterator[Row]:
    """A product of a block's feed-forward by kind of numbers, for many positions and for few."""
    config, scale, device = session.network("bf16").config, session.scale, session.device
    one = torch.ones((), device=device)
    for count in (_length(session, scale.picture(scale.large)), scale.block):
        x = torch.randn(count, config.d_model, device=device).bfloat16()
        w = torch.randn(config.mlp_hidden_size, config.d_model, device=device).bfloat16()
        small, smalls = (part.to(torch.float8_e4m3fn) for part in (x, w))
        whole, wholes = (part.mul(20).to(torch.int8) for part in (x, w))
        times: Row = {"bf16_ms": wall_ms(partial(F.linear, x, w), device)}
        scaled = partial(torch._scaled_mm, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
        for name, run in {
            "fp8": partial(scaled, small, smalls.t()),
            "int8": partial(torch._int_mm, whole, wholes.t()),
        }.items():
            times[f"{name}_ms"] = _where_there_is_one(run, device)
        yield {"positions": count, "inner": config.d_model, "outer": config.mlp_hidden_size, **times}


def _where_there_is_one(run: Run, device: torch.device) -> float | None:
    """Milliseconds of a call whose kernel a device may not have."""
    try:
        return wall_ms(run, device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None


@torch.no_grad()
def attention(session: Session) -> Iterator[Row]:
    """Attention of all positions and of few, by the kernel that torch chooses and by each that can be asked for."""
    config, scale, device = session.network("bf16").config, session.scale, session.device
    length = _length(session, scale.picture(scale.large)) // 2 * 2
    keys, values = (torch.randn(1, config.n_heads, length, config.head_dim, device=device).bfloat16() for _ in range(2))
    for count in (length, scale.block):
        run = partial(F.scaled_dot_product_attention, keys[:, :, :count].clone(), keys, values)
        times: Row = {"chosen_ms": wall_ms(run, device)}
        for name, backend in KERNELS.items():
            with sdpa_kernel(backend):
                times[f"{name}_ms"] = _where_there_is_one(run, device)
        yield {"queries": count, "of": length, **times}
