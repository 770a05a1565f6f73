"""What is counted and told before a LoRA is taught, and that what cannot fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dimoo_core.checkpoint.convert import convert
from dimoo_core.checkpoint.find import Found, find
from dimoo_core.model.quantised import FP8, INT8
from dimoo_core.training import plan
from dimoo_core.training.folder import Fitted, Item
from dimoo_core.training.footprint import StepCost
from dimoo_core.training.loop import TrainSettings
from dimoo_core.training.lora import LoraSettings

from ..tiny import write_checkpoint

SETTINGS = LoraSettings(TrainSettings(steps=100), rank=4, batch=2, accumulate=3)
CARD = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """A tiny checkpoint, stored in every way."""
    place = tmp_path_factory.mktemp("stored")
    found = find(write_checkpoint(place / "hub"))
    for kind in ("bf16", "fp8", "int8"):
        convert(found, place / f"{kind}.safetensors", kind)
    return {kind: find(place / f"{kind}.safetensors") for kind in ("bf16", "fp8", "int8")}


def item(text: str, *sizes: tuple[int, int], answer: str | None = None) -> Item:
    """A picture of the last size, or an answer, to a text and pictures of the others."""
    pictures = tuple(Fitted(Path(), size, size) for size in sizes)
    return Item("", text, pictures[:-1], pictures[-1]) if answer is None else Item("", text, pictures, answer)


def test_the_costliest_step_is_counted(stored: dict[str, Found]) -> None:
    def cost(*items: Item) -> int:
        return plan.step_cost(stored["bf16"], items, SETTINGS, None, recompute=True).bytes

    small, large = item("a cat", (32, 32)), item("a cat", (96, 64))
    assert cost(small) < cost(large) == cost(small, large) == cost(large, small)
    assert cost(item("turn it", (96, 64), (32, 32))) > cost(item("turn it", (32, 32), (32, 32)))
    assert cost(item("a cat " * 50, (32, 32))) > cost(small)
    assert cost(small, item("how many?", (96, 64), answer="three " * 50)) > cost(small)


def test_a_base_is_counted_as_it_is_stored_or_as_it_is_asked_for(stored: dict[str, Found]) -> None:
    assert INT8 in stored["int8"].formats and FP8 in stored["fp8"].formats

    def cost(kind: str, dtype: torch.dtype | None = None) -> int:
        return plan.step_cost(stored[kind], [item("a cat", (32, 32))], SETTINGS, dtype, recompute=True).bytes

    assert max(cost("int8"), cost("fp8")) < cost("bf16") < cost("int8", torch.float32)


def test_what_does_not_fit_is_refused_with_both_sums_and_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = StepCost(bytes=19_200_000_000, flops=1)
    for free in (None, cost.bytes):
        monkeypatch.setattr(plan, "free_bytes", lambda _, free=free: free)
        plan.check_memory(cost, CARD)
    monkeypatch.setattr(plan, "free_bytes", lambda _: 11_900_000_000)
    with pytest.raises(ValueError, match=r"^A step needs 19\.2 GB, and cuda:0 has 11\.9 GB: use an int8 .*\.$"):
        plan.check_memory(cost, CARD)


def test_steps_memory_and_time_are_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "products_per_second", lambda _: 1e9)
    steps, memory, time = plan.plan_lines(50, SETTINGS, StepCost(bytes=22_400_000, flops=10**9), CARD)
    assert steps == "steps: 100 of 6 samples, 12.0 passes over everything"
    assert memory == "memory: 22.4 MB in the largest step, counted" and time.startswith("time: about 5 min by")
    assert [plan.time_in_words(seconds) for seconds in (3, 89, 600, 7200)] == ["3 s", "89 s", "10 min", "2.0 h"]
