"""The bytes that move between the products: what is printed comes from the production code, and rises with it."""

from __future__ import annotations

import pytest
import torch

from bench import traffic
from dimoo_core.model.kernels import rotations, swiglus
from dimoo_core.sampling import noise, selection


def test_a_pass_moves_less_between_its_products_and_least_with_the_kernels() -> None:
    assert traffic.gb_between_products_1024() < 44, "59 where every product is written out and norms are not fused"
    assert traffic.gb_between_products_1024(kernels=True) < 26


@pytest.mark.parametrize(("name", "plain", "more"), [("_rotation", rotations.plain, 19), ("_swiglu", swiglus.plain, 6)])
def test_each_kernel_is_missed(name: str, plain: object, more: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with_both = traffic.gb_between_products_1024(kernels=True)
    monkeypatch.setattr(traffic, name, plain)
    assert traffic.gb_between_products_1024(kernels=True) > with_both + more


def test_a_step_moves_less_for_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    before = traffic.gb_noise_1024()
    assert before < 3.6, "7.2 in words of 64 bits"
    table = noise._bf16_gumbel_table(traffic.META)
    monkeypatch.setattr(noise, "_bf16_gumbel_table", lambda device: table.float())
    wider = traffic.gb_noise_1024()
    assert wider > before + 0.1
    monkeypatch.setattr(selection, "gumbel_argmax", lambda logits, drawn, _: (logits.double() + drawn).argmax(dim=-1))
    assert traffic.gb_noise_1024() > wider + 0.1


def test_nothing_stays_changed() -> None:
    before = dict(rotations.settled), dict(swiglus.settled)
    with traffic.as_on_a_gpu():
        assert (traffic.META, torch.bfloat16, 128) in rotations.settled
    assert before == (rotations.settled, swiglus.settled)
