"""What an answer costs at the published size, counted on tensors without data: `python -m bench.counts`.

A question of 60 tokens about a picture of 1024x1024 px, 128 tokens in blocks of 32. How many tokens a step decides
above the threshold is up to weights and picture; counted is for 1 and, as an assumption, for 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dimoo_core.model.transformer import Transformer
from dimoo_core.sampling.branch import KeyValues
from dimoo_core.sampling.text import TextSettings, sample_text
from dimoo_core.sampling.text_cache import SPEEDS, TextPolicy

from .baseline import Released
from .workload import RELEASED_SIZE, Size, TextJob

JOB = TextJob((64, 64), 60)
TOKENS, BLOCK = 128, 32
SURE = 3
_SMALL = Size(1, 1, 1, 1, 320, 64)  # of which only the ids are used


@dataclass(frozen=True)
class Pass:
    """One pass of the transformer: positions computed (all of them or some), rows of logits, whether it stores."""

    positions: int
    rows: int
    stores: bool


def passes(policy: TextPolicy, sure: int) -> list[Pass]:
    """The passes of an answer if at every step `sure` tokens are above the threshold."""
    table, seen = _SMALL.table, []

    def call(ids: Tensor, *, rows: Tensor, cache: KeyValues | None = None, **_: Tensor) -> Tensor:
        seen.append(Pass(ids.shape[1], rows.shape[1], cache is not None))
        certain = torch.arange(rows.shape[1]) < sure
        return torch.where(certain, 50.0, 0.0)[:, None] * torch.eye(_SMALL.vocabulary)[0] + torch.zeros(1, 1, 1)

    sample_text(call, table, JOB.prefix(table), settings=TextSettings(TOKENS, TOKENS, BLOCK, policy=policy))
    return seen


def flops(run: Callable[[], object]) -> int:
    """Floating point operations of products, by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


class Price:
    """What passes through a network without data cost in a sequence of `length`."""

    def __init__(self, network: Transformer, length: int):
        self.network, self.length, self.kept, self._known = network, length, KeyValues(), {}
        with torch.no_grad():  # what a pass over a part finds stored
            network(_blank(length), rows=_blank(1), cache=self.kept)

    def __call__(self, one: Pass) -> int:
        """Floating point operations of a pass."""
        key = (one.positions, one.rows)
        if key not in self._known:
            ids, rows = _blank(one.positions), _blank(one.rows)
            part = {} if one.positions == self.length else {"positions": ids, "cache": self.kept}
            self._known[key] = flops(lambda: self.network(ids, rows=rows, **part))
        return self._known[key]


def cost(price: Price, policy: TextPolicy, sure: int = 1) -> tuple[int, int, int]:
    """Passes of an answer, positions computed in all of them and floating point operations."""
    seen = passes(policy, sure)
    return len(seen), sum(one.positions for one in seen), sum(map(price, seen))


def _blank(count: int) -> Tensor:
    return torch.zeros(1, count, dtype=torch.int64, device="meta")


def main() -> None:
    """Prints a line for the released way and two for each speed."""
    length = JOB.sequence(_SMALL.table, TOKENS).shape[1]
    network = RELEASED_SIZE.build("meta", torch.bfloat16)
    price, released = Price(network, length), TOKENS * flops(lambda: Released(network)(_blank(length)))
    print(f"{length} positions, {TOKENS} tokens in {TOKENS} steps, blocks of {BLOCK}")
    print(f"{'':<28}{'passes':>8}{'positions':>12}{'PFLOP':>9}{'of released':>13}")
    rows = {"released": (TOKENS, TOKENS * length, released)}
    for name, policy in SPEEDS.items():
        rows[f"{name}, 1 token a step"] = cost(price, replace(policy, threshold=None))
        if policy.threshold is not None:
            rows[f"{name}, {SURE} tokens a step"] = cost(price, policy, SURE)
    for name, (count, positions, total) in rows.items():
        print(f"{name:<28}{count:>8}{positions:>12}{total / 1e15:>9.3f}{'1/' + format(released / total, '.1f'):>13}")


if __name__ == "__main__":
    main()
