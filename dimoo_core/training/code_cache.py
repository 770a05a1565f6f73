"""Pictures to codes, once: what has been encoded is kept in a file of the run's folder.

A picture is known by the hash of its file, and its codes by that, the size it was fitted to and the codec: a picture
that is edited in place, moved to another folder or fitted otherwise, and another VQ, never meet old codes. Captions are
not kept at all.

The file is safetensors: a grid [H,W] of 16-bit integers (32-bit where the codebook is larger) under the name
"HASH WIDTHxHEIGHT", and the codec in the metadata.
"""

from __future__ import annotations

import hashlib
import json
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .. import jobs, provenance
from ..checkpoint.find import Found
from ..checkpoint.headers import weight_errors, write_tensors
from ..checks import printable
from ..files import shown_path
from ..pictures.pixels import fit, load_picture, to_rgb
from ..pictures.sizes import fit_size
from ..sequence.prompt import GENERATE, Prompt, check_text
from .dataset import Sample
from .folder import Fitted, Item, Survey, with_trigger

FILE = "codes.safetensors"  # in the folder of the run
_SAVE_EVERY = 120.0  # seconds
_CHUNK = 1 << 20  # bytes of a file that are hashed at a time

Report = Callable[[str], None]
OnStep = Callable[[int, int, str], None]  # pictures that are done, of how many, and the name of the next


def codec_name(found: Found) -> str:
    """What a checkpoint's VQ and this code are called in the cache: the fingerprint of the weights, the shape of the
    network, the version. Raises OSError where a file cannot be read."""
    weights = provenance.fingerprint({entry.file for entry in found.vq_weights.values()})
    shape = json.dumps(dict(found.vq_config_json), sort_keys=True)
    return f"{weights} {hashlib.sha256(shape.encode()).hexdigest()[:16]} {provenance.VERSION}"


@dataclass
class CodeCache:
    """Codes [H,W] by the content and size of pictures, and the file that they are kept in."""

    file: Path
    codec: str
    codes: dict[str, Tensor] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    def open(cls, folder: Path, codec: str, report: Report) -> CodeCache:
        """The cache in a folder, which is made; empty where there is none, where another codec made it, or where it is
        damaged. `report` gets a sentence in the last two cases."""
        folder.mkdir(parents=True, exist_ok=True)
        cache = cls(folder / FILE, codec)
        if not cache.file.is_file():
            return cache
        try:
            made_by, codes = _read(cache.file)
        except ValueError:
            report(f"The pictures are encoded anew: {cache.file} is damaged, or holds no codes.")
            return cache
        if made_by == codec:
            cache.codes = codes
        else:
            report(f"The pictures are encoded anew: {cache.file} was made by another VQ or another version.")
        return cache

    def holds(self, key: str, grid: tuple[int, int], codebook_size: int) -> bool:
        """Whether there are codes of that name, for a grid (H, W) of cells and from that codebook."""
        codes = self.codes.get(key)
        return codes is not None and codes.shape == grid and 0 <= int(codes.min()) <= int(codes.max()) < codebook_size

    def add(self, key: str, codes: Tensor, codebook_size: int) -> None:
        """Keep codes [H,W]."""
        self.codes[key] = codes.to("cpu", torch.int16 if codebook_size <= 2**15 else torch.int32).contiguous()
        self.changed = True

    def save(self, only: Collection[str] | None = None) -> None:
        """Write the file, whole or not at all, if anything changed; `only`: nothing but these entries is kept."""
        if only is not None and self.codes.keys() - only:
            self.codes, self.changed = {key: self.codes[key] for key in self.codes if key in only}, True
        if self.changed:
            write_tensors(self.file, self.codes, {"codec": self.codec})
            self.changed = False


def _read(file: Path) -> tuple[str, dict[str, Tensor]]:
    """The codec and the codes of a cache file; raises ValueError where it is none.

    The codes are copies: Windows lets nobody replace a file while a tensor is mapped to it.
    """
    with weight_errors(file), safe_open(file, framework="pt") as opened:
        codes = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118 (not a dict)
        codec = (opened.metadata() or {}).get("codec", "")
    for key, grid in codes.items():
        if grid.ndim != 2 or not grid.numel() or grid.dtype not in (torch.int16, torch.int32):
            raise ValueError(f"{printable(key)} are no codes")
    return codec, codes


def content_key(picture: Fitted) -> str:
    """What the codes of a picture are called: the hash of its file, and its size. Raises OSError where the file cannot
    be read."""
    digest = hashlib.sha256()
    with picture.path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    width, height = picture.fitted
    return f"{digest.hexdigest()} {width}x{height}"


# Folders ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FolderDataset:
    """What a folder teaches, each item as often as it says. codes [H,W], in as few bytes as the cache has them, by
    picture and size. notes: a sentence about each picture that could not be encoded, whose items are left out."""

    items: Sequence[Item]
    codes: Mapping[Fitted, Tensor]
    notes: Sequence[str] = ()

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(item.repeats for item in self.items))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def names(self) -> Iterator[str]:
        return (item.name for item in self.items for _ in range(item.repeats))

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        item = self.items[bisect_right(self._ends, index)]
        prompt = item.prompt(tuple(self.codes[image].long()[None] for image in item.images))
        answer = item.answer if isinstance(item.answer, str) else self.codes[item.answer].long()
        return Sample(prompt, answer, item.weights, item.name)


def encode_folder(
    survey: Survey,
    vq: jobs.Autoencoder,
    folder: Path,
    *,
    codec: str,
    report: Report,
    on_step: OnStep | None = None,
) -> FolderDataset:
    """The samples of a surveyed folder; pictures are encoded unless `folder`, that of the run, has their codes.

    codec: of `codec_name`. report: gets a sentence about each file that is left out and about a cache that is of no
    use. on_step is called before each picture; what it raises passes, as Ctrl-C does, and what was encoded until then
    is kept. Entries that nothing asks for any more are dropped at the end. One picture is in memory at a time. Raises
    ValueError where no picture can be read, and OSError where the cache cannot be written.
    """
    cache, pictures = CodeCache.open(folder, codec, report), survey.fitted
    keys: dict[Fitted, str] = {}
    notes: dict[str, None] = {}  # each once
    saved, done = time.monotonic(), False
    try:
        for number, picture in enumerate(pictures):
            if on_step is not None:
                on_step(number, len(pictures), shown_path(picture.path))
            try:
                key, pixels = _unless_kept(cache, picture, vq)
            except ValueError as error:
                notes[str(error)] = None
                report(f"Left out: {error}")
                continue
            if pixels is not None:
                cache.add(key, jobs.encode(vq, pixels)[0], vq.codebook_size)
            keys[picture] = key
            if time.monotonic() - saved > _SAVE_EVERY:
                cache.save()
                saved = time.monotonic()
        done = True
    finally:
        cache.save(only=set(keys.values()) if done else None)
    items = [item for item in survey.items if all(one in keys for one in item.fitted)]
    if not any(item.repeats for item in items):
        raise ValueError(f"None of {len(pictures)} pictures below {survey.folder} can be taught: {next(iter(notes))}")
    return FolderDataset(items, {picture: cache.codes[key] for picture, key in keys.items()}, tuple(notes))


def _unless_kept(cache: CodeCache, picture: Fitted, vq: jobs.Autoencoder) -> tuple[str, Tensor | None]:
    """The name of a picture's codes, and its pixels [1,3,h,w], fitted, unless the cache has the codes. Raises
    ValueError where the picture cannot be read."""
    width, height = picture.fitted
    try:
        key = content_key(picture)
    except OSError as error:
        raise ValueError(f"The picture {picture.path} cannot be read ({error.strerror}): check the path.") from error
    if cache.holds(key, (height // vq.scale, width // vq.scale), vq.codebook_size):
        return key, None
    pixels = load_picture(picture.path)
    found = (pixels.shape[3], pixels.shape[2])
    if found != picture.size:
        raise ValueError(
            f"The picture {picture.path} has {found[0]}x{found[1]} px, where its header says "
            f"{picture.size[0]}x{picture.size[1]}: save it anew."
        )
    return key, fit(pixels, width, height)


# Lists --------------------------------------------------------------------------------------------------------------


def encode_list(
    images: Sequence[Tensor],
    texts: Sequence[str],
    vq: jobs.Autoencoder,
    *,
    side: int,
    trigger: str = "",
    on_step: OnStep | None = None,
) -> list[Sample]:
    """The samples of pictures [C,h,w] in memory and their captions, fitted and worded as those of a folder; a single
    text is that of all pictures. C as for `to_rgb`. Raises ValueError where the numbers of both do not fit."""
    if not images or len(texts) not in (1, len(images)):
        raise ValueError(
            f"Got {len(images)} pictures and {len(texts)} texts; expected a text for each picture, or one for all."
        )
    check_text("trigger word", trigger)
    every = texts if len(texts) == len(images) else [texts[0]] * len(images)
    samples = []
    for number, (image, text) in enumerate(zip(images, every, strict=True)):
        name = f"picture {number + 1}"
        if on_step is not None:
            on_step(number, len(images), name)
        check_text(f"text of {name}", text)
        pixels = to_rgb(image[None])
        codes = jobs.encode(vq, fit(pixels, *fit_size(pixels.shape[3], pixels.shape[2], side)))[0].cpu()
        samples.append(Sample(Prompt(GENERATE, with_trigger(text.strip(), trigger.strip())), codes, name=name))
    return samples
