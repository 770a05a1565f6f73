"""Converting a checkpoint into one safetensors file, in bf16 or with the blocks' matrices in a byte per weight.

What stays as it is, and why: embedding, head and norms are bf16 (they are a small part, and their rows are looked up
or compared); the VQ keeps the dtype it is stored in. `ff_out` is guarded, because what comes into it has outliers that
no scale per token can hold (arXiv 2508.14896): beside fp8 it stays bf16, in int8 it keeps its activations unrounded.

Nothing is ever held but a part of one tensor: the file's header says where everything will lie before anything is
read, and each part is written to its place.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..files import atomic_write
from ..model.quantised import FP8, INT8, Quantised, largest_magnitude, quantise, scale_of
from .find import Found
from .headers import FLOATS, Entry
from .load import check_weights
from .single_file import (
    CONFIG,
    MARK,
    QUANTISATION,
    SUFFIX,
    TOKENIZER,
    VERSION,
    VQ_CONFIG,
    VQ_PREFIX,
    quantisation_metadata,
)

KINDS = ("bf16", "fp8", "int8")
_MATRIX = re.compile(r"model\.transformer\.blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)\.weight")
_GUARDED = "ff_out"
_CHUNK = 16 << 20  # numbers of a tensor in memory, in fp32 for the while
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}

OnStep = Callable[[int, int, object], None]
Piece = tuple[str, int, Tensor]  # a tensor's name, the byte in it at which a part begins, and the part


@dataclass(frozen=True)
class _Part:
    """One tensor of the checkpoint on its way: the name and dtype it gets; `layer` where it is quantised."""

    name: str
    entry: Entry
    stored: str
    layer: Quantised | None = None

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Name, dtype and shape of all that it becomes."""
        yield self.name, self.stored, self.entry.shape
        if self.layer is not None:
            yield f"{self.name}_scale", "F32", self.layer.format.scale_shape(self.entry.shape[0])

    def pieces(self) -> Iterator[Piece]:
        """What is to be written where."""
        if self.layer is not None:
            yield from self._quantised(self.layer)
            return
        begin = 0
        for part in _rows(self.entry):
            part = part.to(FLOATS[self.stored])
            yield self.name, begin, part
            begin += part.nbytes

    def _quantised(self, layer: Quantised) -> Iterator[Piece]:
        """A matrix with one scale is read twice: the scale is known only at its end."""
        whole, begin, row = None, 0, 0
        if not layer.format.per_row:
            sizes = torch.stack([largest_magnitude(part, layer.format) for part in _rows(self.entry)])
            whole = scale_of(sizes.amax(), layer.format)
            yield f"{self.name}_scale", 0, whole
        for part in _rows(self.entry):
            scale = scale_of(largest_magnitude(part, layer.format), layer.format) if whole is None else whole
            if whole is None:
                yield f"{self.name}_scale", row, scale
                row += scale.nbytes
            part = quantise(part, scale, layer.format)
            yield self.name, begin, part
            begin += part.nbytes


def _rows(entry: Entry) -> Iterator[Tensor]:
    """A stored tensor in parts, as it is stored; each has a mapping to itself that ends with it."""
    if not entry.shape:
        yield entry.read()
        return
    chunk = max(_CHUNK // max(prod(entry.shape[1:]), 1), 1)
    for start in range(0, entry.shape[0], chunk):
        yield entry.read(slice(start, start + chunk))


def quantised_as(name: str, kind: str) -> Quantised | None:
    """How the weight that is published under `name` is stored in a file of `kind`, one of KINDS; None: in bf16."""
    matrix = _MATRIX.fullmatch(name)
    if matrix is None or kind == "bf16":
        return None
    guarded = matrix[1] == _GUARDED
    if kind == "fp8":
        return None if guarded else Quantised(FP8)
    return Quantised(INT8, full_precision=guarded)


def convert(found: Found, output: Path, kind: str, *, on_step: OnStep | None = None) -> int:
    """Writes the checkpoint into the one file `output`, whole or not at all; hands back its size in bytes.

    `kind` is one of KINDS. `on_step` hears the bytes done and the bytes in all. Raises ValueError where the checkpoint
    is broken or quantised already, or where the file cannot be there.
    """
    if kind not in KINDS:
        raise ValueError(f"dtype {kind!r} came; one of {', '.join(KINDS)} is wanted.")
    if found.formats:
        raise ValueError(f"{found.path} is quantised already; convert the checkpoint that it was made from.")
    _check_output(found, output)
    check_weights(found)
    tokenizer = torch.frombuffer(bytearray(found.tokenizer_text().encode("utf-8")), dtype=torch.uint8)
    parts = [*_transformer_parts(found, kind), *_vq_parts(found)]
    header, places = _header(_metadata(found, parts), parts, len(tokenizer))
    total = len(header) + max(end for _, end in places.values())
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if free < total:
        raise ValueError(f"{output} needs {total} bytes, {free} are free; make room or name another place.")

    with atomic_write(output, sync=True) as place, place.open("wb") as file:
        file.write(header)
        done = _put(file, len(header) + places[TOKENIZER][0], tokenizer)
        for name, begin, part in (piece for one in parts for piece in one.pieces()):
            done += _put(file, len(header) + places[name][0] + begin, part)
            if on_step is not None:
                on_step(len(header) + done, total, None)
    return total


def _check_output(found: Found, output: Path) -> None:
    if output.suffix != SUFFIX:
        raise ValueError(f"{output} is no name for it; a file name that ends in {SUFFIX} is wanted.")
    if output.is_dir():
        raise ValueError(f"{output} is a folder; the name of a file is wanted.")
    inputs = {path.resolve() for path in found.files}
    if output.resolve() in inputs or (output.exists() and any(output.samefile(path) for path in inputs)):
        raise ValueError(f"{output} is a part of the checkpoint that is read; name another file.")
    if found.path.is_dir() and output.parent.resolve() in {path.absolute().parent.resolve() for path in found.files}:
        raise ValueError(
            f"{output} would lie among the checkpoint's own files and be taken for one; name another place."
        )


def _transformer_parts(found: Found, kind: str) -> Iterator[_Part]:
    for name, entry in found.weights.items():
        layer = quantised_as(name, kind)
        yield _Part(name, entry, "BF16" if layer is None else layer.format.stored, layer)


def _vq_parts(found: Found) -> Iterator[_Part]:
    for name, entry in found.vq_weights.items():
        yield _Part(VQ_PREFIX + name, entry, entry.dtype)


def _metadata(found: Found, parts: Sequence[_Part]) -> dict[str, str]:
    metadata = {"format": "pt", MARK: VERSION}
    metadata |= {CONFIG: json.dumps(dict(found.settings)), VQ_CONFIG: json.dumps(dict(found.vq_settings))}
    layers = {part.name.removesuffix(".weight"): part.layer for part in parts if part.layer is not None}
    return metadata | ({QUANTISATION: quantisation_metadata(layers)} if layers else {})


def _header(
    metadata: dict[str, str], parts: Sequence[_Part], tokenizer: int
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header, its length included, and the first and last byte of every tensor behind it.

    Wide numbers come first, as in files that the safetensors library writes: so every tensor is aligned.
    """
    tensors = [tensor for part in parts for tensor in part.tensors()]
    tensors.append((TOKENIZER, "U8", (tokenizer,)))
    tensors.sort(key=lambda tensor: -_SIZES[tensor[1]])  # stable: else they stay in their order
    places, fields, end = {}, {"__metadata__": metadata}, 0
    for name, stored, shape in tensors:
        begin, end = end, end + _SIZES[stored] * prod(shape)
        places[name] = (begin, end)
        fields[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def _put(file: BinaryIO, place: int, part: Tensor) -> int:
    """Writes a tensor's bytes from byte `place` on; how many they are."""
    file.seek(place)
    return file.write(part.contiguous().reshape(-1).view(torch.uint8).numpy())
