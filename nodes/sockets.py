"""The pack's own sockets, and what travels on them.

DIMOO_PROMPT, DIMOO_CANVAS and DIMOO_CACHE carry the core's `Prompt`, `Canvas` and `CachePolicy` as they are. Models
travel with their patcher: ComfyUI holds patchers weakly, so what travels keeps them alive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..dimoo_core import jobs, memory
from ..dimoo_core.checkpoint.find import Found
from ..dimoo_core.model.adapters import Adapter, Applied
from ..dimoo_core.model.vq import VQ
from ..dimoo_core.model.vq_tiles import TILE
from ..dimoo_core.pictures.crop import Region
from ..dimoo_core.sampling.ml_cache import CachePolicy
from ..dimoo_core.sequence.canvas import Canvas
from ..dimoo_core.sequence.prompt import Prompt
from . import host

ModelSocket = host.io.Custom("DIMOO_MODEL")
VQSocket = host.io.Custom("DIMOO_VQ")
PromptSocket = host.io.Custom("DIMOO_PROMPT")
CanvasSocket = host.io.Custom("DIMOO_CANVAS")
CacheSocket = host.io.Custom("DIMOO_CACHE")
CropSocket = host.io.Custom("DIMOO_CROP")
LoraSocket = host.io.Custom("LORA_MODEL")  # ComfyUI's own: the tensors of a LoRA by name
LossSocket = host.io.Custom("LOSS_MAP")  # ComfyUI's own: {"loss": the loss of every step}


def _ready(patcher: Any, whole: int, in_parts: int, beside: Sequence[Any] = ()) -> tuple[torch.device, bool]:
    """Brings weights into memory beside `whole` bytes, or beside `in_parts` where `whole` does not fit; `beside` as for
    `host.ready`. The device, and whether it fits."""
    device = host.ready(patcher, whole, beside)
    fits = host.free_bytes(device) >= whole
    if not fits:
        host.ready(patcher, in_parts, beside)  # leaves more room to the weights
    return device, fits


@dataclass(frozen=True, eq=False)
class LoadedVQ:
    """What travels on DIMOO_VQ: a `jobs.Autoencoder`. Results are on the device where results lie between nodes. Each
    call first brings the weights into memory, and works on one item of a batch at a time. found: the checkpoint that it
    was loaded from."""

    vq: VQ
    patcher: Any
    itemsize: int
    found: Found

    @property
    def scale(self) -> int:
        """Pixels per cell along each side."""
        return self.vq.scale

    @property
    def codebook_size(self) -> int:
        """How many codes there are, K."""
        return self.vq.codebook_size

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [B,3,H*s,W*s] in 0..1 -> codes [B,H,W]"""
        height, width = pixels.shape[2:]
        return self._each(self.vq.encode, pixels, memory.encode_bytes, (height, width))

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B,H,W] -> pixels [B,3,H*s,W*s] in 0..1"""
        height, width = (cells * self.scale for cells in codes.shape[1:])
        return self._each(self.vq.decode, codes, memory.decode_bytes, (height, width))

    def mean_colours(self) -> Tensor:
        """One colour [K,3] in 0..1 per code."""
        device = host.ready(self.patcher, memory.palette_bytes(self.vq.config, self.itemsize))
        return self.vq.mean_colours(device).to(host.output_device())

    def get_ram_usage(self) -> int:
        """Bytes; asked for by ComfyUI when it has to choose which results to forget."""
        return self.patcher.model_size()

    def _each(
        self, work: Callable[..., Tensor], batch: Tensor, scratch: Callable[..., int], size: tuple[int, int]
    ) -> Tensor:
        """`work` on each of a batch of pictures of `size` (h, w) px: whole where the memory for that is free and turns
        out to be enough, else in tiles."""
        whole, in_tiles = (scratch(self.vq.config, size, self.itemsize, tile=tile) for tile in (None, TILE))
        device, fits = _ready(self.patcher, whole, in_tiles)
        done = []
        for item in batch.split(1):
            tiled = partial(work, item.to(device), tile=TILE)
            result = host.within_memory(partial(work, item.to(device)), tiled) if fits else tiled()
            done.append(result.to(host.output_device()))
        return torch.cat(done)


@dataclass(eq=False)
class Palette:
    """One colour per code for previews, made when first asked for and kept as long as the checkpoint."""

    source: LoadedVQ
    _colours: Tensor | None = field(default=None, init=False)

    def colours(self) -> Tensor:
        """[K,3] in 0..1. The first call brings the VQ into memory."""
        if self._colours is None:
            self._colours = self.source.mean_colours()
        return self._colours


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What travels on DIMOO_MODEL: transformer, tokenizer and ids, and the colours that previews are made of.

    compute: the dtype that is computed in. found: the checkpoint that it was loaded from. adapters: patchers of the
    LoRAs that act in `core`; a model with LoRAs shares all else with the one it was made of.
    """

    core: jobs.Model
    patcher: Any
    compute: torch.dtype
    palette: Palette
    found: Found
    adapters: tuple[Any, ...] = ()

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is computed with."""
        return self.compute.itemsize

    def with_lora(self, adapter: Adapter, strength: float, name: str) -> LoadedModel:
        """The same network with a further LoRA, whose tensors are cast once, for good."""
        devices = self.patcher.load_device, self.patcher.offload_device
        patcher = host.managed(adapter.to(devices[1], self.compute), devices)
        core = self.core.with_adapters([Applied(adapter, strength, name)])
        return replace(self, core=core, adapters=(*self.adapters, patcher))

    def place(self, plan: jobs.Plan) -> jobs.Placement:
        """Brings the weights into memory beside what a plan needs; it runs all at once where the memory for that is
        free, else in chunks."""
        whole, in_chunks = (plan.scratch_bytes(self.itemsize, rows) for rows in (None, memory.CHUNK_ROWS))
        device, fits = _ready(self.patcher, whole, in_chunks, self.adapters)
        return jobs.Placement(device, None if fits else memory.CHUNK_ROWS)

    def get_ram_usage(self) -> int:
        """Bytes; asked for by ComfyUI when it has to choose which results to forget."""
        return sum(one.model_size() for one in (self.patcher, *self.adapters))


@dataclass(frozen=True, eq=False)
class Crop:
    """What travels on DIMOO_CROP: the whole picture [B,1 to 4,h,w], the part of it that was cut out, and that part's
    mask [1 or B,h',w'] at the picture's own size."""

    picture: Tensor
    region: Region
    mask: Tensor


# what travels on our sockets, by the name of the input, and which node gives it
_KINDS = {
    "model": (LoadedModel, "DiMOO Loader"),
    "vq": (LoadedVQ, "DiMOO Loader"),
    "prompt": (Prompt, "DiMOO Text Encode or DiMOO Image Edit"),
    "canvas": (Canvas, "DiMOO Empty Canvas, Image Edit, Mask Paint or VQ Encode"),
    "cache": (CachePolicy, "DiMOO Cache Settings"),
    "crop": (Crop, "DiMOO Crop Around Mask"),
    "lora_model": (Mapping, "DiMOO Train LoRA"),
}


def check_sockets(**values: Any) -> None:
    """Raises ValueError unless the values on our sockets are ours: ComfyUI tells sockets apart by their name alone, so
    a node of another pack may have the same."""
    for name, value in values.items():
        kind, giver = _KINDS[name]
        if not isinstance(value, kind):
            raise ValueError(f"The {name} input got {type(value).__name__} from another node pack; connect {giver}.")
