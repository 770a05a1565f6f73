"""What a card that is too small for the weights reads from RAM, counted in a real ComfyUI at the published size:
`python -m bench.card` prints it.

ComfyUI's own code loads the weights and casts them at every call; the tensors have no data, and a stand-in for a card
says how much of its memory is free. A card "for 6 GiB of weights" has so much beside what ComfyUI keeps for the run.
GiB are 2^30 bytes.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import nn

from dimoo_core.training.footprint import attention

from .comfyui import part
from .workload import RELEASED_SIZE, ImageJob

GIB = 2**30
LARGE = ImageJob((64, 64), 60)  # a picture of 1024x1024 px from words
SMALL = ImageJob((32, 32), 60)  # of 512x512 px
EDIT = ImageJob((32, 32), 60, (32, 32))
LENGTH, CELLS, CHUNK = 4290, 64 * 64, 1024  # of a pass in chunks
_CARD = torch.device("meta")


@dataclass(frozen=True)
class Streamed:
    """What one step brings in that is not on the card: the bytes, the passes it makes, and how often it brings in a
    weight, at most."""

    bytes: int
    passes: int
    times: int

    @property
    def gib_per_pass(self) -> float:
        return self.bytes / self.passes / GIB


@contextmanager
def card(model: Any, room: float, streams: int = 0) -> Iterator[None]:
    """ComfyUI with a card for `room` bytes of the weights of a loaded model, and so many streams that bring in what is
    not on it."""
    import comfy.model_management as management

    def free(device: Any = None, torch_free_too: bool = False) -> Any:
        left = room + management.minimum_inference_memory() - model.patcher.loaded_size() - model.head.loaded_size()
        return (left, 0) if torch_free_too else left

    settings = {
        "current_loaded_models": [],
        "get_free_memory": free,
        "vram_state": management.VRAMState.NORMAL_VRAM,
        "NUM_STREAMS": streams,
        "get_offload_stream": lambda device: None,  # of which this device has none
    }
    with mock.patch.multiple(management, **settings):
        yield


def blank_model(kind: str) -> Any:
    """What DiMOO Loader would give for a file of `kind` of the published size, without data."""
    host, sockets, jobs = (part(name) for name in ("nodes.host", "nodes.sockets", "dimoo_core.jobs"))
    footprint = part("dimoo_core.training.footprint")
    quantised = part("dimoo_core.model.quantised")
    formats = {"int8": {quantised.INT8}, "fp8": {quantised.FP8}}.get(kind, frozenset())
    table = RELEASED_SIZE.table
    ops = host.layers(torch.bfloat16, torch.bfloat16, _CARD, formats)
    network = footprint.blank_base(RELEASED_SIZE.config, table.code_offset, kind, torch.bfloat16, ops)
    core = jobs.Model(network.eval(), None, table, (512, 1024), formats)
    return sockets.LoadedModel.under_management(core, (_CARD, _CARD), torch.bfloat16, None, mock.Mock(path=kind))


@contextmanager
def casts(network: nn.Module) -> Iterator[Counter[nn.Module]]:
    """How often each layer of a network has its weight brought in, or cast, while it is on."""
    import comfy.ops

    seen: Counter[nn.Module] = Counter()
    layers = set(network.modules())
    honest = comfy.ops.cast_bias_weight

    def counting(layer: nn.Module, *args: Any, **options: Any) -> Any:
        if layer in layers:
            seen[layer] += 1
        return honest(layer, *args, **options)

    with mock.patch.object(comfy.ops, "cast_bias_weight", counting):
        yield seen


class _StepDone(Exception):
    """Ends a run after its first step."""


def _stop(*_: object) -> None:
    raise _StepDone


@functools.cache
def image_step(kind: str, job: ImageJob, room: float, streams: int = 0) -> Streamed:
    """The first step of a picture, placed and run as DiMOO Sampler does, with a file of `kind` on a card for `room`
    bytes of weights."""
    live_bytes = part("dimoo_core.training.live_bytes").LiveBytes
    model, passes = blank_model(kind), list[int]()
    plan, network = _plan(model.core, job), model.core.transformer
    network.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    with card(model, room, streams), torch.no_grad(), casts(network) as seen:
        placement = model.place(plan)
        with live_bytes(answer=plan.canvas.codes.numel()), suppress(_StepDone):
            plan.run(placement, _stop)
    missing = {layer: count for layer, count in seen.items() if not getattr(layer, "comfy_patched_weights", False)}
    matrices = [count for layer, count in missing.items() if layer.weight.ndim == 2]
    weights = sum(count * sum(weight.nbytes for weight in layer.parameters()) for layer, count in missing.items())
    return Streamed(weights, len(passes), max(matrices, default=0))


def _plan(core: Any, job: ImageJob) -> Any:
    jobs, canvas, guidance, image = (
        part(f"dimoo_core.{name}") for name in ("jobs", "sequence.canvas", "sampling.guidance", "sampling.image")
    )
    prefix, others = job.prompts(core.table, "cpu")
    branches = tuple(guidance.Branch(one.prefix, one.scale) for one in others)
    return jobs.ImagePlan(core, prefix, branches, canvas.Canvas.empty(1, *job.cells), image.ImageSettings(steps=2))


def streamed_gib_int8_6() -> float:
    """A picture from words with an int8 file, on a card for 6 GiB of weights."""
    return image_step("int8", LARGE, 6 * GIB).gib_per_pass


def streamed_gib_bf16_10() -> float:
    """A picture from words with a bf16 file, on a card for 10 GiB of weights."""
    return image_step("bf16", LARGE, 10 * GIB).gib_per_pass


def streamed_gib_int8_4_two_streams() -> float:
    """A picture from words with an int8 file, on a card for 4 GiB of weights and of buffers of two streams."""
    return image_step("int8", LARGE, 4 * GIB, streams=2).gib_per_pass


def streamed_passes_t2i_step() -> int:
    """How often a step of a picture from words, guided, brings in a weight."""
    return image_step("int8", SMALL, 4 * GIB).times


def streamed_passes_edit_step() -> int:
    """How often a step of an edit, guided by text and picture, brings in a weight."""
    return image_step("int8", EDIT, 4 * GIB).times


def casts_per_layer_in_chunks() -> float:
    """How often the weights of a feed-forward are cast in a pass over LENGTH positions with chunks of CHUNK rows, where
    a picture's cells leave the last of four layers."""
    host, table = part("nodes.host"), RELEASED_SIZE.table
    ops = host.layers(torch.bfloat16, torch.float32, _CARD)
    network = replace(RELEASED_SIZE, layers=4).build(_CARD, torch.bfloat16, ops=ops, attention=attention)
    ids = torch.zeros(1, LENGTH, dtype=torch.int64, device=_CARD)
    rows = torch.zeros(1, CELLS, dtype=torch.int64, device=_CARD)
    with torch.no_grad(), casts(network) as seen:
        network(ids, rows=rows, vocab=table.codes, chunk_rows=CHUNK)
    fed = [getattr(block, name) for block in network.blocks for name in ("ff_proj", "up_proj", "ff_out")]
    return sum(seen[layer] for layer in fed) / len(fed)


def figures() -> dict[str, float]:
    """The figures by the names that `nox -s counts` prints."""
    counted = (
        casts_per_layer_in_chunks,
        streamed_gib_int8_6,
        streamed_gib_bf16_10,
        streamed_gib_int8_4_two_streams,
        streamed_passes_t2i_step,
        streamed_passes_edit_step,
    )
    return {figure.__name__: figure() for figure in counted}
