"""Converting a checkpoint into one safetensors file, in bf16 or with the blocks' matrices in a byte per weight.

What is not quantised, and why: embedding, head and norms are bf16 (they are a small part, and their rows are looked up
or compared); the VQ keeps the dtype it is stored in. `ff_out` is guarded, because its input has outliers that no scale
per token can hold (arXiv 2508.14896): beside fp8 it stays bf16; in int8 it is rotated, which spreads them, or, where no
group of channels divides its width, keeps its activations unrounded. So does `attn_out` in fp8, where activations have
one scale that is known beforehand (`norm_before`).

No more than a chunk of one tensor is ever in memory: the header is laid out before anything is read, so that each chunk
can be written at its offset. That takes about 0.15 GB at any size of the checkpoint, beside the pages of its files that
the system keeps while nobody else needs the room.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..checks import shown
from ..files import atomic_write, check_room
from ..model.quantised import FP8, INT8, Quantised, largest_magnitude, quantise, rotate, scale_of
from .find import Found
from .headers import FLOATS, Entry
from .load import check_weights
from .single_file import (
    CONFIG,
    MARK,
    NEWER_VERSION,
    QUANTISATION,
    SOURCE,
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
_NORMS = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attn_norm") | dict.fromkeys(("ff_proj", "up_proj"), "ff_norm")
_GROUPS = (256, 64)  # channels that are rotated together, the best first: ComfyUI's kernels are made for 256
_CHUNK = 8 << 20  # numbers of a tensor in memory at a time, in fp32
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}

OnStep = Callable[[int, int, object], None]


@dataclass(frozen=True)
class Stored:
    """A tensor of the file to be: its name, the file's name for its dtype, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return _SIZES[self.dtype] * prod(self.shape)


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor: the tensor's name, the byte of it that the part begins at, and the numbers."""

    name: str
    offset: int
    numbers: Tensor


@dataclass(frozen=True)
class _Source:
    """A tensor of the checkpoint, and the name, dtype and quantisation (None: plain) that it gets; norm: the RMSNorm
    whose results get an `input_scale`."""

    name: str
    entry: Entry
    stored: str
    quantisation: Quantised | None = None
    norm: Entry | None = None

    def tensors(self) -> Iterator[Stored]:
        """All tensors that it becomes."""
        yield Stored(self.name, self.stored, self.entry.shape)
        if self.quantisation is not None:
            yield Stored(f"{self.name}_scale", "F32", self.quantisation.format.scale_shape(self.entry.shape[0]))
        if self.norm is not None:
            yield Stored(self._input_scale_name, "F32", ())

    @property
    def _input_scale_name(self) -> str:
        return f"{self.name.removesuffix('.weight')}.input_scale"

    def chunks(self) -> Iterator[Chunk]:
        """Their numbers, read chunk by chunk."""
        if self.quantisation is not None:
            yield from self._quantised(self.quantisation)
            if self.norm is not None:
                yield Chunk(self._input_scale_name, 0, input_scale(self.norm.read()))
            return
        offset = 0
        for chunk in rows_of(self.entry):
            numbers = chunk.to(FLOATS[self.stored])
            yield Chunk(self.name, offset, numbers)
            offset += numbers.nbytes

    def _quantised(self, quantisation: Quantised) -> Iterator[Chunk]:
        """A matrix with one scale is read twice: the scale is known only at its end."""
        one_scale, offset, scale_offset, format = None, 0, 0, quantisation.format
        if not format.per_row:
            magnitudes = torch.stack([largest_magnitude(chunk, format) for chunk in rows_of(self.entry)])
            one_scale = scale_of(magnitudes.amax(), format)
            yield Chunk(f"{self.name}_scale", 0, one_scale)
        for chunk in rows_of(self.entry):
            if quantisation.group is not None:
                chunk = rotate(chunk.float(), quantisation.group)
            scale = scale_of(largest_magnitude(chunk, format), format) if one_scale is None else one_scale
            if one_scale is None:
                yield Chunk(f"{self.name}_scale", scale_offset, scale)
                scale_offset += scale.nbytes
            numbers = quantise(chunk, scale, format)
            yield Chunk(self.name, offset, numbers)
            offset += numbers.nbytes


def rows_of(entry: Entry) -> Iterator[Tensor]:
    """A stored tensor in chunks of rows, as it is stored; each has a mapping to itself that ends with it."""
    if not entry.shape:
        yield entry.read()
        return
    chunk = max(_CHUNK // max(prod(entry.shape[1:]), 1), 1)
    for start in range(0, entry.shape[0], chunk):
        yield entry.read(slice(start, start + chunk))


def quantised_as(name: str, kind: str, columns: int) -> Quantised | None:
    """How the weight [N,K] that is published under `name`, with `columns` K, is stored in a file of `kind`, one of
    KINDS; None: in bf16."""
    matrix = _MATRIX.fullmatch(name)
    if matrix is None or kind == "bf16":
        return None
    guarded = matrix[1] == _GUARDED
    if kind == "fp8":
        return None if guarded else Quantised(FP8)
    if not guarded:
        return Quantised(INT8)
    group = next((group for group in _GROUPS if columns % group == 0), None)
    return Quantised(INT8, full_precision=group is None, group=group)


def norm_before(name: str) -> str | None:
    """The RMSNorm whose result the matrix `name` of a block is multiplied with; None: it gets something else.

    Nothing near bounds what attn_out gets, means of values: attention to many positions leaves them so far below what a
    value can be that they could be lost in fp8.
    """
    block, _, leaf = name.removesuffix(".weight").rpartition(".")
    return f"{block}.{_NORMS[leaf]}.weight" if leaf in _NORMS else None


def input_scale(norm: Tensor) -> Tensor:
    """The scale [] fp32 of activations in fp8 that come from an RMSNorm with the weight `norm` [D]: what they can be at
    most, sqrt(D) times its largest number, is no more than the largest of fp8 then.

    In fp8, whose error is relative, being below that costs nothing: at D 4096 errors stay those of a scale made of the
    activations, also where a channel is a thousand times as large. The scale is a power of two, because a device may
    round it to the dtype of the activations before it divides by it.
    """
    _, exponent = torch.frexp(scale_of(norm.float().abs().amax() * math.sqrt(len(norm)), FP8))
    return torch.ldexp(torch.ones(()), exponent)


def convert(found: Found, output: Path, kind: str, *, source: str | None = None, on_step: OnStep | None = None) -> int:
    """Writes the checkpoint into the one file `output`, whole or not at all; returns its size in bytes.

    `kind` is one of KINDS. `source` is what the file says that it was made of, a fingerprint of the checkpoint (None:
    nothing). `on_step` gets the bytes done and the bytes in all after each chunk, and may raise to stop: nothing is
    left then. Raises ValueError where the checkpoint is broken or quantised already, or where the disk has no room, and
    OSError where the file cannot be written there.
    """
    if kind not in KINDS:
        raise ValueError(f"Got dtype {shown(kind)}, expected one of {', '.join(KINDS)}.")
    if found.formats:
        raise ValueError(f"{found.path} is quantised already; convert the checkpoint that it was made from.")
    _check_output(found, output)
    check_weights(found)
    tokenizer = torch.frombuffer(bytearray(found.tokenizer_text().encode("utf-8")), dtype=torch.uint8)
    sources = [*_transformer_sources(found, kind), *_vq_sources(found)]
    tensors = [tensor for source in sources for tensor in source.tensors()]
    tensors.append(Stored(TOKENIZER, "U8", (len(tokenizer),)))
    chunks = chain([Chunk(TOKENIZER, 0, tokenizer)], *(source.chunks() for source in sources))
    return write_streamed(output, _metadata(found, sources, source), tensors, chunks, on_step=on_step)


def write_streamed(
    output: Path,
    metadata: dict[str, str],
    tensors: Sequence[Stored],
    chunks: Iterable[Chunk],
    *,
    on_step: OnStep | None = None,
) -> int:
    """Writes a safetensors file of these `tensors`, whose numbers come as `chunks` in any order, whole or not at all;
    returns its size in bytes. `on_step` as for `convert`. Raises ValueError where the disk has no room for it."""
    header, offsets = _header(metadata, tensors)
    total = len(header) + sum(tensor.nbytes for tensor in tensors)
    output.parent.mkdir(parents=True, exist_ok=True)
    check_room(output.parent, total, output.name)
    with atomic_write(output, sync=True) as part, part.open("wb") as file:
        done = file.write(header)
        for chunk in chunks:
            done += _put(file, offsets[chunk.name] + chunk.offset, chunk.numbers)
            if on_step is not None:
                on_step(done, total, None)
    return total


def _check_output(found: Found, output: Path) -> None:
    if output.suffix != SUFFIX:
        raise ValueError(f"Got output {output}, expected a file name that ends in {SUFFIX}; rename it.")
    if output.is_dir():
        raise ValueError(f"{output} is a folder, expected the name of a file; add one.")
    inputs = {path.resolve() for path in found.files}
    if output.resolve() in inputs or (output.exists() and any(output.samefile(path) for path in inputs)):
        raise ValueError(f"{output} is a file of the checkpoint that is converted; name another one.")
    if found.path.is_dir() and output.parent.resolve() in {path.absolute().parent.resolve() for path in found.files}:
        raise ValueError(
            f"{output} would lie among the checkpoint's own files and be taken for one; name another folder."
        )


def _transformer_sources(found: Found, kind: str) -> Iterator[_Source]:
    for name, entry in found.weights.items():
        quantisation = quantised_as(name, kind, entry.shape[-1])
        if quantisation is None:
            yield _Source(name, entry, "BF16")
            continue
        norm = norm_before(name) if quantisation.format is FP8 else None
        yield _Source(name, entry, quantisation.format.stored, quantisation, found.weights[norm] if norm else None)


def _vq_sources(found: Found) -> Iterator[_Source]:
    for name, entry in found.vq_weights.items():
        yield _Source(VQ_PREFIX + name, entry, entry.dtype)


def _metadata(found: Found, sources: Sequence[_Source], source: str | None) -> dict[str, str]:
    newer = any(one.norm or (one.quantisation and one.quantisation.group) for one in sources)
    metadata = {"format": "pt", MARK: NEWER_VERSION if newer else VERSION}
    metadata |= {CONFIG: json.dumps(dict(found.config_json)), VQ_CONFIG: json.dumps(dict(found.vq_config_json))}
    metadata |= {} if source is None else {SOURCE: source}
    layers = {one.name.removesuffix(".weight"): one.quantisation for one in sources if one.quantisation is not None}
    return metadata | ({QUANTISATION: quantisation_metadata(layers)} if layers else {})


def _header(metadata: dict[str, str], tensors: Sequence[Stored]) -> tuple[bytes, dict[str, int]]:
    """The header, its length included, and by the name of every tensor the byte of the file that it begins at.

    Wide numbers come first, as in files that the safetensors library writes: so every tensor is aligned.
    """
    fields: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: -_SIZES[tensor.dtype]):  # stable: else they stay in their order
        begin, end = end, end + tensor.nbytes
        fields[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {tensor.name: len(header) + fields[tensor.name]["data_offsets"][0] for tensor in tensors}


def _put(file: BinaryIO, offset: int, numbers: Tensor) -> int:
    """Writes a tensor's bytes from byte `offset` of the file on; returns how many."""
    file.seek(offset)
    return file.write(numbers.contiguous().reshape(-1).view(torch.uint8).numpy().data)
