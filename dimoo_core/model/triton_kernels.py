"""Rotary positions and SwiGLU as Triton kernels, in place and in one pass over memory. Importing this imports Triton,
which torch brings along for some devices; `kernels` does so, and only there.

Every product and every quotient is rounded as torch rounds it: no multiplication is fused with a sum.

Shapes: N rows, h heads, d head width, M width of the feed-forward.
"""

from __future__ import annotations

from torch import Tensor, cuda

try:
    import triton  # type: ignore[import-not-found, unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
    from triton import jit  # type: ignore[import-not-found, unused-ignore]
    from triton.language.extra import libdevice  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # what is below is then never called

    def jit(kernel):
        return kernel


_PAIRS = 2048  # that a program rotates
_VALUES = 1024  # of SwiGLU, for a program


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """x [N,h,d] of any strides but the last, with the first d/2 of cosines and sines [N,1,d] in fp32."""
    rows, heads, width = x.shape
    columns = triton.next_power_of_2(width // 2)
    together = min(triton.next_power_of_2(heads), max(_PAIRS // columns, 1))
    grid = (rows, triton.cdiv(heads, together))
    strides = (x.stride(0), x.stride(1), cos.stride(0), sin.stride(0))
    with cuda.device_of(x):
        _rotate[grid](x, cos, sin, heads, *strides, width // 2, together, columns, enable_fp_fusion=False)


def swiglu_(gate: Tensor, up: Tensor) -> None:
    """gate and up [N,M], each of rows that lie closely."""
    rows, width = gate.shape
    grid = (rows, triton.cdiv(width, _VALUES))
    with cuda.device_of(gate):
        _swiglu[grid](gate, up, width, gate.stride(0), up.stride(0), _VALUES, enable_fp_fusion=False)


@jit
def _rotate(x, cos, sin, heads, x_row, x_head, cos_row, sin_row, half, together: tl.constexpr, columns: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * together + tl.arange(0, together)
    column = tl.arange(0, columns)
    there = column < half
    c = tl.load(cos + row * cos_row + column, mask=there, other=0.0)[None, :]
    s = tl.load(sin + row * sin_row + column, mask=there, other=0.0)[None, :]
    first_at = x + row * x_row + head[:, None] * x_head + column[None, :]
    inside = (head < heads)[:, None] & there[None, :]
    first = tl.load(first_at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(first_at + half, mask=inside, other=0.0).to(tl.float32)
    dtype = x.dtype.element_ty
    tl.store(first_at, (first * c - second * s).to(dtype), mask=inside)
    tl.store(first_at + half, (second * c + first * s).to(dtype), mask=inside)


@jit
def _swiglu(gate, up, width, gate_row, up_row, values: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * values + tl.arange(0, values)
    inside = column < width
    at = gate + row * gate_row + column
    dtype = gate.dtype.element_ty
    g = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=inside, other=0.0).to(tl.float32)
    silu = tl.div_rn(g, 1.0 + libdevice.exp(-g)).to(dtype).to(tl.float32)
    tl.store(at, (silu * u).to(dtype), mask=inside)
