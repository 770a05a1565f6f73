"""The only room that knows ComfyUI's machinery: devices and memory, model folders, progress, previews and cancel.

Whatever differs between ComfyUI 0.3.75 and newer ones is told apart here and nowhere else.
"""

from __future__ import annotations

import copy
import gc
import glob
import html
import inspect
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import comfy.cli_args
import comfy.ldm.modules.attention
import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.utils
import folder_paths
import torch
from aiohttp import web
from PIL import Image
from torch import Tensor, nn

try:
    from comfy_api.latest import ComfyExtension, io, ui
except ImportError as error:
    raise ImportError("The DiMOO nodes need ComfyUI 0.3.75 or newer; please update ComfyUI.") from error

from ..dimoo_core.checkpoint.headers import Entry, weight_errors
from ..dimoo_core.files import atomic_write, atomic_write_text
from ..dimoo_core.model import quantised
from ..dimoo_core.model.kernels import Kernel, offer_rotation
from ..dimoo_core.model.quantised import GROUP, INT8, Format, Quantised, take_quantised

__all__ = ["ComfyExtension", "io", "ui"]

FOLDER = "dimoo"  # under ComfyUI's models, and the key in extra_model_paths.yaml
_LAYERS = ("Linear", "Embedding", "RMSNorm", "Conv2d", "GroupNorm")
_INVISIBLE = "\u200b"
_HTML = re.compile(r"<(?=[A-Za-z/!?])|&#?\w+;?", re.ASCII)  # what begins a tag or a comment; an entity, perhaps
# How pages write links: [[words|address]] with its marks for them, and, with Nodes 2.0, Markdown's three ways.
_LINK = re.compile(r"\[(?=\[)|__LNK(?=\d)|\](?=[(\[:])")
Meaning = TypeVar("Meaning")
_log = logging.getLogger(__name__)
_served: set[str] = set()  # paths of `serve_json`
_logged: set[tuple[str, tuple[object, ...]]] = set()
_remarked: set[tuple[str | None, str | None]] = set()  # pages and their nodes that show a remark


def schema(**fields) -> io.Schema:
    """A node's schema of those fields that this ComfyUI knows; 0.3.75 has no `search_aliases`."""
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


# Model folders ------------------------------------------------------------------------------------------------------


def register_folder() -> None:
    """Makes `models/dimoo` a model folder, after those that extra_model_paths.yaml may have named."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    extensions = folder_paths.folder_names_and_paths[FOLDER][1]
    if isinstance(extensions, set):  # a new folder comes with an empty set, which would mean every file
        extensions.add(".safetensors")


def model_folders() -> list[Path]:
    """The folders that may hold checkpoints, most important first; empty where the folder is not registered yet."""
    if FOLDER not in folder_paths.folder_names_and_paths:
        return []
    return [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]


def lora_files() -> list[str]:
    """Names of the safetensors files in ComfyUI's LoRA folders, those in sub-folders with their path, as ComfyUI
    writes them on this system."""
    try:
        names = folder_paths.get_filename_list("loras")
    except OSError as error:  # a drive that is away must not take the pack's nodes with it
        log_once("DiMOO: the LoRA folders cannot be read (%s).", error)
        return []
    return [name for name in names if name.endswith(".safetensors") and not Path(name).name.startswith("._")]


def lora_path(name: str) -> Path | None:
    """Where a file of `lora_files` lies; None where it is gone."""
    found = folder_paths.get_full_path("loras", name)
    return None if found is None else Path(found)


def lora_folder() -> Path:
    """Where a new LoRA goes: the first of ComfyUI's LoRA folders."""
    return Path(folder_paths.get_folder_paths("loras")[0])


# Devices and memory -------------------------------------------------------------------------------------------------


def transformer_dtypes(parameters: int, wanted: torch.dtype | None) -> tuple[torch.dtype, torch.dtype]:
    """The dtype to store `parameters` weights in and the one to compute in; `wanted` None leaves both to ComfyUI.

    Always bf16 or fp32, also where ComfyUI was started with a dtype that suits other models (--fp8_e4m3fn-unet,
    --fp16-unet, --force-fp16, ...): a language model's activations outgrow fp16, and weights in fp8 need scales.
    """
    device, usable = memory.get_torch_device(), [torch.bfloat16, torch.float32]
    weight = memory.unet_dtype(device, parameters, supported_dtypes=usable) if wanted is None else wanted
    if weight not in usable:
        asked, has_bf16 = weight, memory.should_use_bf16(device, model_params=parameters, manual_cast=True)
        weight = torch.bfloat16 if has_bf16 and asked != torch.float64 else torch.float32
        log_once(
            "DiMOO: ComfyUI was started with %s for diffusion models, which Lumina-DiMOO does not run in; loading %s.",
            asked,
            weight,
        )
    compute = memory.unet_manual_cast(weight, device, supported_dtypes=usable) or weight
    return weight, compute if compute in usable else torch.float32


def note_fp32(compute: torch.dtype, wanted: torch.dtype | None, formats: Collection[Format]) -> None:
    """Says once in the log that a card without bf16 computes in fp32, and the way out: not where fp32 was `wanted`, nor
    where the weights have the format of that way already."""
    device, asked = memory.get_torch_device(), comfy.cli_args.args
    if compute != torch.float32 or device.type != "cuda" or memory.should_use_bf16(device):
        return
    if wanted == torch.float32 or asked.force_fp32 or asked.fp32_unet or asked.fp64_unet:
        return
    if INT8 not in formats:
        log_once(
            "DiMOO: this card has no bf16, so the model computes in fp32, which is slow; choose int8 as "
            "weight_dtype in DiMOO Loader, whose matrix products the card computes in int8."
        )


def vq_dtype() -> torch.dtype:
    """fp32, in which the VQ was trained, or bf16 where ComfyUI was started with that for VAEs.

    Never fp16: the published VQ asks for an upcast (`force_upcast`), and a rounded encoder finds other codes. Nor bf16
    unasked: with the two VQs of `tests/golden` that changes 4 of 84 codes and pixels by up to 31/255 (0.9 on average).
    """
    asked = memory.vae_dtype(memory.vae_device(), allowed_dtypes=[])
    if asked in (torch.float32, torch.bfloat16):
        return asked
    log_once("DiMOO: ComfyUI was started with %s for VAEs, which the VQ does not run in; loading torch.float32.", asked)
    return torch.float32


class FileReader:
    """A core's `Reader` that leaves reading to ComfyUI (`load_torch_file`), so that weights reach the card by its own
    road: newer ones read them from the file straight into pinned memory, 0.3.75 pins the mapped pages; and with
    --disable-mmap they are in memory from the start. Each file is opened once."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, Tensor]] = {}

    def __call__(self, entry: Entry, rows: slice | None = None) -> Tensor:
        if entry.file not in self._files:
            self._files[entry.file] = _read_file(entry.file)
        with weight_errors(entry.file):
            tensor = self._files[entry.file][entry.name]
        return tensor if rows is None else _file_rows(tensor, rows)


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        return comfy.utils.load_torch_file(str(file))
    except RuntimeError:  # for want of memory, say: the file is not to blame
        raise
    except BaseException:
        with weight_errors(file):
            raise


def _file_rows(tensor: Tensor, rows: slice) -> Tensor:
    """Rows of a tensor [N,...] that ComfyUI read. Newer ones note at a storage which part of a file it is, and go by it
    only where a tensor is all of its storage: so the rows get a storage of their own, with a note of their own."""
    part, whole = tensor[rows], tensor.untyped_storage()
    note = getattr(whole, "_comfy_tensor_file_slice", None)
    if note is None:
        return part
    own = torch.from_numpy(part.view(torch.uint8).flatten().numpy()).view(part.dtype).view(part.shape)
    begin = note.offset + part.data_ptr() - tensor.data_ptr()
    storage: Any = own.untyped_storage()
    storage._comfy_tensor_file_slice = note._replace(offset=begin, size=part.nbytes)
    storage._comfy_tensor_mmap_refs = getattr(whole, "_comfy_tensor_mmap_refs", None)
    return own


def layers(
    weight: torch.dtype, compute: torch.dtype, device: torch.device, formats: Collection[Format] = ()
) -> SimpleNamespace:
    """ComfyUI's layer classes, which stream weights that do not fit; activations have the dtype `compute`.

    Three things are added. Embeddings give `compute`, since all that follows keeps the dtype it gets. Linear can be
    `held` for several calls. And each class has its own `_load_from_state_dict`: a ComfyUI with dynamic memory defers
    making the weights of its own classes until they are loaded, but a checkpoint is checked against the shapes of a
    model built on the meta device.

    Where weights come in quantised `formats`, Linear is ComfyUI's own for int8, which has fast kernels, and ours where
    it has none and for fp8: ComfyUI's keeps the host longer than the card needs for the product, and 0.3.75 does not
    round activations as it does.
    """
    base = comfy.ops.pick_operations(weight, compute, load_device=device, disable_fast_fp8=True)
    classes = {name: _plain_loading(getattr(base, name)) for name in _LAYERS}
    classes["Linear"] = type("Linear", (_Holding, classes["Linear"]), {})
    plain_embedding: Any = classes["Embedding"]

    class Embedding(plain_embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids).to(compute)

    if formats:
        known = set(formats) == {INT8} and _knows_int8()
        classes["Linear"] = _mixed_linear(compute) if known else _own_linear(classes["Linear"])
    return SimpleNamespace(**(classes | {"Embedding": Embedding}))


class _Holding:
    """For a Linear of ComfyUI without a bias: several calls with one transfer of its weight, or one cast."""

    weight: Tensor
    comfy_cast_weights: bool
    weight_function: Sequence[Callable[[Tensor], Tensor]]

    @contextmanager
    def held(self, like: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
        """The layer, x [...,K] -> [...,N], for inputs with the device and dtype of `like`. Each call computes what the
        layer itself computes, and a cancel arrives there too."""
        if not self._brings_weight() or self.weight_function:
            yield cast(nn.Module, self)
            return
        with ExitStack() as stack:
            weight, stream = stack.enter_context(self._brought(like))
            if isinstance(stream, tuple) and stream[0] is not None:
                # newer ones have a buffer per stream, and the next weight but one would overwrite this one
                weight = weight.clone()
                stack.close()
            yield self._with_weight(weight, like)

    @contextmanager
    def _brought(self, like: Tensor) -> Iterator[tuple[Tensor, Any]]:
        """The weight where and what a call needs, and the stream that it came through; ComfyUI is told when it is no
        longer used, also where the call fails: it would stay on the card for good."""
        weight, _, stream = self._bring_weight(like)
        try:
            yield weight, stream
        finally:
            comfy.ops.uncast_bias_weight(self, weight, None, stream)

    def _brings_weight(self) -> bool:
        """Whether every call transfers the weight, or casts it."""
        return self.comfy_cast_weights

    def _bring_weight(self, like: Tensor) -> tuple[Tensor, Tensor | None, Any]:
        """As `cast_bias_weight` gives them."""
        return comfy.ops.cast_bias_weight(self, like, offloadable=True)

    def _with_weight(self, weight: Tensor, like: Tensor) -> Callable[[Tensor], Tensor]:
        """The same layer with a weight that is where and what a call needs, so that the call moves nothing."""
        layer: Any = copy.copy(self)
        layer._parameters = {**layer._parameters, "weight": weight}
        return layer


def _plain_loading(layer: type[nn.Module]) -> type[nn.Module]:
    def load(self, *args, **options):
        return layer._load_from_state_dict(self, *args, **options)

    return type(layer.__name__, (layer,), {"_load_from_state_dict": load})


def _knows_int8() -> bool:
    """Whether this ComfyUI has the format, what computes with it (the package comfy-kitchen), and heeds that a layer is
    rotated: those that have one and not the other would make nonsense of it. 0.3.75 has none."""
    algorithm = comfy.quant_ops.QUANT_ALGOS.get(INT8.name)
    if algorithm is None or comfy.quant_ops.get_layout_class(algorithm["comfy_tensor_layout"]) is None:
        return False
    numbers, scale = torch.zeros(1, GROUP, dtype=torch.int8), torch.ones(1, 1)
    fields = Quantised(INT8, group=GROUP).to_tensor()
    try:
        layer = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32).Linear(GROUP, 1, bias=False, device="cpu")
        layer.load_state_dict({"weight": numbers, "weight_scale": scale, "comfy_quant": fields}, strict=False)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        _log.debug("ComfyUI's layer for %s is another than this pack knows: %s", INT8.name, error)
        return False
    return getattr(getattr(layer.weight, "_params", None), "convrot", False)


def _mixed_linear(compute: torch.dtype) -> type[nn.Module]:
    """ComfyUI's Linear for weights that are quantised or not, made to load one by one into a model built on meta. What
    is not quantised keeps its dtype and is cast for each call, as ComfyUI does it elsewhere; it would be cast for good.
    """
    base: Any = comfy.ops.mixed_precision_ops(compute_dtype=compute).Linear

    class Linear(_Holding, base):
        factory_kwargs: dict[str, Any]
        _full_precision_mm: bool

        def _brings_weight(self) -> bool:
            return self._full_precision_mm or super()._brings_weight()

        def _bring_weight(self, like: Tensor) -> tuple[Tensor, Tensor | None, Any]:
            if not isinstance(self.weight, comfy.quant_ops.QuantizedTensor):
                return super()._bring_weight(like)
            options = {"dtype": self.weight.dtype, "device": like.device, "bias_dtype": like.dtype, "offloadable": True}
            weight, bias, stream = comfy.ops.cast_bias_weight(
                self, **options, compute_dtype=like.dtype, want_requant=True
            )
            return weight.dequantize() if self._full_precision_mm else weight, bias, stream

        def forward(self, x: Tensor) -> Tensor:
            if not (self._full_precision_mm and isinstance(self.weight, comfy.quant_ops.QuantizedTensor)):
                return super().forward(x)
            comfy.ops.run_every_op()
            with self._brought(x) as (weight, _):  # ComfyUI's product would round activations all the same
                return nn.functional.linear(x, weight)

        def _load_from_state_dict(self, state, prefix, *rest):
            weight = state[f"{prefix}weight"]
            if f"{prefix}comfy_quant" not in state:
                self.weight = nn.Parameter(weight, requires_grad=False)
                self.comfy_cast_weights = weight.dtype != compute
                nn.Module._load_from_state_dict(self, state, prefix, *rest)
                return
            self.factory_kwargs = {**self.factory_kwargs, "device": weight.device}
            super()._load_from_state_dict(state, prefix, *rest)

    return Linear


def _own_linear(base: type[nn.Module]) -> type[nn.Module]:
    """The core's quantised Linear on top of ComfyUI's: the weight is streamed as ComfyUI streams it, in its own dtype,
    and the scales, which are small, follow by themselves."""
    dynamic_base: Any = base

    class Linear(dynamic_base):
        quantisation: Quantised | None = None
        weight_scale: nn.Parameter
        input_scale: nn.Parameter | None

        def _load_from_state_dict(self, state, prefix, *rest):
            if not take_quantised(self, state, prefix):
                super()._load_from_state_dict(state, prefix, *rest)

        def _bring_weight(self, like: Tensor) -> tuple[Tensor, Tensor | None, Any]:
            if self.quantisation is None:
                return super()._bring_weight(like)
            return comfy.ops.cast_bias_weight(
                self, dtype=self.weight.dtype, device=like.device, bias_dtype=like.dtype, offloadable=True
            )

        def _brings_weight(self) -> bool:
            return self.quantisation is not None or super()._brings_weight()

        def _with_weight(self, weight: Tensor, like: Tensor) -> Callable[[Tensor], Tensor]:
            if self.quantisation is None:
                return super()._with_weight(weight, like)
            multiply = self._product(weight, like)

            def call(x: Tensor) -> Tensor:
                comfy.ops.run_every_op()
                return multiply(x)

            return call

        def _product(self, weight: Tensor, like: Tensor) -> Callable[[Tensor], Tensor]:
            stored, scale = cast(Quantised, self.quantisation), self.weight_scale.to(like.device, non_blocking=True)
            input_scale = None if self.input_scale is None else self.input_scale.to(like.device, non_blocking=True)
            return quantised.product(weight, scale, stored, input_scale, like=like)

        def forward(self, x: Tensor) -> Tensor:
            if self.quantisation is None:
                return super().forward(x)
            comfy.ops.run_every_op()
            with self._brought(x) as (weight, _):
                return self._product(weight, x)(x)

    return Linear


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The attention that the user chose for ComfyUI; queries [B,h,n,d], keys and values [B,h,L,d] -> [B,h,n,d]."""
    chosen = comfy.ldm.modules.attention.optimized_attention
    heads = queries.shape[1]
    return chosen(queries, keys, values, heads, skip_reshape=True, skip_output_reshape=True)


def rotation() -> Kernel:
    """ComfyUI's kernel for rotary positions (newer ones: the package comfy-kitchen), as `offer_rotation` takes it.
    Raises where there is none, or only one that is made of torch's operations."""
    registry, name = comfy.quant_ops.ck.registry, "apply_rope_split_half1_"
    found: list[Callable[..., object]] = []

    def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
        cos, sin = (one[..., : x.shape[-1] // 2] for one in (cos, sin))
        turns = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))[None]  # [1,N,1,d/2,2,2]
        operands = {"x": x[None], "freqs_cis": turns}
        if not found:
            backend = registry.get_capable_backend(name, operands)
            if backend == "eager":
                raise NotImplementedError("comfy-kitchen has no kernel for this device")
            found.append(registry.get_implementation(name, backend))
        found[0](**operands)

    return rotate_


offer_rotation(rotation)


def transformer_devices() -> tuple[torch.device, torch.device]:
    """Where a transformer computes and where it waits."""
    return memory.get_torch_device(), memory.unet_offload_device()


def vq_devices() -> tuple[torch.device, torch.device]:
    """Where a VQ computes and where it waits."""
    return memory.vae_device(), memory.vae_offload_device()


def managed(module: nn.Module, devices: tuple[torch.device, torch.device]):
    """A module under ComfyUI's memory management: (computes on, waits on). Its user keeps the patcher."""
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(module, load_device=devices[0], offload_device=devices[1])


def ready(networks: Sequence, scratch: int, beside: Sequence = ()) -> torch.device:
    """Brings networks into memory, beside `scratch` bytes to work in, and tells their device.

    To be called at every execution: another node may have sent them away since. networks: their patchers. beside:
    patchers of small modules that work with them. ComfyUI streams its own layers, but would leave a part of these where
    the layer cannot reach it; so they come whole, and the networks make room.
    """
    memory.load_models_gpu([*networks, *beside], memory_required=scratch)
    if not all(map(_whole, beside)):
        for one in beside:
            one.detach()  # ComfyUI takes one that is there in part for complete
        memory.load_models_gpu(beside, memory_required=scratch, force_full_load=True)
    if is_dynamic(networks[0]):
        _evict(networks, beside, scratch)
    return networks[0].load_device


def is_dynamic(patcher) -> bool:
    """Whether a newer ComfyUI lets weights come when they are first used, and go when something else needs room."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def _evict(networks: Sequence, beside: Sequence, needed: int) -> None:
    """Frees `needed` bytes of weights that give way only on demand. Those of `networks` go last, those `beside` them
    stay. A run that finds no room would have them go and come back at every layer."""
    device = networks[0].load_device
    others = [one for one in _dynamic_on(device) if one not in (*networks, *beside)]
    for one in (*others, *networks):
        missing = needed - free_bytes(device)
        if one in networks:  # but for what ComfyUI brings at once, such as norms: that would not come back by itself
            missing = min(missing, one.loaded_size() - one.model.model_loaded_weight_memory)
        if missing > 0:
            one.partially_unload(one.offload_device, missing)


def _dynamic_on(device: torch.device) -> list:
    there = [one for one in memory.loaded_models() if one is not None]  # None: its user is gone, its weights are not
    return [one for one in there if one.load_device == device and is_dynamic(one)]


def _whole(patcher) -> bool:
    return patcher.loaded_size() >= patcher.model_size()


def room(patcher, beside: Sequence = ()) -> int:
    """Bytes of memory that a run of a model which is ready can have on its device: what is free and, where weights give
    way on demand, what they take; but for those `beside`, which stay."""
    dynamic = _dynamic_on(patcher.load_device) if is_dynamic(patcher) else []
    giving_way = [one for one in dynamic if one not in beside]
    return free_bytes(patcher.load_device) + sum(one.loaded_size() for one in giving_way)


def resident(patchers: Sequence, scratch: int) -> bool:
    """Whether all weights of models that are ready stay on their device while a run takes `scratch` bytes. Where they
    come when they are first used: whether there is room for it."""
    if is_dynamic(patchers[0]):
        return room(patchers[0]) >= scratch + sum(one.model_size() for one in patchers)
    return all(map(_whole, patchers))


def casts(patcher) -> bool:
    """Whether a layer of a model casts or moves its weight at every call."""
    return any(getattr(layer, "comfy_cast_weights", False) for layer in patcher.model.modules())


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that are free on a device, as ComfyUI counts."""
    return memory.get_free_memory(device)


def make_room() -> None:
    """Sends all models away from the card, for work that needs it to itself; in inference mode, in which ComfyUI
    loaded them."""
    with torch.inference_mode():
        memory.unload_all_models()
    memory.soft_empty_cache()


@contextmanager
def training() -> Iterator[None]:
    """Around a training, with the card to itself. ComfyUI runs nodes in torch's inference mode, in which nothing is
    learnt; here that is off. A network made in here is not ComfyUI's to send away."""
    make_room()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        gc.collect()
        memory.soft_empty_cache()


def within_memory(first: Callable[[], Tensor], instead: Callable[[], Tensor]) -> Tensor:
    """What `first` gives or, where the memory does not suffice, what `instead` gives. All other exceptions pass."""
    try:
        return first()
    except memory.InterruptProcessingException:  # where torch has no error for want of memory, ComfyUI takes any
        raise
    except memory.OOM_EXCEPTION as error:
        log("The VQ works in tiles: the picture at once does not fit into memory (%s).", str(error).split("\n")[0])
    memory.soft_empty_cache()  # out here, where the exception no longer holds what had been made
    return instead()


def output_device() -> torch.device:
    """Where results lie between nodes."""
    return memory.intermediate_device()


# Progress, previews, cancel, text -----------------------------------------------------------------------------------


def progress() -> Callable[..., None]:
    """A progress bar: call it with the steps done, the steps in all and a picture to show, if there is one. A picture
    above `preview_size` is scaled down, unless it is to be shown `whole`; the page writes the size under it.

    Each call is also where a cancel arrives, as ComfyUI's own exception; nobody here catches it.
    """
    bar = comfy.utils.ProgressBar(1)

    def step(done: int, total: int, picture: Image.Image | None, *, whole: bool = False) -> None:
        memory.throw_exception_if_processing_interrupted()
        fits = picture is None or whole or max(picture.size) <= preview_size()
        shown = None if picture is None else ("JPEG", picture, None if fits else preview_size())
        bar.update_absolute(done, total, shown)

    return step


def check_cancel() -> None:
    """Where a cancel arrives, as ComfyUI's own exception, in work that shows no progress of its own."""
    memory.throw_exception_if_processing_interrupted()


def preview_size() -> int:
    """The longer side of previews, px."""
    return comfy.cli_args.args.preview_size


def wants_previews() -> bool:
    """Whether to show pictures while they form: yes, unless somebody switched previews off on purpose.

    ComfyUI's `--preview-method` is `none` by default because a preview of a latent costs a decoder; ours costs nothing
    worth the name. So `none` counts only where it was chosen: on the command line, or (newer ones) in the settings.
    """
    off = comfy.cli_args.LatentPreviewMethod.NoPreviews
    if comfy.cli_args.args.preview_method != off:
        return True
    on_command_line = any(word.split("=")[0] == "--preview-method" for word in sys.argv[1:])
    return not on_command_line and "none" not in _preview_settings()


def _preview_settings() -> Iterable[str]:
    """What the prompts that are running ask for; newer pages send the user's setting along with each prompt."""
    queue = getattr(_server(), "prompt_queue", None)
    running = getattr(queue, "currently_running", {})
    extras = [item[3] for item in list(running.values()) if len(item) > 3]
    return [str(extra.get("preview_method")) for extra in extras if isinstance(extra, dict)]


def show_text(text: str, node: str | None) -> None:
    """Shows text on a node of the page that queued the prompt; without a page nothing happens.

    It is read as written, whatever is in it, and only web addresses become links. (With Nodes 2.0 the page takes it for
    Markdown: there a stranger's text may be bold, but makes no link under another name and loads no picture.)
    """
    server = _server()
    page = getattr(server, "client_id", None)
    if node is not None and page is not None and hasattr(server, "send_progress_text"):
        shown = _LINK.sub(_broken, without_html(text)) or " "  # the page takes an empty text for none and keeps the old
        server.send_progress_text(shown.encode("utf-8", "replace").decode(), node, page)  # file names may hold any byte


def show_remark(remark: str, node: str | None) -> None:
    """Shows a remark on a node as `show_text` does; an empty one takes away what an earlier run left there."""
    place = getattr(_server(), "client_id", None), node
    if remark or place in _remarked:
        (_remarked.add if remark else _remarked.discard)(place)
        show_text(remark, node)


def said(texts: Sequence[str]) -> dict[str, list]:
    """Texts as a node's `ui` has them: for the page's nodes, and all together as a temporary file (UTF-8), since the
    page's App mode shows files alone. Without a server there is no file."""
    shown: dict[str, list] = {"text": list(texts)}
    if _server() is not None:
        file = Path(folder_paths.get_temp_directory()) / f"dimoo_{secrets.token_hex(5)}.txt"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(file, "\n\n".join(texts))
            shown["files"] = [{"filename": file.name, "subfolder": "", "type": "temp"}]
        except OSError as error:  # the answer is there all the same
            log_once("DiMOO: App mode cannot show texts: %s cannot be written (%s).", file.parent, error.strerror)
    return shown


def without_html(text: str) -> str:
    """Text that reads the same whether a page shows it as text or as HTML.

    Page 1.32.9 makes HTML of the text on a node and of the entries of a list, newer pages show both as text. There is
    no telling which one listens, and `&lt;` would be right in the first only. So what HTML would read as a tag or an
    entity gets an invisible character (zero width space) behind its first one, which makes both plain text. All else
    stays untouched, `1 < 2` and `AT&T` included. For the eye alone: what flows on, or is saved, is the text itself.
    """
    return _HTML.sub(_broken, text)


def named(name: Any, listed: Mapping[str, Meaning]) -> Meaning | None:
    """What a name stands for in a list of ours, whose names have slashes on every system: as it is listed, as it is on
    disk, or as a workflow has it that was saved on Windows. None: it is not in the list."""
    if not isinstance(name, str):
        return None
    spellings = (without_html(spelling) for spelling in (name, name.replace("\\", "/")))
    return next((listed[spelling] for spelling in spellings if spelling in listed), None)


def _broken(found: re.Match[str]) -> str:
    """What a pattern found, with an invisible character in it, unless it is an ampersand that begins no entity."""
    sign = found[0]
    return sign if sign[0] == "&" and html.unescape(sign) == sign else sign[0] + _INVISIBLE + sign[1:]


def serve_json(path: str, content: Callable[[str], bytes]) -> None:
    """Answers requests for a path of the server with the JSON that `content` makes for a language ("en", "zh"), that of
    the page that asks; a FileNotFoundError becomes the server's 404. Without a server nothing happens.

    To be called before the server starts: it adds what is under /api. A whole path goes before a folder of files.
    """
    server = _server()
    if server is None or path in _served or "{" in path or "}" in path:  # which would stand for any part of a path
        return
    _served.add(path)

    @server.routes.get(path)
    async def answer(request: web.Request) -> web.Response:
        try:
            body = content(_language(server, request))
        except FileNotFoundError as missing:
            raise web.HTTPNotFound from missing
        return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-cache"})


def _language(server: Any, request: web.Request) -> str:
    """The language that a page is in: what its user has chosen, or else the browser's."""
    try:
        chosen = server.user_manager.settings.get_settings(request).get("Comfy.Locale")
    except web.HTTPException:  # with --multi-user, a request that names no user
        chosen = None
    return chosen or request.headers.get("Accept-Language", "").partition(",")[0].partition("-")[0]


def on_prompt(change: Callable[[dict], dict]) -> None:
    """Show each request that queues a prompt to `change`, which hands back what is queued; without a server nothing
    happens. ComfyUI logs what `change` raises and queues the prompt as it was."""
    server = _server()
    if server is not None:
        server.add_on_prompt_handler(change)


def lacks_inputs(node: Mapping[str, Any]) -> bool:
    """Whether a node of a prompt has not all that ComfyUI asks for; False where ComfyUI does not know the node."""
    known, given = _known(node.get("class_type")), node["inputs"]
    there = {part for name in given for part in (name, name.partition(".")[0])}  # newer ones: images.image0 of images
    return known is not None and not known.INPUT_TYPES().get("required", {}).keys() <= there


def note_copies(node: type[io.ComfyNode], folder: Path) -> None:
    """Says in the log where ComfyUI has a node of ours already, from another folder than this one: the pack is there
    twice, and of each node ComfyUI keeps the one that comes last."""
    known = _known(node.GET_SCHEMA().node_id)
    if known not in (None, node):
        other = getattr(known, "RELATIVE_PYTHON_MODULE", known.__module__).replace(".", "/", 1)
        log_once(
            "DiMOO: the pack is installed twice, in %s and in %s; ComfyUI uses the second one: remove one of the two "
            "folders and restart.",
            other,
            folder,
        )


def _known(node_id: Any) -> Any:
    """The node that ComfyUI has under an id; None where it has none, and in a program that is not ComfyUI."""
    return getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(node_id)


# Files of the user --------------------------------------------------------------------------------------------------


def input_folder() -> Path:
    """Where ComfyUI keeps what users give it."""
    return Path(folder_paths.get_input_directory())


def give_examples(folder: Path) -> None:
    """Copies the pictures (PNG) of a folder into ComfyUI's input folder, but for those that are there already. Where it
    cannot be written, the log says so; without a server nothing happens."""
    if _server() is None:
        return
    try:
        for file in sorted(folder.rglob("*.png")):
            target = input_folder() / file.relative_to(folder)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(target) as part:
                    part.write_bytes(file.read_bytes())
    except OSError as error:
        why = error.strerror
        log_once("DiMOO: the example pictures of the templates could not be copied into %s (%s).", input_folder(), why)


def output_folder() -> Path:
    """Where ComfyUI keeps what it makes."""
    return Path(folder_paths.get_output_directory())


def shown_files(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Files in the output folder, in the form in which a node's `ui` has them; those that are missing are left out."""
    root = output_folder()
    parts = [(path.name, path.parent.relative_to(root).as_posix()) for path in paths if path.is_file()]
    return [{"filename": name, "subfolder": folder, "type": "output"} for name, folder in parts]


_VARIABLES = re.compile("%(?:width|height|year|month|day|hour|minute|second|batch_num)%")
_earlier: dict[str, set[Path]] = {}  # prefix -> its pictures from before the prompt that runs


def remember_pictures(prefix: str) -> None:
    """To be called before a prompt runs: pictures called `prefix` that come later are those of the prompt."""
    _earlier[prefix] = set(_pictures(prefix))


def next_text_file(prefix: str) -> Path:
    """The file in ComfyUI's output folder that the next text called `prefix` goes to, never one that is there.

    It is beside the first picture of this prompt that SaveImage gave that prefix and that has no text yet, whatever
    width, height or time stand for in its name. Where there is none, SaveImage's next number; in a program that does
    not say when a prompt begins, texts are counted by themselves. ComfyUI refuses places outside the output folder.
    """
    folder, name, number, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    pictures = _pictures(prefix)
    if prefix in _earlier:
        files = [path.with_suffix(".txt") for path in pictures if path not in _earlier[prefix]]
        free = [file for file in files if not file.exists()]
        if free:
            return free[0]
    else:
        if _VARIABLES.search(prefix) and pictures:
            newest = max(pictures, key=lambda path: path.stat().st_mtime_ns)
            folder, name = str(newest.parent), newest.stem.rsplit("_", 2)[0]
        taken = [path.stem.rsplit("_", 2)[-2] for path in Path(folder).glob(f"{glob.escape(name)}_*_.txt")]
        number = max((int(part) for part in taken if part.isdecimal()), default=0) + 1
    while (file := Path(folder) / f"{name}_{number:05}_.txt").exists():
        number += 1
    return file


def _pictures(prefix: str) -> list[Path]:
    """Pictures in the output folder called `prefix` by SaveImage, by number; its variables stand for any number."""
    root = folder_paths.get_output_directory()
    parts = _VARIABLES.split(os.path.relpath(os.path.join(root, prefix), root))
    exact = re.compile(r"\d+".join(map(re.escape, parts)) + r"_(\d+)_\.\w+")
    wild = os.path.join(glob.escape(root), "[0-9]*".join(map(glob.escape, parts)) + "_[0-9]*_.*")
    matches = ((path, exact.fullmatch(os.path.relpath(path, root))) for path in glob.glob(wild))
    found = [(int(match[1]), path) for path, match in matches if match and not path.endswith((".txt", ".part"))]
    return [Path(path) for _, path in sorted(found)]


def _server():
    """The running server, or None in a program that has none."""
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def log(message: str, *values: object) -> None:
    _log.info(message, *values)


def log_once(message: str, *values: object) -> None:
    """A warning that stands in the log once, however often there is reason for it."""
    if (message, values) not in _logged:
        _logged.add((message, values))
        _log.warning(message, *values)
