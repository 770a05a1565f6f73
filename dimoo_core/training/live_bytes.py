"""Measures the peak bytes that tensors hold while code runs, on any device, meta included."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages made while it is on; `peak` is the most that lived at once. Older storages do not count.

    `answer`: the value of every number that code reads from a meta tensor, so that loops run on tensors without data;
    booleans are read as False.
    """

    def __init__(self, answer: int | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {self._key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = self._answered(function, args, kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and self._key(leaf) not in given | self._known:
                self._count(leaf)
        return result

    def _answered(self, function, args: tuple, kwargs: dict):
        if self.answer is not None and args and isinstance(args[0], Tensor) and args[0].is_meta:
            if function is torch.ops.aten._local_scalar_dense.default:
                return args[0].dtype != torch.bool and self.answer
            if function is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
                return torch.full(args[0].shape, self.answer, dtype=args[0].dtype)
        return function(*args, **kwargs)

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), self._key(tensor)
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
