"""The metadata of a picture, how it was made: one line of JSON in its file, under the name `dimoo`.

Settings alone do not repeat a picture: it takes the same weights and, where a version changed what is computed, that
version. So metadata name a checkpoint together with a fingerprint of its files, and likewise a picture that was edited.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .checkpoint.find import NANO, Found
from .files import atomic_write
from .pictures.pixels import from_pil, open_picture, to_pil

VERSION = "0.2.0"  # as in pyproject.toml, which need not lie beside the code
KEY = "dimoo"

_WHOLE = 64 << 20  # bytes; larger files are sampled
_SAMPLES, _SAMPLE = 256, 4096  # pieces, bytes each

_DESCRIPTION = 0x010E  # EXIF's ImageDescription
_EXIF_ROOM = {"JPEG": 65_000, "MPO": 65_000}  # bytes; a segment of a JPEG holds no more than 64 KiB
_EXIF_FORMATS = ("JPEG", "MPO", "WEBP", "AVIF")
_ALPHA_FORMATS = ("PNG", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000", "QOI", "TGA", "ICO", "DDS")
_QUALITY: dict[str, dict[str, Any]] = {  # nothing is lost that need not be: no halved colours, no small palette
    "JPEG": {"quality": 95, "subsampling": 0},
    "MPO": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},  # exact: colours under transparency too
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}

_log = logging.getLogger(__name__)


def versions() -> dict[str, str]:
    """The versions of this code and of torch."""
    return {"version": VERSION, "torch": str(torch.__version__)}


def identified(name: str, files: Iterable[Path]) -> dict[str, str]:
    """Metadata of a checkpoint or a picture: its name, which may mean something else elsewhere, and its fingerprint."""
    return {"name": name, "fingerprint": fingerprint(files)}


def checkpoint_name(found: Found) -> str:
    """What a checkpoint is called: the name of its folder or file."""
    path = Path(os.path.abspath(found.path))  # not resolved: the links of the hub's cache lead to nameless files
    return "DiMOO-nano" if path == NANO.absolute() else path.name


def identified_checkpoint(found: Found) -> dict[str, str]:
    """Metadata of a checkpoint, by its name."""
    return identified(checkpoint_name(found), found.files)


def fingerprint(files: Iterable[Path]) -> str:
    """16 hex digits, the same wherever and in whatever order the files lie, and others if one differs.

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


def save(
    picture: Image.Image,
    path: Path,
    metadata: Mapping[str, Any],
    *,
    icc_profile: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Write a picture, in full or not at all, with `metadata` in it: in a PNG as text, in JPEG, WebP and AVIF as EXIF's
    description; other formats have no place for it. `read_metadata` reads it back.

    A JPEG has 64 KiB for it; the longest values are left out as far as they have to be, and a warning names them. For
    formats without transparency the picture is put on white. `icc_profile` and `dpi` are those of the picture that was
    changed. Raises OSError where the file cannot be written.
    """
    kind = Image.registered_extensions()[path.suffix.lower()]
    options = dict(_QUALITY.get(kind, {}))
    if icc_profile is not None and icc_profile[16:20] == b"RGB ":
        options["icc_profile"] = icc_profile
    elif icc_profile is not None:
        _log.warning("%s: the colour profile is not kept, since it is not for RGB.", path)
    if dpi is not None:
        options["dpi"] = dpi
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(KEY, json.dumps(metadata))
    elif kind in _EXIF_FORMATS:
        options["exif"] = Image.Exif()
        options["exif"][_DESCRIPTION] = _description(metadata, path, room=_EXIF_ROOM.get(kind))
    if picture.mode == "RGBA" and kind not in _ALPHA_FORMATS:
        _log.warning("%s: %s has no transparency; the picture is saved on white.", path, kind)
        picture = to_pil(from_pil(picture)[0])
    with atomic_write(path) as part:
        picture.save(part, kind, **options)


def _description(metadata: Mapping[str, Any], path: Path, *, room: int | None) -> str | bytes:
    """Metadata for EXIF's description, as ASCII, which every program reads; where that is longer than `room` bytes as
    UTF-8, in which Chinese takes half of it, without the longest values as far as that is too long as well."""
    line = json.dumps({KEY: metadata})
    if room is None or len(line) <= room:
        return line
    kept, left_out = dict(metadata), list[str]()
    while len(encoded := _utf8({KEY: kept | ({"left_out": left_out} if left_out else {})})) > room and kept:
        longest = max(kept, key=lambda name: len(_utf8(kept[name])))
        left_out.append(longest)
        del kept[longest]
    if left_out:
        _log.warning("%s: a JPEG has no room for all metadata; %s left out. Save as PNG.", path, ", ".join(left_out))
    return encoded


def _utf8(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def read_metadata(path: str | Path) -> dict[str, Any] | None:
    """The metadata that `save` wrote into a PNG, JPEG, WebP or AVIF; None where there is no such picture, half of one,
    or one that was not made here."""
    try:
        with open_picture(path) as image:
            line = image.info.get(KEY)
            if line is not None:
                found = json.loads(line)
            else:
                description = image.getexif().get(_DESCRIPTION, "null")
                found = json.loads(_text(description)).get(KEY)
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


def _text(description: str | bytes) -> str | bytes:
    """EXIF's description; PIL reads its bytes as Latin-1."""
    return description if isinstance(description, bytes) else description.encode("latin-1", "replace")
