"""Records to shards of codes, by one process or by all that torchrun starts.

Every process reads the list and makes each of its shards from the same records, whichever process it is, so that the
shards do not depend on how many there are. A finished shard is kept as long as nothing that it was made of changes,
which is told by content: the records' words, every file that they name, the VQ and the sizes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from .. import provenance
from ..checkpoint.find import Found
from ..checkpoint.load import load_vq
from ..checks import printable
from ..devices import Ranks
from ..model.vq import VQ
from ..pictures.masks import marked_cells
from ..pictures.pixels import fit, load_picture
from ..pictures.sizes import CELL, fit_size, understanding_size
from ..sequence.prompt import Prompt
from .dataset import Sample
from .records import CODES_SUFFIX, Item, Record, parse_record, read_items
from .released_files import read_codes_file
from .shards import MANIFEST, Finished, Shard, ShardFacts, finish, shard_file
from .stopping import keeping

SHARD_RECORDS = 512  # what a kill may cost, and what is held in memory

_SHARD_NAME = re.compile(r"shard-\d{5,}\.safetensors(\.[0-9a-f]+\.part)?")


def encode_records(
    found: Found,
    source: Path,
    output: Path,
    *,
    side: int,
    ranks: Ranks,
    report: Callable[[str], None],
    device: torch.device | None = None,
    misspelt: bool = False,
) -> Finished:
    """Encode the records of a .jsonl file, or of a released .json, into the folder `output`, for `RecordDataset`.

    Pictures that are made, and the sources of edits, are fitted to about `side` x `side` px, an edit's first source
    like the picture made of it; those of conversations are fitted as when the model is asked. Each of `ranks` makes its
    share of the shards and waits for the others; shards of an earlier run are used again. A record that cannot be used
    is named in left_out.txt, and nothing takes its place. device: where the VQ computes; None: where the rank does.
    misspelt: see `parse_record`.

    Raises ValueError where the source cannot be read or none of its records can be used, and `Stopped` on Ctrl-C.
    """
    shards = -(-sum(1 for _ in read_items(source)) // SHARD_RECORDS)
    if not shards:
        raise ValueError(f"{source} holds no records; write one JSON object a line.")
    work = _Work(found, source.parent, side, misspelt, device or torch.device(ranks.device), report)
    output.mkdir(parents=True, exist_ok=True)
    if ranks.rank == 0:
        _clear(output, shards)
    ranks.wait()
    with keeping(f"the finished shards are kept in {output}, the same command makes the rest"):
        for number, items in _share(source, ranks):
            made = work.make(shard_file(output, number), items)
            report(f"shard {number + 1} of {shards} {'written' if made else 'unchanged'}")
        ranks.wait()
        if ranks.rank == 0:
            finish(output, shards, found.table.codebook_size)
        ranks.wait()
    return Finished.read(output)


def _clear(output: Path, shards: int) -> None:
    """Make the folder an unfinished one of so many shards: no manifest, no other shards, nothing half written."""
    (output / MANIFEST).unlink(missing_ok=True)
    kept = {shard_file(output, number).name for number in range(shards)}
    for path in output.iterdir():
        if _SHARD_NAME.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def _share(source: Path, ranks: Ranks) -> Iterator[tuple[int, list[Item]]]:
    """The shards of a process, by number, and their items."""
    for number, group in groupby(enumerate(read_items(source)), key=lambda pair: pair[0] // SHARD_RECORDS):
        if number % ranks.size == ranks.rank:
            yield number, [item for _, item in group]


@dataclass
class _Work:
    """What all shards have in common. The VQ is loaded when the first picture is met: codes need none."""

    found: Found
    folder: Path
    side: int
    misspelt: bool
    device: torch.device
    report: Callable[[str], None]

    @cached_property
    def vq(self) -> VQ:
        return load_vq(self.found, device=self.device)

    @cached_property
    def settings(self) -> str:
        """All that decides about codes and words besides the records, as text."""
        vq = provenance.fingerprint({entry.file for entry in self.found.vq_weights.values()})
        return json.dumps([vq, self.found.table.to_dict(), self.side, self.found.defaults.sides, self.misspelt])

    def make(self, path: Path, items: Sequence[Item]) -> bool:
        """Make the shard at `path`, unless it is there and would be the same; whether it was made."""
        records, problems = list[Record](), dict[str, str]()
        for item in items:
            try:
                records.append(parse_record(item, self.folder, misspelt=self.misspelt))
            except ValueError as error:
                problems[item.where] = str(error)
        digest = self._digest(items, records)
        there = ShardFacts.read(path)
        if there is not None and there.digest == digest:
            return False
        shard, codes = Shard(self.found.table.codebook_size), _Codes(self)
        for record in records:
            self.report(f"encoding {record.where}")
            try:
                samples = _samples(record, codes)
            except (ValueError, OSError) as error:
                problems[record.where] = f"{record.where}: {error}"
                continue
            for sample in samples:
                shard.add(sample)
        shard.write(path, digest, [problems[item.where] for item in items if item.where in problems])
        return True

    def _digest(self, items: Sequence[Item], records: Sequence[Record]) -> str:
        """A digest of all that a shard is made of."""
        digest = hashlib.sha256(self.settings.encode())
        for item in items:
            digest.update(f"\n{item.where}\n{item.text}".encode("utf-8", "surrogateescape"))
        for path in dict.fromkeys(path for record in records for path in record.files):
            digest.update(_content(path).encode())
        return digest.hexdigest()


def _content(path: Path) -> str:
    """What tells whether the content of a file has changed."""
    try:
        return provenance.fingerprint([path]) if path.is_file() else "absent"
    except OSError:
        return "unreadable"


def _samples(record: Record, codes: _Codes) -> list[Sample]:
    """What a record teaches: one sample, or one of each turn. Raises ValueError where a file of it cannot be used."""
    task = record.task
    if record.picture is None:
        asked = [codes.asked(path, images=len(record.sources)) for path in record.sources]
        images = tuple(grid[None] for grid in asked)
        return [
            Sample(Prompt(task, turn.question, images=images), turn.answer, name=record.where) for turn in record.turns
        ]
    answer = codes.made(record.picture)
    sources = [codes.made(path, like=None if number else answer) for number, path in enumerate(record.sources)]
    prompt = Prompt(task, record.prompt, images=tuple(grid[None] for grid in sources))
    weights = None if record.mask is None else codes.weights(record.mask, record.picture, answer)
    return [Sample(prompt, answer, weights, record.where)]


@dataclass
class _Codes:
    """Codes [H,W] of the pictures of one shard; a file at a size is encoded once and gives the same tensor again."""

    work: _Work
    grids: dict[tuple[Path, tuple[int, int] | None], Tensor] = field(default_factory=dict)
    sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)  # of the files, in px

    def made(self, path: Path, *, like: Tensor | None = None) -> Tensor:
        """Codes of a picture that is made or edited, of the size of the codes `like` where they are given."""
        if like is not None:
            height, width = like.shape
            return self._grid(path, lambda *_: (width * CELL, height * CELL))
        return self._grid(path, lambda across, down: fit_size(across, down, self.work.side))

    def asked(self, path: Path, *, images: int) -> Tensor:
        """Codes of one of so many pictures of a question."""
        sides = self.work.found.defaults.sides
        return self._grid(path, lambda across, down: understanding_size(across, down, sides, images=images))

    def weights(self, mask: Path, picture: Path, codes: Tensor) -> Tensor:
        """Weights fp32 [H,W] of a picture's codes: 1 where its mask is white, 0 elsewhere."""
        height, width = codes.shape
        return marked_cells(_there(mask), self.sizes.get(picture), (width * CELL, height * CELL)).float()

    def _grid(self, path: Path, fitted: Callable[[int, int], tuple[int, int]]) -> Tensor:
        """Codes of a picture, for which `fitted` tells the size (width, height) from its own; or those of a file."""
        if path.suffix.lower() == CODES_SUFFIX:
            if (path, None) not in self.grids:
                self.grids[path, None] = read_codes_file(path, self.work.found.table)
            return self.grids[path, None]
        pixels = load_picture(_there(path))
        self.sizes[path] = pixels.shape[3], pixels.shape[2]
        size = fitted(*self.sizes[path])
        if (path, size) not in self.grids:
            pixels = fit(pixels, *size).to(self.work.device)
            self.grids[path, size] = self.work.vq.encode(pixels)[0].cpu()
        return self.grids[path, size]


def _there(path: Path) -> Path:
    """The path of a file; ValueError for anything else, such as a pipe that nobody writes to."""
    shown_name = printable(str(path), 200)
    try:
        if path.is_file():
            return path
        there = path.exists()
    except OSError as error:  # such as a name that is too long
        raise ValueError(f"the file {shown_name} cannot be read ({error.strerror}); correct the path.") from None
    if there:
        raise ValueError(f"{shown_name} is not a file; expected a picture: correct the path.")
    raise ValueError(f"the file {shown_name} is absent; put it there, or correct the path.")
