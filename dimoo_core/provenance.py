"""What a picture's own file says of how it was made: one line of JSON under the name `dimoo`.

Settings alone do not repeat a picture: it takes the same weights, and where a version changed what is computed, that
version. So a checkpoint is told by a fingerprint of its files beside its name, and so is a picture that was edited.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .files import atomic_write

VERSION = "0.2.0"  # as in pyproject.toml, which need not lie beside the code
KEY = "dimoo"

_WHOLE = 64 << 20  # bytes; larger files are sampled
_SAMPLES, _SAMPLE = 256, 4096  # pieces, bytes each
_DESCRIPTION = 0x010E  # EXIF's ImageDescription
_EXIF_FORMATS = (".jpg", ".jpeg", ".webp")
_EXIF_ROOM = 60_000  # bytes; a JPEG has no more than 64 KiB for it


def versions() -> dict[str, str]:
    """What computed: versions of this code and of torch."""
    return {"version": VERSION, "torch": str(torch.__version__)}


def identified(name: str, files: Iterable[Path]) -> dict[str, str]:
    """A checkpoint or a picture: its name, which may mean something else elsewhere, and its fingerprint."""
    return {"name": name, "fingerprint": fingerprint(files)}


def fingerprint(files: Iterable[Path]) -> str:
    """16 hex digits that are the same wherever and in whatever order the files lie, and others if one differs.

    Of files above 64 MiB only the size, the beginning (where safetensors has its header) and 256 pieces of 4 KiB,
    spread evenly, are read: a fine-tune changes nearly every weight, and 16 GB would take a minute. Raises OSError
    where a file cannot be read.
    """
    digests = []
    for file in files:
        stat = file.stat()
        digests.append(_digest(file, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]


@lru_cache(maxsize=256)  # size and time are there for this: an unchanged file is read once
def _digest(file: Path, size: int, _time: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        if size <= _WHOLE:
            digest.update(stream.read())
        else:
            for piece in range(_SAMPLES):
                stream.seek(piece * (size - _SAMPLE) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


def save(picture: Image.Image, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a picture, whole or not at all, with `facts`: in a PNG as text, in a JPEG or WebP as EXIF's description, as
    far as there is room for it; other formats take none."""
    line, suffix, told = json.dumps(facts), path.suffix.lower(), {}
    if suffix == ".png":
        told["pnginfo"] = PngInfo()
        told["pnginfo"].add_text(KEY, line)
    elif suffix in _EXIF_FORMATS and len(line) < _EXIF_ROOM:
        told["exif"] = Image.Exif()
        told["exif"][_DESCRIPTION] = json.dumps({KEY: facts})
    with atomic_write(path) as part:
        picture.save(part, Image.registered_extensions()[suffix], **told)
