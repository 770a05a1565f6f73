"""What lies between a block's matrix products and goes over much memory: rotary positions and SwiGLU.

Either is computed by the plain way below or by a kernel that goes over memory once, where one is at hand and gives the
very bits of the plain way on the device: `settle` finds out, before a run.

Shapes: N rows, h heads, d head width, M width of the feed-forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import is_out_of_memory

Kernel = Callable[..., object]  # writes its result where its first operand was
Samples = Callable[[torch.dtype, int], tuple[Tensor, ...]]  # operands on the CPU, for a dtype and a head width
_log = logging.getLogger(__name__)


def rotate_(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions in fp32, first half paired with second half; x [N,h,d] of any strides but the last, cosines and
    sines [N,1,d] in fp32, each twice the same d/2 -> x, or a new tensor where autograd follows x.

    The products are fp32 whatever x is, and each is rounded before they are added.
    """
    if x.requires_grad:
        return _rotated(x, *table)
    rotations.settled.get((x.device, x.dtype, x.shape[-1]), _rotate_plainly)(x, *table)
    return x


def swiglu_(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, [N,M] each, written to `gate` unless autograd follows one of them. silu is rounded to the dtype
    before the product."""
    if gate.requires_grad or up.requires_grad:
        return F.silu(gate) * up
    swiglus.settled.get((gate.device, gate.dtype, 0), _swiglu_plainly)(gate, up)
    return gate


def settle(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Finds the kernels that later calls take on a device, at most once per process for each of the arguments. It may
    compile, and it waits for the device, so it belongs before a run; without it the plain way is taken."""
    where = torch.empty(0, device=device).device  # with its number
    if where.type not in ("cpu", "meta"):
        rotations.settle(where, dtype, head_dim)
        swiglus.settle(where, dtype)


class Ways:
    """Ways to compute one thing in place, `plain` and others, of which only those count that give the plain one's bits.

    makers: of the others, the best first; one that cannot be made, fails or disagrees on a device is passed over.
    settled: the way for a device, a dtype and a head width (0 where none matters).
    """

    def __init__(self, name: str, plain: Kernel, makers: Sequence[Callable[[], Kernel]], samples: Samples):
        self.name, self.plain, self.makers, self._samples = name, plain, list(makers), samples
        self.settled: dict[tuple[torch.device, torch.dtype, int], Kernel] = {}

    def settle(self, device: torch.device, dtype: torch.dtype, width: int = 0) -> Kernel:
        """The way for a device (with its number), a dtype and a head width; the first time, the others are tried."""
        if (device, dtype, width) not in self.settled:
            fit = (way for maker in self.makers if (way := self._agreeing(maker, device, dtype, width)) is not None)
            self.settled[device, dtype, width] = next(fit, self.plain)
        return self.settled[device, dtype, width]

    def _agreeing(
        self, maker: Callable[[], Kernel], device: torch.device, dtype: torch.dtype, width: int
    ) -> Kernel | None:
        try:
            way = maker()
            expected = self._outcome(self.plain, device, dtype, width)
            if torch.equal(self._outcome(way, device, dtype, width), expected):
                return way
        except Exception as error:  # whatever a compiler or a driver raises
            if is_out_of_memory(error):
                raise
            _log.debug("No %s by %s on %s in %s: %s", self.name, maker.__name__, device, dtype, error)
        else:
            _log.debug("No %s by %s on %s in %s: other bits", self.name, maker.__name__, device, dtype)
        return None

    def _outcome(self, way: Kernel, device: torch.device, dtype: torch.dtype, width: int) -> Tensor:
        first, *others = (operand.to(device) for operand in self._samples(dtype, width))
        way(first, *others)
        return first


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    straight, crossed = x * cos, x * sin
    first, second = straight[..., :half] - crossed[..., half:], straight[..., half:] + crossed[..., :half]
    return torch.cat((first, second), dim=-1).to(x.dtype)


def _rotate_plainly(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    half = x.shape[-1] // 2
    straight, crossed = x * cos, x * sin
    torch.sub(straight[..., :half], crossed[..., half:], out=x[..., :half])
    torch.add(straight[..., half:], crossed[..., :half], out=x[..., half:])


def rotate_by_addcmul(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Two thirds of the plain way's bytes. For a value other than one CUDA rounds the product and then fuses the value,
    here -1, with the sum, which changes nothing; others fuse the product and round otherwise."""
    half = x.shape[-1] // 2
    first, second, cos, sin = x[..., :half], x[..., half:], cos[..., :half], sin[..., :half]
    straight, crossed = first * cos, first * sin
    torch.addcmul(straight, second, sin, value=-1, out=first)
    torch.addcmul(crossed, second, -cos, value=-1, out=second)


def _addcmul() -> Kernel:
    return rotate_by_addcmul


def _triton_rotation() -> Kernel:
    return _triton_kernels().rotate_


def _rotation_samples(dtype: torch.dtype, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [N,h,d], a part of wider rows, with cosines and sines. In every other row the halves are equal up to the sign
    and cosines equal to sines but for some last bits, so that the sums are what rounding has left of the products."""
    chance = torch.Generator("cpu").manual_seed(0)
    rows, heads, half = 64, 32, width // 2  # with so many heads Triton compiles what the 8B model takes
    x = torch.randn(rows, 2, heads, width, generator=chance, device="cpu").to(dtype)[:, 0]
    angles = 2 * torch.pi * torch.rand(rows, 1, half, generator=chance, device="cpu")
    cos, sin = angles.cos(), angles.sin()
    bits = torch.randint(-8, 9, cos[::2].shape, generator=chance, device="cpu", dtype=torch.int32)
    sin[::2] = (cos[::2].contiguous().view(torch.int32) + bits).view(torch.float32)
    x[::4, :, half:] = x[::4, :, :half]
    x[2::4, :, half:] = -x[2::4, :, :half]
    return x, torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)


def _swiglu_plainly(gate: Tensor, up: Tensor) -> None:
    F.silu(gate, inplace=True).mul_(up)


def _triton_swiglu() -> Kernel:
    return _triton_kernels().swiglu_


def _triton_kernels() -> ModuleType:
    if find_spec("triton") is None:
        raise ImportError("Triton is not installed")
    from . import triton_kernels

    return triton_kernels


def _swiglu_samples(dtype: torch.dtype, width: int) -> tuple[Tensor, Tensor]:
    """Every finite number of a dtype of two bytes as a gate, or as many of a wider one, in rows."""
    chance = torch.Generator("cpu").manual_seed(0)
    bits = torch.arange(-(2**15), 2**15, device="cpu").to(torch.int16)
    gate = bits.view(dtype) if dtype.itemsize == 2 else 4 * torch.randn(2**16, generator=chance, device="cpu").to(dtype)
    gate = torch.nan_to_num(gate, nan=1.0, posinf=2.0, neginf=-2.0)
    up = torch.randn(2**16, generator=chance, device="cpu").to(dtype)
    return gate.view(64, -1), up.view(64, -1)


rotations = Ways("rotation", _rotate_plainly, [_triton_rotation, _addcmul], _rotation_samples)
swiglus = Ways("SwiGLU", _swiglu_plainly, [_triton_swiglu], _swiglu_samples)


def offer_rotation(maker: Callable[[], Kernel]) -> None:
    """Has a kernel of the host's tried as well, before plain torch: `maker` gives a function of (x [N,h,d], cosines,
    sines [N,1,d]) that rotates x in place, or raises where it has none."""
    rotations.makers.insert(-1, maker)
