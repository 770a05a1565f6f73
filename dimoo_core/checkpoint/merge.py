"""LoRAs merged into a checkpoint: W + strength * alpha / r * B A in every layer that they stand beside.

The result is a checkpoint folder as published, in the dtype of its source. Sums are computed in fp32 and rounded once.
No more than a chunk of one tensor is ever in memory, beside the LoRAs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..checks import printable
from ..files import atomic_write_text
from ..model.adapters import Adapters, Branch
from ..model.transformer import hub_to_module
from .convert import Chunk, OnStep, Stored, rows_of, write_streamed
from .export import copy_vq, write_config
from .find import Found
from .headers import Entry, visible
from .load import check_weights

WEIGHTS = "model.safetensors"

Part = tuple[slice, Sequence[Branch]]  # rows of a stored tensor, and the branches beside the layer that they are


def merge(found: Found, adapters: Adapters, output: Path, *, on_step: OnStep | None = None) -> int:
    """Writes the checkpoint with the LoRAs in it into the folder `output`; returns the size of its weights in bytes.

    `config.json` is written last: a folder without it was not finished, and is written again. `on_step` gets the bytes
    done and the bytes in all. Raises ValueError where the checkpoint is broken or quantised, where no LoRA acts, or
    where `output` holds something else.
    """
    if found.formats:
        raise ValueError(
            f"{found.path} is quantised, and would be rounded a second time; merge into the checkpoint that it was "
            "made from, then run `convert`."
        )
    if not adapters:
        raise ValueError(
            "The strengths of the LoRAs are 0, or 0 in sum, so that nothing would be merged; give one another strength."
        )
    _check_output(output)
    check_weights(found)
    tensors = [Stored(name, entry.dtype, entry.shape) for name, entry in found.weights.items()]
    chunks = (
        chunk
        for name, entry in found.weights.items()
        for chunk in _merged(name, entry, _parts(name, entry, adapters, found.table.code_offset))
    )
    size = write_streamed(output / WEIGHTS, {"format": "pt"}, tensors, chunks, on_step=on_step)
    copy_vq(output / "vqvae", found, fields=found.vq_config_json)
    atomic_write_text(output / "tokenizer.json", found.tokenizer_text())
    write_config(output, found.config_json)
    return size


def _check_output(output: Path) -> None:
    """What is in the way: a finished checkpoint, or other weights, which would be taken for a part of this one."""
    if os.path.lexists(output) and not os.path.isdir(output):
        raise ValueError(f"{output} is a file; expected a folder for the merged checkpoint: name another one.")
    names = [path.name for path in visible(output)] if os.path.isdir(output) else []
    others = [name for name in names if ".safetensors" in name and name != WEIGHTS]
    if "config.json" in names:
        raise ValueError(f"{output} holds a checkpoint already; expected a new folder: name another one.")
    if others:
        raise ValueError(
            f"{output} holds {printable(others[0])}, which would be taken for a part of the checkpoint; expected a new "
            "folder: name another one."
        )


def _parts(name: str, entry: Entry, adapters: Adapters, code_offset: int) -> list[Part]:
    parts = []
    for leaf, rows in hub_to_module(name, code_offset):
        prefix, _, layer = leaf.removesuffix(".weight").rpartition(".")
        branches = adapters.inside(prefix).get(layer, ())
        if branches:
            first, last, _ = (rows or slice(None)).indices(entry.shape[0])
            parts.append((slice(first, last), branches))
    return parts


def _merged(name: str, entry: Entry, parts: Sequence[Part]) -> Iterator[Chunk]:
    """A stored tensor, chunk by chunk, with what its parts add."""
    start = offset = 0
    for chunk in rows_of(entry):
        numbers = _with_branches(chunk, start, parts) if parts else chunk
        if parts and not bool(numbers.isfinite().all()):
            raise ValueError(
                f"Merged, {name} has numbers too large for {entry.dtype}; merge with a lower strength, or into a "
                "checkpoint in bf16."
            )
        yield Chunk(name, offset, numbers)
        start += len(chunk) if chunk.ndim else 1
        offset += numbers.nbytes


def _with_branches(chunk: Tensor, start: int, parts: Sequence[Part]) -> Tensor:
    """Rows [n,K] of a weight, of which the first is row `start`, with branches added; rounded once."""
    sums = chunk.to(torch.promote_types(chunk.dtype, torch.float32), copy=True)
    for rows, branches in parts:
        first, last = max(rows.start - start, 0), min(rows.stop - start, len(chunk))
        if first >= last:
            continue
        own = slice(start + first - rows.start, start + last - rows.start)
        for branch, strength in branches:
            up, down = branch.up[own].to(sums.dtype), branch.down.to(sums.dtype)
            sums[first:last].addmm_(up, down, alpha=strength * branch.scale)
    return sums.to(chunk.dtype)
