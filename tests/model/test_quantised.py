"""Weights of one byte each: what they stand for, how far that is from the original, and a Linear that uses them."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.op_counts import OpCounts
from dimoo_core.model import quantised
from dimoo_core.model.quantised import (
    FP8,
    GROUP,
    INT8,
    Quantised,
    dequantise,
    hadamard,
    largest_magnitude,
    quantise,
    restore,
    rotate,
    scale_of,
)

DTYPES = [torch.float32, torch.bfloat16]
FULL = Quantised(INT8, full_precision=True)
ROTATED = Quantised(INT8, group=16)


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def stored(weight: torch.Tensor, format: quantised.Format) -> tuple[torch.Tensor, torch.Tensor]:
    scale = scale_of(largest_magnitude(weight, format), format)
    return quantise(weight, scale, format), scale


def layer_of(weight: torch.Tensor, layer: Quantised, input_scale: float | None = None) -> quantised.Linear:
    """A Linear that was loaded with a quantised weight, as a checkpoint loads it."""
    module = quantised.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    numbers, scale = stored(weight if layer.group is None else rotate(weight, layer.group), layer.format)
    state = {"weight": numbers, "weight_scale": scale, "comfy_quant": layer.to_tensor()}
    if input_scale is not None:
        state["input_scale"] = torch.tensor(input_scale)
    module.load_state_dict(state, strict=True, assign=True)
    return module


@pytest.mark.parametrize("format", [FP8, INT8], ids=lambda one: one.name)
def test_what_is_stored_is_near_and_the_largest_is_kept(format: quantised.Format) -> None:
    weight = matrix(33, 50) * torch.logspace(-3, 1, 33)[:, None]
    numbers, scale = stored(weight, format)
    assert numbers.dtype is format.dtype and scale.dtype is torch.float32
    assert tuple(scale.shape) == format.scale_shape(33)
    back = dequantise(numbers, scale, torch.float32)
    # half a step: 1/16 of a number with three bits behind its first, the smallest steps aside; or half of 1/127
    step = weight.abs() / 16 + scale * 2.0**-10 if format is FP8 else scale / 2
    assert ((back - weight).abs() <= step * 1.0001).all()
    places = weight.abs().argmax(dim=1) if format.per_row else weight.abs().argmax()
    kept, wanted = (
        part.gather(1, places[:, None]) if format.per_row else part.flatten()[places] for part in (back, weight)
    )
    torch.testing.assert_close(kept, wanted, rtol=1e-6, atol=0)


def test_nothing_but_zeros_stays_that() -> None:
    for format in (FP8, INT8):
        numbers, scale = stored(torch.zeros(4, 8), format)
        assert (scale == 1).all() and not dequantise(numbers, scale, torch.float32).any()
    assert not layer_of(matrix(4, 8), Quantised(INT8))(torch.zeros(2, 3, 8)).any()


@pytest.mark.parametrize("layer", [Quantised(FP8), FULL], ids=["fp8", "int8, full precision"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_only_equals_the_dequantised_matrix(layer: Quantised, dtype: torch.dtype) -> None:
    weight, x = matrix(21, 13), matrix(10, 13, seed=1).view(2, 5, 13).to(dtype)
    result = layer_of(weight, layer)(x)
    assert result.dtype is dtype
    assert torch.equal(result, F.linear(x, dequantise(*stored(weight, layer.format), dtype)))


@pytest.mark.parametrize("shape", [(1, 8, 8), (17, 160, 448), (5, 13, 7), (0, 8, 8)], ids=str)
@torch.no_grad()
def test_int8_is_the_exact_product_of_what_was_rounded(shape: tuple[int, int, int]) -> None:
    tokens, columns, rows = shape
    weight, x = matrix(rows, columns), matrix(tokens, columns, seed=1)
    numbers, scale = stored(weight, INT8)
    own = x.double().abs().amax(dim=1, keepdim=True) / 127
    rounded = (x.double() / own).round() * own
    wanted = rounded @ (numbers.double() * scale.double()).t()
    torch.testing.assert_close(layer_of(weight, Quantised(INT8))(x).double(), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_int8_strays_from_the_dequantised_matrix_by_half_a_step_of_each_number_at_most() -> None:
    weight, x = matrix(64, 96), matrix(40, 96, seed=1)
    numbers, scale = stored(weight, INT8)
    plain = dequantise(numbers, scale, torch.float32)
    most = (x.abs().amax(dim=1, keepdim=True) / 127 / 2) @ plain.abs().sum(dim=1)[None]
    far = (layer_of(weight, Quantised(INT8))(x) - F.linear(x, plain)).abs()
    assert (far <= most).all() and far.any(), "activations are rounded, and by no more than that"


@pytest.mark.parametrize("size", [4, 16, 64, 256])
def test_the_rotation_is_orthogonal_its_own_inverse_and_even(size: int) -> None:
    matrix = hadamard(size, torch.device("cpu"), torch.float64)
    assert torch.equal(matrix @ matrix, torch.eye(size, dtype=torch.float64)) and torch.equal(matrix, matrix.t())
    assert (matrix.abs() == size**-0.5).all() and (matrix.sum(dim=0) == 1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_an_outlier_costs_a_rotated_layer_little_and_a_plain_one_much(dtype: torch.dtype) -> None:
    weight, x = matrix(64, 4 * GROUP), matrix(40, 4 * GROUP, seed=1)
    x[:, 7] *= 100
    wanted, x = F.linear(x, weight), x.to(dtype)
    plain, rotated = (
        (layer_of(weight, layer)(x) - wanted).std() / wanted.std()
        for layer in (Quantised(INT8), Quantised(INT8, group=GROUP))
    )
    assert rotated < 0.015 < 0.05 < plain


@torch.no_grad()
def test_a_rotated_layer_is_the_product_of_what_was_rotated_and_rounded(monkeypatch) -> None:
    weight, x = matrix(21, 48), matrix(10, 48, seed=1)
    turned, plain = layer_of(rotate(weight, 16), Quantised(INT8)), layer_of(weight, ROTATED)
    assert torch.equal(turned(rotate(x, 16)), plain(x))
    monkeypatch.setattr(quantised, "_INT_MM", ())
    back = restore(plain.weight, plain.weight_scale, ROTATED, torch.float32)
    assert (back - weight).abs().max() <= plain.weight_scale.max() * 2
    torch.testing.assert_close(plain(x), F.linear(x, back), rtol=1e-5, atol=1e-5)


def test_autograd_follows_a_rotated_layer_after_inference_has_used_it() -> None:
    quantised.hadamard.cache_clear()
    weight, x = matrix(8, 32), matrix(3, 32, seed=1)
    layer = layer_of(weight, ROTATED)
    with torch.inference_mode():
        layer(x)
    x.requires_grad_()
    layer(x).sum().backward()
    wanted = restore(layer.weight, layer.weight_scale, ROTATED, torch.float32).sum(dim=0)
    torch.testing.assert_close(x.grad, wanted.expand(3, -1), rtol=1e-5, atol=1e-5)


FP8_SHAPES = [(1, 16, 16), (17, 160, 448)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", FP8_SHAPES, ids=str)
@torch.no_grad()
def test_where_fp8_is_multiplied_activations_are_rounded_by_their_own_scale(shape, dtype, monkeypatch) -> None:
    tokens, columns, rows = shape
    weight, x = matrix(rows, columns), matrix(tokens, columns, seed=1).to(dtype)
    monkeypatch.setattr(quantised, "multiplies_fp8", lambda _: True)
    numbers, scale = stored(weight, FP8)
    rounded = (x / 0.01).to(FP8.dtype).double() * 0.01
    wanted = rounded @ (numbers.double() * scale.double()).t()
    came = layer_of(weight, Quantised(FP8), input_scale=0.01)(x)
    assert came.dtype is dtype
    torch.testing.assert_close(came.double(), wanted, rtol=2.0**-8, atol=1e-2 if dtype is torch.bfloat16 else 1e-4)
    assert not torch.equal(came, layer_of(weight, Quantised(FP8))(x)), "without a scale only the weights are rounded"


@torch.no_grad()
def test_activations_beyond_the_largest_fp8_are_held_to_it(monkeypatch) -> None:
    monkeypatch.setattr(quantised, "multiplies_fp8", lambda _: True)
    weight = matrix(16, 16)
    layer = layer_of(weight, Quantised(FP8), input_scale=1.0)
    assert torch.equal(layer(torch.full((2, 16), 1e6)), layer(torch.full((2, 16), 448.0)))


class Card:
    """A stand-in for a card, another one each time."""

    type = "cuda"


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


def test_whether_a_card_multiplies_fp8_is_tried_and_want_of_memory_is_no_answer(monkeypatch) -> None:
    errors = iter([RuntimeError("compute capability >= 8.9"), OutOfMemoryError()])

    def refuse(*_, **__) -> torch.Tensor:
        raise next(errors)

    for name in ("zeros", "ones"):  # what is made for the card is made here
        made = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *shape, device, made=made: made(*shape))
    assert quantised.multiplies_fp8(Card())
    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    assert not quantised.multiplies_fp8(Card())
    with pytest.raises(OutOfMemoryError):
        quantised.multiplies_fp8(Card())


@torch.no_grad()
def test_fp8_that_a_device_cannot_multiply_only_has_rounded_weights(monkeypatch) -> None:
    weight, x = matrix(16, 24), matrix(5, 24, seed=1)
    plain = layer_of(weight, Quantised(FP8))(x)
    assert torch.equal(layer_of(weight, Quantised(FP8), input_scale=0.01)(x), plain), "a CPU has no such product"
    monkeypatch.setattr(quantised, "multiplies_fp8", lambda _: True)
    assert torch.equal(layer_of(weight, Quantised(FP8), input_scale=0.01)(x), plain), "24 is no multiple of 16"


@pytest.mark.parametrize("layer", [FULL, Quantised(FP8, full_precision=True)], ids=["int8", "fp8"])
@torch.no_grad()
def test_a_scale_of_activations_changes_nothing_where_they_are_kept_as_they_are(layer: Quantised, monkeypatch) -> None:
    """Other people's files may have one beside every weight."""
    monkeypatch.setattr(quantised, "multiplies_fp8", lambda _: True)
    weight, x = matrix(16, 32), matrix(5, 32, seed=1)
    assert torch.equal(layer_of(weight, layer, input_scale=0.01)(x), layer_of(weight, layer)(x))


class AsOnCuda(TorchDispatchMode):
    """Rounds a number without dimensions to the dtype of the tensor that it is multiplied with, as CUDA does and a CPU
    does not."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        x, *others = args
        if func.overloadpacket in (torch.ops.aten.mul, torch.ops.aten.mul_, torch.ops.aten.div) and x.ndim:
            others = [one.to(x.dtype) if isinstance(one, torch.Tensor) and not one.ndim else one for one in others]
        return func(x, *others, **(kwargs or {}))


@torch.no_grad()
def test_a_scale_is_not_rounded_before_it_is_used(monkeypatch) -> None:
    """Rounded to bf16, a scale for a whole matrix would make all of it up to 0.4% too large or too small."""
    weight, x = matrix(16, 32), matrix(5, 32, seed=1).bfloat16()
    layer = layer_of(weight, Quantised(FP8), input_scale=2.0**-7)
    layer.weight_scale.fill_(0.0101)
    for multiplied in (False, True):
        monkeypatch.setattr(quantised, "multiplies_fp8", lambda _, multiplied=multiplied: multiplied)
        wanted = layer(x)
        with AsOnCuda():
            assert torch.equal(layer(x), wanted)


@pytest.mark.parametrize(
    ("layer", "most"),
    [(Quantised(INT8), 8), (Quantised(INT8, group=GROUP), 9), (Quantised(FP8), 4)],
    ids=["int8", "int8, rotated", "fp8"],
)
@torch.no_grad()
def test_a_product_on_a_card_is_so_many_launches(layer: Quantised, most: int) -> None:
    linear = layer_of(matrix(32, GROUP), layer, input_scale=1.0 if layer.format is FP8 else None).to("meta")
    x = torch.empty(40, GROUP, dtype=torch.bfloat16, device="meta")
    linear(x)  # the rotation is made once
    with OpCounts() as counts:
        linear(x)
    assert counts.count() == most


@pytest.mark.parametrize("layer", [Quantised(FP8), Quantised(INT8), FULL, ROTATED], ids=str)
@torch.no_grad()
def test_a_layer_that_is_held_widens_its_weight_once_and_gives_the_same(layer: Quantised) -> None:
    linear, x = layer_of(matrix(16, 32), layer), matrix(12, 32, seed=1)
    with OpCounts() as counts, linear.held(x) as call:
        came = torch.cat([call(part) for part in x.split(4)])
    assert torch.equal(came, torch.cat([linear(part) for part in x.split(4)]))
    if layer.format is FP8 or layer.full_precision:
        assert counts.calls["_to_copy"] == 1, "the weight, for three products"


def test_a_token_with_an_outlier_costs_no_other_token_anything() -> None:
    linear, x = layer_of(matrix(16, 32), Quantised(INT8)), matrix(6, 32, seed=1)
    alone = linear(x)
    x[2, 5] = 1e4
    others = [0, 1, 3, 4, 5]
    assert torch.equal(linear(x)[others], alone[others])


def test_parts_of_a_product_are_the_whole(monkeypatch) -> None:
    linear, x = layer_of(matrix(16, 32), Quantised(INT8)), matrix(50, 32, seed=1)
    whole = linear(x)
    monkeypatch.setattr(quantised, "PRODUCT", 4 * 16 * 7)
    assert torch.equal(linear(x), whole)


@pytest.mark.parametrize("shape", [(1, 160, 448), (40, 13, 7)], ids=str)
def test_sides_that_cuda_cannot_multiply_are_widened(shape: tuple[int, int, int]) -> None:
    tokens, columns, rows = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (tokens, columns), dtype=torch.int8, generator=generator)
    weight = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)
    wide, tall = quantised._widened(x, weight)
    assert len(wide) > 16 and wide.shape[1] % 8 == 0 == len(tall) % 8 and wide.shape[1] == tall.shape[1]
    assert torch.equal(torch._int_mm(wide, tall.t())[:tokens, :rows], torch._int_mm(x, weight.t()))


def test_a_device_without_int8_products_gets_plain_ones(monkeypatch) -> None:
    monkeypatch.setattr(quantised, "_INT_MM", ())
    weight, x = matrix(16, 32), matrix(6, 32, seed=1)
    plain = F.linear(x, dequantise(*stored(weight, INT8), torch.float32))
    assert torch.equal(layer_of(weight, Quantised(INT8))(x), plain)


def test_a_plain_weight_makes_it_torchs_linear() -> None:
    weight, bias, x = matrix(5, 9), matrix(1, 5)[0], matrix(3, 9, seed=1)
    module = quantised.Linear(9, 5)
    module.load_state_dict({"weight": weight, "bias": bias}, strict=True, assign=True)
    assert torch.equal(module(x), F.linear(x, weight, bias)) and isinstance(module, nn.Linear)


def test_what_is_said_of_a_layer_goes_there_and_back() -> None:
    for layer in (Quantised(FP8), Quantised(INT8), FULL, ROTATED):
        assert Quantised.from_tensor(layer.to_tensor()) == layer
    assert json.loads(bytes(FULL.to_tensor().tolist())) == {
        "format": "int8_tensorwise",
        "full_precision_matrix_mult": True,
    }
    assert Quantised.from_dict({"format": "int8_tensorwise", "convrot": True}).group == GROUP
    fields = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}
    assert json.loads(bytes(ROTATED.to_tensor().tolist())) == fields


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "known formats are float8_e4m3fn, int8_tensorwise"),
        ({"format": "nvfp4"}, "known formats are float8_e4m3fn, int8_tensorwise"),
        ({"format": ["x"]}, "known formats are float8_e4m3fn, int8_tensorwise"),
        (
            {"format": "int8_tensorwise", "transposed": True},
            "known fields are convrot, convrot_groupsize, format",
        ),
        ({"format": "float8_e4m3fn", "convrot": True}, "known is int8_tensorwise in powers of 4"),
        *(
            ({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}, f"in groups of {group!r}")
            for group in (0, 1, 2, 8, 12, 128, -4, 16.0, "16", None)
        ),
    ],
    ids=str,
)
def test_formats_that_would_make_other_numbers_are_refused(fields: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Quantised.from_dict(fields)
