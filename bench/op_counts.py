"""Counts the work of a pass, at any size and on any device, meta included: operations, the bytes that they read and
write, and where the host would have to wait for the device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "attention")  # counted in FLOP, not in bytes
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")
_NOTHING = ("empty", "empty_like", "new_empty", "empty_strided")  # allocate without reading or writing
_LOOK_UPS = ("embedding", "gather", "index_select", "index")  # read as much as they write, however large the source
_WRITE_DOWNS = ("index_copy_", "scatter_", "index_put_")  # write as much as they read, however large the target


class OpCounts(TorchDispatchMode):
    """While it is on: `calls` and `bytes` per operation, views left out, and `waits`, the host's."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        given = {key: value for key, value in kwargs.items() if key != "out"}  # `out` is written, and is the result
        inputs, outputs = _tensors((args, given)), _tensors(result)
        if name not in _NOTHING and not _is_view(function, inputs, outputs):
            self.calls[name] += 1
            self.bytes[name] += _moved(name, inputs, outputs)
        self._note_waiting(name, args, inputs, outputs)
        return result

    def traffic(self) -> int:
        """Bytes read and written by everything but matrix products and attention."""
        return sum(count for name, count in self.bytes.items() if not any(word in name for word in PRODUCTS))

    def count(self) -> int:
        """Operations that are not views."""
        return sum(self.calls.values())

    def _note_waiting(self, name: str, args: tuple, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        boolean = name.startswith("index") and any(part.dtype == torch.bool for part in _tensors(args[1:2]))
        to_host = any(part.device.type == "cpu" for part in outputs) and any(
            part.device.type != "cpu" for part in inputs
        )
        if boolean or to_host or any(word in name for word in WAITING):
            self.waits[name] += 1


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_view(function, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    if function._schema.is_mutable or not outputs:
        return False
    known = {part.untyped_storage()._cdata for part in inputs}
    return all(part.untyped_storage()._cdata in known for part in outputs)


def _moved(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    if name in _LOOK_UPS:
        return 2 * sum(map(_bytes, outputs)) + sum(map(_bytes, inputs[1:]))
    if name in _WRITE_DOWNS:
        return sum(map(_bytes, inputs[1:])) + max(map(_bytes, inputs[1:]))
    return sum(map(_bytes, [*inputs, *outputs]))


def _bytes(tensor: Tensor) -> int:
    """Bytes of the elements in memory; an expanded dimension has one."""
    return tensor.element_size() * math.prod(_real_sizes(tensor))


def _real_sizes(tensor: Tensor) -> Iterator[int]:
    return (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
