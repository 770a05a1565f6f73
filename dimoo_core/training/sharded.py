"""All weights trained in shards, over the cards of one machine or of many: torch's FSDP2 and distributed checkpoints.

Weights, gradients and the optimiser's state are cut into as many shards as there are processes, and a block's weights
are whole only while it computes. The shards may be fewer than the processes: then groups of processes hold a copy each
(hybrid sharding), and only gradients travel between groups.

It is imported when it is needed, since that takes over a second. It needs torch 2.9.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..checkpoint.find import Found
from ..checkpoint.headers import Entry, read_header
from ..checkpoint.load import check_weights
from ..checks import printable
from ..files import atomic_write_text
from ..model.quantised import restore
from ..model.transformer import Transformer, hub_to_module
from ..sampling.noise import widest_float
from .engine import Named, attention_for_training, check_state, learn_every_row, state_file
from .processes import LATEST, Processes, check_shards

KEPT = 2  # states
_STATE = re.compile(r"step-(\d{6,})")
_PART = ".part"


def sharded_transformer(
    found: Found, where: torch.device, *, shards: int | None = None, mixed: bool = True, offload: bool = False
) -> Transformer:
    """The transformer of a checkpoint to be trained, in fp32 and in shards: one for each process, or, where there are
    fewer `shards` than processes, in as many copies as fill them.

    No process ever holds more than its shards and one tensor of the files. mixed: blocks compute in bf16, gradients are
    added up in fp32. offload: weights, gradients and optimiser stay in the machine's memory. Raises ValueError where
    `shards` does not divide the processes, and as `load_transformer`.
    """
    check_weights(found)
    offset = found.table.code_offset
    network = Transformer(
        found.config, code_offset=offset, attention=attention_for_training, device="meta", dtype=torch.float32
    )
    policies = {
        "mesh": _mesh(where.type, shards),
        # the table of rotary positions is an input of the blocks and stays in fp32
        "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        if mixed
        else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy(pin_memory=where.type != "cpu") if offload else OffloadPolicy(),
    }
    learn_every_row(network)
    # blocks and head return views, of which torch warns, since a change in place would escape it; none follows
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for part in (*network.blocks, network.layers["wte"], network.layers["ff_out"]):
        fully_shard(part, **policies)
    fully_shard(network, reshard_after_forward=True, **policies)  # whole after a check otherwise, which has no backward
    network.to_empty(device="cpu" if offload else where)
    sources = {name: (entry, rows) for key, entry in found.weights.items() for name, rows in hub_to_module(key, offset)}
    with torch.no_grad():
        for name, weight in network.named_parameters():
            _fill(cast(DTensor, weight), _read(*sources[name]))
    return network.train()


def _mesh(kind: str, shards: int | None) -> Any:
    size = dist.get_world_size()
    shards = size if shards is None else shards
    check_shards(shards, size)
    if shards == size:
        return dist.init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
    return dist.init_device_mesh(kind, (size // shards, shards), mesh_dim_names=("replicate", "shard"))


def _read(entry: Entry, rows: slice | None = None) -> Tensor:
    if entry.quantisation is not None and entry.scale is not None:
        return restore(entry.read(), entry.scale.read(), entry.quantisation, torch.float32)
    return entry.read(rows)


def _fill(weight: DTensor, whole: Tensor) -> None:
    """Give a sharded weight its part of a tensor that every process reads for itself."""
    part = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
    weight.to_local().copy_(part.to_local())


class Sharded(Processes):
    """The engine of a `sharded_transformer`.

    The folder of a run holds its last two states, step-000100 and so on, each a distributed checkpoint in safetensors
    files, and `latest`, the name of the last one. A state is written beside the training, under another name until it
    is whole. Any number of processes reads it; and `training.safetensors`, which one process alone leaves.
    """

    def __init__(self, network: Transformer, device: torch.device):
        super().__init__(device)
        self.network = cast(FSDPModule, network)
        self._mesh = cast(DTensor, next(network.parameters())).device_mesh
        self._writers = dist.new_group(backend="gloo")  # the thread that writes has a group of its own
        self._writing: Any = None

    def computing(self) -> AbstractContextManager[Any]:
        return nullcontext()  # FSDP gives the blocks weights in the dtype that they compute in

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Gradients are added up within a group of shards after every pass, since a process that waited would hold all
        of them whole, 32 GB of the 8B; between copies they are added up after the last one."""
        self.network.set_requires_all_reduce(last)
        (loss * self.size).backward()  # FSDP takes the mean over all processes

    def norms(self, weights: Sequence[nn.Parameter]) -> Tensor:
        wide = widest_float(self.device)
        squares = torch.zeros(len(weights), dtype=wide, device=self.device)
        for index, weight in enumerate(weights):
            if weight.grad is not None:
                own = cast(DTensor, weight.grad).to_local()
                squares[index] = torch.linalg.vector_norm(own, dtype=wide).square()
        dist.all_reduce(squares, group=self._mesh.get_group("shard"))  # every copy has the sum already
        return squares.sqrt().float()

    def save(self, folder: Path, step: int, weights: Named, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        self.finish()
        place = folder / f"step-{step:06d}"
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob(f"step-*{_PART}"):  # of a run that was killed
                shutil.rmtree(part)
        self.wait()
        state = {f"model/{name}": weight.detach() for name, weight in weights.items()} | _states(weights, optimisers)
        writer = _Writer(place)
        self._writing = dcp.async_save(state, storage_writer=writer, process_group=self._writers)

    def finish(self) -> None:
        """Wait for the state that is being written. Raises ValueError where that failed."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except dcp.api.CheckpointException as error:
            reasons = [str(reason[0]) for reason in error.failures.values()]
            raise ValueError(
                f"The state of the run could not be written ({reasons[0]}); make room, then run the same command again."
            ) from None

    def resume(self, folder: Path, weights: Named, optimisers: Sequence[torch.optim.Optimizer]) -> int:
        step = self.most(_latest(folder) if self.rank == 0 else 0)
        if not step:
            return self._resume_from_single(state_file(folder), weights, optimisers)
        place = folder / f"step-{step:06d}"
        try:
            self._read(place, weights, optimisers)
        except (SafetensorError, OSError, dcp.api.CheckpointException) as error:
            raise ValueError(
                f"The state {place} is damaged ({printable(str(error))}); write the name of the other state into "
                f"{folder / LATEST}, or remove the folder."
            ) from None
        return step

    def _read(self, place: Path, weights: Named, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        reader = HuggingFaceStorageReader(str(place))
        stored: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
        found = {key: tuple(one.size) for key, one in stored.items()}
        if {name: found.get(f"model/{name}") for name in weights} != _shapes(weights):
            raise ValueError(f"{place.parent} is a run of another network; name another folder for this one.")
        _prepare(weights, optimisers, found)
        state = {f"model/{name}": weight.detach() for name, weight in weights.items()} | _states(weights, optimisers)
        dcp.load(state, storage_reader=reader, process_group=self._control)

    def _resume_from_single(self, file: Path, weights: Named, optimisers: Sequence[torch.optim.Optimizer]) -> int:
        if not self.most(int(file.exists())):
            return 0
        metadata = check_state(file, {name: list(weight.shape) for name, weight in weights.items()})
        entries = read_header(file)[1]
        _prepare(weights, optimisers, {key: entry.shape or (1,) for key, entry in entries.items()})
        targets = {f"model/{name}": weight.detach() for name, weight in weights.items()} | _states(weights, optimisers)
        for key, target in targets.items():
            whole = entries[key].read()
            if isinstance(target, DTensor):
                _fill(target, whole)
            else:
                target.copy_(whole)
        return int(metadata["step"])

    def whole(self, weight: nn.Parameter, dtype: torch.dtype) -> Tensor:
        return cast(DTensor, weight.detach().to(self.device, dtype)).full_tensor().cpu()


class _Writer(HuggingFaceStorageWriter):
    """Writes a state under a name of its own, which the first process changes once all have written their shards."""

    def __init__(self, place: Path):
        super().__init__(str(place.with_name(place.name + _PART)), save_distributed=True)
        self._place = place

    def finish(self, metadata: Any, results: Any) -> None:
        super().finish(metadata, results)
        place = self._place
        shutil.rmtree(place, ignore_errors=True)  # the same step of a run that began anew
        os.replace(place.with_name(place.name + _PART), place)
        atomic_write_text(place.parent / LATEST, place.name)
        for old in sorted(_kept(place.parent), reverse=True)[KEPT:]:
            shutil.rmtree(place.parent / f"step-{old:06d}", ignore_errors=True)
        state_file(place.parent).unlink(missing_ok=True)  # of an earlier part of the run, in one process


def _kept(folder: Path) -> list[int]:
    return [int(match[1]) for path in folder.glob("step-*") if (match := _STATE.fullmatch(path.name))]


def _latest(folder: Path) -> int:
    """The step of the last whole state in a folder, 0 where there is none. Raises ValueError for a damaged `latest`."""
    file = folder / LATEST
    if not file.is_file():
        return 0
    name = file.read_text(encoding="utf-8", errors="replace").strip()
    match = _STATE.fullmatch(name)
    if match is None or not (folder / name).is_dir():
        raise ValueError(f"{file} does not name a state beside it; write the name of a folder step-... into it.")
    return int(match[1])


# The state of the optimisers, under the names that `Single` gives it. Step counts are tensors of one number [1]: a
# distributed checkpoint has no others.


def _states(weights: Named, optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {weight: name for name, weight in weights.items()}
    return {
        f"state/{names[weight]}/{key}": value if value.ndim else value.view(1)
        for optimiser in optimisers
        for weight, state in optimiser.state.items()
        for key, value in state.items()
    }


def _prepare(weights: Named, optimisers: Sequence[torch.optim.Optimizer], found: Mapping[str, Sequence[int]]) -> None:
    """Make room in the optimisers for the states that were `found`, by name and shape."""
    owners = {weight: made for made in optimisers for group in made.param_groups for weight in group["params"]}
    for key, shape in found.items():
        kind, _, name = key.partition("/")
        name, _, part = name.rpartition("/")
        if kind == "state" and name in weights:
            weight = weights[name]
            alike = tuple(shape) == tuple(weight.shape)
            owners[weight].state[weight][part] = torch.zeros_like(weight.detach()) if alike else torch.zeros(())


def _shapes(weights: Named) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}
