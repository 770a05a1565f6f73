"""Pictures of a folder, and the text files beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def pictures_below(folder: str | Path) -> list[Path]:
    """Picture files at and below `folder`, sorted, hidden ones left out. Raises ValueError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name one that holds pictures.")
    found = [path for _, pictures in _walk(folder) for path in pictures]
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}); put some there.")
    return sorted(found)


def folders_with_pictures(root: str | Path) -> list[Path]:
    """Folders at and below `root` that hold pictures themselves, sorted, hidden ones left out."""
    return sorted(folder for folder, pictures in _walk(Path(root)) if any(True for _ in pictures))


def _walk(root: Path) -> Iterator[tuple[Path, Iterator[Path]]]:
    """Every folder at and below `root` that is not hidden, and the pictures in it that are not."""
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]  # in place: what os.walk goes on with
        files = [Path(place, name) for name in names if not name.startswith(".")]
        yield Path(place), (path for path in files if path.suffix.lower() in SUFFIXES and path.is_file())


def caption_file(picture: Path) -> Path:
    """Where a picture's caption is kept, as trainers of image models expect it: NAME.txt beside it."""
    return picture.with_suffix(".txt")


def shared_captions(pictures: Iterable[Path]) -> dict[Path, Path]:
    """Pictures whose caption file belongs to an earlier picture, and that picture: a.png beside a.jpg."""
    owners: dict[str, Path] = {}
    owned = ((path, owners.setdefault(os.path.normcase(caption_file(path)), path)) for path in pictures)
    return {path: owner for path, owner in owned if path != owner}


def lacking_captions(pictures: Sequence[Path], *, again: bool = False) -> list[Path]:
    """The pictures to caption: those without a caption file, or, `again`, all; of those that share one the first."""
    shared = shared_captions(pictures)
    return [path for path in pictures if path not in shared and (again or not caption_file(path).exists())]
