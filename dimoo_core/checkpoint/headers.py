"""Files of weights, as they lie on disk: what is in them is read from their headers, the weights are not.

Only safetensors and JSON are ever read: no pickle, no code. Whatever is wrong with a file is a ValueError of one
sentence. A file that an index names must lie in the index's own folder (it may be a symbolic link, as in the hub's
cache). Names that begin with a dot are passed over: macOS puts a `._model.safetensors` beside a file that it copies to
a drive of another system.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checks import printable, rust_errors, shown
from ..files import atomic_write, decoded, is_hidden
from ..model.quantised import Quantised

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_JSON = 1 << 20  # bytes
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
MAX_TOKENIZER = 64 << 20  # bytes; the published tokenizer.json has a sixth of that
_MAX_INDEX = 64 << 20  # bytes; a model with a million tensors needs less
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip; bare pickles
_NO_PICKLE = "a pickle can run code and is never opened, download the safetensors weights."


@dataclass(frozen=True)
class Entry:
    """One stored tensor: its file and its name there, its shape, the file's name for its dtype; for a weight of one
    byte each also how its layer is quantised, where its scale lies, and that of its activations if there is one."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    quantisation: Quantised | None = None
    scale: Entry | None = None
    input_scale: Entry | None = None

    def read(self, rows: slice | None = None) -> Tensor:
        """Rows (None: all) as they are stored, through a mapping to itself: it ends when nobody holds the result, and
        with it the memory that its pages took. Raises ValueError where the file cannot be read."""
        with weight_errors(self.file), safe_open(self.file, framework="pt") as file:
            return file.get_tensor(self.name) if rows is None else file.get_slice(self.name)[rows]


Weights = Mapping[str, Entry]


def read_headers(folder: Path) -> Weights:
    """File, shape and dtype by the name of every tensor in the folder's weight files; the weights are not read.

    Raises ValueError where a file is absent, broken, a pickle, or where two files hold a tensor of the same name.
    """
    weights: dict[str, Entry] = {}
    for path in _weight_files(folder):
        for name, entry in read_header(path)[1].items():
            if name in weights:
                first = weights[name].file.name
                raise ValueError(f"{path} and {first} both hold {printable(name)}; keep only one of them.")
            weights[name] = entry
    return weights


def _weight_files(folder: Path) -> list[Path]:
    indexes = visible(folder, "*.safetensors.index.json")
    if len(indexes) > 1:
        names = some([one.name for one in indexes])
        raise ValueError(f"{folder} has several indexes ({names}); keep the one that belongs to its weights.")
    if indexes:
        return _indexed_files(indexes[0])
    files = visible(folder, "*.safetensors")
    if files:
        return files
    for path in visible(folder):
        if path.is_file():
            refuse_pickle(path)
    raise ValueError(f"{folder} has no weights; download the *.safetensors of this checkpoint into it.")


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index, _MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{index} has no weight_map; download it again, or remove it if all weights are in the folder."
        )
    names = {name if isinstance(name, str) else shown(name) for name in weight_map.values()}
    for name in sorted(names):
        if name in ("", ".", "..") or not name.isprintable() or any(sign in name for sign in "/\\:"):
            raise ValueError(f"{index} names {shown(name)}; only plain file names of its own folder are followed.")
        path = index.parent / name
        if not os.path.isfile(path):
            others = sorted({one.name for one in visible(index.parent, "*.safetensors")} - names)
            there = f" (there, but not named: {some(others)})" if others else ""
            raise ValueError(
                f"{index} names {printable(name)}, which is absent{there}; download it, or rename it back."
            )
        if path.suffix != ".safetensors":
            refuse_pickle(path)
            raise ValueError(f"{index} names {printable(name)}, but only .safetensors files are read; download those.")
    return [index.parent / name for name in sorted(names)]


def read_header(path: Path) -> tuple[dict[str, str], dict[str, Entry]]:
    """The metadata of a safetensors file, and its tensors by name; the weights are not read.

    Raises ValueError, one sentence, where it is not one.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is not a file (expected weights); download it again.")
    with weight_errors(path), safe_open(path, framework="pt") as file:
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        shapes = {name: (tuple(view.get_shape()), view.get_dtype()) for name, view in views.items()}
        return dict(file.metadata() or {}), {name: Entry(path, name, *shape) for name, shape in shapes.items()}


def weight_errors(path: Path) -> AbstractContextManager[None]:
    """Put around every use of a safetensors file: whatever is wrong with it becomes a ValueError of one sentence."""
    return rust_errors(lambda message: _diagnosis(path, message))


def _diagnosis(path: Path, error: str) -> str:
    """Why a file is not safetensors though it should be, in one sentence."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
        size = path.stat().st_size
    except OSError as trouble:
        return f"{path} cannot be read ({trouble.strerror}); check that it exists and may be read."
    if start.startswith(_PICKLE_STARTS):
        return f"{path} is a pickle in spite of its name; {_NO_PICKLE}"
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer and not the weights; run `git lfs pull` there or download the file itself."
    if start.lstrip()[:1] == b"<":
        return f"{path} is a web page and not the weights; download the file itself."
    promised = 8 + int.from_bytes(start[:8], "little")  # the file begins with the length of its header
    if size < 8 or size < promised <= MAX_HEADER or "ncomplete" in error:
        return f"{path} is cut short or garbled: it has {size} bytes, its header says otherwise; download it again."
    return f"{path} is not a usable safetensors file ({error}); download it again."


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all. Raises OSError where no file can be made there, and ValueError
    where it cannot be filled, as on a full disk."""
    with (
        atomic_write(path) as part,
        rust_errors(lambda message: f"{path} cannot be written ({message}): make room on the disk."),
    ):
        save_file(dict(tensors), part, metadata=dict(metadata))


def refuse_pickle(path: Path) -> None:
    """Raises ValueError for a name that pickles have."""
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        raise ValueError(f"{path} is a pickle; {_NO_PICKLE}")


# Small tools ---------------------------------------------------------------------------------------------------------


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What lies in a folder, sorted, without the names that begin with a dot. Raises ValueError where it cannot be
    listed."""
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path.name) and fnmatch(path.name, pattern))
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be listed ({error.strerror}); check that it exists and may be read."
        ) from None


def read_text(path: Path, limit: int) -> str:
    """The text of a file that says so itself if it is UTF-16, and is else UTF-8, with or without a byte order mark.

    Raises ValueError where it is another encoding or has more than `limit` bytes, OSError where it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    return decoded(content)


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file; ValueError where there is none, or where it is too large to be meant."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is not a file (expected JSON); download it again.")
    try:
        text = read_text(path, limit)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check that it exists and may be read.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not usable JSON ({error}); download it again.") from None
    return json_object(text, str(path))


def json_object(text: str, name: str) -> dict[str, Any]:
    """The JSON object that a text is, with or without a byte order mark; `name` is what a complaint calls it."""
    try:
        content = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not usable JSON ({printable(str(error), 200)}); download it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a JSON {type(content).__name__}, expected an object; download it again.")
    return content


@contextmanager
def located(path: Path) -> Iterator[None]:
    """A ValueError that is raised inside also says which checkpoint it is about."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        raise ValueError(message if str(path) in message else f"In {path}: {message}") from None


def some(names: list[str], limit: int = 4) -> str:
    """The first few names and how many more there are."""
    first = ", ".join(printable(name) for name in names[:limit])
    return f"{first} and {len(names) - limit} more" if len(names) > limit else first
