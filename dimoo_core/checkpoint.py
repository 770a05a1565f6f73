"""Checkpoints: recognised by their content, loaded strictly, never twice in memory.

A checkpoint is a folder in the layout of the published one; only the names of the JSON files are fixed:

    config.json         shape of the transformer, model_type "llada"; "dimoo_token_ids" where its ids are its own,
                        "dimoo_defaults" where other settings suit it than the published model
    *.safetensors       its weights in one file or several, with or without a `*.safetensors.index.json`
    tokenizer.json
    vqvae/config.json   shape of the VQ (diffusers' VQModel); another subfolder serves if it is the only VQ
    vqvae/*.safetensors

Or it is one file that holds all of that, as `python -m dimoo_core convert` writes it (see single_file.py).

Only safetensors and JSON are ever read: no pickle, no code from the folder. Whatever is wrong with the files is a
ValueError of one sentence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .config import TransformerConfig, VQConfig
from .quantised import LAYERS, Format, dequantise
from .single_file import SUFFIX, is_single_file, read_single_file
from .tokens import RELEASED, TextTokenizer, TokenTable
from .transformer import Transformer, hub_shapes, hub_to_module
from .vq import VQ
from .weight_files import FLOATS, Entry, Weights, read_headers, read_json, refuse_pickle, some

NANO = Path(__file__).parent / "nano" / "checkpoint"
CELL = 16  # pixels per code along each side: what sizes, masks and buckets of this pack count in

_COMPUTE = (torch.float32, torch.float16, torch.bfloat16)
_DEPTH = 4  # folders below a model folder; the hub's cache lays a checkpoint three deep

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Defaults:
    """Settings that a checkpoint was made for, used where nobody says otherwise; these are the published model's.

    A checkpoint brings its own as "dimoo_defaults" in its config.json. Lengths are in px: `size` (width, height) of a
    new picture, `side` of the square whose area an edited picture is fitted to, `sides` of the smallest and the
    largest picture that is described.
    """

    size: tuple[int, int] = (1024, 1024)
    side: int = 512
    sides: tuple[int, int] = (512, 1024)
    steps: int = 64
    cfg: float = 4.0
    image_cfg: float = 4.0
    temperature: float = 1.0
    max_tokens: int = 128
    text_steps: int = 128
    block_length: int = 32

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Defaults:
        """Raises ValueError for a name that is not above, and for a value of another kind or below 0."""
        known = {field.name: field.default for field in fields(cls)}
        for name, value in settings.items():
            if name not in known:
                raise ValueError(f"dimoo_defaults names {name!r:.80}; there are {', '.join(known)}.")
            parts, pair = (value if isinstance(value, list) else [value]), isinstance(known[name], tuple)
            number = (int, float) if isinstance(known[name], float) else int
            fine = all(isinstance(part, number) and not isinstance(part, bool) and part >= 0 for part in parts)
            if not fine or isinstance(value, list) != pair or (pair and len(parts) != 2):
                raise ValueError(f"dimoo_defaults says {name} = {value!r:.80}; a value like {known[name]!r} is wanted.")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


@dataclass(frozen=True)
class Found:
    """A recognised checkpoint; the headers of its weight files are read, the weights are not.

    `path` is the folder, or the single file; `settings` and `vq_settings` are what its two config.json say.
    """

    path: Path
    kind: str
    settings: Mapping[str, Any]
    config: TransformerConfig
    table: TokenTable
    defaults: Defaults
    weights: Weights
    vq_settings: Mapping[str, Any]
    vq_config: VQConfig
    vq_weights: Weights
    tokenizer: Path | Entry
    settings_files: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder; of a single file the one that it lies in."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read, so that a caller can notice a change by size and time."""
        stored = {entry.file for part in (self.weights, self.vq_weights) for entry in part.values()}
        return (*sorted(stored), *self.settings_files)

    @property
    def formats(self) -> frozenset[Format]:
        """Formats of the quantised weights; empty where there are none."""
        return frozenset(entry.layer.format for entry in self.weights.values() if entry.layer is not None)

    def tokenizer_text(self) -> str:
        """What stands in tokenizer.json. Raises ValueError or OSError where it cannot be read."""
        if isinstance(self.tokenizer, Path):
            return self.tokenizer.read_text(encoding="utf-8")
        return self.tokenizer.read().numpy().tobytes().decode("utf-8")


def find(path: str | Path) -> Found:
    """Recognises the checkpoint at `path`: its folder, a file in it, a single file that is all of it, or a folder with
    exactly one checkpoint below.

    Raises ValueError where there is none, where a part is missing or broken, or where the parts do not fit together.
    """
    path = _place(Path(path).expanduser())
    return _find_in_file(path) if path.is_file() else _find_in_folder(path)


def _find_in_folder(folder: Path) -> Found:
    settings, vq_folder = read_json(folder / "config.json"), _vq_folder(folder)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ValueError(f"{folder} has no tokenizer.json; fetch the one that belongs to this checkpoint.")
    return _found(
        folder,
        "hub folder",
        settings=settings,
        vq_settings=read_json(vq_folder / "config.json"),
        weights=lambda: read_headers(folder),
        vq_weights=lambda: read_headers(vq_folder),
        tokenizer=tokenizer,
        settings_files=(folder / "config.json", vq_folder / "config.json", tokenizer),
    )


def _find_in_file(path: Path) -> Found:
    single = read_single_file(path)
    return _found(
        path,
        "single file",
        settings=single.settings,
        vq_settings=single.vq_settings,
        weights=lambda: single.weights,
        vq_weights=lambda: single.vq_weights,
        tokenizer=single.tokenizer,
        settings_files=(),
    )


def _found(
    path: Path,
    kind: str,
    *,
    settings: Mapping[str, Any],
    vq_settings: Mapping[str, Any],
    weights: Callable[[], Weights],
    vq_weights: Callable[[], Weights],
    **rest: Any,
) -> Found:
    """A checkpoint whose parts fit together; the headers of weights are read last, when all else is right."""
    config, table, defaults = _transformer_settings(path, settings)
    vq_config = _explained(path, lambda: VQConfig.from_dict(vq_settings))
    _check_fit(vq_config, table, path)
    return Found(
        path=path,
        kind=kind,
        settings=settings,
        config=config,
        table=table,
        defaults=defaults,
        weights=weights(),
        vq_settings=vq_settings,
        vq_config=vq_config,
        vq_weights=vq_weights(),
        **rest,
    )


def candidates(folder: str | Path) -> list[Path]:
    """Checkpoint folders and single files at or below `folder`, sorted; cheap, reads nothing but each config.json and
    the beginning of each .safetensors file.

    A broken checkpoint is listed too, so that choosing it says what is wrong. Never raises for what lies there.
    """
    return sorted(_walk(Path(folder), _DEPTH, set()))


def load_transformer(
    found: Found,
    *,
    ops=LAYERS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    dequantised: bool = False,
    **options: Any,
) -> Transformer:
    """The transformer, in eval mode and without gradients.

    `ops` is a namespace of layer classes (such as torch.nn or comfy.ops.*); where weights are quantised its Linear has
    to take them as `quantised.Linear` does. `dtype` None or "auto" keeps the file's; another casts each tensor as it
    is read. Quantised weights stay what they are whatever `dtype` says, unless they shall be `dequantised` to it.
    Uncast tensors on the CPU stay views of the mapped file, which costs no memory until they are used. `options` go
    to `Transformer` (attention). Raises ValueError where the weights do not fit.
    """
    return _transformer(
        found.config,
        found.weights,
        code_offset=found.table.code_offset,
        ops=ops,
        device=device,
        dtype=dtype,
        dequantised=dequantised,
        **options,
    )


def load_vq(
    found: Found, *, ops=LAYERS, device: torch.device | str = "cpu", dtype: torch.dtype | str | None = torch.float32
) -> VQ:
    """The VQ, in eval mode and without gradients; fp32, as it was trained, unless told otherwise ("auto": stored).

    `ops` and `device` as for `load_transformer`, and so are the errors.
    """
    return _vq(found.vq_config, found.vq_weights, ops=ops, device=device, dtype=dtype)


def check_weights(found: Found) -> None:
    """Raises ValueError where the weights of a network are not those that its config wants; reads none of them."""
    dtype = _dtype(found.weights, None), _dtype(found.vq_weights, None)
    _check_transformer(found.config, found.weights, code_offset=found.table.code_offset, dtype=dtype[0])
    _check_extent(found.vq_config, found.vq_weights)
    _check_names(found.vq_weights, _shapes(VQ(found.vq_config, ops=LAYERS, device="meta", dtype=dtype[1])))


def load_tokenizer(found: Found) -> TextTokenizer:
    """The tokenizer, checked against the id table and the vocabulary. Raises ValueError where they disagree."""
    name = found.tokenizer if isinstance(found.tokenizer, Path) else f"tokenizer.json in {found.path}"
    try:
        tokenizer = TextTokenizer.from_str(found.tokenizer_text())
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror}); see that it exists and may be read.") from None
    except ValueError as error:
        raise ValueError(f"{name} is no tokenizer ({error}); fetch it again.") from None
    _explained(found.path, lambda: tokenizer.check(found.table, found.config.vocab_size))
    return tokenizer


def read_transformer(folder: str | Path, *, code_offset: int, **options: Any) -> Transformer:
    """The transformer alone, from a folder that need not hold anything else; `options` as for `load_transformer`."""
    folder = Path(folder)
    config = _explained(folder, lambda: TransformerConfig.from_dict(read_json(folder / "config.json")))
    if not 0 < code_offset < config.vocab_size:
        raise ValueError(f"Codes from id {code_offset} on do not fit a vocabulary of {config.vocab_size} ids.")
    return _transformer(config, read_headers(folder), code_offset=code_offset, **options)


def read_vq(folder: str | Path, **options: Any) -> VQ:
    """A VQ of any scale from its own folder; `options` as for `load_vq`."""
    folder = Path(folder)
    return _vq(_read_vq_config(folder), read_headers(folder), **{"dtype": torch.float32, **options})


# Recognising --------------------------------------------------------------------------------------------------------


def _place(path: Path) -> Path:
    """The folder or the single file that a path stands for."""
    if not os.path.exists(path):  # unlike Path.exists it is False, too, for a name that no file system could have
        raise ValueError(f"{str(path)[:200]} does not exist; give the folder of a checkpoint.")
    if path.is_file():
        refuse_pickle(path)
        if is_single_file(path):
            return path
        if not _is_llada(path.parent):
            raise ValueError(
                f"{path} has no config.json of model_type 'llada' beside it and is no whole "
                "checkpoint; give a checkpoint folder, or a file made by `python -m dimoo_core convert`."
            )
        return path.parent
    if (path / "config.json").exists():
        return path
    below = candidates(path)
    if len(below) == 1:
        return below[0]
    if below:
        raise ValueError(f"{path} holds several checkpoints; name one of {some([str(one) for one in below])}.")
    raise ValueError(
        f"{path} has no config.json; give a folder with config.json, tokenizer.json, *.safetensors, vqvae/."
    )


def _walk(folder: Path, depth: int, seen: set[Path]) -> Iterator[Path]:
    try:
        place = folder.resolve()
        if place in seen:  # links may run in circles
            return
        seen.add(place)
        if _is_llada(folder):
            yield folder
            return
        inside = [child for child in sorted(folder.iterdir()) if not child.name.startswith(".")]
        inner = [child for child in inside if os.path.isdir(child)]
    except OSError:
        return
    yield from (child for child in inside if child.suffix == SUFFIX and is_single_file(child))
    if depth:
        for child in inner:
            yield from _walk(child, depth - 1, seen)


def _is_llada(folder: Path) -> bool:
    return _says(folder, "model_type", "llada")


def _says(folder: Path, field: str, value: str) -> bool:
    """Whether the folder's config.json can be read and says so; a glance, without complaint."""
    try:
        return read_json(folder / "config.json").get(field) == value
    except ValueError:
        return False


def _transformer_settings(place: Path, settings: Mapping[str, Any]) -> tuple[TransformerConfig, TokenTable, Defaults]:
    config = _explained(place, lambda: TransformerConfig.from_dict(settings))
    ids, defaults = settings.get("dimoo_token_ids", RELEASED.to_dict()), settings.get("dimoo_defaults", {})
    for name, value in {"dimoo_token_ids": ids, "dimoo_defaults": defaults}.items():
        if not isinstance(value, dict):
            raise ValueError(f"In {place}: config.json says {name} = {value!r:.80}; names with values are wanted.")
    table = _explained(place, lambda: TokenTable.from_dict(ids))
    _explained(place, lambda: table.check(config.vocab_size))
    return config, table, _explained(place, lambda: Defaults.from_dict(defaults))


def _vq_folder(folder: Path) -> Path:
    named = folder / "vqvae"
    if named.is_dir():
        return named
    others = [child for child in sorted(folder.iterdir()) if child.is_dir() and _says(child, "_class_name", "VQModel")]
    if len(others) == 1:
        return others[0]
    came = f"several VQ folders ({some([one.name for one in others])})" if others else "no VQ"
    raise ValueError(f"{folder} has {came}; the pictures' VQ is wanted in its subfolder vqvae/.")


def _read_vq_config(folder: Path) -> VQConfig:
    return _explained(folder, lambda: VQConfig.from_dict(read_json(folder / "config.json")))


def _check_fit(vq: VQConfig, table: TokenTable, folder: Path) -> None:
    if vq.scale != CELL:
        raise ValueError(f"The VQ in {folder} has {vq.scale} px per code; fetch the one of this model, {CELL} px.")
    if vq.codebook_size != table.codebook_size:
        raise ValueError(
            f"The VQ in {folder} has {vq.codebook_size} codes, but the transformer's ids have room for "
            f"{table.codebook_size}; use the VQ that belongs to this checkpoint."
        )
    if vq.in_channels != 3 or vq.out_channels != 3:
        raise ValueError(f"The VQ in {folder} has {vq.in_channels} to {vq.out_channels} channels; 3 to 3 are needed.")


# Loading ------------------------------------------------------------------------------------------------------------


def _transformer(
    config: TransformerConfig,
    weights: Weights,
    *,
    code_offset: int,
    ops=LAYERS,
    device="cpu",
    dtype=None,
    dequantised: bool = False,
    **options: Any,
) -> Transformer:
    dtype = _dtype(weights, dtype)
    _check_transformer(config, weights, code_offset=code_offset, dtype=dtype)
    sources = {place: (weights[name], rows) for name in weights for place, rows in hub_to_module(name, code_offset)}
    module = Transformer(config, code_offset=code_offset, ops=ops, device="meta", dtype=dtype, **options)
    return _fill(module, sources, device=device, dtype=dtype, dequantised=dequantised)


def _vq(config: VQConfig, weights: Weights, *, ops=LAYERS, device="cpu", dtype=None) -> VQ:
    _check_extent(config, weights)
    dtype = _dtype(weights, dtype)
    module = VQ(config, ops=ops, device="meta", dtype=dtype)
    _check_names(weights, _shapes(module))
    return _fill(module, {name: (entry, None) for name, entry in weights.items()}, device=device, dtype=dtype)


def _check_extent(config: TransformerConfig | VQConfig, weights: Weights) -> None:
    """A config cannot ask for more than the files hold: checked before anything of its size is built."""
    numbers = sum(prod(entry.shape) for entry in weights.values())
    for field in fields(config):
        value = getattr(config, field.name)
        held = len(weights) if "layers" in field.name else numbers
        largest = max(value) if isinstance(value, tuple) else value
        if isinstance(largest, int) and largest > held:
            raise ValueError(
                f"The config says {field.name} = {largest}, but {_folder(weights)} holds only {len(weights)} tensors "
                f"of {numbers} numbers in all; use the config.json that belongs to these weights."
            )


def _dtype(weights: Weights, dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype to load in; None or "auto": the one that most of the file's bytes have."""
    sizes: dict[str, int] = {}
    for name, entry in weights.items():
        if entry.layer is not None:
            continue
        if entry.dtype not in FLOATS:
            wanted = ", ".join(FLOATS)
            raise ValueError(
                f"{name} in {entry.file} is stored as {entry.dtype}; one of {wanted} is wanted, fetch such weights."
            )
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + prod(entry.shape)
    if dtype is None or dtype == "auto":
        return FLOATS[max(sizes, key=sizes.__getitem__)] if sizes else torch.float32
    if dtype not in _COMPUTE:
        raise ValueError(f"dtype {dtype!r} came; 'auto' or one of {', '.join(map(str, _COMPUTE))} is wanted.")
    return dtype


def _check_names(weights: Weights, wanted: Mapping[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or extra:
        groups = {"missing": missing, "unexpected": extra}
        said = " and ".join(f"{len(names)} {what} ({some(names)})" for what, names in groups.items() if names)
        raise ValueError(f"Tensors in {_folder(weights)} are not what its config.json wants: {said}; fetch all again.")
    for name, shape in wanted.items():
        entry = weights[name]
        if entry.shape != shape:
            raise ValueError(
                f"{name} in {entry.file} has shape {list(entry.shape)}, but the config wants {list(shape)}; "
                "use the config.json that belongs to these weights."
            )


def _check_transformer(config: TransformerConfig, weights: Weights, *, code_offset: int, dtype: torch.dtype) -> None:
    """Checks names and shapes by a module of torch's layers on meta: the layers of others may have no weights before
    they are loaded. Only a matrix that is one layer can be quantised; embedding and head are two each."""
    _check_extent(config, weights)
    plain = Transformer(config, code_offset=code_offset, ops=LAYERS, device="meta", dtype=dtype)
    _check_names(weights, hub_shapes(plain))
    for name, entry in weights.items():
        if entry.layer is not None and not isinstance(plain.get_submodule(name.rpartition(".")[0]), nn.Linear):
            raise ValueError(
                f"{name} in {entry.file} is quantised, which only the matrices of the blocks can be; convert the "
                "published checkpoint again."
            )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _fill(
    module: Module,
    sources: Mapping[str, tuple[Entry, slice | None]],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    dequantised: bool = False,
) -> Module:
    """Gives a module built on meta its weights, layer by layer through each layer's own loading (comfy has its own).

    `sources`: per parameter the stored tensor and its rows (None: all). A quantised weight comes to its layer as it
    does in ComfyUI, with its `weight_scale` and with the bytes of a JSON text as `comfy_quant`.
    """
    layers: dict[str, dict[str, tuple[Entry, slice | None]]] = {}
    for place, source in sources.items():
        prefix, _, leaf = place.rpartition(".")
        layers.setdefault(prefix, {})[leaf] = source
    handles: dict[Path, Any] = {}
    for prefix, leaves in layers.items():
        state: dict[str, Tensor] = {}
        for leaf, (entry, rows) in leaves.items():
            if entry.layer is None or dequantised:
                state[leaf] = _read(entry, rows, dtype, handles).to(device)
            else:
                state[leaf] = _raw(entry, rows, handles).to(device)
                state[f"{leaf}_scale"] = entry.scale.read().to(device)
                state["comfy_quant"] = entry.layer.to_tensor()
        module.get_submodule(prefix).load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _read(entry: Entry, rows: slice | None, dtype: torch.dtype, handles: dict[Path, Any]) -> Tensor:
    """Rows (None: all) of one stored tensor in `dtype`; uncast they stay a view of the mapped file.

    A tensor that is cast has a mapping to itself: it ends with the call, and with it the memory its pages took.
    """
    if entry.layer is not None:
        return dequantise(entry.read(), entry.scale.read(), dtype)
    if FLOATS[entry.dtype] != dtype:
        return entry.read(rows).to(dtype)
    return _raw(entry, rows, handles)


def _raw(entry: Entry, rows: slice | None, handles: dict[Path, Any]) -> Tensor:
    """Rows (None: all) as they are stored: a view of the mapped file, one mapping for all."""
    if entry.file not in handles:
        handles[entry.file] = safe_open(entry.file, framework="pt")
    tensor = handles[entry.file].get_tensor(entry.name)
    return tensor if rows is None else tensor[rows]


# Small tools --------------------------------------------------------------------------------------------------------

Result = TypeVar("Result")


def _explained(folder: Path, read: Callable[[], Result]) -> Result:
    """What `read` returns; its complaint, where it has one, also says which folder it is about."""
    try:
        return read()
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(folder) in message else f"In {folder}: {message}") from None


def _folder(weights: Weights) -> Path | str:
    """The file of the weights, or the folder where they are several."""
    files = sorted({entry.file for entry in weights.values()})
    return (files[0] if len(files) == 1 else files[0].parent) if files else "its folder"
