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
from torch import Tensor, nn

from ..dimoo_core import jobs, memory
from ..dimoo_core.checkpoint.find import Found
from ..dimoo_core.model.adapters import Adapter, Applied
from ..dimoo_core.model.vq import VQ
from ..dimoo_core.model.vq_tiles import TILE
from ..dimoo_core.pictures.crop import Region, at_own_size, shown_by
from ..dimoo_core.pictures.sizes import Window
from ..dimoo_core.provenance import checkpoint_name
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
        device = host.ready([self.patcher], memory.palette_bytes(self.vq.config, self.itemsize))
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
        device = host.ready([self.patcher], whole)
        fits = host.room(self.patcher) >= whole
        if not fits:
            host.ready([self.patcher], in_tiles)  # leaves more room to the weights
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


@dataclass(eq=False)
class Streaming:
    """Whether the weights of a model come from RAM at every pass, for want of room on the card: found out when the
    model is first placed, and kept, so that each of its runs rounds alike. None: not placed yet."""

    found: bool | None = None


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What travels on DIMOO_MODEL: transformer, tokenizer and ids, and the colours that previews are made of.

    patcher: that of the transformer without its text tables. head: that of the text rows of its head, which only
    answers need; the text rows of its embedding wait in RAM for good. compute: the dtype that is computed in. found:
    the checkpoint that it was loaded from. adapters: patchers of the LoRAs that act in `core`; a model with LoRAs
    shares all else with the one it was made of.
    """

    core: jobs.Model
    patcher: Any
    head: Any
    compute: torch.dtype
    palette: Palette
    found: Found
    adapters: tuple[Any, ...] = ()
    streaming: Streaming = field(default_factory=Streaming)

    @classmethod
    def under_management(
        cls,
        core: jobs.Model,
        devices: tuple[torch.device, torch.device],
        compute: torch.dtype,
        palette: Palette,
        found: Found,
    ) -> LoadedModel:
        """A model that computes and waits on two devices, under ComfyUI's memory management."""
        apart = core.transformer.set_text_apart()
        network, head = (
            host.managed(module, devices) for module in (core.transformer, nn.ModuleDict({"text_head": apart.head}))
        )
        return cls(core, network, head, compute, palette, found)

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
        """Brings the weights into memory beside what a plan needs. Where they stay there, the plan runs all at once if
        the memory for that is free too, else in chunks. Where they stream, it runs in chunks, which leave more room to
        the weights, and all branches share a pass, if there is memory for that without any weight."""
        networks = [self.patcher, self.head] if isinstance(plan, jobs.TextPlan) else [self.patcher]
        placement = None if self.streaming.found else self._place_resident(plan, networks)
        if self.streaming.found is None:
            self.streaming.found = placement is None
        return placement or self._place_streaming(plan, networks, packed=self.streaming.found)

    def _place_resident(self, plan: jobs.Plan, networks: Sequence[Any]) -> jobs.Placement | None:
        """None: the weights do not stay on the device, not even beside a plan in chunks."""
        device, dynamic = self.patcher.load_device, host.is_dynamic(self.patcher)
        recorded = device.type == "cuda" and not dynamic
        whole, in_chunks = (
            plan.scratch_bytes(self.itemsize, rows, graphs=recorded) for rows in (None, memory.CHUNK_ROWS)
        )
        if any(map(host.casts, networks)):
            in_chunks += self._held_bytes
        fits = self._stays(networks, whole) and host.room(self.patcher) >= whole
        if not fits and not self._stays(networks, in_chunks):
            return None
        graphs = not dynamic and not any(map(host.casts, networks))
        return jobs.Placement(device, None if fits else memory.CHUNK_ROWS, graphs=graphs)

    def _stays(self, networks: Sequence[Any], scratch: int) -> bool:
        host.ready(networks, scratch, self.adapters)
        return host.resident([*networks, *self.adapters], scratch)

    def _place_streaming(self, plan: jobs.Plan, networks: Sequence[Any], *, packed: bool) -> jobs.Placement:
        fits = packed and self._has_room(plan, networks, packed=True)
        if not fits:
            self._has_room(plan, networks, packed=False)
        shared = "; all branches share a pass" if fits else ""
        host.log_once("DiMOO: the weights of %s stream from RAM%s.", self.found.path, shared)
        if _caches(plan):
            host.log_once(
                "DiMOO: a cached step streams as many weights as a full one, so that caching saves little time."
            )
        return jobs.Placement(self.patcher.load_device, memory.CHUNK_ROWS, packed=fits, graphs=False)

    def _has_room(self, plan: jobs.Plan, networks: Sequence[Any], *, packed: bool) -> bool:
        """Leaves a plan in chunks as much room beside the weights as can be; whether that is enough."""
        scratch = plan.scratch_bytes(self.itemsize, memory.CHUNK_ROWS, packed=packed) + self._held_bytes
        host.ready(networks, scratch, self.adapters)
        return host.room(self.patcher, self.adapters) >= scratch

    @property
    def _held_bytes(self) -> int:
        """What a pass in chunks holds of weights that are cast or streamed."""
        return memory.held_bytes(self.core.transformer.config, self.itemsize, self.core.formats)

    def get_ram_usage(self) -> int:
        """Bytes; asked for by ComfyUI when it has to choose which results to forget."""
        managed = sum(one.model_size() for one in (self.patcher, self.head, *self.adapters))
        apart = self.core.transformer.text_tables
        return managed + (0 if apart is None else sum(part.nbytes for part in apart.embedding.parameters()))


def _caches(plan: jobs.Plan) -> bool:
    return plan.settings.policy.keeps if isinstance(plan, jobs.TextPlan) else plan.settings.cache is not None


@dataclass(frozen=True, eq=False)
class Crop:
    """What travels on DIMOO_CROP: the whole picture [B,1 to 4,h,w], the part of it that was cut out, and that part's
    mask [1 or B,h',w'] at the picture's own size.

    window: the part of the region that a picture to be put back shows, where it does not show all of it.
    """

    picture: Tensor
    region: Region
    mask: Tensor
    window: Window | None = None

    @classmethod
    def fitted(cls, picture: Tensor, fitted: Tensor) -> Crop:
        """A picture [B,1 to 4,h,w] and what `pixels.fit` made of it, [B,3,h',w']."""
        height, width = picture.shape[2:]
        window, mask = shown_by(fitted, picture)
        return cls(picture, Region(0, 0, width, height), mask, window)

    def at_own_size(self, painted: Tensor) -> Tensor:
        """Pixels [B,C,h,w] that show the window, as they lie in the region; as they are where there is none."""
        if self.window is None:
            return painted
        return at_own_size(painted, self.window, self.region.width, self.region.height)


# what travels on our sockets, by the name of the input, and which node gives it
_KINDS = {
    "model": (LoadedModel, "DiMOO Loader"),
    "vq": (LoadedVQ, "DiMOO Loader"),
    "prompt": (Prompt, "DiMOO Text Encode or DiMOO Image Edit"),
    "canvas": (Canvas, "DiMOO Empty Canvas, Image Edit, Mask Paint or VQ Encode"),
    "cache": (CachePolicy, "DiMOO Cache Settings"),
    "crop": (Crop, "DiMOO Crop Around Mask or Image Edit"),
    "lora_model": (Mapping, "DiMOO Train LoRA"),
}


def check_sockets(**values: Any) -> None:
    """Raises ValueError unless the values on our sockets are ours: ComfyUI tells sockets apart by their name alone, so
    a node of another pack may have the same."""
    for name, value in values.items():
        kind, giver = _KINDS[name]
        if not isinstance(value, kind):
            raise ValueError(f"The {name} input got {type(value).__name__} from another node pack; connect {giver}.")


def check_pair(model: LoadedModel, vq: LoadedVQ) -> None:
    """Raises ValueError unless a model can read the codes of a VQ. Of two that were loaded from different places the
    log says so once: what their codes mean may differ."""
    check_sockets(model=model, vq=vq)
    known, given = model.core.table.codebook_size, vq.codebook_size
    names = [checkpoint_name(one.found) for one in (model, vq)]
    if known != given:
        raise ValueError(
            f"The model of {names[0]} knows {known} codes, the VQ of {names[1]} has {given}: connect model and vq of "
            "the same DiMOO Loader."
        )
    if model.found.path != vq.found.path:
        host.log_once(
            "DiMOO: the model is that of %s, the VQ that of %s; the model misreads pictures unless both VQs are equal.",
            *names,
        )
