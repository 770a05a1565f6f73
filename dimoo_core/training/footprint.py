"""The memory of a training step, counted before it is made: the step itself runs on tensors without data.

What is counted are the bytes of all tensors that live at once: weights, activations, gradients, the optimiser's state.
What an allocator loses between them, and the workspace of kernels, comes on top.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoint.convert import norm_before, quantised_as
from ..model.adapters import TARGETS, Adapter, Adapters, Applied
from ..model.config import TransformerConfig
from ..model.quantised import FP8, LAYERS
from ..model.transformer import Transformer
from ..sequence.layout import answer_length
from .live_bytes import LiveBytes
from .objective import HiddenBatch, loss_sum
from .optimise import OptimiserSettings, build_optimisers


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention without a mask as a GPU runs it, an operation that torch can count on meta tensors too."""
    return torch.ops.aten._scaled_dot_product_flash_attention(queries, keys, values)[0]


@dataclass(frozen=True)
class StepShape:
    """A step of text to image with all of the picture hidden, which is the most that can be: `batch` B sequences of
    `prompt` ids and a picture of `height` x `width` cells."""

    height: int
    width: int
    prompt: int = 60
    batch: int = 1

    @property
    def tokens(self) -> int:
        """Ids of a sequence."""
        return self.prompt + answer_length(self.height, self.width)

    def hidden(self, vocab: slice, device: str = "meta") -> HiddenBatch:
        """The batch; on "meta" without data."""
        cells = self.height * self.width
        ids = torch.zeros(self.batch, self.tokens, dtype=torch.int64, device=device)
        rows = torch.zeros(self.batch, cells, dtype=torch.int64, device=device)
        targets = torch.full((self.batch, cells), vocab.start, device=device)
        return HiddenBatch(ids, rows, targets, torch.ones(self.batch, cells, device=device), float(cells), vocab)


def blank_base(
    config: TransformerConfig, code_offset: int, kind: str, dtype: torch.dtype, ops: Any = LAYERS
) -> Transformer:
    """A transformer without data whose weights are stored as `convert` stores them as `kind`: bf16, fp8, int8. The rest
    has `dtype`. ops: as for `Transformer`; its Linear must take quantised weights."""
    network = Transformer(
        config, code_offset=code_offset, ops=ops, attention=attention, device="meta", dtype=dtype
    ).requires_grad_(False)
    for name, layer in network.named_modules():
        if not isinstance(layer, ops.Linear):
            continue
        stored, shape = quantised_as(f"{name}.weight", kind, layer.in_features), (layer.out_features, layer.in_features)
        if stored is None:
            state = {"weight": torch.empty(shape, dtype=dtype, device="meta")}
        else:
            numbers = torch.empty(shape, dtype=stored.format.dtype, device="meta")
            scale = torch.empty(stored.format.scale_shape(len(numbers)), device="meta")
            state = {"weight": numbers, "weight_scale": scale, "comfy_quant": stored.to_tensor()}
            if stored.format is FP8 and norm_before(f"{name}.weight") is not None:
                state["input_scale"] = torch.empty((), device="meta")
        layer.load_state_dict(state, assign=True)
    return network


@dataclass(frozen=True)
class StepCost:
    """The most bytes that live at once, weights included, and the floating point operations of a step's products."""

    bytes: int
    flops: int


def lora_step_cost(
    base: Transformer,
    shape: StepShape,
    *,
    rank: int,
    vocab: slice,
    targets: Sequence[str] = TARGETS,
    recompute: bool = True,
) -> StepCost:
    """What a LoRA taught with AdamW beside a base of `blank_base` costs."""
    adapter = Adapter.blank(base, rank=rank, alpha=rank, targets=targets, device="meta")
    network = partial(base.recompute(recompute), adapters=Adapters([Applied(adapter)]))
    optimisers = build_optimisers(adapter.named_parameters(), OptimiserSettings())
    weights, batch = [*base.parameters(), *adapter.parameters()], shape.hidden(vocab)
    held = peak_of_steps(network, list(adapter.parameters()), optimisers, batch)
    with FlopCounterMode(display=False) as counter:  # by itself: it holds tensors for longer
        (loss_sum(network, batch) / batch.count).backward()
    return StepCost(bytes_of(weights) + held, counter.get_total_flops())


def peak_of_steps(
    network: Callable[..., Tensor],
    trained: list[nn.Parameter],
    optimisers: list[torch.optim.Optimizer],
    batch: HiddenBatch,
) -> int:
    """The most bytes that two steps hold beside the weights: forward, backward and update, the second one with the
    optimiser's state."""
    with LiveBytes() as live:
        for _ in range(2):
            take_step(network, trained, optimisers, batch)
    return live.peak


def take_step(
    network: Callable[..., Tensor],
    trained: list[nn.Parameter],
    optimisers: list[torch.optim.Optimizer],
    batch: HiddenBatch,
) -> None:
    """Forward, backward and update, and nothing else."""
    (loss_sum(network, batch) / batch.count).backward()
    for optimiser in optimisers:
        optimiser.step()
    for weight in trained:
        weight.grad = None


def bytes_of(weights: Iterable[nn.Parameter]) -> int:
    """What weights take, each storage once."""
    return sum({part.untyped_storage()._cdata: part.untyped_storage().nbytes() for part in weights}.values())


def products_per_second(device: torch.device, *, side: int = 2048, seconds: float = 0.2) -> float:
    """Floating point operations of a square product in bf16 that a device makes in a second, measured just now."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    side = side // 4 if device.type == "cpu" else side
    one = torch.randn(side, side, device=device).to(dtype)
    for count in (1, 4, 16, 64, 256):
        began = time.perf_counter()
        for _ in range(count):
            product = one @ one
        product.flatten()[0].item()  # waits for the device
        passed = time.perf_counter() - began
        if passed > seconds:
            break
    return count * 2 * side**3 / passed
