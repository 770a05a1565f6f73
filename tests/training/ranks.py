"""Short trainings of a tiny checkpoint, in one process or in two that torchrun starts, for test_sharded.py.

    torchrun --nproc-per-node 2 -m tests.training.ranks PLACE

makes every run of `main` in the folder PLACE; each process leaves what it saw in PLACE/seen-RANK.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dimoo_core.checkpoint.find import Found, find
from dimoo_core.checkpoint.load import load_tokenizer, load_transformer
from dimoo_core.model.adapters import Adapter, Adapters, Applied
from dimoo_core.sequence.prompt import DESCRIBE, GENERATE, Prompt
from dimoo_core.training import processes
from dimoo_core.training.batches import SampleBatches
from dimoo_core.training.dataset import Sample
from dimoo_core.training.engine import Engine, Single, learn_every_row
from dimoo_core.training.loop import Step, Trainer, TrainSettings
from dimoo_core.training.processes import Replicated, joined
from dimoo_core.training.sequences import Sequences
from dimoo_core.training.sharded import Sharded, sharded_transformer
from dimoo_core.training.tune import export

from ..tiny import CODES

CPU = torch.device("cpu")
Seen = list[tuple[float, float]]  # the loss and the gradient's norm of each step


def samples() -> list[Sample]:
    """Pictures of two sizes with captions of unequal length, and questions about them."""
    dice = torch.Generator().manual_seed(0)
    found = []
    for number in range(7):
        codes = torch.randint(0, CODES, (2 + number % 2, 3), generator=dice)
        found.append(Sample(Prompt(GENERATE, "a fox" + "x" * number), codes, name=str(number)))
        found.append(Sample(Prompt(DESCRIBE, "what?", images=(codes[None],)), "a hat " * number or "b"))
    return found


def settings(steps: int, **values: Any) -> TrainSettings:
    given = {"rate": 1e-2, "matrix_rate": 0.0, "warm_up": 0, "schedule": "constant", "save_every": 3, **values}
    return TrainSettings(steps=steps, **given)


def batches(found: Found, engine: Engine) -> SampleBatches:
    sequences = Sequences(load_tokenizer(found), found.table)
    return SampleBatches(
        samples(), sequences, found.table.mask, size=4, at_once=2, seed=0, rank=engine.rank, ranks=engine.size
    )


def watched(trainer: Trainer, on_step: Any = None) -> Seen:
    seen: Seen = []

    def after(step: Step) -> None:
        seen.append((step.loss, step.gradient_norm))
        if on_step is not None:
            on_step(step)

    trainer.run(after)
    return seen


def single(found: Found, folder: Path, steps: int) -> Seen:
    """All weights, in one process without FSDP."""
    network = load_transformer(found, dtype=torch.float32).requires_grad_(True).train()
    learn_every_row(network)
    engine = Single(CPU, mixed=False)
    weights = dict(network.named_parameters())
    return watched(Trainer(network, weights, batches(found, engine), settings(steps), engine=engine, folder=folder))


def in_shards(
    found: Found,
    folder: Path,
    steps: int,
    *,
    shards: int | None = None,
    mixed: bool = False,
    offload: bool = False,
    recompute: bool = False,
    to: Path | None = None,
    on_step: Any = None,
) -> Seen:
    """All weights, sharded over the processes that have joined; exported `to` a checkpoint."""
    network = sharded_transformer(found, CPU, shards=shards, mixed=mixed, offload=offload).recompute(recompute)
    engine = Sharded(network, CPU)
    weights = dict(network.named_parameters())
    trainer = Trainer(network, weights, batches(found, engine), settings(steps), engine=engine, folder=folder)
    seen = watched(trainer, on_step)
    if to is not None:
        export(to, found, network, engine)
    return seen


def lora(found: Found, folder: Path, steps: int, *, several: bool) -> Seen:
    """A LoRA, whole in every process."""
    network = load_transformer(found, dtype=torch.float32)
    adapter = Adapter.blank(network, rank=2, alpha=2, generator=torch.Generator().manual_seed(0))
    weights = dict(adapter.named_parameters())
    engine: Engine = Replicated(CPU, weights, mixed=False) if several else Single(CPU, mixed=False)
    taught = partial(network, adapters=Adapters([Applied(adapter)]))
    return watched(Trainer(taught, weights, batches(found, engine), settings(steps), engine=engine, folder=folder))


def stopped(found: Found, folder: Path, rank: int) -> str:
    """The second process is asked to stop after its second step; what each of them says."""

    def ask(step: Step) -> None:
        if rank == 1 and step.number == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        in_shards(found, folder, 6, on_step=ask)
    except KeyboardInterrupt as stop:
        return str(stop)
    return "not stopped"


def alone(engine: Sharded) -> bool:
    """Whether a process that fails by itself, and the other, which fails when it has left, believe to be together."""
    processes._MEETING = timedelta(seconds=0.5)
    first = engine.rank == 1 and engine.together()
    engine.wait()
    return engine.together() if engine.rank == 0 else first


def main(place: Path) -> None:
    torch.set_num_threads(1)
    found = find(place / "model")
    seen: dict[str, Any] = {}
    with joined(CPU):
        rank = torch.distributed.get_rank()
        seen["straight"] = in_shards(found, place / "straight", 6, to=place / "tuned")
        seen["first"] = in_shards(found, place / "broken", 3)
        seen["resumed"] = in_shards(found, place / "broken", 6)
        seen["from one"] = in_shards(found, place / "from one", 6)
        seen["from single"] = in_shards(found, place / "from single", 6)
        seen["copies"] = in_shards(found, place / "copies", 3, shards=1)
        seen["offloaded"] = in_shards(found, place / "offloaded", 3, offload=True)
        seen["recomputed"] = in_shards(found, place / "recomputed", 3, recompute=True)
        seen["mixed"] = in_shards(found, place / "mixed", 3, mixed=True, recompute=True)
        seen["lora"] = lora(found, place / "lora", 3, several=True)
        seen["stopped"] = stopped(found, place / "stopped", rank)
        network = sharded_transformer(found, CPU)
        engine = Sharded(network, CPU)
        seen["sum, most"] = [engine.sum(0.1 + rank), engine.most(3 - rank)]
        seen["rows held"] = [weight.to_local().shape[0] for weight in network.parameters()]
        seen["alone"] = alone(engine)
    (place / f"seen-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # torch's threads may end a process with an error after all its work
