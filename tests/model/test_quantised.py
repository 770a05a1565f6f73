"""Weights of one byte each: what they stand for, how far that is from the original, and a Linear that uses them."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dimoo_core.model import quantised
from dimoo_core.model.quantised import FP8, INT8, Quantised, dequantise, largest_magnitude, quantise, scale_of

DTYPES = [torch.float32, torch.bfloat16]
FULL = Quantised(INT8, full_precision=True)


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def stored(weight: torch.Tensor, format: quantised.Format) -> tuple[torch.Tensor, torch.Tensor]:
    scale = scale_of(largest_magnitude(weight, format), format)
    return quantise(weight, scale, format), scale


def layer_of(weight: torch.Tensor, layer: Quantised) -> quantised.Linear:
    """A Linear that was loaded with a quantised weight, as a checkpoint loads it."""
    module = quantised.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    numbers, scale = stored(weight, layer.format)
    state = {"weight": numbers, "weight_scale": scale, "comfy_quant": layer.to_tensor()}
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
    for layer in (Quantised(FP8), Quantised(INT8), FULL):
        assert Quantised.from_tensor(layer.to_tensor()) == layer
    assert json.loads(bytes(FULL.to_tensor().tolist())) == {
        "format": "int8_tensorwise",
        "full_precision_matrix_mult": True,
    }


@pytest.mark.parametrize(
    "fields", [{}, {"format": "nvfp4"}, {"format": "int8_tensorwise", "convrot": True}, {"format": ["x"]}], ids=str
)
def test_formats_that_would_make_other_numbers_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=r"known (formats are float8_e4m3fn, int8_tensorwise|fields are format, full)"):
        Quantised.from_dict(fields)
