"""Rotary positions and SwiGLU: written where they were, by whatever gives the bits of the plain way."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dimoo_core.model import kernels
from dimoo_core.model.kernels import Ways, offer_rotation, rotate_, rotations, settle, swiglu_, swiglus

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]


def table(rows: int, width: int) -> tuple[Tensor, Tensor]:
    angles = torch.rand(rows, 1, width // 2, generator=torch.Generator().manual_seed(1)) * 6.3
    return torch.cat((angles, angles), dim=-1).cos(), torch.cat((angles, angles), dim=-1).sin()


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The formula in fp64, in which the product of two numbers of fp32 is exact, rounded where fp32 rounds."""
    first, second = x.double().chunk(2, dim=-1)
    cos, sin = (one.double()[..., : first.shape[-1]] for one in (cos, sin))
    parts = [(first * cos, -second * sin), (second * cos, first * sin)]
    return torch.cat([(one.float() + other.float()).to(x.dtype) for one, other in parts], dim=-1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_rounds_each_product_and_is_written_where_x_was(dtype: torch.dtype) -> None:
    wide = drawn(9, 4, 3, 16, dtype=dtype)
    x, before, angles = wide[:, 1], wide.clone(), table(9, 16)
    assert rotate_(x, angles) is x
    assert torch.equal(x, rotated(before[:, 1], *angles))
    assert torch.equal(wide[:, [0, 2, 3]], before[:, [0, 2, 3]]), "what lies between the rows"


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_rounds_silu_and_is_written_where_the_gate_was(dtype: torch.dtype) -> None:
    gate, up = drawn(2, 7, 12, dtype=dtype)
    expected = F.silu(gate).mul(up)
    assert swiglu_(gate, up) is gate and torch.equal(gate, expected)


def test_nothing_is_overwritten_that_autograd_follows() -> None:
    x, gate, up = (drawn(3, 1, 4, dtype=torch.float64).requires_grad_() for _ in range(3))
    angles = tuple(one.double() for one in table(3, 4))
    assert torch.autograd.gradcheck(lambda one: rotate_(one.clone(), angles), x)
    assert torch.autograd.gradcheck(lambda one, other: swiglu_(one.clone(), other), (gate, up))
    assert torch.equal(rotate_(x, angles), rotate_(x.detach().clone(), angles))


def fused(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """A kernel that fuses the second product with the sum, in fp64, which holds a product of fp32 exactly."""
    first, second = (half.double() for half in x.clone().chunk(2, dim=-1))
    cos, sin = (one.double()[..., : first.shape[-1]] for one in (cos, sin))
    left = [(first * cos).float() - second * sin, (second * cos).float() + first * sin]
    x.copy_(torch.cat([one.float() for one in left], dim=-1))


def once(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """A kernel that agrees."""
    x.copy_(rotated(x, cos, sin))


def failing(*_: Tensor) -> None:
    raise RuntimeError("no compiler for this card")


def ways(*others: kernels.Kernel) -> Ways:
    """The ways to rotate with kernels of the test's own beside the plain one."""
    return Ways("rotation", rotations.plain, [lambda other=other: other for other in others], kernels._rotation_samples)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [2, 24, 128])
def test_a_kernel_counts_only_where_it_gives_the_plain_ways_bits(dtype: torch.dtype, width: int) -> None:
    assert ways(once).settle(CPU, dtype, width) is once
    assert ways(fused, once).settle(CPU, dtype, width) is once, "a fused product is seen, in bf16 too"
    assert ways(fused).settle(CPU, dtype, width) is rotations.plain
    assert ways(failing, once).settle(CPU, dtype, width) is once


def test_addcmul_counts_where_it_rounds_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounding(x: Tensor, one: Tensor, other: Tensor, *, value: int, out: Tensor) -> Tensor:
        return out.copy_(x + value * (one.float() * other.float()))  # as on CUDA for a value other than one

    monkeypatch.setattr(torch, "addcmul", rounding)
    for dtype in DTYPES:
        assert ways(kernels._addcmul()).settle(CPU, dtype, 16) is kernels._addcmul()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_swiglu_counts_only_where_it_rounds_silu_and_knows_every_gate(dtype: torch.dtype) -> None:
    def rounding_last(gate: Tensor, up: Tensor) -> None:
        gate.copy_(F.silu(gate.double()) * up)

    def wrong_for_one(gate: Tensor, up: Tensor) -> None:
        one = gate == gate[40, 500]
        swiglus.plain(gate, up)
        gate[one] = 0

    for other in (rounding_last, wrong_for_one):
        found = Ways("SwiGLU", swiglus.plain, [lambda other=other: other], kernels._swiglu_samples)
        assert found.settle(CPU, dtype) is swiglus.plain
    gates, _ = kernels._swiglu_samples(torch.bfloat16, 0)
    assert len(gates.unique()) == 2**16 - 2**8 - 1, "all but NaN and infinity; zero has two signs"


def test_a_kernel_that_fails_is_no_error_and_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        ways(failing, fused).settle(CPU, torch.float32, 16)
    assert [record.levelno for record in caplog.records] == [logging.DEBUG] * 2
    assert "no compiler for this card" in caplog.text and "other bits" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.cuda.OutOfMemoryError("CUDA out of memory")])
def test_neither_cancel_nor_want_of_memory_is_swallowed(error: BaseException) -> None:
    def interrupted(*_: Tensor) -> None:
        raise error

    with pytest.raises(type(error)):
        ways(interrupted).settle(CPU, torch.float32, 16)


def test_a_device_is_asked_once_and_what_is_settled_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, called = [], []

    def counting(x: Tensor, cos: Tensor, sin: Tensor) -> None:
        called.append(tuple(x.shape))
        once(x, cos, sin)

    def maker() -> kernels.Kernel:
        asked.append("maker")
        return counting

    monkeypatch.setattr(rotations, "makers", [maker])
    monkeypatch.setattr(rotations, "settled", {})
    x, angles = drawn(4, 3, 8), table(4, 8)
    expected = rotated(x, *angles)
    rotate_(x.clone(), angles)
    assert not called, "nothing is tried within a pass"
    for _ in range(2):
        rotations.settle(CPU, torch.float32, 8)
    del called[:]
    assert asked == ["maker"]
    assert torch.equal(rotate_(x, angles), expected) and called == [(4, 3, 8)]
    rotate_(drawn(4, 3, 16), table(4, 16))
    assert len(called) == 1, "another head width has not been settled"


def test_on_a_cpu_nothing_is_tried_and_triton_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def maker() -> kernels.Kernel:
        raise AssertionError("tried")

    for one in (rotations, swiglus):
        monkeypatch.setattr(one, "makers", [maker])
    for device in ("cpu", "meta"):
        settle(torch.device(device), torch.bfloat16, 16)


def test_the_hosts_kernel_is_tried_before_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotations, "makers", list(rotations.makers))
    offer_rotation(lambda: once)
    assert [maker.__name__ for maker in rotations.makers] == ["_triton_rotation", "<lambda>", "_addcmul"]
    assert rotations.makers[1]() is once


def test_the_triton_kernel_gives_the_plain_ways_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    # In fp32: on a CPU Triton only interprets, and its interpreter cuts bf16 off.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="Triton is not installed, which torch brings along for GPUs.")
    kernel = kernels._triton_rotation()
    assert ways(kernel).settle(CPU, torch.float32, 24) is kernel
    x, angles = drawn(5, 2, 3, 24)[:, 1], table(5, 24)
    expected = rotated(x, *angles)
    kernel(x, *angles)
    assert torch.equal(x, expected), "fewer heads than a program takes"
