"""Files of weights, as they lie on disk: what is in them is read from their headers, the weights are not.

Only safetensors and JSON are ever read: no pickle, no code. Whatever is wrong with a file is a ValueError of one
sentence. A file that an index names must lie in the index's own folder (it may be a symbolic link, as in the hub's
cache).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..model.quantised import Quantised

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_JSON = 1 << 20  # bytes
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
_MAX_INDEX = 64 << 20  # bytes; a model with a million tensors needs less
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip; bare pickles
_NO_PICKLE = "a pickle can run code and is never opened, fetch the safetensors weights."


@dataclass(frozen=True)
class Entry:
    """One stored tensor: its file and its name there, its shape, the file's name for its dtype; for a weight of one
    byte each also what it says of the layer, and where its scale lies."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    layer: Quantised | None = None
    scale: Entry | None = None

    def read(self, rows: slice | None = None) -> Tensor:
        """Rows (None: all) as they are stored, through a mapping to itself: it ends when nobody holds the result, and
        with it the memory that its pages took."""
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor(self.name) if rows is None else file.get_slice(self.name)[rows]


Weights = Mapping[str, Entry]


def read_headers(folder: Path) -> Weights:
    """Name, place, shape and dtype of every tensor in the folder's weight files; the weights are not read.

    Raises ValueError where a file is absent, broken, a pickle, or where two files hold a tensor of the same name.
    """
    weights: dict[str, Entry] = {}
    for path in _weight_files(folder):
        for name, entry in read_header(path)[1].items():
            if name in weights:
                raise ValueError(f"{path} and {weights[name].file.name} both hold {name}; keep only one of them.")
            weights[name] = entry
    return weights


def _weight_files(folder: Path) -> list[Path]:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        names = some([one.name for one in indexes])
        raise ValueError(f"{folder} has several indexes ({names}); keep the one that belongs to its weights.")
    if indexes:
        return _indexed_files(indexes[0])
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    for path in sorted(folder.iterdir()):
        if path.is_file():
            refuse_pickle(path)
    raise ValueError(f"{folder} has no weights; fetch the *.safetensors of this checkpoint into it.")


def _indexed_files(index: Path) -> list[Path]:
    places = read_json(index, _MAX_INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map; fetch it again, or remove it if all weights are in the folder.")
    names = {str(name) for name in places.values()}
    for name in sorted(names):
        if name in ("", ".", "..") or not name.isprintable() or any(sign in name for sign in "/\\:"):
            raise ValueError(f"{index} names {name[:80]!r}; only plain file names of its own folder are followed.")
        path = index.parent / name
        if not path.is_file():
            others = sorted({one.name for one in index.parent.glob("*.safetensors")} - names)
            there = f" (there, but not named: {some(others)})" if others else ""
            raise ValueError(f"{index} names {name}, which is absent{there}; fetch it, or give it its name back.")
        if path.suffix != ".safetensors":
            refuse_pickle(path)
            raise ValueError(f"{index} names {name}, but only .safetensors files are read; fetch those.")
    return [index.parent / name for name in sorted(names)]


def read_header(path: Path) -> tuple[dict[str, str], dict[str, Entry]]:
    """The metadata of a safetensors file, and its tensors by name; the weights are not read.

    Raises ValueError, one sentence, where it is none.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file; weights are wanted there, fetch it again.")
    try:
        with safe_open(path, framework="pt") as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            shapes = {name: (tuple(view.get_shape()), view.get_dtype()) for name, view in views.items()}
            return dict(file.metadata() or {}), {name: Entry(path, name, *shape) for name, shape in shapes.items()}
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
    if size < 8 or size < promised <= MAX_HEADER or "ncomplete" in error:
        return f"{path} is cut short or garbled: {size} bytes are there, its header says otherwise; fetch it again."
    return f"{path} is no safetensors file ({error}); fetch it again."


def refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        raise ValueError(f"{path} is a pickle; {_NO_PICKLE}")


# Small tools ---------------------------------------------------------------------------------------------------------


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file; ValueError where there is none, or where it is too large to be meant."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file; a JSON file is wanted there.")
    try:
        if path.stat().st_size > limit:
            raise ValueError(f"it has more than {limit} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); see that it exists and may be read.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not usable JSON ({error}); fetch it again.") from None
    return json_object(text, str(path))


def json_object(text: str, place: str) -> dict[str, Any]:
    """The JSON object that a text is; `place` is what a complaint calls it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not usable JSON ({error}); fetch it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{place} holds a JSON {type(content).__name__}; an object is wanted, fetch it again.")
    return content


def some(names: list[str], limit: int = 4) -> str:
    """The first few names and how many more there are."""
    shown = ", ".join(name[:80] for name in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
