"""How large everything is that is measured, and networks of that size with random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dimoo_core.checkpoint.convert import input_scale, norm_before, quantised_as
from dimoo_core.model.config import VQConfig
from dimoo_core.model.quantised import FP8, LAYERS, largest_magnitude, quantise, rotate, scale_of, take_quantised
from dimoo_core.model.transformer import Transformer
from dimoo_core.model.vq import VQ
from dimoo_core.pictures.sizes import CELL

from ..workload import RELEASED_SIZE, RELEASED_VQ, TINY, ImageJob, Size, TextJob

TINY_VQ = VQConfig(3, 3, (8, 8, 8, 8, 16), 1, 8, 64, 8, 4, False)


@dataclass(frozen=True)
class Scale:
    """The networks; sides of a large and a small picture, px; steps of a picture and of an exact one; tokens of an
    answer, of a block, of an exact answer and of a prompt; the side of a product, the bytes of a copy; steps, tokens
    and sides in cells of what DiMOO-nano makes."""

    size: Size
    vq: VQConfig
    large: int = 1024
    small: int = 512
    steps: int = 64
    exact_steps: int = 8
    tokens: int = 128
    exact_tokens: int = 8
    block: int = 32
    words: int = 60
    product: int = 8192
    copied: int = 4 << 30
    nano_steps: int = 12
    nano_tokens: int = 32
    nano_cells: int = 8

    def picture(self, side: int) -> ImageJob:
        """Text-to-image of side x side px."""
        return ImageJob((side // CELL, side // CELL), self.words)

    def edit(self, side: int) -> ImageJob:
        """An edit of a picture of side x side px, as large."""
        cells = (side // CELL, side // CELL)
        return ImageJob(cells, self.words, cells)

    def question(self, side: int) -> TextJob:
        """A question about a picture of side x side px."""
        return TextJob((side // CELL, side // CELL), self.words)


FULL = Scale(RELEASED_SIZE, RELEASED_VQ)
SMALL = Scale(
    TINY,
    TINY_VQ,
    large=96,
    small=64,
    steps=8,
    exact_steps=2,
    tokens=8,
    exact_tokens=4,
    block=4,
    words=8,
    product=64,
    copied=4096,
    nano_steps=2,
    nano_tokens=4,
    nano_cells=4,
)


def build(scale: Scale, kind: str, device: torch.device) -> Transformer:
    """The transformer with weights of a kind, stored as in a file that `convert` writes."""
    if kind == "bf16":
        return scale.size.build(device, torch.bfloat16)

    def finish(name: str, layer: nn.Module) -> None:
        fields = quantised_as(f"{name}.weight", kind, layer.weight.shape[-1])
        if fields is None:
            return
        weight = layer.weight if fields.group is None else rotate(layer.weight, fields.group)
        factor = scale_of(largest_magnitude(weight, fields.format), fields.format)
        state = {"weight": quantise(weight, factor, fields.format), "weight_scale": factor}
        if fields.format is FP8 and norm_before(f"{name}.weight") is not None:
            state["input_scale"] = input_scale(torch.ones(layer.in_features)).to(device)  # norms are ones here
        take_quantised(layer, state | {"comfy_quant": fields.to_tensor()}, "")

    return scale.size.build(device, torch.bfloat16, ops=LAYERS, finish=finish)


def weight_bytes(network: nn.Module) -> int:
    """Bytes of the weights."""
    return sum(weight.nbytes for weight in network.parameters())


def build_vq(scale: Scale, device: torch.device, dtype: torch.dtype) -> VQ:
    """The VQ with random weights."""
    vq = VQ(scale.vq, device="meta", dtype=dtype).eval().requires_grad_(False).to_empty(device=device)
    for weight in vq.parameters():
        weight.normal_(std=0.02) if weight.ndim > 1 else weight.fill_(1)
    return vq
