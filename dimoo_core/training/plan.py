"""What teaching a LoRA takes, and whether that is there: counted and told before the model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checkpoint.find import Found
from ..devices import free_bytes
from ..files import size_in_words
from ..model.quantised import FP8, INT8
from ..pictures.sizes import CELL
from ..sequence.layout import answer_length
from .folder import Item
from .footprint import StepCost, StepShape, blank_base, lora_step_cost, products_per_second
from .lora import LoraSettings
from .room import memory_bytes
from .sequences import Layout

_AROUND = 40  # tokens beside a caption's or an answer's own: of the system prompt, or of what fills an answer up


def step_cost(
    found: Found, items: Sequence[Item], settings: LoraSettings, dtype: torch.dtype | None, *, recompute: bool
) -> StepCost:
    """What the costliest step costs that items ask for, beside a base in `dtype` (None: as it is stored), counted on
    tensors without data."""
    formats = found.formats if dtype is None else frozenset()
    kind = "int8" if INT8 in formats else "fp8" if FP8 in formats else "bf16"
    base = blank_base(
        found.config, found.table.code_offset, kind, torch.float32 if dtype == torch.float32 else torch.bfloat16
    )
    costs = [
        lora_step_cost(base, shape, rank=settings.rank, vocab=vocab, targets=settings.targets, recompute=recompute)
        for shape, vocab in _longest(found, items, settings.batch)
    ]
    return max(costs, key=lambda cost: cost.bytes)


def _longest(found: Found, items: Sequence[Item], batch: int) -> list[tuple[StepShape, slice]]:
    """The longest sequence that ends in a picture, and the longest that ends in words, which come from all rows of the
    vocabulary. Words count as one token for two letters, more than they have."""
    pictures, texts = [], []
    for item in items:
        images = (image.fitted for image in item.images)
        prompt = _AROUND + len(item.text) // 2 + sum(answer_length(h // CELL, w // CELL) for w, h in images)
        if isinstance(item.answer, str):
            places = Layout.of(found.table).places or len(item.answer) // 2 + _AROUND
            texts.append(StepShape(1, places, prompt, batch))
        else:
            width, height = item.answer.fitted
            pictures.append(StepShape(height // CELL, width // CELL, prompt, batch))
    kinds = ((pictures, found.table.codes), (texts, slice(0, found.config.vocab_size)))
    return [(max(shapes, key=lambda shape: shape.tokens), vocab) for shapes, vocab in kinds if shapes]


def check_memory(cost: StepCost, where: torch.device) -> None:
    """Raises ValueError where a step needs more memory than a device has free, or than the machine has."""
    free = memory_bytes() if where.type == "cpu" else free_bytes(where)
    if free is not None and cost.bytes > free:
        raise ValueError(
            f"A step needs {size_in_words(cost.bytes)}, and {where} has {size_in_words(free)}: use an int8 checkpoint "
            "(see `convert`), a smaller side, a batch of 1 or fewer targets."
        )


def plan_lines(samples: int, settings: LoraSettings, cost: StepCost, where: torch.device) -> list[str]:
    """Steps, memory and time in words; samples: how many there are, repeats included."""
    size, steps = settings.batch * settings.accumulate, settings.train.steps
    seconds = steps * settings.accumulate * cost.flops / products_per_second(where)
    return [
        f"steps: {steps} of {size} sample{'s' * (size != 1)}, {steps * size / max(samples, 1):.1f} passes over "
        "everything",
        f"memory: {size_in_words(cost.bytes)} in the largest step, counted",
        f"time: about {time_in_words(seconds)} by the speed of products on {where}; measured once it runs",
    ]


def time_in_words(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
