"""Pictures of a folder, and the text files beside them."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import features
from torch import Tensor

from ..files import atomic_write, is_hidden, read_text
from .pixels import load_picture

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
if features.check("avif"):  # since Pillow 11.3, where it was built with it
    SUFFIXES.add(".avif")

MAX_CAPTION = 1 << 20  # bytes; more is not a caption
_SETTLED = 2 * 10**9  # ns; a folder changed less long ago may change again within one tick of its clock
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what no other picture of the folder would escape

_log = logging.getLogger(__name__)


# Folders ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Content:
    """What a folder holds, by name; hidden names are left out."""

    pictures: tuple[str, ...]
    folders: tuple[str, ...]
    links: tuple[str, ...]  # to folders


def pictures_below(folder: str | Path) -> list[Path]:
    """Picture files at and below `folder`, sorted, hidden ones left out. Links to folders are followed, each folder is
    read once. Raises ValueError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one that holds pictures.")
    found = [path / name for path, content in _walk(folder, _scan) for name in content.pictures]
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}); put some there.")
    return sorted(found)


def folders_with_pictures(root: str | Path) -> list[Path]:
    """Folders at and below `root` that hold pictures themselves, sorted, hidden ones left out. Cheap when asked again:
    only folders that have changed are read."""
    return sorted(path for path, content in _walk(Path(root), _glance) if content.pictures)


def _walk(root: Path, look: Callable[[Path], _Content]) -> Iterator[tuple[Path, _Content]]:
    """Every folder at and below `root` and what `look` finds in it. Each is visited once, under its own name if it has
    one below `root`: links are followed when no folder is left, so that a circle of links ends."""
    visited: set[str] = set()
    folders, links = [(root, os.path.realpath(root))], list[Path]()
    while folders or links:
        if not folders:
            link = links.pop(0)
            folders.append((link, os.path.realpath(link)))
        path, real = folders.pop()
        if real in visited:
            continue
        visited.add(real)
        try:
            content = look(path)
        except OSError as error:
            _log.warning("The folder %s cannot be read (%s) and is left out.", path, error.strerror)
            continue
        folders += [(path / name, os.path.join(real, name)) for name in content.folders]
        links = sorted([*links, *(path / name for name in content.links)])
        yield path, content


def _scan(folder: Path, *, all_pictures: bool = True) -> _Content:
    """What is in a folder; of the pictures only the first unless `all_pictures`. Links that lead nowhere are not."""
    pictures, folders, links = list[str](), list[str](), list[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            with suppress(OSError):  # a link to itself
                if os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                    if all_pictures or not pictures:
                        pictures.append(entry.name)
                elif entry.is_dir():
                    (links if entry.is_symlink() else folders).append(entry.name)
    return _Content(tuple(pictures), tuple(folders), tuple(links))


def _glance(folder: Path) -> _Content:
    """The folders in a folder and one of its pictures, remembered as long as the folder does not change."""
    changed = folder.stat().st_mtime_ns
    if time.time_ns() - changed < _SETTLED:
        return _scan(folder, all_pictures=False)
    return _remembered(folder, changed)


@lru_cache(maxsize=1 << 16)
def _remembered(folder: Path, _changed: int) -> _Content:
    return _scan(folder, all_pictures=False)


# Text files ---------------------------------------------------------------------------------------------------------


def caption_file(picture: Path) -> Path:
    """Where a picture's caption is kept, as trainers of image models expect it: NAME.txt beside it."""
    return picture.with_suffix(".txt")


def read_caption(picture: Path, *, report: Callable[[str], None] | None = None) -> str | None:
    """The caption of a picture, None where it has no text file; see `read_text` for `report`. Raises ValueError, naming
    the file, where it cannot be read."""
    path = caption_file(picture)
    if not path.is_file():
        return None
    try:
        return read_text(path, most=MAX_CAPTION, report=report).strip()
    except OSError as error:
        raise ValueError(f"The text file {path} cannot be read ({error.strerror}); check its permissions.") from error


def shared_captions(pictures: Iterable[Path]) -> dict[Path, Path]:
    """Pictures whose caption file belongs to an earlier picture, and that picture: a.png beside a.jpg."""
    owners: dict[str, Path] = {}
    owned = ((path, owners.setdefault(os.path.normcase(caption_file(path)), path)) for path in pictures)
    return {path: owner for path, owner in owned if path != owner}


def lacking_captions(pictures: Sequence[Path], *, again: bool = False) -> list[Path]:
    """The pictures to caption: those without a caption file, or, `again`, all; of those that share one the first."""
    shared = shared_captions(pictures)
    return [path for path in pictures if path not in shared and (again or not caption_file(path).is_file())]


@dataclass(frozen=True)
class Captioned:
    """What became of one picture: its words, or why it has none."""

    path: Path
    words: str = ""
    problem: str | None = None


def write_captions(
    pictures: Iterable[Path], describe: Callable[[Tensor], str], *, again: bool = True
) -> Iterator[Captioned]:
    """Writes a text file beside each picture with what `describe` says of its pixels [1,3,h,w], one after the other;
    `again`: also beside those that have one.

    A picture that cannot be read, or whose text file cannot be written, costs none of the others. What `describe`
    raises passes, and so does a full or read-only disk, as OSError.
    """
    for path in pictures:
        if not again and caption_file(path).is_file():
            continue  # another process has written it meanwhile
        try:
            pixels = load_picture(path)
        except ValueError as error:
            yield Captioned(path, problem=str(error))
            continue
        text_file = caption_file(path)
        try:
            with atomic_write(text_file) as part:  # before the work: is there a place for its result?
                words = describe(pixels)
                part.write_text(f"{words}\n", encoding="utf-8", errors="replace", newline="\n")
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            why = f"The text file {text_file} cannot be written ({error.strerror}); check the name and its permissions."
            yield Captioned(path, problem=why)
            continue
        yield Captioned(path, words)
