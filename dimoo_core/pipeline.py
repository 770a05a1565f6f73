"""A loaded checkpoint as Python and the command line use it: PIL pictures in and out, settings by name.

Settings that are left out default to the checkpoint's own (`checkpoint.defaults`), which differ between nano and the
8B model. The jobs themselves are in `jobs`; here they get a device, and chunks where memory is short, and LoRAs.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import jobs, memory
from .checkpoint.adapter_file import PEFT_WEIGHTS, AdapterFile, read_adapter
from .checkpoint.find import NANO, Found, find
from .checkpoint.load import load_tokenizer, load_transformer, load_vq
from .checkpoint.single_file import SUFFIX
from .checks import number_in, printable, shown, whole_number
from .devices import device as device_called
from .devices import free_bytes
from .files import is_hidden, shown_path
from .model.adapters import MOST_STRENGTH, Adapter, Applied, LowRank
from .model.vq import VQ
from .model.vq_tiles import TILE
from .pictures.crop import at_own_size, shown_by
from .pictures.masks import check_marked, load_mask, mask_from_pil, scale_mask
from .pictures.pixels import Picture, changed_size, mosaic, to_pil, to_rgb
from .provenance import checkpoint_name
from .sampling.image import ImageSettings
from .sampling.ml_cache import PRESETS, CachePolicy
from .sampling.text import TextSettings
from .sampling.text_cache import SPEEDS, TextPolicy
from .sequence.canvas import Canvas
from .sequence.prompt import DESCRIBE_QUESTION

if TYPE_CHECKING:
    from typing_extensions import Unpack

DTYPES: dict[str, torch.dtype | None] = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}

# a PIL picture, a file, pixels [3,h,w] or [1,3,h,w] in 0..1, or what `Picture.load` gives
PictureLike = Image.Image | str | Path | Tensor | Picture
MaskLike = Image.Image | str | Path | Tensor  # as a picture, or a tensor [h,w] or [1,h,w] where 1 is to be repainted
Progress = bool | Callable[[int, int], None]  # a bar in a terminal or notebook, or a callable of (done, total)
Preview = Callable[[list[Image.Image]], None]  # gets pictures while they form
# a file, a name in models/loras, tensors by key, or what `read_adapter` gives
LoraLike = str | Path | Mapping[str, Tensor] | AdapterFile

_log = logging.getLogger(__name__)


class ImageOptions(TypedDict, total=False):
    """How a picture is sampled; what is left out is the checkpoint's own."""

    seed: int
    steps: int | None
    cfg: float | None
    image_cfg: float | None
    temperature: float | None
    guidance_start: float
    ml_cache: str | CachePolicy | None
    corrections: int
    polish: int
    order: str
    shared_noise: float


class TextOptions(TypedDict, total=False):
    """How an answer is sampled; what is left out is the checkpoint's own."""

    seed: int
    max_tokens: int | None
    steps: int | None
    block_length: int | None
    temperature: float
    cfg: float
    speed: str | TextPolicy


@dataclass(frozen=True, eq=False)
class PlacedVQ:
    """A VQ on a device, as the jobs use it; what it returns is on the CPU.

    Pictures of a batch are worked on one by one: that takes no more memory than a single one, and gives the same bits.
    tiles: work in tiles, which takes a fraction of the memory and up to half as much work again; None: where memory is
    short.
    """

    vq: VQ
    device: torch.device
    tiles: bool | None = None

    @property
    def scale(self) -> int:
        """Pixels per cell along each side."""
        return self.vq.scale

    @property
    def codebook_size(self) -> int:
        """How many codes there are, K."""
        return self.vq.codebook_size

    @cached_property
    def colours(self) -> Tensor:
        """The mean colour [K,3] of each code, made at its first use."""
        return self.vq.mean_colours(self.device).cpu()

    def sketch(self, canvas: Canvas) -> Tensor:
        """What a canvas will look like, roughly and at once: pixels [B,3,h,w], a square of one colour for each cell,
        grey where nothing is decided."""
        cells = mosaic(canvas.codes.cpu(), canvas.unknown.cpu(), self.colours)
        return cells.repeat_interleave(self.scale, dim=2).repeat_interleave(self.scale, dim=3)

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [B,3,H*s,W*s] in 0..1 -> codes [B,H,W]"""
        height, width = pixels.shape[2:]
        tile = self._tile(memory.encode_bytes, height, width)
        return torch.cat([self.vq.encode(one.to(self.device), tile=tile).cpu() for one in pixels.split(1)])

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B,H,W] -> pixels [B,3,H*s,W*s] in 0..1"""
        height, width = (cells * self.scale for cells in codes.shape[1:])
        tile = self._tile(memory.decode_bytes, height, width)
        return torch.cat([self.vq.decode(one.to(self.device), tile=tile).cpu() for one in codes.split(1)])

    def _tile(self, scratch: Callable[..., int], height: int, width: int) -> int | None:
        tiles = self.tiles
        if tiles is None:
            free = free_bytes(self.device)
            itemsize = self.vq.quantize.embedding.weight.element_size()
            tiles = free is not None and scratch(self.vq.config, (height, width), itemsize) > free
        return TILE if tiles else None


class Pipeline:
    """One checkpoint, ready to work. Made by `load`."""

    def __init__(self, checkpoint: Found, model: jobs.Model, vq: PlacedVQ):
        self.checkpoint, self.model, self.vq = checkpoint, model, vq
        self._remarks: set[str] = set()

    def with_lora(self, lora: LoraLike, strength: float = 1.0) -> Pipeline:
        """A pipeline on the same weights in which a LoRA acts in every job, beside those that act already. This one
        stays as it is; in which order LoRAs were given makes no difference.

        lora: a .safetensors file, a folder that PEFT wrote, a name in models/loras, or tensors by key. strength: how
        strongly it acts, -100 to 100; 0 not at all. A warning in the log names keys that are not used, and a LoRA that
        changes nothing. Raises ValueError, one sentence, for a LoRA that does not fit this model.
        """
        return self.with_adapters(load_loras(self.checkpoint, [(lora, strength)]))

    def with_adapters(self, applied: Iterable[Applied]) -> Pipeline:
        """`with_lora` for what was read already, such as by `load_loras`. Raises ValueError for a LoRA that was read
        for another model."""
        applied = list(applied)
        for one in applied:
            _check_fits(one, self.model.transformer)
        norm = next(self.model.transformer.layers["ln_f"].parameters())  # never quantised
        placed = [replace(one, adapter=_placed(one.adapter, norm.device, norm.dtype)) for one in applied]
        return Pipeline(self.checkpoint, self.model.with_adapters(placed), self.vq)

    def generate(
        self,
        prompt: str,
        *,
        negative: str = "",
        size: tuple[int, int] | None = None,
        batch: int = 1,
        progress: Progress = True,
        preview: Preview | None = None,
        **settings: Unpack[ImageOptions],
    ) -> list[Image.Image]:
        """Pictures that show `prompt`.

        negative: what not to show. size: (width, height) in px, multiples of 16. batch: how many; picture i has the
        seed + i. progress: a bar in a terminal or notebook, or a callable that gets (steps done, steps in all) and may
        raise to stop. preview: a callable that gets the forming pictures, rough and at the size at which the model
        works, before each call of `progress`. settings: seed, steps, cfg, temperature, guidance_start, ml_cache (a name
        of `PRESETS` or a `CachePolicy`), and corrections, polish, order, shared_noise as for `ImageSettings`. Raises
        ValueError, one sentence, for a value that is out of range or of the wrong kind.
        """
        width, height = _width_and_height(self.checkpoint.defaults.own("size", size))
        with _reporting(progress, "generate", self._forming(preview)) as on_step:
            pictures = jobs.generate(
                self.model,
                self.vq,
                jobs.text_prompt(prompt, negative),
                width,
                height,
                settings=self.image_settings(**settings),
                batch=batch,
                place=self.place,
                on_step=on_step,
            )
        return [to_pil(picture) for picture in pictures]

    def edit(
        self,
        picture: PictureLike,
        prompt: str = "",
        *,
        type: str = "edit_replace",
        reference: PictureLike | None = None,
        negative: str = "",
        side: int | None = None,
        own_size: bool = False,
        batch: int = 1,
        progress: Progress = True,
        preview: Preview | None = None,
        **settings: Unpack[ImageOptions],
    ) -> list[Image.Image]:
        """Pictures made from `picture`: changed as `prompt` says, or its edges, its depth, another style.

        type: a key of `EDITS`, or its label. reference: the picture whose style is taken, for image_ref_transfer. side:
        pictures are fitted to about side x side px of area. own_size: give the result the size of `picture`, and where
        fitting cut something off, that part of it. The rest as for `generate`, and image_cfg among the settings.
        """
        source = source_of(picture)
        request = jobs.Edit(
            type,
            prompt,
            negative,
            None if reference is None else pixels_of(reference),
            self.checkpoint.defaults.own("side", side),
        )
        prepared = request.prepare(self.vq, source.on_white(), batch)
        if not own_size:
            keep = "own_size (--own-size) gives the result the picture's size"
            self._say_once(changed_size(source.pixels, prepared.fitted, keep))
        with _reporting(progress, "edit", self._forming(preview)) as on_step:
            pictures = jobs.edit(
                self.model,
                self.vq,
                prepared,
                settings=self.image_settings(**settings),
                place=self.place,
                on_step=on_step,
            )
        pictures = _put_back(source, pictures) if own_size else pictures
        return [_belonging_to(source, to_pil(one)) for one in pictures]

    def inpaint(
        self,
        picture: PictureLike,
        prompt: str,
        mask: MaskLike | None = None,
        *,
        mask_width: float | None = None,
        mask_height: float | None = None,
        outpaint: bool = False,
        grow: int = 0,
        negative: str = "",
        batch: int = 1,
        progress: Progress = True,
        preview: Preview | None = None,
        **settings: Unpack[ImageOptions],
    ) -> list[Image.Image]:
        """`picture` with a part repainted so that the whole shows `prompt`; every other pixel stays as it was.

        Transparency, colour profile and dpi are kept. Where all that is marked is transparent, it becomes opaque.

        mask: white is repainted, or what is transparent in it; it is scaled to the picture's size. In its place a
        centred rectangle, with shares `mask_width` and `mask_height` of the sides (0.2 and 1.0 where only the other
        one is given, or neither with `outpaint`). outpaint: repaint what is NOT marked. grow: cells of 16 px by which
        the marked area is widened. The rest as for `generate`.
        """
        source = source_of(picture)
        drawn = None
        ratios = {"width_ratio": mask_width, "height_ratio": mask_height}
        given = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        if mask is None and not given:
            if not outpaint:
                raise ValueError(
                    "mask is None; expected a mask, or mask_width or mask_height for a centred rectangle: say what to "
                    "repaint."
                )
            self._say_once("There is no mask: all outside a centred rectangle, 0.2 wide and 1 high, is repainted.")
        if mask is not None:
            marked = (mask_of(mask) > 0.5).float()
            drawn = scale_mask(1 - marked if outpaint else marked, *source.pixels.shape[2:])
        request = jobs.Inpaint(drawn, outpaint, grow=grow, **given)
        prepared = request.prepare(self.vq, source.on_white(), batch)
        with _reporting(progress, "inpaint", self._forming(preview, prepared.finish)) as on_step:
            painted = jobs.inpaint(
                self.model,
                self.vq,
                prepared,
                jobs.text_prompt(prompt, negative),
                settings=self.image_settings(**settings),
                place=self.place,
                on_step=on_step,
            )
        height, width = prepared.size
        repainted = source.repainted(painted, prepared.mask[:, :height, :width], prepared.drawn)
        return [_belonging_to(source, to_pil(one)) for one in repainted]

    def outpaint(
        self, picture: PictureLike, prompt: str, mask: MaskLike | None = None, **rest: Any
    ) -> list[Image.Image]:
        """`inpaint` of all that is NOT marked."""
        return self.inpaint(picture, prompt, mask, outpaint=True, **rest)

    def describe(
        self,
        pictures: PictureLike | Sequence[PictureLike],
        question: str = DESCRIBE_QUESTION,
        *,
        progress: Progress = True,
        preview: Callable[[str], None] | None = None,
        **settings: Unpack[TextOptions],
    ) -> str:
        """The answer to a question about a picture, or about several at once.

        settings: max_tokens, steps, block_length, temperature, cfg, seed, speed (a name of `SPEEDS` or a
        `TextPolicy`). progress as for `generate`. preview: a callable that gets the words so far, before each call of
        `progress`.
        """
        group: Sequence[Any] = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
        words = None if preview is None else lambda ids: preview(jobs.answer_text(self.model, ids[0].tolist()))
        with _reporting(progress, "describe", words) as on_step:
            (answer,) = jobs.describe(
                self.model,
                self.vq,
                [pixels_of(one) for one in group],
                question,
                settings=self.text_settings(**settings),
                place=self.place,
                on_step=on_step,
            )
        return answer

    def image_settings(
        self,
        *,
        seed: int = 0,
        steps: int | None = None,
        cfg: float | None = None,
        image_cfg: float | None = None,
        temperature: float | None = None,
        guidance_start: float = 0.0,
        ml_cache: str | CachePolicy | None = None,
        corrections: int = 0,
        polish: int = 0,
        order: str = "confidence",
        shared_noise: float = 0.0,
    ) -> ImageSettings:
        """How to sample pictures; raises ValueError for a setting out of range."""
        return jobs.image_settings(
            self.checkpoint.defaults,
            seed=seed,
            steps=steps,
            cfg=cfg,
            image_cfg=image_cfg,
            temperature=temperature,
            guidance_start=guidance_start,
            cache=None if ml_cache is None else _policy("ml_cache", ml_cache, PRESETS, CachePolicy),
            corrections=corrections,
            polish=polish,
            order=order,
            shared_noise=shared_noise,
        )

    def text_settings(
        self,
        *,
        seed: int = 0,
        max_tokens: int | None = None,
        steps: int | None = None,
        block_length: int | None = None,
        temperature: float = 0.0,
        cfg: float = 0.0,
        speed: str | TextPolicy = "exact",
    ) -> TextSettings:
        """How to sample an answer; raises ValueError where steps and blocks do not divide."""
        return jobs.text_settings(
            self.checkpoint.defaults,
            seed=seed,
            max_tokens=max_tokens,
            steps=steps,
            block_length=block_length,
            temperature=temperature,
            cfg=cfg,
            policy=_policy("speed", speed, SPEEDS, TextPolicy),
        )

    def _forming(
        self, preview: Preview | None, finish: Callable[[Tensor], Tensor] | None = None
    ) -> Callable[[Canvas], None] | None:
        """Hands sketches of a canvas to `preview`, those that `finish` makes of them where it is given."""
        if preview is None:
            return None

        def show(canvas: Canvas) -> None:
            pixels = self.vq.sketch(canvas)
            preview([to_pil(one) for one in (pixels if finish is None else finish(pixels))])

        return show

    def _say_once(self, remark: str) -> None:
        """Says a sentence in the log, unless it is empty or was said before."""
        if remark and remark not in self._remarks:
            self._remarks.add(remark)
            _log.warning("%s", remark)

    def place(self, plan: jobs.Plan) -> jobs.Placement:
        """Where a plan runs: on the device of the weights, without CUDA graphs and then in chunks where the memory for
        more is not free."""
        if isinstance(plan, jobs.ImagePlan):
            remark = jobs.size_remark(self.checkpoint.defaults, checkpoint_name(self.checkpoint), plan.canvas)
            self._say_once(remark and f"{remark}: choose a size near that.")
        device, free = self.model.device, free_bytes(self.model.device)
        if free is None:
            return jobs.Placement(device)
        itemsize = max(next(self.model.transformer.parameters()).element_size(), 2)
        for graphs in [True, False] if device.type == "cuda" else [False]:
            if plan.scratch_bytes(itemsize, graphs=graphs) <= free:
                return jobs.Placement(device, graphs=graphs)
        return jobs.Placement(device, memory.CHUNK_ROWS, graphs=False)


def load(
    checkpoint: str | Path = NANO,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = "auto",
    tiles: bool | None = None,
) -> Pipeline:
    """A checkpoint, loaded: the built-in nano, a folder as published, a single file that `convert` made, or the hub's
    name (OWNER/NAME) of one that was downloaded.

    device: auto, cpu, cuda, cuda:1, mps ... dtype: of the transformer, "fp32", "bf16" or torch's of these; "auto" keeps
    what is stored, fp8 and int8 too. tiles: whether the VQ works in tiles; None: where memory is short. Raises
    ValueError, one sentence, where it cannot be loaded.
    """
    if not isinstance(checkpoint, (str, Path)) or not str(checkpoint).strip():
        raise ValueError(f"checkpoint is {shown(checkpoint)}; expected a folder, a file or OWNER/NAME.")
    wanted = _named("dtype", dtype, DTYPES) if isinstance(dtype, str) else dtype
    if wanted not in DTYPES.values():  # fp16 too: a language model's activations outgrow it
        raise ValueError(f"dtype is {shown(dtype)}; expected one of {', '.join(DTYPES)}, or torch's of these.")
    found = find(checkpoint_path(checkpoint))
    where = device_called(str(device) if isinstance(device, torch.device) else device)
    transformer = load_transformer(found, device=where, dtype=wanted, dequantised=wanted is not None)
    formats = found.formats if wanted is None else frozenset()
    model = jobs.Model(transformer, load_tokenizer(found), found.table, found.defaults.sides, formats)
    return Pipeline(found, model, PlacedVQ(load_vq(found, device=where), where, tiles))


def checkpoint_path(checkpoint: str | Path) -> Path:
    """The folder or file that a name stands for: a path, or OWNER/NAME where `download` or the hub's own cache has it.

    Raises ValueError for a name of the hub that was not downloaded.
    """
    path = Path(checkpoint).expanduser()
    owner, _, name = str(checkpoint).partition("/")
    if os.path.exists(path) or not name or set("/\\") & set(name) or owner in ("", ".", "..", "~"):
        return path
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface"), "hub"))
    snapshots = cache.expanduser() / f"models--{owner}--{name}" / "snapshots"
    for folder in (model_folder() / name, Path("models") / name, *sorted(snapshots.glob("*"), reverse=True)):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"{str(checkpoint)[:200]} is not a file or folder, and no such model was downloaded; run `python -m dimoo_core "
        f"download {str(checkpoint)[:200]}` first, or give the folder of a checkpoint."
    )


def load_loras(
    checkpoint: Found, loras: Iterable[tuple[LoraLike, float]], report: Callable[[str], None] = _log.warning
) -> list[Applied]:
    """LoRAs and their strengths, read for a checkpoint, whose weights are not needed for it. `report` gets a sentence
    for each thing that their user has to know. Raises ValueError for one that does not fit, and for a strength that is
    out of range."""
    applied = []
    for lora, strength in loras:
        strength = number_in("strength", strength, -MOST_STRENGTH, MOST_STRENGTH)
        file = lora if isinstance(lora, AdapterFile) else _read_lora(checkpoint, lora)
        for remark in file.remarks:
            report(remark)
        applied.append(Applied(file.adapter, strength, Path(file.name).name))
    return applied


def _read_lora(checkpoint: Found, lora: Any) -> AdapterFile:
    if not isinstance(lora, (str, os.PathLike, Mapping)):
        raise ValueError(f"Got a LoRA of type {type(lora).__name__}; expected a file, its name, or tensors by key.")
    source = lora if isinstance(lora, Mapping) else lora_path(os.fspath(lora))
    return read_adapter(source, checkpoint.config, checkpoint.table.code_offset)


def _check_fits(one: Applied, network: nn.Module) -> None:
    layers = dict(network.named_modules())
    for name, branch in one.adapter.branches.items():
        weight = getattr(layers.get(name), "weight", None)
        shape = [len(branch.up), branch.down.shape[1]]
        if weight is None or list(weight.shape) != shape:
            there = "does not have" if weight is None else f"has as {list(weight.shape)}"
            raise ValueError(
                f"{one.name or 'The LoRA'} was read for another model: it changes {name} {shape}, which this one "
                f"{there}; give its file."
            )


def _placed(adapter: Adapter, device: torch.device, dtype: torch.dtype) -> Adapter:
    """A copy of an adapter where it is used, but for the parts that are so already."""
    branches = {
        name: LowRank(branch.down.detach().to(device, dtype), branch.up.detach().to(device, dtype), branch.alpha)
        for name, branch in adapter.branches.items()
    }
    return Adapter(branches, adapter.digest).requires_grad_(False)


def lora_path(name: str | Path) -> Path:
    """The file or folder that a LoRA's name stands for: a path, or a name in `lora_folder()`, with or without
    .safetensors, with slashes of either kind. Raises ValueError, with names that are near, where there is none."""
    text, folder = str(name), lora_folder()
    inside = folder / text.replace("\\", "/")
    for path in (Path(text).expanduser(), inside):
        for candidate in (path, Path(f"{path}{SUFFIX}")):
            if os.path.isfile(candidate) or os.path.isfile(candidate / PEFT_WEIGHTS):
                return candidate
    if os.path.isdir(text):
        return Path(text)  # reading it says what it lacks
    names = _lora_names(folder, Path(text).parent)
    spelt = {name if Path(text).suffix else name.removesuffix(SUFFIX): name for name in names}
    near = [spelt[one] for one in difflib.get_close_matches(text, spelt, n=4, cutoff=0.5)]
    hint = f"name one of {printable(', '.join(near), 400)}" if near else "give the path of a .safetensors file"
    raise ValueError(f"{shown(text, 200)} is no file, and no LoRA of that name is in {shown_path(folder)}: {hint}.")


def _lora_names(folder: Path, beside: Path) -> list[str]:
    """The names that would have been found: those of LoRAs in `folder`, and paths of files that lie in `beside`."""
    inside = [Path(place, file) for place, _, files in os.walk(folder) for file in files]
    try:
        around = list(beside.iterdir())
    except OSError:
        around = []
    every = {path: path.relative_to(folder) for path in inside} | {path: path for path in around}
    found = (path for path in every if path.suffix == SUFFIX and not is_hidden(path.name) and os.path.isfile(path))
    return [shown_path(every[path]) for path in found]


def lora_folder() -> Path:
    """`models/loras` of the ComfyUI that this pack is installed in, else of the current folder."""
    return (_comfyui_models() or Path("models")) / "loras"


def model_folder() -> Path:
    """`models/dimoo` of the ComfyUI that this pack is installed in, else `models` in the current folder."""
    models = _comfyui_models()
    return Path("models") if models is None else models / "dimoo"


def _comfyui_models() -> Path | None:
    packs = Path(__file__).absolute().parents[2]
    return packs.parent / "models" if packs.name == "custom_nodes" else None


def source_of(picture: PictureLike) -> Picture:
    """A picture in any of its forms, with what belongs to it beside its colours. Raises ValueError for anything else,
    for a batch of several, and for a file that cannot be read."""
    if isinstance(picture, Picture):
        return picture
    if isinstance(picture, Image.Image):
        return Picture.from_pil(picture)
    if isinstance(picture, Tensor):
        pixels = picture if picture.ndim == 4 else picture[None]
        if pixels.ndim == 4 and len(pixels) > 1:
            raise ValueError(f"Got a batch of {len(pixels)} pictures; expected a single one: give them one by one.")
        return Picture(to_rgb(_shares(pixels)))
    return Picture.load(_path(picture, "picture"))


def pixels_of(picture: PictureLike) -> Tensor:
    """Pixels [1,3,h,w] of a picture in any of its forms; what is transparent becomes white."""
    return source_of(picture).on_white()


def mask_of(mask: MaskLike) -> Tensor:
    """A mask [1,h,w] in any of its forms: 1 is to be repainted. Raises ValueError for anything else, and where nothing
    is above 0.5."""
    if isinstance(mask, Image.Image):
        return mask_from_pil(mask)
    if isinstance(mask, Tensor):
        if mask.ndim < 2 or not mask.numel() or mask.shape[:-2].numel() != 1:
            raise ValueError(f"Got a mask of shape {list(mask.shape)}; expected [height, width] or [1, height, width].")
        labels = not mask.is_floating_point() and int(mask.max()) == 1  # 0 and 1, not 0 and 1 of 255
        return check_marked(_shares(mask.bool() if labels else mask).view(1, *mask.shape[-2:]))
    return load_mask(_path(mask, "mask"))


def _shares(values: Tensor) -> Tensor:
    """Numbers of any dtype as fp32 on the CPU: whole ones are 0..255, or 0..65535 in uint16; others stay."""
    if values.is_floating_point() or values.dtype == torch.bool:
        return values.detach().cpu().float()
    return values.cpu().float() / (65535 if values.dtype == torch.uint16 else 255)


def _path(value: Any, name: str) -> str | Path:
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"Got a {name} of type {type(value).__name__}; expected a PIL picture, a path or a tensor.")
    return Path(value)


def _width_and_height(size: Any) -> tuple[int, int]:
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"size is {size!r:.80}; expected (width, height) in px.")
    width, height = size
    return whole_number("width", width, 1), whole_number("height", height, 1)


def _put_back(source: Picture, edited: Tensor) -> Tensor:
    """`edited` [B,3,h',w'], made from a picture that was fitted, at that picture's size: [B,3 or 4,h,w]."""
    height, width = source.pixels.shape[2:]
    window, shown = shown_by(edited, source.pixels)
    return source.repainted(at_own_size(edited, window, width, height), shown, shown)


def _belonging_to(source: Picture, picture: Image.Image) -> Image.Image:
    """`picture` with the colour profile and dpi of its source, under the names by which PIL saves them."""
    kept = {"icc_profile": source.icc_profile, "dpi": source.dpi}
    picture.info.update({name: value for name, value in kept.items() if value is not None})
    return picture


@contextmanager
def _reporting(
    progress: Progress, title: str, show: Callable[[Any], None] | None = None
) -> Iterator[Callable[[int, int, Any], None]]:
    """An `on_step` for the jobs: it shows the state, then moves a bar or calls what the user gave."""
    shown = not callable(progress) and bool(progress) and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    with tqdm(desc=title, unit="step", disable=not shown) as bar:

        def moved(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = progress if callable(progress) else moved

        def on_step(done: int, total: int, state: Any) -> None:
            if show is not None:
                show(state)
            report(done, total)

        yield on_step


def _policy(name: str, value: Any, meanings: dict[str, Any], kind: type) -> Any:
    """A policy, or the one that a name stands for."""
    return value if isinstance(value, kind) else _named(name, value, meanings)


def _named(name: str, value: Any, meanings: dict[str, Any]) -> Any:
    if not isinstance(value, str) or value not in meanings:
        raise ValueError(f"{name} is {value!r:.80}; expected one of {', '.join(meanings)}.")
    return meanings[value]
