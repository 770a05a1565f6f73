"""The only room that knows ComfyUI's machinery: devices and memory, model folders, progress, previews and cancel.

Whatever differs between ComfyUI 0.3.75 and newer ones is told apart here and nowhere else.
"""

from __future__ import annotations

import gc
import glob
import html
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.cli_args
import comfy.ldm.modules.attention
import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.utils
import folder_paths
import torch
from PIL import Image
from torch import Tensor, nn

try:
    from comfy_api.latest import ComfyExtension, io, ui
except ImportError as error:
    raise ImportError("The DiMOO nodes need ComfyUI 0.3.75 or newer; please update ComfyUI.") from error

from ..dimoo_core.model import quantised
from ..dimoo_core.model.quantised import FP8, Format, Quantised, take_quantised

__all__ = ["ComfyExtension", "io", "ui"]

FOLDER = "dimoo"  # under ComfyUI's models, and the key in extra_model_paths.yaml
_LAYERS = ("Linear", "Embedding", "RMSNorm", "Conv2d", "GroupNorm")
_INVISIBLE = "\u200b"
_HTML = re.compile(r"<(?=[A-Za-z/!?])|&#?\w+;?", re.ASCII)  # what begins a tag or a comment; an entity, perhaps
# How pages write links: [[words|address]] with its marks for them, and, with Nodes 2.0, Markdown's three ways.
_LINK = re.compile(r"\[(?=\[)|__LNK(?=\d)|\](?=[(\[:])")
_log = logging.getLogger(__name__)
_logged: set[tuple[str, tuple[object, ...]]] = set()


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


def vq_dtype() -> torch.dtype:
    """fp32, in which the VQ was trained, or bf16 where ComfyUI was started with that for VAEs.

    Never fp16: the published VQ asks for an upcast (`force_upcast`), and a rounded encoder finds other codes.
    """
    asked = memory.vae_dtype(memory.vae_device(), allowed_dtypes=[])
    if asked in (torch.float32, torch.bfloat16):
        return asked
    log_once("DiMOO: ComfyUI was started with %s for VAEs, which the VQ does not run in; loading torch.float32.", asked)
    return torch.float32


def layers(
    weight: torch.dtype, compute: torch.dtype, device: torch.device, formats: Collection[Format] = ()
) -> SimpleNamespace:
    """ComfyUI's layer classes, which stream weights that do not fit; activations have the dtype `compute`.

    Two things are added. Embeddings give `compute`, since all that follows keeps the dtype it gets. And each class
    has its own `_load_from_state_dict`: a ComfyUI with dynamic memory defers making the weights of its own classes
    until they are loaded, but a checkpoint is checked against the shapes of a model built on the meta device.

    Where weights come in quantised `formats`, Linear is ComfyUI's own for them, which has fast kernels where the card
    has; a ComfyUI that does not know one of the formats gets ours.
    """
    base = comfy.ops.pick_operations(weight, compute, load_device=device, disable_fast_fp8=True)
    classes = {name: _plain_loading(getattr(base, name)) for name in _LAYERS}
    plain_embedding: Any = classes["Embedding"]

    class Embedding(plain_embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids).to(compute)

    if formats:
        known = all(_knows(one) for one in formats)
        classes["Linear"] = _mixed_linear(compute, device) if known else _own_linear(classes["Linear"])
    return SimpleNamespace(**(classes | {"Embedding": Embedding}))


def _plain_loading(layer: type[nn.Module]) -> type[nn.Module]:
    def load(self, *args, **options):
        return layer._load_from_state_dict(self, *args, **options)

    return type(layer.__name__, (layer,), {"_load_from_state_dict": load})


def _knows(format: Format) -> bool:
    """Whether this ComfyUI has the format, and what computes with it (newer ones: the package comfy-kitchen)."""
    algorithm = comfy.quant_ops.QUANT_ALGOS.get(format.name)
    if algorithm is None:
        return False
    layout = algorithm["comfy_tensor_layout"]
    if hasattr(comfy.quant_ops, "LAYOUTS"):  # 0.3.75
        return layout in comfy.quant_ops.LAYOUTS
    return comfy.quant_ops.get_layout_class(layout) is not None


def _mixed_linear(compute: torch.dtype, device: torch.device) -> type[nn.Module]:
    """ComfyUI's Linear for weights that are quantised or not, made to load one by one into a model built on meta.

    0.3.75 looks up a layer's format by its name in a table that is given beforehand, newer ones in the layer's state
    dict, where the core puts it: so here the table gets its one row while the layer is loaded. What is not quantised
    keeps its dtype and is cast for each call, as ComfyUI does it elsewhere; it would be cast for good.
    """
    table: dict[str, dict[str, Any]] = {}
    slow = not memory.supports_fp8_compute(device)
    older = "disabled" not in inspect.signature(comfy.ops.mixed_precision_ops).parameters
    how = {"full_precision_mm": slow} if older else {"disabled": {FP8.name} if slow else set()}
    base: Any = comfy.ops.mixed_precision_ops(table, compute, **how).Linear

    class Linear(base):
        factory_kwargs: dict[str, Any]

        def _load_from_state_dict(self, state, prefix, *rest):
            weight, fields = state[f"{prefix}weight"], state.get(f"{prefix}comfy_quant")
            if fields is None:
                self.weight = nn.Parameter(weight, requires_grad=False)
                self.comfy_cast_weights = weight.dtype != compute
                nn.Module._load_from_state_dict(self, state, prefix, *rest)
                return
            self.factory_kwargs = {**self.factory_kwargs, "device": weight.device}
            if older:
                del state[f"{prefix}comfy_quant"]
                table[prefix.rstrip(".")] = Quantised.from_tensor(fields).to_dict()
            super()._load_from_state_dict(state, prefix, *rest)
            table.clear()

    return Linear


def _own_linear(base: type[nn.Module]) -> type[nn.Module]:
    """The core's quantised Linear on top of ComfyUI's: the weight is streamed as ComfyUI streams it, in its own dtype,
    and the scale, which is small, follows by itself."""
    dynamic_base: Any = base

    class Linear(dynamic_base):
        quantisation: Quantised | None = None
        weight_scale: nn.Parameter

        def _load_from_state_dict(self, state, prefix, *rest):
            if not take_quantised(self, state, prefix):
                super()._load_from_state_dict(state, prefix, *rest)

        def forward(self, x: Tensor) -> Tensor:
            if self.quantisation is None:
                return super().forward(x)
            comfy.ops.run_every_op()
            weight, _, stream = comfy.ops.cast_bias_weight(
                self, dtype=self.weight.dtype, device=x.device, bias_dtype=x.dtype, offloadable=True
            )
            result = quantised.linear(x, weight, self.weight_scale.to(x.device), self.quantisation)
            comfy.ops.uncast_bias_weight(self, weight, None, stream)
            return result

    return Linear


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The attention that the user chose for ComfyUI; queries [B,h,n,d], keys and values [B,h,L,d] -> [B,h,n,d]."""
    chosen = comfy.ldm.modules.attention.optimized_attention
    heads = queries.shape[1]
    return chosen(queries, keys, values, heads, skip_reshape=True, skip_output_reshape=True)


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


def ready(patcher, scratch: int, beside: Sequence = ()) -> torch.device:
    """Brings a model into memory, beside `scratch` bytes to work in, and tells its device.

    To be called at every execution: another node may have sent the model away since. beside: patchers of small modules
    that work with it. ComfyUI streams its own layers, but would leave a part of these where the layer cannot reach it;
    so they come whole, and the model makes room.
    """
    memory.load_models_gpu([patcher, *beside], memory_required=scratch)
    if any(one.loaded_size() < one.model_size() for one in beside):
        for one in beside:
            one.detach()  # ComfyUI takes one that is there in part for complete
        memory.load_models_gpu(beside, memory_required=scratch, force_full_load=True)
    return patcher.load_device


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


def progress() -> Callable[[int, int, Image.Image | None], None]:
    """A progress bar: call it with the steps done, the steps in all and a picture to show, if there is one.

    Each call is also where a cancel arrives, as ComfyUI's own exception; nobody here catches it.
    """
    bar = comfy.utils.ProgressBar(1)

    def step(done: int, total: int, picture: Image.Image | None) -> None:
        memory.throw_exception_if_processing_interrupted()
        shown = None if picture is None else ("JPEG", picture, preview_size())
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


def without_html(text: str) -> str:
    """Text that reads the same whether a page shows it as text or as HTML.

    Page 1.32.9 makes HTML of the text on a node and of the entries of a list, newer pages show both as text. There is
    no telling which one listens, and `&lt;` would be right in the first only. So what HTML would read as a tag or an
    entity gets an invisible character (zero width space) behind its first one, which makes both plain text. All else
    stays untouched, `1 < 2` and `AT&T` included. For the eye alone: what flows on, or is saved, is the text itself.
    """
    return _HTML.sub(_broken, text)


def _broken(found: re.Match[str]) -> str:
    """What a pattern found, with an invisible character in it, unless it is an ampersand that begins no entity."""
    sign = found[0]
    return sign if sign[0] == "&" and html.unescape(sign) == sign else sign[0] + _INVISIBLE + sign[1:]


def on_prompt(change: Callable[[dict], dict]) -> None:
    """Show each request that queues a prompt to `change`, which hands back what is queued; without a server nothing
    happens. ComfyUI logs what `change` raises and queues the prompt as it was."""
    server = _server()
    if server is not None:
        server.add_on_prompt_handler(change)


# Files of the user --------------------------------------------------------------------------------------------------


def input_folder() -> Path:
    """Where ComfyUI keeps what users give it."""
    return Path(folder_paths.get_input_directory())


def output_folder() -> Path:
    """Where ComfyUI keeps what it makes."""
    return Path(folder_paths.get_output_directory())


def shown_pictures(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Pictures in the output folder, in the form in which a node's `ui` shows them; those that are missing are left
    out."""
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
