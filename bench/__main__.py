"""Process time and peak memory on the CPU: `nox -s bench`. The last lines read `ratio NAME VALUE`.

One thread; process time, because other processes slow down wall time; the ways of a job take turns, in reverse order
every other time; medians. Where both do the same, exact or with the published ML-Cache, ours must give the very tokens
of the baseline, or the bench fails.

What a CPU can show: the model of most jobs keeps the published one's proportions (head to body 8 %, attention to body
16 % at 522 positions), so its ratios are about those of the arithmetic. It does not show what a GPU gains by fewer
bytes and launches. The picture of 1024x1024 px has all its positions, 4352 with the question and 128 tokens of answer,
but the model that reads it is smaller than in proportion, so attention weighs more than it should; positions computed
fall by the same factor for both. There the threshold is off, because how certain a model of random weights is means
nothing: every token takes a step of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from dimoo_core.sampling.image import ImageSettings
from dimoo_core.sampling.ml_cache import PRESETS, PUBLISHED, CachePolicy
from dimoo_core.sampling.text import TextSettings
from dimoo_core.sampling.text_cache import SPEEDS
from dimoo_core.training.live_bytes import LiveBytes

from . import baseline
from .record import made_with, write_section
from .workload import TINY, ImageJob, Size, TextJob

PROPORTIONED = Size(512, 8, 4, 1536, 4224, 256)
READER = Size(256, 3, 2, 768, 800, 96)

Run = Callable[[bool], list[int]]  # its tokens; True: in as few steps as show every kind of step


@dataclass(frozen=True)
class Trial:
    """A job in several ways. equal: pairs of ways that must give the same tokens. ratios: (name, slower, faster)."""

    name: str
    ways: dict[str, Run]
    equal: Sequence[tuple[str, str]]
    ratios: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Outcome:
    """Median seconds and peak bytes of each way, and the ways whose tokens are wrong."""

    seconds: dict[str, float]
    peaks: dict[str, int]
    wrong: list[str] = field(default_factory=list)


def measure(trial: Trial, repeats: int) -> Outcome:
    """Run every way `repeats` times, and once more, in few steps, for its memory."""
    peaks: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in trial.ways}
    tokens: dict[str, list[int]] = {}
    for name, run in trial.ways.items():  # also warms up
        with LiveBytes() as live:
            run(True)
        peaks[name] = live.peak
    order = list(trial.ways)
    for _ in range(repeats):
        for name in order:
            start = time.process_time()
            tokens[name] = trial.ways[name](False)
            times[name].append(time.process_time() - start)
        order.reverse()
    wrong = [other for one, other in trial.equal if tokens[one] != tokens[other]]
    return Outcome({name: statistics.median(took) for name, took in times.items()}, peaks, wrong)


# ------------------------------------------------------------------------------------------------------------ trials


def image_trial(kind: str, size: Size, job: ImageJob, steps: int) -> Trial:
    """An image job as released, exact and with ML-Cache: the published policy, which the released code has for
    text-to-image alone, and every preset."""
    network, table = size.build("cpu", torch.float32), size.table
    released = baseline.Released(network)
    sequences, scales = job.sequences(table)

    def slow(cache: CachePolicy | None) -> Run:
        def run(short: bool) -> list[int]:
            how = {"steps": 4 if short else steps, "temperature": 1.0, "seed": 0, "cache": cache}
            return baseline.sample_image(released, table, sequences, scales, **how).tolist()

        return run

    def ours(cache: CachePolicy | None) -> Run:
        return lambda short: job.run(network, table, ImageSettings(4 if short else steps, 1.0, 0, cache))

    ways, equal = {"baseline": slow(None), "exact": ours(None)}, [("baseline", "exact")]
    ratios = [(f"{kind}_exact", "baseline", "exact"), (f"{kind}_ml_cache", "baseline", "ML-Cache balanced")]
    published = "ML-Cache as published"
    if job.picture is None:
        ways["baseline, ML-Cache"] = slow(PUBLISHED)
        equal.append(("baseline, ML-Cache", published))
        for name, way in {"published": published, "balanced": "ML-Cache balanced", "fast": "ML-Cache fast"}.items():
            ratios.append((f"{kind}_{name}_over_cache", "baseline, ML-Cache", way))
    ways[published] = ours(PUBLISHED)
    ways |= {f"ML-Cache {name}": ours(cache) for name, cache in PRESETS.items() if cache is not None}
    return Trial(f"{kind}, {_positions(sequences)} positions, {steps} steps", ways, equal, ratios)


def answer_trial(size: Size, job: TextJob, tokens: int, block: int) -> Trial:
    """A question as released and exact."""
    network, table = size.build("cpu", torch.float32), size.table
    released, sequence = baseline.Released(network), job.sequence(table, tokens)

    def slow(short: bool) -> list[int]:
        return baseline.sample_text(
            released, table, sequence, steps=tokens // block if short else tokens, block_length=block
        )

    def ours(short: bool) -> list[int]:
        return job.run(network, table, TextSettings(tokens, tokens // block if short else tokens, block))

    name = f"understanding, {_positions([sequence])} positions, {tokens} tokens in as many steps, blocks of {block}"
    ratios = [("understanding_exact", "baseline", "exact")]
    return Trial(name, {"baseline": slow, "exact": ours}, [("baseline", "exact")], ratios)


def reading_trial(size: Size, job: TextJob, tokens: int, block: int) -> Trial:
    """A question about a large picture, exact and with each cache between steps."""
    network, table = size.build("cpu", torch.float32), size.table
    steady = {name: replace(policy, threshold=None) for name, policy in SPEEDS.items()}

    def ours(name: str) -> Run:
        def run(short: bool) -> list[int]:
            steps = 2 * tokens // block if short else tokens
            return job.run(network, table, TextSettings(tokens, steps, block, policy=steady[name]))

        return run

    name = f"understanding, {_positions([job.sequence(table, tokens)])} positions, {tokens} tokens in as many steps"
    ways = {name: ours(name) for name in SPEEDS}
    ratios = [("understanding_cached", "exact", "balanced"), ("understanding_fast", "exact", "fast")]
    return Trial(f"{name}, blocks of {block}", ways, [], ratios)


def trials(tiny: bool) -> Iterator[Trial]:
    """Every job; tiny: of a size that takes seconds and measures nothing."""
    if tiny:
        yield image_trial("image", TINY, ImageJob((6, 6), 8), 8)
        yield image_trial("edit", TINY, ImageJob((5, 5), 8, picture=(5, 5)), 8)
        yield answer_trial(TINY, TextJob((6, 6), 8), 8, 4)
        yield reading_trial(TINY, TextJob((12, 12), 8), 16, 8)
        return
    # 522, 300 and 535 positions: an eighth of the published model's, as its width is an eighth (edits at 512x512)
    yield image_trial("image", PROPORTIONED, ImageJob((21, 21), 56), 16)
    yield image_trial("edit", PROPORTIONED, ImageJob((11, 11), 30, picture=(11, 11)), 16)
    yield answer_trial(PROPORTIONED, TextJob((21, 20), 58), 32, 8)
    yield reading_trial(READER, TextJob((64, 64), 60), 128, 32)


def _positions(sequences: Sequence[torch.Tensor]) -> str:
    return " + ".join(str(one.shape[1]) for one in sequences)


# ------------------------------------------------------------------------------------------------------------ report


def lines(trial: Trial, outcome: Outcome) -> Iterator[str]:
    """What was measured, as text."""
    yield f"{trial.name}"
    slowest = next(iter(outcome.seconds.values()))
    for name, seconds in outcome.seconds.items():
        peak = outcome.peaks[name] / 1e6
        yield f"    {name:<24}{seconds:>9.2f} s{slowest / seconds:>8.2f}x{peak:>10.1f} MB beside the weights"
    yield from (f"    {name}: NOT the tokens of the baseline" for name in outcome.wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where tokens differ that must not."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="times that every way is run (3)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only jobs whose line has one of these words")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write section `cpu` of this file")
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds and measure nothing")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1.")
    torch.set_num_threads(1)
    ratios: dict[str, float] = {}
    jobs: dict[str, Outcome] = {}
    wrong = 0
    for trial in trials(options.tiny):
        if options.only and not any(word in trial.name for word in options.only):
            continue
        outcome = measure(trial, options.repeats)
        print(*lines(trial, outcome), sep="\n", flush=True)
        ratios |= {name: outcome.seconds[slow] / outcome.seconds[fast] for name, slow, fast in trial.ratios}
        jobs[trial.name] = outcome
        wrong += len(outcome.wrong)
    if options.json:
        made = made_with("python -m bench --json docs/performance.json")
        content = {
            **made,
            "machine": f"{os.cpu_count()} CPU cores, one thread",
            "repeats": options.repeats,
            "ratios": ratios,
        }
        write_section(options.json, "cpu", content | {"jobs": {name: asdict(one) for name, one in jobs.items()}})
    cache = ("image_published_over_cache", "image_balanced_over_cache", "image_fast_over_cache")
    order = ("image_exact", "image_ml_cache", *cache, "edit_ml_cache", "understanding_exact", "understanding_cached")
    print(*(f"ratio {name} {ratios[name]:.2f}" for name in order if name in ratios), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
