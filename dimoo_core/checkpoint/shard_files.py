"""Weights of any size as the published checkpoint has them: one safetensors file, or several of a few GB with an index.

Each file is written as its tensors come, so that no more than one of them is ever in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

from ..files import atomic_write_text
from .convert import Chunk, Stored, write_streamed
from .headers import visible

FILE_BYTES = 4_000_000_000  # what drives and download pages still take without complaint
INDEX = "model.safetensors.index.json"


def write_weights(
    folder: Path,
    tensors: Sequence[Stored],
    chunks: Callable[[Stored], Iterable[Chunk]],
    *,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write `tensors`, whose numbers `chunks` gives, into files of at most `file_bytes`, a larger tensor into one of
    its own. Asks for each tensor once, in order. Files of an earlier checkpoint in `folder` are removed at the end.

    Raises ValueError where the disk has no room.
    """
    groups = _groups(tensors, file_bytes)
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = ["model.safetensors"]
    for name, group in zip(names, groups, strict=True):
        write_streamed(folder / name, {"format": "pt"}, group, chain.from_iterable(map(chunks, group)))
    if len(groups) > 1:
        places = {tensor.name: name for name, group in zip(names, groups, strict=True) for tensor in group}
        total = sum(tensor.nbytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        atomic_write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")
        names.append(INDEX)
    for path in visible(folder, "model*.safetensors*"):
        if path.name not in names:
            path.unlink()


def _groups(tensors: Sequence[Stored], file_bytes: int) -> list[list[Stored]]:
    groups: list[list[Stored]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > file_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return groups
