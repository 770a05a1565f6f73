"""A device that is not there: real numbers on the CPU, under the rules of an accelerator.

    with Rehearsal() as seen:
        pipeline = load(device=seen.device)
        pipeline.generate("a large red circle")
    print(seen.waits, seen.copies_to_device)

An `OnDevice` tensor says that it lies on the claimed device and computes with a CPU tensor inside, by the very kernels
that the CPU takes: so tokens and losses are those of the CPU, bit for bit. It refuses to work with tensors of the CPU,
those of a single number excepted, and in fp64 where the claimed device has none; and everything for which the host
would wait, or that would cross the bus, is counted.
What torch for CUDA does in such places is the model (aten/src/ATen/native/cuda/Copy.cu: a copy from pageable memory
drains the stream).

Real devices differ in what cannot be rehearsed: the time that things take, kernels of their own, and streams.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dimoo_core.devices import has_fp64

from .op_counts import WAITING

_HERE = (str(Path(torch.__file__).parent), __file__)
_NOT_THERE = ("_scaled_mm",)  # a card with bf16 and without fp8, such as Ampere
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class OnDevice(Tensor):
    """A tensor of the claimed device. Made by a `Rehearsal`, and of use only while that is on."""

    inner: Tensor
    claimed: torch.device

    __torch_function__ = torch._C._disabled_torch_function_impl  # results are what the operations give

    @staticmethod
    def __new__(cls, inner: Tensor, claimed: torch.device) -> OnDevice:
        if inner.dtype in (torch.float64, torch.complex128) and not has_fp64(claimed):
            raise TypeError(f"{Rehearsal.told(str(inner.dtype))}: {claimed} has no fp64.")
        self = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
        )
        self.inner, self.claimed = inner, claimed
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.claimed

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.claimed.type == "cuda"

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnDevice({list(self.shape)}, {self.dtype}, {self.claimed})"

    def __deepcopy__(self, memo: dict) -> OnDevice:
        made = OnDevice(self.inner.clone(), self.claimed).requires_grad_(self.requires_grad)
        made.__dict__.update({name: value for name, value in self.__dict__.items() if name == "_is_param"})
        return memo.setdefault(id(self), made)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} of a tensor whose Rehearsal is over; do all of the work inside of it.")


class Rehearsal(TorchFunctionMode):
    """While it is on, `device` can be computed on like any other. What happens is counted, by the name of the operation
    and the line that asked for it:

    waits: where the host waits until the device has done all that was asked of it, blocking copies included.
    copies_to_device: blocking ones. copies_to_host: all. sends: copies to the device that do not block. replays: how
    often a graph was replayed, see `Graph`.

    The default is a card that no machine has, so that no real one meets what is kept per device for good, such as
    tables.
    """

    def __init__(self, device: str | torch.device = "cuda:9"):
        super().__init__()
        self.device = torch.device(device)
        self.waits: Counter[str] = Counter()
        self.copies_to_device: Counter[str] = Counter()
        self.copies_to_host: Counter[str] = Counter()
        self.sends: Counter[str] = Counter()
        self.replays = 0
        self.recording: Graph | None = None
        self._operations = _Operations(self)
        self._card = patch.multiple(
            torch.cuda,
            CUDAGraph=partial(Graph, self),
            graph=self._recorded,
            device=lambda device: nullcontext(),
            stream=lambda stream: nullcontext(),
            Stream=lambda device: None,
            current_stream=lambda: None,
            current_device=lambda: self.device.index,
        )
        self._pinned: dict[int, Tensor] = {}  # storages, kept so that no other gets the address
        self.makes_on_device: bool | None = None  # what the call that runs makes of nothing; None: no call runs

    def __enter__(self) -> Rehearsal:
        super().__enter__()
        self._operations.__enter__()
        self._overwrote = torch.__future__.get_overwrite_module_params_on_conversion()
        # Module.to would write into parameters, which cannot change their class: now it makes new ones.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._card.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._card.stop()
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrote)
        self._operations.__exit__(*error)
        super().__exit__(*error)

    def counts(self) -> dict[str, int]:
        """How many of each kind so far."""
        kinds = ("waits", "copies_to_device", "copies_to_host", "sends")
        return {kind: getattr(self, kind).total() for kind in kinds}

    # Crossing the bus ------------------------------------------------------------------------------------------------

    def send(self, tensor: Tensor, name: str, *, non_blocking: bool = False) -> OnDevice:
        """A CPU tensor on the device, copied."""
        self._note_sent(tensor, name, non_blocking)
        with self.on_the_cpu():
            inner = tensor.detach().clone()
        return OnDevice(inner, self.device)

    def fetch(self, tensor: OnDevice, name: str, *, non_blocking: bool = False) -> Tensor:
        """A tensor of the device on the CPU, copied."""
        self.copies_to_host[self.told(name)] += 1
        if not non_blocking:
            self.note_wait(name)
        with self.on_the_cpu():
            return tensor.inner.detach().clone()

    def note_wait(self, name: str) -> None:
        if self.recording is not None:
            raise RuntimeError(f"{self.told(name)}: not permitted while a graph is recorded.")
        self.waits[self.told(name)] += 1

    def _note_sent(self, tensor: Tensor, name: str, non_blocking: bool) -> None:
        if non_blocking and self._is_pinned(tensor):
            self.sends[self.told(name)] += 1
        else:
            self.copies_to_device[self.told(name)] += 1
            self.note_wait(name)

    @contextmanager
    def _recorded(self, graph: Graph, **_: Any) -> Iterator[None]:
        """In the place of torch.cuda.graph."""
        self.recording = graph
        try:
            yield
        finally:
            self.recording = None

    @staticmethod
    def told(name: str) -> str:
        """An operation and the first line outside torch and this file that asked for it."""
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith(_HERE):
            frame = frame.f_back
        if frame is None:
            return name
        return f"{name} at {'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    # Calls of torch's functions --------------------------------------------------------------------------------------

    def claims(self, device: Any) -> bool:
        """Whether this is the claimed device, by any of its names."""
        if not isinstance(device, (str, torch.device)):
            return False
        device = torch.device(device)
        return device.type == self.device.type and device.index in (None, self.device.index)

    def on_the_cpu(self) -> AbstractContextManager[None]:
        """Inside, what is made of nothing is no tensor of the device."""
        return self._making(on_device=False)

    @contextmanager
    def _making(self, *, on_device: bool) -> Iterator[None]:
        before, self.makes_on_device = self.makes_on_device, on_device
        try:
            yield
        finally:
            self.makes_on_device = before

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ == "__get__":  # of an attribute, such as shape
            return function(*args)
        kwargs = dict(kwargs or {})
        special = _SPECIAL.get(function)
        if special is not None:
            return special(self, function, args, kwargs)
        pins = kwargs.pop("pin_memory", False)
        here = self.claims(kwargs.get("device"))
        away = "device" in kwargs and not here and kwargs["device"] is not None
        if here:
            kwargs["device"] = "cpu"
        with self._making(on_device=here or (not away and _any_on_device((*args, *kwargs.values())))):
            result = function(*args, **kwargs)
        if here and isinstance(result, Tensor) and not isinstance(result, OnDevice):
            return OnDevice(result, self.device)  # such as zeros_like of a CPU tensor: nothing is copied
        if away and isinstance(result, OnDevice):
            return result.inner
        return self._pin(result) if pins else result

    def _to(self, function, args, kwargs):
        """Tensor.to, whose device hides in many places."""
        tensor, copy = args[0], kwargs.pop("copy", False)
        other = kwargs.pop("other", args[1] if len(args) > 1 and isinstance(args[1], Tensor) else None)
        if other is not None:
            device, dtype, non_blocking, layout = other.device, other.dtype, kwargs.get("non_blocking", False), None
        else:
            device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args[1:], **kwargs)
        form = {} if layout is None else {"memory_format": layout}
        if dtype is not None or copy or layout is not None:
            with self._making(on_device=isinstance(tensor, OnDevice)):
                same = tensor.to(dtype or tensor.dtype, copy=copy, **form)
        else:
            same = tensor
        if device is None or self.claims(device) == isinstance(same, OnDevice):
            return same
        return _Crossing.apply(same, self, "to", non_blocking)

    def _cpu(self, function, args, kwargs):
        (tensor,) = args
        return _Crossing.apply(tensor, self, "cpu", False) if isinstance(tensor, OnDevice) else tensor

    def _cuda(self, function, args, kwargs):
        return self._to(function, (args[0], self.device), {"non_blocking": kwargs.get("non_blocking", False)})

    def _from_data(self, function, args, kwargs):
        """torch.tensor and as_tensor: numbers, which come from pageable memory."""
        here = self.claims(kwargs.get("device"))
        source = args[0] if args else kwargs["data"]
        if isinstance(source, Tensor):
            dtype, device = kwargs.get("dtype"), kwargs.get("device")
            wanted = (source, device or source.device, dtype or source.dtype)
            return self._to(function, wanted, {"copy": function is torch.tensor})
        with self.on_the_cpu():
            made = function(*args, **(kwargs | {"device": "cpu"} if here else kwargs))
        return self.send(made, function.__name__) if here else made

    def _new_tensor(self, function, args, kwargs):
        tensor = args[0]
        kwargs.setdefault("dtype", tensor.dtype)
        kwargs.setdefault("device", tensor.device)
        return torch.tensor(*args[1:], **kwargs) if not self.claims(kwargs["device"]) else self._new_here(args, kwargs)

    def _new_here(self, args, kwargs):
        with self.on_the_cpu():
            made = torch.tensor(*args[1:], **(kwargs | {"device": "cpu"}))
        return self.send(made, "new_tensor")

    def _item(self, function, args, kwargs):
        """Reading and writing by an index; one with a list in it is made a tensor, which has to be sent."""
        tensor, index, *value = args
        if isinstance(tensor, OnDevice) and isinstance(index, (tuple, list)):
            index = [index] if isinstance(index, list) else index
            index = tuple(self._sent_index(one) if isinstance(one, (tuple, list)) else one for one in index)
        with self._making(on_device=isinstance(tensor, OnDevice)):
            return function(tensor, index, *value)

    def _sent_index(self, numbers: Sequence) -> OnDevice:
        with self.on_the_cpu():
            made = torch.tensor(numbers)
        return self.send(made, "a list as index")

    def _list(self, function, args, kwargs):
        (tensor,) = args
        if isinstance(tensor, OnDevice):
            tensor = self.fetch(tensor, "tolist")
        return function(tensor)

    def _array(self, function, args, kwargs):
        if isinstance(args[0], OnDevice):
            raise TypeError(f"{function.__name__} of a tensor on {self.device}: copy it to the CPU first.")
        return function(*args, **kwargs)

    def _memory(self, function, args, kwargs):
        """Where a tensor lies; read by who asks whether two share it."""
        return function(_inner(args[0]))

    def _pin_memory(self, function, args, kwargs):
        return self._pin(args[0].clone())

    def _asked_pinned(self, function, args, kwargs):
        return self._is_pinned(args[0])

    def _backward(self, function, args, kwargs):
        """With this mode on inside, too: layers that compute themselves again ask for tensors on the device."""
        tensor, *rest = args
        names = ("gradient", "retain_graph", "create_graph", "inputs")
        given = dict(zip(names, rest, strict=False)) | kwargs
        super().__enter__()
        try:
            torch.autograd.backward(tensor, given.pop("gradient", None), **given)
        finally:
            super().__exit__(None, None, None)


_SPECIAL: dict[Callable, Callable] = {
    Tensor.to: Rehearsal._to,
    Tensor.cpu: Rehearsal._cpu,
    Tensor.cuda: Rehearsal._cuda,
    Tensor.__getitem__: Rehearsal._item,
    Tensor.__setitem__: Rehearsal._item,
    Tensor.tolist: Rehearsal._list,
    Tensor.new_tensor: Rehearsal._new_tensor,
    Tensor.pin_memory: Rehearsal._pin_memory,
    Tensor.is_pinned: Rehearsal._asked_pinned,
    Tensor.backward: Rehearsal._backward,
    torch.tensor: Rehearsal._from_data,
    torch.as_tensor: Rehearsal._from_data,
    **dict.fromkeys((Tensor.untyped_storage, Tensor.data_ptr), Rehearsal._memory),
    **dict.fromkeys((Tensor.numpy, Tensor.__array__), Rehearsal._array),
}


class Graph:
    """In the place of torch.cuda.CUDAGraph: the operations of a recording, to be repeated on the very tensors that they
    read and wrote then; what Python did between them is not. (On a card nothing is computed while it is recorded.)"""

    def __init__(self, seen: Rehearsal):
        self._seen = seen
        self.operations: list[tuple[Callable, tuple, dict[str, Any], Any]] = []

    def pool(self) -> None:
        """Memory of a graph's own: there is none."""

    def replay(self) -> None:
        self._seen.replays += 1
        with self._seen.on_the_cpu():
            for function, args, kwargs, before in self.operations:
                after = function(*args, **kwargs)
                for old, new in zip(_tensors([before]), _tensors([after]), strict=True):
                    if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                        old.copy_(new)


class _Crossing(torch.autograd.Function):
    """To the other side; gradients come back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, seen: Rehearsal, name: str, non_blocking: bool) -> Tensor:
        ctx.seen = seen
        cross = seen.fetch if isinstance(tensor, OnDevice) else seen.send
        return cross(tensor, name, non_blocking=non_blocking)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        cross = ctx.seen.fetch if isinstance(gradient, OnDevice) else ctx.seen.send
        return cross(gradient, "backward"), None, None, None


class _Operations(TorchDispatchMode):
    """Runs every operation on what is held inside, and counts."""

    def __init__(self, seen: Rehearsal):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = _tensors((*args, *kwargs.values()))
        held = [one for one in tensors if isinstance(one, OnDevice)]
        name = function.overloadpacket.__name__
        if not held:
            return self._without(function, args, kwargs, made_of_nothing=not tensors)
        if name == "copy_" and len(held) < 2:
            return self._copy(*args, **kwargs)
        if name in _NOT_THERE:
            raise RuntimeError(f"{self.seen.told(name)}: {self.seen.device} has no kernel for it.")
        self._check(name, tensors)
        self._note_waiting(name, args)
        given = {id(one.inner): one for one in held}  # what is written in place comes back as what it was
        inside = {name: _mapped(_inner, value) for name, value in kwargs.items()}
        result = self._run(function, _mapped(_inner, args), inside)
        return _mapped(lambda one: given[id(one)] if id(one) in given else self._hold(one), result)

    def _hold(self, inner: Tensor) -> OnDevice:
        return OnDevice(inner, self.seen.device)

    def _without(self, function, args, kwargs, *, made_of_nothing: bool):
        """An operation on the CPU, or one that makes a tensor: where, the call of torch that it is part of has said.
        Outside of all calls are the formulas of autograd, which makes them beside gradients."""
        if made_of_nothing and self.seen.makes_on_device is not False:
            return _mapped(self._hold, self._run(function, args, kwargs))
        return function(*args, **kwargs)

    def _run(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        if self.seen.recording is not None:
            self.seen.recording.operations.append((function, args, kwargs, result))
        return result

    def _copy(self, into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(into, OnDevice):
            into.inner.copy_(self.seen.send(source, "copy_", non_blocking=non_blocking).inner)
        else:
            into.copy_(self.seen.fetch(source, "copy_", non_blocking=non_blocking))  # type: ignore[arg-type]
        return into

    def _check(self, name: str, tensors: list[Tensor]) -> None:
        for one in tensors:
            if not isinstance(one, OnDevice) and one.ndim:
                raise RuntimeError(
                    f"{self.seen.told(name)}: expected all tensors to be on {self.seen.device}, found one of shape "
                    f"{list(one.shape)} on the CPU."
                )

    def _note_waiting(self, name: str, args: tuple) -> None:
        if any(word in name for word in WAITING) or (name in _INDEXED and _selects(name, args)):
            self.seen.note_wait(name)


def _selects(name: str, args: tuple) -> bool:
    """Whether an index is a mask, whose marks have to be counted first; writing one number takes no counting."""
    masks = any(one.dtype == torch.bool for one in args[1] if isinstance(one, Tensor))
    return masks and not ("put" in name and args[2].numel() == 1)


def _any_on_device(values: Iterable[Any]) -> bool:
    return any(isinstance(one, OnDevice) for one in _tensors(values))


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _tensors(value)
    return found


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A value, a tuple or a list with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_mapped(change, one) for one in value) if type(value) in (tuple, list) else value


def _inner(tensor: Tensor) -> Tensor:
    return tensor.inner if isinstance(tensor, OnDevice) else tensor
