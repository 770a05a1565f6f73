"""Seconds and memory of the published size on a GPU: `python -m bench.gpu > bench/RESULTS.md`.

Random weights are made on the device and no file is read: time does not depend on the weights. Every job runs twice;
the second run is timed, and must give the tokens of the first. The baseline, the released way of working, runs beside
it; its own copies of embedding and head are made before, and are counted neither in seconds nor in memory. An answer
takes one step per token here, because how certain a model of random weights is means nothing. A LoRA is taught for a
few steps, beside each kind of weights.

`--device cpu --tiny` checks that it runs, and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import chain

import torch
from torch import nn

from dimoo_core.checkpoint.convert import KINDS, quantised_as
from dimoo_core.model.adapters import Adapter, Adapters, Applied
from dimoo_core.model.config import VQConfig
from dimoo_core.model.quantised import LAYERS, largest_magnitude, quantise, scale_of, take_quantised
from dimoo_core.model.transformer import Transformer
from dimoo_core.model.vq import VQ
from dimoo_core.pictures.sizes import CELL
from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.ml_cache import PRESETS
from dimoo_core.sampling.text import TextSettings
from dimoo_core.sampling.text_cache import SPEEDS
from dimoo_core.training.footprint import StepShape, take_step
from dimoo_core.training.optimise import OptimiserSettings, build_optimisers

from . import baseline
from .record import commit
from .workload import RELEASED_SIZE, RELEASED_VQ, TINY, ImageJob, Size, TextJob

SIZES = ((1024, 1024), (1536, 768), (512, 512))  # width, height in px
TINY_VQ = VQConfig(3, 3, (8, 8, 8, 8, 16), 1, 8, 64, 8, 4, False)

RANK, TAUGHT = 16, 4  # of a LoRA, and the steps that it is taught for

Run = Callable[[], list]


@dataclass(frozen=True)
class Scale:
    """How large everything is: the networks, steps of a picture, tokens of an answer, of a block and of a prompt."""

    size: Size
    vq: VQConfig
    steps: int = 64
    tokens: int = 128
    block: int = 32
    words: int = 60


FULL = Scale(RELEASED_SIZE, RELEASED_VQ)
SMALL = Scale(TINY, TINY_VQ, steps=4, tokens=8, block=4, words=8)


@dataclass(frozen=True)
class Measured:
    """Seconds of the second run, its peak bytes beside what was allocated before it (None: unknown), and whether both
    runs gave the same tokens."""

    seconds: float
    peak: int | None
    same: bool


def measure(run: Run, device: torch.device) -> Measured:
    """Run twice."""
    first, before = run(), 0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    start = time.perf_counter()
    second = run()  # the result is on the host, so the device has finished
    took = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
    return Measured(took, peak, first == second)


# -------------------------------------------------------------------------------------------------------------- jobs


def picture_runs(network: Transformer, scale: Scale, cells: tuple[int, int], *, released: bool) -> Iterator[tuple]:
    """(job, way, run) of text-to-image and of an edit of a picture as large."""
    table = scale.size.table
    for name, job in {"image": ImageJob(cells, scale.words), "edit": ImageJob(cells, scale.words, cells)}.items():
        if released:
            yield name, "baseline", released_picture(network, scale, job)
        for way, cache in PRESETS.items():
            settings = ImageSettings(scale.steps, cache=cache)
            way = "exact" if cache is None else f"ML-Cache {way}"
            yield name, way, lambda job=job, settings=settings: job.run(network, table, settings)


def released_picture(network: Transformer, scale: Scale, job: ImageJob) -> Run:
    """The picture, the released way. Its own copies of weights are made here, before anything is timed."""
    device = next(network.parameters()).device
    sequences, scales = job.sequences(scale.size.table)
    ids = [one.to(device) for one in sequences]
    released, table = baseline.Released(network), scale.size.table

    def run() -> list[int]:
        codes = baseline.sample_image(released, table, ids, scales, steps=scale.steps, temperature=1.0, seed=0)
        return codes.tolist()

    return run


def answer_runs(network: Transformer, scale: Scale, cells: tuple[int, int], *, released: bool) -> Iterator[tuple]:
    """(job, way, run) of a question about a picture."""
    table, job = scale.size.table, TextJob(cells, scale.words)
    if released:
        yield "understanding", "baseline", released_answer(network, scale, job)
    for way, policy in SPEEDS.items():
        steady = replace(policy, threshold=None)
        settings = TextSettings(scale.tokens, scale.tokens, scale.block, policy=steady)
        yield "understanding", way, lambda settings=settings: job.run(network, table, settings)


def released_answer(network: Transformer, scale: Scale, job: TextJob) -> Run:
    """The answer, the released way, as `released_picture`."""
    ids = job.sequence(scale.size.table, scale.tokens).to(next(network.parameters()).device)
    how = {"steps": scale.tokens, "block_length": scale.block}
    released = baseline.Released(network)
    return lambda: baseline.sample_text(released, scale.size.table, ids, **how)


def training_runs(network: Transformer, scale: Scale, cells: tuple[int, int], *, released: bool) -> Iterator[tuple]:
    """(job, way, run) of a LoRA that is taught for a few steps beside the weights, batch 1, blocks computed again
    backward. There is no baseline: the released code has no LoRA."""
    shape, vocab = StepShape(*cells, prompt=scale.words), scale.size.table.codes
    device = next(network.parameters()).device

    def run() -> list[int]:
        adapter = Adapter.blank(network, rank=RANK, alpha=RANK, device=device)
        taught = partial(network.recompute(), adapters=Adapters([Applied(adapter)]))
        optimisers = build_optimisers(adapter.named_parameters(), OptimiserSettings())
        for _ in range(TAUGHT):
            take_step(taught, list(adapter.parameters()), optimisers, shape.hidden(vocab, str(device)))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        network.recompute(False)
        return [TAUGHT]

    yield "train LoRA", f"rank {RANK}, {TAUGHT} steps", run


def decode_run(vq: VQ, cells: tuple[int, int]) -> Run:
    """Codes to pixels, of which the corners come back."""
    codes = torch.arange(cells[0] * cells[1], device=next(vq.parameters()).device).view(1, *cells)
    codes = codes % vq.config.codebook_size
    return lambda: vq.decode(codes)[0, :, :: 8 * cells[0], :: 8 * cells[1]].tolist()


# ----------------------------------------------------------------------------------------------------------- weights


def build(scale: Scale, kind: str, device: torch.device) -> Transformer:
    """The transformer with weights of a kind, stored as in a file that `convert` writes."""
    if kind == "bf16":
        return scale.size.build(device, torch.bfloat16)

    def finish(name: str, layer: nn.Module) -> None:
        fields = quantised_as(f"{name}.weight", kind)
        if fields is None:
            return
        factor = scale_of(largest_magnitude(layer.weight, fields.format), fields.format)
        state = {"weight": quantise(layer.weight, factor, fields.format), "weight_scale": factor}
        take_quantised(layer, state | {"comfy_quant": fields.to_tensor()}, "")

    return scale.size.build(device, torch.bfloat16, ops=LAYERS, finish=finish)


def held(network: nn.Module) -> int:
    """Bytes of the weights."""
    return sum(weight.nbytes for weight in network.parameters())


def build_vq(scale: Scale, device: torch.device) -> VQ:
    """The VQ with random weights, in fp32 as it is published."""
    vq = VQ(scale.vq, device="meta", dtype=torch.float32).eval().requires_grad_(False).to_empty(device=device)
    for weight in vq.parameters():
        weight.normal_(std=0.02) if weight.ndim > 1 else weight.fill_(1)
    return vq


# ------------------------------------------------------------------------------------------------------------- table


def heading(device: torch.device) -> Iterator[str]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, which says nothing about a GPU"
    yield f"Device: {name}. torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}."
    yield f"Commit {commit()}, {date.today()}. GB are 10^9 bytes, the peak is beside the weights; x: baseline."
    yield ""
    yield "| picture, px | weights | job | way | seconds | x | weights GB | peak GB | same tokens again |"
    yield "|---|---|---|---|---|---|---|---|---|"


def rows(
    network: Transformer, scale: Scale, kind: str, sizes: Sequence[tuple[int, int]], slow: dict[str, float]
) -> Iterator[tuple[str, bool]]:
    """The table's lines for one kind of weights, each with whether its tokens were the same again. slow: seconds of the
    baseline by size and job; it runs with bf16 weights, which fills them in."""
    device, at = next(network.parameters()).device, {"released": kind == "bf16"}
    for width, height in sizes:
        cells, size = (height // CELL, width // CELL), f"{width}x{height}"
        runs = (one(network, scale, cells, **at) for one in (picture_runs, answer_runs, training_runs))
        for job, way, run in chain.from_iterable(runs):  # made one by one, so that each can use the memory of the last
            measured = measure(run, device)
            if way == "baseline":
                slow[f"{size} {job}"] = measured.seconds
            text = line(f"{size} | {kind} | {job} | {way}", measured, held(network), slow.get(f"{size} {job}"))
            yield text, measured.same


def line(name: str, measured: Measured, weights: int, baseline_seconds: float | None) -> str:
    """One line of the table; weights: their bytes."""
    ratio = "-" if baseline_seconds is None else f"{baseline_seconds / measured.seconds:.2f}"
    peak = "-" if measured.peak is None else f"{measured.peak / 1e9:.2f}"
    same = "yes" if measured.same else "NO"
    return f"| {name} | {measured.seconds:.2f} | {ratio} | {weights / 1e9:.2f} | {peak} | {same} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Hands back 1 where a second run gives other tokens."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="where to run (cuda)")
    parser.add_argument("--weights", nargs="+", choices=KINDS, default=KINDS, help="kinds of weights (all)")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and pictures, which measure nothing")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    scale, sizes = (SMALL, ((96, 64),)) if options.tiny else (FULL, SIZES)
    print(*heading(device), sep="\n", flush=True)
    different = 0
    slow: dict[str, float] = {}
    for kind in options.weights:
        for text, same in rows(build(scale, kind, device), scale, kind, sizes, slow):
            print(text, flush=True)
            different += not same
    vq = build_vq(scale, device)
    for width, height in sizes:
        measured = measure(decode_run(vq, (height // CELL, width // CELL)), device)
        print(line(f"{width}x{height} | fp32 | VQ decode | whole", measured, held(vq), None), flush=True)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
