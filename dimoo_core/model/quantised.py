"""Weights of one byte each: how they are stored, what they stand for, and a Linear that works with them.

Two formats, under the names and in the layout that ComfyUI's quantised checkpoints have, so that a ComfyUI with fast
kernels for one uses them; what is here works everywhere else and is what those kernels are compared with.

* float8_e4m3fn: `weight` in fp8, one `weight_scale` [] for all of it. Activations are rounded to fp8 too where the
  device multiplies fp8 (NVIDIA from Ada on) and the layer has an `input_scale` [], which is theirs; elsewhere only the
  weights are rounded.
* int8_tensorwise: `weight` in int8, one `weight_scale` [N,1] per row. Activations are rounded to int8 too, each token
  by its own scale as it arrives. The product of the two is exact in int32 and then rounded once, to fp32, before the
  scales are applied.

A layer may ask for full precision: then its activations stay as they are, and only the weights are rounded. And it may
be rotated (ConvRot, arXiv 2512.03673): both weights and activations are multiplied by an orthogonal matrix, which
leaves the product as it is and spreads an outlier evenly over the channels of its group, before they are rounded.

Shapes: N outputs, K inputs, M tokens (any leading dimensions).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import printable, shown
from ..devices import is_out_of_memory

_INT_MM = ("cpu", "cuda", "meta")  # devices on which torch multiplies int8 matrices
_INT_MM_ROWS, _INT_MM_STEP = 17, 8  # CUDA takes more than 16 tokens, and multiples of 8 for the other sides
_FP8_STEP = 16  # CUDA takes multiples of 16 but for the tokens
PRODUCT = 256 << 20  # bytes of int32 that a chunk of a product, or of its activations, may take


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
GROUP = 256  # channels that are rotated together where a file does not say; ComfyUI's kernels are made for it


@dataclass(frozen=True)
class Quantised:
    """How a checkpoint says that one layer is stored: its format, whether its activations stay unrounded, and the
    channels that are rotated together (None: nothing is)."""

    format: Format
    full_precision: bool = False
    group: int | None = None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Quantised:
        """Raises ValueError for a format or a field that this module does not have: it would give other numbers."""
        known = {"format", "full_precision_matrix_mult", "convrot", "convrot_groupsize"}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(
                f"quantised with {printable(', '.join(unknown))}; known fields are {', '.join(sorted(known))}"
            )
        if fields.get("format") not in list(FORMATS):  # a list can be asked about what is not hashable
            raise ValueError(f"quantised as {shown(fields.get('format'))}; known formats are {', '.join(FORMATS)}")
        format, group = FORMATS[fields["format"]], None
        if fields.get("convrot", False):
            group = fields.get("convrot_groupsize", GROUP)
            if format is not INT8 or not _is_power_of_4(group):
                raise ValueError(
                    f"rotated as {format.name} in groups of {shown(group)}; known is {INT8.name} in powers of 4"
                )
        return cls(format, bool(fields.get("full_precision_matrix_mult", False)), group)

    def to_dict(self) -> dict[str, Any]:
        """The fields in ComfyUI's words; `from_dict` reads them back."""
        full = {"full_precision_matrix_mult": True} if self.full_precision else {}
        rotated = {} if self.group is None else {"convrot": True, "convrot_groupsize": self.group}
        return {"format": self.format.name, **full, **rotated}

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
    """The numbers of a stored weight [N,K], in `dtype`; rounded once. Where the layer is rotated so are they."""
    # A scale without dimensions CUDA would round to `dtype` first: all numbers would be up to 0.4% too large or small.
    return weight.to(dtype).mul_(scale.view(-1, 1))


def restore(weight: Tensor, scale: Tensor, quantisation: Quantised, dtype: torch.dtype) -> Tensor:
    """What a stored weight [N,K] stands for, in `dtype`: `dequantise`, and turned back where it is rotated."""
    if quantisation.group is None:
        return dequantise(weight, scale, dtype)
    return rotate(dequantise(weight, scale, torch.float32), quantisation.group).to(dtype)


def _is_power_of_4(size: object) -> bool:
    return isinstance(size, int) and size >= 4 and size.bit_count() == 1 and size.bit_length() % 2 == 1


@functools.cache
def hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The regular Hadamard matrix [size,size] over the root of its size, a power of 4: symmetric, its own inverse, and
    no row or column of equal signs, onto which a shift of all channels would fall whole. One for all layers."""
    with torch.inference_mode(False):  # autograd cannot keep a tensor that was made in it
        four = torch.ones(4, 4).sub_(2 * torch.eye(4).flip(1))
        matrix = functools.reduce(torch.kron, [four / 2] * round(math.log(size, 4)))
        return matrix.to(device, dtype)


def rotate(x: Tensor, group: int) -> Tensor:
    """x [...,K] -> the same, each `group` of its K numbers times the Hadamard matrix. Twice is x again."""
    return (x.reshape(-1, group) @ hadamard(group, x.device, x.dtype)).view(x.shape)


def linear(
    x: Tensor, weight: Tensor, scale: Tensor, quantisation: Quantised, input_scale: Tensor | None = None
) -> Tensor:
    """x [...,K] -> [...,N] in the dtype of x, by a stored weight [N,K] and its scale; `input_scale`: that of the
    activations in fp8 (None: they are never rounded to it).

    While gradients are recorded only the weight is rounded: rounding activations has none, and a layer that autograd
    does not follow should not differ from its neighbours.
    """
    return product(weight, scale, quantisation, input_scale, like=x)(x)


def product(
    weight: Tensor, scale: Tensor, quantisation: Quantised, input_scale: Tensor | None = None, *, like: Tensor
) -> Callable[[Tensor], Tensor]:
    """`linear` by one stored weight for all that has the dtype and the device of `like`: what has to be made of the
    weight is made here, once."""
    group = quantisation.group

    def turned(x: Tensor) -> Tensor:
        return x if group is None else rotate(x, group)

    if torch.is_grad_enabled():
        return lambda x: _Frozen.apply(turned(x), weight, scale)
    if quantisation.format is INT8 and not quantisation.full_precision and like.device.type in _INT_MM:
        return lambda x: _int8_linear(x, weight, scale, turned)
    if input_scale is not None and _takes_fp8(weight, quantisation) and multiplies_fp8(like.device):
        return lambda x: _fp8_linear(x, weight, scale, input_scale)
    plain = dequantise(weight, scale, like.dtype)
    return lambda x: F.linear(turned(x), plain)


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


def _int8_linear(x: Tensor, weight: Tensor, scale: Tensor, turned: Callable[[Tensor], Tensor]) -> Tensor:
    """Both rounded to int8, multiplied exactly in int32; each token has its own scale. In chunks of tokens, to save
    memory; activations are rotated by `turned`."""
    tokens = x.reshape(-1, x.shape[-1])
    result = x.new_empty(len(tokens), len(weight))
    chunks = math.ceil(len(tokens) * 4 * max(weight.shape) / PRODUCT)
    for part, place in zip(*(one.chunk(chunks or 1) for one in (tokens, result)), strict=True):
        numbers, own = _rounded(turned(part))
        whole = _int_mm(numbers, weight)
        scaled = torch.mul(whole, own, out=whole.view(torch.float32))
        torch.mul(scaled, scale.view(1, -1), out=place)
    return result.view(*x.shape[:-1], len(weight))


def _rounded(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """tokens [M,K] -> int8 [M,K] and their scales [M,1], as `quantise` and `scale_of` make them, in fewer operations:
    nothing is larger than its own scale allows, and what 0/0 of a row of zeros becomes is later multiplied by 0."""
    own = torch.linalg.vector_norm(tokens, math.inf, dim=1, keepdim=True, dtype=torch.float32).div_(INT8.largest)
    scaled = torch.div(tokens, own)
    del tokens  # a rotated copy, perhaps
    return scaled.round_().to(torch.int8), own


def _takes_fp8(weight: Tensor, quantisation: Quantised) -> bool:
    """Whether activations may be rounded to fp8, and the weight [N,K] has sides that CUDA multiplies."""
    sides = not any(side % _FP8_STEP for side in weight.shape)
    return quantisation.format is FP8 and not quantisation.full_precision and sides


@functools.cache
def multiplies_fp8(device: torch.device) -> bool:
    """Whether torch multiplies fp8 matrices on a device that is made for it: tried once, on small ones. meta stands for
    such a device."""
    if device.type != "cuda":
        return device.type == "meta"
    numbers, one = torch.zeros(_FP8_STEP, _FP8_STEP, device=device).to(FP8.dtype), torch.ones((), device=device)
    try:
        result = torch._scaled_mm(numbers, numbers.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
        return isinstance(result, Tensor)  # torch 2.4 gives two
    except RuntimeError as error:  # what a card before Ada says
        if is_out_of_memory(error):
            raise
        return False


def _fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, input_scale: Tensor) -> Tensor:
    """Both rounded to fp8; what exceeds the largest number, which would be NaN, becomes that."""
    tokens = x.reshape(-1, x.shape[-1])
    numbers = torch.div(tokens, input_scale).clamp_(-FP8.largest, FP8.largest).to(FP8.dtype)
    result = torch._scaled_mm(numbers, weight.t(), scale_a=input_scale, scale_b=scale, out_dtype=x.dtype)
    return result.view(*x.shape[:-1], len(weight))


def _int_mm(x: Tensor, weight: Tensor) -> Tensor:
    """x [M,K] times weight [N,K] transposed -> [M,N] int32."""
    tokens, rows = len(x), len(weight)
    if x.device.type == "cuda":
        x, weight = _widened(x, weight)
    return torch._int_mm(x, weight.t())[:tokens, :rows]


def _widened(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The same with zeros to the right and below, up to sides that CUDA multiplies; no copy where none are missing."""
    more = -x.shape[1] % _INT_MM_STEP
    return _padded(x, more, max(_INT_MM_ROWS - len(x), 0)), _padded(weight, more, -len(weight) % _INT_MM_STEP)


def _padded(matrix: Tensor, right: int, below: int) -> Tensor:
    return F.pad(matrix, (0, right, 0, below)) if right or below else matrix


class Linear(nn.Linear):
    """torch's Linear, which also takes a weight in one of the formats: without a bias, and only from a state dict that
    has `weight`, `weight_scale` and `comfy_quant`, and perhaps `input_scale`."""

    quantisation: Quantised | None = None
    weight_scale: nn.Parameter
    input_scale: nn.Parameter | None

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest) -> None:
        if not take_quantised(self, state, prefix):
            super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """x [...,K] -> [...,N]"""
        if self.quantisation is None:
            return super().forward(x)
        return linear(x, self.weight, self.weight_scale, self.quantisation, self.input_scale)

    @contextmanager
    def held(self, like: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
        """`forward` for chunk after chunk of what has the dtype and the device of `like`; what it makes of the weight
        is made once."""
        if self.quantisation is None:
            yield super().forward
        else:
            yield product(self.weight, self.weight_scale, self.quantisation, self.input_scale, like=like)


class Quantisable(Protocol):
    """A Linear module that can hold a quantised weight."""

    weight: Tensor
    weight_scale: nn.Parameter
    input_scale: nn.Parameter | None
    quantisation: Quantised | None


def take_quantised(module: Quantisable, state: dict[str, Tensor], prefix: str) -> bool:
    """Moves a quantised weight out of a state dict into a module; False where the weight is a plain one."""
    fields = state.pop(f"{prefix}comfy_quant", None)
    if fields is None:
        return False
    module.quantisation = Quantised.from_tensor(fields)
    module.weight = nn.Parameter(state.pop(f"{prefix}weight"), requires_grad=False)
    module.weight_scale = nn.Parameter(state.pop(f"{prefix}weight_scale"), requires_grad=False)
    input_scale = state.pop(f"{prefix}input_scale", None)
    module.input_scale = None if input_scale is None else nn.Parameter(input_scale, requires_grad=False)
    return True


def _without_start(layer: type[nn.Module]) -> type[nn.Module]:
    return type(layer.__name__, (layer,), {"reset_parameters": lambda self: None})


# torch's layers for a model whose weights come from files: without random weights to start with, which take time, and
# on meta some seconds only to import what torch draws them with
LAYERS = SimpleNamespace(
    **{name: _without_start(getattr(nn, name)) for name in ("Embedding", "RMSNorm", "Conv2d", "GroupNorm")},
    Linear=_without_start(Linear),
)
