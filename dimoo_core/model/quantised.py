"""Weights of one byte each: how they are stored, what they stand for, and a Linear that works with them.

Two formats, under the names and in the layout that ComfyUI's quantised checkpoints have, so that a ComfyUI with fast
kernels for one uses them; what is here works everywhere else and is what those kernels are compared with.

* float8_e4m3fn: `weight` in fp8, one `weight_scale` [] for all of it. Only the weights are rounded.
* int8_tensorwise: `weight` in int8, one `weight_scale` [N,1] per row. Activations are rounded to int8 too, each token
  by its own scale as it arrives. The product of the two is exact in int32 and then rounded once, to fp32, before the
  scales are applied.

A layer may ask for full precision: then its activations stay as they are, and only the weights are rounded.

Shapes: N outputs, K inputs, M tokens (any leading dimensions).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import printable, shown

_INT_MM = ("cpu", "cuda", "meta")  # devices on which torch multiplies int8 matrices
_INT_MM_ROWS, _INT_MM_STEP = 17, 8  # CUDA takes more than 16 tokens, and multiples of 8 for the other sides
PRODUCT = 64 << 20  # bytes of int32 that a chunk of a product may take


@dataclass(frozen=True)
class Format:
    """How a weight [N,K] is stored: torch's dtype, what files call it, the largest number, one scale per row or one."""

    name: str
    dtype: torch.dtype
    stored: str
    largest: float
    per_row: bool

    def scale_shape(self, rows: int) -> tuple[int, ...]:
        """Shape of the scale of a weight with `rows` rows."""
        return (rows, 1) if self.per_row else ()


FP8 = Format("float8_e4m3fn", torch.float8_e4m3fn, "F8_E4M3", 448.0, per_row=False)
INT8 = Format("int8_tensorwise", torch.int8, "I8", 127.0, per_row=True)
FORMATS = {one.name: one for one in (FP8, INT8)}


@dataclass(frozen=True)
class Quantised:
    """How a checkpoint says that one layer is stored: its format, and whether its activations stay unrounded."""

    format: Format
    full_precision: bool = False

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Quantised:
        """Raises ValueError for a format or a field that this module does not have: it would give other numbers."""
        known = {"format", "full_precision_matrix_mult"}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(
                f"quantised with {printable(', '.join(unknown))}; known fields are {', '.join(sorted(known))}"
            )
        if fields.get("format") not in list(FORMATS):  # a list can be asked about what is not hashable
            raise ValueError(f"quantised as {shown(fields.get('format'))}; known formats are {', '.join(FORMATS)}")
        return cls(FORMATS[fields["format"]], bool(fields.get("full_precision_matrix_mult", False)))

    def to_dict(self) -> dict[str, Any]:
        """The fields in ComfyUI's words; `from_dict` reads them back."""
        full = {"full_precision_matrix_mult": True} if self.full_precision else {}
        return {"format": self.format.name, **full}

    def to_tensor(self) -> Tensor:
        """The fields as bytes, uint8: the entry `comfy_quant` of a layer's state dict."""
        return torch.tensor(list(json.dumps(self.to_dict()).encode()), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, fields: Tensor) -> Quantised:
        """The inverse of `to_tensor`."""
        return cls.from_dict(json.loads(bytes(fields.tolist())))


def largest_magnitude(weight: Tensor, format: Format) -> Tensor:
    """The number that a scale is made of: [N,1] per row, or [] of all; weight [N,K] or a part of its rows, fp32."""
    size = weight.float().abs()
    return size.amax(dim=1, keepdim=True) if format.per_row else size.amax()


def scale_of(magnitude: Tensor, format: Format) -> Tensor:
    """The scale, fp32: the largest magnitude becomes the format's largest number. Nothing but zeros has scale 1."""
    return torch.where(magnitude > 0, magnitude / format.largest, torch.ones_like(magnitude)).float()


def quantise(weight: Tensor, scale: Tensor, format: Format) -> Tensor:
    """weight [N,K] -> the same in the format's dtype; `scale` as from `scale_of`."""
    scaled = (weight.float() / scale).clamp(-format.largest, format.largest)
    return (scaled if format.dtype.is_floating_point else scaled.round()).to(format.dtype)


def dequantise(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What a stored weight [N,K] stands for, in `dtype`; rounded once."""
    return weight.to(dtype).mul_(scale)


def linear(x: Tensor, weight: Tensor, scale: Tensor, quantisation: Quantised) -> Tensor:
    """x [...,K] -> [...,N] in the dtype of x, by a stored weight [N,K] and its scale.

    While gradients are recorded only the weight is rounded: rounding activations has none, and a layer that autograd
    does not follow should not differ from its neighbours.
    """
    if torch.is_grad_enabled():
        return _Frozen.apply(x, weight, scale)
    if quantisation.format is INT8 and not quantisation.full_precision and x.device.type in _INT_MM:
        return _int8_linear(x, weight, scale)
    return F.linear(x, dequantise(weight, scale, x.dtype))


class _Frozen(torch.autograd.Function):
    """A product with a stored weight that gets no gradient. What is kept for the backward pass is the weight as it is
    stored: torch would keep the one that was made of it, two to four times as large, in every layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.stored = weight, scale  # not through save_for_backward, which takes no inference tensors
        return F.linear(x, dequantise(weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.stored
        return gradient @ dequantise(weight, scale, gradient.dtype), None, None


def _int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Both rounded to int8, multiplied exactly in int32; each token has its own scale. In chunks of tokens, to save
    memory."""
    tokens, rows = x.reshape(-1, x.shape[-1]), weight.shape[0]
    result = x.new_empty(len(tokens), rows)
    chunk = max(PRODUCT // (4 * rows), 1)
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk].float()
        own = scale_of(largest_magnitude(part, INT8), INT8)
        product = _int_mm(quantise(part, own, INT8), weight).float()
        result[start : start + chunk] = product.mul_(own).mul_(scale.view(1, -1))
    return result.view(*x.shape[:-1], rows)


def _int_mm(x: Tensor, weight: Tensor) -> Tensor:
    """x [M,K] times weight [N,K] transposed -> [M,N] int32."""
    tokens, rows = len(x), len(weight)
    if x.device.type == "cuda":
        x, weight = _widened(x, weight)
    return torch._int_mm(x, weight.t())[:tokens, :rows]


def _widened(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The same with zeros to the right and below, up to sides that CUDA multiplies; no copy where none are missing."""
    more = -x.shape[1] % _INT_MM_STEP
    x = F.pad(x, (0, more, 0, max(_INT_MM_ROWS - len(x), 0)))
    return x, F.pad(weight, (0, more, 0, -len(weight) % _INT_MM_STEP))


class Linear(nn.Linear):
    """torch's Linear, which also takes a weight in one of the formats: without a bias, and only from a state dict that
    has `weight`, `weight_scale` and `comfy_quant`."""

    quantisation: Quantised | None = None
    weight_scale: nn.Parameter

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest) -> None:
        if not take_quantised(self, state, prefix):
            super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """x [...,K] -> [...,N]"""
        if self.quantisation is None:
            return super().forward(x)
        return linear(x, self.weight, self.weight_scale, self.quantisation)


class Quantisable(Protocol):
    """A Linear module that can hold a quantised weight."""

    weight: Tensor
    weight_scale: nn.Parameter
    quantisation: Quantised | None


def take_quantised(module: Quantisable, state: dict[str, Tensor], prefix: str) -> bool:
    """Moves a quantised weight out of a state dict into a module; False where the weight is a plain one."""
    fields = state.pop(f"{prefix}comfy_quant", None)
    if fields is None:
        return False
    module.quantisation = Quantised.from_tensor(fields)
    module.weight = nn.Parameter(state.pop(f"{prefix}weight"), requires_grad=False)
    module.weight_scale = nn.Parameter(state.pop(f"{prefix}weight_scale"), requires_grad=False)
    return True


def _without_start(layer: type[nn.Module]) -> type[nn.Module]:
    return type(layer.__name__, (layer,), {"reset_parameters": lambda self: None})


# torch's layers for a model whose weights come from files: without random weights to start with, which take time, and
# on meta some seconds only to import what torch draws them with
LAYERS = SimpleNamespace(
    **{name: _without_start(getattr(nn, name)) for name in ("Embedding", "RMSNorm", "Conv2d", "GroupNorm")},
    Linear=_without_start(Linear),
)
