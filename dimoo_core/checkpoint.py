"""Checkpoints: recognised by their content, loaded strictly, never twice in memory.

A checkpoint is a folder in the layout of the published one; only the names of the JSON files are fixed:

    config.json         shape of the transformer, model_type "llada"; "dimoo_token_ids" where its ids are its own,
                        "dimoo_defaults" where other settings suit it than the published model
    *.safetensors       its weights in one file or several, with or without a `*.safetensors.index.json`
    tokenizer.json
    vqvae/config.json   shape of the VQ (diffusers' VQModel); another subfolder serves if it is the only VQ
    vqvae/*.safetensors

Only safetensors and JSON are ever read: no pickle, no code from the folder. Whatever is wrong with the files is a
ValueError of one sentence. A file that an index names must lie in the index's own folder (it may be a symbolic link,
as in the hub's cache).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .config import TransformerConfig, VQConfig
from .tokens import RELEASED, TextTokenizer, TokenTable
from .transformer import Transformer, hub_to_module, module_to_hub
from .vq import VQ

NANO = Path(__file__).parent / "nano" / "checkpoint"
CELL = 16  # pixels per code along each side: what sizes, masks and buckets of this pack count in

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_COMPUTE = (torch.float32, torch.float16, torch.bfloat16)
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip; bare pickles
_NO_PICKLE = "a pickle can run code and is never opened, fetch the safetensors weights."
_MAX_JSON = 1 << 20  # bytes
_MAX_INDEX = 64 << 20  # bytes; a model with a million tensors needs less
_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
_DEPTH = 4  # folders below a model folder; the hub's cache lays a checkpoint three deep

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Entry:
    """One stored tensor: where it lies, its shape and the file's name for its dtype."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


Weights = Mapping[str, Entry]


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
    """A recognised checkpoint; the headers of its weight files are read, the weights are not."""

    folder: Path
    kind: str
    config: TransformerConfig
    table: TokenTable
    defaults: Defaults
    weights: Weights
    vq_folder: Path
    vq_config: VQConfig
    vq_weights: Weights
    tokenizer: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read, so that a caller can notice a change by size and time."""
        stored = {entry.file for part in (self.weights, self.vq_weights) for entry in part.values()}
        settings = (self.folder / "config.json", self.vq_folder / "config.json", self.tokenizer)
        return (*sorted(stored), *settings)


def find(path: str | Path) -> Found:
    """Recognises the checkpoint at `path`: its folder, a file in it, or a folder with exactly one checkpoint below.

    Raises ValueError where there is none, where a part is missing or broken, or where the parts do not fit together.
    """
    folder = _checkpoint_folder(Path(path).expanduser())
    config, table, defaults = _transformer_settings(folder)
    vq_folder = _vq_folder(folder)
    vq_config = _vq_settings(vq_folder)
    _check_fit(vq_config, table, vq_folder)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ValueError(f"{folder} has no tokenizer.json; fetch the one that belongs to this checkpoint.")
    return Found(
        folder=folder,
        kind="hub folder",
        config=config,
        table=table,
        defaults=defaults,
        weights=read_headers(folder),
        vq_folder=vq_folder,
        vq_config=vq_config,
        vq_weights=read_headers(vq_folder),
        tokenizer=tokenizer,
    )


def candidates(folder: str | Path) -> list[Path]:
    """Checkpoint folders at or below `folder`, sorted; cheap, reads nothing but each config.json.

    A broken checkpoint is listed too, so that choosing it says what is wrong. Never raises for what lies there.
    """
    return sorted(_walk(Path(folder), _DEPTH, set()))


def load_transformer(
    found: Found,
    *,
    ops=nn,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> Transformer:
    """The transformer, in eval mode and without gradients.

    `ops` is a namespace of layer classes (torch.nn or comfy.ops.*). `dtype` None or "auto" keeps the file's; another
    casts each tensor as it is read. Uncast tensors on the CPU stay views of the mapped file, which costs no memory
    until they are used. `options` go to `Transformer` (attention). Raises ValueError where the weights do not fit.
    """
    return _transformer(
        found.config, found.weights, code_offset=found.table.code_offset, ops=ops, device=device, dtype=dtype, **options
    )


def load_vq(
    found: Found, *, ops=nn, device: torch.device | str = "cpu", dtype: torch.dtype | str | None = torch.float32
) -> VQ:
    """The VQ, in eval mode and without gradients; fp32, as it was trained, unless told otherwise ("auto": stored).

    `ops` and `device` as for `load_transformer`, and so are the errors.
    """
    return _vq(found.vq_config, found.vq_weights, ops=ops, device=device, dtype=dtype)


def load_tokenizer(found: Found) -> TextTokenizer:
    """The tokenizer, checked against the id table and the vocabulary. Raises ValueError where they disagree."""
    tokenizer = _explained(found.folder, lambda: TextTokenizer.from_file(found.tokenizer))
    _explained(found.folder, lambda: tokenizer.check(found.table, found.config.vocab_size))
    return tokenizer


def read_transformer(folder: str | Path, *, code_offset: int, **options: Any) -> Transformer:
    """The transformer alone, from a folder that need not hold anything else; `options` as for `load_transformer`."""
    folder = Path(folder)
    config = _explained(folder, lambda: TransformerConfig.from_dict(_json(folder / "config.json")))
    if not 0 < code_offset < config.vocab_size:
        raise ValueError(f"Codes from id {code_offset} on do not fit a vocabulary of {config.vocab_size} ids.")
    return _transformer(config, read_headers(folder), code_offset=code_offset, **options)


def read_vq(folder: str | Path, **options: Any) -> VQ:
    """A VQ of any scale from its own folder; `options` as for `load_vq`."""
    folder = Path(folder)
    return _vq(_vq_settings(folder), read_headers(folder), **{"dtype": torch.float32, **options})


# Recognising --------------------------------------------------------------------------------------------------------


def _checkpoint_folder(path: Path) -> Path:
    if not os.path.exists(path):  # unlike Path.exists it is False, too, for a name that no file system could have
        raise ValueError(f"{str(path)[:200]!r} does not exist; give the folder of a checkpoint.")
    if path.is_file():
        _refuse_pickle(path)
        if not _is_llada(path.parent):
            raise ValueError(f"{path} has no config.json of model_type 'llada' beside it; give a checkpoint folder.")
        return path.parent
    if (path / "config.json").exists():
        return path
    below = candidates(path)
    if len(below) == 1:
        return below[0]
    if below:
        raise ValueError(f"{path} holds several checkpoints; name one of {_some([str(one) for one in below])}.")
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
        inner = [child for child in folder.iterdir() if not child.name.startswith(".") and os.path.isdir(child)]
    except OSError:
        return
    if depth:
        for child in sorted(inner):
            yield from _walk(child, depth - 1, seen)


def _is_llada(folder: Path) -> bool:
    return _says(folder, "model_type", "llada")


def _says(folder: Path, field: str, value: str) -> bool:
    """Whether the folder's config.json can be read and says so; a glance, without complaint."""
    try:
        return _json(folder / "config.json").get(field) == value
    except ValueError:
        return False


def _transformer_settings(folder: Path) -> tuple[TransformerConfig, TokenTable, Defaults]:
    settings = _json(folder / "config.json")
    config = _explained(folder, lambda: TransformerConfig.from_dict(settings))
    ids, defaults = settings.get("dimoo_token_ids", RELEASED.to_dict()), settings.get("dimoo_defaults", {})
    for name, value in {"dimoo_token_ids": ids, "dimoo_defaults": defaults}.items():
        if not isinstance(value, dict):
            raise ValueError(f"In {folder}: config.json says {name} = {value!r:.80}; names with values are wanted.")
    table = _explained(folder, lambda: TokenTable.from_dict(ids))
    _explained(folder, lambda: table.check(config.vocab_size))
    return config, table, _explained(folder, lambda: Defaults.from_dict(defaults))


def _vq_folder(folder: Path) -> Path:
    named = folder / "vqvae"
    if named.is_dir():
        return named
    others = [child for child in sorted(folder.iterdir()) if child.is_dir() and _says(child, "_class_name", "VQModel")]
    if len(others) == 1:
        return others[0]
    came = f"several VQ folders ({_some([one.name for one in others])})" if others else "no VQ"
    raise ValueError(f"{folder} has {came}; the pictures' VQ is wanted in its subfolder vqvae/.")


def _vq_settings(folder: Path) -> VQConfig:
    return _explained(folder, lambda: VQConfig.from_dict(_json(folder / "config.json")))


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


# Headers ------------------------------------------------------------------------------------------------------------


def read_headers(folder: Path) -> Weights:
    """Name, place, shape and dtype of every tensor in the folder's weight files; the weights are not read.

    Raises ValueError where a file is absent, broken, a pickle, or where two files hold a tensor of the same name.
    """
    weights: dict[str, Entry] = {}
    for path in _weight_files(folder):
        for name, entry in _header(path):
            if name in weights:
                raise ValueError(f"{path} and {weights[name].file.name} both hold {name}; keep only one of them.")
            weights[name] = entry
    return weights


def _weight_files(folder: Path) -> list[Path]:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        names = _some([one.name for one in indexes])
        raise ValueError(f"{folder} has several indexes ({names}); keep the one that belongs to its weights.")
    if indexes:
        return _indexed_files(indexes[0])
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    for path in sorted(folder.iterdir()):
        if path.is_file():
            _refuse_pickle(path)
    raise ValueError(f"{folder} has no weights; fetch the *.safetensors of this checkpoint into it.")


def _indexed_files(index: Path) -> list[Path]:
    places = _json(index, _MAX_INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map; fetch it again, or remove it if all weights are in the folder.")
    names = {str(name) for name in places.values()}
    for name in sorted(names):
        if name in ("", ".", "..") or not name.isprintable() or any(sign in name for sign in "/\\:"):
            raise ValueError(f"{index} names {name[:80]!r}; only plain file names of its own folder are followed.")
        path = index.parent / name
        if not path.is_file():
            others = sorted({one.name for one in index.parent.glob("*.safetensors")} - names)
            there = f" (there, but not named: {_some(others)})" if others else ""
            raise ValueError(f"{index} names {name}, which is absent{there}; fetch it, or give it its name back.")
        if path.suffix != ".safetensors":
            _refuse_pickle(path)
            raise ValueError(f"{index} names {name}, but only .safetensors files are read; fetch those.")
    return [index.parent / name for name in sorted(names)]


def _header(path: Path) -> Iterator[tuple[str, Entry]]:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file; weights are wanted there, fetch it again.")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict: it has no other way to be walked)
                view = file.get_slice(name)
                yield name, Entry(path, tuple(view.get_shape()), view.get_dtype())
    except (SafetensorError, OSError) as error:
        raise ValueError(_diagnosis(path, str(error))) from None


def _diagnosis(path: Path, error: str) -> str:
    """Why a file that should be safetensors is none, told in one sentence."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
        size = path.stat().st_size
    except OSError as trouble:
        return f"{path} cannot be read ({trouble.strerror}); see that it exists and may be read."
    if start.startswith(_PICKLE_STARTS):
        return f"{path} is a pickle in spite of its name; {_NO_PICKLE}"
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer and not the weights; run `git lfs pull` there or fetch the file itself."
    if start.lstrip()[:1] == b"<":
        return f"{path} is a web page and not the weights; fetch the file itself."
    promised = 8 + int.from_bytes(start[:8], "little")  # the file begins with the length of its header
    if size < 8 or size < promised <= _MAX_HEADER or "ncomplete" in error:
        return f"{path} is cut short or garbled: {size} bytes are there, its header says otherwise; fetch it again."
    return f"{path} is no safetensors file ({error}); fetch it again."


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        raise ValueError(f"{path} is a pickle; {_NO_PICKLE}")


# Loading ------------------------------------------------------------------------------------------------------------


def _transformer(
    config: TransformerConfig, weights: Weights, *, code_offset: int, ops=nn, device="cpu", dtype=None, **options: Any
) -> Transformer:
    _check_extent(config, weights)
    dtype = _dtype(weights, dtype)
    module = Transformer(config, code_offset=code_offset, ops=ops, device="meta", dtype=dtype, **options)
    wanted = {name: tuple(tensor.shape) for name, tensor in module_to_hub(module.state_dict()).items()}
    _check_names(weights, wanted)
    sources = {place: (name, rows) for name in wanted for place, rows in hub_to_module(name, code_offset)}
    return _fill(module, weights, sources, device=device, dtype=dtype)


def _vq(config: VQConfig, weights: Weights, *, ops=nn, device="cpu", dtype=None) -> VQ:
    _check_extent(config, weights)
    dtype = _dtype(weights, dtype)
    module = VQ(config, ops=ops, device="meta", dtype=dtype)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    _check_names(weights, wanted)
    return _fill(module, weights, {name: (name, None) for name in wanted}, device=device, dtype=dtype)


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
        if entry.dtype not in _FLOATS:
            wanted = ", ".join(_FLOATS)
            raise ValueError(
                f"{name} in {entry.file} is stored as {entry.dtype}; one of {wanted} is wanted, fetch such weights."
            )
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + prod(entry.shape)
    if dtype is None or dtype == "auto":
        return _FLOATS[max(sizes, key=sizes.__getitem__)] if sizes else torch.float32
    if dtype not in _COMPUTE:
        raise ValueError(f"dtype {dtype!r} came; 'auto' or one of {', '.join(map(str, _COMPUTE))} is wanted.")
    return dtype


def _check_names(weights: Weights, wanted: Mapping[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or extra:
        groups = {"missing": missing, "unexpected": extra}
        said = " and ".join(f"{len(names)} {what} ({_some(names)})" for what, names in groups.items() if names)
        raise ValueError(f"Tensors in {_folder(weights)} are not what its config.json wants: {said}; fetch all again.")
    for name, shape in wanted.items():
        entry = weights[name]
        if entry.shape != shape:
            raise ValueError(
                f"{name} in {entry.file} has shape {list(entry.shape)}, but the config wants {list(shape)}; "
                "use the config.json that belongs to these weights."
            )


def _fill(
    module: Module,
    weights: Weights,
    sources: Mapping[str, tuple[str, slice | None]],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Module:
    """Gives a module built on meta its weights, layer by layer through each layer's own loading (comfy has its own).

    `sources`: per parameter the stored tensor and its rows (None: all).
    """
    handles: dict[Path, Any] = {}
    for prefix, layer in module.named_modules():
        names = [name for name, _ in layer.named_parameters(recurse=False)]
        if not names:
            continue
        state = {}
        for name in names:
            stored, rows = sources[f"{prefix}.{name}"]
            state[name] = _read(stored, weights[stored], rows, dtype, handles).to(device)
        layer.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _read(name: str, entry: Entry, rows: slice | None, dtype: torch.dtype, handles: dict[Path, Any]) -> Tensor:
    """Rows (None: all) of one stored tensor in `dtype`; uncast they stay a view of the mapped file.

    A tensor that is cast has a mapping to itself: it ends with the call, and with it the memory its pages took.
    """
    rows = slice(None) if rows is None else rows
    if _FLOATS[entry.dtype] != dtype:
        with safe_open(entry.file, framework="pt") as file:
            return file.get_tensor(name)[rows].to(dtype)
    if entry.file not in handles:
        handles[entry.file] = safe_open(entry.file, framework="pt")
    return handles[entry.file].get_tensor(name)[rows]


# Small tools --------------------------------------------------------------------------------------------------------

Result = TypeVar("Result")


def _json(path: Path, limit: int = _MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file; ValueError where there is none, or where it is too large to be meant."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file; a JSON file is wanted there.")
    try:
        if path.stat().st_size > limit:
            raise ValueError(f"it has more than {limit} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); see that it exists and may be read.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not usable JSON ({error}); fetch it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}; an object is wanted, fetch it again.")
    return content


def _explained(folder: Path, read: Callable[[], Result]) -> Result:
    """What `read` returns; its complaint, where it has one, also says which folder it is about."""
    try:
        return read()
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(folder) in message else f"In {folder}: {message}") from None


def _folder(weights: Weights) -> Path | str:
    return next((entry.file.parent for entry in weights.values()), "its folder")


def _some(names: list[str], limit: int = 4) -> str:
    """The first few names and how many more there are."""
    shown = ", ".join(name[:80] for name in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
