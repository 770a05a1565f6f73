"""What the jobs cost at the published size, counted on tensors without data: `python -m bench.counts`.

A pass over a picture of 1024x1024 px beside the released code; how much less a whole picture costs with each preset of
ML-Cache; and an answer of 128 tokens, in blocks of 32, to a question of 60 tokens about a picture of 1024x1024 px. How
many tokens of an answer a step decides above the threshold depends on weights and picture: counted is for 1 and, as an
assumption, for 3.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dimoo_core.model.transformer import Transformer
from dimoo_core.sampling.branch import KeyValues
from dimoo_core.sampling.guidance import Branch, Guidance
from dimoo_core.sampling.image import ImageSettings, sample_image
from dimoo_core.sampling.ml_cache import PRESETS, PUBLISHED, CachePolicy
from dimoo_core.sampling.schedule import cosine
from dimoo_core.sampling.text import TextSettings, sample_text
from dimoo_core.sampling.text_cache import SPEEDS, TextPolicy
from dimoo_core.sequence.canvas import Canvas
from dimoo_core.sequence.layout import answer_length
from dimoo_core.sequence.token_table import RELEASED
from dimoo_core.training.footprint import attention

from .baseline import Released
from .op_counts import OpCounts
from .record import made_with, write_section
from .workload import RELEASED_SIZE, Size, TextJob

STEPS, GRID = 64, (64, 64)  # of a picture of 1024x1024 px
PICTURE_LENGTH = 60 + answer_length(*GRID)  # with the prompt
# side in cells, prefix lengths of the branches: a picture from words at 1024x1024 px, an edit at 512x512
JOBS = {"words": (64, (60, 46)), "edit": (32, (1142, 1132, 84))}

ANSWER = TextJob(GRID, 60)
TOKENS, BLOCK = 128, 32
SURE = 3
_SMALL = Size(1, 1, 1, 1, 320, 64)  # only its ids are used


def mean_holes(cells: int = GRID[0] * GRID[1], steps: int = STEPS) -> int:
    """Holes before a step, on average over a run."""
    plan = [cells, *cosine(cells, steps)[:-1]]
    return round(sum(plan) / len(plan))


def flops(run: Callable[[], object]) -> int:
    """Floating point operations of products, by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def traffic(run: Callable[[], object]) -> int:
    """Bytes read and written between matrix products and attention."""
    with OpCounts() as counts, torch.no_grad():
        run()
    return counts.traffic()


# -------------------------------------------------------------------------------------------------------- a picture


@dataclass(frozen=True)
class PassCost:
    """One pass of the transformer over a whole sequence."""

    flops: int
    traffic: int
    logits: int  # bytes


def picture_passes() -> dict[str, PassCost]:
    """A pass over a picture of 1024x1024 px with the mean number of holes, here and in the released code, in bf16."""
    network = RELEASED_SIZE.build("meta", torch.bfloat16, attention=attention)
    released = Released(network, attention=attention)
    ids, rows = _blank(PICTURE_LENGTH), _blank(mean_holes())

    def ours() -> Tensor:
        return network(ids, rows=rows, vocab=RELEASED.codes)

    def theirs() -> Tensor:
        return released(ids)

    with torch.no_grad():
        logits = {"ours": ours().nbytes, "released": theirs().nbytes}
    runs = {"ours": ours, "released": theirs}
    return {name: PassCost(flops(run), traffic(run), logits[name]) for name, run in runs.items()}


def pass_flops(computed: int, length: int, rows: int) -> int:
    """Of `computed` positions that see `length`; the last layer's queries and feed-forward, and the head, at `rows`."""
    width, hidden, layers = RELEASED_SIZE.width, RELEASED_SIZE.hidden, RELEASED_SIZE.layers
    keys, others, seeing = 4 * width**2, 4 * width**2 + 6 * width * hidden, 4 * length * width
    head = 2 * width * RELEASED.codebook_size
    return (layers - 1) * computed * (keys + others + seeing) + computed * keys + rows * (others + seeing + head)


def picture_flops(job: str, policy: CachePolicy | None, guidance_start: float = 0.0) -> int:
    """Of a whole picture of one of JOBS, by the passes that the sampler asks for."""
    side, prefixes = JOBS[job]
    chance, total = torch.Generator().manual_seed(0), 0
    lengths: dict[int, int] = {}

    def call(
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        cache: KeyValues | None = None,
        rows: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        nonlocal total
        computed = ids.shape[1]
        length = computed if positions is None else lengths[id(cache)]
        if cache is not None:
            lengths[id(cache)] = length
        count = computed if rows is None else rows.shape[1]
        total += pass_flops(computed, length, count)
        return torch.randn(1, count, table.codebook_size, generator=chance)

    table = replace(RELEASED, codebook_size=32)
    prefix, *others = (torch.zeros(1, length, dtype=torch.int64) for length in prefixes)
    plan = ImageSettings(steps=STEPS, cache=policy, guidance=Guidance(start=guidance_start))
    sample_image(call, table, Canvas.empty(1, side, side), prefix, [Branch(one, 4.0) for one in others], settings=plan)
    return total


def preset_shares() -> dict[str, dict[str, float]]:
    """Work of each preset of ML-Cache, and of the published policy, as a share of exact sampling, for each of JOBS."""
    exact = {job: picture_flops(job, None) for job in JOBS}
    policies = {"published": PUBLISHED, **{name: policy for name, policy in PRESETS.items() if policy is not None}}
    return {name: {job: picture_flops(job, policy) / exact[job] for job in JOBS} for name, policy in policies.items()}


# -------------------------------------------------------------------------------------------------------- an answer


@dataclass(frozen=True)
class Pass:
    """One pass of the transformer: positions computed (all of them or some) and rows of logits."""

    positions: int
    rows: int


@dataclass(frozen=True)
class AnswerCost:
    """An answer: passes, positions computed in all of them, floating point operations."""

    passes: int
    positions: int
    flops: int


def passes(policy: TextPolicy, sure: int) -> list[Pass]:
    """The passes of an answer if at every step `sure` tokens are above the threshold."""
    table = _SMALL.table
    seen: list[Pass] = []

    def call(ids: Tensor, *, rows: Tensor, **_: object) -> Tensor:
        seen.append(Pass(ids.shape[1], rows.shape[1]))
        undecided = ids.gather(1, rows) == table.mask
        certain = undecided & (undecided.cumsum(dim=1) <= sure)
        return certain[..., None] * 50 * torch.eye(_SMALL.vocabulary)[0]

    sample_text(call, table, ANSWER.prefix(table), settings=TextSettings(TOKENS, TOKENS, BLOCK, policy=policy))
    return seen


class Price:
    """The cost of passes through a network without data in a sequence of `length`."""

    def __init__(self, network: Transformer, length: int):
        self.network, self.length, self.kept = network, length, KeyValues()
        self._known: dict[Pass, int] = {}
        with torch.no_grad():  # the keys and values that a pass over a part finds stored
            network(_blank(length), rows=_blank(1), cache=self.kept)

    def __call__(self, one: Pass) -> int:
        """Floating point operations of a pass."""
        if one not in self._known:
            ids, rows = _blank(one.positions), _blank(one.rows)
            if one.positions == self.length:
                self._known[one] = flops(lambda: self.network(ids, rows=rows))
            else:
                self._known[one] = flops(lambda: self.network(ids, rows=rows, positions=ids, cache=self.kept))
        return self._known[one]


def answer_cost(price: Price, policy: TextPolicy, sure: int = 1) -> AnswerCost:
    """An answer if at every step `sure` tokens are above the threshold."""
    seen = passes(policy, sure)
    return AnswerCost(len(seen), sum(one.positions for one in seen), sum(map(price, seen)))


def answer_costs() -> dict[str, AnswerCost]:
    """An answer in the released way, and one or two for each speed, by name."""
    length = ANSWER.sequence(_SMALL.table, TOKENS).shape[1]
    network = RELEASED_SIZE.build("meta", torch.bfloat16)
    price, released = Price(network, length), Released(network)
    costs = {"released": AnswerCost(TOKENS, TOKENS * length, TOKENS * flops(lambda: released(_blank(length))))}
    for name, policy in SPEEDS.items():
        costs[f"{name}, 1 token a step"] = answer_cost(price, replace(policy, threshold=None))
        if policy.threshold is not None:
            costs[f"{name}, {SURE} tokens a step"] = answer_cost(price, policy, SURE)
    return costs


def _blank(count: int) -> Tensor:
    return torch.zeros(1, count, dtype=torch.int64, device="meta")


# ------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.counts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write section `counted` of this file")
    options = parser.parse_args(arguments)
    pictures, shares, answers = picture_passes(), preset_shares(), answer_costs()
    print(f"{'a pass at 1024x1024 px':<28}{'TFLOP':>8}{'traffic GB':>12}{'logits GB':>11}")
    for name, one in pictures.items():
        print(f"{name:<28}{one.flops / 1e12:>8.1f}{one.traffic / 1e9:>12.0f}{one.logits / 1e9:>11.2f}")
    print(f"\n{'work of exact sampling':<28}{'1024x1024':>10}{'edit 512':>10}")
    for name, share in shares.items():
        print(f"{name:<28}{share['words']:>10.0%}{share['edit']:>10.0%}")
    print(f"\n{f'{TOKENS} tokens, blocks of {BLOCK}':<28}{'passes':>8}{'positions':>12}{'PFLOP':>9}{'of released':>13}")
    for name, cost in answers.items():
        ratio = f"1/{answers['released'].flops / cost.flops:.1f}"
        print(f"{name:<28}{cost.passes:>8}{cost.positions:>12}{cost.flops / 1e15:>9.3f}{ratio:>13}")
    if options.json:
        content = {
            **made_with("python -m bench.counts --json docs/performance.json"),
            "passes": {name: vars(one) for name, one in pictures.items()},
            "shares": shares,
            "answers": {name: vars(one) for name, one in answers.items()},
        }
        write_section(options.json, "counted", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
