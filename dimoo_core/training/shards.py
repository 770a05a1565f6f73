"""Samples by the million on disk: shards of codes and words, and an index that finds each without reading the others.

    shard-00000.safetensors ...   codes [N] of all pictures one after the other; weights [M], a byte a cell, of answers
                                  of which only some cells count; records [T], UTF-8, a JSON object for each sample;
                                  places [n,2], first byte and length of each of the n objects
    index.npy                     for each sample the number of its shard, and the first byte and length of its object
    left_out.txt                  a line for each record that could not be used, if there are any
    dataset.json                  counts and a digest; written last, so that a folder without it is not finished

The index is mapped, not read, and a sample is cut out of its mapped shard when it is asked for: memory does not grow
with the number of samples. There is no pickle and nothing that could run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from safetensors import safe_open
from torch import Tensor

from ..checkpoint.headers import read_json, write_tensors
from ..checks import rust_errors
from ..files import atomic_write, atomic_write_text
from ..sequence.prompt import Prompt
from .dataset import Sample
from .records import task_named

FORMAT = 1
INDEX, MANIFEST, LEFT_OUT = "index.npy", "dataset.json", "left_out.txt"
ENTRY = np.dtype([("shard", "<u4"), ("length", "<u4"), ("start", "<u8")])

_KEY = "dimoo_records"  # of all metadata together: safetensors writes several in an order that changes
_REMEDY = "make the folder again with `python -m dimoo_core train encode`."


def shard_file(folder: Path, number: int) -> Path:
    """Where shard `number`, from 0, lies."""
    return folder / f"shard-{number:05d}.safetensors"


# Writing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardFacts:
    """What a shard says of itself: its number of samples, a digest of all that it was made of, and a sentence for each
    record that was left out."""

    samples: int
    digest: str
    left_out: list[str]

    @classmethod
    def read(cls, path: Path) -> ShardFacts | None:
        """The facts of a whole shard; None where there is no file, or one of another kind."""
        try:
            with _shard(path) as file:
                facts = json.loads(file.metadata()[_KEY])
                return cls(**facts) if facts.pop("format") == FORMAT else None
        except ValueError:
            return None


@dataclass
class Shard:
    """A shard in the making. A grid of codes that several samples share is kept once."""

    codebook_size: int
    _grids: list[Tensor] = field(default_factory=list)
    _weights: list[Tensor] = field(default_factory=list)
    _records: list[bytes] = field(default_factory=list)
    _places: dict[tuple[int, torch.Size], list[int]] = field(default_factory=dict)
    _cells: int = 0

    def add(self, sample: Sample) -> None:
        """One more sample. Its weights are kept in steps of 1/255."""
        task = sample.prompt.task
        words: dict[str, Any] = {"name": sample.name, "task": task.name, "system": task.system}
        if sample.prompt.text:
            words["text"] = sample.prompt.text
        if sample.prompt.images:
            words["images"] = [self._place(image[0]) for image in sample.prompt.images]
        words["answer"] = sample.answer if isinstance(sample.answer, str) else self._place(sample.answer)
        if sample.weights is not None:
            words["weights"] = sum(map(len, self._weights))
            self._weights.append((sample.weights * 255).round().to(torch.uint8).flatten())
        self._records.append(json.dumps(words, ensure_ascii=False).encode("utf-8", "replace"))

    def write(self, path: Path, digest: str, left_out: list[str]) -> None:
        """Write the shard, whole or not at all."""
        lengths = torch.tensor([len(record) for record in self._records], dtype=torch.int64)
        tensors = {
            "codes": _joined([grid.flatten() for grid in self._grids], self._dtype),
            "weights": _joined(self._weights, torch.uint8),
            "records": torch.frombuffer(bytearray(b"".join(self._records) or b" "), dtype=torch.uint8),
            "places": torch.stack((lengths.cumsum(0) - lengths, lengths), dim=1),
        }
        facts = {"format": FORMAT, **asdict(ShardFacts(len(self._records), digest, left_out))}
        write_tensors(path, tensors, {_KEY: json.dumps(facts)})

    @property
    def _dtype(self) -> torch.dtype:
        return torch.int16 if self.codebook_size <= 2**15 else torch.int32

    def _place(self, grid: Tensor) -> list[int]:
        """First cell, height and width of codes [H,W] within the shard."""
        key = (grid.data_ptr(), grid.shape)  # not used again for another grid, as all of them are held
        if key not in self._places:
            self._places[key] = [self._cells, *grid.shape]
            self._grids.append(grid)
            self._cells += grid.numel()
        return self._places[key]


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([part.to(dtype) for part in parts]) if parts else torch.zeros(0, dtype=dtype)


@dataclass(frozen=True)
class Finished:
    """What a finished folder holds; `digest` differs where a sample does."""

    samples: int
    shards: int
    left_out: int
    codebook_size: int
    digest: str

    @classmethod
    def read(cls, folder: Path) -> Finished:
        """What a folder says of itself. Raises ValueError where it is not finished."""
        if not (folder / MANIFEST).is_file():
            raise ValueError(f"{folder} has no {MANIFEST}, it is not finished; {_REMEDY}")
        facts = read_json(folder / MANIFEST)
        if facts.pop("format", None) != FORMAT or facts.keys() != {one.name for one in fields(cls)}:
            raise ValueError(f"{folder / MANIFEST} was written by another version; {_REMEDY}")
        return cls(**facts)


def finish(folder: Path, shards: int, codebook_size: int) -> Finished:
    """Make the shards 0 to `shards` - 1 of a folder a dataset: write index, names of what was left out, and manifest.

    Raises ValueError where a shard is missing or damaged, or where no shard has a sample.
    """
    digest, samples, left_out = hashlib.sha256(), 0, 0
    with atomic_write(folder / LEFT_OUT) as part, part.open("w", encoding="utf-8", errors="replace") as lines:
        for number in range(shards):
            facts = ShardFacts.read(shard_file(folder, number))
            if facts is None:
                raise ValueError(f"{shard_file(folder, number)} is missing or damaged; run the same command again.")
            digest.update(facts.digest.encode())
            samples, left_out = samples + facts.samples, left_out + len(facts.left_out)
            lines.writelines(f"{line}\n" for line in facts.left_out)
    if not samples:
        raise ValueError(f"None of the records can be used; {folder / LEFT_OUT} says why for each.")
    if not left_out:
        (folder / LEFT_OUT).unlink()
    _write_index(folder, shards, samples)
    finished = Finished(samples, shards, left_out, codebook_size, digest.hexdigest())
    atomic_write_text(folder / MANIFEST, json.dumps({"format": FORMAT, **asdict(finished)}, indent=1) + "\n")
    return finished


def _write_index(folder: Path, shards: int, samples: int) -> None:
    with atomic_write(folder / INDEX) as part:
        index, at = open_memmap(part, mode="w+", dtype=ENTRY, shape=(samples,)), 0
        for number in range(shards):
            with _shard(shard_file(folder, number)) as file:
                places = file.get_tensor("places").numpy()
            entries = index[at : at + len(places)]
            entries["shard"], entries["start"], entries["length"] = number, places[:, 0], places[:, 1]
            at += len(places)
        index.flush()
        del index, entries  # Windows replaces no file that is mapped


# Reading ------------------------------------------------------------------------------------------------------------


class RecordDataset:
    """The samples of a finished folder, each read from its shard when it is asked for.

    Raises ValueError where the folder is not finished or is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.facts = Finished.read(self.folder)
        try:
            self._index = np.load(self.folder / INDEX, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise ValueError(f"{self.folder / INDEX} is missing or damaged; {_REMEDY}") from None
        if self._index.dtype != ENTRY or len(self._index) != len(self):
            raise ValueError(f"{self.folder / INDEX} does not belong to {MANIFEST}; {_REMEDY}")

    def __len__(self) -> int:
        return self.facts.samples

    def names(self) -> Iterator[str]:
        """What each sample is called, in order. Raises ValueError where a shard is missing or damaged."""
        for number in range(self.facts.shards):
            with _shard(shard_file(self.folder, number)) as file:
                text = file.get_tensor("records").numpy().tobytes()
                places = file.get_tensor("places").tolist()
                names = [json.loads(text[start : start + length])["name"] for start, length in places]
            yield from names

    def __getitem__(self, index: int) -> Sample:
        """Raises ValueError where the shard is missing or damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number, length, start = self._index[index].tolist()
        with _shard(shard_file(self.folder, number)) as file:
            return _Reader(file, self.facts.codebook_size).sample(start, length)


@dataclass(frozen=True)
class _Reader:
    """Cuts samples out of an opened shard."""

    file: Any
    codebook_size: int

    def sample(self, start: int, length: int) -> Sample:
        words = json.loads(self._part("records", start, length).numpy().tobytes())
        images = tuple(self._grid(place)[None] for place in words.get("images", ()))
        prompt = Prompt(task_named(words["task"], words["system"], len(images)), words.get("text", ""), images=images)
        answer = words["answer"]
        if isinstance(answer, str):
            return Sample(prompt, answer, name=words["name"])
        grid, weights = self._grid(answer), words.get("weights")
        if weights is not None:
            weights = self._part("weights", weights, grid.numel()).float().view(grid.shape) / 255
        return Sample(prompt, grid, weights, words["name"])

    def _grid(self, place: list[int]) -> Tensor:
        start, *shape = place
        grid = self._part("codes", start, math.prod(shape)).long().view(shape)
        if not 0 <= int(grid.min()) <= int(grid.max()) < self.codebook_size:
            raise ValueError(f"a code is not in 0..{self.codebook_size - 1}")
        return grid

    def _part(self, name: str, start: int, length: int) -> Tensor:
        return self.file.get_slice(name)[start : start + length]


@contextmanager
def _shard(path: Path) -> Iterator[Any]:
    """An opened shard. Whatever is wrong with it, here or inside the `with`, is a ValueError that names it."""
    with (
        rust_errors(lambda message: f"{path} is missing or damaged ({message}); {_REMEDY}"),
        safe_open(path, framework="pt") as file,
    ):
        yield file
