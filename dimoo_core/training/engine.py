"""Where a model is trained: what differs between one device and many, and nothing else.

The loop (`loop.py`) is one. An engine adds numbers up over its processes, runs the passes in its precision, and knows
how the state of a run is written and read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..checkpoint.headers import write_tensors
from ..model.transformer import Transformer, sdpa

WRITTEN_OUT = 512  # positions; the scores of longer sequences would fill the memory
Named = Mapping[str, nn.Parameter]  # what is trained, by name


def attention_for_training(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of queries, keys and values [B,h,L,d] each -> [B,h,L,d]. Written out for short sequences on a CPU,
    where its backward is faster than torch's own; elsewhere torch's own, which never holds the scores [B,h,L,L].
    Without autograd it is torch's own, too: samples are those that users get, bit for bit."""
    if queries.device.type != "cpu" or queries.shape[-2] > WRITTEN_OUT or not torch.is_grad_enabled():
        return sdpa(queries, keys, values)
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ values


def learn_every_row(network: Transformer) -> None:
    """Where a pass asks the head for some rows of the vocabulary, the others get a gradient of zero, and not none.

    So an update decays and moves every weight, whichever tasks a step has; and processes with different tasks have
    gradients of the same weights, which FSDP relies on. To be called before the weights are sharded.
    """

    def touch(head: nn.Module, given: tuple, logits: Tensor) -> Tensor:
        vocab = given[1]
        if vocab is None or not torch.is_grad_enabled():
            return logits
        return logits + sum(weight[0, 0] * 0 for weight in head.parameters())

    network.layers["ff_out"].register_forward_hook(touch)


class Engine(Protocol):
    """One process of a training. rank, size: which of how many; device: where it computes."""

    rank: int
    size: int
    device: torch.device

    def sum(self, number: float) -> float:
        """The sum of a number over all processes."""
        ...

    def most(self, number: int) -> int:
        """The largest of a number over all processes."""
        ...

    def computing(self) -> AbstractContextManager[Any]:
        """Around each forward pass: its precision."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradients of this process's part of the loss; `last` of the step."""
        ...

    def norms(self, weights: Sequence[nn.Parameter]) -> Tensor:
        """The norm of the gradient of each weight, fp32 [n]; 0 where it has none."""
        ...

    def save(self, folder: Path, step: int, weights: Named, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        """Write the state of a run after `step` updates, whole or not at all."""
        ...

    def resume(self, folder: Path, weights: Named, optimisers: Sequence[torch.optim.Optimizer]) -> int:
        """Read the state that `save` wrote; how many updates it has seen, 0 where there is none."""
        ...

    def finish(self) -> None:
        """Wait for what is still being written."""
        ...

    def whole(self, weight: nn.Parameter, dtype: torch.dtype) -> Tensor:
        """All of a weight in `dtype`, in the machine's memory; every process has to ask for it."""
        ...

    def listening(self) -> AbstractContextManager[Any]:
        """Around the steps: one process of several keeps Ctrl-C and SIGTERM for `stop_if_asked`."""
        ...

    def stop_if_asked(self) -> None:
        """Between two steps: raises KeyboardInterrupt in all processes, where one of several was asked to stop."""
        ...

    def together(self) -> bool:
        """After an error: whether all processes met one, so that they can save what they have."""
        ...


class Single:
    """One process on one device. Weights in fp32 compute in bf16 where `mixed`, and keep their gradients in fp32."""

    rank, size = 0, 1

    def __init__(self, device: torch.device, *, mixed: bool = True):
        self.device, self.mixed = device, mixed

    def sum(self, number: float) -> float:
        return number

    def most(self, number: int) -> int:
        return number

    def computing(self) -> AbstractContextManager[Any]:
        # each weight is used once in a pass: a cache would keep all of them in bf16 beside the fp32 ones
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed, cache_enabled=False)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def norms(self, weights: Sequence[nn.Parameter]) -> Tensor:
        none = torch.zeros((), device=self.device)
        gradients = [weight.grad for weight in weights]
        return torch.stack([none if one is None else torch.linalg.vector_norm(one).float() for one in gradients])

    def finish(self) -> None:
        pass

    def whole(self, weight: nn.Parameter, dtype: torch.dtype) -> Tensor:
        return weight.detach().to("cpu", dtype)

    def listening(self) -> AbstractContextManager[Any]:
        return nullcontext()  # Ctrl-C stops a step where it stands

    def stop_if_asked(self) -> None:
        pass

    def together(self) -> bool:
        return True

    # The state: one safetensors file, with model/NAME, state/NAME/KEY, and what is no tensor as JSON beside the step.

    def save(self, folder: Path, step: int, weights: Named, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        names: dict[Tensor, str] = {weight: name for name, weight in weights.items()}
        tensors = {f"model/{name}": weight.detach() for weight, name in names.items()}
        for optimiser in optimisers:
            for weight, state in optimiser.state.items():
                found = {key: value for key, value in state.items() if value is not None}
                tensors |= {f"state/{names[weight]}/{key}": torch.as_tensor(value) for key, value in found.items()}
        folder.mkdir(parents=True, exist_ok=True)
        kinds, groups = json.dumps(_kinds(optimisers)), json.dumps([_numbers(one) for one in optimisers])
        metadata = {"step": str(step), "optimisers": kinds, "groups": groups}
        write_tensors(state_file(folder), _apart(tensors), metadata)

    def resume(self, folder: Path, weights: Named, optimisers: Sequence[torch.optim.Optimizer]) -> int:
        file = state_file(folder)
        if not file.exists():
            return 0
        metadata = check_state(file, {name: list(weight.shape) for name, weight in weights.items()})
        before, now = json.loads(metadata.get("optimisers", "null")), _kinds(optimisers)
        if before not in (None, now):
            raise ValueError(
                f"{file} is a run with {' and '.join(before)}, and this one has {' and '.join(now)}; take the same "
                "optimizer, or name another folder."
            )
        for optimiser, groups in zip(optimisers, json.loads(metadata.get("groups", "[]")), strict=False):
            for group, numbers in zip(optimiser.param_groups, groups, strict=True):
                group |= numbers
        owners = {weight: made for made in optimisers for group in made.param_groups for weight in group["params"]}
        with safe_open(file, "pt") as stored, torch.no_grad():
            for key in stored.keys():  # noqa: SIM118 - not a mapping
                kind, _, name = key.partition("/")
                if kind == "model":
                    weights[name].copy_(stored.get_tensor(key))
                else:
                    name, _, part = name.rpartition("/")
                    state, weight = stored.get_tensor(key), weights[name]
                    # the optimisers count steps on the CPU, wherever the weights are
                    kept = state if part == "step" else state.to(weight.device)
                    owners[weight].state[weight][part] = kept.item() if _counts(owners[weight], part) else kept
        return int(metadata["step"])


def state_file(folder: Path) -> Path:
    """Where `Single` keeps the state of the run in `folder`."""
    return folder / "training.safetensors"


_SET = ("lr", "peak", "params", "betas", "eps", "weight_decay")  # by the settings of the run that goes on


def _kinds(optimisers: Sequence[torch.optim.Optimizer]) -> list[str]:
    return [type(one).__name__ for one in optimisers]


def _numbers(optimiser: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What an optimiser found out by itself, such as Prodigy's d: numbers that no setting gives."""
    kinds = (bool, int, float)
    return [
        {name: value for name, value in group.items() if name not in _SET and isinstance(value, kinds)}
        for group in optimiser.param_groups
    ]


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, none in the memory of another, which safetensors would refuse: adamw8bit has one table for all."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        shared = tensor.untyped_storage().data_ptr() in taken
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
        taken.add(apart[name].untyped_storage().data_ptr())
    return apart


def _counts(optimiser: torch.optim.Optimizer, part: str) -> bool:
    """Whether an optimiser counts its steps in plain numbers: torch's own have tensors."""
    return part in ("step", "RMS") and not type(optimiser).__module__.startswith("torch.")


def check_state(file: Path, shapes: dict[str, list[int]]) -> dict[str, str]:
    """The metadata of a stored state. Raises ValueError unless its weights have the names and shapes `shapes`."""
    try:
        with safe_open(file, "pt") as stored:
            found = {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118 - not a mapping
            metadata = dict(stored.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{file} is not a stopped run ({error}); remove it to begin again.") from None
    if {name: found.get(f"model/{name}") for name in shapes} != shapes or "step" not in metadata:
        raise ValueError(f"{file} is a run of another network; name another folder for this one.")
    return metadata
