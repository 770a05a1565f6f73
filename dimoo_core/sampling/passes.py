"""How the passes that a step asks for are run: one after the other or together, and the short ones recorded.

Branches go through the layers together where that saves more than it costs: always where weights are streamed, because
each is then brought in once for all branches (`packed`); and in cached steps, whose few positions leave a card waiting
for the host. A short pass is recorded as a CUDA graph when it comes a second time, and from then on replayed: the host
launches it whole instead of kernel by kernel. Recorded or not, the tokens are the same.

Shapes: B batch, n positions computed, r rows asked for, m holes, V vocabulary rows.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..model.config import TransformerConfig
from ..model.kernels import settle
from ..model.transformer import Part, RotaryTable
from .branch import Ask, KeyValues, Scope

Forward = Callable[..., Tensor]  # the transformer, or a function of the same arguments


@runtime_checkable
class Network(Protocol):
    """The transformer, or what stands for it, where several sequences can go through it together."""

    config: TransformerConfig

    def __call__(self, ids: Tensor, **how: Any) -> Tensor: ...

    def together(self, parts: Sequence[Part], **how: Any) -> list[Tensor]: ...


SHORT_ROWS = 512  # of all parts together; a pass over more keeps a card busy for as long as the host takes
FEW_QUERIES = 64
# torch's own choice without cuDNN's attention: for 32 queries to 4290 keys it takes 0.095 ms on an H200, flash 0.058
_FOR_FEW = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
MOST_RECORDED = 4  # passes of different shapes; each holds its logits
_log = logging.getLogger(__name__)


def is_short(rows: int) -> bool:
    """Whether a pass over so many rows, the sum of B*n of its parts, may be recorded."""
    return rows <= SHORT_ROWS


class Passes:
    """Runs the passes of one sampling."""

    def __init__(
        self,
        transformer: Forward,
        *,
        length: int,
        device: torch.device,
        vocab: slice | None = None,
        chunk_rows: int | None = None,
        packed: bool = False,
        graphs: bool = True,
    ):
        """transformer: a `Network`, or a function, whose passes all go one by one. length: of the longest sequence.
        packed: all branches go through the layers together at every step. graphs: short passes may be recorded."""
        how: dict[str, Any] = {"vocab": vocab, "chunk_rows": chunk_rows}
        self._together: Callable[[Sequence[Part]], list[Tensor]] | None = None
        if isinstance(transformer, Network):
            for dtype in (torch.bfloat16, torch.float32):
                settle(device, dtype, transformer.config.head_dim)
            how["rotary"] = RotaryTable(length, transformer.config, device)
            self._together = partial(transformer.together, **how)
        self._one = partial(transformer, **how)
        self._packed, self._graphs = packed, graphs and self._together is not None
        self._recorder = Recorder(device)
        self._recorded: dict[tuple, Recorded] = {}  # the one that was used last stands last

    def records(self, rows: int) -> bool:
        """Whether passes over so many rows may be recorded, if their keys and values stay where they are (`KeyValues`
        that are fixed)."""
        return self._graphs and is_short(rows)

    def run(self, asks: Sequence[Ask]) -> list[Tensor]:
        """The logits [B,m,V] at the holes for each of the branches that ask."""
        parts, scopes = [ask.part for ask in asks], {ask.scope for ask in asks}
        rows = sum(part.ids.numel() for part in parts)
        short = Scope.ALL not in scopes and is_short(rows)
        if self._together is None or not (self._packed or short or scopes == {Scope.PART}):
            return [ask.answer([self._single(ask.part)]) for ask in asks]
        with _attention_for(parts):
            record = self._graphs and short and all(map(_stays, parts))
            logits = self._replayed(parts) if record else self._together(parts)
        return [ask.answer(logits) for ask in asks]

    def _single(self, part: Part) -> Tensor:
        return self._one(part.ids, positions=part.positions, cache=part.cache, rows=part.rows)

    def _replayed(self, parts: Sequence[Part]) -> list[Tensor]:
        shapes = tuple((tuple(part.ids.shape), part.rows is None or tuple(part.rows.shape)) for part in parts)
        key = (*shapes, *(id(part.cache) for part in parts))
        recorded = self._recorded.pop(key, None)
        if recorded is None:
            if len(self._recorded) == MOST_RECORDED:
                del self._recorded[next(iter(self._recorded))]
            assert self._together is not None
            recorded = Recorded(self._together, parts, self._recorder)
        self._recorded[key] = recorded
        return recorded(parts)


class Recorder:
    """Makes CUDA graphs, which take the memory that they work in from one pool."""

    def __init__(self, device: torch.device):
        self._device, self._works = device, device.type == "cuda"
        self._newest: Callable[[], cuda.CUDAGraph | None] = lambda: None

    def record(self, run: Callable[[], None]) -> cuda.CUDAGraph | None:
        """What `run` does on the device, to be done later: it must keep nothing that it makes. None on other devices,
        and where a layer cannot be recorded, such as one that asks the device for a number."""
        if not self._works:
            return None
        graph, newest = cuda.CUDAGraph(), self._newest()
        pool = None if newest is None else newest.pool()
        # The device may not be the current one. Where recording fails, torch leaves its stream as the current one.
        with cuda.device(self._device), cuda.stream(cuda.current_stream()):
            try:
                # "thread_local": other threads may go on using the device
                recording = cuda.graph(
                    graph, pool=pool, stream=_stream(cuda.current_device()), capture_error_mode="thread_local"
                )
                with recording:
                    run()
            except RuntimeError as error:  # out of memory, too: the pass that now runs as it is may find enough
                self._works = False
                _log.debug("Short passes are not recorded as CUDA graphs (%s).", error)
                return None
        self._newest = weakref.ref(graph)
        return graph


@cache
def _stream(device: int) -> cuda.Stream:
    """The stream of a device to record on: one, since each keeps work space for good."""
    return cuda.Stream(device)


class Recorded:
    """A pass over parts of fixed shapes: run once as it is, then recorded as a CUDA graph and replayed; where there are
    no graphs it runs anew each time. It works from buffers of its own, and into the logits of the first time.

    What it gives is overwritten by the next call.
    """

    def __init__(self, run: Callable[[Sequence[Part]], list[Tensor]], parts: Sequence[Part], recorder: Recorder):
        self._run, self._recorder = run, recorder
        self._parts = [_copied(part) for part in parts]
        self._logits: list[Tensor] = []
        self._graph: cuda.CUDAGraph | None = None

    def __call__(self, parts: Sequence[Part]) -> list[Tensor]:
        """The logits [B,r,V] of each of the parts, whose shapes and caches are those of the first call."""
        for fixed, given in zip(self._parts, parts, strict=True):
            for buffer, new in ((fixed.ids, given.ids), (fixed.positions, given.positions), (fixed.rows, given.rows)):
                if buffer is not None and new is not None:
                    buffer.copy_(new)
        if not self._logits:
            self._logits = self._run(self._parts)
            return list(self._logits)
        if self._graph is None:
            self._graph = self._recorder.record(self._into_buffers)
        if self._graph is None:
            self._into_buffers()
        else:
            self._graph.replay()
        return list(self._logits)

    def _into_buffers(self) -> None:
        for buffer, new in zip(self._logits, self._run(self._parts), strict=True):
            buffer.copy_(new)


def _stays(part: Part) -> bool:
    """Whether the keys and values of a part stay where they are; others would be kept by a recording that is not used
    again."""
    return isinstance(part.cache, KeyValues) and part.cache.fixed


def _attention_for(parts: Sequence[Part]) -> AbstractContextManager[None]:
    """Lets torch's attention, where that is what runs, choose the kernel that is fastest for few queries."""
    few = parts[0].ids.device.type == "cuda" and all(part.ids.shape[1] <= FEW_QUERIES for part in parts)
    return sdpa_kernel(_FOR_FEW) if few else nullcontext()


def _copied(part: Part) -> Part:
    """The same with tensors of its own, for the same cache."""
    ids, positions, rows = (None if one is None else one.clone() for one in (part.ids, part.positions, part.rows))
    assert ids is not None
    return Part(ids, positions, part.cache, rows)
